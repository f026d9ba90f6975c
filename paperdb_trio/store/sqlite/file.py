"""The SQLite file: its place, how it is opened, and the lock of the one serving process.

Law: no statement here reads or writes a user's data. The tables are defined in `migrations`.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Final

from paperdb_trio.errors import StartupError
from paperdb_trio.files import EXIT_UNWRITABLE, make_directory, not_ours, open_or_create, whose
from paperdb_trio.store.sqlite import library as sqlite
from paperdb_trio.store.sqlite import migrations
from paperdb_trio.store.sqlite.reserve import is_full, make_room

EXIT_CORRUPT: Final = 3
EXIT_LOCKED: Final = 5

LOCK: Final = "paperdb.lock"

CHECKED_AT_START: Final = 64 * 1024 * 1024
"""Files up to this many bytes are checked at start, in 0.1 s. Larger ones are left to `paperdb check`."""

BUSY_SECONDS: Final = 10
"""How long a connection waits for another process's lock."""

DYING_SECONDS: Final = 5.0
"""How long a start waits for the children of a killed server. The kernel ends them, in up to 0.2 s on a busy
machine."""


def database_file(data: str | Path) -> Path:
    return Path(data) / "paperdb.sqlite"


def own_files(file: Path) -> list[Path]:
    """The database file, and the files that SQLite makes beside it."""
    return [file, Path(f"{file}-wal"), Path(f"{file}-shm")]


def told(file: Path, error: sqlite.Error) -> str:
    """SQLite's message in one line. Adds what SQLite does not say: a full disk, or a file of another owner."""
    text = " ".join(str(error).split())
    with suppress(OSError):
        if "full" not in text and is_full(error, file.parent):
            return f"{text} (the disk is full)"
    return text + not_ours((*own_files(file), file.parent))


def connect(file: Path, *, read_only: bool = False, max_length: int | None = None) -> sqlite.Connection:
    """Open a connection in autocommit mode that any one thread at a time may use.

    The caller closes it. `max_length` bounds one row or string in bytes (SQLITE_LIMIT_LENGTH): a query that
    gathers more fails with `sqlite.TooBigError`. Raises `sqlite.Error`.
    """
    mode = "ro" if read_only else "rw"
    if read_only and not os.access(file.parent, os.W_OK) and not Path(f"{file}-wal").exists():
        mode = "ro&immutable=1"  # otherwise SQLite tries to create files beside it
    uri = f"{file.absolute().as_uri()}?mode={mode}"
    connection = sqlite.open_file(uri, read_only=read_only, busy_seconds=BUSY_SECONDS)
    try:
        if max_length is not None:
            connection.limit(sqlite.LENGTH, max_length)
        # Large sorts use a temporary file: in memory, sorting 150 MB of documents took 540 MB.
        sorting = "temp_store=FILE" if read_only else "temp_store=MEMORY"
        for pragma in ("synchronous=FULL", "secure_delete=OFF", "cache_size=-16000", sorting):
            connection.execute(f"PRAGMA {pragma}")
    except BaseException:  # the first statement fails if this is not an SQLite file
        connection.close()
        raise
    return connection


def prepare(
    data: str | Path, *, create: bool, write: bool = True, verify: bool = True, urgent: bool = False
) -> Path:
    """Make sure that `data` holds a database of this version, and return its file.

    Without `write`, the file need only be readable, unless an older version made it. Without `verify`, it may
    be damaged as long as its tables can be read. With `create`, the caller holds the serving lock. With
    `urgent`, a part of the reserve makes room on a full disk. Raises `StartupError`: missing (unless `create`),
    not writable, corrupt, or made by a newer version.
    """
    directory = Path(data)
    file = database_file(directory)
    try:
        missing = not create and not file.exists()
    except OSError as error:
        raise unusable(directory, error) from None
    if urgent:
        make_room(directory)
    if missing:
        raise StartupError(f"There is no PaperDB in {directory} (run 'paperdb serve' first, or give --data)", 1)
    try:
        if create:
            os.close(open_or_create(file))
        elif not os.access(file, os.W_OK if write else os.R_OK):
            raise PermissionError(13, "not writable" if write else "not readable")
    except OSError as error:
        raise unusable(directory, error) from None
    try:
        # Read-only first: closing a writable connection would write the log into a damaged file.
        if verify and 0 < file.stat().st_size <= CHECKED_AT_START:
            with closing(connect(file, read_only=True)) as connection:
                verdict = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
                if verdict != "ok":
                    raise _damaged(file, verdict)
        with closing(connect(file, read_only=not write)) as connection:
            if write:
                if connection.execute("PRAGMA page_count").fetchone() == (0,):
                    connection.execute("PRAGMA auto_vacuum=INCREMENTAL")
                connection.execute("PRAGMA journal_mode=WAL")
            if not migrations.pending(connection, directory):
                return file
        with nullcontext() if create else serving_lock(directory), closing(connect(file)) as connection:
            connection.execute("PRAGMA journal_mode=WAL")
            migrations.migrate(connection, file)
    except sqlite.UNAVAILABLE as error:
        raise StartupError(
            f"Cannot write to the data directory {directory}: {told(file, error)}", EXIT_UNWRITABLE
        ) from None
    except sqlite.Error as error:
        raise _damaged(file, str(error)) from None
    return file


