"""What each engine makes of a question, without a server: documents in, pages out, nothing committed.

Rules: an `Engine` is shared by many examples, and each `opened` collection is gone afterwards. In PostgreSQL
each has another id, because rows that were rolled back still have to be passed over.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

import psycopg

from paperdb_trio.model import document_bytes
from paperdb_trio.store.document_schema import parse_schema
from paperdb_trio.store.indexes import Index, index_set
from paperdb_trio.store.operations import Draft
from paperdb_trio.store.paging import Edge
from paperdb_trio.store.plan import Shelf
from paperdb_trio.store.postgres import find as postgres_find
from paperdb_trio.store.postgres.keys import stored
from paperdb_trio.store.postgres.question import Sql
from paperdb_trio.store.query import Question
from paperdb_trio.store.rowkeys import SEQ_BITS, SEQ_MASK, span
from paperdb_trio.store.sqlite import find as sqlite_find
from tests.postgres import Postgres
from tests.store.tools import DATABASE, MAX_BYTES, insert, scratch

T = TypeVar("T")


def _stamp(minute: int) -> str:
    return f"2026-11-27T00:{minute:02}:00.000Z"


class Found(Protocol):
    @property
    def documents(self) -> list[bytes]: ...
    @property
    def last(self) -> int: ...
    @property
    def more(self) -> bool: ...


class Collection(Protocol):
    """A collection with documents in it, which have the ids 0, 1, …"""

    @property
    def shelf(self) -> Shelf: ...
    def find(self, question: Question, edge: Edge | None, limit: int, offset: int = 0) -> Found: ...
    def count(self, question: Question) -> int: ...


class Engine(Protocol):
    def opened(
        self, documents: list[dict[str, Any]], indexes: list[list[str]], minutes: Sequence[int] = ()
    ) -> AbstractContextManager[Collection]:
        """`minutes`: when the documents were created, in order; else all at once."""
        ...


# --- SQLite --------------------------------------------------------------------------------------


class OfSqlite:
    def __init__(self, connection: Any, shelf: Shelf) -> None:
        self.connection = connection
        self.shelf = shelf

    def find(self, question: Question, edge: Edge | None, limit: int, offset: int = 0) -> Found:
        return sqlite_find.find(self.connection, question, self.shelf, edge, limit, offset)

    def count(self, question: Question) -> int:
        return sqlite_find.count(self.connection, question, self.shelf)[0]


class InSqlite:
    def __init__(self, file: Path) -> None:
        self.file = file

    @contextmanager
    def opened(
        self, documents: list[dict[str, Any]], indexes: list[list[str]], minutes: Sequence[int] = ()
    ) -> Iterator[Collection]:
        with scratch(self.file) as tx:
            if indexes:
                tx.set_schema(DATABASE, "c", parse_schema({"properties": {}, "indexes": indexes}), first=True)
            for n, document in enumerate(documents):
                tx.stamp = _stamp(minutes[n] if minutes else 0)
                insert(tx, {"key": str(n), **document})
            tx.flush()
            shelf = sqlite_find.shelf(tx.connection, DATABASE, "c")
            assert shelf is not None
            yield OfSqlite(tx.connection, shelf)


# --- PostgreSQL ----------------------------------------------------------------------------------

TABLES = """
CREATE TABLE documents (
    rowkey bigint PRIMARY KEY, data text, doc jsonb GENERATED ALWAYS AS (data::jsonb) STORED
);
CREATE TABLE entries (index_id bigint, key bytea, rowkey bigint, PRIMARY KEY (index_id, key, rowkey))
"""


class OfPostgres:
    def __init__(self, connection: psycopg.Connection[Any], shelf: Shelf) -> None:
        self.connection = connection
        self.shelf = shelf

    def run(self, steps: postgres_find.Steps[T]) -> T:
        try:
            statement = next(steps)
            while True:
                found = self.connection.execute(statement.numbered(), statement.parameters)
                statement = steps.send([tuple(map(_bytes, row)) for row in found])
        except StopIteration as done:
            result: T = done.value
            return result

    def explain(self, statement: Sql) -> list[Any]:
        """PostgreSQL's plan, as JSON."""
        sql = f"EXPLAIN (VERBOSE, FORMAT JSON) {statement.numbered()}"
        return list(self.connection.execute(sql, statement.parameters))

    def find(self, question: Question, edge: Edge | None, limit: int, offset: int = 0) -> Found:
        plan = self.run(postgres_find.choose_plan(question, self.shelf))
        return self.run(postgres_find.find(plan, question, self.shelf, edge, limit, offset, 2**24))

    def count(self, question: Question) -> int:
        plan = self.run(postgres_find.choose_plan_to_count(question, self.shelf))
        return self.run(postgres_find.count(plan, question, self.shelf))


