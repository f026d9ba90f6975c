"""Early refusals for browsers: a page can read the refusal, and the preflight before it succeeds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from tests.conftest import Server, StartServer, wait_until
from tests.net.http2 import Http2
from tests.realtime.raw import Raw, handshake

ORIGIN = "https://app.example"
PREFLIGHT = (
    "OPTIONS /c/docs HTTP/1.1",
    "Access-Control-Request-Method: PATCH",
    "Access-Control-Request-Headers: authorization",
)
GET = ("GET /c/docs HTTP/1.1",)


def ask(server: Server, *lines: str, origin: str = ORIGIN) -> tuple[int, dict[str, str]]:
    with Raw(server) as raw:
        raw.send("".join(f"{line}\r\n" for line in [*lines, "Host: x", f"Origin: {origin}", ""]).encode())
        return raw.head()


@contextmanager
def full(server: Server, most: int) -> Iterator[None]:
    """As many idle connections as the limit allows. Each has had a response: on a busy machine, a later one may
    be counted first."""
    with ExitStack() as stack:
        for _ in range(most):
            raw = stack.enter_context(Raw(server))
            raw.send(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            assert raw.response()[0] == 200
        wait_until(lambda: ask(server, *GET)[0] == 503)
        yield


@pytest.fixture(params=["*", "https://app.example,https://*.app.example"])
def allowed(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("limit", ["--max-connections", "--max-connections-per-address"])
def test_page_can_read_a_full_servers_refusal(start_server: StartServer, allowed: str, limit: str) -> None:
    server = start_server(limit, "5", "--trusted-proxies", "", "--allowed-origins", allowed)
    with full(server, 5):
        status, headers = ask(server, *PREFLIGHT)
        assert status == 204
        assert "PATCH" in headers["access-control-allow-methods"]
        status, headers = ask(server, *GET)
        assert (status, headers["retry-after"]) == (503, "5")
        assert headers["access-control-allow-origin"] == ("*" if allowed == "*" else ORIGIN)
        assert "Retry-After" in headers["access-control-expose-headers"]
        assert headers["connection"] == "close"
        status, headers = ask(server, *GET, origin="https://evil.example")
        assert (status, "access-control-allow-origin" in headers) == (503, allowed == "*")
        with Raw(server) as raw:  # a browser's WebSocket reads a close code
            raw.send(handshake(server, f"/?token={'x' * 20}&errors=close", f"Origin: {ORIGIN}"))
            assert raw.head()[0] == 101
            opcode, payload = raw.frame()
        assert (opcode, int.from_bytes(payload[:2], "big")) == (8, 1013)
        with Raw(server) as raw:
            raw.send(handshake(server, f"/?token={'x' * 20}"))
            assert raw.head()[0] == 503


def test_full_server_refuses_silent_connections_too(start_server: StartServer) -> None:
    server = start_server("--max-connections", "5")
    with full(server, 5), Raw(server) as silent:
        assert silent.response()[0] == 503


def test_page_can_read_a_full_servers_refusal_over_http_2(start_server: StartServer, allowed: str) -> None:
    server = start_server("--max-connections", "3", "--allowed-origins", allowed)
    with Http2(server) as client:
        for _ in range(3):
            client.ask("/c/changes", accept="text/event-stream")
        refused = client.ask("/c/docs", origin=ORIGIN)
        preflight = client.ask("/c/docs", "OPTIONS", key=False, origin=ORIGIN)
        client.flush()
        assert [client.response(refused)[0], client.response(preflight)[0]] == [503, 204]
    assert client.headers[refused]["retry-after"] == "5"
    for stream in (refused, preflight):
        expected = "*" if allowed == "*" else ORIGIN
        assert client.headers[stream]["access-control-allow-origin"] == expected
    assert "PATCH" in client.headers[preflight]["access-control-allow-methods"]


def test_page_can_read_the_refusal_of_a_large_or_late_head(start_server: StartServer, allowed: str) -> None:
    server = start_server("--head-timeout", "0.5", "--allowed-origins", allowed)
    expected = "*" if allowed == "*" else ORIGIN
    status, headers = ask(server, *GET, origin=f"{ORIGIN}\r\nX: {'x' * 20_000}")
    assert (status, headers["access-control-allow-origin"]) == (431, expected)
    with Raw(server) as raw:
        raw.send(f"GET /c/docs HTTP/1.1\r\norigin: {ORIGIN}\r\n".encode())
        status, headers = raw.head()
    assert (status, headers["access-control-allow-origin"]) == (408, expected)


@pytest.mark.parametrize("method", ["patch", "Post", "head"])
def test_lowercase_method_is_a_400_that_says_so(server: Server, method: str) -> None:
    with Raw(server) as raw:
        raw.send(f"{method} /c/docs HTTP/1.1\r\nHost: x\r\nOrigin: {ORIGIN}\r\n\r\n".encode())
        status, headers, body = raw.response()
    assert (status, headers["access-control-allow-origin"]) == (400, "*")
    assert body["error"] == f"Methods are case-sensitive: '{method}' is not {method.upper()}"


def test_page_can_read_the_refusal_of_too_many_pending_bytes(start_server: StartServer) -> None:
    server = start_server("--max-pending-bytes", "2000000")
    for _ in range(10):
        server.insert("c", {"pad": "x" * 900_000})
    with Raw(server, receive_buffer=4096) as slow:
        find = "GET /c/docs?limit=10 HTTP/1.1\r\nHost: x\r\n"
        slow.send(f"{find}Authorization: Bearer {server.key}\r\n\r\n".encode())
        assert slow.head()[0] == 200
        status, headers = ask(server, "GET /c/docs?limit=1 HTTP/1.1", f"Authorization: Bearer {server.key}")
    assert (status, headers["access-control-allow-origin"]) == (503, "*")


@pytest.mark.parametrize("body", [None, b'{"n":1}'])
@pytest.mark.parametrize("method", ["delete", "Put", "post"])
def test_lowercase_method_does_nothing_over_http_2(
    server: Server, collection: str, method: str, body: bytes | None
) -> None:
    document = f"/{collection}/docs/a"
    server.insert(collection, {"key": "a"})
    with Http2(server) as client:
        refused = client.ask(document, method, body)
        client.flush()
        assert client.response(refused)[0] == 400
        asked = client.ask(document)
        client.flush()
        assert client.response(asked)[0] == 200


@pytest.mark.parametrize("path", ["/c/changes?lastEventId=1", "/c/changes?limit=1", "/c/changes?wait=1"])
def test_parameter_of_the_other_kind_of_changes_is_a_400(server: Server, path: str) -> None:
    streamed = "lastEventId" not in path
    headers = {"Accept": "text/event-stream"} if streamed else {}
    assert server.request("GET", path, headers=headers).status_code == 400


def test_content_range_on_put_is_a_400(server: Server, collection: str) -> None:
    document = f"/{collection}/docs/a"
    server.insert(collection, {"key": "a", "n": 1})
    answer = server.request("PUT", document, json={}, headers={"Content-Range": "bytes 0-3/10"})
    assert answer.status_code == 400
    assert server.request("GET", document).json()["n"] == 1
