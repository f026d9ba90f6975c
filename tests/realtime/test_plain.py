"""Plain mode: every subscriber gets events of exactly the documented shape, from exactly the requested and
allowed collections, after the commit and in commit order."""

from __future__ import annotations

import json
import subprocess
import threading
from contextlib import ExitStack
from typing import Any

import pytest
from websockets.sync.client import connect

from tests.conftest import Server, receive, wait_until
from tests.realtime.raw import Raw, Writers, forge, handshake
from tests.web.tools import current_node


@pytest.mark.smoke
def test_every_write_is_one_event_of_the_documented_shape(server: Server, collection: str) -> None:
    with server.connect(collection) as ws:
        inserted = server.insert(collection, {"text": "hello"})
        patched = server.request("PATCH", f"/{collection}/docs/{inserted['_id']}", json={"n": 1}).json()
        server.request("DELETE", f"/{collection}/docs/{inserted['_id']}")
        assert receive(ws) == {"type": "insert", "collection": collection, "data": inserted}
        assert receive(ws) == {"type": "update", "collection": collection, "data": patched}
        assert receive(ws) == {"type": "delete", "collection": collection, "data": patched}


def test_replacement_is_an_insert_or_an_update(server: Server, collection: str) -> None:
    with server.connect(collection) as ws:
        for expected in ("insert", "update"):
            document = server.request("PUT", f"/{collection}/docs/one", json={"is": expected}).json()
            assert receive(ws) == {"type": expected, "collection": collection, "data": document}


@pytest.mark.executable
def test_event_carries_any_document_unchanged(server: Server, collection: str) -> None:
    awkward = {
        "text": 'line\nbreak "quoted" \\ \u2028 \x1f é 😀',
        "empty": {},
        "list": [None, 1.5, 10**15],
        "": 1,
    }
    with server.connect(collection) as ws:
        document = server.insert(collection, awkward)
        assert receive(ws)["data"] == document
        assert awkward.items() <= document.items()


def test_events_come_only_from_the_tokens_collections(server: Server, collection: str) -> None:
    with server.connect(collection, f"{collection}_b") as ws:
        server.insert(f"{collection}_other", {})
        server.insert(f"{collection}_b", {})
        server.insert(collection, {})
        assert [receive(ws)["collection"] for _ in range(2)] == [f"{collection}_b", collection]


def test_collections_in_the_query_narrow_the_subscription(server: Server, collection: str) -> None:
    names = [f"{collection}_{letter}" for letter in "abc"]
    with server.connect(*names, query=f"collections={names[0]},{names[2]}") as ws:
        for name in names:
            server.insert(name, {})
        assert [receive(ws)["collection"] for _ in range(2)] == [names[0], names[2]]


def test_wildcard_token_gets_every_collection_of_its_database(server: Server, collection: str) -> None:
    with server.connect("*") as everything, server.connect("*", query=f"collections={collection}_b") as one:
        server.insert(f"{collection}_a", {})
        server.insert(f"{collection}_b", {})
        assert [receive(everything)["collection"] for _ in range(2)] == [f"{collection}_a", f"{collection}_b"]
        assert receive(one)["collection"] == f"{collection}_b"


def test_writes_of_another_database_never_arrive(server: Server, collection: str) -> None:
    server.cli("databases", "create", collection, "--plan", "pro")
    other = server.new_key(collection)["key"]
    with (
        server.connect(collection) as mine,
        server.connect("*") as everything,
        connect(f"{server.ws_url}/?token={server.token(collection, key=other)}", proxy=None) as theirs,
    ):
        foreign = server.insert(collection, {"of": "other"}, key=other)
        own = server.insert(collection, {"of": "default"})
        assert receive(mine)["data"] == own
        assert receive(everything)["data"] == own
        assert receive(theirs)["data"] == foreign


@pytest.mark.smoke
@pytest.mark.parametrize("path", ["/", "/realtime"])
@pytest.mark.parametrize("way", ["query", "header", "subprotocol", "subprotocols"])
def test_token_can_come_in_each_documented_way(server: Server, collection: str, path: str, way: str) -> None:
    token = server.token(collection)
    url = server.ws_url + path
    ways: dict[str, dict[str, Any]] = {
        "query": {},
        "header": {"additional_headers": {"Authorization": f"Bearer {token}"}},
        "subprotocol": {"subprotocols": [f"bearer.{token}"]},
        "subprotocols": {"subprotocols": ["paperdb.v1", f"bearer.{token}"]},
    }
    with connect(f"{url}?token={token}" if way == "query" else url, proxy=None, **ways[way]) as ws:
        if way == "subprotocols":
            assert ws.subprotocol == "paperdb.v1"
            assert receive(ws)["type"] == "ready"
        document = server.insert(collection, {})
        assert receive(ws)["data"] == document


def test_two_subprotocol_headers_equal_one(server: Server, collection: str) -> None:
    lines = ("Sec-WebSocket-Protocol: paperdb.v1", f"Sec-WebSocket-Protocol: bearer.{server.token(collection)}")
    with Raw(server) as raw:
        raw.send(handshake(server, "/", *lines))
        status, headers = raw.head()
        assert (status, headers["sec-websocket-protocol"]) == (101, "paperdb.v1")
        assert raw.message()["type"] == "ready"


