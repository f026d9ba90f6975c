"""The writes that a user can request. Each is an object that the writer applies to a transaction.

Law: `apply` runs on the writer's thread. It raises `ApiError` only while the transaction is unchanged (or
inside a savepoint), and returns what the response needs. Nothing here waits, commits or publishes.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Protocol, TypeVar

import msgspec

from paperdb_trio.errors import ApiError, bad_request, not_found, unique_violation
from paperdb_trio.json_input import decode
from paperdb_trio.model import (
    SYSTEM_FIELDS,
    Document,
    check_document,
    check_id,
    document_bytes,
    encode,
    new_id,
    reverse_patch,
)
from paperdb_trio.store.document_schema import DocumentSchema
from paperdb_trio.store.query import Question
from paperdb_trio.store.steps import is_step, take
from paperdb_trio.store.transaction import Transaction

Result = TypeVar("Result", covariant=True)

MAX_UNIQUE_FIELDS: Final = 16
"""Fields that one insert can name in `unique`."""


class Operation(Protocol[Result]):
    """One that frees space has a member `frees`, which is true: it is done on a full disk, too."""

    def apply(self, tx: Transaction) -> Result: ...


class Write(Operation["Written"], Protocol):
    """A write of one document."""

    @property
    def database_id(self) -> int: ...
    @property
    def collection(self) -> str: ...


def frees(operation: object) -> bool:
    """Whether an operation is done on a full disk, too."""
    return bool(getattr(operation, "frees", False))


class Written(msgspec.Struct, frozen=True, gc=False):
    """The result of writing one document: its JSON text, its seq, and whether it is new, or deleted. `shown`:
    the part of the text that a view shows."""

    id: str
    data: bytes
    seq: int
    created: bool = False
    deleted: bool = False
    shown: bytes | None = None

    @property
    def visible(self) -> bytes:
        return self.data if self.shown is None else self.shown


@dataclass(frozen=True, slots=True)
class BulkFailure:
    index: int
    error: ApiError


class _Every:
    def __contains__(self, tag: object) -> bool:
        return True


EVERY_TAG: Final = _Every()
"""What `*` means in a condition."""


@dataclass(frozen=True, slots=True)
class Condition:
    """Conditions for a write; None means no condition. `match` (If-Match): the entity tag must be one
    of these. `none_match` (If-None-Match): it must be none of these. `where`: a filter that the document must
    satisfy. A tag is the seq, or what `View.tag` makes of the document."""

    match: Container[Any] | None = None
    none_match: Container[Any] | None = None
    where: Question | None = None

    def check(self, tx: Transaction, found: tuple[int, int | str, bytes] | None) -> None:
        """Raises a 412. `found`: row key, entity tag and data; None if there is no such document."""
        tag = None if found is None else found[1]
        self.check_match(tag)
        if tag is not None and self.excludes(tag):
            raise self._failed("If-None-Match", tag)
        if self.where is not None and (found is None or not tx.satisfies(found[2], self.where)):
            current = "does not exist" if found is None else "does not satisfy 'where'"
            raise ApiError(412, "CONDITION_FAILED", f"Nothing was written: the document {current}")

    def check_match(self, tag: int | str | None) -> None:
        if self.match is not None and (tag is None or tag not in self.match):
            raise self._failed("If-Match", tag)

    def _failed(self, header: str, tag: int | str | None) -> ApiError:
        current = "does not exist" if tag is None else f'is at "{tag}"'
        return ApiError(412, "PRECONDITION_FAILED", f"{header} does not hold: the document {current}")

    def excludes(self, tag: int | str) -> bool:
        return self.none_match is not None and tag in self.none_match


_INSTRUCTIONS: Final = frozenset({"key", "unique", *SYSTEM_FIELDS})
"""The fields that have a meaning in a document sent for insertion."""


class Draft(msgspec.Struct, frozen=True, gc=False):
    """A parsed document for insertion. `fields` is JSON: a thousand documents may wait in one request, and as
    objects they would take 25 times as much memory. `unique` is pairs of a field and its value."""

    id: str
    fields: bytes
    unique: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def parse(cls, value: object) -> Draft:
        """Raises a 400 for every error that can be found without the database."""
        document = check_document(value)
        if document.keys().isdisjoint(_INSTRUCTIONS):
            return cls(new_id(), encode(document))
        fields = document.copy()
        chosen, unique = fields.pop("_id", None), fields.pop("unique", None)
        if chosen is None:  # with an `_id`, `key` is an ordinary field
            chosen = fields.pop("key", None)
        id = new_id() if chosen is None else check_id(chosen)
        fields.pop("createdAt", None)
        fields.pop("updatedAt", None)
        if unique is None:
            return cls(id, encode(fields))
        if not isinstance(unique, list) or not all(isinstance(name, str) and name for name in unique):
            raise bad_request("'unique' must be an array of field names", "INVALID_UNIQUE")
        if len(unique) > MAX_UNIQUE_FIELDS:
            raise bad_request(f"'unique' takes at most {MAX_UNIQUE_FIELDS} fields", "TOO_MANY_UNIQUE_FIELDS")
        return cls(id, encode(fields), _unique_values(fields, unique))

    def satisfying(self, schema: DocumentSchema | None) -> Draft:
        """This draft with the schema's defaults. Raises what `DocumentSchema.apply` does."""
        if schema is None:
            return self
        fields = decode(self.fields)
        schema.apply(fields)
        return Draft(self.id, encode(fields), _unique_values(fields, [name for name, _ in self.unique]))

    def insert(self, tx: Transaction, database_id: int, collection: str, max_bytes: int) -> Written:
        collection_id = tx.collection_id(database_id, collection)
        draft = self if collection_id is None else self.satisfying(tx.schema(collection_id))
        data = document_bytes(self.id, draft.fields, tx.stamp, tx.stamp, max_bytes)
        if collection_id is not None:
            for name, value in draft.unique:
                if value is not None and tx.has_value(collection_id, name, value):
                    raise unique_violation(name)
        seq = tx.insert(database_id, collection, self.id, data)
        if seq is None:
            raise ApiError(
                409, "CONFLICT", f"A document with the id '{self.id}' already exists in this collection."
            )
        return Written(self.id, data, seq, created=True)


