"""The steps of a PATCH, and conditions on the existing document."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from hypothesis import given, settings

from paperdb_trio.store.steps import same
from tests.conftest import Server
from tests.rest.tools import refusal
from tests.store.tools import VALUES, exactly


def put(api: httpx.Client, docs: str, **fields: Any) -> str:
    path = f"{docs}/a"
    assert api.put(path, json=fields).status_code in (200, 201)
    return path


def own(response: httpx.Response) -> dict[str, Any]:
    assert response.status_code == 200, response.text
    return {k: v for k, v in response.json().items() if k not in ("_id", "createdAt", "updatedAt")}


@pytest.mark.parametrize(
    ("before", "patch", "after"),
    [
        ({"t": [1]}, {"t": {"push": 2}}, {"t": [1, 2]}),
        ({}, {"t": {"push": [2]}}, {"t": [[2]]}),
        ({"t": []}, {"t": {"push": None}}, {"t": [None]}),
        ({"t": [1, 2, 1.0, True, "1"]}, {"t": {"pull": 1}}, {"t": [2, True, "1"]}),
        ({"t": [{"a": [1]}, {"a": [1.0]}, {"a": [True]}]}, {"t": {"pull": {"a": [1]}}}, {"t": [{"a": [True]}]}),
        ({"t": [1]}, {"t": {"pull": 9}}, {"t": [1]}),
        ({}, {"t": {"pull": 9}}, {}),
        ({"t": 1, "u": 2}, {"t": {"unset": True}}, {"u": 2}),
        ({"u": 2}, {"t": {"unset": True}}, {"u": 2}),
        ({"n": 1}, {"n": {"increment": 2}, "t": {"push": 1}, "x": 5}, {"n": 3, "t": [1], "x": 5}),
        ({}, {"t": {"push": 1, "pull": 2}}, {"t": {"push": 1, "pull": 2}}),
        ({}, {"t": {"Push": 1}}, {"t": {"Push": 1}}),
    ],
)
def test_steps_change_a_field(
    api: httpx.Client, docs: str, before: dict[str, Any], patch: dict[str, Any], after: dict[str, Any]
) -> None:
    path = put(api, docs, **before)
    assert exactly(own(api.patch(path, json=patch))) == exactly(after)
    assert exactly(own(api.get(path))) == exactly(after)


@pytest.mark.parametrize(
    ("before", "patch"),
    [
        ({"t": "text"}, {"t": {"push": 1}}),
        ({"t": None}, {"t": {"push": 1}}),
        ({"t": {"a": 1}}, {"t": {"pull": 1}}),
        ({"t": 1}, {"t": {"unset": False}}),
        ({"t": 1}, {"t": {"unset": 1}}),
    ],
)
def test_invalid_step_changes_nothing(
    api: httpx.Client, docs: str, before: dict[str, Any], patch: dict[str, Any]
) -> None:
    path = put(api, docs, **before)
    assert refusal(api.patch(path, json={"other": 1, **patch})) == (400, "INVALID_STEP")
    assert own(api.get(path)) == before


def test_required_field_cannot_be_unset(api: httpx.Client, collection: str, docs: str) -> None:
    path = put(api, docs, t=1)
    api.put(f"/{collection}/schema", json={"properties": {"t": {"required": True}}})
    assert refusal(api.patch(path, json={"t": {"unset": True}})) == (400, "VALIDATION_FAILED")


@settings(max_examples=300)
@given(VALUES, VALUES)
def test_same_compares_as_json(one: Any, other: Any) -> None:
    assert same(one, one)
    assert same(one, other) == same(other, one)
    if exactly(one) == exactly(other):
        assert same(one, other)


# --- conditions ----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["PATCH", "PUT", "DELETE"])
def test_write_needs_a_document_that_satisfies_where(api: httpx.Client, docs: str, method: str) -> None:
    path = put(api, docs, stock=0, tags=["x"])
    body: dict[str, Any] = {} if method == "DELETE" else {"json": {"stock": 5}}
    failing: list[dict[str, Any]] = [
        {"stock": {"gt": 0}},
        {"tags": {"contains": "y"}},
        {"nothing": 1},
        {"or": []},
    ]
    for where in failing:
        response = api.request(method, path, params={"where": json.dumps(where)}, **body)
        assert refusal(response) == (412, "CONDITION_FAILED")
    assert own(api.get(path)) == {"stock": 0, "tags": ["x"]}
    holding = json.dumps({"stock": 0, "tags": {"contains": "x"}})
    assert api.request(method, path, params={"where": holding}, **body).status_code == 200


def test_where_for_a_missing_document_fails(api: httpx.Client, docs: str) -> None:
    where = {"where": json.dumps({"n": None})}
    assert refusal(api.put(f"{docs}/a", params=where, json={})) == (412, "CONDITION_FAILED")
    assert refusal(api.patch(f"{docs}/a", params=where, json={})) == (404, "NOT_FOUND")
    assert refusal(api.delete(f"{docs}/a", params=where)) == (404, "NOT_FOUND")


@pytest.mark.parametrize(
    ("where", "code"),
    [("{", "INVALID_JSON"), ("[]", "INVALID_FILTER"), ('{"a": {"like": 1}}', "UNKNOWN_OPERATOR")],
)
def test_invalid_where_is_a_400(api: httpx.Client, docs: str, where: str, code: str) -> None:
    path = put(api, docs)
    assert refusal(api.patch(path, params={"where": where}, json={})) == (400, code)


def test_etag_and_where_must_both_hold(api: httpx.Client, docs: str) -> None:
    path = put(api, docs, n=1)
    where: dict[str, str] = {"where": json.dumps({"n": 1})}
    old = api.get(path).headers["etag"]
    assert api.patch(path, params=where, json={"m": 1}, headers={"If-Match": old}).status_code == 200
    refused = api.patch(path, params=where, json={"m": 2}, headers={"If-Match": old})
    assert refusal(refused) == (412, "PRECONDITION_FAILED")


def test_stock_never_falls_below_0(server: Server, api: httpx.Client, docs: str) -> None:
    path = put(api, docs, stock=10)
    url = f"{path}?where=%7B%22stock%22:%7B%22gt%22:0%7D%7D"

    def buy(_: int) -> int:
        return server.request("PATCH", url, json={"stock": {"decrement": 1}}).status_code

    with ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(buy, range(40)))
    assert sorted(statuses) == [200] * 10 + [412] * 30
    assert own(api.get(path)) == {"stock": 0}
