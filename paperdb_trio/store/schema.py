"""The SQLite file: where it lies, its tables, how it is opened, and the lock of the one serving process.

Law: the only file that issues DDL (but for the indexes of unique fields, which the writer adds) or
PRAGMAs. sqlite-utils is used here and in `admin`, never on the way of a write.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final

import sqlite_utils
from sqlite_utils import Migrations

from paperdb_trio.errors import StartupError

EXIT_CORRUPT: Final = 3
EXIT_NEWER: Final = 4
EXIT_LOCKED: Final = 5
EXIT_UNWRITABLE: Final = 6

CHECKED_AT_START: Final = 64 * 1024 * 1024
"""Files up to this size (bytes) are checked whole at start: 0.1 s. Larger ones: `paperdb check`."""

SEQ_BITS: Final = 40
SEQ_MASK: Final = (1 << SEQ_BITS) - 1


def span(owner: int) -> tuple[int, int]:
    """The rowids that belong to one owner, both ends included.

    A row of `changes` lies at `database << 40 | seq`, a row of `documents` at `collection << 40 | seq of
    its insert`: each owner's rows are one contiguous range in order of time, so that a page of the log,
    a scan of a collection in insertion order and a trim are range scans that need no further index.
    """
    return owner << SEQ_BITS, owner << SEQ_BITS | SEQ_MASK


migrations = Migrations("paperdb")


@migrations()
def m001_initial(db: Any) -> None:
    for statement in (
        """CREATE TABLE meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL)""",
        # head: seq of the last change; trimmed: seq of the last change that retention removed.
        """CREATE TABLE databases (
            id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE, plan TEXT NOT NULL,
            head INTEGER NOT NULL DEFAULT 0, trimmed INTEGER NOT NULL DEFAULT 0, created_at TEXT NOT NULL)""",
        """CREATE TABLE keys (
            id TEXT PRIMARY KEY, database_id INTEGER NOT NULL REFERENCES databases(id), kind TEXT NOT NULL,
            label TEXT NOT NULL, hash BLOB NOT NULL UNIQUE, created_at TEXT NOT NULL, revoked_at TEXT)""",
        """CREATE TABLE signing_secrets (
            kid TEXT PRIMARY KEY, secret BLOB NOT NULL, created_at REAL NOT NULL, retired_at REAL)""",
        # AUTOINCREMENT: the ids of dropped collections must not come back, they are part of positions.
        """CREATE TABLE collections (
            id INTEGER PRIMARY KEY AUTOINCREMENT, database_id INTEGER NOT NULL REFERENCES databases(id),
            name TEXT NOT NULL, documents INTEGER NOT NULL DEFAULT 0, schema TEXT,
            UNIQUE (database_id, name))""",
        """CREATE TABLE documents (
            position INTEGER PRIMARY KEY, collection_id INTEGER NOT NULL, id TEXT NOT NULL,
            seq INTEGER NOT NULL, data TEXT NOT NULL)""",
        """CREATE UNIQUE INDEX documents_id ON documents (collection_id, id)""",
        # at: milliseconds since the epoch; size: bytes of data.
        """CREATE TABLE changes (
            position INTEGER PRIMARY KEY, at INTEGER NOT NULL, size INTEGER NOT NULL, type TEXT NOT NULL,
            collection TEXT NOT NULL, data TEXT NOT NULL)""",
        """INSERT INTO meta VALUES ('admin_version', 1)""",
    ):
        db.execute(statement)


def database_file(data: str | Path) -> Path:
    return Path(data) / "paperdb.sqlite"


def connect(file: Path, *, read_only: bool = False, max_length: int | None = None) -> sqlite3.Connection:
    """Open a connection in autocommit mode that any one thread at a time may use.

    The caller closes it. `max_length` bounds one row or string in bytes (SQLITE_LIMIT_LENGTH), so that a
    query cannot gather more than that in memory: it fails with `sqlite3.DataError`.
    """
    mode = "ro" if read_only else "rw"
    uri = f"{file.absolute().as_uri()}?mode={mode}"
    connection = sqlite3.connect(
        uri, uri=True, isolation_level=None, check_same_thread=False, cached_statements=256, timeout=10
    )
    if max_length is not None:
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, max_length)
    for pragma in ("synchronous=FULL", "secure_delete=OFF", "cache_size=-16000", "temp_store=MEMORY"):
        connection.execute(f"PRAGMA {pragma}")
    return connection


def prepare(data: str | Path, *, create: bool) -> Path:
    """Make sure that `data` holds a database of this version, and return its file.

    Raises `StartupError`: missing (unless `create`), not writable, corrupt, or made by a newer version.
    """
    directory = Path(data)
    file = database_file(directory)
    try:
        missing = not create and not file.exists()
    except OSError as error:
        raise _unusable(directory, error) from None
    if missing:
        raise StartupError(f"There is no PaperDB in {directory} (run 'paperdb serve' first, or give --data)", 1)
    try:
        if create:
            descriptor = os.open(file, os.O_CREAT | os.O_RDWR, 0o600)
            os.close(descriptor)
        elif not os.access(file, os.W_OK):
            raise PermissionError(13, "not writable")
    except OSError as error:
        raise _unusable(directory, error) from None
    try:
        # Read-only first: closing a writable connection would write the log of a damaged file into it.
        if 0 < file.stat().st_size <= CHECKED_AT_START:
            with closing(connect(file, read_only=True)) as connection:
                verdict = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
                if verdict != "ok":
                    raise sqlite3.DatabaseError(verdict)
        with closing(connect(file)) as connection:
            connection.execute("PRAGMA journal_mode=WAL")
            _migrate(connection, directory)
    except sqlite3.DatabaseError as error:
        text = " ".join(str(error).split())
        if "full" in text or "readonly" in text or "unable to open" in text or "I/O" in text:
            raise StartupError(
                f"Cannot write to the data directory {directory}: {text}", EXIT_UNWRITABLE
            ) from None
        raise StartupError(
            f"The database file {file} is damaged: {text}. Nothing was changed; restore a backup.",
            EXIT_CORRUPT,
        ) from None
    return file


def checkpoint(file: Path) -> None:
    """Move everything from the write-ahead log into the file, which then is all there is to copy.

    Raises `sqlite3.Error`; nothing is lost then, the log is kept.
    """
    with closing(connect(file)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _migrate(connection: sqlite3.Connection, directory: Path) -> None:
    db = sqlite_utils.Database(connection)
    known = {migration.name for migration in migrations._migrations}
    newer = [migration.name for migration in migrations.applied(db) if migration.name not in known]
    if newer:
        raise StartupError(
            f"The data directory {directory} was made by a newer version of PaperDB ({newer[-1]}). "
            "Nothing was changed.",
            EXIT_NEWER,
        )
    if migrations.pending(db):
        migrations.apply(db)


def _unusable(directory: Path, error: OSError) -> StartupError:
    return StartupError(f"Cannot use the data directory {directory}: {error.strerror}", EXIT_UNWRITABLE)


@contextmanager
def serving_lock(data: str | Path) -> Iterator[None]:
    """Held by the one process that serves a data directory; the kernel frees it however that ends.

    Creates the directory. Raises `StartupError` when it cannot be written, or another process holds it.
    """
    directory = Path(data)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(directory / "paperdb.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _unusable(directory, error) from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
            raise StartupError(
                f"The data directory {data} is being served by another process (pid {holder or 'unknown'})",
                EXIT_LOCKED,
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)
