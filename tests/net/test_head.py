"""Heads in memory; `tests/fuzz` has many more."""

from __future__ import annotations

import pytest

from paperdb_trio.errors import ApiError
from paperdb_trio.net.head import parse_head

HOST = "Host: x\r\n\r\n"
UPGRADE = "Connection: upgrade\r\nUpgrade: x\r\n"


@pytest.mark.parametrize(
    ("data", "status"),
    [
        ("\r\n\r\n", 400),
        ("\r\n\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\n", 400),
        ("DESCRIBE /x RTSP/1.0\r\n" + HOST, 400),
        ("SOURCE /x ICE/1.0\r\n" + HOST, 400),
        ("GET /\r\n" + HOST, 400),
        ("GET / HTTP/0.9\r\n" + HOST, 400),
        ("GET / HTTP/2.0\r\n" + HOST, 400),
        ("GET / HTTP/1.2\r\n" + HOST, 400),
        ("\nGET / HTTP/1.1\r\n" + HOST, 400),
        ("\rGET / HTTP/1.1\r\n" + HOST, 400),
        ("\r\n\r\nGET / HTTP/1.1\r\n" + HOST, 400),
        ("GET  / HTTP/1.1\r\n" + HOST, 400),
        ("GET / HTTP/1.1 \r\n" + HOST, 400),
        ("GET\t/ HTTP/1.1\r\n" + HOST, 400),
        ("GET /\x7f HTTP/1.1\r\n" + HOST, 400),
        ("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        ("GET / HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\n\r\n", 400),
        (f"GET / HTTP/1.1\r\n{UPGRADE}Transfer-Encoding: identity\r\n" + HOST, 400),
        (f"GET / HTTP/1.1\r\n{UPGRADE}Transfer-Encoding: chunked, x\r\n" + HOST, 400),
        (f"GET / HTTP/1.1\r\n{UPGRADE}Transfer-Encoding: chunked\r\nContent-Length: 2\r\n" + HOST, 400),
        (f"GET / HTTP/1.1\r\n{UPGRADE}Content-Length: 2\r\nContent-Length: 2\r\n" + HOST, 400),
        ("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n" + HOST, 400),
        ("POST / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n" + HOST, 501),
        ("POST / HTTP/1.1\r\nTransfer-Encoding: chunked, chunked\r\n" + HOST, 400),
        ("POST / HTTP/1.1\r\nExpect: 200-ok\r\n" + HOST, 417),
    ],
)
def test_ambiguous_head_is_refused(data: str, status: int) -> None:
    """llhttp skips blank lines and accepts other protocols: it read two such lines as a DELETE in HTTP/0.0."""
    with pytest.raises(ApiError) as refused:
        parse_head(data.encode())
    assert refused.value.status == status


def test_http_1_0_needs_no_host_and_gets_no_100() -> None:
    head = parse_head(b"GET / HTTP/1.0\r\nExpect: 100-continue\r\n\r\n")
    assert (head.version, head.expects_continue) == ("1.0", False)


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        ("/a?b=1", "/a", "b=1"),
        ("http://x/a?b=1", "/a", "b=1"),
        ("HTTPS://user@x:80/a//b", "/a//b", ""),
        ("http://x", "/", ""),
        ("http://x?b=1", "/", "b=1"),
        ("*", "*", ""),
        ("ftp://x/a", "ftp://x/a", ""),
    ],
)
def test_absolute_target_is_accepted(target: str, path: str, query: str) -> None:
    head = parse_head(f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    assert (head.path, head.query_string) == (path, query)


def test_blank_line_before_a_request_is_skipped() -> None:
    assert parse_head(b"\r\nGET /x HTTP/1.1\r\nHost: x\r\n\r\n").target == "/x"


@pytest.mark.parametrize("framing", ["", "Content-Length: 2\r\n"], ids=["no body", "body"])
@pytest.mark.parametrize(
    ("version", "connection", "kept"),
    [
        ("1.1", "", True),
        ("1.1", "Connection: keep-alive\r\n", True),
        ("1.1", "Connection: close\r\n", False),
        ("1.1", "Connection: TE, Close\r\n", False),
        ("1.0", "", False),
        ("1.0", "Connection: keep-alive\r\n", False),
    ],
)
def test_connection_header_decides_keep_alive(framing: str, version: str, connection: str, kept: bool) -> None:
    """HTTP/1.0 is never kept open: we do not send the `Connection: keep-alive` that its clients wait for."""
    data = f"POST /x/docs HTTP/{version}\r\nHost: x\r\n{framing}{connection}\r\n"
    assert parse_head(data.encode()).keep_alive is kept
