"""Copies of the database file: taken while it is being served, and put back in its place.

Law: files appear as `files` makes them. What is put back begins its change
logs anew, beyond every seq that a client can have seen: a cursor of a history that the backup does not
have must get a gap, never silently another history.
"""

from __future__ import annotations

import time
from contextlib import closing, suppress
from pathlib import Path
from typing import Final

from paperdb_trio.errors import StartupError
from paperdb_trio.files import EXIT_EXISTS, EXIT_UNWRITABLE, replacing, whose
from paperdb_trio.store import migrations, sqlite
from paperdb_trio.store.file import (
    EXIT_CORRUPT,
    EXIT_LOCKED,
    connect,
    database_file,
    own_files,
    prepare,
    serving_lock,
)

EPOCH: Final = 1_735_689_600
"""2025-01-01 in seconds. A restored log begins at the milliseconds since then, so that restoring one backup
twice gives two stretches of seqs that do not meet unless more than 1,000 changes a second are written
all the time between. It fits into the 40 bits of a seq until 2059."""
SIGNAL_STEPS: Final = 100_000
"""Steps of SQLite's virtual machine, about 2 ms, between two looks whether a signal has come."""
JUMP: Final = 1 << 24
"""Further changes that may have been lost with the file that the backup replaces."""


def backup(data: str, target: Path, *, force: bool) -> int:
    """Copy the database as it is at one moment into the file `target`; returns its size in bytes.

    It is taken in one read transaction: writers go on meanwhile, and the copy need not begin again because
    of them.
    """
    file = prepare(data, create=False, write=False)
    with suppress(OSError):
        if any(target.samefile(own) for own in own_files(file) if own.exists()):
            raise StartupError(f"{target} is the database itself", EXIT_EXISTS)
    with replacing(target, force=force) as temporary:
        _copy(file, temporary, f"Cannot back {file} up to {target}", compact=True)
    return target.stat().st_size


def restore(source: Path, data: str, *, force: bool) -> None:
    """Put the backup `source` in the place of the database in `data`, which nobody may be serving."""
    _verify(source)
    file = database_file(data)
    with serving_lock(data):
        if file.exists() and not force:
            raise StartupError(f"There is a database in {data} already (--force overwrites it)", EXIT_EXISTS)
        with replacing(file, force=True) as temporary:
            _copy(source, temporary, f"Cannot restore {source} to {file}")
            with closing(connect(temporary)) as connection:
                migrations.migrate(connection, temporary, keep_copy=False)
                begin_logs_anew(connection, _highest_seq(file))
            if file.exists():
                _close_down(file)
            for suffix in ("-wal", "-shm", "-journal"):  # of a file that somebody removed: not of what comes
                Path(f"{file}{suffix}").unlink(missing_ok=True)


def _copy(source: Path, target: Path, what: str, *, compact: bool = False) -> None:
    """`compact`: leave out the space that nothing uses."""
    try:
        with closing(connect(source, read_only=True)) as given:
            if compact:
                given.set_progress_handler(lambda: False, SIGNAL_STEPS)
                given.execute("VACUUM INTO ?", (str(target),))
                return
            with closing(connect(target)) as copy:
                given.execute("BEGIN")
                given.execute("SELECT 1 FROM sqlite_master").fetchall()  # the moment
                sqlite.copy(given, copy)
                copy.execute("PRAGMA journal_mode=DELETE")  # one file, with no write-ahead log beside it
    except sqlite.Error as error:
        damaged = isinstance(error, sqlite.DAMAGED)
        raise StartupError(f"{what}: {error}", EXIT_CORRUPT if damaged else EXIT_UNWRITABLE) from None


def _verify(source: Path) -> None:
    """Raises `StartupError`: not there, not readable, damaged, not ours, or made by a newer version."""
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
            verdict = connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
            if verdict != "ok":
                raise _damaged(source, verdict)
            if not connection.execute("SELECT 1 FROM sqlite_master WHERE name='changes'").fetchone():
                raise StartupError(f"{source} is no PaperDB backup", EXIT_CORRUPT)
            migrations.pending(connection, source)
    except sqlite.Error as error:
        raise _damaged(source, str(error)) from None


def _damaged(source: Path, verdict: str) -> StartupError:
    text = " ".join(verdict.split())
    return StartupError(f"The backup {source} is damaged: {text}. Nothing was changed.", EXIT_CORRUPT)


def begin_logs_anew(connection: sqlite.Connection, floor: int) -> None:
    """Empty the change logs, and go on beyond every seq that a client can have seen; also beyond `floor`."""
    now = int((time.time() - EPOCH) * 1000)
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("UPDATE databases SET head=max(head,?)+?", (max(floor, now), JUMP))
    connection.execute("UPDATE databases SET trimmed=head")
    connection.execute("DELETE FROM changes")
    connection.execute("COMMIT")


def _highest_seq(file: Path) -> int:
    """The highest seq of the database that is to be replaced, as far as it can still be read."""
    if not file.exists():
        return 0
    try:
        with closing(connect(file, read_only=True)) as connection:
            return int(connection.execute("SELECT coalesce(max(head),0) FROM databases").fetchone()[0])
    except sqlite.Error:
        return 0


def _close_down(file: Path) -> None:
    """See that no write-ahead log is left beside `file`: it would be replayed into what takes its place.

    Leaving WAL mode moves the log into the file, and succeeds only if nobody else has the file open.
    """
    mode = "delete"
    try:
        with closing(connect(file)) as connection:
            (mode,) = connection.execute("PRAGMA journal_mode=DELETE").fetchone()
    except sqlite.BusyError:
        mode = "locked"
    except sqlite.Error:
        pass  # damaged: perhaps the reason for restoring
    if mode != "delete":
        raise StartupError(f"Another command is using {file}; try again", EXIT_LOCKED)
    for own in own_files(file)[1:]:
        own.unlink(missing_ok=True)