def _damaged(file: Path, verdict: str) -> StartupError:
    text = " ".join(verdict.split())
    copies = sorted(copy.name for copy in file.parent.glob(f"{file.name}.before-*"))
    state = f"{copies[-1]} is a copy from before the upgrade" if copies else "Nothing was changed"
    return StartupError(
        f"The database file {file} is damaged: {text}. {state}; restore a backup.", EXIT_CORRUPT
    )


def compact(data: str | Path) -> tuple[int, int]:
    """Rewrite the file without unused space. Returns its size in bytes before and after.

    Raises `StartupError` when a server is running, or when there is no room for the second file.
    """
    file = prepare(data, create=False)
    with serving_lock(data):
        checkpoint(file)
        before = file.stat().st_size
        try:
            with closing(connect(file)) as connection:
                connection.execute("PRAGMA auto_vacuum=INCREMENTAL")
                connection.execute("VACUUM")
            checkpoint(file)
        except sqlite.Error as error:
            raise StartupError(f"Cannot compact {file}: {told(file, error)}", EXIT_UNWRITABLE) from None
    return before, file.stat().st_size


def checkpoint(file: Path, seconds: float = BUSY_SECONDS) -> None:
    """Move everything from the write-ahead log into the file, so that the file alone is complete.

    Raises `sqlite.Error`, also if it takes longer than `seconds`. The log is kept then, and nothing is lost.
    """
    with closing(connect(file)) as connection, closing(connect(file, read_only=True)) as witness:
        # The last connection to close also moves the log, however long that takes. So after a failure,
        # `connection` closes before `witness`.
        witness.execute("SELECT 1 FROM meta").fetchall()
        connection.set_busy_timeout(int(seconds * 1000))
        timer = threading.Timer(seconds, connection.interrupt)
        timer.start()
        try:
            (busy, _, _) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        except sqlite.Error:
            connection.close()
            raise
        finally:
            timer.cancel()
        if busy:
            connection.close()
            raise sqlite.BusyError("another process is using it")


def unusable(directory: Path, error: OSError) -> StartupError:
    own = (database_file(directory), directory / LOCK, directory)
    return StartupError(
        f"Cannot use the data directory {directory}: {error.strerror}{whose(error, *own)}", EXIT_UNWRITABLE
    )


@contextmanager
def serving_lock(data: str | Path) -> Iterator[None]:
    """The lock of the one process that serves a data directory. The kernel frees it however the process ends.

    Creates the directory. Raises `StartupError` if it cannot be written, or another process has the lock. Waits
    for the children of one that is dead.
    """
    directory = Path(data)
    try:
        make_directory(directory)
        descriptor = open_or_create(directory / LOCK)
    except OSError as error:
        raise unusable(directory, error) from None
    try:
        end = time.monotonic() + DYING_SECONDS
        while not _locked(descriptor):
            holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
            if _is_alive(holder) or time.monotonic() > end:
                raise StartupError(
                    f"The data directory {data} is being served by another process (pid {holder or 'unknown'})",
                    EXIT_LOCKED,
                )
            time.sleep(0.01)
        try:
            os.pwrite(descriptor, f"{os.getpid():<20}\n".encode(), 0)  # in place: the disk may be full
        except OSError as error:
            raise unusable(directory, error) from None
        yield
    finally:
        os.close(descriptor)


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_alive(pid: str) -> bool:
    """Also if we cannot know."""
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except (ValueError, OverflowError, PermissionError):
        pass
    return True
