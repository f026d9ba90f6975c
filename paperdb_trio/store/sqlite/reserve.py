"""Disk space that is kept for the writes that free space.

Law: while the disk has room, a file here holds real blocks that nothing uses. Once a write has found the disk
full, every other write is refused until the file is whole again, but for writes that free space: they get the
blocks, in portions, so that another process does not take them all at once. A file that is too short says that
the disk is full, so this survives kill -9.
"""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import Final

from paperdb_trio.files import open_or_create
from paperdb_trio.store.sqlite import library as sqlite

log = logging.getLogger("paperdb.store")

NAME: Final = "paperdb.reserve"
PORTION: Final = 1024 * 1024
"""Bytes that are given back at once."""
MARGIN: Final = 1024 * 1024
"""Bytes that must be free beside the whole reserve. Otherwise the next write would find the disk full again."""
ENOUGH: Final = 512 * 1024
"""Free bytes that the start of a server, or the revocation of a key, needs: at most 32 KiB for `-shm`, and some
pages."""
FULL: Final = 64 * 1024
"""Free bytes below which the disk counts as full. Without 32 KiB for `-shm`, SQLite says "disk I/O error"."""


def is_full(error: Exception, directory: Path) -> bool:
    """Whether a failed write found the disk full. SQLite does not always say so."""
    if isinstance(error, sqlite.FullError):
        return True
    return isinstance(error, sqlite.UNAVAILABLE) and _free(directory) < FULL


def make_room(directory: Path) -> None:
    """If the disk is full, give back a portion of the reserve, for an urgent write of this process.

    A server that runs notices within a second, and refills the reserve when it can.
    """
    path = directory / NAME
    with suppress(OSError):
        if _free(directory) < ENOUGH:
            _shorten(path, max(path.stat().st_size - PORTION, 0))


class Reserve:
    """`size` 0: none. The server's threads only read `spent`; the writer's thread calls the rest.

    If there is no room for the file at the start, it is made later, and nothing is refused for its sake.
    """

    def __init__(self, file: Path, size: int) -> None:
        self._path = file.with_name(NAME)
        self._size = size
        self.spent = False
        """Whether only writes that free space are allowed."""

    def open(self) -> None:
        """Make it whole, if there is room. A short file says that an earlier server, or a command, spent it."""
        if not self._size:
            self._path.unlink(missing_ok=True)
        elif not self._fill():
            self.spent = self._path.exists()
            effect = "only writes that free space are allowed" if self.spent else "a full disk refuses deletes"
            log.warning("there is no room for the %d bytes of %s: %s", self._size, self._path, effect)

    def look(self) -> None:
        """Notice what another process took, and make the file whole if there is room."""
        if self._size and self._length() != self._size and not self._fill():
            self.spent = self._length() is not None

    def touch(self) -> None:
        """After a write that found the disk full: note that it is, without giving back more than a block."""
        if not self.spent and (length := self._length()):
            with suppress(OSError):
                _shorten(self._path, length - 1)
            self.spent = True

    def spend(self) -> bool:
        """For a write that frees space, and found the disk full. Returns whether it may find more room now."""
        length = self._length()
        if not length:
            return False
        try:
            _shorten(self._path, max(length - PORTION, 0))
        except OSError as error:
            log.warning("could not give back blocks of %s: %s", self._path, error.strerror)
            return False
        self.spent = True
        return True

    def room(self, *, whole: bool = False) -> int:
        """Bytes that a write can use now, or could if the whole reserve were given back. Some are left for the
        file system."""
        return _free(self._path.parent) + (self._length() or 0) * whole - FULL

    def restore(self) -> bool:
        """Make the file whole again. Returns whether that succeeded, so that all writes are allowed."""
        if self._fill():
            self.spent = False
        return not self.spent

    def _length(self) -> int | None:
        try:
            return self._path.stat().st_size
        except OSError:
            return None

    def _fill(self) -> bool:
        length = self._length()
        new = length is None
        try:
            # The statistics of a file system may be wrong in either direction. They only save futile attempts.
            if _free(self._path.parent) + (length or 0) < self._size + MARGIN and length != self._size:
                return False
            descriptor = open_or_create(self._path)
            try:
                # A copied file may be sparse. Allocating what is allocated already changes nothing.
                os.posix_fallocate(descriptor, 0, self._size + (0 if length == self._size else MARGIN))
                os.ftruncate(descriptor, self._size)
            except OSError:
                os.ftruncate(descriptor, 0)
                raise
            finally:
                os.close(descriptor)
        except OSError:
            if new:
                with suppress(OSError):
                    self._path.unlink(missing_ok=True)
            return False
        return True


def _free(directory: Path) -> int:
    """Free bytes, including those that only root may use."""
    room = os.statvfs(directory)
    return room.f_bfree * room.f_frsize


def _shorten(path: Path, size: int) -> None:
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        os.ftruncate(descriptor, size)
        os.fsync(descriptor)  # a journaling file system may only then reuse the blocks
    finally:
        os.close(descriptor)
