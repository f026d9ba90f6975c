"""Whether the files that are open still lie where they were opened.

Law: a file that was removed, replaced or unmounted can be written to for as long as it is open, and all of it
is lost at the end: whoever acknowledges a write looks here first.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from paperdb_trio.errors import ApiError

Fault = Literal["gone", "read-only"]


class Place:
    """Make one while the database is open: SQLite keeps its write-ahead log as long as somebody has it open."""

    def __init__(self, file: Path) -> None:
        self._file, self._wal = str(file.absolute()), f"{file.absolute()}-wal"
        self._known, self._size = self._look()

    def _look(self) -> tuple[tuple[int, int, int, int], int]:
        file, wal = os.stat(self._file), os.stat(self._wal)
        return (file.st_dev, file.st_ino, wal.st_dev, wal.st_ino), wal.st_size

    def wal_bytes(self) -> int | None:
        """The size of the write-ahead log; None if it, or the database, is not where it was. It takes 3 µs."""
        try:
            found, self._size = self._look()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError:  # a file system in trouble, which SQLite will tell of: nothing is known to be gone
            return self._size
        return self._size if found == self._known else None

    def fault(self) -> Fault | None:
        """What keeps writes from being stored, as far as can be told without a write."""
        if self.wal_bytes() is None:
            return "gone"
        return None if os.access(self._file, os.W_OK) else "read-only"


def storage_gone() -> ApiError:
    return ApiError(
        503,
        "STORAGE_GONE",
        "The database file was removed, replaced or unmounted: nothing is stored any more. "
        "Bring it back and restart the server.",
    )
