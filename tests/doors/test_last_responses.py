"""A response before the end of its request's body is the last of its connection. It says so (RFC 9112, section
9.6); otherwise the client's next request would be lost."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conftest import Server
from tests.realtime.raw import Raw, request, running


@pytest.fixture(scope="module", params=["raw", "quart"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    data = tmp_path_factory.mktemp(request.param) / "data"
    with running(data, "--http", request.param, "--max-body-bytes", "20000", "--body-timeout", "1") as server:
        yield server


@pytest.mark.parametrize("framing", ["Content-Length: 20", "Transfer-Encoding: chunked"])
@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/my%20collection/docs", 400),
        ("PATCH", "/my%20collection/docs/a", 400),
        ("GET", "/my%20collection/docs", 400),
        ("POST", "/nothing/here/at/all", 404),
        ("PUT", "/healthz", 405),
        ("GET", "/healthz", 200),
        ("POST", "/c/docs", 408),
    ],
)
def test_response_before_the_end_of_a_body_is_the_last_and_says_so(
    server: Server, method: str, path: str, status: int, framing: str
) -> None:
    with Raw(server) as raw:
        raw.send(request(server, method, path, b"", framing))
        found, headers, _ = raw.response()
        assert (found, headers.get("connection")) == (status, "close")
        assert raw.drain() == b""


def test_refusal_of_a_large_body_is_the_last_and_says_so(server: Server) -> None:
    with Raw(server) as raw:
        raw.send(request(server, "POST", "/c/docs", b"{" * 100, "Content-Length: 30000"))
        status, headers, _ = raw.response()
        assert (status, headers.get("connection")) == (413, "close")
        assert raw.drain() == b""


@pytest.mark.parametrize("framing", [(), ("Content-Length: 0",)])
def test_response_without_a_request_body_is_not_the_last(server: Server, framing: tuple[str, ...]) -> None:
    with Raw(server) as raw:
        for method, path in (("GET", "/healthz"), ("POST", "/my%20collection/docs"), ("GET", "/healthz")):
            raw.send(request(server, method, path, b"", *framing))
            _, headers, _ = raw.response()
            assert "connection" not in headers


def test_response_after_a_whole_body_is_not_the_last(server: Server) -> None:
    with Raw(server) as raw:
        for _ in range(3):
            raw.send(request(server, "POST", "/c/docs", b'{"n": 1}', "Content-Length: 8"))
            status, headers, _ = raw.response()
            assert (status, "connection" in headers) == (201, False)
