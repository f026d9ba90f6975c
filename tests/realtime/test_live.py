"""Live queries over WebSockets: a filter's view of a collection, from a snapshot or a seq on, without a gap."""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import ClientConnection, connect

from paperdb_trio.store.sqlite.file import database_file
from tests.auth.commands import run_here
from tests.conftest import Server, StartServer, receive, wait_until
from tests.realtime.raw import Writers
from tests.store.tools import rows

FORMATS = Path(__file__).parent.parent / "store" / "formats"


@contextmanager
def listening(server: Server, collection: str, rule: Any = None, query: str = "") -> Iterator[ClientConnection]:
    """A connection in cursor mode that follows nothing yet."""
    body = {"collections": {collection: rule} if rule is not None else [collection]}
    token = server.request("POST", "/realtime/token", json=body).json()["token"]
    target = f"{server.ws_url}/?token={token}&since=now&collections={query}"
    with connect(target, ssl=server.context, proxy=None, max_size=None, close_timeout=2) as ws:
        assert receive(ws)["type"] == "ready"
        yield ws


def ask(ws: ClientConnection, action: str = "subscribe", **members: Any) -> dict[str, Any]:
    """Send an action and return its reply."""
    ws.send(json.dumps({"action": action, "ref": "r", **members}))
    while (reply := receive(ws)).get("ref") != "r":
        pass
    return reply


