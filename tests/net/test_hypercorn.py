"""What we rely on in Hypercorn 0.18, whose connection class is internal to it: that a stream handed over is
served to its end, in HTTP/1.1 and HTTP/2, and that neither a client nor a drain can hurt more than one."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.conftest import Server, StartServer, need, receive, wait_until
from tests.realtime.raw import Raw, handshake, running

pytestmark = pytest.mark.executable


@pytest.fixture(scope="module")
def quart(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose plain HTTP/1.1 goes through Quart and Hypercorn too."""
    data = tmp_path_factory.mktemp("quart") / "data"
    with running(data, "--http", "quart", "--max-body-bytes", "20000", "--drain-timeout", "2") as server:
        yield server


def request(server: Server, method: str, path: str, body: bytes = b"", *headers: str) -> bytes:
    lines = [
        f"{method} {path} HTTP/1.1",
        "Host: x",
        f"Authorization: Bearer {server.key}",
        "Content-Type: application/json",
        *headers,
    ]
    return "".join(f"{line}\r\n" for line in [*lines, ""]).encode() + body


def test_documents_and_events_work_the_same_way(quart: Server, collection: str) -> None:
    with quart.connect(collection) as ws:
        document = quart.insert(collection, {"text": "é"})
        assert receive(ws)["data"] == document
        answer = quart.request("GET", f"/{collection}/docs/{document['_id']}")
        assert answer.json() == document


def test_one_connection_serves_many_requests_and_refuses_an_upgrade(quart: Server, collection: str) -> None:
    """Once Hypercorn has a connection it keeps it: an upgrade on it is refused, not half served."""
    with Raw(quart) as raw:
        for _ in range(3):
            raw.send(request(quart, "GET", "/collections"))
            assert raw.answer()[0] == 200
        raw.send(handshake(quart, f"/realtime?token={quart.token(collection)}"))
        assert 400 <= raw.head()[0] < 500


def test_a_chunked_body_arrives_whole(quart: Server, collection: str) -> None:
    with Raw(quart) as raw:
        chunks = b'8\r\n{"text":\r\n7\r\n"hello"\r\n1\r\n}\r\n0\r\n\r\n'
        raw.send(request(quart, "POST", f"/{collection}/docs", chunks, "Transfer-Encoding: chunked"))
        status, _, document = raw.answer()
        assert (status, document["text"]) == (201, "hello")


def test_who_expects_100_is_told_to_continue(quart: Server, collection: str) -> None:
    body = b'{"n": 1}'
    with Raw(quart) as raw:
        length = f"Content-Length: {len(body)}"
        raw.send(request(quart, "POST", f"/{collection}/docs", b"", length, "Expect: 100-continue"))
        assert raw.head()[0] == 100
        raw.send(body)
        assert raw.answer()[0] == 201


def test_a_body_too_large_is_a_413(quart: Server, collection: str) -> None:
    answer = quart.request("POST", f"/{collection}/docs", json={"pad": "x" * 30_000})
    assert (answer.status_code, answer.json()["code"]) == (413, "BODY_TOO_LARGE")


@pytest.mark.parametrize("path", ["/nothing/here/at/all", "/x//docs", "/%ff/docs"])
def test_what_there_is_not_is_a_json_error(quart: Server, path: str) -> None:
    with Raw(quart) as raw:
        raw.send(request(quart, "GET", path))
        status, _, body = raw.answer()
        assert 400 <= status < 500
        assert body.keys() >= {"error", "code"}


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


def test_the_first_who_need_it_may_come_at_once(start_server: StartServer) -> None:
    """It is loaded then, and once: all of them are served, and the others meanwhile."""
    server = start_server()
    unusual = request(server, "GET", "/collections", b"", "Trailer: x")
    with ExitStack() as stack:
        raws = [stack.enter_context(Raw(server)) for _ in range(10)]
        for raw in raws:
            raw.send(unusual)
        assert server.insert("c", {})
        assert [raw.answer()[0] for raw in raws] == [200] * 10
    assert server.stop() == 0
    assert "Traceback" not in server.stderr


def test_a_drain_while_it_is_loaded_ends_what_waits_for_it(start_server: StartServer) -> None:
    """Answered or not: such a connection must not idle until its keep-alive ends."""
    server = start_server("--drain-timeout", "60", "--keep-alive-timeout", "60")
    unusual = request(server, "GET", "/collections", b"", "Trailer: x")
    with Raw(server) as raw:
        raw.send(unusual[:10])
        wait_until(lambda: server.request("GET", "/healthz").status_code == 200)
        raw.send(unusual[10:])
        server.process.send_signal(signal.SIGTERM)
        raw.drain()
        assert server.process.wait(10) == 0
    server.stop()
    assert "Traceback" not in server.stderr
