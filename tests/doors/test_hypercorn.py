"""What we rely on in Hypercorn 0.18, whose connection class is internal to it: that a stream handed over is
served to its end, in HTTP/1.1 and HTTP/2, and that neither a client nor a drain can hurt more than one."""

from __future__ import annotations

import json
import select
import signal
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
    """A server whose plain HTTP/1.1 goes through Quart and Hypercorn too."""
    data = tmp_path_factory.mktemp("quart") / "data"
    with running(data, "--http", "quart", "--max-body-bytes", "20000", "--drain-timeout", "2") as server:
        yield server


@pytest.mark.executable
@pytest.mark.smoke
def test_documents_and_events_work_the_same_way(quart: Server, collection: str) -> None:
    with quart.connect(collection) as ws:
        document = quart.insert(collection, {"text": "é"})
        assert receive(ws)["data"] == document
        answer = quart.request("GET", f"/{collection}/docs/{document['_id']}")
        assert answer.json() == document


@pytest.mark.executable
def test_one_connection_serves_many_requests_and_refuses_an_upgrade(quart: Server, collection: str) -> None:
    """Once Hypercorn has a connection it keeps it: an upgrade on it is refused, not half served."""
    with Raw(quart) as raw:
        for _ in range(3):
            raw.send(request(quart, "GET", "/collections"))
            assert raw.answer()[0] == 200
        raw.send(handshake(quart, f"/realtime?token={quart.token(collection)}"))
        assert 400 <= raw.head()[0] < 500


@pytest.mark.executable
def test_a_chunked_body_arrives_whole(quart: Server, collection: str) -> None:
    with Raw(quart) as raw:
        chunks = b'8\r\n{"text":\r\n7\r\n"hello"\r\n1\r\n}\r\n0\r\n\r\n'
        raw.send(request(quart, "POST", f"/{collection}/docs", chunks, "Transfer-Encoding: chunked"))
        status, _, document = raw.answer()
        assert (status, document["text"]) == (201, "hello")


@pytest.mark.executable
def test_who_expects_100_is_told_to_continue(quart: Server, collection: str) -> None:
    body = b'{"n": 1}'
    with Raw(quart) as raw:
        length = f"Content-Length: {len(body)}"
        raw.send(request(quart, "POST", f"/{collection}/docs", b"", length, "Expect: 100-continue"))
        assert raw.head()[0] == 100
        raw.send(body)
        assert raw.answer()[0] == 201


@pytest.mark.executable
def test_a_body_too_large_is_a_413(quart: Server, collection: str) -> None:
    answer = quart.request("POST", f"/{collection}/docs", json={"pad": "x" * 30_000})
    assert (answer.status_code, answer.json()["code"]) == (413, "BODY_TOO_LARGE")


@pytest.mark.executable
@pytest.mark.parametrize("path", ["/nothing/here/at/all", "/x//docs", "/%ff/docs"])
def test_what_there_is_not_is_a_json_error(quart: Server, path: str) -> None:
    with Raw(quart) as raw:
        raw.send(request(quart, "GET", path))
        status, _, body = raw.answer()
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


def test_an_upgrade_with_trailing_bytes_ends_one_connection(quart: Server) -> None:
    """Hypercorn #225: this ends a whole server when Hypercorn's own accept loop is used."""
    for trailing in (b"x" * 10, b"\0" * 5000):
        with Raw(quart) as raw:
            raw.send(handshake(quart, "/somewhere") + trailing)
            raw.drain()
        with Raw(quart) as raw:
            raw.send(handshake(quart, "/somewhere", "Upgrade: h2c").replace(b"websocket", b"h2c", 1) + trailing)
            raw.drop()
    assert quart.request("GET", "/healthz").status_code == 200


@pytest.mark.executable
def test_the_first_who_need_it_may_come_at_once(start_server: StartServer) -> None:
    """It is loaded then, and once: all of them are served, and the others meanwhile."""
    server = start_server()
    with ExitStack() as stack:
        clients = [stack.enter_context(Http2(server)) for _ in range(10)]
        streams = [client.ask("/collections") for client in clients]
        for client in clients:
            client.flush()
        assert server.insert("c", {})
        assert [client.answer(s)[0] for client, s in zip(clients, streams, strict=True)] == [200] * 10
    assert server.stop() == 0
    assert "Traceback" not in server.stderr


