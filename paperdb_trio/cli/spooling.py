"""The lines of an export whose reader may pause.

Law: while an export reads, the server's write-ahead log cannot start over. So the read transaction lasts as
long as the disk needs, not as long as a reader of the output likes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from typing import Final

from paperdb_trio.errors import StartupError
from paperdb_trio.files import EXIT_UNWRITABLE

PAUSES: Final = 20
"""Pauses of `streams.UNREAD_SECONDS` after which the rest goes into a temporary file."""


class Spooling:
    """An iterator over `lines`. They contain no line ends."""

    def __init__(self, lines: Iterator[bytes]) -> None:
        self._lines = lines
        self._left = PAUSES

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        return next(self._lines).rstrip(b"\n")

    def paused(self) -> None:
        """Call this for each pause, between two lines."""
        self._left -= 1
        if self._left:
            return
        file = tempfile.TemporaryFile()  # noqa: SIM115 - open until the process ends
        try:
            file.writelines(line + b"\n" for line in self._lines)
            file.seek(0)
        except OSError as error:
            raise StartupError(
                f"Nothing reads the output, and the rest does not fit into {tempfile.gettempdir()}: "
                f"{error.strerror} (use --output, or set TMPDIR)",
                EXIT_UNWRITABLE,
            ) from None
        self._lines = iter(file)
