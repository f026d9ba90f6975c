"""The matcher finds every query that a change concerns, hardly any other, and what the change is to each."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paperdb_trio.errors import ApiError
from paperdb_trio.match.change import BeforeUnknown, Judged, event_of
from paperdb_trio.match.index import MAX_NULL_PATHS, _Ranges
from paperdb_trio.match.matcher import Matcher
from paperdb_trio.match.query import Query, query
from paperdb_trio.model import Change, Document, encode
from tests.match.tools import change, judged, sides, whole
from tests.store.tools import FILTERS, PATHS, exactly

MANY = 1000


def matches(made: Query, document: Document | None) -> bool:
    return document is not None and made.matches(document)


def concerned(queries: set[Query], before: Document | None, after: Document | None) -> set[Query]:
    return {each for each in queries if matches(each, before) or matches(each, after)}


@settings(max_examples=100)
@given(
    filters=st.lists(FILTERS | st.just({}), min_size=1, max_size=8),
    removed=st.sets(st.integers(0, 7)),
    changes=st.lists(sides(), min_size=1, max_size=4),
)
def test_candidates_include_every_query_that_matches_before_or_after(
    filters: list[dict[str, Any]],
    removed: set[int],
    changes: list[tuple[Document | None, Document | None]],
) -> None:
    matcher = Matcher(MANY)
    made = [query("c", filter) for filter in filters]
    for each in made:
        matcher.add(each)
    for n in removed & set(range(len(made))):
        matcher.remove(made[n])
    queries = set(made) - {made[n] for n in removed if n < len(made)}
    for before, after in changes:
        found = matcher.candidates("c", judged(before, after))
        assert len(found) == len(set(found))
        assert concerned(queries, before, after) <= set(found) <= queries
        assert matcher.candidates("d", judged(before, after)) == []
    for each in queries:
        matcher.remove(each)
    assert matcher.residual == 0
    assert not matcher._collections


VALUES = [0, 1, 2.0, "", "a", "ab", True, None, [1], ["a", None], {"b": 1}, {"b": "ab"}, {"b": None}]
CONDITIONS: list[dict[str, Any]] = [
    *({"eq": 1}, {"eq": "a"}, {"eq": None}, {"eq": True}, {"ne": 1}, {"in": [0, "ab"]}, {"in": [None, 1]}),
    *({"gt": 0}, {"lte": 1}, {"gte": 0, "lt": 2}, {"gt": "a"}, {"gte": "", "lt": "ab"}),
    *({"startsWith": "a"}, {"contains": "a"}, {"contains": 1}, {"exists": True}, {"exists": False}),
]


def test_every_condition_with_every_change_of_a_value() -> None:
    leaves = [{path: condition} for path in ("a", "a.b") for condition in CONDITIONS]
    pairs = [random.Random(n).sample(leaves, 2) for n in range(150)]
    filters: list[dict[str, Any]] = [
        *leaves,
        *({"and": pair} for pair in pairs),
        *({"or": pair} for pair in pairs),
    ]
    queries = {query("c", filter) for filter in filters}
    matcher = Matcher(MANY)
    for each in queries:
        matcher.add(each)
    documents = [whole({}), *(whole({"a": value}) for value in VALUES)]
    holding = [{each for each in queries if each.matches(document)} for document in documents]
    for n, before in enumerate(documents):
        assert holding[n] <= set(matcher.candidates("c", judged(None, before)))
        for m, after in enumerate(documents):
            found = matcher.candidates("c", judged(before, after))
            assert holding[n] | holding[m] <= set(found)
            assert len(found) == len(set(found))


def shape(at: random.Random, n: int) -> dict[str, Any]:
    """One of the filters that applications have."""
    kind = f"k{at.randrange(3)}"
    return at.choice(
        [
            {"room": f"r{n}"},
            {"room": {"in": [f"r{n}", f"r{n + 1}"]}},
            {"total": {"gte": n, "lt": n + at.choice([1, 10, 1000])}},
            {"total": {"gt": n * 1.5}},
            {"createdAt": {"gte": f"2026-11-{n % 30:02d}T", "lt": f"2026-11-{n % 30 + 1:02d}T"}},
            {"name": {"startsWith": f"n{n}"}},
            {"tags": {"contains": f"t{n}"}},
            {"kind": kind, "owner": f"o{n}"},
            {"or": [{"kind": kind, "owner": f"o{n}"}, {"public": True}]},
            {"owner": None, "kind": kind},
            {"owner": {"ne": f"o{n}"}},
            {"members." + f"u{n}": {"exists": True}},
            {"kind": kind, "not": {"owner": f"o{n}"}, "total": {"lte": n}},
        ]
    )


def order(at: random.Random) -> Document:
    n = at.randrange(300)
    some: Document = {
        "room": f"r{n}",
        "total": at.choice([n, n + 0.5, str(n)]),
        "name": at.choice([f"n{n}", f"n{n}xyz"]),
        "tags": at.choice([[f"t{n}", f"t{n + 1}"], f"all t{n} here"]),
        "kind": f"k{n % 3}",
        "owner": at.choice([f"o{n}", None]),
        "public": at.random() < 0.1,
        "members": {f"u{n}": 1, f"u{n + 7}": None},
    }
    kept = {name: value for name, value in some.items() if at.random() < 0.8}
    return whole(kept) | {"createdAt": f"2026-11-{n % 30:02d}T12:00:00.000Z"}


@pytest.mark.parametrize("seed", range(5))
def test_candidates_while_many_queries_come_and_go(seed: int) -> None:
    at = random.Random(seed)
    matcher = Matcher(MANY)
    queries: dict[Query, None] = {}
    documents: list[Document] = []
    wrong = right = 0
    for n in range(1500):
        added = query("orders", shape(at, n % 300))
        matcher.add(added)
        queries[added] = None
        if at.random() < 0.6:
            gone = at.choice(list(queries))
            del queries[gone]
            matcher.remove(gone)
        documents.append(order(at))
        if n % 10 == 0:
            before, after = at.sample([None, *documents[-20:]], 2) if n else (None, documents[0])
            found = set(matcher.candidates("orders", judged(before, after)))
            true = concerned(set(queries), before, after)
            assert true <= found <= queries.keys()
            right += len(true)
            wrong += len(found - true)
    assert matcher.residual == sum(each.filter.keys() == {"owner"} for each in queries)
    assert wrong < right, "the index tells little"
    for each in queries:
        matcher.remove(each)
    assert not matcher._collections


FOUND: list[tuple[dict[str, Any], Document, Document]] = [
    ({"a": 1}, {"a": 1.0}, {"a": True}),
    ({"a": True}, {"a": True}, {"a": 1}),
    ({"a": "x"}, {"a": "x"}, {"a": ["x"]}),
    ({"a": None}, {}, {"a": 0}),
    ({"a.b": None}, {"a": []}, {"a": {"b": 1}}),
    ({"a": {"exists": True}}, {"a": None}, {"b": 1}),
    ({"a": {"exists": False}}, {"b": 1}, {"a": 1}),
    ({"a": {"in": [1, None]}}, {"b": 1}, {"a": 2}),
    ({"a": {"contains": 1}}, {"a": [0, 1]}, {"a": [[1], True, "1"]}),
    ({"a": {"contains": None}}, {"a": [None]}, {"a": []}),
    ({"a": {"contains": "needle"}}, {"a": "a needle"}, {"a": "need le"}),
    ({"a": {"contains": "needle"}}, {"a": ["needle"]}, {"a": ["needles"]}),
    ({"a": {"contains": ""}}, {"a": ""}, {"a": ["x"]}),
    ({"a": {"startsWith": "ab"}}, {"a": "abc"}, {"a": "ac"}),
    ({"a": {"startsWith": "é" * 40}}, {"a": "é" * 41}, {"a": "f"}),
    ({"a": {"gt": 1}}, {"a": 2**70}, {"a": 0.5}),
    ({"a": {"lt": "b"}}, {"a": "a"}, {"a": 0}),
    ({"a": {"gte": 1, "lte": 3}}, {"a": 3}, {"a": 4}),
    ({"a": {"gt": 1, "lt": 3}}, {"a": 1.5}, {"a": 1}),
    ({"a": {"gt": 1, "lt": 3}}, {"a": 2}, {"a": 3}),
    ({"a": {"gt": "x", "lt": "xy"}}, {"a": "xa"}, {"a": "x"}),
    ({"a": {"lt": "x" * 50}}, {"a": "x" * 49}, {"a": "y"}),
    ({"a": {"gt": "x" * 50}}, {"a": "x" * 51}, {"a": "w"}),
    (
        {"a": {"gt": "2026-01-01T00:00:00.000Z", "lt": "2026-01-02"}},
        {"a": "2026-01-01T00:00:01"},
        {"a": "2026-02"},
    ),
    ({"a.b.c": 1}, {"a": {"b": {"c": 1}}}, {"a": {"b": [{"c": 1}]}}),
    ({"or": [{"a": 1}, {"b": {"gt": 5}}]}, {"b": 6}, {"a": 6}),
    ({"and": [{"or": [{"a": 1}, {"a": 2}]}, {"or": [{"b": 1}, {"c": {"ne": 1}}]}]}, {"a": 1}, {"b": 1}),
    ({"a": 1, "b": {"ne": 1}, "not": {"c": 1}}, {"a": 1}, {"b": 2}),
]


@pytest.mark.parametrize(("filter", "hit", "miss"), FOUND)
def test_the_index_finds_a_query_where_it_matches_and_not_elsewhere(
    filter: dict[str, Any], hit: Document, miss: Document
) -> None:
    made = query("c", filter)
    matcher = Matcher(0)
    matcher.add(made)
    assert matcher.candidates("c", judged(None, hit)) == [made]
    assert matcher.candidates("c", judged(hit, None)) == [made]
    assert matcher.candidates("c", judged(miss, hit)) == [made]
    assert matcher.candidates("c", judged(hit, miss)) == [made]
    assert matcher.candidates("c", judged(None, miss)) == []
    assert matcher.candidates("c", judged(miss, miss | {"z": 1})) == []


def test_many_texts_that_are_contained() -> None:
    matcher = Matcher(0)
    queries = [query("c", {"a": {"contains": f"{n:04}"}}) for n in range(500)]
    longer = [query("c", {"a": {"contains": f"{n:04}-tail"}}) for n in range(500)]
    for each in queries + longer:
        matcher.add(each)
    found = matcher.candidates("c", judged(None, {"a": "0007-tail, not 0070-tal, 0490"}))
    assert set(found) == {queries[7], longer[7], queries[70], queries[490]}
    for each in [*queries, *longer[1:]]:
        matcher.remove(each)
    members = matcher._collections["c"].index._root.children["a"].members
    assert members is not None
    assert members._grams == {4: {"0000": {"0000-tail": {longer[0]: None}}}}


def test_the_rarer_of_two_equal_conditions_finds_the_query() -> None:
    """All of a tenant's users have the tenant's name in their filter."""
    matcher = Matcher(0)
    for n in range(100):
        matcher.add(query("c", {"tenant": "t", "user": n}))
    found = matcher.candidates("c", judged(None, {"tenant": "t", "user": 50}))
    assert query("c", {"tenant": "t", "user": 50}) in found
    assert len(found) <= 3


@settings(max_examples=50)
@given(data=st.data())
def test_ranges_find_exactly_those_that_reach_a_value(data: st.DataObject) -> None:
    ends = st.integers(0, 40) | st.integers(0, 2**256 - 1)
    ranges = _Ranges()
    kept: dict[tuple[int, int], int] = {}
    for n in range(data.draw(st.integers(1, 40))):
        low, high = sorted((data.draw(ends), data.draw(ends)))
        if kept and data.draw(st.integers(0, 3)) == 0:
            gone = data.draw(st.sampled_from(sorted(kept)))
            del kept[gone]
            ranges.drop(gone)
        if (low, high) not in kept:
            kept[low, high] = n
            ranges.add((low, high))[query("c", {"n": n})] = None
    for value in [data.draw(ends), *(end for pair in kept for end in pair)]:
        hits: list[Any] = []
        ranges.probe(value, hits)
        found = sorted(each.filter["n"]["eq"] for bucket in hits for each in bucket)
        assert found == sorted(n for (low, high), n in kept.items() if low <= value <= high)
    for gone in kept:
        ranges.drop(gone)
    assert not ranges.buckets
    assert not ranges._levels


# --- bounds, failures ----------------------------------------------------------------------------


def test_residual_queries_are_bounded_for_all_collections_together() -> None:
    matcher = Matcher(2)
    first, second, third = (query(name, {"a": {"ne": 1}}) for name in "cde")
    matcher.add(first)
    matcher.add(first)
    matcher.add(second)
    assert matcher.residual == 2
    with pytest.raises(ApiError) as refused:
        matcher.add(third)
    assert (refused.value.status, refused.value.code) == (400, "TOO_MANY_RESIDUAL_QUERIES")
    assert "At most 2 " in refused.value.message
    assert matcher.candidates("e", judged(None, {})) == []
    matcher.add(query("e", {}))
    matcher.add(query("e", {"a": 1, "b": {"ne": 1}}))
    matcher.remove(third)
    assert matcher.residual == 2
    matcher.remove(second)
    matcher.remove(second)
    matcher.add(third)
    assert matcher.candidates("e", judged(None, {"a": 2}))[-1] == third


def test_paths_with_null_are_bounded() -> None:
    matcher = Matcher(1)
    for n in range(MAX_NULL_PATHS):
        matcher.add(query("c", {f"f{n}": None}))
    matcher.add(query("c", {"f0": None, "other": {"ne": 1}}))
    assert matcher.residual == 0
    matcher.add(query("c", {"more": None}))
    assert matcher.residual == 1
    with pytest.raises(ApiError):
        matcher.add(query("c", {"or": [{"a": 1}, {"and more": None}]}))
    matcher.remove(query("c", {"more": None}))
    matcher.add(query("c", {"a": 1, "and more": None}))
    assert matcher.residual == 0


ODD: list[Any] = [
    b"",
    b"[]",
    b"null",
    b"{",
    b'"\xff"',
    b'{"a":' + b"[" * 60_000 + b"]" * 60_000 + b"}",
    b'{"a":1e999}',
    b'{"a":"\\u0000x","a":"\\ud83d\\ude00"}',
    b'{"a":' + b"9" * 400 + b"}",
    b'{"a":{"":{"":[[]]}},"":null}',
]


@pytest.mark.parametrize("data", ODD)
@pytest.mark.parametrize("type", ["insert", "update", "delete"])
def test_candidates_never_fail_whatever_a_document_is(type: str, data: bytes) -> None:
    matcher = Matcher(MANY)
    queries = {query("c", filter) for filter, _, _ in FOUND} | {query("c", {"a": {"ne": 1}}), query("c", {})}
    for each in queries:
        matcher.add(each)
    for before in (None, b"[{},[]]", b'[{"a":1},[]]', b"{}", data):
        found = matcher.candidates("c", Judged(Change(1, 1, type, "c", "x", data, before)))
        assert {query("c", {"a": {"ne": 1}}), query("c", {})} <= set(found) <= queries


# --- events --------------------------------------------------------------------------------------


def shown(document: Document, select: list[str] | None) -> Document:
    """The naive view."""
    if select is None:
        return document
    view: Document = {}
    for path in ["_id", *sorted(select)]:
        value: Any = document
        names = path.split(".")
        for name in names:
            value = value.get(name, ...) if isinstance(value, dict) else ...
        if value is not ...:
            target = view
            for name in names[:-1]:
                target = target.setdefault(name, {})
            target[names[-1]] = value
    return view


@settings(max_examples=250)
@given(
    both=sides(),
    filter=FILTERS | st.just({}),
    select=st.none() | st.lists(PATHS, max_size=2, unique=True),
)
def test_an_event_is_what_a_naive_model_says(
    both: tuple[Document | None, Document | None], filter: dict[str, Any], select: list[str] | None
) -> None:
    before, after = both
    made = query("c", filter, select)
    if select is not None:
        select = [path for path in select if not any(path.startswith(other + ".") for other in select)]
    was, now = matches(made, before), matches(made, after)
    expected: tuple[str, Document] | None = None
    if now and after is not None:
        expected = ("update" if was else "insert"), shown(after, select)
        if was and before is not None and exactly(shown(before, select)) == exactly(expected[1]):
            expected = None
    elif was and before is not None:
        expected = "delete", shown(before, select)
    event = event_of(made, judged(before, after))
    assert (event is None) == (expected is None)
    if event is not None and expected is not None:
        assert event[0] == expected[0]
        assert exactly(json.loads(event[1])) == exactly(expected[1])


def test_bytes_are_passed_on_where_nothing_hides_them() -> None:
    made = query("c", {"a": 1})
    after, before = whole({"a": 1}), whole({"a": 2})
    for each in (None, before):
        this = change(each, after)
        event = event_of(made, Judged(this))
        assert event is not None
        assert event[1] is this.data


def test_a_document_that_left_is_shown_as_it_was() -> None:
    before = whole({"a": 1, "b": {"c": 2}, "gone": [1]})
    after = whole({"a": 2, "b": {"c": 2}, "secret": 1}, updated="2026-11-26T00:00:02.000Z")
    this = judged(before, after)
    assert event_of(query("c", {"a": 1}), this) == ("delete", encode(before))
    assert event_of(query("c", {"a": 1}, ["b"]), this) == ("delete", b'{"_id":"x","b":{"c":2}}')
    assert this.before == before
    assert this.before_bytes == encode(before)


def test_an_update_of_an_older_version_is_not_known() -> None:
    after = whole({"a": 1})
    this = Judged(Change(1, 1, "update", "c", "x", encode(after)))
    filtered, selected = query("c", {"a": 2}), query("c", {}, ["a"])
    matcher = Matcher(0)
    for each in (filtered, selected, query("c", {})):
        matcher.add(each)
    assert not this.known
    assert this.before is None
    assert set(matcher.candidates("c", this)) == {filtered, selected, query("c", {})}
    with pytest.raises(BeforeUnknown):
        event_of(filtered, this)
    assert event_of(selected, this) == ("update", b'{"_id":"x","a":1}')
    assert event_of(query("c", {}), this) == ("update", encode(after))


def test_queries_of_whole_documents_decode_nothing() -> None:
    matcher = Matcher(0)
    matcher.add(query("c", {}))
    this = Judged(Change(1, 1, "insert", "c", "x", b"not JSON"))
    assert matcher.candidates("c", this) == [query("c", {})]
    assert event_of(query("c", {}), this) == ("insert", b"not JSON")


def test_a_view_is_made_once_for_all_queries_with_the_same_select() -> None:
    this = judged(None, whole({"a": 1}))
    first, second = (event_of(query("c", filter, ["a"]), this) for filter in ({"a": 1}, {"a": {"gt": 0}}))
    assert first is not None
    assert second is not None
    assert first[1] is second[1]