def test_a_drain_while_it_is_loaded_ends_what_waits_for_it(start_server: StartServer) -> None:
    """Answered or not: such a connection must not idle until its keep-alive ends."""
    server = start_server("--drain-timeout", "60", "--keep-alive-timeout", "60")
    with Raw(server) as raw:
        raw.send(HTTP2_PREFACE[:10])
        wait_until(lambda: server.request("GET", "/healthz").status_code == 200)
        raw.send(HTTP2_PREFACE[10:] + EMPTY_SETTINGS)
        server.process.send_signal(signal.SIGTERM)
        raw.drain()
        assert server.process.wait(10) == 0
    server.stop()
    assert "Traceback" not in server.stderr


# --- what a client of HTTP/2 can do --------------------------------------------------------------


@pytest.mark.executable
def test_websockets_are_not_offered_within_http_2(server: Server) -> None:
    """A browser would take the offer (RFC 8441), and Quart has none."""
    with Http2(server) as client:
        while not client.acknowledged:
            assert client.fill()
        assert client.h2.remote_settings.enable_connect_protocol == 0


@pytest.mark.executable
@pytest.mark.smoke
def test_a_large_answer_arrives_whole(server: Server, collection: str) -> None:
    """It goes out in pieces."""
    document = server.insert(collection, {"text": "x" * 500_000})
    with Http2(server) as client:
        stream = client.ask(f"/{collection}/docs/{document['_id']}")
        client.flush()
        status, body = client.answer(stream)
        assert (status, json.loads(body)) == (200, document)


def test_a_path_that_is_no_ascii_ends_its_connection_and_is_no_failure(server: Server) -> None:
    with Http2(server) as client:
        client.ask(b"/\xff")
        client.flush()
        client.drain()
    assert "Traceback" not in server.stderr


TIMEOUTS = ("--write-timeout", "1", "--keep-alive-timeout", "1")


def test_streams_whose_client_takes_nothing_end_after_a_while_and_leave_nothing(
    start_server: StartServer,
) -> None:
    """With a window of 0 a client takes no answer, and its connection has nothing to write, so no deadline."""
    server = start_server(*TIMEOUTS)
    server.insert("big", {"key": "a", "text": "x" * 500_000})
    after: list[int] = []
    for _ in range(4):
        with Http2(server, window=0) as client:
            for _ in range(90):
                client.ask("/big/docs/a")
            client.flush()
            client.drain()
        after.append(memory(server.pid))
    # All answers of one round are 45 MB; they used to be kept until the collector came, which it hardly does.
    assert after[-1] < after[1] + 20 * 2**20, after
    assert server.request("GET", "/big/docs/a").status_code == 200


def hold(stack: ExitStack, server: Server, path: str, clients: int) -> Counter[int]:
    """So many clients ask for it 90 times each and take nothing of the answers; their statuses."""
    held = [stack.enter_context(Http2(server, window=0)) for _ in range(clients)]
    for client in held:
        for _ in range(90):
            client.ask(path)
        client.flush()
    for client in held:
        while len(client.answers) < 90:
            assert client.fill()
    return Counter(status for client in held for status, _ in client.answers.values())


def test_streams_are_counted_as_connections_are(start_server: StartServer) -> None:
    server = start_server("--trusted-proxies", "", "--max-connections-per-address", "150")
    with Http2(server) as client:
        stream = client.ask("/sdk/realtime.js")
        client.flush()
        assert client.answer(stream)[0] == 200
    before = memory(server.pid)
    with ExitStack() as stack:
        assert hold(stack, server, "/sdk/realtime.js", 3) == {200: 150, 503: 120}
        assert memory(server.pid) < before + 30 * 2**20
    wait_until(lambda: server.request("GET", "/healthz").status_code == 200)


@pytest.mark.parametrize("http", ["1.1", "2"])
def test_slow_readers_hold_so_many_bytes_and_no_more(start_server: StartServer, http: str) -> None:
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
                raw.send(ask * 10)  # the kernel takes the first ones
                assert raw.head()[0] == 200
        answer = server.request("GET", "/big/docs/a")
        assert (answer.status_code, answer.json()["code"]) == (503, "TOO_MANY_PENDING_BYTES")
        assert server.request("GET", "/big/docs/b").status_code == 200
    wait_until(lambda: server.request("GET", "/big/docs/a").status_code == 200)


