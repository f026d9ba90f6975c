"""Pings: a client that responds stays connected, however idle. One that is gone is closed with 4408; a slow one
is not."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from tests.conftest import Server, StartServer, receive, wait_until
from tests.realtime.raw import PING, PONG, TEXT, frame, open_raw, pour, running, until

pytestmark = pytest.mark.sqlite


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    data = tmp_path_factory.mktemp("pings") / "data"
    with running(data, "--ping-interval", "0.5", "--ping-timeout", "1.5") as server:
        yield server


def test_idle_client_that_responds_stays_connected(impatient: Server, collection: str) -> None:
    with (
        impatient.connect(collection, ping_interval=None) as ws,
        impatient.connect(collection, ping_interval=0.05, ping_timeout=20) as pings_too,
    ):
        with pytest.raises(TimeoutError):
            ws.recv(timeout=3)  # silence for longer than a ping and its timeout
        document = impatient.insert(collection, {})
        assert receive(ws)["data"] == receive(pings_too)["data"] == document


def test_silent_client_is_pinged_once_and_closed_with_4408(impatient: Server, collection: str) -> None:
    began = time.monotonic()
    with open_raw(impatient, collection) as raw:
        assert raw.frame() == (PING, b"")
        assert raw.close_code() == 4408
    assert time.monotonic() - began >= 2, "the interval and the timeout"


def test_any_input_counts_as_a_pong(impatient: Server, collection: str) -> None:
    with open_raw(impatient, collection) as raw:
        for sign in (
            frame(PONG, b"unasked"),
            frame(PING),
            frame(TEXT, b'{"action":"ping"}'),
            frame(TEXT, b"bad"),
        ):
            while raw.frame()[0] != PING:
                pass
            raw.send(sign)
        document = impatient.insert(collection, {})
        assert document in [event.get("data") for event in until(raw.message, document["_id"])]


def test_silent_client_with_unread_events_stays_connected(impatient: Server, collection: str) -> None:
    """It responds to every ping that it reads, but unread events block the server's pings. So the first ping
    that it can read comes after all events."""
    with (
        open_raw(impatient, collection, receive_buffer=4096) as plain,
        open_raw(impatient, collection, query="since=now", receive_buffer=4096) as cursor,
        impatient.connect(collection, query="collections=") as other,
    ):
        assert cursor.message()["type"] == "ready"
        ids = pour(impatient, collection, 1)
        with pytest.raises(TimeoutError):  # gives the server time to ping again
            other.recv(timeout=3)
        for raw in (plain, cursor):
            assert [event["data"]["_id"] for event in until(raw.message, ids[-1])] == ids
            ending = time.monotonic() + 2.2
            while time.monotonic() < ending:
                opcode, payload = raw.frame()
                assert (opcode, payload) == (PING, b"")
                raw.send(frame(PONG))


def test_client_that_caught_up_has_the_whole_ping_timeout(start_server: StartServer, collection: str) -> None:
    """The ping is in the kernel's buffers behind unread events; the client can respond only after those."""
    server = start_server("--ping-interval", "0.5", "--ping-timeout", "3")
    with open_raw(server, collection, receive_buffer=4096) as raw, server.connect("x") as other:
        document = server.insert(collection, {"pad": "x" * 60_000})
        with pytest.raises(TimeoutError):
            other.recv(timeout=3.8)
        assert json.loads(raw.frame()[1])["data"] == document
        assert raw.frame() == (PING, b"")
        with pytest.raises(TimeoutError):
            other.recv(timeout=2)
        raw.send(frame(PONG))
        document = server.insert(collection, {})
        assert raw.message()["data"] == document


CLIENT = """
import sys
from websockets.sync.client import connect
with connect(sys.argv[1], proxy=None, ping_interval=None) as ws:
    print("open", flush=True)
    ws.recv()
"""


def test_stopped_process_with_nothing_unread_is_closed(impatient: Server, collection: str) -> None:
    """Its kernel still acknowledges everything; only the pong is missing."""
    url = f"{impatient.ws_url}/?token={impatient.token(collection)}"
    process = subprocess.Popen(
        [sys.executable, "-c", CLIENT, url], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        assert connections(impatient, process.pid) == 1
        process.send_signal(signal.SIGSTOP)
        wait_until(lambda: connections(impatient, process.pid) == 0, 6)
        process.send_signal(signal.SIGCONT)
        _, errors = process.communicate(timeout=10)
        assert "4408" in errors
    finally:
        process.kill()
        process.communicate()


def connections(server: Server, pid: int) -> int:
    """The number of the process's TCP connections to the server that are established on both sides."""
    with open(f"/proc/{pid}/net/tcp") as table:
        rows = [line.split() for line in table][1:]
    port = f":{server.port:04X}"
    mine = {row[1] for row in rows if row[2].endswith(port) and row[3] == "01"}
    return len(mine & {row[2] for row in rows if row[1].endswith(port) and row[3] == "01"})


def test_client_that_hung_up_silently_is_forgotten(impatient: Server, collection: str) -> None:
    raws = [open_raw(impatient, collection) for _ in range(5)]
    for raw in raws:
        raw.drop()
    with impatient.connect(collection) as ws:
        document = impatient.insert(collection, {})
        assert receive(ws)["data"] == document


def test_clients_pings_get_their_payload_back(impatient: Server, collection: str) -> None:
    with open_raw(impatient, collection) as raw:
        for payload in (b"", b"x", b"y" * 125):
            raw.send(frame(PING, payload))
            while (got := raw.frame())[0] == PING:
                pass
            assert got == (PONG, payload)
