"""Slow readers: a stuck reader loses nothing and holds up no other client. The server's memory stays bounded.
Only the end of the log closes the connection, with 4410."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from websockets.exceptions import ConnectionClosed

from tests.conftest import Server, StartServer, receive, wait_until
from tests.realtime.raw import TEXT, Raw, forge, handshake, open_raw, pour, running, say, until
from tests.rest.tools import figure
from tests.stress.harness import memory

SMALL = 4096
"""A receive buffer that the kernel does not grow, so that the rest waits in the server."""


@pytest.fixture(scope="module", params=[(), ("--tls-self-signed",)], ids=["ws", "wss"])
def own(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("slow") / "data", *request.param, forked=False) as server:
        yield server


@pytest.mark.parametrize("query", ["", "since=now"], ids=["plain", "cursor"])
def test_stuck_reader_gets_everything_later_and_others_get_it_now(
    own: Server, collection: str, query: str
) -> None:
    with (
        open_raw(own, collection, query=query, receive_buffer=SMALL) as slow,
        own.connect(collection, query=query, max_queue=None) as quick,
    ):
        if query:
            assert slow.message()["type"] == receive(quick)["type"] == "ready"
        ids = pour(own, collection, 6)
        events = [receive(quick) for _ in ids]
        assert [event["data"]["_id"] for event in events] == ids
        # Nothing was read so far. Now slowly, and then live again:
        assert [slow.message() for _ in ids] == events
        last = own.insert(collection, {})
        assert slow.message()["data"] == receive(quick)["data"] == last


@pytest.mark.parametrize("query", ["", "since=0"], ids=["plain", "cursor"])
def test_slow_reader_gets_the_same_events_as_the_others(own: Server, collection: str, query: str) -> None:
    """It falls behind and catches up again and again during the writes."""
    with open_raw(own, collection, query=query, receive_buffer=SMALL) as slow:
        if query:
            slow.message()
        ids, seen = [], []
        for _ in range(6):
            ids += pour(own, collection, 0.7)
            seen += [slow.message()["data"]["_id"] for _ in range(15)]
            ids += [own.insert(collection, {})["_id"] for _ in range(3)]
        seen += [event["data"]["_id"] for event in until(slow.message, ids[-1])]
        assert seen == ids


def test_slow_reader_gets_replies_after_its_events(own: Server, collection: str) -> None:
    other = f"{collection}_b"
    with open_raw(own, collection, other, query=f"collections={collection}", receive_buffer=SMALL) as slow:
        ids = pour(own, collection, 2)
        slow.send(say(action="ping", ref=1) + say(action="subscribe", collection=other, ref=2))
        wanted = {f'"ref":{n}'.encode() for n in (1, 2)}
        messages: list[bytes] = []
        while wanted or len(messages) < len(ids):
            opcode, payload = slow.frame()
            assert opcode == TEXT
            found = {mark for mark in wanted if mark in payload[-40:]}
            wanted -= found
            if not found:
                messages.append(payload)
        assert [re.search(rb'"_id":"([^"]+)"', m)[1].decode() for m in messages] == ids  # type: ignore[index]
        document = own.insert(other, {})
        assert slow.message()["data"] == document


def test_many_stuck_readers_cost_bounded_memory(own: Server, collection: str) -> None:
    """20 sockets times 12 MB of events; the server may keep about 1 MiB per socket."""

    def resident() -> int:
        return memory(own.pid) // 2**20

    pour(own, f"{collection}_warm", 12)
    sockets = [open_raw(own, collection, receive_buffer=SMALL) for _ in range(20)]
    try:
        before = resident()
        ids = pour(own, collection, 12)
        assert resident() - before < 20 + 20
        stream = [event["data"]["_id"] for event in until(sockets[7].message, ids[-1])]
        assert stream == ids
    finally:
        for raw in sockets:
            raw.drop()


def test_expired_token_closes_a_stuck_reader_that_says_nothing(
    start_server: StartServer, collection: str
) -> None:
    """It is freed although it never reads the close frame, and nothing wakes its task, not even a ping."""
    server = start_server("--ping-interval", "3600")
    with Raw(server, receive_buffer=SMALL) as stuck:
        stuck.send(handshake(server, f"/?token={forge(server, collection, lifetime=4)}"))
        assert stuck.head()[0] == 101
        pour(server, collection, 6)
        wait_until(lambda: figure(server, "paperdb_live_connections") == 0)


def test_drain_waits_for_a_slow_reader_only_until_it_has_read(
    start_server: StartServer, collection: str
) -> None:
    server = start_server("--drain-timeout", "60")
    with open_raw(server, collection, query="since=now", receive_buffer=SMALL) as slow:
        assert slow.message()["type"] == "ready"
        pour(server, collection, 6)
        server.process.terminate()
        wait_until(lambda: "draining" in server.stderr)
        assert slow.close_code() == 1012
    assert server.process.wait(20) == 0


def test_reader_behind_the_trimmed_log_is_closed_with_4410(start_server: StartServer, collection: str) -> None:
    server = start_server("--retention-count", "10")
    with open_raw(server, collection, query="since=now", receive_buffer=SMALL) as slow:
        assert slow.message()["type"] == "ready"
        ids = pour(server, collection, 6)

        def is_trimmed() -> bool:
            with server.connect(collection, query="since=0") as ws:
                head = receive(ws)["seq"]
                try:
                    message = receive(ws)
                except ConnectionClosed:  # a trim was just removing its position
                    return False
                return bool(message["type"] == "gap" and message["oldest"] == head - 9)

        wait_until(is_trimmed, 10)
        server.insert(collection, {})
        seen = []
        while True:
            opcode, payload = slow.frame()
            if opcode != TEXT:
                break
            seen.append(re.search(rb'"_id":"([^"]+)"', payload)[1].decode())  # type: ignore[index]
        assert seen == ids[: len(seen)]  # a prefix: whole and in order
        assert len(seen) < len(ids)
        assert (opcode, payload[:2]) == (8, (4410).to_bytes(2, "big"))