class Insert(msgspec.Struct, frozen=True, gc=False):  # pickled and back in half of a dataclass's time
    database_id: int
    collection: str
    draft: Draft
    max_bytes: int

    def apply(self, tx: Transaction) -> Written:
        return self.draft.insert(tx, self.database_id, self.collection, self.max_bytes)


@dataclass(frozen=True, slots=True)
class InsertBulk:
    """Each draft succeeds or fails alone; an `ApiError` stands for a draft that could not be parsed. With
    `atomic`, the first failure undoes all and is raised. `within` makes each insert one within a view. Submit
    it with `until_indexed`."""

    database_id: int
    collection: str
    drafts: list[Draft | ApiError]
    max_bytes: int
    max_bytes_in_all: int
    atomic: bool
    within: Callable[[Insert], Write] | None = None

    def apply(self, tx: Transaction) -> tuple[list[bytes], list[BulkFailure]] | None:
        """Returns the inserted documents as JSON texts, and the failures. Returns None, having done nothing,
        while an index that a unique check needs is being built."""
        drafts = [draft for draft in self.drafts if isinstance(draft, Draft)]
        if not _is_ready(tx, self.database_id, self.collection, drafts):
            return None
        if not self.atomic:
            return self._insert(tx)
        with tx.all_or_none():
            return self._insert(tx)

    def _insert(self, tx: Transaction) -> tuple[list[bytes], list[BulkFailure]]:
        documents = self._insert_at_once(tx) if self.within is None else None
        if documents is not None:
            return documents, []
        return self._insert_all(tx)

    def _insert_at_once(self, tx: Transaction) -> list[bytes] | None:
        """The usual case, in which no draft fails: twice as fast. Else returns None, having done nothing."""
        prepared: list[tuple[str, bytes]] = []
        size = 0
        collection_id = tx.collection_id(self.database_id, self.collection)
        schema = None if collection_id is None else tx.schema(collection_id)
        try:
            for draft in self.drafts:
                if isinstance(draft, ApiError) or draft.unique:
                    return None
                fields = draft.satisfying(schema).fields
                data = document_bytes(draft.id, fields, tx.stamp, tx.stamp, self.max_bytes)
                prepared.append((draft.id, data))
                size += len(data)
                if size > self.max_bytes_in_all:
                    return None
        except ApiError:
            return None
        if not prepared:
            return []
        if not tx.insert_many(self.database_id, self.collection, prepared):
            return None
        return [data for _, data in prepared]

    def _insert_all(self, tx: Transaction) -> tuple[list[bytes], list[BulkFailure]]:
        documents: list[bytes] = []
        failures: list[BulkFailure] = []
        size = 0
        for index, draft in enumerate(self.drafts):
            try:
                if isinstance(draft, ApiError):
                    raise draft
                if size > self.max_bytes_in_all:
                    raise ApiError(
                        413, "BODY_TOO_LARGE", "With the schema's defaults, this bulk is too large: send fewer"
                    )
                insert = Insert(self.database_id, self.collection, draft, self.max_bytes)
                written = (insert if self.within is None else self.within(insert)).apply(tx)
                documents.append(written.visible)
                size += len(written.data)
            except ApiError as error:
                if self.atomic:
                    raise error.at(index) from None
                failures.append(BulkFailure(index, error))
        return documents, failures


