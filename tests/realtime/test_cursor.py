"""Cursor mode: `ready`, then every change after the cursor once and in seq order, then live ones without a
seam; or `gap` if the log no longer holds the cursor. The same across restarts and kills."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection

from tests.conftest import Server, StartServer, receive, wait_until
from tests.realtime.raw import Raw, Writers, handshake, open_raw, pour, running, say


def ready(ws: ClientConnection) -> int:
    """The head in the first message."""
    message = receive(ws)
    assert message.keys() == {"type", "seq"}
    assert message["type"] == "ready"
    return int(message["seq"])


def head(server: Server) -> int:
    with server.connect("any", query="since=now") as ws:
        return ready(ws)


def read_until(ws: ClientConnection, id: str) -> list[dict[str, Any]]:
    events = [receive(ws)]
    while events[-1]["data"]["_id"] != id:
        events.append(receive(ws))
    return events


def test_since_now_sends_the_head_and_then_live_events_with_seq(server: Server, collection: str) -> None:
    with server.connect(collection, query="since=now") as ws:
        seq = ready(ws)
        assert seq == head(server)
        document = server.insert(collection, {})
        event = receive(ws)
        assert event == {"seq": event["seq"], "type": "insert", "collection": collection, "data": document}
        assert event["seq"] > seq
        response = server.request("GET", f"/{collection}/docs/{document['_id']}")
        assert response.headers["ETag"] == f'"{event["seq"]}"'


def test_subprotocol_alone_asks_for_seqs(server: Server, collection: str) -> None:
    before = server.insert(collection, {})
    with server.connect(collection, subprotocols=["paperdb.v1"]) as ws:
        ready(ws)
        after = server.insert(collection, {})
        event = receive(ws)
        assert event["data"] == after != before
        assert event["seq"]


def test_since_replays_changes_exactly_as_they_were_live(server: Server, collection: str) -> None:
    start = head(server)
    with server.connect(collection, query="since=now") as live:
        ready(live)
        one = server.insert(collection, {"text": 'new\nline "\\ é 😀 \u2028', "n": [1.5, None, {}]})
        server.request("PATCH", f"/{collection}/docs/{one['_id']}", json={"n": 1})
        server.request("POST", f"/{collection}/bulk", json=[{"n": n} for n in range(20)])
        server.request("DELETE", f"/{collection}/docs/{one['_id']}")
        server.request("DELETE", f"/{collection}?confirm={collection}")
        events = [receive(live) for _ in range(43)]
    assert [event["type"] for event in events] == ["insert", "update", *["insert"] * 20, *["delete"] * 21]
    assert [e["seq"] for e in events] == sorted({e["seq"] for e in events})
    for skipped in (0, 1, 5, 42):
        since = events[skipped - 1]["seq"] if skipped else start
        with server.connect(collection, query=f"since={since}") as ws:
            ready(ws)
            assert [receive(ws) for _ in events[skipped:]] == events[skipped:]


def test_since_the_head_replays_nothing(server: Server, collection: str) -> None:
    server.insert(collection, {})
    with server.connect(collection, query=f"since={head(server)}") as ws:
        ready(ws)
        document = server.insert(collection, {})
        assert receive(ws)["data"] == document


def test_since_is_narrowed_by_collections(server: Server, collection: str) -> None:
    start = head(server)
    a, b = f"{collection}_a", f"{collection}_b"
    documents = {name: [server.insert(name, {"n": n}) for n in range(3)] for name in (a, b, "elsewhere")}
    for query in (f"collections={b}", f"collections={a},{b}"):
        names = (b,) if query.endswith(f"={b}") else (a, b)
        with server.connect(a, b, query=f"since={start}&{query}") as ws:
            ready(ws)
            expected = [document for name in names for document in documents[name]]
            assert [receive(ws)["data"] for _ in expected] == expected
    with server.connect("*", query=f"since={start}") as ws:
        ready(ws)
        assert [receive(ws)["collection"] for _ in range(9)] == [a] * 3 + [b] * 3 + ["elsewhere"] * 3


def test_later_subscribe_begins_at_the_present(server: Server, collection: str) -> None:
    start = head(server)
    a, b = f"{collection}_a", f"{collection}_b"
    old_a, _old_b = server.insert(a, {}), server.insert(b, {})
    with server.connect(a, b, query=f"since={start}&collections={a}") as ws:
        ready(ws)
        assert receive(ws)["data"] == old_a
        ws.send(json.dumps({"action": "subscribe", "collection": b}))
        assert receive(ws) == {"type": "subscribed", "collection": b, "seq": start + 2}
        new = [server.insert(name, {}) for name in (b, a, b)]
        assert [receive(ws)["data"] for _ in new] == new


def test_later_subscribe_of_a_slow_reader_begins_at_the_present(server: Server, collection: str) -> None:
    """It still has to read older parts of the log, but the new collection's changes there are the past."""
    a, b = f"{collection}_a", f"{collection}_b"

    def follows_both() -> bool:
        rows = server.request("GET", "/admin.v1/connections").json()["connections"]
        return {a, b} in [{followed["collection"] for followed in row["follows"]} for row in rows]

    with open_raw(server, a, b, query=f"since=now&collections={a}", receive_buffer=4096) as slow:
        assert slow.message()["type"] == "ready"
        ids = pour(server, a, 2)
        server.insert(b, {"past": True})
        ids += pour(server, a, 2)
        slow.send(say(action="subscribe", collection=b))
        wait_until(follows_both)
        new = server.insert(b, {"past": False})
        messages = [slow.message()]
        while messages[-1].get("data") != new:
            messages.append(slow.message())
        events = [message for message in messages if message["type"] == "insert"]
        assert [event["data"]["_id"] for event in events] == [*ids, new["_id"]]


