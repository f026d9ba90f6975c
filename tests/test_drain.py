"""Drain: after SIGTERM or SIGINT acknowledged writes are kept, sockets close with 1012, no client can delay the
stop beyond the drain time, and the exit code is 0."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import httpx
import pytest
import trio

from paperdb_trio.store.sqlite import library as sqlite
from paperdb_trio.store.sqlite.file import connect, prepare
from paperdb_trio.store.sqlite.reader import Reader
from tests.conftest import COMMAND, ENVIRONMENT, Server, StartServer, receive, wait_until
from tests.net.http2 import Http2
from tests.realtime.raw import Raw, Writers, end_of, handshake, open_raw, pour

SLACK = 2.5
"""Seconds beyond the promised time, for a busy machine; an unbounded wait takes far longer."""


def end(server: Server, how: signal.Signals = signal.SIGTERM) -> float:
    """Signal the server and wait until it exits with 0; returns the seconds that it took."""
    began = time.monotonic()
    server.process.send_signal(how)
    assert server.process.wait(20) == 0
    server.stop()
    assert "Traceback" not in server.stderr, server.stderr
    return time.monotonic() - began


def assert_stopped(server: Server, response: httpx.Response) -> None:
    """The stop refused a write of several steps. What becomes of a step that it has sent, no worker knows."""
    refusals = {(503, "SHUTTING_DOWN")}
    if server.workers != "1":
        refusals.add((504, "STORAGE_UNKNOWN"))
    assert (response.status_code, response.json()["code"]) in refusals


@pytest.mark.smoke
@pytest.mark.executable
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_every_acknowledged_write_survives_and_sockets_close_with_1012(
    start_server: StartServer, collection: str, how: signal.Signals
) -> None:
    server = start_server()
    with (
        server.connect(collection, max_queue=None) as plain,
        server.connect(collection, query="since=now", max_queue=None) as cursor,
        server.connect("quiet") as idle,
    ):
        with Writers(server, collection, count=4) as writers:
            wait_until(lambda: len(writers.acknowledged) >= 100, 20)
            assert end(server, how) < 5 + SLACK
        assert [end_of(ws) for ws in (plain, cursor, idle)] == [1012, 1012, 1012]
    server.start()
    kept = set()
    for offset in range(0, 100_000, 1000):
        page = server.request("GET", f"/{collection}/docs?limit=1000&offset={offset}").json()
        kept |= {document["_id"] for document in page["documents"]}
        if not page["hasMore"]:
            break
    acknowledged = {document["_id"] for document in writers.acknowledged}
    assert acknowledged <= kept
    assert len(kept) - len(acknowledged) <= 4  # committed, but the response did not arrive


def test_idle_connections_do_not_delay_the_stop(start_server: StartServer, collection: str) -> None:
    """Neither a connection between two requests nor a silent one."""
    server = start_server("--drain-timeout", "60", "--head-timeout", "6")
    with Raw(server) as idle, Raw(server), server.connect(collection) as ws:
        idle.send(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert idle.response()[0] == 200
        assert ws.ping().wait(5)
        took = end(server)
        assert end_of(ws) == 1012
    assert took < 1 + SLACK


@pytest.mark.parametrize("http", ["raw", "quart"])
def test_running_request_gets_a_response_that_announces_the_close(
    start_server: StartServer, collection: str, http: str
) -> None:
    """RFC 9112, section 9.6: otherwise the client may send its next request into a closing connection."""
    server = start_server("--drain-timeout", "10", "--http", http)
    body = b'{"text": "late"}'
    head = (
        f"POST /{collection}/docs HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {server.key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with Raw(server) as raw:
        raw.send(head.encode() + body[:5])
        wait_until(lambda: server.request("GET", "/healthz").status_code == 200)
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: "draining" in server.stderr)
        raw.send(body[5:])
        status, headers, document = raw.response()
        assert status == 201
        assert headers.get("connection") == "close"
        assert server.process.wait(10) == 0
    server.stop()
    server.start()
    assert server.request("GET", f"/{collection}/docs/{document['_id']}").json() == document


def test_clients_that_never_read_cannot_delay_the_stop(start_server: StartServer, collection: str) -> None:
    server = start_server("--drain-timeout", "1")
    request = (
        f"GET /{collection}/docs?limit=1000 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {server.key}\r\n\r\n"
    ).encode()
    with (
        open_raw(server, collection, receive_buffer=4096) as websocket,
        open_raw(server, collection, query="since=0", receive_buffer=4096) as cursor,
        Raw(server, receive_buffer=4096) as http,
        Http2(server, window=0) as quart,
    ):
        pour(server, collection, 10)
        http.send(request)
        stream = quart.ask(f"/{collection}/docs?limit=1000")
        quart.flush()
        while stream not in quart.responses:
            assert quart.fill()
        for raw in (websocket, cursor, http):
            assert raw.socket.recv(1) != b""  # the response has begun, and nothing more is read
        assert end(server) < 1 + 1 + SLACK


def test_client_that_ignores_the_close_frame_cannot_delay_the_stop(
    start_server: StartServer, collection: str
) -> None:
    server = start_server("--drain-timeout", "60")
    with open_raw(server, collection) as raw:
        assert end(server) < 1 + 1 + SLACK
        assert raw.frame() == (8, (1012).to_bytes(2, "big") + b"server restarting")


def test_new_connections_and_requests_are_refused_while_draining(
    start_server: StartServer, collection: str
) -> None:
    server = start_server("--drain-timeout", "60")
    blocked = Raw(server)  # keeps the drain going
    blocked.send(b"GET / HTTP/1.1\r\n")
    behind = Raw(server)
    behind.send(b"GET /healthz HTTP/1.1\r\nHost: x\r\n")
    token = server.token(collection)
    with Raw(server) as late:
        late.send(handshake(server, f"/?token={token}")[:-2])
        wait_until(lambda: server.request("GET", "/healthz").status_code == 200)
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: "draining" in server.stderr)
        late.send(b"\r\n")  # completes a handshake too late
        status, headers, body = late.response()
        assert (status, body["code"]) == (503, "SHUTTING_DOWN")
        assert int(headers["retry-after"]) > 0

    def is_refused() -> bool:
        with socket.socket() as probe:
            probe.settimeout(1)
            try:
                probe.connect(("127.0.0.1", server.port))
                probe.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
                return probe.recv(100) == b""
            except OSError:
                return True

    assert is_refused()
    blocked.drop()
    behind.drop()
    assert server.process.wait(10) == 0
    assert "Traceback" not in server.stderr


def test_half_a_head_and_further_signals_cannot_delay_the_stop(start_server: StartServer) -> None:
    server = start_server("--drain-timeout", "1", "--head-timeout", "60")
    with Raw(server) as raw:
        raw.send(b"GET / HTTP/1.1\r\n")
        wait_until(lambda: server.request("GET", "/healthz").status_code == 200)
        began = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: "draining" in server.stderr)
        for _ in range(3):
            server.process.send_signal(signal.SIGINT)
        assert server.process.wait(10) == 0
        assert time.monotonic() - began < 1 + 1 + SLACK
    server.stop()
    assert "Traceback" not in server.stderr


def test_slow_reader_gets_its_events_before_1012(start_server: StartServer, collection: str) -> None:
    """The current write is finished within the drain time, and the stream ends with a close frame."""
    server = start_server("--drain-timeout", "10")
    with open_raw(server, collection, query="since=now", receive_buffer=4096) as raw:
        assert raw.message()["type"] == "ready"
        ids = pour(server, collection, 3)
        seen = [raw.message()["data"]["_id"] for _ in range(10)]
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: "draining" in server.stderr)
        while True:
            opcode, payload = raw.frame()
            if opcode == 8:
                break
            seen.append(payload.decode().partition('"_id":"')[2][:21])
        assert payload[:2] == (1012).to_bytes(2, "big")
        assert seen == ids[: len(seen)]
        cursor = len(seen)
        raw.socket.close()
    assert server.process.wait(10) == 0
    server.stop()
    server.start()
    with server.connect(collection, query=f"since={cursor}", max_queue=None) as ws:  # seqs began at 1 here
        receive(ws)
        assert [receive(ws)["data"]["_id"] for _ in ids[cursor:]] == ids[cursor:]


async def test_query_that_outlives_the_drain_does_not_fail_the_server(tmp_path: Path) -> None:
    """Its request was dropped, but its thread runs on for a moment while the server closes its connections."""
    file = prepare(tmp_path, create=True)
    reader = Reader(file, threads=2, timeout=10, max_result_bytes=1 << 20)
    release, used = threading.Event(), threading.Event()

    def query(connection: sqlite.Connection) -> None:
        used.set()
        release.wait(10)

    def is_closed() -> bool:  # asked of the kernel: a connection may not be used while a thread closes it
        return not any(os.path.realpath(link) == str(file) for link in Path("/proc/self/fd").iterdir())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(reader.run, query)
        while not used.is_set():
            await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    reader.close()
    assert not is_closed()
    release.set()
    wait_until(is_closed)


def insert_many(server: Server, collection: str) -> int:
    """Insert 10,000 documents. Returns their number."""
    for _ in range(10):
        response = server.request("POST", f"/{collection}/bulk", json=[{} for _ in range(1000)])
        assert response.status_code == 200
    return 10_000


@contextmanager
def slow(server: Server, change: str, work: int) -> Iterator[None]:
    """A trigger makes each such change of the file take some 0.25 ms per thousand of `work`. So what
    consists of many changes is not over before the test stops it."""
    counted = f"WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n LIMIT {work}) SELECT i FROM n"
    with closing(connect(server.data / "paperdb.sqlite")) as file:
        file.execute(f"CREATE TRIGGER slow AFTER {change} BEGIN SELECT count(*) FROM ({counted}); END")
    yield
    with closing(connect(server.data / "paperdb.sqlite")) as file:
        file.execute("DROP TRIGGER slow")


@pytest.mark.sqlite
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_drain_interrupts_a_drop_and_the_next_start_finishes_it(
    start_server: StartServer, collection: str, how: signal.Signals
) -> None:
    """Its events still come, each once; documents inserted meanwhile stay."""
    server = start_server("--drain-timeout", "0.8")
    count, responses = insert_many(server, collection), list[httpx.Response]()

    def drop() -> None:
        with suppress(httpx.TransportError):
            responses.append(server.request("DELETE", f"/{collection}", params={"confirm": collection}))

    with (
        slow(server, "DELETE ON documents", 2000),
        server.connect(collection, query="since=now", max_queue=None) as ws,
    ):
        cursor = receive(ws)["seq"]
        dropping = threading.Thread(target=drop)
        dropping.start()
        assert receive(ws)["type"] == "delete"  # the drop is running
        began = time.monotonic()
        server.process.send_signal(how)
        code = server.process.wait(20)
        took = time.monotonic() - began
    dropping.join()
    server.stop()
    assert "Traceback" not in server.stderr
    if how == signal.SIGTERM:
        assert (code, len(responses)) == (0, 1)
        assert_stopped(server, responses[0])
        assert took < 0.8 + SLACK
    assert 0 < _left(server) < count
    server.start()
    # Before any client can add to it.
    assert server.request("GET", f"/{collection}/count").json() == {"count": 0}
    server.insert(collection, {"key": "since"})
    deleted: set[str] = set()
    inserted: list[str] = []
    with server.connect(collection, query=f"since={cursor}", max_queue=None) as ws:
        assert receive(ws)["type"] == "ready"
        while len(deleted) < count or not inserted:
            event = receive(ws)
            if event["type"] == "delete":
                assert event["data"]["_id"] not in deleted
                deleted.add(event["data"]["_id"])
            else:
                inserted.append(event["data"]["_id"])
    assert inserted == ["since"]
    assert server.request("GET", "/collections").json()["collections"][0]["count"] == 1


@pytest.mark.sqlite
def test_sigterm_stops_a_start_that_still_removes(start_server: StartServer, collection: str) -> None:
    server = start_server("--drain-timeout", "0.5")
    insert_many(server, collection)
    with slow(server, "DELETE ON documents", 2000):
        with server.connect(collection, query="since=now", max_queue=None) as ws:
            receive(ws)
            dropping = threading.Thread(
                target=lambda: suppress_transport(server, f"/{collection}?confirm={collection}")
            )
            dropping.start()
            assert receive(ws)["type"] == "delete"
            server.kill()
        dropping.join()
        left = _left(server)
        command = [*COMMAND, "serve", "--data", str(server.data), "--port", "0"]
        starting = subprocess.Popen(command, env=ENVIRONMENT)
        wait_until(lambda: _left(server) < left)
        starting.send_signal(signal.SIGTERM)
        assert starting.wait(10) == 0
    assert _left(server) > 0
    server.start()
    assert server.request("GET", "/collections").json() == {"collections": []}


def suppress_transport(server: Server, path: str) -> None:
    with suppress(httpx.TransportError):
        server.request("DELETE", path)


def _left(server: Server) -> int:
    with closing(connect(server.data / "paperdb.sqlite")) as file:
        return int(file.execute("SELECT count(*) FROM documents").fetchone()[0])


@pytest.mark.sqlite
def test_index_that_is_being_built_cannot_delay_the_stop(start_server: StartServer, collection: str) -> None:
    """A schema that waits for it is not in force afterwards; the next start builds on."""
    server = start_server("--drain-timeout", "0.8")
    insert_many(server, collection)
    schema = {"properties": {f"f{n}": {"unique": True} for n in range(5)}}
    answers = []

    def put() -> None:
        answers.append(server.request("PUT", f"/{collection}/schema", json=schema))

    def is_building() -> bool:
        found = server.request("GET", f"/{collection}/docs?limit=1&explain=true").json()
        return bool(found["explain"]["building"])

    with slow(server, "UPDATE ON index_builds", 1_000_000):
        putting = threading.Thread(target=put)
        putting.start()
        wait_until(is_building)
        assert end(server) < 0.8 + SLACK
        putting.join()
    assert_stopped(server, answers[0])
    server.start()
    assert server.request("GET", f"/{collection}/schema").status_code == 404
    assert server.request("PUT", f"/{collection}/schema", json=schema).status_code == 200
    assert server.cli("check").endswith("All is well.\n")