@pytest.mark.parametrize("http", ["raw", "quart"])
@pytest.mark.parametrize("chunked", [False, True])
def test_slow_bodies_hold_so_many_bytes_and_no_more(
    start_server: StartServer, http: str, chunked: bool
) -> None:
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
        refused = [raw for raw in raws if select.select([raw.socket], [], [], 1)[0]]
        assert [raw.head()[0] for raw in refused] == [503]
        assert server.insert("big", {"text": "x" * 10_000})
    wait_until(lambda: server.request("POST", "/big/docs", json={"text": "x" * 900_000}).status_code == 201)


def test_a_body_where_there_should_be_none_is_not_kept(start_server: StartServer) -> None:
    """Quart would keep 16 MiB of it while a long poll waits."""
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


def test_floods_of_reset_streams_let_others_come_between(server: Server) -> None:
    """CVE-2023-44487: each costs the server a request and its client nothing."""
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
        answered = 0
        while pouring.is_alive() or not answered:
            assert server.request("GET", "/healthz").status_code == 200
            answered += 1
        client.socket.close()
        pouring.join()
    assert "Traceback" not in server.stderr


@pytest.mark.parametrize("begun", ["nothing", "half a preface", "a request", "a refused body"])
def test_a_connection_of_http_2_that_asks_nothing_ends(start_server: StartServer, begun: str) -> None:
    server = start_server("--keep-alive-timeout", "1", "--head-timeout", "1")
    if begun == "half a preface":
        with Raw(server) as raw:
            raw.send(HTTP2_PREFACE[:18])
            raw.drain()
        return
    with Http2(server) as client:
        if begun == "a request":
            assert client.answer(client.ask("/healthz", key=False))[0] == 200
        elif begun == "a refused body":
            assert client.answer(client.ask("/a/docs", "POST", end=False, key=False))[0] == 401
        client.socket.settimeout(8)
        client.drain()  # a TimeoutError if it stays open


def test_a_connection_of_http_2_lives_while_it_is_being_answered(start_server: StartServer) -> None:
    server = start_server("--keep-alive-timeout", "1")
    with Http2(server) as client:
        status, body = client.answer(client.ask("/a/changes?wait=3"))
        assert (status, json.loads(body)["changes"]) == (200, [])
        again = client.ask("/healthz")
        client.flush()
        assert client.answer(again)[0] == 200


@pytest.mark.executable
@pytest.mark.smoke
def test_priorities_are_nothing_to_us(server: Server, collection: str) -> None:
    """They cost a millisecond each with 1,000 streams in the tree, and beyond those the connection."""
    with Http2(server) as client:
        for stream in range(1, 6001, 2):
            client.h2.prioritize(stream, weight=16, depends_on=0)
        stream = client.ask(f"/{collection}/count")
        client.flush()
        assert client.answer(stream)[0] == 200


def test_a_body_behind_its_refusal_ends_no_other_request(server: Server, collection: str) -> None:
    with Http2(server) as client:
        waiting = client.ask(f"/{collection}/changes?since=now&wait=20")
        refused = client.ask(f"/{collection}/docs", "POST", end=False, key=False)
        client.flush()
        assert client.answer(refused)[0] == 401
        for end in (False, True):
            with suppress(StreamClosedError):  # we may have been told to stop
                client.h2.send_data(refused, b"{}" * 5000, end_stream=end)
            client.flush()
        document = server.insert(collection, {})
        status, body = client.answer(waiting)
        assert (status, json.loads(body)["changes"][0]["data"]) == (200, document)
    assert "Traceback" not in server.stderr


def test_events_beyond_the_limit_of_a_database_are_refused(start_server: StartServer) -> None:
    server = start_server("--max-connections-per-database", "1")
    token = server.token("a")
    with Http2(server) as client, server.connect("a"):
        stream = client.ask(f"/a/changes?token={token}", key=False, accept="text/event-stream")
        status, body = client.answer(stream)
        assert (status, json.loads(body)["code"]) == (503, "TOO_MANY_CONNECTIONS")
