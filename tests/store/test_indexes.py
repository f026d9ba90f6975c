"""Indexes: their entries follow every write, are built and removed in steps, and survive a kill."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from paperdb_trio.errors import ApiError
from paperdb_trio.store import catalog, plan
from paperdb_trio.store.advisor import IndexAdvisor, Wish
from paperdb_trio.store.document_schema import DocumentSchema, parse_schema
from paperdb_trio.store.housekeeping import DropSome, IndexWork, KeepUsedIndexes, MakeIndex, until_indexed
from paperdb_trio.store.indexes import MAX_INDEXES, MAX_MADE, Index, stored_indexes
from paperdb_trio.store.keeper import keep_indexes
from paperdb_trio.store.operations import Delete, Draft, InsertBulk, Operation, Patch, Replace, SetSchema
from paperdb_trio.store.query import ask
from paperdb_trio.store.rowkeys import span
from paperdb_trio.store.sqlite.check import check
from paperdb_trio.store.sqlite.file import connect
from paperdb_trio.store.sqlite.find import count, explain, find, shelf
from paperdb_trio.store.sqlite.reader import Reader
from paperdb_trio.store.sqlite.transaction import Transaction
from tests.store.test_writer import running
from tests.store.tools import (
    DATABASE,
    DOCUMENTS,
    LONG_TO_SEARCH,
    MAX_BYTES,
    apply_all,
    committed,
    inserting,
    new_file,
    rows,
    scratch,
)

BY_A = parse_schema({"properties": {}, "indexes": [["a"], ["-a", "b"]]})
UNIQUE_A = parse_schema({"properties": {"a": {"unique": True}}})


def put(schema: DocumentSchema | None) -> SetSchema:
    return SetSchema(DATABASE, "c", schema)


def indexes(file: Path) -> tuple[Index, ...]:
    ((text,),) = rows(file, "SELECT indexes FROM collections WHERE name='c'")
    return () if text is None else stored_indexes(text).all


def finish(file: Path) -> int:
    """Take steps until there is nothing to do. Returns their number."""
    steps = 0
    with committed(file) as tx:
        while IndexWork(rows=3).apply(tx):
            steps += 1
    return steps


def faults_of(tx: Transaction) -> list[str]:
    """Built indexes with wrong entries, and unfinished ones with entries that cannot be right."""
    found = shelf(tx.connection, DATABASE, "c")
    assert found is not None
    ((text,),) = tx.connection.execute("SELECT indexes FROM collections WHERE id=?", (found.id,)).fetchall()
    if text is None:
        return []
    kept = stored_indexes(text)
    expected: dict[int, set[tuple[bytes, int]]] = {index.id: set() for index in kept.all}
    for rowkey, data in tx.connection.execute("SELECT rowkey, json(data) FROM documents"):
        for index, key in zip(kept.all, kept.keys(data.encode()), strict=True):
            expected[index.id].add((key, rowkey))
    faults = []
    for index in kept.all:
        entries = set(
            tx.connection.execute("SELECT key, rowkey FROM entries WHERE index_id=?", (index.id,)).fetchall()
        )
        if entries != expected[index.id] if index.built else not entries <= expected[index.id]:
            faults.append(f"{index}: {len(entries)} entries, {len(expected[index.id])} expected")
    return faults


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.sampled_from("01234"), DOCUMENTS),
        st.tuples(st.just("patch"), st.sampled_from("01234"), DOCUMENTS),
        st.tuples(st.just("delete"), st.sampled_from("01234"), st.none()),
        st.tuples(st.sampled_from(["declare", "undeclare"]), st.none(), st.none()),
        st.tuples(st.just("work"), st.none(), st.integers(1, 3)),
    ),
    max_size=25,
)


def operation_of(what: str, id: str, value: Any) -> Operation[Any]:
    match what:
        case "put":
            return Replace(DATABASE, "c", id, dict(value), None, MAX_BYTES)
        case "patch":
            return Patch(DATABASE, "c", id, dict(value), None, MAX_BYTES)
        case "delete":
            return Delete(DATABASE, "c", id, None)
        case "work":
            return IndexWork(rows=value)
    return put(BY_A if what == "declare" else None)


@settings(max_examples=150)
@given(documents=st.lists(DOCUMENTS, max_size=5), steps=STEPS)
def test_entries_match_documents_while_indexes_come_and_go(
    shared_file: Path, documents: list[dict[str, Any]], steps: list[Any]
) -> None:
    with never_at_once(), scratch(shared_file) as tx:
        for n, document in enumerate(documents):
            inserting({"key": str(n), **document}).apply(tx)
        put(BY_A).apply(tx)
        for what, id, value in steps:
            try:
                operation_of(what, id, value).apply(tx)
            except ApiError as error:
                assert error.status == 404  # noqa: PT017 - the only refusal here
            assert faults_of(tx) == []
        while IndexWork(rows=2).apply(tx):
            pass
        assert faults_of(tx) == []
        found = shelf(tx.connection, DATABASE, "c")
        assert found is not None
        assert all(index.built for index in found.indexes)
        known = {index.id for index in found.indexes}
        assert {id for (id,) in tx.connection.execute("SELECT DISTINCT index_id FROM entries")} <= known


@contextmanager
def never_at_once() -> Iterator[None]:
    """Make even small indexes be built in steps."""
    before = catalog.AT_ONCE
    catalog.AT_ONCE = -1  # type: ignore[misc]
    yield
    catalog.AT_ONCE = before  # type: ignore[misc]


def large(file: Path, n: int = 600) -> None:
    apply_all(file, *(inserting({"key": str(i), "a": i, "b": i % 7}) for i in range(n)))


def test_index_of_a_small_collection_is_built_at_once(file: Path) -> None:
    large(file, 200)
    apply_all(file, put(BY_A))
    assert [index.built for index in indexes(file)] == [True, True]
    assert check(file).faults == []


def test_index_of_a_large_collection_is_unused_until_complete(file: Path) -> None:
    large(file)
    apply_all(file, put(BY_A))
    assert [index.built for index in indexes(file)] == [False, False]
    question = ask('{"a": {"gte": 590}}')

    def used_and_found() -> tuple[Any, list[str]]:
        connection = connect(file, read_only=True)
        of = shelf(connection, DATABASE, "c")
        assert of is not None
        page = find(connection, question, of, None, 100, 0)
        found = [json.loads(document)["_id"] for document in page.documents]
        used = explain(connection, page.plan, question, of)["index"]
        connection.close()
        return used, found

    expected = [str(n) for n in range(590, 600)]
    assert used_and_found() == (None, expected)
    apply_all(file, IndexWork(rows=100))
    assert used_and_found() == (None, expected)
    assert check(file).faults == []
    finish(file)
    used, found = used_and_found()
    assert used in (("a",), ("-a", "b"))
    assert found == expected
    assert check(file).faults == []


def test_removed_indexes_leave_no_entries(file: Path) -> None:
    large(file)
    apply_all(file, put(BY_A))
    finish(file)
    apply_all(file, put(None))
    assert indexes(file) == ()
    assert rows(file, "SELECT count(*) FROM entries") == [(1200,)]
    assert check(file).faults == []
    assert finish(file) > 2
    assert rows(file, "SELECT * FROM entries") == rows(file, "SELECT * FROM index_drops") == []


# --- unique --------------------------------------------------------------------------------------


def enforce(file: Path, putting: SetSchema | None = None) -> None:
    """Put the schema, and build its indexes. A refusal is committed, too, as the writer does."""
    putting = putting or put(UNIQUE_A)
    while True:
        with committed(file) as tx:
            try:
                done: bool | ApiError = putting.apply(tx)
            except ApiError as error:
                done = error
        if isinstance(done, ApiError):
            raise done
        if done:
            return
        putting = replace(putting, begun=True)
        apply_all(file, IndexWork())


@pytest.mark.parametrize("n", [10, 600])
def test_refused_schema_is_accepted_after_the_data_is_fixed(file: Path, n: int) -> None:
    large(file, n)
    apply_all(file, inserting({"key": "twin", "a": n - 1}))
    with pytest.raises(ApiError) as refused:
        enforce(file)
    assert (refused.value.status, refused.value.code) == (409, "CONFLICT")
    apply_all(file, inserting({"key": "third", "a": n - 1}))  # the refused schema is not in force
    apply_all(file, *(Delete(DATABASE, "c", id, None) for id in ("twin", "third")))
    enforce(file)
    with pytest.raises(ApiError):
        apply_all(file, inserting({"a": n - 1}))
    assert check(file).faults == []


def test_duplicate_during_the_build_breaks_a_unique_index(file: Path) -> None:
    large(file)
    putting = put(UNIQUE_A)
    assert apply_all(file, putting) == [False]
    apply_all(file, IndexWork(rows=300), inserting({"key": "twin", "a": 5}))
    with pytest.raises(ApiError) as refused:
        enforce(file, replace(putting, begun=True))
    assert refused.value.status == 409


def test_abandoned_schema_does_not_affect_the_next(file: Path) -> None:
    large(file)
    apply_all(file, put(UNIQUE_A))  # the request is then cancelled
    apply_all(
        file, IndexWork(rows=300), inserting({"key": "twin", "a": 5}), Delete(DATABASE, "c", "twin", None)
    )
    enforce(file)
    assert [index.built for index in indexes(file)] == [True]


def test_refused_insert_does_not_break_a_unique_index(file: Path) -> None:
    large(file)
    putting = put(UNIQUE_A)
    apply_all(file, putting, IndexWork(rows=300))
    with pytest.raises(ApiError):
        apply_all(file, inserting({"key": "7", "a": 5}))
    with committed(file) as tx, suppress(ApiError):
        inserting({"key": "7", "a": 5}).apply(tx)
    enforce(file, putting)


def test_refused_schema_leaves_no_index(file: Path) -> None:
    large(file)
    apply_all(file, inserting({"key": "twin", "a": 5}), put(BY_A))
    both = {"properties": {"a": {"unique": True}, "b": {"index": True}, "c": {"index": True}}}
    with pytest.raises(ApiError):
        enforce(file, put(parse_schema(both)))
    assert {index.fields for index in indexes(file)} == {("-a", "b"), ("a",)}


def test_schema_with_the_most_indexes_replaces_another(file: Path) -> None:
    large(file, 3)
    apply_all(file, MakeIndex(DATABASE, "c", ("a",), 1), MakeIndex(DATABASE, "c", ("b",), 2))
    for letter in "xy":
        many = [[f"{letter}{n}"] for n in range(MAX_INDEXES - 1)]
        apply_all(file, put(parse_schema({"properties": {}, "indexes": many})))
        assert len(indexes(file)) == MAX_INDEXES
    assert [index.fields for index in indexes(file) if index.made] == [("b",)]  # the most recently used
    assert check(file).faults == []


def test_declared_index_stays_even_if_it_was_automatic(file: Path) -> None:
    large(file, 3)
    apply_all(file, MakeIndex(DATABASE, "c", ("a",), 1), put(BY_A), KeepUsedIndexes(frozenset(), 1000))
    assert {index.fields for index in indexes(file)} == {("-a", "b"), ("a",)}


@pytest.mark.parametrize("atomic", [True, False])
def test_bulk_waits_for_the_index_of_its_unique_field(file: Path, atomic: bool) -> None:
    """Without the index, a check took 0.1 s for each document in a collection of 100,000."""
    large(file)
    drafts = [Draft.parse({"key": f"new {n}", "a": n, "unique": ["a"]}) for n in (5, 1000)]
    bulk = InsertBulk(DATABASE, "c", list(drafts), MAX_BYTES, 10 * MAX_BYTES, atomic)
    assert apply_all(file, bulk) == [None]
    finish(file)
    if atomic:
        with pytest.raises(ApiError):
            apply_all(file, bulk)
    else:
        ((documents, failures),) = apply_all(file, bulk)
        assert (len(documents), [failure.index for failure in failures]) == (1, [0])


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (1, 1.0, True),
        (1, True, False),
        (0, False, False),
        ("[1]", [1], False),
        ([1], [1], True),
        (None, None, False),
        (2**64, 2.0**64, True),
        ("a", "A", False),
        ({"x": 1}, {"x": 1}, True),
    ],
)
@pytest.mark.parametrize("built", [True, False])
def test_unique_compares_values_as_json(file: Path, one: Any, other: Any, same: bool, built: bool) -> None:
    apply_all(file, put(UNIQUE_A), inserting({"a": one}))
    if not built:  # as after an upgrade: in force, but being rebuilt
        (index,) = indexes(file)
        apply_all(file, Unbuild(index))
    if same:
        with pytest.raises(ApiError):
            apply_all(file, inserting({"a": other}))
        with pytest.raises(ApiError):
            apply_all(file, Replace(DATABASE, "c", "new", {"a": other}, None, MAX_BYTES))
    else:
        apply_all(file, inserting({"a": other}))


class Unbuild(msgspec.Struct):
    index: Index

    def apply(self, tx: Any) -> None:
        tx.connection.execute("DELETE FROM entries")
        tx.connection.execute("INSERT INTO index_builds VALUES (?,?,?)", (self.index.id, 1, span(1)[0]))
        text = msgspec.json.encode([msgspec.structs.replace(self.index, built=False)]).decode()
        tx.connection.execute("UPDATE collections SET indexes=?", (text,))


async def test_one_of_thirty_writers_of_the_same_value_succeeds(file: Path) -> None:
    results: list[str] = []

    async def write(n: int) -> None:
        try:
            await writer.submit(inserting({"key": f"w{n}", "a": 1000, **({"unique": ["a"]} if n % 2 else {})}))
            results.append("stored")
        except ApiError as error:
            results.append(error.code)

    async with running(file) as (writer, _):
        await until_indexed(writer, put(UNIQUE_A))
        async with trio.open_nursery() as nursery:
            for n in range(30):
                nursery.start_soon(write, n)
    assert sorted(results) == ["CONFLICT"] * 29 + ["stored"]


# --- in the server -------------------------------------------------------------------------------


async def test_indexes_are_built_while_writes_go_on(file: Path) -> None:
    large(file, 2000)
    async with running(file) as (writer, _), trio.open_nursery() as nursery:
        nursery.start_soon(keep_indexes, writer)
        await writer.submit(put(BY_A))
        n = 0
        with trio.fail_after(60):
            while not all(index.built for index in indexes(file)):
                await writer.submit(inserting({"key": f"new{n}", "a": -n}))
                n += 1
        nursery.cancel_scope.cancel()
    assert n
    assert check(file).faults == []


KILLED = """
import os, signal, sys, trio
from pathlib import Path
from paperdb_trio.store.operations import SetSchema
from paperdb_trio.store import plan
from paperdb_trio.store.housekeeping import DropSome
from paperdb_trio.store.keeper import keep_indexes
from paperdb_trio.store.sqlite.writer import Writer
from tests.store.test_indexes import BY_A, put
from tests.store.tools import inserting

