"""Databases, API keys and signing secrets: the rows that the command line writes and the server watches.

Law: each call is one transaction, and may come from any process while the server runs. It increments
`meta.admin_version`, so that the server reloads these rows within a second. Only the hash of a key is stored.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paperdb_trio.errors import StartupError
from paperdb_trio.files import EXIT_UNWRITABLE
from paperdb_trio.model import DATABASE_NAME, timestamp
from paperdb_trio.store.protocol import Directory, KeyRow, RevocationRow
from paperdb_trio.store.sqlite import library as sqlite
from paperdb_trio.store.sqlite.file import connect, told

if TYPE_CHECKING:
    import sqlite_utils

PLANS = ("free", "pro", "team")


@contextmanager
def _transaction(file: Path, show: Callable[[], None] | None = None) -> Iterator[sqlite_utils.Database]:
    """`show` shows a secret to its owner before the commit: a key that could not be shown is not stored. It
    should print a line or two at most, because it holds the write lock meanwhile."""
    import sqlite_utils  # here, because it takes 60 ms and a server's start does not need it

    shown = ""
    with closing(connect(file)) as connection:
        try:
            connection.execute("BEGIN IMMEDIATE")
            yield sqlite_utils.Database(sqlite.utils_connection(connection))
            connection.execute("UPDATE meta SET value=value+1 WHERE name='admin_version'")
            if show is not None:
                show()
                shown = "; the key that was shown is not stored"
            connection.execute("COMMIT")
        except sqlite.UNAVAILABLE as error:
            raise StartupError(f"Cannot write to {file}: {told(file, error)}{shown}", EXIT_UNWRITABLE) from None


def is_empty(file: Path) -> bool:
    """Whether this is a first start: there is no database yet."""
    return not _rows(file, "SELECT 1 FROM databases LIMIT 1")


def set_up(file: Path, key: NewKey, kid: str, secret: bytes, show: Callable[[], None] | None = None) -> None:
    """Create what a first start needs, in one transaction: the database `default`, a key, a signing secret.

    Nothing is set up if `show`, which shows the key, raises.
    """
    with _transaction(file, show) as db:
        _insert_database(db, "default", "team")
        _insert_key(db, "default", key)
        _insert_signing_secret(db, kid, secret)


def create_database(file: Path, name: str, plan: str) -> None:
    if not DATABASE_NAME.match(name):
        raise StartupError(
            f"Invalid database name: '{name}'. Use 1 to 64 letters, numbers, underscores, and hyphens only.",
            2,
        )
    with _transaction(file) as db:
        if db.table("databases").count_where("name=?", [name]):
            raise StartupError(f"The database '{name}' already exists")
        _insert_database(db, name, plan)


def set_plan(file: Path, name: str, plan: str) -> None:
    with _transaction(file) as db:
        db.table("databases").update(_database_id(db, name), {"plan": plan})


def list_databases(file: Path) -> list[dict[str, Any]]:
    """`name`, `plan`, `createdAt`, `collections`, `documents` of every database."""
    return _rows(
        file,
        "SELECT d.name, d.plan, d.created_at AS createdAt, count(c.id) AS collections, "
        "coalesce(sum(c.documents),0) AS documents FROM databases d "
        "LEFT JOIN collections c ON c.database_id=d.id GROUP BY d.id ORDER BY d.id",
    )


@dataclass(frozen=True, slots=True)
class NewKey:
    """The stored part of a key; `kind` is secret or public."""

    id: str
    kind: str
    label: str
    hash: bytes


def add_key(file: Path, database: str, key: NewKey, show: Callable[[], None] | None = None) -> None:
    """No key is added if `show`, which shows it, raises."""
    with _transaction(file, show) as db:
        _insert_key(db, database, key)


def list_keys(file: Path) -> list[dict[str, Any]]:
    """`id`, `database`, `kind`, `label`, `createdAt`, `revokedAt` of every key."""
    return _rows(
        file,
        "SELECT k.id, d.name AS database, k.kind, k.label, k.created_at AS createdAt, "
        "k.revoked_at AS revokedAt FROM keys k "
        "JOIN databases d ON d.id=k.database_id ORDER BY k.created_at, k.id",
    )


def has_valid_key(file: Path, hash: bytes | None = None) -> bool:
    """Whether any key is valid, or the one with this hash."""
    wanted = "" if hash is None else f" AND hash=X'{hash.hex()}'"
    return bool(_rows(file, f"SELECT 1 FROM keys WHERE revoked_at IS NULL{wanted} LIMIT 1"))


def revoke_key(file: Path, id: str) -> None:
    with _transaction(file) as db:
        if not db.table("keys").count_where("id=?", [id]):
            raise StartupError(f"There is no key with the id '{id}' ('paperdb keys list' shows them)")
        db.execute(
            "UPDATE keys SET revoked_at=? WHERE id=? AND revoked_at IS NULL", [timestamp(time.time()), id]
        )


def add_signing_secret(file: Path, kid: str, secret: bytes) -> None:
    """Sign new tokens with this secret. Tokens signed with older secrets stay valid until they expire."""
    with _transaction(file) as db:
        db.execute("UPDATE signing_secrets SET retired_at=? WHERE retired_at IS NULL", [time.time()])
        _insert_signing_secret(db, kid, secret)


def admin_version(connection: sqlite.Connection) -> int:
    (version,) = connection.execute("SELECT value FROM meta WHERE name='admin_version'").fetchone()
    return int(version)


def directory(connection: sqlite.Connection, known: int, last: int) -> Directory | None:
    """See `Store.directory`."""
    version = admin_version(connection)
    if version == known:
        return None
    return Directory(
        version,
        connection.execute("SELECT id, name, plan FROM databases").fetchall(),
        [
            KeyRow(id, database_id, kind, hash, bool(revoked))
            for id, database_id, kind, hash, revoked in connection.execute(
                "SELECT id, database_id, kind, hash, revoked_at IS NOT NULL FROM keys"
            )
        ],
        connection.execute("SELECT kid, secret, retired_at FROM signing_secrets").fetchall(),
        [
            RevocationRow(*row)
            for row in connection.execute(
                "SELECT id, database_id, kind, name, at, until FROM revocations WHERE id>? ORDER BY id", (last,)
            )
        ],
    )


def _insert_database(db: sqlite_utils.Database, name: str, plan: str) -> None:
    db.table("databases").insert({"name": name, "plan": plan, "created_at": timestamp(time.time())})


def _insert_key(db: sqlite_utils.Database, database: str, key: NewKey) -> None:
    db.table("keys").insert(
        {
            "id": key.id,
            "database_id": _database_id(db, database),
            "kind": key.kind,
            "label": key.label,
            "hash": key.hash,
            "created_at": timestamp(time.time()),
            "revoked_at": None,
        }
    )


def _insert_signing_secret(db: sqlite_utils.Database, kid: str, secret: bytes) -> None:
    db.table("signing_secrets").insert(
        {"kid": kid, "secret": secret, "created_at": time.time(), "retired_at": None}
    )


def _database_id(db: sqlite_utils.Database, name: str) -> int:
    rows = list(db.table("databases").rows_where("name=?", [name], select="id"))
    if not rows:
        raise StartupError(f"There is no database '{name}' ('paperdb databases list' shows them)")
    return int(rows[0]["id"])


def _rows(file: Path, sql: str) -> list[dict[str, Any]]:
    with closing(connect(file, read_only=True)) as connection:
        found = sqlite.utils_connection(connection).execute(sql)
        names = [name for name, *_ in found.description or ()]
        return [dict(zip(names, row, strict=True)) for row in found]
