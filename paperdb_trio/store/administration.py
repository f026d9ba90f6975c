"""What administrators do: databases, keys, signing secrets, indexes. Each is recorded: who did what, when.

Law: the law of `operations` holds here, too, and each is submitted like those, or applied by the command line
to the file. What servers must know increments `meta.admin_version`, so that every process reads it within a
second. Only the hash of a key is stored.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Generic, TypeVar

from paperdb_trio.errors import ApiError, bad_request
from paperdb_trio.model import DATABASE_NAME, encode, timestamp
from paperdb_trio.store.indexes import MAX_INDEXES, MAX_MADE
from paperdb_trio.store.operations import Operation
from paperdb_trio.store.records import (
    MAX_LABEL_LENGTH,
    PLANS,
    DatabaseInfo,
    IndexInfo,
    KeyInfo,
    NewKey,
    SecretInfo,
)
from paperdb_trio.store.sqlite import records
from paperdb_trio.store.sqlite.transaction import Transaction

Result = TypeVar("Result")

MAX_AUDIT: Final = 10_000
"""Entries of the audit log: the newest are kept. They take some 2 MB."""


def note(
    tx: Transaction,
    by: str,
    action: str,
    database: str | None = None,
    target: str | None = None,
    **details: Any,
) -> None:
    """Record who did what. `details` that are None are left out."""
    said = encode({name: value for name, value in details.items() if value is not None}).decode()
    (id,) = tx.connection.execute(
        "INSERT INTO audit (at, by, action, database, target, details) VALUES (?,?,?,?,?,?) RETURNING id",
        (int(time.time() * 1000), by, action, database, target, said),
    ).fetchone()
    tx.connection.execute("DELETE FROM audit WHERE id<=?", (id - MAX_AUDIT,))


def tell(tx: Transaction) -> None:
    """Have every process read databases, keys and secrets again."""
    tx.connection.execute("UPDATE meta SET value=value+1 WHERE name='admin_version'")


# --- databases -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CreateDatabase:
    by: str
    name: str
    plan: str

    def apply(self, tx: Transaction) -> DatabaseInfo:
        _check_name(tx, self.name)
        _check_plan(self.plan)
        _insert_database(tx, self.name, self.plan)
        note(tx, self.by, "database.create", self.name, plan=self.plan)
        tell(tx)
        return _database(tx, self.name)


@dataclass(frozen=True, slots=True)
class ChangeDatabase:
    """Rename a database, or put it on another plan."""

    frees: ClassVar = True

    by: str
    name: str
    new_name: str | None = None
    plan: str | None = None

    def apply(self, tx: Transaction) -> DatabaseInfo:
        id = database_id(tx, self.name)
        name = self.name if self.new_name is None else self.new_name
        if name != self.name:
            _check_name(tx, name)
        if self.plan is not None:
            _check_plan(self.plan)
            tx.connection.execute("UPDATE databases SET plan=? WHERE id=?", (self.plan, id))
            note(tx, self.by, "database.plan", self.name, plan=self.plan)
        if name != self.name:
            tx.connection.execute("UPDATE databases SET name=? WHERE id=?", (name, id))
            note(tx, self.by, "database.rename", self.name, name)
        tell(tx)
        return _database(tx, name)


@dataclass(frozen=True, slots=True)
class DeleteDatabase:
    """Delete a database: from now on no one can use it. `housekeeping.RemoveDeleted` frees its space.

    Returns the number of its documents.
    """

    frees: ClassVar = True

    by: str
    name: str

    def apply(self, tx: Transaction) -> int:
        id, execute = database_id(tx, self.name), tx.connection.execute
        documents = _database(tx, self.name).documents
        execute("INSERT INTO database_drops VALUES (?)", (id,))
        execute(
            "DELETE FROM drops WHERE collection_id IN (SELECT id FROM collections WHERE database_id=?)", (id,)
        )
        execute("DELETE FROM keys WHERE database_id=?", (id,))
        execute("DELETE FROM databases WHERE id=?", (id,))
        note(tx, self.by, "database.delete", self.name, documents=documents)
        tell(tx)
        return documents


def database_id(tx: Transaction, name: str) -> int:
    """Raises a 404."""
    row = tx.connection.execute("SELECT id FROM databases WHERE name=?", (name,)).fetchone()
    if row is None:
        raise ApiError(404, "NOT_FOUND", f"There is no database '{name[:80]}'")
    return int(row[0])


def _database(tx: Transaction, name: str) -> DatabaseInfo:
    return records.databases(tx.connection, name=name)[0]


def _check_name(tx: Transaction, name: str) -> None:
    if not DATABASE_NAME.match(name):
        raise bad_request(
            f"Invalid database name: '{name[:80]}'. "
            "Use 1 to 64 letters, numbers, underscores, and hyphens only."
        )
    if tx.connection.execute("SELECT 1 FROM databases WHERE name=?", (name,)).fetchone():
        raise ApiError(409, "CONFLICT", f"The database '{name}' already exists")


def _check_plan(plan: str) -> None:
    if plan not in PLANS:
        raise bad_request(f"Invalid plan: '{plan[:80]}'. Use {', '.join(PLANS)}.")


def _insert_database(tx: Transaction, name: str, plan: str) -> None:
    tx.connection.execute(
        "INSERT INTO databases (name, plan, created_at) VALUES (?,?,?)", (name, plan, timestamp(time.time()))
    )


# --- keys and signing secrets --------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SetUp:
    """What a first start needs: the database `default`, a key, a signing secret."""

    by: str
    key: NewKey
    kid: str
    secret: bytes

    def apply(self, tx: Transaction) -> None:
        CreateDatabase(self.by, "default", "team").apply(tx)
        AddKey(self.by, "default", self.key).apply(tx)
        RotateSigning(self.by, self.kid, self.secret).apply(tx)


@dataclass(frozen=True, slots=True)
class AddKey:
    """`database`: None for an admin key."""

    by: str
    database: str | None
    key: NewKey

    def apply(self, tx: Transaction) -> KeyInfo:
        key = self.key
        _check_label(key.label)
        id = None if self.database is None else database_id(tx, self.database)
        tx.connection.execute(
            "INSERT INTO keys (id, database_id, kind, label, hash, created_at, expires_at) "
            "VALUES (?,?,?,?,?,?,?)",
            (key.id, id, key.kind, key.label, key.hash, timestamp(time.time()), key.expires),
        )
        made = _key(tx, key.id)
        note(
            tx,
            self.by,
            "key.create",
            self.database,
            key.id,
            kind=key.kind,
            label=key.label or None,
            expiresAt=made.expires_at,
        )
        tell(tx)
        return made


@dataclass(frozen=True, slots=True)
class ChangeKey:
    """`expires`: milliseconds since the epoch, or None for never; only with `expire`."""

    frees: ClassVar = True

    by: str
    id: str
    label: str | None = None
    expire: bool = False
    expires: int | None = None

    def apply(self, tx: Transaction) -> KeyInfo:
        before = _key(tx, self.id)
        if self.label is not None:
            _check_label(self.label)
            tx.connection.execute("UPDATE keys SET label=? WHERE id=?", (self.label, self.id))
            note(tx, self.by, "key.label", before.database, self.id, label=self.label)
        if self.expire:
            tx.connection.execute("UPDATE keys SET expires_at=? WHERE id=?", (self.expires, self.id))
            at = None if self.expires is None else timestamp(self.expires / 1000)
            note(tx, self.by, "key.expire", before.database, self.id, expiresAt=at or "never")
        tell(tx)
        return _key(tx, self.id)


@dataclass(frozen=True, slots=True)
class RevokeKey:
    frees: ClassVar = True

    by: str
    id: str

    def apply(self, tx: Transaction) -> KeyInfo:
        before = _key(tx, self.id)
        if before.revoked_at is None:
            now = timestamp(time.time())
            tx.connection.execute("UPDATE keys SET revoked_at=? WHERE id=?", (now, self.id))
            note(tx, self.by, "key.revoke", before.database, self.id, label=before.label or None)
            tell(tx)
        return _key(tx, self.id)


@dataclass(frozen=True, slots=True)
class RotateSigning:
    """Sign new tokens with this secret. Tokens signed with older ones stay valid until they expire."""

    frees: ClassVar = True

    by: str
    kid: str
    secret: bytes

    def apply(self, tx: Transaction) -> SecretInfo:
        now, execute = time.time(), tx.connection.execute
        execute("UPDATE signing_secrets SET retired_at=? WHERE retired_at IS NULL", (now,))
        execute(
            "INSERT INTO signing_secrets (kid, secret, created_at) VALUES (?,?,?)", (self.kid, self.secret, now)
        )
        note(tx, self.by, "secret.rotate", None, self.kid)
        tell(tx)
        return SecretInfo(id=self.kid, created_at=timestamp(now), retired_at=None)


def _check_label(label: str) -> None:
    if len(label) > MAX_LABEL_LENGTH or not label.isprintable():
        raise bad_request(f"Invalid label: use at most {MAX_LABEL_LENGTH} printable characters")


def _key(tx: Transaction, id: str) -> KeyInfo:
    found = records.keys(tx.connection, id=id)
    if not found:
        raise ApiError(404, "NOT_FOUND", f"There is no key with the id '{id[:80]}'")
    return found[0]


# --- indexes -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AddIndex:
    """Make an index that an administrator wants. It goes when nothing uses it, as one that the server made."""

    by: str
    database_id: int
    collection: str
    fields: tuple[str, ...]

    def apply(self, tx: Transaction) -> IndexInfo:
        collection_id = _collection(tx, self.database_id, self.collection)
        indexes = tx.indexes(collection_id)
        if any(index.fields == self.fields for index in indexes):
            raise ApiError(409, "CONFLICT", f"There is an index of {', '.join(self.fields)} already")
        if len(indexes) >= MAX_INDEXES or sum(index.made for index in indexes) >= MAX_MADE:
            raise bad_request(
                f"At most {MAX_INDEXES} indexes for one collection, {MAX_MADE} of them not of its schema",
                "TOO_MANY_INDEXES",
            )
        tx.add_index(collection_id, self.fields, unique=False, made=True, used=tx.today)
        made = next(i for i in _indexes(tx, self.database_id, self.collection) if i.fields == list(self.fields))
        note(
            tx,
            self.by,
            "index.create",
            _name(tx, self.database_id),
            self.collection,
            fields=list(self.fields),
        )
        return made


@dataclass(frozen=True, slots=True)
class DropIndex:
    """Remove an index, which the schema does not declare."""

    frees: ClassVar = True

    by: str
    database_id: int
    collection: str
    id: int

    def apply(self, tx: Transaction) -> None:
        collection_id = _collection(tx, self.database_id, self.collection)
        found = next((index for index in tx.indexes(collection_id) if index.id == self.id), None)
        if found is None:
            raise ApiError(404, "NOT_FOUND", f"The collection '{self.collection}' has no index {self.id}")
        if not found.made:
            raise ApiError(409, "CONFLICT", "The collection's schema declares this index: change the schema")
        tx.remove_indexes(collection_id, self.id)
        note(tx, self.by, "index.drop", _name(tx, self.database_id), self.collection, fields=list(found.fields))


def _collection(tx: Transaction, database_id: int, name: str) -> int:
    found = tx.collection_id(database_id, name)
    if found is None:
        raise ApiError(404, "NOT_FOUND", f"There is no collection '{name}'")
    return found


def _indexes(tx: Transaction, database_id: int, collection: str) -> list[IndexInfo]:
    return records.indexes(tx.connection, database_id, collection) or []


def _name(tx: Transaction, database_id: int) -> str:
    (name,) = tx.connection.execute("SELECT name FROM databases WHERE id=?", (database_id,)).fetchone()
    return str(name)


# --- anything ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Noted(Generic[Result]):
    """Another operation, or none, and who did what by it."""

    by: str
    action: str
    database: str | None
    target: str | None
    details: dict[str, Any]
    operation: Operation[Result] | None = None

    frees: ClassVar = True

    def apply(self, tx: Transaction) -> Result | None:
        result = None if self.operation is None else self.operation.apply(tx)
        note(tx, self.by, self.action, self.database, self.target, **self.details)
        return result