def snapshot(ws: ClientConnection, **members: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    reply = ask(ws, snapshot=True, **members)
    assert reply["type"] == "subscribed", reply
    return reply, rest_of_snapshot(ws, reply["query"])


def rest_of_snapshot(ws: ClientConnection, query: str) -> list[dict[str, Any]]:
    documents: list[dict[str, Any]] = []
    while True:
        piece = receive(ws)
        assert (piece["type"], piece["query"]) == ("snapshot", query)
        documents += piece["documents"]
        if piece["last"]:
            return documents


def put(server: Server, collection: str, id: str, **fields: Any) -> dict[str, Any]:
    response = server.request("PUT", f"/{collection}/docs/{id}", json=fields)
    assert response.status_code in (200, 201), response.text
    document: dict[str, Any] = response.json()
    return document


def delete(server: Server, collection: str, id: str) -> None:
    assert server.request("DELETE", f"/{collection}/docs/{id}").status_code == 200


def shape(event: dict[str, Any]) -> tuple[str, str, str]:
    return event["type"], event["cause"], event["data"]["_id"]


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


# --- where it begins -----------------------------------------------------------------------------


def test_snapshot_shows_the_view_at_its_seq_and_then_what_follows(server: Server, collection: str) -> None:
    for n in range(10):
        put(server, collection, f"d{n}", n=n)
    with listening(server, collection) as ws:
        reply, documents = snapshot(ws, collection=collection, filter={"n": {"gte": 7}}, select=["n"])
        assert documents == [{"_id": f"d{n}", "n": n} for n in (7, 8, 9)]
        put(server, collection, "d8", n=0)
        event = receive(ws)
        assert (event["type"], event["data"], event["query"]) == (
            "delete",
            {"_id": "d8", "n": 8},
            reply["query"],
        )
        assert event["seq"] > reply["seq"]
        # Asked again, it begins anew.
        again, documents = snapshot(ws, collection=collection, filter={"n": {"gte": 7}}, select=["n"])
        assert again["query"] == reply["query"]
        assert [document["n"] for document in documents] == [7, 9]
        put(server, collection, "d9", n=10)
        assert receive(ws)["data"] == {"_id": "d9", "n": 10}


def test_empty_snapshot_is_one_piece(server: Server, collection: str) -> None:
    with listening(server, collection) as ws:
        assert snapshot(ws, collection=collection)[1] == []
        document = put(server, collection, "a", n=1)
        assert receive(ws)["data"] == document


def test_large_snapshot_comes_in_pieces_even_to_a_slow_reader(server: Server, collection: str) -> None:
    pad = "x" * 1000
    for _ in range(3):
        bulk = [{"pad": pad, "n": n} for n in range(1000)]
        assert server.request("POST", f"/{collection}/bulk", json=bulk).json()["inserted"] == 1000
    with listening(server, collection) as ws, Writers(server, collection) as writers:
        wait_until(lambda: len(writers.acknowledged) > 20)
        ws.send(json.dumps({"action": "subscribe", "collection": collection, "snapshot": True, "ref": "r"}))
        wait_until(lambda: len(writers.acknowledged) > 300)  # it has not read meanwhile
        reply = receive(ws)
        documents = rest_of_snapshot(ws, reply["query"])
        assert len(documents) >= 3020
        seen = {document["_id"]: document for document in documents}
        assert len(seen) == len(documents)
        wait_until(lambda: len(writers.acknowledged) > 400)
        writers.stop()
        last = put(server, collection, "last")
        seqs = [reply["seq"]]
        while True:
            event = receive(ws)
            assert event["data"]["_id"] not in seen
            seqs.append(event["seq"])
            seen[event["data"]["_id"]] = event["data"]
            if event["data"] == last:
                break
    assert seqs == list(range(reply["seq"], reply["seq"] + len(seqs)))
    assert len(seen) == server.request("GET", f"/{collection}/count").json()["count"]


def test_snapshot_beyond_the_bound_is_refused_and_the_connection_goes_on(start_server: StartServer) -> None:
    server = start_server("--max-result-bytes", "1048576")
    for _ in range(3):
        server.request("POST", "/c/bulk", json=[{"pad": "x" * 1000, "n": n} for n in range(500)])
    with listening(server, "c") as ws:
        assert ask(ws, collection="c", snapshot=True)["code"] == "RESULT_TOO_LARGE"
        _, documents = snapshot(ws, collection="c", filter={"n": 7})
        assert len(documents) == 3
        put(server, "c", "a", n=7)
        assert receive(ws)["data"]["n"] == 7


def test_snapshots_that_nobody_reads_are_bounded(start_server: StartServer) -> None:
    server = start_server("--max-pending-bytes", "16777216")
    for _ in range(12):
        server.request("POST", "/c/bulk", json=[{"pad": "x" * 1000} for _ in range(1000)])
    with listening(server, "c") as second:
        with listening(server, "c") as first:
            assert ask(first, collection="c", snapshot=True)["type"] == "subscribed"  # and it reads no more
            reply = ask(second, collection="c", snapshot=True)
            assert reply["code"] == "TOO_MANY_PENDING_BYTES"
        deadline = time.monotonic() + 20
        while (reply := ask(second, collection="c", snapshot=True))["type"] == "error":
            assert time.monotonic() < deadline
        assert len(rest_of_snapshot(second, reply["query"])) == 12_000


def test_since_brings_what_came_after_it(server: Server, collection: str) -> None:
    for n in range(6):
        put(server, collection, f"d{n}", n=n)
    found = server.request("GET", f"/{collection}/docs", params={"filter": '{"n": {"gte": 3}}'}).json()
    put(server, collection, "d3", n=0)
    put(server, collection, "d0", n=9)
    with listening(server, collection) as ws:
        reply = ask(ws, collection=collection, filter={"n": {"gte": 3}}, since=found["seq"])
        assert reply["seq"] == found["seq"]
        assert [shape(receive(ws)) for _ in range(2)] == [
            ("delete", "update", "d3"),
            ("insert", "update", "d0"),
        ]
        put(server, collection, "d4", n=5)
        assert shape(receive(ws)) == ("update", "update", "d4")


def test_since_before_the_log_or_beyond_it_is_a_reset(start_server: StartServer) -> None:
    server = start_server("--retention-count", "2")
    for n in range(9):
        put(server, "c", "a", n=n)
    wait_until(lambda: server.request("GET", "/c/changes?since=3").status_code == 410)
    with listening(server, "c") as ws:
        for since in (1, 999):
            reply = ask(ws, collection="c", filter={"n": {"gte": 0}}, since=since)
            assert (reply["type"], reply["seq"]) == ("subscribed", 9)
            assert receive(ws) == {"type": "reset", "query": reply["query"], "reason": "gap", "seq": 9}
        put(server, "c", "a", n=10)
        assert receive(ws)["seq"] == 10


def test_older_subscriptions_go_on_while_a_new_one_catches_up(server: Server, collection: str) -> None:
    start = server.request("GET", f"/{collection}/docs").json()["seq"]
    with listening(server, collection, query=collection) as ws:
        for n in range(20):
            put(server, collection, f"d{n}", n=n % 2)
        query = ask(ws, collection=collection, filter={"n": 1}, since=start)["query"]
        put(server, collection, "last", n=1)
        events: list[dict[str, Any]] = []
        while sum(event["data"]["_id"] == "last" for event in events) < 2:
            events.append(receive(ws))
    plain = [event["data"]["_id"] for event in events if "query" not in event]
    ours = [event["data"]["_id"] for event in events if event.get("query") == query]
    assert ours == [*(f"d{n}" for n in range(1, 20, 2)), "last"]
    assert plain[-1] == "last"
    assert len(plain) == len(set(plain))


@pytest.mark.sqlite
def test_changes_of_an_older_version_are_a_reset(start_server: StartServer, tmp_path: Path) -> None:
    """An update that was logged without what it changed may have left any view."""
    data = tmp_path / "old"
    shutil.copytree(FORMATS / "m003", data)
    key = json.loads(run_here("keys", "create", "--json", "--data", data).stdout)["key"]
    server = start_server(data=data)
    (trimmed,) = rows(database_file(data), "SELECT trimmed FROM databases")[0]
    updates = "SELECT count(*) FROM changes WHERE type='update' AND before IS NULL"
    assert rows(database_file(data), updates) != [(0,)]
    params = {"filter": '{"_id": "none"}', "since": trimmed}
    changes = server.request("GET", "/messages/changes", params=params, key=key).json()["changes"]
    assert changes
    assert {(change["type"], change["reason"]) for change in changes} == {("reset", "gap")}


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


# --- rules ---------------------------------------------------------------------------------------

RULE = {"filter": {"user": "alice"}, "select": ["status", "total"]}


def test_token_with_a_rule_follows_only_its_view(server: Server, collection: str) -> None:
    put(server, collection, "a1", user="alice", status="open", total=1, margin=7)
    put(server, collection, "b1", user="bob", status="open", total=2)
    with listening(server, collection, RULE, collection) as ws:
        put(server, collection, "b1", user="bob", status="paid", total=2)
        put(server, collection, "a1", user="alice", status="open", total=1, margin=8)  # nothing visible changed
        put(server, collection, "b1", user="alice", status="paid", total=2, margin=1)
        put(server, collection, "a1", user="bob", status="secret", total=999)
        events = [receive(ws), receive(ws)]
        assert [(event["type"], event["data"]) for event in events] == [
            ("insert", {"_id": "b1", "status": "paid", "total": 2}),
            ("delete", {"_id": "a1", "status": "open", "total": 1}),
        ]
        _, documents = snapshot(ws, collection=collection, filter={"status": "paid"})
        assert documents == [{"_id": "b1", "status": "paid", "total": 2}]
        for members in ({"filter": {"margin": 1}}, {"filter": {"user": "bob"}}, {"select": ["margin"]}):
            reply = ask(ws, collection=collection, **members)
            assert reply["code"] == "FIELD_NOT_IN_TOKEN", members
        assert ask(ws, collection="other")["code"] == "NOT_IN_TOKEN"


def mint(server: Server, collections: Any, **more: Any) -> str:
    response = server.request("POST", "/realtime/token", json={"collections": collections, **more})
    assert response.status_code == 200, response.text
    return str(response.json()["token"])


def test_another_rule_resets_and_shows_the_new_view(server: Server, collection: str) -> None:
    put(server, collection, "a1", user="alice", n=1)
    put(server, collection, "b1", user="bob", n=1)
    with listening(server, collection, {"filter": {"user": "alice"}}) as ws:
        reply, documents = snapshot(ws, collection=collection, filter={"n": 1})
        assert [document["_id"] for document in documents] == ["a1"]
        bare = ask(ws, collection=collection, filter={"n": 2})["query"]
        assert ask(ws, "auth", token=mint(server, {collection: {"filter": {"user": "bob"}}}))["type"] == (
            "authenticated"
        )
        first = receive(ws)
        assert (first["type"], first["query"], first["reason"]) == ("reset", reply["query"], "rule")
        assert first["becomes"] not in (reply["query"], bare)
        assert [document["_id"] for document in rest_of_snapshot(ws, first["becomes"])] == ["b1"]
        second = receive(ws)
        assert (second["type"], second["query"], second["reason"]) == ("reset", bare, "rule")
        put(server, collection, "a1", user="alice", n=2)  # no longer allowed
        put(server, collection, "b1", user="bob", n=2)
        events = [receive(ws), receive(ws)]
        assert {(event["query"], event["type"], event["data"]["_id"]) for event in events} == {
            (first["becomes"], "delete", "b1"),
            (second["becomes"], "insert", "b1"),
        }
        # The same rule again: nothing to tell.
        assert ask(ws, "auth", token=mint(server, {collection: {"filter": {"user": "bob"}}}))["type"] == (
            "authenticated"
        )
        assert ask(ws, "ping")["type"] == "pong"
        assert ask(ws, "auth", token=mint(server, ["other"]))["code"] == "NOT_IN_TOKEN"


def test_queries_that_a_rule_makes_the_same_each_get_a_snapshot(server: Server, collection: str) -> None:
    put(server, collection, "a1", user="alice", n=1)
    with listening(server, collection) as ws:
        wide, _ = snapshot(ws, collection=collection, filter={"n": {"gte": 1}})
        narrow, _ = snapshot(ws, collection=collection, filter={"n": {"gte": 1}, "user": "alice"})
        rule = {"filter": {"user": "alice"}}
        assert ask(ws, "auth", token=mint(server, {collection: rule}))["type"] == "authenticated"
        reset = receive(ws)
        assert (reset["type"], reset["query"], reset["becomes"]) == ("reset", wide["query"], narrow["query"])
        assert [document["_id"] for document in rest_of_snapshot(ws, narrow["query"])] == ["a1"]
        put(server, collection, "a1", user="alice", n=2)
        assert shape(receive(ws)) == ("update", "update", "a1")
        assert ask(ws, "ping")["type"] == "pong"


def test_rule_that_comes_to_a_whole_collection_resets_it(server: Server, collection: str) -> None:
    with listening(server, collection, query=collection) as ws:
        assert ask(ws, "auth", token=mint(server, {collection: RULE}))["type"] == "authenticated"
        reset = receive(ws)
        assert (reset["type"], reset["collection"], reset["reason"]) == ("reset", collection, "rule")
        put(server, collection, "b1", user="bob", status="x")
        put(server, collection, "a1", user="alice", status="x", margin=1)
        event = receive(ws)
        assert (event["query"], event["data"]) == (reset["becomes"], {"_id": "a1", "status": "x"})


def test_rules_and_every_collection_do_not_mix(server: Server, collection: str) -> None:
    token = mint(server, {"*": {}, collection: RULE})
    with pytest.raises(InvalidStatus) as refused:
        connect(f"{server.ws_url}/?token={token}", proxy=None)
    assert refused.value.response.status_code == 403
    with connect(f"{server.ws_url}/?token={token}&collections={collection},other", proxy=None) as ws:
        put(server, collection, "a1", user="bob")
        put(server, "other", collection, n=1)
        assert receive(ws)["collection"] == "other"
        delete(server, "other", collection)


# --- bad input and bounds ------------------------------------------------------------------------


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


# --- in all weathers -----------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(2))
def test_view_is_what_a_find_says_over_kills_and_reconnects(start_server: StartServer, seed: int) -> None:
    """A client keeps a view by its snapshot and events, and a cursor for its query. Documents move in and out;
    the server is killed; the client reconnects."""
    rng = random.Random(seed)
    server = start_server()
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
                    event = receive(ws)
                    assert event["seq"] > cursor
                    cursor = event["seq"]
                    apply(view, event)
                assert view == found(server, filter)
            else:
                for _ in range(rng.randrange(8)):
                    event = receive(ws)
                    cursor = event["seq"]
                    apply(view, event)
        server.kill()
        server.start()


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