@dataclass(frozen=True, slots=True)
class Patch:
    """A shallow merge. A value may be one of `steps`."""

    database_id: int
    collection: str
    id: str
    fields: Document
    condition: Condition | None
    max_bytes: int

    def apply(self, tx: Transaction) -> Written:
        found = _existing(tx, self.database_id, self.collection, self.id)
        if self.condition is not None:
            self.condition.check(tx, found)
        rowkey, _, old = found
        was = decode(old)
        created, updated = _times(was, tx)
        document = {name: value for name, value in was.items() if name not in SYSTEM_FIELDS}
        for name, value in self.fields.items():
            if is_step(value):
                take(document, name, value)
            else:
                document[name] = value
        satisfy_schema(tx, self.database_id, self.collection, document)
        data = document_bytes(self.id, encode(document), created, updated, self.max_bytes)
        document |= {"_id": self.id, "createdAt": created, "updatedAt": updated}
        before = reverse_patch(was, document)
        seq = tx.update(self.database_id, self.collection, rowkey, self.id, old, data, before)
        return Written(self.id, data, seq)


@dataclass(frozen=True, slots=True)
class Replace:
    """Replace the document with this id, keeping its `createdAt`, or insert it."""

    database_id: int
    collection: str
    id: str
    fields: Document
    condition: Condition | None
    max_bytes: int

    def apply(self, tx: Transaction) -> Written:
        collection_id = satisfy_schema(tx, self.database_id, self.collection, self.fields)
        fields = encode(self.fields)
        found = None if collection_id is None else tx.document(collection_id, self.id)
        if self.condition is not None:
            self.condition.check(tx, found)
        if found is None:
            data = document_bytes(self.id, fields, tx.stamp, tx.stamp, self.max_bytes)
            seq = tx.insert(self.database_id, self.collection, self.id, data)
            assert seq is not None
            return Written(self.id, data, seq, created=True)
        rowkey, _, old = found
        was = decode(old)
        created, updated = _times(was, tx)
        data = document_bytes(self.id, fields, created, updated, self.max_bytes)
        document = {**self.fields, "_id": self.id, "createdAt": created, "updatedAt": updated}
        before = reverse_patch(was, document)
        seq = tx.update(self.database_id, self.collection, rowkey, self.id, old, data, before)
        return Written(self.id, data, seq)


@dataclass(frozen=True, slots=True)
class Delete:
    frees: ClassVar = True

    database_id: int
    collection: str
    id: str
    condition: Condition | None

    def apply(self, tx: Transaction) -> Written:
        found = _existing(tx, self.database_id, self.collection, self.id)
        if self.condition is not None:
            self.condition.check(tx, found)
        rowkey, _, data = found
        seq = tx.delete(self.database_id, self.collection, rowkey, self.id, data)
        return Written(self.id, data, seq, deleted=True)


