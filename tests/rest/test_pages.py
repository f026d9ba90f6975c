"""Pages by `next`, queries as bodies, and `explain`."""

from __future__ import annotations

import base64
import json
from typing import Any

import httpx
import pytest

from tests.conftest import Server
from tests.rest.tools import refusal


def insert(api: httpx.Client, docs: str, *documents: dict[str, Any]) -> None:
    for first in range(0, len(documents), 1000):
        response = api.post(docs.replace("/docs", "/bulk"), json=documents[first : first + 1000])
        assert response.json()["failed"] == 0


def page(api: httpx.Client, docs: str, **parameters: Any) -> dict[str, Any]:
    response = api.get(docs, params=parameters)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def ids(found: dict[str, Any]) -> list[str]:
    return [document["_id"] for document in found["documents"]]


@pytest.mark.executable
@pytest.mark.parametrize("sort", ["", "n", "-n", "-createdAt", "room,-n", "-", "room,-"])
@pytest.mark.parametrize("indexes", [[], [["n"], ["room", "-n"]]])
def test_pages_are_stable_while_documents_are_written(
    api: httpx.Client, collection: str, docs: str, sort: str, indexes: list[list[str]]
) -> None:
    api.put(f"/{collection}/schema", json={"properties": {}, "indexes": indexes})
    insert(api, docs, *({"_id": f"d{n:02}", "n": n % 7, "room": n % 3} for n in range(20)))
    whole = ids(page(api, docs, sort=sort))
    found: list[str] = []
    after: dict[str, str] = {}
    more = True
    while more:
        one = page(api, docs, sort=sort, limit=6, **after)
        found += ids(one)
        more = one["hasMore"]
        after = {"after": one["next"]} if more else {}
        if len(found) == 6:  # an offset would now skip two documents
            api.delete(f"{docs}/{found[5]}")
            api.delete(f"{docs}/{found[0]}")
    assert found == whole


def test_next_is_present_only_if_there_is_more(api: httpx.Client, docs: str) -> None:
    insert(api, docs, {"a": 1}, {"a": 2})
    assert "next" in page(api, docs, limit=1)
    assert "next" not in page(api, docs, limit=2)


def test_next_of_a_select_still_uses_the_whole_document(api: httpx.Client, docs: str) -> None:
    insert(api, docs, *({"_id": str(n), "a": -n, "b": 1} for n in range(4)))
    first = page(api, docs, sort="a", select="b", limit=2)
    assert ids(first) == ["3", "2"]
    assert ids(page(api, docs, sort="a", select="b", limit=2, after=first["next"])) == ["1", "0"]


FORGED = [
    "",
    "x",
    "!!!!",
    base64.urlsafe_b64encode(b"[]").decode(),
    base64.urlsafe_b64encode(b'["",0,[]]').decode(),
    base64.urlsafe_b64encode(b'["",-1,[]]').decode(),
    base64.urlsafe_b64encode(b'["",1099511627776,[]]').decode(),
    base64.urlsafe_b64encode(b'["",1,[1]]').decode(),
    base64.urlsafe_b64encode(b'["a",1,[]]').decode(),
    base64.urlsafe_b64encode(b'["",1,[[]]]').decode(),
    base64.urlsafe_b64encode(b'["",' + b"9" * 400 + b",[]]").decode(),
]


@pytest.mark.parametrize("after", FORGED)
def test_invalid_after_is_a_400(api: httpx.Client, docs: str, after: str) -> None:
    insert(api, docs, {"a": 1})
    assert refusal(api.get(docs, params={"after": after})) == (400, "INVALID_CURSOR")


@pytest.mark.parametrize("value", ["9" * 30, "9223372036854775808", "9" * 309])
def test_after_with_an_integer_beyond_64_bits_is_a_400(api: httpx.Client, docs: str, value: str) -> None:
    insert(api, docs, {"a": 1})
    after = base64.urlsafe_b64encode(f'["a",1,[{value}]]'.encode()).decode()
    assert refusal(api.get(docs, params={"after": after, "sort": "a"})) == (400, "INVALID_CURSOR")


