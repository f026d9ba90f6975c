"""The collections, their schemas and their indexes, as one write transaction sees and changes them.

Law: no SQL; an engine brings the abstract methods. This is the part of `Transaction` that each write of a
document consults, and that schema and index operations change. Like the rest of it, it forgets everything at
the end of the transaction.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, Final, NamedTuple

import msgspec

from paperdb_trio.errors import ApiError, bad_request, unique_violation
from paperdb_trio.store.document_schema import DocumentSchema, stored_schema
from paperdb_trio.store.indexes import (
    MAX_INDEXES,
    UNUSED_DAYS,
    Index,
    IndexSet,
    field_text,
    index_set,
    kind,
    stored_indexes,
)
from paperdb_trio.store.rowkeys import span

AT_ONCE: Final = 250
"""Up to this many documents, an index is built in the transaction that declares it: some 2 ms."""
AT_ONCE_BYTES: Final = 1024 * 1024
"""Up to this many bytes of documents, too. The rest is built in steps."""

SAMPLED: Final = 50
"""Documents that `key_bytes` looks at to estimate the average over all."""


Value = str | int | float | bool


class CollectionRow(NamedTuple):
    """`schema`, `indexes`: JSON. `newest`: see `Catalog.disorder`."""

    id: int
    schema: str | None
    indexes: str | None
    newest: str | None


class Catalog(ABC):
    def __init__(self, log_time: float) -> None:
        self.log_time = log_time
        self._collections: dict[tuple[int, str], int] = {}
        self._newest: dict[int, str | None] = {}
        self._schemas: dict[int, DocumentSchema] = {}
        self._indexes: dict[int, IndexSet] = {}
        self.index_work = False
        """Whether there is an index to build or remove, in the steps of `IndexWork`."""
        self.indexes_built = 0

    @property
    def today(self) -> int:
        """Days since the epoch, by the log's clock."""
        return int(self.log_time / 86_400)

    def collection_id(self, database_id: int, name: str, *, create: bool = False) -> int | None:
        key = (database_id, name)
        found = self._collections.get(key)
        if found is None:
            row = self._collection(database_id, name)
            if row is not None:
                found, schema, indexes, newest = row
                self._newest[found] = newest
                if schema is not None:
                    self._schemas[found] = stored_schema(schema)
                if indexes is not None:
                    self._indexes[found] = stored_indexes(indexes)
            elif create:
                found = self._new_collection(database_id, name)
                self._newest[found] = ""
            else:
                return None
            self._collections[key] = found
        return found

    def schema(self, collection_id: int) -> DocumentSchema | None:
        """The schema that documents must satisfy when they are written."""
        return self._schemas.get(collection_id)

    def _entries(
        self, collection_id: int, indexes: IndexSet, rowkey: int, data: bytes
    ) -> list[tuple[int, bytes, int]]:
        """The entries of a document. Raises a 409 if another document has the same value at a unique field."""
        entries = [(index.id, key, rowkey) for index, key in zip(indexes.all, indexes.keys(data), strict=True)]
        for index, entry in zip(indexes.all, entries, strict=True):
            if index.unique and not index.broken and self._is_taken(collection_id, index, entry, data):
                if self._enforces(collection_id, index):
                    raise unique_violation(index.path)
                self._break(collection_id, index)
        return entries

    def _enforces(self, collection_id: int, index: Index) -> bool:
        schema = self._schemas.get(collection_id)
        return schema is not None and index.path in schema.unique

    def _has_unique(self, collection_id: int) -> bool:
        return any(index.unique for index in self._indexes[collection_id].all)

    def _is_taken(self, collection_id: int, index: Index, entry: tuple[int, bytes, int], data: bytes) -> bool:
        """Whether another document has the same value."""
        value = self._indexes[collection_id].value(index, data)
        if value is None:
            return False
        (_, key, rowkey) = entry
        if index.built or not self._enforces(collection_id, index):
            others = self._holders(index, key, rowkey)
        else:  # an index of an older version, which is being rebuilt
            others = self._holders_unindexed(collection_id, index, value, rowkey)
        return any(other == kind(value) for other in others)

    def _break(self, collection_id: int, index: Index) -> None:
        """Two documents have the same value: the index cannot be unique."""
        self._end_build(index.id)
        self._change_index(collection_id, index, broken=True)

    def _change_index(self, collection_id: int, index: Index, **changes: int) -> None:
        indexes = self._indexes[collection_id].all
        self._set_indexes(
            collection_id,
            tuple(msgspec.structs.replace(i, **changes) if i.id == index.id else i for i in indexes),
        )

    def _set_indexes(self, collection_id: int, indexes: tuple[Index, ...]) -> None:
        old = self._indexes.pop(collection_id, None)
        if new := index_set(indexes):
            self._indexes[collection_id] = new
        kept = {index.id for index in indexes}
        for index in () if old is None else old.all:
            if index.id not in kept:
                self._end_build(index.id)
                self._drop_index(index.id)
                self.index_work = True
        self._save_indexes(collection_id, None if new is None else new.text)

    def indexes(self, collection_id: int) -> tuple[Index, ...]:
        found = self._indexes.get(collection_id)
        return () if found is None else found.all

    def remove_indexes(self, collection_id: int, id: int | None = None) -> None:
        """Remove one index of a collection, or all of them."""
        kept = () if id is None else tuple(index for index in self.indexes(collection_id) if index.id != id)
        self._set_indexes(collection_id, kept)

    def keep_used(self, collection_id: int, used: frozenset[int], today: int) -> list[Index]:
        """Note which indexes were used. Remove unused automatic ones, and return those."""
        noted = tuple(
            msgspec.structs.replace(index, used=today) if index.made and index.id in used else index
            for index in self.indexes(collection_id)
        )
        removed = [index for index in noted if index.made and index.used < today - UNUSED_DAYS]
        kept = tuple(index for index in noted if index not in removed)
        if kept != self.indexes(collection_id):
            self._set_indexes(collection_id, kept)
        return removed

    def add_index(
        self, collection_id: int, fields: tuple[str, ...], *, unique: bool, made: bool, used: int = 0
    ) -> None:
        """Declare an index. A small one is built at once, a larger one in steps of `IndexWork`."""
        indexes = self.indexes(collection_id)
        id = self._begin_build(collection_id, span(collection_id)[0])
        self._set_indexes(collection_id, (*indexes, Index(id, fields, unique=unique, made=made, used=used)))
        if self._has_at_most(collection_id, AT_ONCE):
            self.build_some(id, AT_ONCE + 1, AT_ONCE_BYTES)
        else:
            self.index_work = True

    def build_some(self, id: int, rows: int, max_bytes: int) -> None:
        """Add more documents to an index that is being built."""
        collection_id, rowkey = self._build(id)
        indexes = self._indexes_of(collection_id)
        at, index = next((at, index) for at, index in enumerate(indexes.all) if index.id == id)
        enforced = not index.unique or self._enforces(collection_id, index)
        found = self.documents(rowkey + 1, span(collection_id)[1], rows, max_bytes)
        keys = [indexes.key(at, data) for _, _, data in found]
        if not enforced:
            self._expect_holders([(id, key) for key in keys])
        entries: list[tuple[int, bytes, int]] = []
        for key, (rowkey, _, data) in zip(keys, found, strict=True):
            entry = (id, key, rowkey)
            if not enforced:
                if self._is_taken(collection_id, index, entry, data):
                    self._break(collection_id, index)
                    return
                self._enter([entry])  # at once: the next one is compared with it
            else:
                entries.append(entry)
        self._enter(entries)
        if len(found) < rows and sum(len(data) for _, _, data in found) < max_bytes:
            self._end_build(id)
            self._change_index(collection_id, index, built=True)
            self.indexes_built += 1
        else:
            self._continue_build(id, rowkey)
            self.index_work = True

    def key_bytes(self, collection_id: int, fields: tuple[str, ...]) -> float:
        """The average key length that an index would have, estimated from the newest documents."""
        wanted = index_set((Index(0, fields),))
        assert wanted is not None
        found = self.documents(*span(collection_id), SAMPLED, AT_ONCE_BYTES, newest_first=True)
        return sum(len(wanted.key(0, data)) for _, _, data in found) / max(len(found), 1)

    def _indexes_of(self, collection_id: int) -> IndexSet:
        if collection_id not in self._indexes:
            self.collection_id(*self._name(collection_id))
        return self._indexes[collection_id]

    def has_value(self, collection_id: int, field: str, value: Value) -> bool:
        """Whether a document of the collection has this value at this field.

        The first check of a field makes an index for it, so that `unique` costs the same however large the
        collection is. Raises a 400 when there are too many indexes.
        """
        for index in self.indexes(collection_id):
            if index.built and index.path == field:
                if index.made and index.used < self.today:
                    self._change_index(collection_id, index, used=self.today)
                return self._has_value(collection_id, index, field, value)
        self._make_unique_index(collection_id, field)
        return self._has_value(collection_id, None, field, value)

    def is_ready(self, collection_id: int, fields: set[str]) -> bool:
        """Whether all unique checks can use an index: those of the schema, and of `has_value` for these fields.
        Missing indexes of these fields are made. Without an index each check would scan all documents."""
        ready = True
        for field in fields:
            with suppress(ApiError):  # too many indexes: `has_value` raises it
                self._make_unique_index(collection_id, field)
            own = [i for i in self.indexes(collection_id) if i.path == field and not i.broken]
            ready &= not own or any(index.built for index in own)
        return ready and all(
            index.built or not index.unique or not self._enforces(collection_id, index)
            for index in self.indexes(collection_id)
        )

    def _make_unique_index(self, collection_id: int, field: str) -> None:
        indexes = self.indexes(collection_id)
        if any(index.path == field and not index.broken for index in indexes):
            return
        if len(indexes) >= MAX_INDEXES:
            raise bad_request(f"At most {MAX_INDEXES} indexes for one collection", "TOO_MANY_INDEXES")
        self.add_index(collection_id, (field_text(field),), unique=False, made=True, used=self.today)

    def set_schema(self, database_id: int, collection: str, schema: DocumentSchema, *, first: bool) -> bool:
        """Put a schema in force, with its indexes. Returns False, with the schema not yet in force, while the
        index of a unique field is being built. `first`: check again the unique fields that an earlier attempt
        found broken.

        Automatic indexes are removed if there are too many. Raises a 409 if existing documents break a unique
        field.
        """
        collection_id = self.collection_id(database_id, collection, create=True)
        assert collection_id is not None
        if first and any(index.broken for index in self.indexes(collection_id)):
            self._set_indexes(collection_id, tuple(i for i in self.indexes(collection_id) if not i.broken))
        for fields, unique in schema.indexes:
            if not any((i.fields, i.unique) == (fields, unique) for i in self.indexes(collection_id)):
                self.add_index(collection_id, fields, unique=unique, made=False)
        indexes = self.indexes(collection_id)
        declared = [index for index in indexes if (index.fields, index.unique) in schema.indexes]
        for index in declared:
            if index.broken:
                in_force = self._schemas.get(collection_id)
                known = () if in_force is None else in_force.indexes
                kept = tuple(i for i in indexes if i.made or (i.fields, i.unique) in known)
                self._set_indexes(collection_id, kept)
                raise unique_violation(index.path)
        if any(index.unique and not index.built for index in declared):
            return False
        made = [index for index in indexes if index.made and index not in declared]
        made.sort(key=lambda index: index.used, reverse=True)
        del made[MAX_INDEXES - len(declared) :]
        own = [msgspec.structs.replace(index, made=False, used=0) for index in declared]
        self._set_indexes(collection_id, (*own, *made))
        self._save_schema(collection_id, schema.text.decode())
        self._schemas[collection_id] = schema
        return True

    def delete_schema(self, collection_id: int) -> None:
        self._set_indexes(collection_id, tuple(i for i in self.indexes(collection_id) if i.made))
        self._save_schema(collection_id, None)
        del self._schemas[collection_id]

    # --- rows --------------------------------------------------------------------------------------

    @abstractmethod
    def documents(
        self, low: int, high: int, limit: int, max_bytes: int = AT_ONCE_BYTES, *, newest_first: bool = False
    ) -> list[tuple[int, str, bytes]]:
        """`(rowkey, id, data)` of the first documents in a range of row keys: at most `limit`, and no more when
        they have `max_bytes` together."""

    @abstractmethod
    def collections_with_made_indexes(self) -> list[tuple[int, str]]:
        """`(database_id, name)` of each that has automatic indexes."""

    @abstractmethod
    def next_index_drop(self) -> int | None:
        """An index that was removed but still has entries."""

    @abstractmethod
    def next_index_build(self) -> int | None:
        """An index that is being built."""

    @abstractmethod
    def drop_entries(self, index_id: int, limit: int, max_bytes: int) -> None:
        """Remove some entries of a removed index: at most `limit`, and no more when their keys have `max_bytes`
        together."""

    @abstractmethod
    def _collection(self, database_id: int, name: str) -> CollectionRow | None: ...

    @abstractmethod
    def _new_collection(self, database_id: int, name: str) -> int:
        """Raises `database_gone`."""

    @abstractmethod
    def _remove_collection(self, collection_id: int) -> None: ...

    @abstractmethod
    def _name(self, collection_id: int) -> tuple[int, str]:
        """Its database's id, and its name."""

    @abstractmethod
    def _has_at_most(self, collection_id: int, documents: int) -> bool: ...

    @abstractmethod
    def _save_schema(self, collection_id: int, text: str | None) -> None: ...

    @abstractmethod
    def _save_indexes(self, collection_id: int, text: str | None) -> None: ...

    @abstractmethod
    def _begin_build(self, collection_id: int, rowkey: int) -> int:
        """Note that an index is being built, from the documents after a row key. Returns the index's id."""

    @abstractmethod
    def _build(self, id: int) -> tuple[int, int]:
        """The index's collection, and the row key up to which it is built."""

    @abstractmethod
    def _continue_build(self, id: int, rowkey: int) -> None: ...

    @abstractmethod
    def _end_build(self, id: int) -> None: ...

    @abstractmethod
    def _drop_index(self, id: int) -> None:
        """Note that the entries of an index are to be removed."""

    @abstractmethod
    def _enter(self, entries: list[tuple[int, bytes, int]]) -> None:
        """Add entries `(index, key, row key)`; those that exist stay."""

    @abstractmethod
    def _holders(self, index: Index, key: bytes, rowkey: int) -> Iterable[str]:
        """The kinds (`indexes.kind`) of the values of other documents with this key in a unique index."""

    def _expect_holders(self, keys: list[tuple[int, bytes]]) -> None:  # noqa: B027 - it may do nothing
        """`_holders` is going to be asked for keys `(index, key)`: an engine may read them together."""

    @abstractmethod
    def _holders_unindexed(self, collection_id: int, index: Index, value: Any, rowkey: int) -> Iterable[str]:
        """The same without the index."""

    @abstractmethod
    def _has_value(self, collection_id: int, index: Index | None, field: str, value: Value) -> bool:
        """See `has_value`. `index`: one that begins with the field; None: look at all documents."""
