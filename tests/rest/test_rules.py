"""Reading with a token whose rule hides documents and fields: for each way to learn what is hidden, an attack.

An attack compares two worlds that differ only in what is hidden: the responses must not differ. The clients of
these tests hold one token; `api` holds the secret key.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from tests.conftest import Server, StartServer, receive
from tests.rest.rules import Holder, find, holders, ids, ruled, told
from tests.rest.tools import client_of, refusal

FILTER = {"userId": "alice"}
SELECT = ["status", "total", "address.city"]
DOCUMENTS = [
    {"_id": "a1", "userId": "alice", "status": "open", "total": 5, "address": {"city": "Rome", "zip": "1"}},
    {"_id": "b1", "userId": "bob", "status": "open", "total": 7, "secret": "x"},
    {"_id": "a2", "userId": "alice", "status": "paid", "total": 3, "secret": "y"},
    {"_id": "a3", "userId": "alice", "status": "open", "total": 9, "address": "nowhere"},
]
VISIBLE = {
    "a1": {"_id": "a1", "status": "open", "total": 5, "address": {"city": "Rome"}},
    "a2": {"_id": "a2", "status": "paid", "total": 3},
    "a3": {"_id": "a3", "status": "open", "total": 9},
}


@pytest.fixture
def holder(server: Server) -> Iterator[Holder]:
    with holders(server) as holder:
        yield holder


@pytest.fixture
def orders(api: httpx.Client, collection: str) -> str:
    assert api.post(f"/{collection}/bulk", json=DOCUMENTS).json()["failed"] == 0
    return collection


@pytest.fixture
def alice(holder: Holder, orders: str) -> httpx.Client:
    """She sees some fields of her own orders."""
    return holder({orders: {"filter": FILTER, "select": SELECT}})


# --- what is visible -----------------------------------------------------------------------------


def test_find_get_count_and_query_show_the_view(alice: httpx.Client, orders: str) -> None:
    found = find(alice, orders, count="true").json()
    assert found["documents"] == [*VISIBLE.values()]
    assert (found["total"], found["hasMore"]) == (3, False)
    assert alice.post(f"/{orders}/query", json={"sort": "-total"}).json()["documents"] == [
        VISIBLE["a3"],
        VISIBLE["a1"],
        VISIBLE["a2"],
    ]
    for id, document in VISIBLE.items():
        assert alice.get(f"/{orders}/docs/{id}").json() == document
    assert alice.get(f"/{orders}/count").json() == {"count": 3}
    assert alice.get(f"/{orders}/count", params={"filter": '{"status": "open"}'}).json() == {"count": 2}


def test_what_is_visible_can_be_filtered_sorted_and_selected(alice: httpx.Client, orders: str) -> None:
    assert ids(find(alice, orders, filter={"address.city": "Rome"})) == ["a1"]
    assert ids(find(alice, orders, filter={"_id": {"gt": "a1"}}, sort="-_id")) == ["a3", "a2"]
    assert find(alice, orders, select="total", limit="1").json()["documents"] == [{"_id": "a1", "total": 5}]
    assert alice.get(f"/{orders}/docs/a1", params={"select": "address.city"}).json() == {
        "_id": "a1",
        "address": {"city": "Rome"},
    }


def test_an_empty_select_shows_ids_and_an_empty_filter_shows_all(holder: Holder, orders: str) -> None:
    client = holder({orders: {"filter": {}, "select": []}})
    assert client.get(f"/{orders}/docs/b1").json() == {"_id": "b1"}
    assert client.get(f"/{orders}/count").json() == {"count": 4}


def test_a_token_without_rules_reads_its_collections_whole(
    api: httpx.Client, holder: Holder, orders: str
) -> None:
    client = holder([orders])
    for path in (f"/{orders}/docs", f"/{orders}/docs/b1", f"/{orders}/count"):
        assert told(client.get(path)) == told(api.get(path))
    for path in ("/other/docs", "/other/docs/a", "/other/count"):
        assert refusal(client.get(path)) == (403, "NOT_IN_TOKEN")


def test_a_rule_for_every_collection_holds_where_no_other_is_named(holder: Holder, orders: str) -> None:
    client = holder({"*": {"filter": FILTER}, "other": {}})
    assert client.get(f"/{orders}/count").json() == {"count": 3}
    assert client.get("/other/count").status_code == 200
    assert client.get("/third/count").json() == {"count": 0}


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/collections"),
        ("GET", "/{c}/schema"),
        ("PUT", "/{c}/schema"),
        ("DELETE", "/{c}/schema"),
        ("DELETE", "/{c}?confirm={c}"),
        ("GET", "/{c}/docs/a1/history"),
        ("POST", "/realtime/token"),
        ("POST", "/realtime/revoke"),
    ],
)
def test_calls_that_know_no_rules_take_no_tokens(
    alice: httpx.Client, orders: str, method: str, path: str
) -> None:
    response = alice.request(method, path.format(c=orders), json={})
    assert refusal(response) == (403, "TOKEN_NOT_ALLOWED")


@pytest.mark.parametrize("rule", [{"filter": FILTER}, {"select": ["status"]}])
def test_changes_are_not_yet_delivered_within_a_rule(
    server: Server, holder: Holder, orders: str, rule: dict[str, Any]
) -> None:
    client = holder({orders: rule, "free": {}})
    for headers in ({}, {"Accept": "text/event-stream"}):
        response = client.get(f"/{orders}/changes", params={"since": "0"}, headers=headers)
        assert refusal(response) == (403, "NOT_IN_TOKEN")
    assert client.get("/free/changes", params={"since": "0"}).status_code == 200


def test_a_socket_has_no_changes_within_a_rule(server: Server, orders: str) -> None:
    token = ruled(server, {orders: {"filter": FILTER}, "free": {}})
    every = ruled(server, {"*": {}, orders: {"select": ["status"]}})
    for text in (token, every):
        with pytest.raises(InvalidStatus) as refused:
            connect(f"{server.ws_url}/?token={text}", proxy=None)
        assert refused.value.response.status_code == 403
        with connect(f"{server.ws_url}/?token={text}&collections=free", proxy=None, close_timeout=2) as ws:
            ws.send(json.dumps({"action": "subscribe", "collection": orders, "ref": 1}))
            reply = receive(ws)
            assert (reply["type"], reply["code"], reply["ref"]) == ("error", "NOT_IN_TOKEN", 1)
    with connect(f"{server.ws_url}/?token={server.token(orders)}", proxy=None, close_timeout=2) as ws:
        ws.send(json.dumps({"action": "auth", "token": token, "ref": 1}))
        assert receive(ws)["code"] == "NOT_IN_TOKEN"


# --- attacks: documents outside the rule ---------------------------------------------------------


def test_a_document_outside_the_rule_is_missing(alice: httpx.Client, orders: str) -> None:
    for headers in ({}, {"If-Match": "*"}, {"If-None-Match": "*"}, {"If-Match": '"1"'}):
        outside, missing = (alice.get(f"/{orders}/docs/{id}", headers=headers) for id in ("b1", "no"))
        assert told(outside) == told(missing)
        assert refusal(outside) == (404, "NOT_FOUND")


@pytest.mark.parametrize(
    "filter",
    [
        {"or": [{}, {"status": "open"}]},
        {"not": {"status": "no"}},
        {"_id": "b1"},
        {"_id": {"in": ["b1", "a1"]}},
        {"and": []},
        {"or": [{"_id": "b1"}, {"not": {"_id": "b1"}}]},
        {"total": 7},
    ],
)
def test_no_filter_widens_the_rule(alice: httpx.Client, orders: str, filter: dict[str, Any]) -> None:
    assert "b1" not in ids(find(alice, orders, filter=filter))
    body = {"filter": filter, "sort": "-total", "count": True}
    response = alice.post(f"/{orders}/query", json=body)
    assert "b1" not in ids(response)
    count = alice.get(f"/{orders}/count", params={"filter": json.dumps(filter)}).json()["count"]
    assert count == response.json()["total"] == len(ids(response))


def test_the_rule_holds_with_an_index_on_either_filter(api: httpx.Client, holder: Holder, orders: str) -> None:
    """A plan made of both filters proposes no more than either allows."""
    schema = {"properties": {"userId": {"index": True}, "total": {"index": True}}}
    assert api.put(f"/{orders}/schema", json=schema).status_code == 200
    client = holder({orders: {"filter": {"userId": {"in": ["alice", "carol"]}, "total": {"gte": 4}}}})
    assert ids(find(client, orders, sort="total")) == ["a1", "a3"]
    assert ids(find(client, orders, filter={"total": {"lt": 9}})) == ["a1"]
    assert ids(find(client, orders, filter={"userId": "bob"})) == []
    assert ids(find(client, orders, filter={"userId": {"in": ["bob", "alice"]}, "total": 9})) == ["a3"]


def test_offset_limit_and_total_count_only_what_is_visible(alice: httpx.Client, orders: str) -> None:
    found = find(alice, orders, offset="2", limit="1", count="true").json()
    assert ([d["_id"] for d in found["documents"]], found["hasMore"], found["total"]) == (["a3"], False, 3)


# --- attacks: fields outside the select ----------------------------------------------------------

HIDDEN = ["secret", "no-such-field", "userId", "address", "address.zip", "createdAt", "statuses", "status2"]


@pytest.mark.parametrize("field", HIDDEN)
def test_a_hidden_field_is_refused_whether_or_not_it_exists(
    alice: httpx.Client, orders: str, field: str
) -> None:
    refusals = set()
    for name in (field, "no-such-field"):
        filters = [
            *({name: "x"}, {name: {"exists": True}}, {name: {"startsWith": "x"}}, {name: {"contains": "x"}}),
            *({"or": [{"status": "open"}, {name: 1}]}, {"and": [{name: None}]}, {"not": {name: 1}}),
        ]
        asked: list[dict[str, Any]] = [{"filter": filter} for filter in filters]
        for query in [*asked, {"sort": name}, {"sort": f"status,-{name}"}, {"select": f"status,{name}"}]:
            response = find(alice, orders, **query)
            refusals.add(response.text.replace(name, "FIELD"))
            assert refusal(response) == (400, "FIELD_NOT_IN_TOKEN")
            assert told(alice.post(f"/{orders}/query", json=query)) == told(response)
            if "filter" in query:
                text = json.dumps(query["filter"])
                assert told(alice.get(f"/{orders}/count", params={"filter": text})) == told(response)
        for id in ("a1", "b1", "no"):
            response = alice.get(f"/{orders}/docs/{id}", params={"select": name})
            refusals.add(response.text.replace(name, "FIELD"))
    assert len(refusals) == 1


def test_the_etag_changes_with_what_is_visible_and_with_nothing_else(
    api: httpx.Client, alice: httpx.Client, orders: str
) -> None:
    path = f"/{orders}/docs/a1"
    before = alice.get(path)
    tag = before.headers["etag"]
    for fields in ({"secret": "new"}, {"userId": "alice"}, {"address": {"city": "Rome", "zip": "2"}}):
        assert api.patch(path, json=fields).status_code == 200
        assert told(alice.get(path)) == told(before)
        assert told(alice.get(path, headers={"If-Match": tag})) == told(before)
        assert alice.get(path, headers={"If-None-Match": tag}).status_code == 304
    seq = api.get(path).headers["etag"]
    assert alice.get(path, headers={"If-None-Match": seq}).status_code == 200
    assert refusal(alice.get(path, headers={"If-Match": seq})) == (412, "PRECONDITION_FAILED")
    api.patch(path, json={"total": 6})
    assert alice.get(path).headers["etag"] != tag
    assert alice.get(path, headers={"If-None-Match": tag}).status_code == 200
    assert refusal(alice.get(path, headers={"If-Match": tag})) == (412, "PRECONDITION_FAILED")


def test_the_size_of_hidden_fields_never_refuses_a_page(start_server: StartServer) -> None:
    server = start_server("--max-result-bytes", "2000000")
    documents = [{"_id": f"d{n}", "n": n, "hidden": "x" * 900_000, "big": "y" * 700_000} for n in range(4)]
    with client_of(server) as client:
        client.headers["Authorization"] = f"Bearer {server.key}"
        for document in documents:
            assert client.post("/c/docs", json=document | {"big": "y" * 100_000}).status_code == 201
        assert refusal(client.get("/c/docs")) == (400, "RESULT_TOO_LARGE")
        client.headers["Authorization"] = f"Bearer {ruled(server, {'c': {'select': ['n', 'big']}})}"
        page = client.get("/c/docs?sort=-n&limit=3&select=big")
        assert ids(page) == ["d3", "d2", "d1"]
        assert ids(client.get(f"/c/docs?sort=-n&after={page.json()['next']}")) == ["d0"]
        server.request("PATCH", "/c/docs/d0", json={"big": "y" * 900_000, "hidden": 0})
        server.request("PATCH", "/c/docs/d1", json={"big": "y" * 900_000, "hidden": 0})
        server.request("PATCH", "/c/docs/d2", json={"big": "y" * 900_000, "hidden": 0})
        assert refusal(client.get("/c/docs")) == (400, "RESULT_TOO_LARGE")


# --- attacks: cursors ----------------------------------------------------------------------------


def pages(client: httpx.Client, collection: str, **query: str) -> tuple[list[str], list[str]]:
    """The ids, and each `next`."""
    found: list[str] = []
    cursors: list[str] = []
    while True:
        page = find(client, collection, limit="1", **query, **({"after": cursors[-1]} if cursors else {}))
        found += ids(page)
        if "next" not in page.json():
            return found, cursors
        cursors.append(page.json()["next"])


@pytest.mark.parametrize("sort", ["", "-", "total", "-total,-", "status,total"])
def test_pages_join_to_the_whole_view(alice: httpx.Client, orders: str, sort: str) -> None:
    assert pages(alice, orders, sort=sort)[0] == ids(find(alice, orders, sort=sort))


def test_a_cursor_can_be_neither_read_nor_made(
    api: httpx.Client, alice: httpx.Client, holder: Holder, orders: str
) -> None:
    """It holds the seq of the document's insert. One made by hand would find it by comparing."""
    (cursor, *_), (again, *_) = (pages(alice, orders, sort="total")[1] for _ in range(2))
    plain = pages(api, orders, sort="total")[1][0]
    raw = base64.urlsafe_b64decode(cursor + "==")
    assert cursor != again  # nor can two be compared
    assert json.loads(base64.urlsafe_b64decode(plain + "=="))[0] == "total"
    assert b"total" not in raw
    changed = [raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :] for at in range(len(raw))]
    texts = [base64.urlsafe_b64encode(text).decode() for text in [*changed, raw[:20], b""]]
    for text in [plain, cursor[:-4], "é", "AAAA", *texts]:
        assert refusal(find(alice, orders, sort="total", after=text)) == (400, "INVALID_CURSOR")
    assert refusal(find(alice, orders, sort="-total", after=cursor)) == (400, "INVALID_CURSOR")
    other = holder({"other": {"filter": FILTER}})
    assert refusal(find(other, "other", sort="total", after=cursor)) == (400, "INVALID_CURSOR")
    renewed = holder({orders: {"filter": FILTER, "select": SELECT}})
    assert ids(find(renewed, orders, sort="total", after=cursor)) == ["a1", "a3"]


def test_a_cursor_survives_a_new_signing_secret(start_server: StartServer) -> None:
    server = start_server()
    for n in range(3):
        server.insert("c", {"_id": f"d{n}"})
    with holders(server) as holder:
        client = holder({"c": {"select": []}})
        cursor = find(client, "c", limit="1").json()["next"]
        server.cli("keys", "rotate-signing")
        server.stop()
        server.start()
        assert ids(find(client, "c", after=cursor)) == ["d1", "d2"]


# --- attacks: explain, and errors ----------------------------------------------------------------


def test_explain_is_for_keys(alice: httpx.Client, holder: Holder, orders: str) -> None:
    for client in (alice, holder([orders])):
        assert refusal(find(client, orders, explain="true")) == (403, "READ_ONLY_KEY")


@pytest.mark.parametrize(
    "filter", [{"status": {"like": 1}}, {"status": {"in": 5}}, {"a..b": 1}, {"status": {}}]
)
def test_an_error_in_a_filter_says_nothing_of_the_rule(
    alice: httpx.Client, orders: str, filter: dict[str, Any]
) -> None:
    response = find(alice, orders, filter=filter)
    assert response.status_code == 400
    assert "alice" not in response.text
    assert "userId" not in response.text