def test_after_of_another_sort_or_with_an_offset_is_a_400(api: httpx.Client, docs: str) -> None:
    insert(api, docs, {"a": 1}, {"a": 2})
    next = page(api, docs, sort="a", limit=1)["next"]
    assert refusal(api.get(docs, params={"after": next})) == (400, "INVALID_CURSOR")
    assert refusal(api.get(docs, params={"after": next, "sort": "-a"})) == (400, "INVALID_CURSOR")
    assert refusal(api.get(docs, params={"after": next, "sort": "a", "offset": 1})) == (400, "INVALID_REQUEST")


# --- queries as bodies ---------------------------------------------------------------------------


@pytest.mark.executable
def test_query_is_a_find_with_a_body(api: httpx.Client, collection: str, docs: str) -> None:
    insert(api, docs, *({"_id": str(n), "n": n} for n in range(3000)))
    wanted = [str(n) for n in range(0, 4000, 2)]
    body = {"filter": {"_id": {"in": wanted}}, "sort": "-n", "limit": 3}
    response = api.post(f"/{collection}/query", json={**body, "offset": 1, "select": "n", "count": True})
    assert response.status_code == 200, response.text
    found = response.json()
    assert found["documents"] == [{"_id": str(n), "n": n} for n in (2996, 2994, 2992)]
    assert (found["total"], found["hasMore"], found["limit"], found["offset"]) == (1500, True, 3, 1)
    response = api.post(f"/{collection}/query", json={**body, "after": found["next"]})
    assert ids(response.json()) == ["2990", "2988", "2986"]
    assert ids(api.post(f"/{collection}/query", json={}).json())[:2] == ["0", "1"]


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ([], "INVALID_REQUEST"),
        ({"filter": "{}"}, "INVALID_REQUEST"),
        ({"limit": "5"}, "INVALID_REQUEST"),
        ({"limit": 0}, "INVALID_REQUEST"),
        ({"limit": 1001}, "INVALID_REQUEST"),
        ({"offset": -1}, "INVALID_REQUEST"),
        ({"count": 1}, "INVALID_REQUEST"),
        ({"where": {}}, "INVALID_REQUEST"),
        ({"filter": {"a": {"like": 1}}}, "UNKNOWN_OPERATOR"),
        ({"sort": "a..b"}, "INVALID_FIELD"),
        ({"after": "x"}, "INVALID_CURSOR"),
    ],
)
def test_invalid_query_is_a_400(api: httpx.Client, collection: str, docs: str, body: Any, code: str) -> None:
    insert(api, docs, {})
    assert refusal(api.post(f"/{collection}/query", json=body)) == (400, code)


def test_public_key_may_query_but_not_explain(
    server: Server, collection: str, docs: str, api: httpx.Client
) -> None:
    insert(api, docs, {})
    public = server.new_key(public=True)["key"]
    headers = {"Authorization": f"Bearer {public}"}
    assert len(api.post(f"/{collection}/query", json={}, headers=headers).json()["documents"]) == 1
    assert refusal(api.post(f"/{collection}/query", json={"explain": True}, headers=headers))[0] == 403


# --- explain -------------------------------------------------------------------------------------


def test_explain_reports_the_plan_and_a_suggestion(api: httpx.Client, collection: str, docs: str) -> None:
    insert(api, docs, *({"room": f"r{n % 10}", "n": n} for n in range(200)))
    asked = {"filter": json.dumps({"room": "r1"}), "sort": "-createdAt", "explain": "true"}
    found = page(api, docs, **asked)
    assert len(found["documents"]) == 20
    assert found["explain"]["index"] is None
    assert found["explain"]["suggestion"] == ["room", "-createdAt"]
    assert (found["explain"]["looksAt"], found["explain"]["documents"]) == (200, 200)
    schema = {"properties": {}, "indexes": [["room", "-createdAt"]]}
    assert api.put(f"/{collection}/schema", json=schema).status_code == 200
    plan = page(api, docs, **asked)["explain"]
    assert plan == {
        "index": ["room", "-createdAt"],
        "order": "the index's order",
        "looksAt": 20,
        "documents": 200,
        "building": [],
        "suggestion": None,
    }
    assert "explain" not in page(api, docs)


def test_newest_first_needs_no_index(api: httpx.Client, docs: str) -> None:
    insert(api, docs, *({"_id": str(n)} for n in range(50)))
    found = page(api, docs, sort="-createdAt", limit=3, explain="true")
    assert found["explain"]["order"] == "insertion order, which is that of createdAt"
    assert found["explain"]["suggestion"] is None
    assert ids(page(api, docs, sort="-", limit=3)) == ["49", "48", "47"]