def test_resuming_anywhere_during_writes_misses_and_repeats_nothing(server: Server, collection: str) -> None:
    """Each of 25 resumes crosses from the log to live at a different moment; the reference is a connection that
    was always live."""
    streams: dict[int, list[dict[str, Any]]] = {}
    threads = []
    start = head(server)

    def read_to_end(ws: ClientConnection) -> list[dict[str, Any]]:
        ready(ws)
        events = [receive(ws, 20)]
        while "end" not in events[-1]["data"]:
            events.append(receive(ws, 20))
        return events

    def resume(since: int) -> None:
        with server.connect(collection, query=f"since={since}", max_queue=None) as ws:
            streams[since] = read_to_end(ws)

    with server.connect(collection, query="since=now", max_queue=None) as reference:
        with Writers(server, collection, count=3) as writers:
            for position in range(0, 100, 4):
                wait_until(lambda enough=position * 2: len(writers.acknowledged) >= enough, 20)  # type: ignore[misc]
                threads.append(threading.Thread(target=resume, args=(start + position,)))
                threads[-1].start()
        server.insert(collection, {"end": True})
        for thread in threads:
            thread.join(20)
        everything = read_to_end(reference)
    assert len(everything) == len(writers.acknowledged) + 1
    seqs = [event["seq"] for event in everything]
    assert seqs == sorted(set(seqs))
    assert len(streams) == 25
    for since, events in streams.items():
        assert events == [event for event in everything if event["seq"] > since], f"since={since}"


def test_pong_has_the_seq_up_to_which_everything_was_sent(server: Server, collection: str) -> None:
    """It is a cursor to resume from: no change up to it comes later, during writes or in silence."""
    with server.connect(collection, query="since=0", max_queue=None) as ws:
        seqs: list[int] = []
        pongs: list[int] = []

        def read() -> dict[str, Any]:
            message = receive(ws)
            if "data" in message:
                assert message["seq"] > max([0, *seqs, *pongs])
                seqs.append(message["seq"])
            elif message["type"] == "pong":
                assert message["seq"] >= max([0, *seqs, *pongs])
                pongs.append(message["seq"])
            return message

        ready(ws)
        with Writers(server, collection, count=3) as writers:
            for round in range(20):
                wait_until(lambda enough=round * 5: len(writers.acknowledged) >= enough, 20)  # type: ignore[misc]
                ws.send('{"action": "ping"}')
                while len(pongs) <= round:
                    read()
        elsewhere = server.insert(f"{collection}_b", {})
        seq = int(server.request("GET", f"/{collection}_b/docs/{elsewhere['_id']}").headers["ETag"][1:-1])

        def caught_up() -> bool:
            ws.send('{"action": "ping"}')
            while read()["type"] != "pong":
                pass
            return bool(pongs[-1] == seq)

        wait_until(caught_up)
        assert len(seqs) == len(writers.acknowledged)


def test_subscribed_has_the_seq_after_which_changes_come(start_server: StartServer, collection: str) -> None:
    """Even if the collection is subscribed already, and its older changes have not come yet."""
    server = start_server()
    with open_raw(server, collection, query="since=0", receive_buffer=4096) as raw:
        assert raw.message()["type"] == "ready"
        ids = pour(server, collection, 2)
        raw.send(say(action="subscribe", collection=collection))
        events: list[int] = []
        after = None
        while len(events) < len(ids):
            message = raw.message()
            if "data" in message:
                assert after is None or message["seq"] > after
                events.append(message["seq"])
            else:
                after = message["seq"]
        assert events == list(range(1, len(ids) + 1))