async def main():
    writer = Writer(Path(sys.argv[1]), lambda changes: None)
    async with trio.open_nursery() as nursery:
        await nursery.start(writer.run)
        commits = []
        def hook():
            commits.append(1)
            if len(commits) == int(sys.argv[2]):
                os.kill(os.getpid(), signal.SIGKILL)
            return False
        writer._connection.set_commit_hook(hook)
        nursery.start_soon(keep_indexes, writer)
        for n in range(20):
            await writer.submit(put(BY_A))
            await writer.submit(inserting({"key": f"new{n}", "a": n}))
            await trio.sleep(0.001)
            await writer.submit(put(None))

trio.run(main)
"""


@pytest.mark.parametrize("commits", [2, 5, 9, 14, 20])
def test_kill_during_index_work_loses_nothing(tmp_path: Path, commits: int) -> None:
    file = new_file(tmp_path)
    large(file)
    done = subprocess.run([sys.executable, "-c", KILLED, file, str(commits)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert check(file).faults == []
    apply_all(file, put(BY_A))
    finish(file)
    assert check(file).faults == []
    assert [index.built for index in indexes(file)] == [True, True]


def test_dropped_collection_leaves_no_entries(file: Path) -> None:
    large(file)
    apply_all(file, put(BY_A))
    apply_all(file, IndexWork(rows=100))
    done = False
    while not done:
        ((_, _, done),) = apply_all(
            file, DropSome(DATABASE, "c", None if not rows(file, "SELECT 1 FROM drops") else 0)
        )
    finish(file)
    assert rows(file, "SELECT * FROM entries") == rows(file, "SELECT * FROM index_builds") == []
    assert check(file).faults == []


# --- automatic indexes ---------------------------------------------------------------------------


async def test_repeated_scans_get_an_index(file: Path) -> None:
    documents = ({"a": i, "b": i % 7, "tags": LONG_TO_SEARCH} for i in range(700))
    apply_all(file, *map(inserting, documents))
    advisor = IndexAdvisor(after=3)
    reader = Reader(file, threads=1, timeout=30, max_result_bytes=2**20, advisor=advisor)
    more: dict[str, Any] = {"limit": 10, "offset": 0, "select": None, "count": False}

    async def find_one() -> None:
        filter = '{"b": 3, "a": {"gte": 0}, "tags": {"contains": "none"}}'
        await reader.find(DATABASE, "c", filter=filter, sort="-a", **more)

    async with running(file) as (writer, _), trio.open_nursery() as nursery:
        nursery.start_soon(advisor.run, writer)
        nursery.start_soon(keep_indexes, writer)
        with trio.fail_after(60):
            while not indexes(file) or not indexes(file)[0].built:
                await find_one()
                await trio.sleep(0.01)
        assert [(index.fields, index.made) for index in indexes(file)] == [(("b", "-a"), True)]
        await find_one()
        nursery.cancel_scope.cancel()
    reader.close()
    assert check(file).faults == []


async def test_advisor_with_0_makes_no_index(file: Path) -> None:
    advisor = IndexAdvisor(after=0)
    for _ in range(100):
        advisor.wish(Wish(DATABASE, "c", ("a",)))
    async with running(file) as (writer, _), trio.open_nursery() as nursery:
        nursery.start_soon(advisor.run, writer)
        await trio.sleep(1.5)
        nursery.cancel_scope.cancel()
        assert writer.operations == 0


def made(file: Path, *fields: str, today: int) -> bool:
    (result,) = apply_all(file, MakeIndex(DATABASE, "c", fields, today))
    return bool(result)


def test_only_unused_automatic_indexes_are_removed(file: Path) -> None:
    large(file, 10)
    apply_all(file, put(BY_A))
    assert made(file, "b", today=100)
    assert made(file, "b", "a", today=100)
    assert not made(file, "b", today=100)
    assert not made(file, "a", today=100)
    (b,) = (index.id for index in indexes(file) if index.fields == ("b",))
    apply_all(file, KeepUsedIndexes(frozenset({b}), 110))
    assert len(indexes(file)) == 4
    assert apply_all(file, KeepUsedIndexes(frozenset(), 115)) == [["c: b, a"]]
    assert [index.fields for index in indexes(file)] == [("-a", "b"), ("a",), ("b",)]
    assert apply_all(file, KeepUsedIndexes(frozenset(), 125)) == [["c: b"]]
    finish(file)
    assert check(file).faults == []


def test_new_schema_keeps_automatic_indexes(file: Path) -> None:
    large(file, 10)
    assert made(file, "b", today=100)
    apply_all(file, put(BY_A))
    apply_all(file, put(None))
    assert [index.fields for index in indexes(file)] == [("b",)]


def test_index_of_long_texts_is_not_made(file: Path) -> None:
    apply_all(file, *(inserting({"short": "x", "long": "x" * 1000}) for _ in range(10)))
    assert made(file, "short", today=1)
    assert not made(file, "long", today=1)
    assert made(file, "short", "missing", today=1)


def test_automatic_indexes_are_limited(file: Path) -> None:
    large(file, 10)
    assert [made(file, f"f{n}", today=1) for n in range(20)] == [True] * MAX_MADE + [False] * 4


def test_unique_makes_and_uses_an_index(file: Path) -> None:
    apply_all(file, *(inserting({"key": str(n), "v": n, "unique": ["v"]}) for n in range(10)))
    (index,) = indexes(file)
    assert (index.fields, index.made, index.built) == (("v",), True, True)
    assert index.used > 0
    with pytest.raises(ApiError):
        apply_all(file, inserting({"v": 5.0, "unique": ["v"]}))


def test_index_that_matches_most_documents_is_not_used(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A document takes some eight times longer through an index than in a scan."""
    monkeypatch.setattr(plan, "FEW", 10)
    large(file)
    apply_all(file, MakeIndex(DATABASE, "c", ("a",), 1))
    finish(file)
    with closing(connect(file, read_only=True)) as connection:
        of = shelf(connection, DATABASE, "c")
        assert of is not None
        for low, used in ((0, False), (590, True)):
            question = ask(json.dumps({"a": {"gte": low}}), "-b")
            assert (find(connection, question, of, None, 5, 0).plan.index is not None) is used
            n, how = count(connection, question, of)
            assert (n, how.index is not None) == (600 - low, used)


