"""The standard streams of a command, and what happens when they cannot be written.

Law: if stdout cannot be written, the command ends with one line and an exit code. If
stderr cannot be written, only those lines are lost. After its first failure a stream silently accepts
everything, so that neither a second line nor Python's own at exit follows. The exception of a signal is such a
failure, too: it may come after the kernel took the bytes, and Python would write them again at exit.
"""

from __future__ import annotations

import io
import os
import select
import stat
import sys
from collections.abc import Callable
from typing import Any, Final, TextIO

from paperdb_trio.errors import StartupError
from paperdb_trio.files import EXIT_UNWRITABLE

STDOUT: Final = 1
STDERR: Final = 2
BUFFER: Final = 65_536
"""Bytes: an export is written in pieces of this size."""
UNREAD_SECONDS: Final = 1.0
"""A reader that takes nothing for so long has paused; a slow one takes 4 KiB sooner."""


def open_standard_streams() -> None:
    """Replace Python's streams by ours, unless something else (a test) has replaced them already."""
    closed = {number for number in (0, STDOUT, STDERR) if not _is_open(number)}
    for _ in closed:
        os.open(os.devnull, os.O_RDWR)  # takes the lowest number: else the next file would become stdout
    if sys.stdin is None:
        sys.stdin = open(0)  # noqa: SIM115 - as Python's own, it stays open
    if sys.stdout is sys.__stdout__:
        sys.stdout = _stream(STDOUT, sys.stdout, closed=STDOUT in closed)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _stream(STDERR, sys.stderr, closed=STDERR in closed)


def when_paused(action: Callable[[], None]) -> None:
    """Have `action` called for each `UNREAD_SECONDS` during which nothing reads the pipe that stdout is."""
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    if isinstance(raw, _Raw):
        raw.on_pause = action


def cannot_write(error: OSError) -> StartupError:
    return StartupError(f"Cannot write to stdout: {error.strerror}", EXIT_UNWRITABLE)


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def _stream(number: int, before: TextIO | None, *, closed: bool) -> TextIO:
    raw = _Raw(number, closed=closed)
    return io.TextIOWrapper(
        io.BufferedWriter(raw, BUFFER),
        encoding=before.encoding if before is not None else "utf-8",
        errors=before.errors if before is not None else "backslashreplace",
        line_buffering=number == STDERR or raw.isatty(),
    )


class _Raw(io.RawIOBase):
    def __init__(self, number: int, *, closed: bool) -> None:
        self._number = number
        self._closed = closed
        self._failed = False
        self.on_pause: Callable[[], None] | None = None

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._number

    def isatty(self) -> bool:
        return os.isatty(self._number)

    def write(self, data: Any) -> int:
        """Raises `StartupError` for stdout, but BrokenPipeError as it is: `listen` takes that for the end."""
        while not self._failed:
            try:
                if self._closed:
                    raise OSError(0, "it is closed")
                if self.on_pause is not None and stat.S_ISFIFO(os.fstat(self._number).st_mode):
                    while not select.select([], [self._number], [], UNREAD_SECONDS)[1]:
                        self.on_pause()
                    data = data[: select.PIPE_BUF]  # for which there is room: the write does not wait
                return os.write(self._number, data)
            except BlockingIOError:  # the parent process made the stream non-blocking
                select.select([], [self._number], [])
            except OSError as error:
                self._failed = True
                if self._number == STDOUT:
                    if isinstance(error, BrokenPipeError):
                        raise
                    raise cannot_write(error) from None
            except BaseException:  # of a signal: whether the kernel took the bytes is unknown
                self._failed = True
                raise
        return memoryview(data).nbytes
