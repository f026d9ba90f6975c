"""The filter language and sorting: each engine finds what the predicate holds for.

`paperdb_trio.store.predicate` has the semantics of `paperdb_trio.store.query`, without SQL. All run on the same
documents, with and without indexes on the fields.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cmp_to_key
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from paperdb_trio.errors import ApiError
from paperdb_trio.store.paging import edge_text, parse_edge
from paperdb_trio.store.predicate import MISSING, OPERATORS, at, number, predicate
from paperdb_trio.store.query import ask
from paperdb_trio.store.sqlite.reader import Reader
from tests.store.engines import Collection, Engine
from tests.store.tools import (
    DATABASE,
    DOCUMENTS,
    FILTERS,
    OPERANDS,
    PATHS,
    SCALARS,
    VALUES,
    apply_all,
    inserting,
)


def matches(document: dict[str, Any], filter: dict[str, Any]) -> bool:
    return predicate(filter)(document)


@st.composite
def questions(draw: st.DrawFn, operator: str) -> tuple[list[dict[str, Any]], Any]:
    """Documents and an operand from one small pool of values."""
    pool = draw(st.lists(SCALARS, min_size=1, max_size=4))
    near = st.sampled_from(pool)
    value = st.one_of(near, near, st.lists(near, max_size=2), VALUES)
    field = st.one_of(value, value, value, st.none()).map(lambda value: {"a": value})
    documents = draw(st.lists(field | st.just({}), min_size=1, max_size=6))
    if operator in ("in", "nin"):
        return documents, draw(st.lists(near, max_size=3))
    if operator in ("eq", "ne", "contains"):
        return documents, draw(near)
    texts = [item for item in pool if isinstance(item, str)]
    fitting = texts if operator == "startsWith" else texts + [item for item in pool if number(item) is not None]
    if fitting and operator != "exists":
        return documents, draw(st.sampled_from(fitting))
    return documents, draw(OPERANDS[operator])


INDEXES = st.lists(
    st.sampled_from(
        [
            *(["a"], ["-a"], ["b"], ["a", "b"], ["a", "-b"], ["-b", "a"], ["a.b"], ["it's é", "a"]),
            *(["a.b", "b"], ["a", "b", "it's é"], ["createdAt"], ["-createdAt"], ["a", "-createdAt"]),
        ]
    ),
    max_size=3,
)
"""Every plan must find the same documents, with any indexes or none."""


def found(of: Collection, filter: dict[str, Any], sort: str = "", page: int = 1000) -> list[int]:
    """The ids that are found, in pages of `page`."""
    question = ask(json.dumps(filter), sort)
    ids: list[int] = []
    edge = None
    while True:
        part = of.find(question, edge, page)
        ids += [int(json.loads(document)["_id"]) for document in part.documents]
        if not part.more:
            break
        edge = parse_edge(edge_text(sort, question, part.documents[-1], part.last), sort, question, of.shelf.id)
    assert of.count(question) == len(ids)
    return ids


@pytest.mark.parametrize("operator", OPERANDS)
@settings(max_examples=80)
@given(data=st.data(), indexes=INDEXES)
def test_each_operator_agrees_with_the_predicate(
    engine: Engine, operator: str, data: st.DataObject, indexes: list[list[str]]
) -> None:
    documents, operand = data.draw(questions(operator))
    with engine.opened(documents, indexes) as of:
        ids = found(of, {"a": {operator: operand}})
    holds = OPERATORS[operator](operand)
    assert ids == [n for n, document in enumerate(documents) if holds(at(document, ("a",)))]


@settings(max_examples=80)
@given(documents=st.lists(DOCUMENTS, min_size=1, max_size=8), filter=FILTERS, indexes=INDEXES)
@example(documents=[{"a": 2**63}, {"a": 2**63 - 1}], filter={"a": {"gt": 2**63 - 1}}, indexes=[["a"]])
@example(documents=[{"a": 2**64}, {"a": 2.0**64}], filter={"a": {"in": [2**64 + 1]}}, indexes=[["a"]])
@example(documents=[{"a": [None]}, {"a": []}, {}], filter={"a": {"contains": None}}, indexes=[])
@example(documents=[{"a": "ab"}, {"a": "%"}, {"a": "A"}], filter={"a": {"contains": "A"}}, indexes=[])
@example(documents=[{"a": "ab"}, {"a": "%"}, {"a": "A"}], filter={"a": {"contains": "%"}}, indexes=[])
@example(documents=[{"a": True}, {"a": 1}, {"a": "true"}], filter={"a": {"in": [True]}}, indexes=[["a"]])
@example(documents=[{"a": "\uffff"}, {"a": "😀"}], filter={"a": {"gt": "\uffff"}}, indexes=[["a"]])
@example(documents=[{"a": {"b": None}}, {"a": {}}], filter={"a.b": {"exists": True}}, indexes=[])
def test_sql_agrees_with_the_predicate(
    engine: Engine, documents: list[dict[str, Any]], filter: dict[str, Any], indexes: list[list[str]]
) -> None:
    with engine.opened(documents, indexes) as of:
        ids = found(of, filter)
    assert ids == [n for n, document in enumerate(documents) if matches(document, filter)]


@settings(max_examples=80)
@given(documents=st.lists(DOCUMENTS, min_size=1, max_size=4), filter=FILTERS)
def test_not_is_the_exact_complement(
    engine: Engine, documents: list[dict[str, Any]], filter: dict[str, Any]
) -> None:
    """A filter is never unknown: every document satisfies it or its negation."""
    with engine.opened(documents, []) as of:
        ids = found(of, filter) + found(of, {"not": filter})
    assert sorted(ids) == list(range(len(documents)))


LONG = ["x" * 1200 + end for end in ("", "b", "a", "a")] + ["x" * 990, "y"]
"""PostgreSQL does not hold keys of this length in order."""


@pytest.mark.parametrize("indexes", [[], [["a"]], [["-a"]], [["b", "a"]]])
def test_long_texts_are_found_and_sorted_as_short_ones(engine: Engine, indexes: list[list[str]]) -> None:
    documents = [{"a": text, "b": 1} for text in LONG]
    with engine.opened(documents, indexes) as of:
        for filter in (
            {"a": LONG[2]},
            {"a": {"in": LONG[1:3]}},
            {"a": {"gt": LONG[0], "lt": LONG[1]}},
            {"b": 1},
        ):
            expected = [n for n, document in enumerate(documents) if matches(document, filter)]
            assert found(of, filter) == expected
            for sort, page in (("a", 1), ("-a", 2), ("a,-", 3), ("-a,-", 4)):
                newest = sort.endswith(",-")
                wanted = sorted(expected, reverse=newest)
                wanted.sort(key=lambda n: LONG[n], reverse=sort.startswith("-"))
                assert found(of, filter, sort, page) == wanted, (filter, sort)


TRICKY = [
    *(0, -0.0, 0.0, 7, 7.0, 70, -7, -7.0, 7.5, 0.1, 1e-7, -1e-300, 1e6, 10**6, 1e14, 10**14, 1e15, 10**15),
    *(
        10**15 - 1,
        1e15 - 1,
        1e16,
        10**16,
        2**53,
        2.0**53,
        1e22,
        10**22,
        1e300,
        123456789.125,
        True,
        False,
        None,
    ),
    *(
        "",
        "7",
        "*",
        "?",
        "[",
        "]",
        "[7]",
        "a*b",
        "ab",
        "a[b]c",
        "\\",
        '"',
        "/",
        "\x7f",
        "\x1f",
        "\n",
        "é",
        "e\u0301",
    ),
    *("😀", "\u2028", "A", "a", "x" * 990, "x" * 1200, '"a":7', [7], {"a": 7}),
]


@pytest.mark.parametrize("name", ["a", "a*b", "a[0]", "é", "a.b"])
def test_equal_values_match_however_they_are_written(engine: Engine, name: str) -> None:
    """1, 1.0 and 1e0 are equal, whichever of them a document or a filter has."""
    documents = [{"other": 7, **at_path(name, value)} for value in TRICKY]
    with engine.opened(documents, []) as of:
        for operand in TRICKY:
            if not isinstance(operand, list | dict):
                expected = [n for n, value in enumerate(TRICKY) if OPERATORS["eq"](operand)(value)]
                assert found(of, {name: operand}) == expected, operand


def at_path(name: str, value: object) -> dict[str, Any]:
    first, _, rest = name.partition(".")
    return {first: at_path(rest, value) if rest else value}


ODD_NAMES = [
    "0",
    "$gt",
    "a b",
    "it's",
    "é",
    "😀",
    "[0]",
    "#-1",
    "*",
    "$",
    "-a",
    "select",
    "a\u2028b",
    "x" * 99,
]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_unusual_names_can_be_filtered_and_sorted_by(engine: Engine, name: str) -> None:
    documents: list[dict[str, Any]] = [{name: 2}, {name: 1}, {name: {name: 3}}, {"other": 1}, {"list": [1]}]
    with engine.opened(documents, []) as of:
        filters: list[dict[str, Any]] = [
            {name: 1},
            {f"{name}.{name}": {"gt": 2}},
            {name: {"exists": False}},
            {f"list.{name}": 1},
        ]
        for filter in filters:
            expected = [n for n, document in enumerate(documents) if matches(document, filter)]
            assert found(of, filter) == expected
        assert found(of, {}, "+" + name) == [3, 4, 1, 0, 2]


# --- sorting -------------------------------------------------------------------------------------


def sort_key(value: object) -> tuple[int, Any]:
    """First missing and null; then numbers, with false as 0 and true as 1; then strings, and the JSON of the
    rest."""
    if value is MISSING or value is None:
        return 0, 0
    if isinstance(value, bool):
        return 1, int(value)
    if isinstance(value, int | float):
        return 1, number(value)
    return 2, value.encode() if isinstance(value, str) else msgspec.json.encode(value)


def compare(one: object, two: object) -> int:
    left, right = sort_key(one), sort_key(two)
    return (left > right) - (left < right)


@settings(max_examples=80)
@given(
    documents=st.lists(DOCUMENTS, min_size=2, max_size=8),
    order=st.lists(st.tuples(st.sampled_from(["", "-", "+"]), PATHS), max_size=3),
    indexes=INDEXES,
)
@example(documents=[{"a": True}, {"a": 0.5}, {}, {"a": "0"}], order=[("-", "a")], indexes=[["a"]])
def test_sort_order_matches_the_model(
    engine: Engine, documents: list[dict[str, Any]], order: list[tuple[str, str]], indexes: list[list[str]]
) -> None:
    expected = list(range(len(documents)))
    for sign, path in reversed(order):
        key = cmp_to_key(compare)
        expected.sort(key=lambda n: key(at(documents[n], tuple(path.split(".")))), reverse=sign == "-")
    sort = ",".join(sign + path for sign, path in order)
    with engine.opened(documents, indexes) as of:
        assert found(of, {}, sort) == expected


@settings(max_examples=80)
@given(
    documents=st.lists(DOCUMENTS, min_size=2, max_size=8),
    filter=FILTERS | st.just({}),
    order=st.lists(st.tuples(st.sampled_from(["", "-"]), PATHS | st.just("createdAt")), max_size=2),
    newest=st.booleans(),
    indexes=INDEXES,
    page=st.integers(1, 3),
)
def test_pages_join_to_the_whole_result(
    engine: Engine,
    documents: list[dict[str, Any]],
    filter: dict[str, Any],
    order: list[tuple[str, str]],
    newest: bool,
    indexes: list[list[str]],
    page: int,
) -> None:
    expected = [n for n, document in enumerate(documents) if matches(document, filter)]
    expected.sort(reverse=newest)
    for sign, path in reversed(order):
        key = cmp_to_key(compare)
        if path != "createdAt":  # the same for all documents
            expected.sort(key=lambda n: key(at(documents[n], tuple(path.split(".")))), reverse=sign == "-")
    sort = ",".join([*(sign + path for sign, path in order), *(["-"] if newest else [])])
    with engine.opened(documents, indexes) as of:
        assert found(of, filter, sort, page) == expected


@settings(max_examples=80)
@given(
    documents=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 1)), min_size=1, max_size=9),
    filter=st.sampled_from([{}, {"a": 1}]),
    descending=st.booleans(),
    newest=st.booleans(),
    page=st.integers(1, 4),
)
def test_pages_in_order_of_creation_need_no_index(
    engine: Engine,
    documents: list[tuple[int, int]],
    filter: dict[str, Any],
    descending: bool,
    newest: bool,
    page: int,
) -> None:
    documents.sort(key=lambda document: document[0])
    minutes = [minute for minute, _ in documents]
    expected = [n for n, (_, a) in enumerate(documents) if a or not filter]
    expected.sort(reverse=newest)
    expected.sort(key=lambda n: minutes[n], reverse=descending)
    sort = ("-" if descending else "") + "createdAt" + (",-" if newest else "")
    with engine.opened([{"a": a} for _, a in documents], [], minutes) as of:
        assert found(of, filter, sort, page) == expected


# --- limits --------------------------------------------------------------------------------------


def nested(depth: int, inner: dict[str, Any], wrap: Callable[[Any], Any]) -> dict[str, Any]:
    for _ in range(depth - 1):
        inner = wrap(inner)
    return inner


LEGAL = {
    "in of 2000": {"x": {"in": list(range(2000))}},
    "nin of 2000": {"x": {"nin": ["a"] * 2000}},
    "or of 99": {"or": [{"x": n} for n in range(99)]},
    "or in or": nested(8, {"x": {"ne": 1}}, lambda inner: {"or": [{"y": 1}, inner]}),
    "not of not": nested(8, {"x": {"contains": "a"}}, lambda inner: {"not": inner}),
    "not in and": nested(
        4, {"x": {"nin": [1, "a", None]}}, lambda inner: {"and": [{"y": None}, {"not": inner}]}
    ),
    "a field named or": {"or": {"exists": False}, "and": {"exists": False}},
}
TOO_MUCH = {
    "in of 2001": {"x": {"in": list(range(2001))}},
    "or of 1500 empty filters": {"or": [{}] * 1500},
    "and of 1500 empty filters": {"and": [{}] * 1500},
    "201 fields": {f"f{n}": 1 for n in range(201)},
    "not 60 deep": nested(60, {"x": 1}, lambda inner: {"not": inner}),
}


async def answer(file: Path, filter: dict[str, Any]) -> int:
    """The number of documents that the filter finds, or the status of its refusal."""
    reader = Reader(file, threads=1, timeout=10, max_result_bytes=2**20)
    try:
        return await reader.count(DATABASE, "c", json.dumps(filter))
    except ApiError as error:
        return error.status
    finally:
        reader.close()


@pytest.fixture
def one_document(file: Path) -> Path:
    apply_all(file, inserting({"x": 1}))
    return file


@pytest.mark.parametrize("filter", LEGAL.values(), ids=LEGAL)
async def test_filter_within_the_limits_is_accepted(one_document: Path, filter: dict[str, Any]) -> None:
    assert await answer(one_document, filter) == int(matches({"x": 1}, filter))


@pytest.mark.parametrize("filter", TOO_MUCH.values(), ids=TOO_MUCH)
async def test_filter_beyond_the_limits_is_refused_before_sqlite_sees_it(
    one_document: Path, filter: dict[str, Any]
) -> None:
    assert await answer(one_document, filter) == 400


@pytest.mark.parametrize("wrap", ["not", "or", "and"])
@pytest.mark.parametrize("operator", OPERANDS)
async def test_deep_filters_never_cause_an_sqlite_error(one_document: Path, operator: str, wrap: str) -> None:
    """SQLite's parser has a limited stack. At each depth the result is right, or the filter is refused with a
    400."""
    operand: Any = {"in": [1, "a", None], "nin": [1, "a", None], "exists": True}.get(operator, "a")
    answers = []
    for depth in range(1, 20):
        leaf = {"x": {operator: operand}}
        filter = nested(
            depth, leaf, lambda inner: {wrap: inner if wrap == "not" else [{"y": 1, **inner}, inner][-1:]}
        )
        found = await answer(one_document, filter)
        assert found in (int(matches({"x": 1}, filter)), 400)
        answers.append(found)
    assert 400 not in answers[:8]
    assert answers[-1] == 400


@pytest.mark.parametrize("name", ["or", "and"])
def test_or_and_and_with_a_condition_are_field_names(engine: Engine, name: str) -> None:
    with engine.opened([{name: 1}, {name: 2}], []) as of:
        assert found(of, {name: {"gte": 2}}) == [1]
