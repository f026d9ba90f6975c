"""Finding documents: filter, sort, limit, offset, select, count, and their errors.

tests/store checks filters and sorting against models. These tests check that they work over HTTP, and that a
wrong parameter is refused by name.
"""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from tests.rest.tools import refusal

PEOPLE = [
    {"key": "ada", "name": "Ada", "age": 36, "at": {"city": "London"}, "tags": ["math", "poet"]},
    {"key": "bob", "name": "bob", "age": "36", "at": {"city": "Paris"}, "tags": []},
    {"key": "eve", "name": "Ève", "age": 36.5, "at": None, "admin": True},
    {"key": "zoe", "name": "Zoe", "age": None, "at": {"city": "Lyon"}, "admin": 1},
]


@pytest.fixture(scope="module")
def people(api: httpx.Client) -> str:
    """The path of a collection that these tests only read."""
    assert api.post("/test_find_people/bulk", json=PEOPLE).json()["inserted"] == len(PEOPLE)
    return "/test_find_people/docs"


def ids(api: httpx.Client, path: str, **parameters: Any) -> list[str]:
    filter = parameters.get("filter")
    if filter is not None and not isinstance(filter, str):
        parameters["filter"] = json.dumps(filter)
    response = api.get(path, params=parameters)
    assert response.status_code == 200, response.text
    return [document["_id"] for document in response.json()["documents"]]


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("filter", "found"),
    [
        ({"name": "Ada"}, ["ada"]),
        ({"age": 36}, ["ada"]),
        ({"age": "36"}, ["bob"]),
        ({"age": 36.0}, ["ada"]),
        ({"admin": True}, ["eve"]),
        ({"admin": 1}, ["zoe"]),
        ({"age": None}, ["zoe"]),
        ({"admin": None}, ["ada", "bob"]),
        ({"age": {"gte": 36, "lt": 37}}, ["ada", "eve"]),
        ({"age": {"gt": "3"}}, ["bob"]),
        ({"age": {"ne": 36}}, ["bob", "eve", "zoe"]),
        ({"name": {"in": ["bob", "Zoe", 5]}}, ["bob", "zoe"]),
        ({"name": {"nin": ["bob", "Zoe"]}}, ["ada", "eve"]),
        ({"tags": {"contains": "math"}}, ["ada"]),
        ({"name": {"contains": "o"}}, ["bob", "zoe"]),
        ({"name": {"startsWith": "È"}}, ["eve"]),
        ({"age": {"exists": True}, "admin": {"exists": False}}, ["ada", "bob"]),
        ({"at.city": {"startsWith": "L"}}, ["ada", "zoe"]),
        ({"or": [{"name": "Ada"}, {"admin": True}]}, ["ada", "eve"]),
        ({"and": [{"at.city": {"contains": "o"}}, {"age": None}]}, ["zoe"]),
        ({"not": {"at.city": {"exists": True}}}, ["eve"]),
        ({"_id": {"in": ["zoe", "ada"]}}, ["ada", "zoe"]),
        ({}, ["ada", "bob", "eve", "zoe"]),
        ("", ["ada", "bob", "eve", "zoe"]),
        ({"name": "' OR 1=1 --"}, []),
        ({"name') OR 1=1 --": 1}, []),
        ({"name": {"startsWith": "%"}}, []),
        ({"name": {"contains": "_"}}, []),
    ],
)
def test_a_filter_finds_and_counts_matching_documents(
    api: httpx.Client, people: str, filter: object, found: list[str]
) -> None:
    assert ids(api, people, filter=filter) == found
    text = filter if isinstance(filter, str) else json.dumps(filter)
    path = people.removesuffix("docs") + "count"
    assert api.get(path, params={"filter": text}).json() == {"count": len(found)}


@pytest.mark.parametrize("operator", ["regex", "$gt", "GT", "", "'); DROP TABLE documents; --", "é"])
def test_an_unknown_operator_is_a_400_that_names_it(api: httpx.Client, people: str, operator: str) -> None:
    response = api.get(people, params={"filter": json.dumps({"age": {operator: 1}})})
    assert refusal(response) == (400, "UNKNOWN_OPERATOR")
    assert f"'{operator}'" in response.json()["error"]