def _bytes(value: Any) -> Any:
    """Texts come as bytes, so that documents go out as they are."""
    return value.encode() if isinstance(value, str) else value


class InPostgres:
    """`close` it."""

    def __init__(self, postgres: Postgres) -> None:
        options = " ".join(f"-c {name}={value}" for name, value in postgres_find.SESSION.items())
        self.connection = psycopg.connect(
            postgres.url(postgres.new()), cursor_factory=psycopg.RawCursor, options=options
        )
        self.connection.execute(TABLES, prepare=False)
        self.connection.commit()
        self.numbers = itertools.count(1)

    def close(self) -> None:
        self.connection.close()

    @contextmanager
    def opened(
        self, documents: list[dict[str, Any]], indexes: list[list[str]], minutes: Sequence[int] = ()
    ) -> Iterator[Collection]:
        texts = [
            _text(n, document, _stamp(minutes[n] if minutes else 0)) for n, document in enumerate(documents)
        ]
        all = {tuple(fields): None for fields in indexes}
        own = tuple(Index(next(self.numbers), fields, built=True) for fields in all)
        collection = next(self.numbers)
        set = index_set(own)
        rowkeys = [collection << SEQ_BITS | seq for seq in range(1, len(texts) + 1)]
        self.connection.execute(
            "INSERT INTO documents SELECT * FROM unnest($1::bigint[], $2::text[])",
            (rowkeys, [text.decode() for text in texts]),
        )
        entries = [
            (index.id, stored(key), rowkey)
            for rowkey, text in zip(rowkeys, texts, strict=True)
            for index, key in (zip(own, set.keys(text), strict=True) if set is not None else ())
        ]
        if entries:
            self.connection.execute(
                "INSERT INTO entries SELECT * FROM unnest($1::bigint[], $2::bytea[], $3::bigint[])",
                tuple(map(list, zip(*entries, strict=True))),
            )
        try:
            shelf = Shelf(collection, len(texts), own, in_order=True)
            yield OfPostgres(self.connection, shelf)
        finally:
            self.connection.rollback()


def _text(n: int, document: dict[str, Any], stamp: str) -> bytes:
    draft = Draft.parse({"key": str(n), **document})
    return document_bytes(draft.id, draft.fields, stamp, stamp, MAX_BYTES)


# --- both ----------------------------------------------------------------------------------------


class _OfBoth:
    def __init__(self, sqlite: Collection, postgres: Collection) -> None:
        self.sqlite = sqlite
        self.postgres = postgres
        self.shelf = sqlite.shelf

    def find(self, question: Question, edge: Edge | None, limit: int, offset: int = 0) -> Found:
        one, other = (
            of.find(question, _within(edge, of), limit, offset) for of in (self.sqlite, self.postgres)
        )
        assert (other.documents, other.more, other.last & SEQ_MASK) == (
            one.documents,
            one.more,
            one.last & SEQ_MASK,
        ), "PostgreSQL finds another page than SQLite"
        return one

    def count(self, question: Question) -> int:
        n = self.sqlite.count(question)
        assert self.postgres.count(question) == n, "PostgreSQL counts otherwise than SQLite"
        return n


def _within(edge: Edge | None, of: Collection) -> Edge | None:
    """The edge in another collection: its row key begins with the collection's id."""
    return None if edge is None else edge._replace(rowkey=span(of.shelf.id)[0] | edge.rowkey & SEQ_MASK)


class Both:
    """SQLite, and the assertion that PostgreSQL finds the same: an example is made once."""

    def __init__(self, sqlite: InSqlite, postgres: InPostgres) -> None:
        self.sqlite = sqlite
        self.postgres = postgres

    @contextmanager
    def opened(
        self, documents: list[dict[str, Any]], indexes: list[list[str]], minutes: Sequence[int] = ()
    ) -> Iterator[Collection]:
        with (
            self.sqlite.opened(documents, indexes, minutes) as one,
            self.postgres.opened(documents, indexes, minutes) as other,
        ):
            yield _OfBoth(one, other)
