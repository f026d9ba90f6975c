"""Write operations, compared with models: merging, increments, counters, dropping in steps, trimming."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paperdb_trio.errors import ApiError
from paperdb_trio.store.administration import CreateDatabase
from paperdb_trio.store.document_schema import parse_schema
from paperdb_trio.store.housekeeping import STEP_BYTES, DropSome, Trim
from paperdb_trio.store.indexes import stored_indexes
from paperdb_trio.store.operations import (
    EVERY_TAG,
    Condition,
    Delete,
    Draft,
    Insert,
    InsertBulk,
    Patch,
    Replace,
    SetSchema,
    Written,
)
from paperdb_trio.store.sqlite import admin
from paperdb_trio.store.sqlite.transaction import Transaction
from tests.store.tools import (
    DATABASE,
    DOCUMENTS,
    MAX_BYTES,
    NAMES,
    NUMBERS,
    SCALARS,
    VALUES,
    apply_all,
    exactly,
    insert,
    inserting,
    rows,
    scratch,
    without_system_fields,
)


def patch(tx: Transaction, fields: dict[str, Any], id: str = "a") -> Written:
    return Patch(DATABASE, "c", id, fields, None, MAX_BYTES).apply(tx)


# --- PATCH against a dict ------------------------------------------------------------------------

STEPS = st.builds(
    lambda operator, by: {operator: by}, st.sampled_from(["increment", "decrement"]), NUMBERS | SCALARS
)


class Refused(Exception):
    pass


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def merged(document: dict[str, Any], fields: dict[str, Any]) -> dict[str, Any]:
    result = dict(document)
    for name, value in fields.items():
        if isinstance(value, dict) and list(value) in (["increment"], ["decrement"]):
            current, by = document.get(name, 0), next(iter(value.values()))
            if not is_number(current) or not is_number(by):
                raise Refused
            value = current + by if "increment" in value else current - by
            if not -(2**1024) < value < 2**1024:
                raise Refused
        result[name] = value
    return result


@settings(max_examples=400)
@given(
    document=DOCUMENTS,
    patches=st.lists(st.dictionaries(NAMES, VALUES | STEPS, max_size=3), min_size=1, max_size=4),
)
def test_patch_merges_like_a_dict(
    shared_file: Path, document: dict[str, Any], patches: list[dict[str, Any]]
) -> None:
    with scratch(shared_file) as tx:
        insert(tx, {"key": "a", **document})
        for fields in patches:
            try:
                document = merged(document, fields)
            except Refused:
                with pytest.raises(ApiError) as refused:
                    patch(tx, fields)
                assert (refused.value.status, refused.value.code) == (400, "INVALID_INCREMENT")
            else:
                assert exactly(without_system_fields(patch(tx, fields).data)) == exactly(document)
        (stored,) = tx.connection.execute("SELECT json(data) FROM documents").fetchone()
        assert exactly(without_system_fields(stored)) == exactly(document)


@settings(max_examples=200)
@given(document=DOCUMENTS, id=st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=128))
def test_stored_document_equals_the_given_one(shared_file: Path, document: dict[str, Any], id: str) -> None:
    with scratch(shared_file) as tx:
        written = insert(tx, {"_id": id, **document})
        stored = tx.connection.execute("SELECT id, json(data) FROM documents").fetchall()
    assert [stored_id for stored_id, _ in stored] == [id]
    assert exactly(without_system_fields(stored[0][1])) == exactly(document)
    assert written.data.decode() == stored[0][1]
    assert "\n" not in stored[0][1]  # the change log separates its events by newlines


# --- a collection against a dict -----------------------------------------------------------------

IDS = st.sampled_from("abcd")
WRITES = st.one_of(
    st.tuples(st.just("insert"), IDS),
    st.tuples(st.just("patch"), IDS),
    st.tuples(st.just("replace"), IDS),
    st.tuples(st.just("delete"), IDS),
    st.tuples(st.just("bulk"), st.lists(IDS, max_size=3)),
    st.tuples(st.just("atomic"), st.lists(IDS, max_size=3)),
    st.tuples(st.just("drop"), st.none()),
)


def operation(kind: str, ids: Any, n: int) -> Any:
    if kind in ("bulk", "atomic"):
        drafts: list[Draft | ApiError] = [Draft.parse({"key": id, "n": n}) for id in ids]
        return InsertBulk(DATABASE, "c", drafts, MAX_BYTES, 10 * MAX_BYTES, kind == "atomic")
    makes: dict[str, Callable[[], Any]] = {
        "insert": lambda: inserting({"key": ids, "n": n}),
        "patch": lambda: Patch(DATABASE, "c", ids, {"n": n}, None, MAX_BYTES),
        "replace": lambda: Replace(DATABASE, "c", ids, {"n": n}, None, MAX_BYTES),
        "delete": lambda: Delete(DATABASE, "c", ids, None),
        "drop": lambda: DropSome(DATABASE, "c", None),
    }
    return makes[kind]()


def expected(kind: str, ids: Any, there: dict[str, int], n: int) -> list[tuple[str, str]] | None:
    """Change `there` as the write should. Returns its changes in order, or None if it must be refused."""
    if kind == "drop":
        changes = [("delete", id) for id in there]
        there.clear()
        return changes
    if kind in ("bulk", "atomic"):
        fresh = [id for place, id in enumerate(ids) if id not in there and id not in ids[:place]]
        if kind == "atomic" and len(fresh) < len(ids):
            return None
        there.update(dict.fromkeys(fresh, n))
        return [("insert", id) for id in fresh]
    exists = ids in there
    if exists is (kind == "insert") and kind != "replace":
        return None
    if kind == "delete":
        del there[ids]
        return [("delete", ids)]
    there[ids] = n
    return [("update" if exists else "insert", ids)]


@settings(max_examples=150)
@given(writes=st.lists(WRITES, max_size=12), schema=st.booleans())
def test_documents_changes_and_counters_match_the_model(
    shared_file: Path, writes: list[tuple[str, Any]], schema: bool
) -> None:
    there: dict[str, int] = {}
    log: list[tuple[str, str]] = []
    exists = False  # the collection
    with scratch(shared_file) as tx:
        if schema:
            SetSchema(DATABASE, "c", parse_schema({"properties": {"n": {"index": True}}})).apply(tx)
            exists = True
        for n, (kind, ids) in enumerate(writes):
            if kind == "drop" and not exists:
                with pytest.raises(ApiError):
                    operation(kind, ids, n).apply(tx)
                continue
            changes = expected(kind, ids, there, n)
            try:
                operation(kind, ids, n).apply(tx)
            except ApiError:
                assert changes is None
            else:
                assert changes is not None
                log += changes
                exists = kind != "drop" and (exists or bool(changes))
        tx.flush()
        query = tx.connection.execute
        stored = {id: json.loads(data)["n"] for id, data in query("SELECT id, json(data) FROM documents")}
        assert stored == there
        assert [(c.type, json.loads(c.data)["_id"]) for c in tx.changes] == log
        assert [c.seq for c in tx.changes] == list(range(1, len(log) + 1))
        assert query("SELECT count(*) FROM changes").fetchone() == (len(log),)
        assert query("SELECT head FROM databases WHERE id=?", (DATABASE,)).fetchone() == (len(log),)
        assert query("SELECT documents FROM collections").fetchall() == ([(len(there),)] if exists else [])
        left = query("SELECT count(*) FROM sqlite_master WHERE name LIKE 'schema%index%'").fetchone()
        assert exists or left == (0,)


# --- dropping in steps ---------------------------------------------------------------------------


def test_drop_in_steps_keeps_documents_inserted_meanwhile(file: Path) -> None:
    apply_all(file, *(inserting({"key": str(n)}) for n in range(25)))
    steps = []
    (step,) = apply_all(file, DropSome(DATABASE, "c", None, limit=10))
    until = step[1]
    while not step[2]:
        steps.append(step[0])
        apply_all(file, inserting({"key": f"later{len(steps)}"}))
        if len(steps) == 1:  # a document that is changed meanwhile is dropped all the same
            apply_all(file, Patch(DATABASE, "c", "24", {"n": 1}, None, MAX_BYTES))
        (step,) = apply_all(file, DropSome(DATABASE, "c", until, limit=10))
    assert [*steps, step[0]] == [10, 10, 5]
    assert sorted(rows(file, "SELECT id FROM documents")) == [("later1",), ("later2",)]
    assert rows(file, "SELECT name, documents FROM collections") == [("c", 2)]


def test_drop_that_ends_exactly_at_a_step_removes_the_collection(file: Path) -> None:
    apply_all(file, *(inserting({}) for _ in range(10)))
    (first,) = apply_all(file, DropSome(DATABASE, "c", None, limit=10))
    assert first[0] == 10
    if not first[2]:
        (second,) = apply_all(file, DropSome(DATABASE, "c", first[1], limit=10))
        assert second[::2] == (0, True)
    assert rows(file, "SELECT * FROM collections") == []


def insert_seven_of_a_third_of_a_step(file: Path) -> None:
    drafts = [Draft.parse({"pad": "x" * (STEP_BYTES // 3)}) for _ in range(7)]
    apply_all(file, *(Insert(DATABASE, "c", draft, STEP_BYTES) for draft in drafts))


def test_large_documents_are_dropped_in_more_steps(file: Path) -> None:
    insert_seven_of_a_third_of_a_step(file)
    steps, until, done = [], None, False
    while not done:
        ((count, until, done),) = apply_all(file, DropSome(DATABASE, "c", until))
        steps.append(count)
    assert [count for count in steps if count] == [3, 3, 1]
    assert rows(file, "SELECT * FROM collections") == []


def test_drop_removes_the_indexes_of_unique_fields(file: Path) -> None:
    schema = parse_schema({"properties": {"s": {"unique": True}, "i": {"index": True}}})
    apply_all(file, SetSchema(DATABASE, "c", schema), inserting({"v": 1, "unique": ["v"]}))
    apply_all(file, inserting({"v": 2, "unique": ["v"]}), inserting({"v": 1, "unique": ["v"]}, "other"))
    apply_all(file, inserting({"v": 2, "unique": ["v"]}, "other"))
    assert rows(file, "SELECT count(DISTINCT index_id), count(*) FROM entries") == [(4, 8)]
    apply_all(file, DropSome(DATABASE, "c", None))
    assert rows(file, "SELECT count(DISTINCT index_id), count(*) FROM entries") == [(1, 2)]
    with pytest.raises(ApiError):
        apply_all(file, inserting({"v": 2, "unique": ["v"]}, "other"))


@pytest.mark.parametrize(("keep", "left"), [(0, []), (1, [9]), (4, [6, 7, 8, 9]), (100, list(range(10)))])
def test_trimming_keeps_the_newest_changes(file: Path, keep: int, left: list[int]) -> None:
    apply_all(file, *(inserting({"n": n}) for n in range(10)))
    removed: list[int] = []
    while not removed or removed[-1]:
        ((trimmed, count),) = apply_all(file, Trim(DATABASE, 0, keep, limit=3))
        removed.append(count)
    assert max(removed) <= 3
    assert trimmed == sum(removed) == 10 - len(left)
    assert [json.loads(data)["n"] for (data,) in rows(file, "SELECT data FROM changes")] == left
    assert rows(file, "SELECT count(*) FROM documents") == [(10,)]


def test_large_changes_are_trimmed_in_more_steps(file: Path) -> None:
    insert_seven_of_a_third_of_a_step(file)
    steps = [apply_all(file, Trim(DATABASE, 0, 0))[0] for _ in range(4)]
    assert steps == [(3, 3), (6, 3), (7, 1), (7, 0)]


def test_trimming_by_age_removes_only_old_changes(file: Path) -> None:
    apply_all(file, *(inserting({}) for _ in range(5)))
    old = rows(file, "SELECT max(at) FROM changes")[0][0] / 1000
    assert apply_all(file, Trim(DATABASE, old, 100)) == [(0, 0)]
    assert apply_all(file, Trim(DATABASE, old + 1, 0)) == [(5, 5)]
    (written,) = apply_all(file, inserting({}))
    assert written.seq == 6  # seqs are never reused


def test_trimming_leaves_other_databases_alone(file: Path) -> None:
    admin.apply(file, CreateDatabase("test", "other", "pro"))
    apply_all(file, inserting({}), Replace(2, "c", "a", {}, None, MAX_BYTES))
    assert apply_all(file, Trim(DATABASE, 0, 0)) == [(1, 1)]
    assert rows(file, "SELECT trimmed FROM databases ORDER BY id") == [(1,), (0,)]
    assert rows(file, "SELECT count(*) FROM changes") == [(1,)]


# --- bulks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("atomic", [False, True])
def test_bulk_too_large_with_defaults_fails_for_the_excess(file: Path, atomic: bool) -> None:
    schema = parse_schema({"properties": {"pad": {"default": "x" * 10_000}}})
    apply_all(file, SetSchema(DATABASE, "c", schema))
    drafts: list[Draft | ApiError] = [Draft.parse({"n": n}) for n in range(20)]
    bulk = InsertBulk(DATABASE, "c", drafts, MAX_BYTES, 50_000, atomic)
    if atomic:
        with pytest.raises(ApiError) as refused:
            apply_all(file, bulk)
        assert (refused.value.status, refused.value.code) == (413, "BODY_TOO_LARGE")
        assert rows(file, "SELECT count(*) FROM documents") == [(0,)]
    else:
        ((documents, failures),) = apply_all(file, bulk)
        assert [failure.index for failure in failures] == list(range(len(documents), 20))
        assert 50_000 < sum(map(len, documents)) < 70_000
        assert {failure.error.code for failure in failures} == {"BODY_TOO_LARGE"}
        assert rows(file, "SELECT count(*) FROM documents") == [(len(documents),)]


@pytest.mark.parametrize("default", [[], {}, [1]])
def test_default_that_cannot_be_unique_is_refused_like_a_value(file: Path, default: object) -> None:
    schema = parse_schema({"properties": {"tags": {"default": default}}})
    apply_all(file, SetSchema(DATABASE, "c", schema))
    with pytest.raises(ApiError) as refused:
        apply_all(file, inserting({"unique": ["tags"]}))
    assert refused.value.code == "INVALID_UNIQUE"


def test_indexes_shared_with_a_new_schema_are_not_rebuilt(file: Path) -> None:
    def put(*names: str) -> dict[str, int]:
        properties = {name: {"unique": name == "u", "index": True} for name in names}
        apply_all(file, SetSchema(DATABASE, "c", parse_schema({"properties": properties})))
        ((text,),) = rows(file, "SELECT indexes FROM collections")
        return {index.fields[0]: index.id for index in stored_indexes(text).all}

    apply_all(file, inserting({"u": 1, "i": 1, "j": 1}))
    first, second = put("u", "i"), put("j", "u")
    assert (set(first), set(second)) == ({"u", "i"}, {"j", "u"})
    assert first["u"] == second["u"]
    with pytest.raises(ApiError):
        apply_all(file, inserting({"u": 1}))


# --- conditions ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("condition", "seq", "holds"),
    [
        (Condition(frozenset({5})), 5, True),
        (Condition(frozenset({4, 5})), 5, True),
        (Condition(frozenset({4})), 5, False),
        (Condition(frozenset()), 5, False),
        (Condition(EVERY_TAG), 5, True),
        (Condition(EVERY_TAG), None, False),
        (Condition(frozenset({5})), None, False),
        (Condition(none_match=EVERY_TAG), 5, False),
        (Condition(none_match=EVERY_TAG), None, True),
        (Condition(none_match=frozenset({4})), 5, True),
        (Condition(none_match=frozenset({4, 5})), 5, False),
        (Condition(frozenset({5}), frozenset({5})), 5, False),
    ],
)
def test_condition_holds_for_its_seqs_only(
    shared_file: Path, condition: Condition, seq: int | None, holds: bool
) -> None:
    found = None if seq is None else (1, seq, b"")
    with scratch(shared_file) as tx:
        if holds:
            condition.check(tx, found)
        else:
            with pytest.raises(ApiError) as refused:
                condition.check(tx, found)
            assert refused.value.status == 412
