"""Copies of the database file: made while it is being served, and restored.

Law: files are written with the functions of `files`. A restored database starts its change logs beyond every
seq that a client can have seen: a cursor from the lost history must get a gap, never silently another history.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Final

from paperdb_trio.errors import StartupError
from paperdb_trio.files import EXIT_EXISTS, EXIT_UNWRITABLE, by_command, replacing, whose
from paperdb_trio.store.administration import Noted
from paperdb_trio.store.rowkeys import JUMP, jump_base
from paperdb_trio.store.sqlite import admin, migrations
from paperdb_trio.store.sqlite import library as sqlite
from paperdb_trio.store.sqlite.file import (
    EXIT_CORRUPT,
    EXIT_LOCKED,
    connect,
    database_file,
    own_files,
    prepare,
    serving_lock,
)

SIGNAL_STEPS: Final = 100_000
"""Steps of SQLite's virtual machine between two checks for a signal: about 2 ms."""


def backup(data: str, target: Path, *, force: bool) -> int:
    """Copy the database, as it is at one moment, into the file `target`. Returns the copy's size in bytes.

    The copy is made in one read transaction: writers go on meanwhile and never make it start again.
    """
    file = prepare(data, create=False, write=False)
    with suppress(OSError):
        if any(target.samefile(own) for own in own_files(file) if own.exists()):
            raise StartupError(f"{target} is the database itself", EXIT_EXISTS)
    with replacing(target, force=force) as temporary:
        _copy(file, temporary, f"Cannot back {file} up to {target}", compact=True)
    return target.stat().st_size


def snapshot(file: Path, target: Path, *, stopped: Callable[[], bool]) -> None:
    """The same into an empty file, from the database file, and verified. For threads: `stopped` ends it early.

    Raises `StartupError`.
    """
    _copy(file, target, "Cannot copy the database", compact=True, stopped=stopped)
    verify(target, "quick_check", stopped)


def make_empty(target: Path) -> None:
    """Make tables without rows in an empty file, for a backup of a store that is no file."""
    with closing(sqlite.create(target)) as connection:
        connection.execute("PRAGMA auto_vacuum=INCREMENTAL")
        migrations.migrate(connection, target, keep_copy=False)


def restore(source: Path, data: str, *, force: bool) -> None:
    """Replace the database in `data` with the backup `source`. No server may be running on `data`."""
    verify(source)
    file = database_file(data)
    with serving_lock(data):
        if file.exists() and not force:
            raise StartupError(f"{data} already contains a database (--force overwrites it)", EXIT_EXISTS)
        with replacing(file, force=True) as temporary:
            _copy(source, temporary, f"Cannot restore {source} to {file}")
            with closing(connect(temporary)) as connection:
                migrations.migrate(connection, temporary, keep_copy=False)
                begin_logs_anew(connection, _highest_seq(file))
            admin.apply(temporary, Noted(by_command(), "store.restore", None, str(source)))
            if file.exists():
                _close_down(file)
            for suffix in ("-wal", "-shm", "-journal"):  # left over from a database file that was removed
                Path(f"{file}{suffix}").unlink(missing_ok=True)


def _copy(
    source: Path, target: Path, what: str, *, compact: bool = False, stopped: Callable[[], bool] = lambda: False
) -> None:
    """`compact`: leave out unused space."""
    try:
        with closing(connect(source, read_only=True)) as given:
            if compact:
                given.set_progress_handler(stopped, SIGNAL_STEPS)
                given.execute("VACUUM INTO ?", (str(target),))
                return
            with closing(connect(target)) as copy:
                given.execute("BEGIN")
                given.execute("SELECT 1 FROM sqlite_master").fetchall()  # starts the read transaction
                sqlite.copy(given, copy)
                copy.execute("PRAGMA journal_mode=DELETE")  # one file, without a write-ahead log
    except sqlite.Error as error:
        damaged = isinstance(error, sqlite.DAMAGED)
        raise StartupError(f"{what}: {error}", EXIT_CORRUPT if damaged else EXIT_UNWRITABLE) from None


def verify(source: Path, pragma: str = "integrity_check", stopped: Callable[[], bool] = lambda: False) -> None:
    """Raises `StartupError`: missing, unreadable, damaged, not PaperDB's, or made by a newer version."""
    try:
        if not source.is_file():
            raise StartupError(f"There is no backup {source}", 1)
        source.open("rb").close()
    except OSError as error:
        raise StartupError(
            f"Cannot read the backup {source}: {error.strerror}{whose(error, source)}", EXIT_UNWRITABLE
        ) from None
    try:
        with closing(connect(source, read_only=True)) as connection:
            connection.set_progress_handler(stopped, SIGNAL_STEPS)
            verdict = connection.execute(f"PRAGMA {pragma}(1)").fetchone()[0]
            if verdict != "ok":
                raise _damaged(source, verdict)
            if not connection.execute("SELECT 1 FROM sqlite_master WHERE name='changes'").fetchone():
                raise StartupError(f"{source} is not a PaperDB backup", EXIT_CORRUPT)
            migrations.pending(connection, source)
    except sqlite.Error as error:
        raise _damaged(source, str(error)) from None


def _damaged(source: Path, verdict: str) -> StartupError:
    text = " ".join(verdict.split())
    return StartupError(f"The backup {source} is damaged: {text}. Nothing was changed.", EXIT_CORRUPT)


def begin_logs_anew(connection: sqlite.Connection, floor: int) -> None:
    """Empty the change logs. The next seqs are beyond `floor` and every seq that a client can have seen."""
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("UPDATE databases SET head=max(head,?)+?", (max(floor, jump_base(time.time())), JUMP))
    connection.execute("UPDATE databases SET trimmed=head")
    connection.execute("DELETE FROM changes")
    connection.execute("COMMIT")


def _highest_seq(file: Path) -> int:
    """The highest seq of the database to be replaced; 0 if it cannot be read."""
    if not file.exists():
        return 0
    try:
        with closing(connect(file, read_only=True)) as connection:
            return int(connection.execute("SELECT coalesce(max(head),0) FROM databases").fetchone()[0])
    except sqlite.Error:
        return 0


def _close_down(file: Path) -> None:
    """Make sure that no write-ahead log is left beside `file`: SQLite would replay it into the new file.

    Leaving WAL mode moves the log into the file. That succeeds only if no other process has the file open.
    """
    mode = "delete"
    try:
        with closing(connect(file)) as connection:
            (mode,) = connection.execute("PRAGMA journal_mode=DELETE").fetchone()
    except sqlite.BusyError:
        mode = "locked"
    except sqlite.Error:
        pass  # damaged, which may be why it is being replaced
    if mode != "delete":
        raise StartupError(f"Another command is using {file}; try again", EXIT_LOCKED)
    for own in own_files(file)[1:]:
        own.unlink(missing_ok=True)
