"""Files that we write: whole or not at all, and with the right owner.

Law: a file appears under its name whole and fsynced, or not at all. A dead process's leftovers block nothing;
the next writer in the directory removes them. A file that root creates belongs to the owner of the file that it
replaces, or of its directory, because the service must be able to open it.
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

EXIT_FAILED: Final = 70
EXIT_UNWRITABLE: Final = 6
EXIT_EXISTS: Final = 9

PARTIAL: Final = ".paperdb-partial"


@contextmanager
def replacing(path: Path, *, force: bool) -> Iterator[Path]:
    """A new file beside `path`. At the end it replaces `path` and takes over its owner and its mode (without
    rights for others). If `path` is new, only its owner can read it.

    Raises `StartupError` when `path` exists (unless `force`) or cannot be written. In that case, when the body
    raises, and when a signal ends the process, `path` is unchanged and nothing else is left.
    """
    try:
        if path.exists() and (not force or not path.is_file()):
            hint = " (--force overwrites it)" if path.is_file() else ""
            raise StartupError(f"{path} already exists{hint}", EXIT_EXISTS)
        with _signals_raise(), partial(path) as temporary:
            yield temporary
    except OSError as error:
        raise StartupError(
            f"Cannot write {path}: {error.strerror}{whose(error, path)}", EXIT_UNWRITABLE
        ) from None


@contextmanager
def partial(path: Path) -> Iterator[Path]:
    """The same, but always overwrites, for a caller that cannot be interrupted. Raises OSError."""
    _sweep(path.parent)
    temporary, descriptor = _new_name(path.parent), None
    try:
        # A signal may raise as soon as the file is there: its name is known before.
        while (descriptor := _claim(temporary)) is None:
            temporary = _new_name(path.parent)
        # In a directory like /tmp an existing file may be a trap: another user's, to receive our content.
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
        if descriptor is not None:
            os.close(descriptor)


# --- leftovers -----------------------------------------------------------------------------------


def _lock(descriptor: int) -> None:
    """Lock the file while the descriptor is open. Raises BlockingIOError if another process holds the lock.

    This locks the first byte for the open file description. SQLite locks other bytes. A process lock (`lockf`)
    would be lost whenever SQLite closes the file, and `flock` locks every byte on NFS, where SQLite would run
    into it.
    """
    fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 1, 0))


def _new_name(directory: Path) -> Path:
    return directory / f".{os.urandom(8).hex()}{PARTIAL}"


def _claim(path: Path) -> int | None:
    """Create and lock the file; its descriptor, or None if another process has swept it meanwhile."""
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
    try:
        _lock(descriptor)
    except BlockingIOError:
        pass  # another process is about to remove it
    except OSError:
        return descriptor  # a file system without locks: nothing is removed there
    else:
        if os.fstat(descriptor).st_nlink:
            return descriptor
    os.close(descriptor)
    return None


def _sweep(directory: Path) -> None:
    """Remove dead processes' leftovers: partial files without a lock."""
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
    for suffix in ("-journal", "-wal", "-shm", ""):  # SQLite's own files first: they are found by this name
        Path(f"{path}{suffix}").unlink(missing_ok=True)


@contextmanager
def _signals_raise() -> Iterator[None]:
    """Turn signals that would kill the process into SystemExit, so that it can clean up."""

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
    """Give a file that root has just created to the owner of `source`. Other users cannot give files away."""
    if os.geteuid() == 0:
        with suppress(OSError):  # a file system without owners, or an owner that this container does not know
            owner = source.stat()
            os.chown(made, owner.st_uid, owner.st_gid, follow_symlinks=isinstance(made, int))


def open_or_create(path: Path) -> int:
    """A descriptor to read and write a file. A missing file is created, for its owner only."""
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
    except FileExistsError:
        return os.open(path, os.O_RDWR | os.O_NOFOLLOW)  # root must not follow a link
    inherit(descriptor, path.parent)
    return descriptor


def make_directory(path: Path) -> None:
    """Create a directory and its missing parents, unless it exists."""
    if not path.is_dir():
        make_directory(path.parent)
        path.mkdir(exist_ok=True)
        inherit(path, path.parent)


def whose(error: OSError, *paths: Path) -> str:
    """For a lack of permission: the path, or parent of the first path, that is not ours, and its owner."""
    if not isinstance(error, PermissionError):
        return ""
    return not_ours((*paths, *paths[0].absolute().parents))


def not_ours(paths: Iterable[Path]) -> str:
    """The first path of another user that is closed to this process, and its owner; empty if there is none."""
    for path in paths:
        with suppress(OSError):
            owner = path.stat().st_uid
            if not os.access(path, os.W_OK) and owner != os.geteuid():
                return f" ({path} belongs to {_user(owner)}; this is {_user(os.geteuid())})"
    return ""


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:  # as in containers
        return f"user {uid}"


def by_command(uid: int | None = None) -> str:
    """Who does what a command does, for the record: its user, else that of this process."""
    return f"command line ({_user(os.getuid() if uid is None else uid)})"