@pytest.mark.parametrize(
    ("filter", "code"),
    [
        ("{", "INVALID_JSON"),
        ("[" * 3000, "INVALID_JSON"),
        ('{"a": NaN}', "INVALID_JSON"),
        ('{"a": 1e400}', "INVALID_JSON"),
        ('{"a": "\\ud800"}', "INVALID_JSON"),
        ('{"a": "\\u0000"}', "INVALID_JSON"),
        ("[]", "INVALID_FILTER"),
        ("5", "INVALID_FILTER"),
        ("null", "INVALID_FILTER"),
        ('{"or": {"a": 1}, "or": 5}', "INVALID_FILTER"),
        ('{"and": [5]}', "INVALID_FILTER"),
        ('{"not": [1]}', "INVALID_FILTER"),
        ('{"a": {}}', "INVALID_FILTER"),
        ('{"a": [1]}', "INVALID_FILTER"),
        ('{"a": {"eq": {}}}', "INVALID_FILTER"),
        ('{"a": {"in": 5}}', "INVALID_FILTER"),
        ('{"a": {"in": [[1]]}}', "INVALID_FILTER"),
        ('{"a": {"gt": null}}', "INVALID_FILTER"),
        ('{"a": {"lt": true}}', "INVALID_FILTER"),
        ('{"a": {"startsWith": 1}}', "INVALID_FILTER"),
        ('{"a": {"exists": 1}}', "INVALID_FILTER"),
        ('{"": 1}', "INVALID_FIELD"),
        ('{"a..b": 1}', "INVALID_FIELD"),
        ('{".a": 1}', "INVALID_FIELD"),
        ('{"a.": 1}', "INVALID_FIELD"),
        ('{"a\\"b": 1}', "INVALID_FIELD"),
        ('{"a\\\\b": 1}', "INVALID_FIELD"),
        ('{"a\\nb": 1}', "INVALID_FIELD"),
        (json.dumps({"a" * 257: 1}), "INVALID_FIELD"),
        ('{"not": ' * 20 + "{}" + "}" * 20, "INVALID_FILTER"),
        (json.dumps({"or": [{"a": n} for n in range(201)]}), "INVALID_FILTER"),
        (json.dumps({"a": {"in": list(range(2001))}}), "INVALID_FILTER"),
        (json.dumps({"a": {"in": list(range(1001))}, "b": {"nin": list(range(1000))}}), "INVALID_FILTER"),
    ],
)
@pytest.mark.parametrize("route", ["docs", "count"])
def test_a_wrong_filter_is_a_400(api: httpx.Client, people: str, route: str, filter: str, code: str) -> None:
    response = api.get(people.removesuffix("docs") + route, params={"filter": filter})
    assert refusal(response) == (400, code)


@pytest.mark.parametrize(
    ("sort", "order"),
    [
        (None, ["ada", "bob", "eve", "zoe"]),
        ("", ["ada", "bob", "eve", "zoe"]),
        ("name", ["ada", "zoe", "bob", "eve"]),
        ("-name", ["eve", "bob", "zoe", "ada"]),
        ("+name", ["ada", "zoe", "bob", "eve"]),
        ("age", ["zoe", "ada", "eve", "bob"]),
        (" at.city , -name", ["eve", "ada", "zoe", "bob"]),
        ("missing", ["ada", "bob", "eve", "zoe"]),
        ("-missing", ["ada", "bob", "eve", "zoe"]),
        ("_id", ["ada", "bob", "eve", "zoe"]),
        ("-_id", ["zoe", "eve", "bob", "ada"]),
        ("name'); DROP TABLE documents; --", ["ada", "bob", "eve", "zoe"]),
        ("(SELECT secret FROM signing_secrets)", ["ada", "bob", "eve", "zoe"]),
    ],
)
def test_sort_orders_by_fields_then_by_insertion(
    api: httpx.Client, people: str, sort: str | None, order: list[str]
) -> None:
    assert ids(api, people, **({} if sort is None else {"sort": sort})) == order


@pytest.mark.parametrize(
    ("sort", "code"),
    [
        ("-,a", "INVALID_FIELD"),
        ("a..b", "INVALID_FIELD"),
        ('a"b', "INVALID_FIELD"),
        ("a,b," * 5, "INVALID_SORT"),
    ],
)
def test_a_wrong_sort_is_a_400(api: httpx.Client, people: str, sort: str, code: str) -> None:
    assert refusal(api.get(people, params={"sort": sort})) == (400, code)


@pytest.mark.parametrize("select", ['a"b', "a..b", "a\\b", "a" * 257])
def test_a_wrong_select_is_a_400(api: httpx.Client, people: str, select: str) -> None:
    assert refusal(api.get(people, params={"select": select})) == (400, "INVALID_FIELD")
    assert refusal(api.get(f"{people}/ada", params={"select": select})) == (400, "INVALID_FIELD")


def test_select_of_sql_selects_nothing(api: httpx.Client, people: str) -> None:
    response = api.get(people, params={"select": "(SELECT hash FROM keys),name'--", "limit": 1})
    assert response.json()["documents"] == [{"_id": "ada"}]


