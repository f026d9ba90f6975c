"""Live queries over WebSockets: a filter's view of a collection, from a snapshot or a seq on, without a gap."""

from __future__ import annotations

import json
import random
from typing import Any
from urllib.parse import quote

import pytest
from websockets.sync.client import ClientConnection

from tests.conftest import Server, StartServer, receive
from tests.realtime.live import ask, delete, listening, put, shape, snapshot
from tests.realtime.raw import Writers

# --- what comes ----------------------------------------------------------------------------------


def test_documents_that_enter_stay_in_and_leave_the_view(server: Server, collection: str) -> None:
    with listening(server, collection) as ws:
        reply = ask(ws, collection=collection, filter={"n": {"gte": 5}})
        assert reply["type"] == "subscribed"
        first = put(server, collection, "a", n=5)
        put(server, collection, "b", n=1)  # outside
        put(server, collection, "a", n=6)
        entered = put(server, collection, "b", n=7)
        last = server.request("GET", f"/{collection}/docs/a").json()
        put(server, collection, "a", n=2)  # leaves
        put(server, collection, "a", n=3)  # outside
        delete(server, collection, "a")
        delete(server, collection, "b")
        events = [receive(ws) for _ in range(5)]
    assert [shape(event) for event in events] == [
        ("insert", "insert", "a"),
        ("update", "update", "a"),
        ("insert", "update", "b"),
        ("delete", "update", "a"),
        ("delete", "delete", "b"),
    ]
    assert events[0]["data"] == first
    assert events[2]["data"] == entered
    assert events[3]["data"] == last  # as it last was in view, never its new state
    assert {event["query"] for event in events} == {reply["query"]}
    assert all(event.keys() == {"seq", "type", "collection", "data", "query", "cause"} for event in events)
    assert [event["seq"] for event in events] == sorted({event["seq"] for event in events})


def test_select_shows_its_fields_and_hides_updates_of_others(server: Server, collection: str) -> None:
    with listening(server, collection) as ws:
        ask(ws, collection=collection, filter={"room": "r"}, select=["text", "by.name"])
        put(server, collection, "a", room="r", text="x", secret=1, by={"name": "ada", "age": 3})
        put(server, collection, "a", room="r", text="x", secret=2, by={"name": "ada", "age": 4})
        put(server, collection, "a", room="r", text="y", secret=3, by={"name": "ada"})
        put(server, collection, "a", room="s", text="z", secret=4)
        events = [receive(ws) for _ in range(3)]
    visible = {"_id": "a", "by": {"name": "ada"}}
    assert [(event["type"], event["data"]) for event in events] == [
        ("insert", {**visible, "text": "x"}),
        ("update", {**visible, "text": "y"}),
        ("delete", {**visible, "text": "y"}),
    ]


def test_events_of_a_batch_have_their_txn_in_a_query_too(server: Server, collection: str) -> None:
    insert = {"op": "insert", "collection": collection}
    with listening(server, collection) as ws:
        ask(ws, collection=collection, filter={"n": 1})
        operations = [{**insert, "document": {"n": n}} for n in (0, 1, 1)]
        txn = server.request("POST", "/batch", json={"operations": operations}).json()["txn"]
        assert [(event["seq"], event["txn"]) for event in (receive(ws), receive(ws))] == [
            (txn + 1, txn),
            (txn + 2, txn),
        ]


def test_one_connection_follows_many_queries_and_ends_one(server: Server, collection: str) -> None:
    with listening(server, collection, query=collection) as ws:
        low = ask(ws, collection=collection, filter={"n": {"lt": 5}})["query"]
        even = ask(ws, collection=collection, filter={"even": True})["query"]
        assert ask(ws, collection=collection, filter={"even": {"eq": True}})["query"] == even
        put(server, collection, "a", n=2, even=True)
        assert {receive(ws).get("query") for _ in range(3)} == {None, low, even}
        assert ask(ws, "unsubscribe", query=low) == {"type": "unsubscribed", "ref": "r", "query": low}
        put(server, collection, "b", n=4, even=True)
        assert {receive(ws).get("query") for _ in range(2)} == {None, even}
        assert ask(ws, "unsubscribe", collection=collection)["type"] == "unsubscribed"
        put(server, collection, "c", n=4, even=True)
        assert receive(ws)["query"] == even
        assert ask(ws, "unsubscribe", query=low)["code"] == "NOT_SUBSCRIBED"
        assert ask(ws, "unsubscribe", collection=collection)["code"] == "NOT_SUBSCRIBED"


# --- plain mode, server-sent events, pages -------------------------------------------------------


