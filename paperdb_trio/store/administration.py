"""What administrators do: databases, keys, signing secrets, indexes. Each is recorded: who did what, when.

Law: the law of `operations` holds here, too, and each is submitted like those, or applied by the command line
to the file. Every process reads what it must know within a second. Only the hash of a key is stored.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, Generic, TypeVar

from paperdb_trio.errors import ApiError, bad_request
from paperdb_trio.model import DATABASE_NAME, encode, timestamp
from paperdb_trio.store.indexes import MAX_INDEXES, MAX_MADE
from paperdb_trio.store.operations import Operation, frees
from paperdb_trio.store.records import (
    MAX_LABEL_LENGTH,
    PLANS,
    DatabaseInfo,
    IndexInfo,
    KeyInfo,
    NewKey,
    SecretInfo,
)
from paperdb_trio.store.transaction import Transaction

Result = TypeVar("Result")

MAX_AUDIT: Final = 10_000
"""Entries of the record: the newest are kept. They take some 2 MB."""


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
    tx.note(int(time.time() * 1000), by, action, database, target, said, MAX_AUDIT)


# --- databases -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CreateDatabase:
    by: str
    name: str
    plan: str

    def apply(self, tx: Transaction) -> DatabaseInfo:
        _check_name(tx, self.name)
        _check_plan(self.plan)
        tx.add_database(self.name, self.plan, timestamp(time.time()))
        note(tx, self.by, "database.create", self.name, plan=self.plan)
        tx.tell_servers()
        return _database(tx, self.name)


@dataclass(frozen=True, slots=True)
class ChangeDatabase:
    """Rename a database, put it on another plan, or both."""

    frees: ClassVar = True

    by: str
    name: str
    new_name: str | None = None
    plan: str | None = None

    def apply(self, tx: Transaction) -> DatabaseInfo:
        id, was = database_id(tx, self.name), _database(tx, self.name)
        name = self.name if self.new_name is None else self.new_name
        plan = was.plan if self.plan is None else self.plan
        if name != self.name:
            _check_name(tx, name)
        _check_plan(plan)
        tx.change_database(id, name, plan)
        if plan != was.plan:
            note(tx, self.by, "database.plan", self.name, plan=plan)
        if name != self.name:
            note(tx, self.by, "database.rename", self.name, name)
        tx.tell_servers()
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
        id, documents = database_id(tx, self.name), _database(tx, self.name).documents
        tx.forget_database(id)
        note(tx, self.by, "database.delete", self.name, documents=documents)
        tx.tell_servers()
        return documents


def database_id(tx: Transaction, name: str) -> int:
    """Raises a 404."""
    id = tx.databases().get(name)
    if id is None:
        raise ApiError(404, "NOT_FOUND", f"There is no database '{name[:80]}'")
    return id


def _database(tx: Transaction, name: str) -> DatabaseInfo:
    found = tx.database_info(name)
    assert found is not None
    return found


def _check_name(tx: Transaction, name: str) -> None:
    if not DATABASE_NAME.match(name):
        raise bad_request(
            f"Invalid database name: '{name[:80]}'. "
            "Use 1 to 64 letters, numbers, underscores, and hyphens only."
        )
    if name in tx.databases():
        raise ApiError(409, "CONFLICT", f"The database '{name}' already exists")


def _check_plan(plan: str) -> None:
    if plan not in PLANS:
        raise bad_request(f"Invalid plan: '{plan[:80]}'. Use {', '.join(PLANS)}.")


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
        tx.add_key(id, key, timestamp(time.time()))
        made = _key(tx, key.id)
        details = {"kind": key.kind, "label": key.label or None, "expiresAt": made.expires_at}
        note(tx, self.by, "key.create", self.database, key.id, **details)
        tx.tell_servers()
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
            tx.label_key(self.id, self.label)
            note(tx, self.by, "key.label", before.database, self.id, label=self.label)
        if self.expire:
            tx.expire_key(self.id, self.expires)
            at = "never" if self.expires is None else timestamp(self.expires / 1000)
            note(tx, self.by, "key.expire", before.database, self.id, expiresAt=at)
        tx.tell_servers()
        return _key(tx, self.id)


@dataclass(frozen=True, slots=True)
class RevokeKey:
    frees: ClassVar = True

    by: str
    id: str

    def apply(self, tx: Transaction) -> KeyInfo:
        before = _key(tx, self.id)
        if before.revoked_at is None:
            tx.revoke_key(self.id, timestamp(time.time()))
            note(tx, self.by, "key.revoke", before.database, self.id, label=before.label or None)
            tx.tell_servers()
        return _key(tx, self.id)


@dataclass(frozen=True, slots=True)
class RotateSigning:
    """Sign new tokens with this secret. Tokens signed with older ones stay valid until they expire."""

    frees: ClassVar = True

    by: str
    kid: str
    secret: bytes

    def apply(self, tx: Transaction) -> SecretInfo:
        now = time.time()
        tx.rotate_secret(self.kid, self.secret, now)
        note(tx, self.by, "secret.rotate", None, self.kid)
        tx.tell_servers()
        return SecretInfo(id=self.kid, created_at=timestamp(now), retired_at=None)


def _check_label(label: str) -> None:
    if len(label) > MAX_LABEL_LENGTH or not label.isprintable():
        raise bad_request(f"Invalid label: use at most {MAX_LABEL_LENGTH} printable characters")


def _key(tx: Transaction, id: str) -> KeyInfo:
    found = tx.key_info(id)
    if found is None:
        raise ApiError(404, "NOT_FOUND", f"There is no key with the id '{id[:80]}'")
    return found


# --- indexes -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AddIndex:
    """Make an index that an administrator wants. It goes when nothing uses it, as one that the server made.

    `database`: its name, for the record."""

    by: str
    database_id: int
    database: str
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
        note(tx, self.by, "index.create", self.database, self.collection, fields=list(self.fields))
        infos = tx.index_infos(self.database_id, self.collection)
        return next(info for info in infos if info.fields == list(self.fields))


@dataclass(frozen=True, slots=True)
class DropIndex:
    """Remove an index, which the schema does not declare. `database`: its name, for the record."""

    frees: ClassVar = True

    by: str
    database_id: int
    database: str
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
        note(tx, self.by, "index.drop", self.database, self.collection, fields=list(found.fields))


def _collection(tx: Transaction, database_id: int, name: str) -> int:
    found = tx.collection_id(database_id, name)
    if found is None:
        raise ApiError(404, "NOT_FOUND", f"There is no collection '{name}'")
    return found


# --- anything ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Noted(Generic[Result]):
    """Another operation, or none, and who did what by it. While the operation has a false result, it is not
    done yet (see `until_indexed`)."""

    by: str
    action: str
    database: str | None
    target: str | None
    details: dict[str, Any] = field(default_factory=dict)
    operation: Operation[Result] | None = None

    @property
    def frees(self) -> bool:
        return self.operation is None or frees(self.operation)

    def apply(self, tx: Transaction) -> Result | None:
        result = None if self.operation is None else self.operation.apply(tx)
        if self.operation is None or result:
            note(tx, self.by, self.action, self.database, self.target, **self.details)
        return result
