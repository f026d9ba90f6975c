"""Checks that the open files are still where they were opened.

Law: an open file that was removed, replaced or unmounted can still be written to, but the data is lost when it
is closed. So the writer checks this before it acknowledges a write.
"""

from __future__ import annotations

import os
from pathlib import Path

from paperdb_trio.store.protocol import Fault


class Place:
    """Make one while the database is open: SQLite keeps the write-ahead log only as long as it is open."""

    def __init__(self, file: Path) -> None:
        self._file, self._wal = str(file.absolute()), f"{file.absolute()}-wal"
        self._known, self._size = self._look()

    def _look(self) -> tuple[tuple[int, int, int, int], int]:
        file, wal = os.stat(self._file), os.stat(self._wal)
        return (file.st_dev, file.st_ino, wal.st_dev, wal.st_ino), wal.st_size

    def wal_bytes(self) -> int | None:
        """The size of the write-ahead log; None if it or the database is not where it was. Takes 3 µs."""
        try:
            found, self._size = self._look()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError:  # a file system error: SQLite will report it, and the files may still be there
            return self._size
        return self._size if found == self._known else None

    def fault(self) -> Fault | None:
        """The reason why writes cannot be stored, as far as it shows without a write."""
        if self.wal_bytes() is None:
            return "gone"
        return None if os.access(self._file, os.W_OK) else "read-only"
