"""The internals of Hypercorn 0.18 that we rely on: its connection class serves a stream of ours to its end, in
HTTP/1.1 and HTTP/2, and neither a client nor a drain affects another connection."""

from __future__ import annotations

import json
import select
import signal
import socket
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import pytest
from h2.exceptions import StreamClosedError

from paperdb_trio.net.http1 import HTTP2_PREFACE
from tests.conftest import Server, StartServer, need, receive, wait_until
from tests.net.http2 import Http2
from tests.realtime.raw import Raw, handshake, request, running
from tests.stress.harness import memory

EMPTY_SETTINGS = b"\0\0\0\4\0\0\0\0\0"


@pytest.fixture(scope="module")
def quart(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose HTTP/1.1 also goes through Quart and Hypercorn."""
    data = tmp_path_factory.mktemp("quart") / "data"
    with running(data, "--http", "quart", "--max-body-bytes", "20000", "--drain-timeout", "2") as server:
        yield server


@pytest.mark.executable
@pytest.mark.smoke
def test_documents_and_events_work_the_same(quart: Server, collection: str) -> None:
    with quart.connect(collection) as ws:
        document = quart.insert(collection, {"text": "é"})
        assert receive(ws)["data"] == document
        response = quart.request("GET", f"/{collection}/docs/{document['_id']}")
        assert response.json() == document


def test_one_connection_serves_many_requests_and_refuses_an_upgrade(quart: Server, collection: str) -> None:
    """Hypercorn keeps a connection once it has it; an upgrade on it is refused, not half served."""
    with Raw(quart) as raw:
        for _ in range(3):
            raw.send(request(quart, "GET", "/collections"))
            assert raw.response()[0] == 200
        raw.send(handshake(quart, f"/realtime?token={quart.token(collection)}"))
        assert 400 <= raw.head()[0] < 500


def test_chunked_body_arrives_whole(quart: Server, collection: str) -> None:
    with Raw(quart) as raw:
        chunks = b'8\r\n{"text":\r\n7\r\n"hello"\r\n1\r\n}\r\n0\r\n\r\n'
        raw.send(request(quart, "POST", f"/{collection}/docs", chunks, "Transfer-Encoding: chunked"))
        status, _, document = raw.response()
        assert (status, document["text"]) == (201, "hello")


def test_client_that_sends_no_more_gets_its_responses(quart: Server, collection: str) -> None:
    """As `nc -N` does, and a server of our own serves it."""
    head = quart.request("GET", f"/{collection}/changes?since=now").json()["seq"]
    with Raw(quart) as raw:
        raw.send(request(quart, "POST", f"/{collection}/docs", b'{"n": 1}', "Content-Length: 8"))
        raw.send(request(quart, "GET", f"/{collection}/changes?wait=20&since={head + 1}"))
        raw.socket.shutdown(socket.SHUT_WR)
        assert raw.response()[0] == 201
        quart.insert(collection, {"n": 2})
        assert [change["data"]["n"] for change in raw.response()[2]["changes"]] == [2]
        assert not raw.fill()


def test_event_stream_ends_when_its_client_sends_no_more(quart: Server, collection: str) -> None:
    with Raw(quart) as raw:
        raw.send(request(quart, "GET", f"/{collection}/changes", b"", "Accept: text/event-stream"))
        assert raw.head()[0] == 200
        raw.socket.shutdown(socket.SHUT_WR)
        while raw.fill():
            pass


def test_body_that_ends_early_gets_no_response(quart: Server, collection: str) -> None:
    with Raw(quart, timeout=20) as raw:
        raw.send(request(quart, "POST", f"/{collection}/docs", b'{"n": 1', "Content-Length: 8"))
        raw.socket.shutdown(socket.SHUT_WR)
        while raw.fill():
            pass
        assert b" 201 " not in raw.buffer


def test_expect_100_gets_a_100(quart: Server, collection: str) -> None:
    body = b'{"n": 1}'
    with Raw(quart) as raw:
        length = f"Content-Length: {len(body)}"
        raw.send(request(quart, "POST", f"/{collection}/docs", b"", length, "Expect: 100-continue"))
        assert raw.head()[0] == 100
        raw.send(body)
        assert raw.response()[0] == 201


def test_body_too_large_is_a_413(quart: Server, collection: str) -> None:
    response = quart.request("POST", f"/{collection}/docs", json={"pad": "x" * 30_000})
    assert (response.status_code, response.json()["code"]) == (413, "BODY_TOO_LARGE")


@pytest.mark.parametrize("path", ["/nothing/here/at/all", "/x//docs", "/%ff/docs"])
def test_unknown_route_returns_json_404(quart: Server, path: str) -> None:
    with Raw(quart) as raw:
        raw.send(request(quart, "GET", path))
        status, _, body = raw.response()
        assert 400 <= status < 500
        assert body.keys() >= {"error", "code"}


@pytest.mark.executable
@pytest.mark.smoke
def test_http_2_carries_documents(quart: Server, collection: str) -> None:
    output = subprocess.run(
        [
            need("curl"),
            "-s",
            "--http2-prior-knowledge",
            *("-H", f"Authorization: Bearer {quart.key}", "-H", "Content-Type: application/json"),
            *("-d", '{"n": 1}', f"{quart.url}/{collection}/docs"),
        ],
        capture_output=True,
        timeout=10,
        check=False,
    ).stdout
    document = json.loads(output)
    assert quart.request("GET", f"/{collection}/docs/{document['_id']}").json() == document


def test_upgrade_with_trailing_bytes_closes_one_connection(quart: Server) -> None:
    """Hypercorn #225: with Hypercorn's own accept loop, this ends the whole server."""
    for trailing in (b"x" * 10, b"\0" * 5000):
        with Raw(quart) as raw:
            raw.send(handshake(quart, "/somewhere") + trailing)
            raw.drain()
        with Raw(quart) as raw:
            raw.send(handshake(quart, "/somewhere", "Upgrade: h2c").replace(b"websocket", b"h2c", 1) + trailing)
            raw.drop()
    assert quart.request("GET", "/healthz").status_code == 200


def test_first_users_may_arrive_together(start_server: StartServer) -> None:
    """Hypercorn is loaded once; all of them are served, and other clients meanwhile."""
    server = start_server(forked=False)
    with ExitStack() as stack:
        clients = [stack.enter_context(Http2(server)) for _ in range(10)]
        streams = [client.ask("/collections") for client in clients]
        for client in clients:
            client.flush()
        assert server.insert("c", {})
        assert [client.response(s)[0] for client, s in zip(clients, streams, strict=True)] == [200] * 10
    assert server.stop() == 0
    assert "Traceback" not in server.stderr


def test_drain_during_loading_closes_waiting_connections(start_server: StartServer) -> None:
    """With or without a response, such a connection must not idle until its keep-alive timeout."""
    server = start_server("--drain-timeout", "60", "--keep-alive-timeout", "60", forked=False)
    with Raw(server) as raw:
        raw.send(HTTP2_PREFACE[:10])
        wait_until(lambda: server.request("GET", "/healthz").status_code == 200)
        raw.send(HTTP2_PREFACE[10:] + EMPTY_SETTINGS)
        server.process.send_signal(signal.SIGTERM)
        raw.drain()
        assert server.process.wait(10) == 0
    server.stop()
    assert "Traceback" not in server.stderr


# --- HTTP/2 clients ------------------------------------------------------------------------------


@pytest.mark.executable
def test_http_2_does_not_offer_websockets(server: Server) -> None:
    """A browser would accept the offer (RFC 8441), but Quart has no WebSocket."""
    with Http2(server) as client:
        while not client.acknowledged:
            assert client.fill()
        assert client.h2.remote_settings.enable_connect_protocol == 0


@pytest.mark.executable
@pytest.mark.smoke
def test_large_response_arrives_whole(server: Server, collection: str) -> None:
    """It is sent in pieces."""
    document = server.insert(collection, {"text": "x" * 500_000})
    with Http2(server) as client:
        stream = client.ask(f"/{collection}/docs/{document['_id']}")
        client.flush()
        status, body = client.response(stream)
        assert (status, json.loads(body)) == (200, document)


def test_non_ascii_path_closes_its_connection_without_a_failure(server: Server) -> None:
    with Http2(server) as client:
        client.ask(b"/\xff")
        client.flush()
        client.drain()
    assert "Traceback" not in server.stderr


TIMEOUTS = ("--write-timeout", "1", "--keep-alive-timeout", "1")


def test_unread_streams_close_after_a_while_and_free_their_memory(
    start_server: StartServer,
) -> None:
    """With a window of 0 a client accepts no response; its connection has nothing to write, and so no
    deadline."""
    server = start_server(*TIMEOUTS, forked=False)
    server.insert("big", {"key": "a", "text": "x" * 500_000})
    after: list[int] = []
    for _ in range(4):
        with Http2(server, window=0) as client:
            for _ in range(90):
                client.ask("/big/docs/a")
            client.flush()
            client.drain()
        after.append(memory(server.pid))
    # All responses of one round are 45 MB. They used to stay until the collector ran, which is rare.
    assert after[-1] < after[1] + 20 * 2**20, after
    assert server.request("GET", "/big/docs/a").status_code == 200


def hold(stack: ExitStack, server: Server, path: str, clients: int) -> Counter[int]:
    """So many clients request it 90 times each and read none of the responses; returns their statuses."""
    held = [stack.enter_context(Http2(server, window=0)) for _ in range(clients)]
    for client in held:
        for _ in range(90):
            client.ask(path)
        client.flush()
    for client in held:
        while len(client.responses) < 90:
            assert client.fill()
    return Counter(status for client in held for status, _ in client.responses.values())


def test_streams_count_as_connections(start_server: StartServer) -> None:
    server = start_server("--trusted-proxies", "", "--max-connections-per-address", "150", forked=False)
    with Http2(server) as client:
        stream = client.ask("/sdk/realtime.js")
        client.flush()
        assert client.response(stream)[0] == 200
    before = memory(server.pid)
    with ExitStack() as stack:
        assert hold(stack, server, "/sdk/realtime.js", 3) == {200: 150, 503: 120}
        assert memory(server.pid) < before + 30 * 2**20
    wait_until(lambda: server.request("GET", "/healthz").status_code == 200)


@pytest.mark.parametrize("http", ["1.1", "2"])
def test_slow_readers_hold_bounded_bytes(start_server: StartServer, http: str) -> None:
    server = start_server("--max-pending-bytes", "2000000")
    server.insert("big", {"key": "a", "text": "x" * 900_000})
    server.insert("big", {"key": "b", "text": "small"})
    with ExitStack() as stack:
        if http == "2":
            assert hold(stack, server, "/big/docs/a", 1) == {200: 2, 503: 88}
        else:
            ask = request(server, "GET", "/big/docs?limit=1")
            raws = [stack.enter_context(Raw(server, receive_buffer=4096)) for _ in range(2)]
            for raw in raws:
                raw.send(ask * 10)  # the kernel buffers the first ones
                assert raw.head()[0] == 200
        wait_until(lambda: server.request("GET", "/big/docs/a").status_code == 503)
        assert server.request("GET", "/big/docs/a").json()["code"] == "TOO_MANY_PENDING_BYTES"
        assert server.request("GET", "/big/docs/b").status_code == 200
    wait_until(lambda: server.request("GET", "/big/docs/a").status_code == 200)


@pytest.mark.parametrize("http", ["raw", "quart"])
@pytest.mark.parametrize("chunked", [False, True])
def test_slow_bodies_hold_bounded_bytes(start_server: StartServer, http: str, chunked: bool) -> None:
    server = start_server("--max-pending-bytes", "2000000", "--http", http)
    framing = "Transfer-Encoding: chunked" if chunked else "Content-Length: 1000000"
    head = (
        f"POST /big/docs HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {server.key}\r\n"
        f"Content-Type: application/json\r\n{framing}\r\n\r\n"
    )
    begun = head.encode() + (b"e7ef0\r\n" if chunked else b"") + b" " * 900_000
    with ExitStack() as stack:
        raws = [stack.enter_context(Raw(server)) for _ in range(3)]
        for raw in raws:
            raw.send(begun)
        refused, _, _ = select.select([raw.socket for raw in raws], [], [], 10)
        assert [raw.head()[0] for raw in raws if raw.socket in refused] == [503]
        assert server.insert("big", {"text": "x" * 10_000})
    wait_until(lambda: server.request("POST", "/big/docs", json={"text": "x" * 900_000}).status_code == 201)


def test_unexpected_body_is_not_kept(start_server: StartServer) -> None:
    """Quart would buffer 16 MiB of it while a long poll waits."""
    server = start_server()
    with Http2(server) as client:
        client.ask("/x/changes?wait=60", end=False)
        stream = max(client.open)
        sent = 0
        with suppress(OSError):
            while client.open:
                size = min(client.h2.local_flow_control_window(stream), 16_384)
                if size:
                    client.h2.send_data(stream, b"x" * size)
                    sent += size
                    client.flush()
                elif not client.fill():
                    break
        assert sent < 1_000_000
    assert server.request("GET", "/healthz").status_code == 200


def test_floods_of_reset_streams_let_other_clients_through(server: Server) -> None:
    """CVE-2023-44487: each costs the server a request and the client nothing."""
    with Http2(server) as client:
        flood = []
        for _ in range(10_000):
            stream = client.ask("/healthz", key=False)
            client.h2.reset_stream(stream, 8)
            flood.append(client.h2.data_to_send())

        def pour() -> None:
            with suppress(OSError):
                client.socket.sendall(b"".join(flood))

        pouring = threading.Thread(target=pour)
        pouring.start()
        responses = 0
        while pouring.is_alive() or not responses:
            assert server.request("GET", "/healthz").status_code == 200
            responses += 1
        client.socket.close()
        pouring.join()
    assert "Traceback" not in server.stderr


@pytest.mark.parametrize("begun", ["nothing", "half a preface", "a request", "a refused body"])
def test_idle_http_2_connection_closes(start_server: StartServer, begun: str) -> None:
    server = start_server("--keep-alive-timeout", "1", "--head-timeout", "1")
    if begun == "half a preface":
        with Raw(server) as raw:
            raw.send(HTTP2_PREFACE[:18])
            raw.drain()
        return
    with Http2(server) as client:
        if begun == "a request":
            assert client.response(client.ask("/healthz", key=False))[0] == 200
        elif begun == "a refused body":
            assert client.response(client.ask("/a/docs", "POST", end=False, key=False))[0] == 401
        client.socket.settimeout(8)
        client.drain()  # a TimeoutError if it stays open


def test_http_2_connection_stays_open_during_a_response(start_server: StartServer) -> None:
    server = start_server("--keep-alive-timeout", "1")
    with Http2(server) as client:
        status, body = client.response(client.ask("/a/changes?wait=3"))
        assert (status, json.loads(body)["changes"]) == (200, [])
        again = client.ask("/healthz")
        client.flush()
        assert client.response(again)[0] == 200


@pytest.mark.executable
@pytest.mark.smoke
def test_priorities_are_ignored(server: Server, collection: str) -> None:
    """With 1,000 streams in the tree, each cost a millisecond; more streams broke the connection."""
    with Http2(server) as client:
        for stream in range(1, 6001, 2):
            client.h2.prioritize(stream, weight=16, depends_on=0)
        stream = client.ask(f"/{collection}/count")
        client.flush()
        assert client.response(stream)[0] == 200


def test_body_after_its_refusal_ends_no_other_request(server: Server, collection: str) -> None:
    with Http2(server) as client:
        waiting = client.ask(f"/{collection}/changes?since=now&wait=20")
        refused = client.ask(f"/{collection}/docs", "POST", end=False, key=False)
        client.flush()
        assert client.response(refused)[0] == 401
        for end in (False, True):
            with suppress(StreamClosedError):  # the server may have reset it
                client.h2.send_data(refused, b"{}" * 5000, end_stream=end)
            client.flush()
        document = server.insert(collection, {})
        status, body = client.response(waiting)
        assert (status, json.loads(body)["changes"][0]["data"]) == (200, document)
    assert "Traceback" not in server.stderr


def test_event_streams_beyond_a_databases_limit_are_refused(start_server: StartServer) -> None:
    server = start_server("--max-connections-per-database", "1")
    token = server.token("a")
    with Http2(server) as client, server.connect("a"):
        stream = client.ask(f"/a/changes?token={token}", key=False, accept="text/event-stream")
        status, body = client.response(stream)
        assert (status, json.loads(body)["code"]) == (503, "TOO_MANY_CONNECTIONS")
