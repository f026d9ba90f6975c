"""Files that we make: whole or not at all, and of the right owner.

Law: a file appears under its name whole and fsynced, or not at all. What a dead process left stops nobody, and
the next to write beside it removes it. What root makes belongs to the owner of what it replaces, or of its
directory: the service must be able to open it.
"""

from __future__ import annotations

import fcntl
import os
import pwd
import signal
import stat
import struct
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, NoReturn

from paperdb_trio.errors import StartupError

EXIT_UNWRITABLE: Final = 6
EXIT_EXISTS: Final = 9

PARTIAL: Final = ".paperdb-partial"


@contextmanager
def replacing(path: Path, *, force: bool) -> Iterator[Path]:
    """A new file beside `path`, which at the end takes the place of `path`, its owner and its mode (without
    rights for others). A new `path` can be read by its owner only.

    Raises `StartupError` when `path` is there already (unless `force`) or cannot be written; then, when the
    body raises, and when a signal ends the process, `path` is as it was and nothing else is left.
    """
    try:
        if path.exists() and (not force or not path.is_file()):
            hint = " (--force overwrites it)" if path.is_file() else ""
            raise StartupError(f"{path} exists already{hint}", EXIT_EXISTS)
        with _signals_raise(), partial(path) as temporary:
            yield temporary
    except OSError as error:
        raise StartupError(
            f"Cannot write {path}: {error.strerror}{whose(error, path)}", EXIT_UNWRITABLE
        ) from None


@contextmanager
def partial(path: Path) -> Iterator[Path]:
    """The same, over whatever is there, for a caller that cannot be interrupted. Raises OSError."""
    _sweep(path.parent)
    temporary, descriptor = _claim_new(path.parent)
    try:
        # In a directory like /tmp what is there may be anybody's, put there to be given what comes.
        if path.exists() and not path.parent.stat().st_mode & stat.S_ISVTX:
            inherit(descriptor, path)
            os.fchmod(descriptor, path.stat().st_mode & 0o770)
        else:
            inherit(descriptor, path.parent)
        yield temporary
        os.fsync(descriptor)
        temporary.replace(path)
        _fsync(path.parent)
    finally:
        _remove(temporary)
        os.close(descriptor)


# --- leftovers -----------------------------------------------------------------------------------


def _lock(descriptor: int) -> None:
    """Lock the file for as long as the descriptor is open. Raises BlockingIOError if another process has.

    An open file description's lock of the first byte. SQLite, which locks others, would let go of the process's
    own (`lockf`) whenever it closes the file, and run into `flock` on NFS, where that locks every byte.
    """
    fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 1, 0))


def _claim_new(directory: Path) -> tuple[Path, int]:
    while True:
        path = directory / f".{os.urandom(8).hex()}{PARTIAL}"
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        try:
            _lock(descriptor)
        except BlockingIOError:
            pass  # another process is about to sweep it away
        except OSError:
            return path, descriptor  # a file system without locks: nothing is swept there
        else:
            if os.fstat(descriptor).st_nlink:
                return path, descriptor
        os.close(descriptor)


def _sweep(directory: Path) -> None:
    """Remove what dead processes left: what nobody has locked."""
    with suppress(OSError):
        for path in directory.glob(f".*{PARTIAL}"):
            with suppress(OSError):  # live, or another user's
                descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
                try:
                    _lock(descriptor)
                    _remove(path)
                finally:
                    os.close(descriptor)


def _remove(path: Path) -> None:
    for suffix in ("-journal", "-wal", "-shm", ""):  # SQLite's own come first: they are found by its name
        Path(f"{path}{suffix}").unlink(missing_ok=True)


@contextmanager
def _signals_raise() -> Iterator[None]:
    """Turn signals that would end the process on the spot into SystemExit, so that it can clean up."""

    def stop(number: int, _: Any) -> NoReturn:
        raise SystemExit(128 + number)

    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# --- owners --------------------------------------------------------------------------------------


def inherit(made: int | Path, source: Path) -> None:
    """Give what root has just made to the owner of `source`; others can give nothing away."""
    if os.geteuid() == 0:
        with suppress(OSError):  # a file system without owners, or one that this container does not know
            owner = source.stat()
            os.chown(made, owner.st_uid, owner.st_gid, follow_symlinks=isinstance(made, int))


def open_or_create(path: Path) -> int:
    """A descriptor to read and write a file, which is made for its owner only if it is missing."""
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
    except FileExistsError:
        return os.open(path, os.O_RDWR | os.O_NOFOLLOW)  # root must not be led elsewhere
    inherit(descriptor, path.parent)
    return descriptor


def make_directory(path: Path) -> None:
    """Make a directory, and those above it, unless it is there."""
    if not path.is_dir():
        make_directory(path.parent)
        path.mkdir(exist_ok=True)
        inherit(path, path.parent)


def whose(error: OSError, *paths: Path) -> str:
    """For a lack of permission: which of the paths, or of the directories above the first, it is, and whose."""
    if not isinstance(error, PermissionError):
        return ""
    return not_ours((*paths, *paths[0].absolute().parents))


def not_ours(paths: Iterable[Path]) -> str:
    """Of the first path that is another user's and closed to this process: whose it is. Else nothing."""
    for path in paths:
        with suppress(OSError):
            owner = path.stat().st_uid
            if not os.access(path, os.W_OK) and owner != os.geteuid():
                return f" ({path} belongs to {_user(owner)}; this is {_user(os.geteuid())})"
    return ""


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"
