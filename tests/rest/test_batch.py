"""Batches: all operations or none, in one commit, whose events belong together."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from websockets.sync.client import connect

from tests.conftest import Server, StartServer, receive
from tests.rest.tools import etag, refusal

Operation = dict[str, Any]


def send(api: httpx.Client, *operations: Operation, **more: Any) -> httpx.Response:
    return api.post("/batch", json={"operations": list(operations)}, **more)


def found(api: httpx.Client, collection: str) -> dict[str, Any]:
    documents = api.get(f"/{collection}/docs").json()["documents"]
    return {d.pop("_id"): {k: v for k, v in d.items() if not k.endswith("At")} for d in documents}


def test_batch_does_each_kind_of_write_in_order(api: httpx.Client, collection: str) -> None:
    other = f"{collection}-other"
    for id in ("u", "r", "d"):
        assert api.put(f"/{collection}/docs/{id}", json={"n": 1}).status_code == 201
    response = send(
        api,
        {"op": "insert", "collection": other, "document": {"a": 1}, "id": "i"},
        {"op": "update", "collection": collection, "id": "u", "fields": {"n": {"increment": 4}}},
        {"op": "replace", "collection": collection, "id": "r", "document": {"m": 2}},
        {"op": "replace", "collection": collection, "id": "new", "document": {"m": 3}},
        {"op": "delete", "collection": collection, "id": "d"},
        {"op": "update", "collection": other, "id": "i", "fields": {"a": 2}},
    )
    assert response.status_code == 200, response.text
    body = response.json()
    assert [result.get("deleted", False) for result in body["results"]] == [False] * 4 + [True, False]
    assert [result["_id"] for result in body["results"]] == ["i", "u", "r", "new", "d", "i"]
    assert found(api, collection) == {"u": {"n": 5}, "r": {"m": 2}, "new": {"m": 3}}
    assert found(api, other) == {"i": {"a": 2}}
    assert etag(api.get(f"/{collection}/docs/u")) == body["txn"] + 1


@pytest.mark.parametrize(
    ("failing", "status", "code"),
    [
        ({"op": "insert", "id": "there", "document": {}}, 409, "CONFLICT"),
        ({"op": "insert", "document": {"e": "x", "unique": ["e"]}}, 409, "CONFLICT"),
        ({"op": "update", "id": "there", "fields": {"e": {"increment": 1}}}, 400, "INVALID_INCREMENT"),
        ({"op": "update", "id": "no", "fields": {}}, 404, "NOT_FOUND"),
        ({"op": "update", "id": "there", "fields": {}, "ifMatch": "1"}, 412, "PRECONDITION_FAILED"),
        ({"op": "replace", "id": "there", "document": {}, "where": {"e": "y"}}, 412, "CONDITION_FAILED"),
        ({"op": "delete", "id": "there", "where": {"e": {"gt": "x"}}}, 412, "CONDITION_FAILED"),
        ({"op": "delete", "id": "no"}, 404, "NOT_FOUND"),
    ],
)
def test_first_failure_undoes_all(
    api: httpx.Client, collection: str, failing: Operation, status: int, code: str
) -> None:
    assert api.put(f"/{collection}/docs/there", json={"e": "x"}).status_code == 201
    before = api.get(f"/{collection}/docs").json()
    response = send(
        api,
        {"op": "insert", "collection": collection, "id": "first", "document": {}},
        {"op": "insert", "collection": f"{collection}-new", "document": {}},
        {"collection": collection, **failing},
        {"op": "insert", "collection": collection, "id": "last", "document": {}},
    )
    assert refusal(response) == (status, code)
    assert response.json()["index"] == 2
    assert api.get(f"/{collection}/docs").json() == before
    assert f"{collection}-new" not in [c["name"] for c in api.get("/collections").json()["collections"]]
    after = api.put(f"/{collection}/docs/after", json={})
    assert etag(after) == before["seq"] + 1


def test_conditions_see_what_the_batch_has_written(api: httpx.Client, collection: str) -> None:
    assert api.put(f"/{collection}/docs/pen", json={"stock": 2}).status_code == 201
    buy = {
        "op": "update",
        "collection": collection,
        "id": "pen",
        "fields": {"stock": {"decrement": 1}},
        "where": {"stock": {"gt": 0}},
    }
    assert refusal(send(api, buy, buy, buy)) == (412, "CONDITION_FAILED")
    assert send(api, buy, buy).status_code == 200
    assert found(api, collection) == {"pen": {"stock": 0}}


@pytest.mark.parametrize("tag", ['"{}"', "{}", 0])
def test_if_match_takes_an_etag_and_a_seq(api: httpx.Client, collection: str, tag: str | int) -> None:
    seq = etag(api.put(f"/{collection}/docs/a", json={}))
    current = seq if tag == 0 else str(tag).format(seq)
    operation = {"op": "delete", "collection": collection, "id": "a", "ifMatch": current}
    assert send(api, operation).status_code == 200


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ([], "INVALID_OPERATION"),
        ({}, "INVALID_DOCUMENT"),
        ({"operations": []}, "INVALID_OPERATION"),
        ({"operations": {}}, "INVALID_DOCUMENT"),
        ({"operations": [], "more": 1}, "INVALID_DOCUMENT"),
        ({"operations": [1]}, "INVALID_OPERATION"),
        ({"operations": [{"op": "upsert", "collection": "c"}]}, "INVALID_OPERATION"),
        ({"operations": [{"op": "insert", "document": {}}]}, "INVALID_OPERATION"),
        ({"operations": [{"op": "insert", "collection": "c"}]}, "INVALID_OPERATION"),
        (
            {"operations": [{"op": "insert", "collection": "c", "document": {}, "where": {}}]},
            "INVALID_OPERATION",
        ),
        ({"operations": [{"op": "update", "collection": "c", "fields": {}}]}, "INVALID_OPERATION"),
        ({"operations": [{"op": "update", "collection": "c", "id": "a", "document": {}}]}, "INVALID_OPERATION"),
        ({"operations": [{"op": "delete", "collection": "c", "id": "a/b"}]}, "INVALID_ID"),
        ({"operations": [{"op": "delete", "collection": "c c", "id": "a"}]}, "INVALID_COLLECTION"),
        ({"operations": [{"op": "delete", "collection": "c", "id": "a", "where": []}]}, "INVALID_FILTER"),
        ({"operations": [{"op": "delete", "collection": "c", "id": 7}]}, "INVALID_OPERATION"),
        ({"operations": [{"op": "insert", "collection": "c", "document": [1]}]}, "INVALID_DOCUMENT"),
        (
            {"operations": [{"op": "update", "collection": "c", "id": "a", "fields": {"_id": "b"}}]},
            "INVALID_ID",
        ),
    ],
)
def test_malformed_batch_is_a_400(api: httpx.Client, body: Any, code: str) -> None:
    response = api.post("/batch", json=body)
    assert refusal(response) == (400, code)
    if code != "INVALID_DOCUMENT" and isinstance(body, dict) and body.get("operations"):
        assert response.json()["index"] == 0


def test_batch_is_bounded(start_server: StartServer) -> None:
    server = start_server("--max-bulk-documents", "3", "--max-body-bytes", "2000")
    insert = {"op": "insert", "collection": "c", "document": {"_id": "a", "t": "x" * 900}}
    grow = {"op": "update", "collection": "c", "id": "a", "fields": {"n": {"increment": 1}}}
    assert refusal(server.request("POST", "/batch", json={"operations": [grow] * 4})) == (
        413,
        "TOO_MANY_DOCUMENTS",
    )
    assert server.request("POST", "/batch", json={"operations": [insert]}).status_code == 200
    assert refusal(server.request("POST", "/batch", json={"operations": [grow] * 3})) == (
        413,
        "BATCH_TOO_LARGE",
    )
    assert server.request("GET", "/c/docs/a").json().get("n") is None


def test_public_key_cannot_send_a_batch(server: Server, collection: str) -> None:
    public = server.new_key(public=True)["key"]
    operation = {"op": "insert", "collection": collection, "document": {}}
    response = server.request("POST", "/batch", json={"operations": [operation]}, key=public)
    assert refusal(response) == (403, "READ_ONLY_KEY")


def test_events_of_a_batch_share_their_txn_live_and_from_the_log(
    server: Server, api: httpx.Client, collection: str
) -> None:
    other = f"{collection}-other"
    url = f"{server.ws_url}/?token={server.token(collection, other)}"
    with connect(f"{url}&since=now") as live, connect(url) as plain:
        start = receive(live)["seq"]
        txn = send(
            api,
            {"op": "insert", "collection": collection, "id": "a", "document": {"n": 1}},
            {"op": "insert", "collection": other, "id": "b", "document": {}},
            {"op": "update", "collection": collection, "id": "a", "fields": {"n": 2}},
        ).json()["txn"]
        assert api.post(f"/{collection}/docs", json={}).status_code == 201
        bulk = api.post(f"/{collection}/bulk?atomic=true", json=[{}, {}])
        assert bulk.status_code == 200
        events = [receive(live) for _ in range(6)]
        assert [set(receive(plain)) for _ in range(6)] == [{"type", "collection", "data"}] * 6
    shape = [(event["seq"], event["collection"], event.get("txn")) for event in events]
    assert shape == [
        (txn, collection, txn),
        (txn + 1, other, txn),
        (txn + 2, collection, txn),
        (txn + 3, collection, None),
        (txn + 4, collection, txn + 4),
        (txn + 5, collection, txn + 4),
    ]
    with connect(f"{url}&since={start}") as again:
        assert receive(again)["type"] == "ready"
        assert [receive(again) for _ in range(6)] == events
    changes = api.get(f"/{other}/changes", params={"since": start}).json()["changes"]
    assert [(change["seq"], change["txn"]) for change in changes] == [(txn + 1, txn)]


def test_unique_of_a_large_collection_holds_in_a_batch(api: httpx.Client, collection: str) -> None:
    """Its index is first built in steps; the batch waits for it."""
    documents = [{"e": n} for n in range(1000)]
    for _ in range(3):
        assert api.post(f"/{collection}/bulk", json=documents).json()["inserted"] == 1000
    insert = {"op": "insert", "collection": collection, "document": {"e": 7, "unique": ["e"]}}
    assert refusal(send(api, insert)) == (409, "CONFLICT")
    insert["document"] = {"e": 7000, "unique": ["e"]}
    response = send(api, insert, insert)
    assert refusal(response) == (409, "CONFLICT")
    assert response.json()["index"] == 1
    assert json.loads(send(api, insert).text)["results"][0]["e"] == 7000