@pytest.mark.parametrize(
    ("limit", "offset", "found", "more"),
    [
        (2, 0, ["ada", "bob"], True),
        (2, 2, ["eve", "zoe"], False),
        (3, 1, ["bob", "eve", "zoe"], False),
        (4, 0, ["ada", "bob", "eve", "zoe"], False),
        (1000, 4, [], False),
        (1, 2**53, [], False),
    ],
)
def test_limit_and_offset_cut_a_page(
    api: httpx.Client, people: str, limit: int, offset: int, found: list[str], more: bool
) -> None:
    answer = api.get(people, params={"limit": limit, "offset": offset}).json()
    assert [document["_id"] for document in answer.pop("documents")] == found
    assert answer.pop("seq") >= 4
    assert ("next" in answer) == more
    assert {**answer, "next": 0} == {"limit": limit, "offset": offset, "hasMore": more, "next": 0}


def test_total_counts_all_that_match_and_only_when_asked(api: httpx.Client, people: str) -> None:
    filter = json.dumps({"age": {"exists": True}, "name": {"ne": "Ada"}})
    response = api.get(people, params={"filter": filter, "limit": 1, "count": "true"}).json()
    assert (len(response["documents"]), response["total"], response["hasMore"]) == (1, 3, True)
    assert "total" not in api.get(people, params={"count": "false"}).json()
    assert api.get("/no_such/docs", params={"count": "true"}).json()["total"] == 0


def test_the_seq_is_that_of_the_last_change_that_the_documents_show(api: httpx.Client, docs: str) -> None:
    written = api.post(docs, json={"key": "a"})
    found = api.get(docs).json()
    assert found["seq"] == int(written.headers["etag"].strip('"'))
    deleted = api.delete(f"{docs}/a")
    found = api.get(docs).json()
    assert (found["documents"], found["seq"]) == ([], int(deleted.headers["etag"].strip('"')))


@pytest.mark.parametrize(
    "query", ["limit=1&limit=2", "filter={}&filter={}", "select=a&select=a", "count=true&limit=1&count=true"]
)
def test_a_parameter_given_twice_is_a_400(api: httpx.Client, people: str, query: str) -> None:
    response = api.get(f"{people}?{query}")
    assert refusal(response) == (400, "INVALID_REQUEST")
    assert "given twice" in response.json()["error"]


def test_the_default_limit_is_100_and_pages_join_without_gap_or_overlap(api: httpx.Client, docs: str) -> None:
    bulk = docs.removesuffix("docs") + "bulk"
    api.post(bulk, json=[{"key": f"{n:03}", "g": n % 3} for n in range(250)])
    first = api.get(docs).json()
    assert (len(first["documents"]), first["limit"], first["offset"], first["hasMore"]) == (100, 100, 0, True)
    pages = [ids(api, docs, sort="-g", limit=60, offset=offset) for offset in range(0, 300, 60)]
    assert [len(page) for page in pages] == [60, 60, 60, 60, 10]
    expected = sorted((f"{n:03}" for n in range(250)), key=lambda id: (-(int(id) % 3), id))
    assert [id for page in pages for id in page] == expected


def test_a_collection_that_does_not_exist_is_empty(api: httpx.Client) -> None:
    response = api.get("/no_such/docs").json()
    assert response.pop("seq") >= 0
    assert response == {"documents": [], "limit": 100, "offset": 0, "hasMore": False}
    assert api.get("/no_such/count").json() == {"count": 0}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(
            ("limit", value)
            for value in ("0", "1001", "-1", "1.5", "1e2", "abc", "", "９", "0x10", " 1", "9" * 30)
        ),
        *(("offset", value) for value in ("-1", "1.0", "abc", "", str(2**53 + 1), "9" * 5000)),
        *(("count", value) for value in ("yes", "", "TRUE", "2")),
    ],
)
def test_a_wrong_number_or_flag_is_a_400_that_names_it(
    api: httpx.Client, people: str, name: str, value: str
) -> None:
    response = api.get(people, params={name: value})
    assert refusal(response) == (400, "INVALID_REQUEST")
    assert name in response.json()["error"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "docs"),
        ("GET", "docs/ada"),
        ("PATCH", "docs/ada"),
        ("PUT", "docs/ada"),
        ("DELETE", "docs/ada"),
        ("GET", "count"),
        ("POST", "bulk"),
        ("DELETE", ""),
    ],
)
def test_an_unknown_query_parameter_is_a_400_that_names_it(
    api: httpx.Client, people: str, method: str, path: str
) -> None:
    target = (people.removesuffix("docs") + path).rstrip("/")
    body: object = [] if path == "bulk" else {}
    response = api.request(
        method, target, params={"limitt": "1"}, json=body if method in ("PATCH", "PUT", "POST") else None
    )
    assert refusal(response) == (400, "INVALID_REQUEST")
    assert "'limitt'" in response.json()["error"]
    assert ids(api, people) == ["ada", "bob", "eve", "zoe"]