@pytest.mark.parametrize("since", ["", "x", "-1", "1.5", "+1", "1e3", "%D9%A3", "NOW", "9" * 19, "1,2"])
def test_invalid_since_is_a_400(server: Server, collection: str, since: str) -> None:
    with Raw(server) as raw:
        raw.send(handshake(server, f"/?token={server.token(collection)}&since={since}"))
        status, _, body = raw.response()
        assert status == 400
        assert body["code"] == "INVALID_REQUEST"
        assert "since" in body["error"]


def test_since_beyond_the_head_is_a_gap(server: Server, collection: str) -> None:
    """As after the restore of an older backup: the client must not wait for a seq that means another change."""
    beyond = head(server) + 1000
    with server.connect(collection, query=f"since={beyond}") as ws:
        ready(ws)
        gap = receive(ws)
        assert gap.keys() == {"type", "since", "oldest"}
        assert (gap["type"], gap["since"]) == ("gap", beyond)
        document = server.insert(collection, {})
        assert receive(ws)["data"] == document


# --- a log that is trimmed -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def trimmed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("trimmed") / "data", "--retention-count", "10") as server:
        yield server


def oldest(server: Server) -> int:
    """The oldest kept seq, as a client with an expired cursor learns it."""
    with server.connect("any", query="since=0") as ws:
        try:
            ready(ws)
            ws.send('{"action": "ping"}')
            message = receive(ws)
        except ConnectionClosed:  # a trim is running
            return 1
        return int(message["oldest"]) if message["type"] == "gap" else 1  # nothing is trimmed yet


def test_cursor_older_than_the_log_is_a_gap_and_the_oldest_kept_is_not(
    trimmed: Server, collection: str
) -> None:
    """Before and after a restart."""
    start = head(trimmed)
    documents = [trimmed.insert(collection, {"n": n}) for n in range(40)]
    wait_until(lambda: oldest(trimmed) > start + 1, 10)
    wait_until(lambda: oldest(trimmed) == head(trimmed) - 9, 10)
    seq = head(trimmed)
    with (
        trimmed.connect(collection, query=f"since={start}") as expired,
        trimmed.connect(collection, query=f"since={seq - 10}") as kept,
    ):
        assert ready(expired) == ready(kept) == seq
        assert receive(expired) == {"type": "gap", "since": start, "oldest": seq - 9}
        # Before the insert, whose trim removes the first of these.
        assert [receive(kept)["data"] for _ in range(10)] == documents[30:]
        after = trimmed.insert(collection, {})
        assert receive(expired)["data"] == receive(kept)["data"] == after
    before = (head(trimmed), seq - 9 + 1)
    wait_until(lambda: (head(trimmed), oldest(trimmed)) == before, 10)
    assert trimmed.stop() == 0
    trimmed.start()
    assert (head(trimmed), oldest(trimmed)) == before


# --- restarts ------------------------------------------------------------------------------------


def test_cursor_survives_a_restart_and_a_kill(start_server: StartServer, collection: str) -> None:
    """One client that resumes sees every acknowledged write before and after, once and in order."""
    server = start_server()
    seen: list[dict[str, Any]] = []
    since = "0"
    acknowledged: list[str] = []
    for end in ("kill", "stop", "kill"):
        with server.connect(collection, query=f"since={since}", max_queue=None) as ws:
            ready(ws)
            with Writers(server, collection, count=2) as writers:
                wait_until(lambda: len(writers.acknowledged) >= 50, 20)
                seen += [receive(ws) for _ in range(20)]
                since = str(seen[-1]["seq"])
                if end == "kill":
                    server.kill()
                else:
                    assert server.stop() == 0
        acknowledged += [document["_id"] for document in writers.acknowledged]
        server.start()
    last = server.insert(collection, {})["_id"]
    with server.connect(collection, query=f"since={since}", max_queue=None) as ws:
        ready(ws)
        seen += read_until(ws, last)
    seqs = [event["seq"] for event in seen]
    assert seqs == list(range(1, len(seen) + 1))  # one collection, one database: not even a hole
    ids = [event["data"]["_id"] for event in seen]
    assert set(acknowledged) <= set(ids)
    stored = httpx.get(
        f"{server.url}/{collection}/count", headers={"Authorization": f"Bearer {server.key}"}
    ).json()["count"]
    assert stored == len(seen)
    with server.connect(collection, query="since=0", max_queue=None) as ws:
        ready(ws)
        assert read_until(ws, last) == seen  # and nothing has another seq than before
