"""The tables, and the upgrade of files of older versions.

Law: every statement that creates or alters a table is here. A released migration never changes. Each migration
is one transaction. Longer work follows in steps, which continue after a crash. The file is copied before
anything changes. sqlite-utils records the applied migrations; it is imported (60 ms) only if there is work.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, Final

from paperdb_trio.errors import StartupError
from paperdb_trio.files import EXIT_UNWRITABLE, replacing
from paperdb_trio.model import encode
from paperdb_trio.store.indexes import Index, field_text
from paperdb_trio.store.rowkeys import SEQ_BITS, span
from paperdb_trio.store.sqlite import library as sqlite

log = logging.getLogger("paperdb.store")

EXIT_NEWER: Final = 4

STEP_ROWS: Final = 2000
"""Documents that one transaction converts: some 20 ms."""
TELL_SECONDS: Final = 5.0
"""Seconds between two log lines about the progress."""


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
        # AUTOINCREMENT: the ids of dropped collections must not be reused, because row keys contain them.
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


def m002_jsonb(db: Any) -> None:
    """`documents.data` holds JSONB from now on. `jsonb_after`: documents up to this row key are converted. It
    is deleted when all are."""
    # Collections that are being removed: documents inserted up to seq `until` are deleted in steps.
    db.execute(
        """CREATE TABLE IF NOT EXISTS drops (
            collection_id INTEGER PRIMARY KEY, until INTEGER NOT NULL)"""
    )
    db.execute("INSERT INTO meta SELECT 'jsonb_after', -1 WHERE EXISTS (SELECT 1 FROM documents)")


def m003_entries(db: Any) -> None:
    """Indexes are rows. The former SQLite indexes are declared anew, and rebuilt while the server runs."""
    for statement in (
        """CREATE TABLE entries (
            index_id INTEGER NOT NULL, key BLOB NOT NULL, rowkey INTEGER NOT NULL,
            PRIMARY KEY (index_id, key, rowkey)) WITHOUT ROWID""",
        # Indexes that are being built: documents up to `rowkey` have entries. AUTOINCREMENT: the ids become
        # those of the indexes, and must not be reused.
        """CREATE TABLE index_builds (
            id INTEGER PRIMARY KEY AUTOINCREMENT, collection_id INTEGER NOT NULL, rowkey INTEGER NOT NULL)""",
        """CREATE TABLE index_drops (id INTEGER PRIMARY KEY)""",
        """ALTER TABLE documents RENAME COLUMN position TO rowkey""",
        """ALTER TABLE changes RENAME COLUMN position TO rowkey""",
        # JSON, see `indexes`; NULL means no indexes.
        """ALTER TABLE collections ADD COLUMN indexes TEXT""",
        # The latest createdAt, while insertion order is also the order of createdAt; else NULL.
        """ALTER TABLE collections ADD COLUMN newest TEXT DEFAULT ''""",
        """UPDATE collections SET newest=NULL WHERE documents>0""",
        """INSERT INTO meta SELECT 'newest_after', -1 WHERE EXISTS (SELECT 1 FROM documents)""",
    ):
        db.execute(statement)
    old = re.compile(r"(unique|schema_unique|schema_index)_([0-9]+)_([0-9a-f]+)")
    wanted: dict[int, set[tuple[str, str]]] = {}
    today = int(time.time() / 86_400)  # with 0, indexes that only `insert` uses would go in the first hour
    for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type='index'").fetchall():
        if found := old.fullmatch(name):
            kind, collection_id, field = found.groups()
            wanted.setdefault(int(collection_id), set()).add((bytes.fromhex(field).decode(), kind))
            db.execute(f'DROP INDEX "{name}"')
    for collection_id, fields in wanted.items():
        indexes = []
        for field, kind in sorted(fields):
            if kind == "schema_index" and (field, "schema_unique") in fields:
                continue
            db.execute(
                "INSERT INTO index_builds (collection_id, rowkey) VALUES (?,?)",
                (collection_id, span(collection_id)[0]),
            )
            (id,) = db.execute("SELECT last_insert_rowid()").fetchone()
            indexes.append(
                Index(
                    id,
                    (field_text(field),),
                    unique=kind == "schema_unique",
                    made=kind == "unique",
                    used=today if kind == "unique" else 0,
                )
            )
        text = encode(indexes).decode()
        db.execute("UPDATE collections SET indexes=? WHERE id=?", (text, collection_id))


def m004_before(db: Any) -> None:
    """Changes say what was before. Requests with an Idempotency-Key are remembered."""
    for statement in (
        # id: NULL in changes of older versions; before: a `reverse_patch`; txn: NULL for a single change.
        """ALTER TABLE changes ADD COLUMN id TEXT""",
        """ALTER TABLE changes ADD COLUMN before TEXT""",
        """ALTER TABLE changes ADD COLUMN txn INTEGER""",
        # at: milliseconds since the epoch; response: JSON, see `requests`; body: NULL if it is the document of
        # the change with the row key `change`.
        """CREATE TABLE requests (
            id INTEGER PRIMARY KEY, at INTEGER NOT NULL, scope TEXT NOT NULL, key TEXT NOT NULL,
            digest BLOB NOT NULL, response TEXT NOT NULL, body BLOB, change INTEGER, UNIQUE (scope, key))""",
    ):
        db.execute(statement)


def m005_revocations(db: Any) -> None:
    """Tokens can be ended before their time."""
    for statement in (
        # kind: jti or subject; at and until: milliseconds since the epoch. AUTOINCREMENT: servers read the rows
        # after the last one that they know.
        """CREATE TABLE revocations (
            id INTEGER PRIMARY KEY AUTOINCREMENT, database_id INTEGER NOT NULL, kind TEXT NOT NULL,
            name TEXT NOT NULL, at INTEGER NOT NULL, until INTEGER NOT NULL,
            UNIQUE (database_id, kind, name))""",
        """CREATE INDEX revocations_until ON revocations (until)""",
    ):
        db.execute(statement)


def m006_admin(db: Any) -> None:
    """Keys may belong to the server instead of a database, and may expire. Who did what is recorded."""
    columns = "id, database_id, kind, label, hash, created_at, revoked_at"
    for statement in (
        # SQLite cannot drop a NOT NULL. expires_at and last_used_at: milliseconds since the epoch.
        """CREATE TABLE new_keys (
            id TEXT PRIMARY KEY, database_id INTEGER REFERENCES databases(id), kind TEXT NOT NULL,
            label TEXT NOT NULL, hash BLOB NOT NULL UNIQUE, created_at TEXT NOT NULL, revoked_at TEXT,
            expires_at INTEGER, last_used_at INTEGER)""",
        f"""INSERT INTO new_keys ({columns}) SELECT {columns} FROM keys ORDER BY rowid""",
        """DROP TABLE keys""",
        """ALTER TABLE new_keys RENAME TO keys""",
        # at: milliseconds since the epoch; database: its name then; details: JSON.
        """CREATE TABLE audit (
            id INTEGER PRIMARY KEY AUTOINCREMENT, at INTEGER NOT NULL, by TEXT NOT NULL, action TEXT NOT NULL,
            database TEXT, target TEXT, details TEXT NOT NULL)""",
        # Databases that are being removed, in steps: nothing but this says that they existed.
        """CREATE TABLE database_drops (id INTEGER PRIMARY KEY)""",
    ):
        db.execute(statement)


def m007_webhooks(db: Any) -> None:
    """Changes are posted to URLs."""
    for statement in (
        # filter: JSON; cursor, until: seqs; see `webhooks`. Times are milliseconds since the epoch.
        """CREATE TABLE webhooks (
            id TEXT PRIMARY KEY, database_id INTEGER NOT NULL REFERENCES databases(id), url TEXT NOT NULL,
            collection TEXT, filter TEXT, secret TEXT NOT NULL, created_at TEXT NOT NULL,
            generation INTEGER NOT NULL DEFAULT 0, cursor INTEGER NOT NULL, until INTEGER,
            failures INTEGER NOT NULL DEFAULT 0, error TEXT, failing_since INTEGER, delivered_at INTEGER,
            dead_at INTEGER)""",
    ):
        db.execute(statement)


MIGRATIONS: Final[tuple[Callable[[Any], None], ...]] = (
    m001_initial,
    m002_jsonb,
    m003_entries,
    m004_before,
    m005_revocations,
    m006_admin,
    m007_webhooks,
)


def pending(connection: sqlite.Connection, where: Path) -> bool:
    """Whether the file needs `migrate`. Raises `StartupError` if a newer version made it."""
    applied = _applied(connection)
    newer = applied - {migration.__name__ for migration in MIGRATIONS}
    if newer:
        raise StartupError(
            f"{where} was made by a newer version of PaperDB ({max(newer)}). Nothing was changed.", EXIT_NEWER
        )
    return len(applied) < len(MIGRATIONS) or any(_done(connection, name) is not None for name in _STEPS)


def migrate(connection: sqlite.Connection, file: Path, *, keep_copy: bool = True) -> None:
    """Upgrade the tables to this version. With `keep_copy`, a file that has tables is copied first, to a file
    beside it. Raises `sqlite.Error`, or `StartupError`, for example if there is no room for the copy."""
    import sqlite_utils

    applied = _applied(connection)
    if applied and keep_copy and len(applied) < len(MIGRATIONS):
        _keep_copy(connection, file, MIGRATIONS[len(applied)].__name__)
    migrations = sqlite_utils.Migrations("paperdb")
    for migration in MIGRATIONS:
        migrations()(migration)
    migrations.apply(sqlite_utils.Database(sqlite.utils_connection(connection)))
    for name, step in _STEPS.items():
        _do_in_steps(connection, name, step)


def _applied(connection: sqlite.Connection) -> set[str]:
    if not connection.execute("SELECT 1 FROM sqlite_master WHERE name='_sqlite_migrations'").fetchone():
        return set()
    rows = connection.execute("SELECT name FROM _sqlite_migrations WHERE migration_set='paperdb'")
    return {name for (name,) in rows}


def _keep_copy(connection: sqlite.Connection, file: Path, before: str) -> None:
    copy = file.with_name(f"{file.name}.before-{before}")
    if copy.exists():  # made by an interrupted upgrade; a copy appears only once it is complete
        return
    (pages,), (page_bytes,) = (
        connection.execute(f"PRAGMA {name}").fetchone() for name in ("page_count", "page_size")
    )
    room = os.statvfs(file.parent)
    if room.f_bavail * room.f_frsize < 2 * pages * page_bytes:
        raise StartupError(
            f"Cannot upgrade {file}: {2 * pages * page_bytes // 1_000_000 + 1:,} MB must be free on its disk, "
            "for a copy and for the write-ahead log",
            EXIT_UNWRITABLE,
        )
    with replacing(copy, force=True) as temporary, closing(sqlite.create(temporary)) as target:
        sqlite.copy(connection, target)
    log.warning(
        "upgrading %s; %s is a copy from before the upgrade: delete it when all is well", file, copy.name
    )


def _convert_documents(connection: sqlite.Connection, after: int) -> int | None:
    (last,) = connection.execute(
        "SELECT max(rowkey) FROM (SELECT rowkey FROM documents WHERE rowkey>? ORDER BY rowkey LIMIT ?)",
        (after, STEP_ROWS),
    ).fetchone()
    connection.execute(
        "UPDATE documents SET data=jsonb(data) WHERE rowkey>? AND rowkey<=? AND typeof(data)='text'",
        (after, last),
    )
    return None if last is None else int(last)


def _find_newest(connection: sqlite.Connection, after: int) -> int | None:
    """Set `newest` of the next collection: NULL if its documents are not in order of createdAt."""
    row = connection.execute("SELECT min(id) FROM collections WHERE id>?", (after,)).fetchone()
    if row[0] is None:
        return None
    created = "json_extract(data,'$.createdAt')"
    connection.execute(
        f"UPDATE collections SET newest=(SELECT iif(sum(created<before),NULL,max(created)) FROM "
        f"(SELECT {created} AS created, lag({created}) OVER (ORDER BY rowkey) AS before "
        "FROM documents WHERE rowkey BETWEEN ? AND ?)) WHERE id=? AND documents>0",
        (*span(row[0]), row[0]),
    )
    return int(row[0])


_STEPS: Final[dict[str, Callable[[sqlite.Connection, int], int | None]]] = {
    "jsonb_after": _convert_documents,
    "newest_after": _find_newest,
}
"""The steps, by the name in `meta` under which their progress is stored. A step gets and returns the progress;
None means that all is done."""


def _done(connection: sqlite.Connection, name: str) -> int | None:
    row = connection.execute("SELECT value FROM meta WHERE name=?", (name,)).fetchone()
    return None if row is None else int(row[0])


def _do_in_steps(
    connection: sqlite.Connection, name: str, step: Callable[[sqlite.Connection, int], int | None]
) -> None:
    tell_at = time.monotonic() + TELL_SECONDS
    while True:
        connection.execute("BEGIN IMMEDIATE")
        after = _done(connection, name)
        if after is not None:
            done = step(connection, after)
            if done is None:
                connection.execute("DELETE FROM meta WHERE name=?", (name,))
            else:
                connection.execute("UPDATE meta SET value=? WHERE name=?", (done, name))
        connection.execute("COMMIT")
        if after is None:
            return
        if time.monotonic() >= tell_at and done is not None:
            tell_at = time.monotonic() + TELL_SECONDS
            log.warning("upgrading: collection %d of %d", done >> SEQ_BITS or done, _collections(connection))


def _collections(connection: sqlite.Connection) -> int:
    (count,) = connection.execute("SELECT max(id) FROM collections").fetchone()
    return int(count)
