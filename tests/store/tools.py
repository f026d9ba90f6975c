"""Tools of the store's tests: a new file, and a transaction that is never committed."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from paperdb_trio.store.administration import SetUp
from paperdb_trio.store.operations import Draft, Insert, Operation, Written
from paperdb_trio.store.postgres import admin as postgres_admin
from paperdb_trio.store.postgres import prepare as preparing
from paperdb_trio.store.records import NewKey
from paperdb_trio.store.sqlite import admin
from paperdb_trio.store.sqlite import library as sqlite
from paperdb_trio.store.sqlite.file import connect, prepare
from paperdb_trio.store.sqlite.transaction import Transaction

DATABASE = 1
"""The id of the database `default`, the first."""

MAX_BYTES = 1024 * 1024

LONG_TO_SEARCH = [*range(1000)]
"""`contains` looks at each element: a find among 100 documents with this takes some 15 ms, so that it is
slower than 1 ms on any machine."""


def new_file(directory: Path) -> Path:
    """A set-up database file, as after a first start."""
    file = prepare(directory, create=True)
    admin.apply(file, SetUp("test", NewKey("key-id", "secret", "first", b"hash"), "kid", b"s" * 32))
    return file


def new_database(url: str) -> None:
    """The same in PostgreSQL."""
    preparing.prepare(url, create=True).close()
    postgres_admin.apply(url, SetUp("test", NewKey("key-id", "secret", "first", b"hash"), "kid", b"s" * 32))


@contextmanager
def scratch(file: Path) -> Iterator[Transaction]:
    """A write transaction that is rolled back, so that hundreds of examples need no fsync."""
    with closing(connect(file)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield Transaction(connection, time.time(), time.time())
        connection.execute("ROLLBACK")


@contextmanager
def committed(file: Path) -> Iterator[Transaction]:
    with closing(connect(file)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        transaction = Transaction(connection, time.time(), time.time())
        yield transaction
        transaction.flush()
        connection.execute("COMMIT")


def inserting(document: dict[str, Any], collection: str = "c") -> Insert:
    return Insert(DATABASE, collection, Draft.parse(document), MAX_BYTES)


def insert(tx: Transaction, document: dict[str, Any], collection: str = "c") -> Written:
    written = inserting(document, collection).apply(tx)
    assert isinstance(written, Written)
    return written


def apply_all(file: Path, *operations: Operation[Any]) -> list[Any]:
    """Commit operations together. Returns their results."""
    with committed(file) as tx:
        return [operation.apply(tx) for operation in operations]


def rows(file: Path, sql: str, *parameters: Any) -> list[Any]:
    with closing(connect(file, read_only=True)) as connection:
        found: list[Any] = connection.execute(sql, parameters).fetchall()
        return found


def content(file: Path) -> list[Any]:
    """The rows of every table, without taking a lock."""
    with closing(sqlite.open_file(f"file:{file}?immutable=1", read_only=True, busy_seconds=1)) as connection:
        tables = connection.execute(
            "SELECT name FROM sqlite_master WHERE type='table' ORDER BY name"
        ).fetchall()
        return [connection.execute(f'SELECT * FROM "{name}"').fetchall() for (name,) in tables]


def without_system_fields(data: bytes | str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(data)
    return {name: value for name, value in document.items() if name not in ("_id", "createdAt", "updatedAt")}


def exactly(value: object) -> str:
    """Text in which 1, 1.0, true and -0.0 differ, unlike in Python's ==."""
    return json.dumps(value, sort_keys=True)


# --- values for Hypothesis: mostly from small pools, so that filters match documents ------------------


def mostly(pool: list[Any], wild: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.integers(0, 4).flatmap(lambda n: wild if n == 4 else st.sampled_from(pool))


NAMES = st.sampled_from(["a", "b", "it's é"])
PATHS = mostly(["a", "b", "a.b"], st.lists(NAMES, min_size=1, max_size=3).map(".".join))
TEXTS = mostly(
    [*("", "a", "ab", "b", "A", "Ab", "1", "true", "null"), *("é", "e\u0301", "😀", "\uffff"), *"\n\"\\'%_"],
    st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=3),
)
NUMBERS = mostly(
    [
        *(-1, 0, 1, 2, 0.0, -0.0, 1.0, 1.5, 0.1, 1e22, 5e-324, 1.7976931348623157e308),
        *(2**53, 2**53 + 1, 2.0**53, 2**63 - 1, 2**63, 2.0**63, -(2**63), -(2**63) - 1, 2**64, 10**30),
    ],
    st.integers() | st.floats(allow_nan=False, allow_infinity=False),
)
SCALARS = st.sampled_from([st.none(), st.booleans(), NUMBERS, NUMBERS, TEXTS, TEXTS]).flatmap(lambda kind: kind)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=6,
)
DOCUMENTS = st.dictionaries(NAMES, VALUES, max_size=3)
OPERANDS = {
    **dict.fromkeys(("eq", "ne", "contains"), SCALARS),
    **dict.fromkeys(("gt", "gte", "lt", "lte"), NUMBERS | TEXTS),
    **dict.fromkeys(("in", "nin"), st.lists(SCALARS, max_size=4)),
    "startsWith": TEXTS,
    "exists": st.booleans(),
}
LEAVES = st.tuples(PATHS, st.sampled_from(sorted(OPERANDS))).flatmap(
    lambda leaf: OPERANDS[leaf[1]].map(lambda operand: {leaf[0]: {leaf[1]: operand}})
)
FILTERS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        inner.map(lambda filter: {"not": filter}),
        st.lists(inner, max_size=3).map(lambda filters: {"or": filters}),
        st.lists(inner, max_size=3).map(lambda filters: {"and": filters}),
        st.tuples(inner, inner).map(lambda two: two[0] | two[1]),
    ),
    max_leaves=4,
)