def test_long_read_in_order_suggests_an_index_of_the_compared_field(file: Path) -> None:
    """If few documents match, reading in sort order takes longer than a scan."""
    large(file)
    question = ask('{"a": {"gte": 590}}', "b")
    for wanted in (("b",), ("a",)):
        with closing(connect(file, read_only=True)) as connection:
            of = shelf(connection, DATABASE, "c")
            assert of is not None
            assert plan.improvement(find(connection, question, of, None, 5, 0).plan, question) == wanted
        apply_all(file, MakeIndex(DATABASE, "c", wanted, 1))
        finish(file)


def test_index_steps_are_bounded_in_bytes(file: Path) -> None:
    """A step of 240 documents of 200 kB took 0.3 s."""
    apply_all(file, *(inserting({"a": f"{n}" + "x" * 200_000}) for n in range(60)))
    apply_all(file, put(BY_A))
    assert [index.built for index in indexes(file)] == [False, False]
    assert finish(file) > 2
    assert check(file).faults == []
    apply_all(file, put(None))
    apply_all(file, IndexWork())
    ((left,),) = rows(file, "SELECT count(*) FROM entries")
    assert 0 < left < 120
    finish(file)
    assert rows(file, "SELECT * FROM entries") == rows(file, "SELECT * FROM index_drops") == []


async def test_removed_index_is_made_again_on_new_wishes(file: Path) -> None:
    large(file, 10)
    advisor = IndexAdvisor(after=2)
    async with running(file) as (writer, _), trio.open_nursery() as nursery:
        nursery.start_soon(advisor.run, writer)
        for _ in range(2):
            for _ in range(2):
                advisor.wish(Wish(DATABASE, "c", ("b",)))
            with trio.fail_after(30):
                while not indexes(file):
                    await trio.sleep(0.05)
            await writer.submit(KeepUsedIndexes(frozenset(), 1_000_000))
        nursery.cancel_scope.cancel()
