"""Queries: what is written differently and means the same is the same query, and means what was written."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from paperdb_trio.errors import ApiError
from paperdb_trio.json_input import decode
from paperdb_trio.match.canonical import canonical
from paperdb_trio.match.query import Query, conjunction, query
from paperdb_trio.model import Document, encode
from paperdb_trio.store.predicate import predicate
from paperdb_trio.store.projection import parse_select, project
from paperdb_trio.store.query import ask
from tests.match.tools import whole
from tests.store.tools import DOCUMENTS, FILTERS, PATHS


def depth(filter: dict[str, Any]) -> int:
    inner = [0]
    for name, condition in filter.items():
        inner += map(depth, condition if isinstance(condition, list) else [condition] if name == "not" else [])
    return 1 + max(inner)


def rewritten(filter: dict[str, Any], at: random.Random) -> dict[str, Any]:
    """The same filter in other words."""
    items: list[dict[str, Any]] = []
    for name, condition in filter.items():
        if isinstance(condition, list):
            parts = [rewritten(part, at) for part in condition]
            if parts:
                parts += at.choices(parts, k=at.randrange(2))
            at.shuffle(parts)
            items.append({name: parts})
        elif name == "not":
            items.append({name: rewritten(condition, at)})
        else:
            items += [{name: {op: operand_rewritten(op, operand, at)}} for op, operand in condition.items()]
            (operator,) = items[-1][name]
            if operator == "eq" and at.random() < 0.5:
                items[-1] = {name: items[-1][name]["eq"]}
    items += at.choices(items, k=at.randrange(2)) if items else []
    at.shuffle(items)
    match at.randrange(3):
        case 0:
            return {"and": items}
        case 1:
            return {"or": [{"and": [{"and": items}, {}]}]}
        case _:
            return {"and": [{"and": items[:1]}, {"and": items[1:]}]}


def operand_rewritten(operator: str, operand: Any, at: random.Random) -> Any:
    if isinstance(operand, list):
        values = [operand_rewritten("eq", value, at) for value in operand]
        values += at.choices(values, k=1) if values else []
        at.shuffle(values)
        return values
    if type(operand) is int and operand == float(operand) and operator != "exists":
        return float(operand)
    return operand


@settings(max_examples=150)
@given(documents=st.lists(DOCUMENTS, min_size=1, max_size=8), filter=FILTERS)
@example(documents=[{"a": 2**63}, {"a": 2**63 - 1}], filter={"a": {"gt": 2**63 - 1}})
@example(documents=[{"a": -1}, {}], filter={"not": {"and": [{"a": {"ne": -1}}, {"a": {"gt": -0.0}}]}})
def test_the_canonical_form_means_the_same(documents: list[Document], filter: dict[str, Any]) -> None:
    form = canonical(filter)
    found, expected = predicate(form), predicate(filter)
    assert [found(document) for document in documents] == [expected(document) for document in documents]
    assert canonical(form) == form
    assert depth(form) <= depth(filter)
    ask(json.dumps(form))


@settings(max_examples=150)
@given(filter=FILTERS, seed=st.integers(0, 2**32))
@example(filter={"or": [{"and": {"exists": True}, "or": {"exists": True}}]}, seed=1)
def test_other_words_are_the_same_query(filter: dict[str, Any], seed: int) -> None:
    words = rewritten(filter, random.Random(seed))
    one, other = Query("c", canonical(filter), None), Query("c", canonical(words), None)
    assert one == other
    assert hash(one) == hash(other)
    assert one.id == other.id


SAME: list[tuple[Any, Any]] = [
    (None, {}),
    ({"a": 1}, {"a": {"eq": 1.0}}),
    ({"a": 0}, {"a": -0.0}),
    ({"a": 2**64}, {"a": 2.0**64}),
    ({"a": {"in": [2, 1.0, 1]}}, {"a": {"in": [1, 2]}}),
    ({"a": {"in": [1]}}, {"a": 1}),
    ({"a": {"nin": [1]}}, {"not": {"a": 1}}),
    ({"a": {"nin": []}}, {}),
    ({"a": {"in": []}}, {"or": []}),
    ({"not": {"not": {"a": {"gt": 1}}}}, {"a": {"gt": 1}}),
    ({"not": {}}, {"or": []}),
    ({"or": [{"a": 1}, {}]}, {}),
    ({"a": 1, "or": []}, {"b": 2, "and": [{"or": []}]}),
    ({"or": [{"a": 1}, {"or": [{"b": 1}, {"a": 1}]}]}, {"or": [{"b": 1}, {"a": 1}]}),
    ({"a": {"gt": 1, "lt": 3}}, {"and": [{"a": {"lt": 3}}, {"a": {"gt": 1}}]}),
    ({"a": {"exists": False}}, {"not": {"a": {"exists": True}}}),
]
DIFFERENT: list[tuple[Any, Any]] = [
    ({"a": 1}, {"a": True}),
    ({"a": 1}, {"a": "1"}),
    ({"a": None}, {"a": {"exists": False}}),
    ({"a": 2**53}, {"a": 2**53 + 1}),
    ({"a": {"contains": 1}}, {"a": {"contains": True}}),
    ({"a": {"gt": 1}}, {"a": {"gte": 1}}),
    ({"not": {"a": {"gt": 1}}}, {"a": {"lte": 1}}),  # a missing field
    ({"or": {"exists": True}}, {"or": []}),
    ({"a.b": 1}, {"a": 1}),
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_same(one: Any, other: Any) -> None:
    assert query("c", one) == query("c", other)
    assert query("c", one).id == query("c", other).id


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_different(one: Any, other: Any) -> None:
    assert query("c", one) != query("c", other)
    assert query("c", one).id != query("c", other).id


def test_the_collection_and_the_select_are_part_of_a_query() -> None:
    ids = {query(name, {"a": 1}, select).id for name in "cd" for select in (None, [], ["a"], ["a", "b"])}
    assert len(ids) == 8
    assert query("c", {}, ["b", "a", "b", "_id"]) == query("c", {}, ["a", "b"])
    assert len(query("c", {}).id) == 16


def test_a_query_does_not_follow_the_filter_that_it_was_made_of() -> None:
    filter: dict[str, Any] = {"a": {"in": [1, 2]}}
    made = query("c", filter)
    filter["a"]["in"].append(3)
    made.filter["a"]["in"].append(3)
    assert not made.matches({"a": 3})
    assert made.filter == {"a": {"in": [1, 2]}}


@pytest.mark.parametrize(
    ("filter", "code"),
    [
        ([], "INVALID_FILTER"),
        ({"a": {"in": 1}}, "INVALID_FILTER"),
        ({"a": {"in": [{"b": 1}]}}, "INVALID_FILTER"),
        ({"a": {"gt": None}}, "INVALID_FILTER"),
        ({"a": []}, "INVALID_FILTER"),
        ({"a": {}}, "INVALID_FILTER"),
        ({"or": {"a": 1}, "and": 5}, "UNKNOWN_OPERATOR"),
        ({"a": {"like": "x"}}, "UNKNOWN_OPERATOR"),
        ({"a..b": 1}, "INVALID_FIELD"),
        ({"a": "\0"}, "INVALID_JSON"),
        ({"a": "\ud800"}, "INVALID_JSON"),
        ({"a": 10**400}, "INVALID_JSON"),
        ({"a": {1, object()}}, "INVALID_JSON"),
        ({f"f{n}": 1 for n in range(201)}, "INVALID_FILTER"),
    ],
)
def test_a_bad_filter_is_refused_as_rest_refuses_it(filter: Any, code: str) -> None:
    with pytest.raises(ApiError) as refused:
        query("c", filter)
    assert (refused.value.status, refused.value.code) == (400, code)


@pytest.mark.parametrize(
    ("select", "code"),
    [(["a..b"], "INVALID_FIELD"), ([1], "INVALID_FIELD"), ([f"f{n}" for n in range(201)], "INVALID_REQUEST")],
)
def test_a_bad_select_is_refused(select: Any, code: str) -> None:
    with pytest.raises(ApiError) as refused:
        query("c", {}, select)
    assert (refused.value.status, refused.value.code) == (400, code)


# --- views ---------------------------------------------------------------------------------------


SELECTS = st.none() | st.lists(PATHS, max_size=3)


@settings(max_examples=60)
@given(fields=DOCUMENTS, select=SELECTS)
def test_a_view_is_what_find_would_select(fields: Document, select: list[str] | None) -> None:
    made = query("c", {}, select)
    document = whole(fields)
    shown = made.view(b"as it is", document)
    if select is None:
        assert shown == b"as it is"
    else:
        assert made.select is not None
        assert shown == project(encode(document), parse_select(",".join(made.select)))
        assert decode(shown) == decode(project(encode(document), parse_select(",".join(["_id", *select]))))


def leaves(value: Any, path: tuple[str, ...] = ()) -> set[tuple[tuple[str, ...], bytes]]:
    """All values that are not objects, with their paths. An empty object counts, too."""
    if isinstance(value, dict) and value:
        return {leaf for name, inner in value.items() for leaf in leaves(inner, (*path, name))}
    return {(path, encode(value))}


@settings(max_examples=100)
@given(
    documents=st.lists(DOCUMENTS, min_size=1, max_size=4), filters=st.tuples(FILTERS, FILTERS), data=st.data()
)
def test_a_conjunction_shows_what_both_show(
    documents: list[Document], filters: tuple[dict[str, Any], dict[str, Any]], data: st.DataObject
) -> None:
    one, other = (query("c", filter, data.draw(SELECTS)) for filter in filters)
    both = conjunction(one, other)
    assert both == conjunction(other, one)
    for document in map(whole, documents):
        assert both.matches(document) == (one.matches(document) and other.matches(document))
        text = encode(document)
        views = [leaves(decode(each.view(text, document))) for each in (one, other)]
        assert leaves(decode(both.view(text, document))) == views[0] & views[1]


def test_a_conjunction_of_selects_keeps_the_narrower_path() -> None:
    both = conjunction(query("c", {}, ["address", "name"]), query("c", {}, ["address.city", "age"]))
    assert both.select == ("_id", "address.city")


def test_a_conjunction_beyond_the_limits_is_refused() -> None:
    one, other = (query("c", {f"{name}{n}": 1 for n in range(150)}) for name in "ab")
    with pytest.raises(ApiError) as refused:
        conjunction(one, other)
    assert refused.value.code == "INVALID_FILTER"