class BatchResult(msgspec.Struct, frozen=True, gc=False):
    """`txn`: the seq of the first change; the result at index n has the seq `txn + n`."""

    results: list[Written]
    txn: int


@dataclass(frozen=True, slots=True)
class Batch:
    """All or none, in this order. `max_bytes`: what all documents together may take. Submit it with
    `until_indexed`."""

    operations: Sequence[Write]
    max_bytes: int

    @property
    def frees(self) -> bool:
        return all(map(frees, self.operations))

    def apply(self, tx: Transaction) -> BatchResult | None:
        """Returns None, having done nothing, while an index that a unique check needs is being built. Raises
        the first failure, with its index."""
        inserts: dict[tuple[int, str], list[Draft]] = {}
        for operation in self.operations:
            drafts = inserts.setdefault((operation.database_id, operation.collection), [])
            if isinstance(operation, Insert):
                drafts.append(operation.draft)
        ready = [_is_ready(tx, *key, drafts) for key, drafts in inserts.items()]  # each makes missing indexes
        if not all(ready):
            return None
        results: list[Written] = []
        left = self.max_bytes
        with tx.all_or_none():
            for index, operation in enumerate(self.operations):
                try:
                    written = operation.apply(tx)
                    left -= len(written.data)
                    if left < 0:
                        raise ApiError(
                            413,
                            "BATCH_TOO_LARGE",
                            f"The documents of a batch have at most {self.max_bytes:,} bytes of JSON in total",
                        )
                except ApiError as error:
                    raise error.at(index) from None
                results.append(written)
        return BatchResult(results, results[0].seq)


@dataclass(frozen=True, slots=True)
class SetSchema:
    """Put a schema on a collection, and create the collection if needed. None removes the schema.

    Returns whether the schema is in force: not until the indexes of its unique fields are built. Submit it with
    `until_indexed`, which sets `begun` when it repeats it.
    """

    database_id: int
    collection: str
    schema: DocumentSchema | None
    begun: bool = False

    @property
    def frees(self) -> bool:
        return self.schema is None

    def apply(self, tx: Transaction) -> bool:
        if self.schema is not None:
            return tx.set_schema(self.database_id, self.collection, self.schema, first=not self.begun)
        collection_id = tx.collection_id(self.database_id, self.collection)
        if collection_id is None or tx.schema(collection_id) is None:
            raise ApiError(404, "NOT_FOUND", f"The collection '{self.collection}' has no schema")
        tx.delete_schema(collection_id)
        return True


def satisfy_schema(tx: Transaction, database_id: int, collection: str, fields: Document) -> int | None:
    """Apply the collection's schema, if it has one, to the fields. Returns the collection's id."""
    collection_id = tx.collection_id(database_id, collection)
    schema = None if collection_id is None else tx.schema(collection_id)
    if schema is not None:
        schema.apply(fields)
    return collection_id


def _is_ready(tx: Transaction, database_id: int, collection: str, drafts: list[Draft]) -> bool:
    """Whether all unique checks of these drafts, and of the schema, can use an index."""
    collection_id = tx.collection_id(database_id, collection)
    unique = {name for draft in drafts for name, value in draft.unique if value is not None}
    return collection_id is None or tx.is_ready(collection_id, unique)


def _times(document: Document, tx: Transaction) -> tuple[str, str]:
    """`createdAt` and the new `updatedAt` of an existing document. Within a document time never goes back, even
    if the computer's clock was set back, or the document was imported with times in the future."""
    created = document["createdAt"]
    return created, max(tx.stamp, document["updatedAt"], created)


def _unique_values(fields: Document, names: list[str]) -> tuple[tuple[str, Any], ...]:
    for name in names:
        if "." in name or isinstance(fields.get(name), dict | list):
            raise bad_request(
                f"'unique' takes top-level fields with a string, number or boolean; not '{name[:80]}'",
                "INVALID_UNIQUE",
            )
    return tuple((name, fields.get(name)) for name in names)


def _existing(tx: Transaction, database_id: int, collection: str, id: str) -> tuple[int, int, bytes]:
    collection_id = tx.collection_id(database_id, collection)
    found = None if collection_id is None else tx.document(collection_id, id)
    if found is None:
        raise not_found()
    return found
