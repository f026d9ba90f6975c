"""Live queries that are malformed, too many or too large are refused or reset, and harm no other."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.conftest import Server, StartServer, receive, wait_until
from tests.realtime.live import ask, listening, put


@pytest.mark.parametrize(
    ("members", "code"),
    [
        ({"filter": {"a": {"like": 1}}}, "UNKNOWN_OPERATOR"),
        ({"filter": {"a": {}}}, "INVALID_FILTER"),
        ({"filter": {"or": 1}}, "INVALID_FILTER"),
        ({"filter": {"a..b": 1}}, "INVALID_FIELD"),
        ({"filter": {"a": {"in": list(range(3000))}}}, "INVALID_FILTER"),
        ({"select": [1]}, "INVALID_FIELD"),
        ({"select": ["a'\"b"]}, "INVALID_FIELD"),
        ({"select": [f"f{n}" for n in range(300)]}, "INVALID_REQUEST"),
        ({"filter": {}, "snapshot": True, "since": 1}, "INVALID_MESSAGE"),
        ({"filter": None}, "INVALID_MESSAGE"),
        ({"since": 1.5}, "INVALID_MESSAGE"),
    ],
)
def test_malformed_subscription_is_refused_and_harms_nothing(
    server: Server, collection: str, members: dict[str, Any], code: str
) -> None:
    with listening(server, collection, query=collection) as ws:
        reply = ask(ws, collection=collection, **members)
        assert (reply["type"], reply["code"]) == ("error", code)
        document = put(server, collection, "a", n=1)
        assert receive(ws)["data"] == document


def test_queries_are_bounded(start_server: StartServer) -> None:
    server = start_server(
        "--max-subscriptions", "5", "--max-residual-queries", "2", "--workers", "1"
    )  # the bound is that of one core
    with listening(server, "c") as ws, listening(server, "c") as other:
        for n in range(2):
            assert ask(ws, collection="c", filter={"n": {"ne": n}})["type"] == "subscribed"
        assert ask(ws, collection="c", filter={"n": {"ne": 1}})["type"] == "subscribed"  # has it already
        assert ask(other, collection="c", filter={"n": {"ne": 1}})["type"] == "subscribed"  # shares it
        reply = ask(other, collection="c", filter={"n": {"ne": 5}}, snapshot=True)
        assert reply["code"] == "TOO_MANY_RESIDUAL_QUERIES"
        for n in range(3):
            assert ask(ws, collection="c", filter={"n": n})["type"] == "subscribed"
        assert ask(ws, collection="c", filter={"n": 9})["code"] == "TOO_MANY_SUBSCRIPTIONS"
        text = server.request("GET", "/metrics").text
        assert "paperdb_live_queries 5.0" in text
        assert "paperdb_residual_queries 2.0" in text
    wait_until(lambda: "paperdb_live_queries 0.0" in server.request("GET", "/metrics").text)
    assert "paperdb_residual_queries 0.0" in server.request("GET", "/metrics").text


def test_large_document_that_many_queries_show_is_bounded(server: Server, collection: str) -> None:
    start = server.request("GET", f"/{collection}/docs").json()["seq"]
    filters = [{"n": {"lt": n}} for n in range(10, 20)]
    with listening(server, collection) as live:
        for filter in filters:
            ask(live, collection=collection, filter=filter)
        large = put(server, collection, "large", n=1, pad="x" * 900_000)
        small = put(server, collection, "small", n=1)
        events = [receive(live) for _ in range(20)]
    with listening(server, collection) as late:
        for filter in filters:
            about = {"collection": collection, "filter": filter, "since": start}
            late.send(json.dumps({"action": "subscribe", **about}))
        again = [message for _ in range(30) if (message := receive(late))["type"] != "subscribed"]
    for found in (events, again):
        whole = [event for event in found if event["type"] == "insert"]
        assert [event["data"] for event in whole[:5]] == [large] * 5
        resets = [event for event in found if event["type"] == "reset"]
        assert {event["reason"] for event in resets} <= {"size"}
        assert [event["data"] for event in whole if event["data"] == small] == [small] * 10
    assert len([event for event in events if event["type"] == "reset"]) == 5


def test_progress_keeps_the_cursor_young(start_server: StartServer) -> None:
    server = start_server("--ping-interval", "0.3")
    with listening(server, "c") as ws:
        ask(ws, collection="c", filter={"n": 1})
        for n in range(5):
            put(server, "other", str(n))
        progress = receive(ws)
        while progress["seq"] < 5:
            progress = receive(ws)
        assert progress == {"type": "progress", "seq": 5}