@pytest.mark.executable
def test_many_subscribers_get_the_same_events_in_commit_order(server: Server, collection: str) -> None:
    token = server.token(collection)
    with ExitStack() as stack:
        url = f"{server.ws_url}/?token={token}"
        sockets = [stack.enter_context(connect(url, proxy=None, max_queue=None)) for _ in range(40)]
        with Writers(server, collection, count=4) as writers:
            wait_until(lambda: len(writers.acknowledged) >= 60, 20)
        end = server.insert(collection, {"end": True})["_id"]
        streams = []
        for ws in sockets:
            events = [receive(ws)]
            while events[-1]["data"]["_id"] != end:
                events.append(receive(ws))
            streams.append([event["data"]["_id"] for event in events])
    listed = server.request("GET", f"/{collection}/docs?limit=1000").json()["documents"]
    in_commit_order = [document["_id"] for document in listed]
    assert sorted(in_commit_order) == sorted([*(d["_id"] for d in writers.acknowledged), end])
    assert all(stream == in_commit_order for stream in streams)
    for writer in range(4):  # and each writer's own writes are in order
        own = [document["n"] for document in listed if document.get("writer") == writer]
        assert own == sorted(own)


def test_event_never_precedes_its_commit(server: Server, collection: str) -> None:
    """A client that sees the event can read the document, because the commit comes before the event."""
    with server.connect(collection) as ws:
        thread = threading.Thread(target=lambda: [server.insert(collection, {"n": n}) for n in range(20)])
        thread.start()
        for _ in range(20):
            event = receive(ws)
            read = server.request("GET", f"/{collection}/docs/{event['data']['_id']}")
            assert read.json() == event["data"]
        thread.join()


def test_bulk_insert_sends_one_event_per_inserted_document(server: Server, collection: str) -> None:
    with server.connect(collection) as ws:
        good = [{"key": f"k{n}", "n": n} for n in range(300)]
        response = server.request(
            "POST", f"/{collection}/bulk", json=[*good[:100], {"key": "k0"}, *good[100:]]
        ).json()
        assert (response["inserted"], response["failed"]) == (300, 1)
        assert [receive(ws)["data"] for _ in range(300)] == response["documents"]
        after = server.insert(collection, {})
        assert receive(ws)["data"] == after


def test_failed_atomic_bulk_sends_no_event(server: Server, collection: str) -> None:
    with server.connect(collection) as ws:
        response = server.request("POST", f"/{collection}/bulk?atomic=true", json=[{"key": "a"}, {"key": "a"}])
        assert response.status_code == 409
        document = server.insert(collection, {})
        assert receive(ws)["data"] == document


def test_dropping_a_collection_sends_a_delete_event_per_document(server: Server, collection: str) -> None:
    documents = server.request("POST", f"/{collection}/bulk", json=[{"n": n} for n in range(700)]).json()[
        "documents"
    ]
    with server.connect(collection) as ws:
        assert server.request("DELETE", f"/{collection}?confirm={collection}").json() == {"deleted": 700}
        events = [receive(ws) for _ in documents]
        assert {event["type"] for event in events} == {"delete"}
        assert sorted(event["data"]["_id"] for event in events) == sorted(d["_id"] for d in documents)
        assert sorted(documents, key=lambda d: d["n"]) == sorted(
            (e["data"] for e in events), key=lambda d: d["n"]
        )
        again = server.insert(collection, {})
        assert receive(ws) == {"type": "insert", "collection": collection, "data": again}


@pytest.mark.executable
@pytest.mark.smoke
@pytest.mark.parametrize("size", [0, 70, 80, 60_000, 70_000, 900_000])
def test_events_of_every_size_class_of_frame_arrive_whole(server: Server, collection: str, size: int) -> None:
    with server.connect(collection) as ws:
        document = server.insert(collection, {"pad": "x" * size})
        assert receive(ws)["data"] == document


@pytest.mark.executable
def test_browser_client_is_served(server: Server, collection: str) -> None:
    """Node's built-in WebSocket is undici's, which implements the WHATWG's API like browsers."""
    script = """
        const [url, token] = process.argv.slice(1);
        const ws = new WebSocket(url, ["paperdb.v1", `bearer.${token}`]);
        const seen = [];
        ws.onopen = () => ws.send(JSON.stringify({action: "ping", ref: "r1"}));
        ws.onmessage = ({data}) => {
          seen.push(JSON.parse(data));
          if (seen.length === 2) console.error("listening");
          if (seen.length === 3) ws.close(1000);
        };
        ws.onclose = ({code, wasClean}) =>
          console.log(JSON.stringify({seen, code, wasClean, protocol: ws.protocol}));
    """
    process = subprocess.Popen(
        [
            current_node(),
            "-e",
            script,
            server.ws_url,
            server.token(collection),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        assert process.stderr.readline() == "listening\n"
        document = server.insert(collection, {"from": "python"})
        output, _ = process.communicate(timeout=10)
    finally:
        process.kill()
        process.communicate()
    result = json.loads(output)
    ready, pong, event = result["seen"]
    assert ready["type"] == "ready"
    assert pong == {"type": "pong", "ref": "r1", "seq": ready["seq"]}
    assert event["data"] == document
    assert (result["code"], result["wasClean"], result["protocol"]) == (1000, True, "paperdb.v1")


def test_rotation_does_not_end_live_tokens(server: Server, collection: str) -> None:
    before = server.token(collection)
    signed_with_old = forge(server, collection)
    with connect(f"{server.ws_url}/?token={before}", proxy=None) as live:
        server.cli("keys", "rotate-signing")
        wait_until(lambda: server.token(collection).split(".")[0] != before.split(".")[0])
        for token in (before, signed_with_old, server.token(collection)):
            with connect(f"{server.ws_url}/?token={token}", proxy=None) as ws:
                assert ws.ping().wait(5)
        document = server.insert(collection, {})
        assert receive(live)["data"] == document