def test_plain_mode_takes_one_filter_for_a_collection(server: Server, collection: str) -> None:
    filters = quote(json.dumps({collection: {"n": 1}}))
    with server.connect(collection, query=f"collections={collection}&filter={filters}") as ws:
        put(server, collection, "a", n=0)
        put(server, collection, "b", n=1)
        put(server, collection, "b", n=2)
        events = [receive(ws), receive(ws)]
        assert [(event["type"], event["data"]["n"]) for event in events] == [("insert", 1), ("delete", 1)]
        assert all(event.keys() == {"type", "collection", "data"} for event in events)
        assert ask(ws, collection=collection, filter={"n": {"gte": 5}})["type"] == "subscribed"
        put(server, collection, "c", n=1)
        put(server, collection, "d", n=5)
        assert receive(ws)["data"]["n"] == 5
        assert ask(ws, collection=collection)["type"] == "subscribed"
        put(server, collection, "e", n=0)
        assert receive(ws)["data"]["n"] == 0
        for members in ({"snapshot": True}, {"since": 1}):
            reply = ask(ws, collection=collection, filter={}, **members)
            assert reply["code"] == "INVALID_MESSAGE"


def test_pages_and_long_polls_take_a_filter(server: Server, collection: str) -> None:
    start = server.request("GET", f"/{collection}/docs").json()["seq"]
    for n in range(6):
        put(server, collection, "a", n=n)
    params = {"filter": '{"n": {"in": [2, 3]}}', "select": "n", "since": start}
    page = server.request("GET", f"/{collection}/changes", params=params).json()
    assert [(change["type"], change["data"]) for change in page["changes"]] == [
        ("insert", {"_id": "a", "n": 2}),
        ("update", {"_id": "a", "n": 3}),
        ("delete", {"_id": "a", "n": 3}),
    ]
    assert page["seq"] == start + 6
    params |= {"limit": 1}
    one = server.request("GET", f"/{collection}/changes", params=params).json()
    assert one["hasMore"]
    with Writers(server, f"{collection}-other"):
        put(server, collection, "b", n=2)
        params = {"filter": '{"n": 2}', "since": page["seq"], "wait": 20}
        waited = server.request("GET", f"/{collection}/changes", params=params).json()
    assert [change["data"]["_id"] for change in waited["changes"]] == ["b"]
    for filter, code in (
        ("[]", "INVALID_FILTER"),
        ('{"a": {"x": 1}}', "UNKNOWN_OPERATOR"),
        ("{", "INVALID_JSON"),
    ):
        refused = server.request("GET", f"/{collection}/changes", params={"filter": filter})
        assert (refused.status_code, refused.json()["code"]) == (400, code)


# --- in all weathers -----------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(2))
def test_view_is_what_a_find_says_over_kills_and_reconnects(start_server: StartServer, seed: int) -> None:
    """A client keeps a view by its snapshot and events, and a cursor for its query. Documents move in and out;
    the server is killed; the client reconnects. In between, the server tells its progress, as it does when a
    client is silent."""
    rng = random.Random(seed)
    server = start_server("--ping-interval", "0.1")
    filter = {"or": [{"g": {"gte": 3}}, {"tags": {"contains": "x"}}]}
    view: dict[str, dict[str, Any]] = {}
    cursor: int | None = None
    for round in range(6):
        with listening(server, "c") as ws:
            if cursor is None:
                reply, documents = snapshot(ws, collection="c", filter=filter)
                view = {document["_id"]: document for document in documents}
            else:
                reply = ask(ws, collection="c", filter=filter, since=cursor)
            cursor = reply["seq"]
            for step in range(40):
                id = f"d{rng.randrange(12)}"
                if rng.random() < 0.2:
                    server.request("DELETE", f"/c/docs/{id}")
                else:
                    tags = [rng.choice("xyz") for _ in range(rng.randrange(2))]
                    put(server, "c", id, g=rng.randrange(5), tags=tags)
                if round % 2 and step == 25:
                    break  # some events stay unread
            if round % 2 == 0:
                head = server.request("GET", "/c/docs").json()["seq"]
                put(server, "c", "mark", g=9)
                while cursor < head + 1:
                    cursor = take(ws, view, cursor)
                assert view == found(server, filter)
            else:
                for _ in range(rng.randrange(8)):
                    cursor = take(ws, view, cursor)
        server.kill()
        server.start()


def take(ws: ClientConnection, view: dict[str, dict[str, Any]], cursor: int) -> int:
    """Take in the next message; the cursor behind it."""
    message = receive(ws)
    seq: int = message["seq"]
    if message["type"] == "progress":
        return max(cursor, seq)
    assert seq > cursor
    apply(view, message)
    return seq


def apply(view: dict[str, dict[str, Any]], event: dict[str, Any]) -> None:
    id = event["data"]["_id"]
    assert (id in view) == (event["type"] != "insert"), (event, view.get(id))
    if event["type"] == "delete":
        assert view.pop(id) == event["data"]
    else:
        view[id] = event["data"]


def found(server: Server, filter: dict[str, Any]) -> dict[str, dict[str, Any]]:
    params = {"filter": json.dumps(filter), "limit": 1000}
    documents = server.request("GET", "/c/docs", params=params).json()["documents"]
    return {document["_id"]: document for document in documents}
