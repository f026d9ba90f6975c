"""Heads in memory; `tests/fuzz` has many more of them."""

from __future__ import annotations

import pytest

from paperdb_trio.errors import ApiError
from paperdb_trio.net.head import parse_head


@pytest.mark.parametrize("data", [b"\r\n\r\n", b"\r\n\r\n\r\n", b"GET / HTTP/1.1\r\n"])
def test_what_has_no_whole_head_is_a_400(data: bytes) -> None:
    """llhttp reads over blank lines: two of them once were a DELETE in HTTP/0.0, and Quart's."""
    with pytest.raises(ApiError):
        parse_head(data)


def test_a_blank_line_before_a_request_is_read_over() -> None:
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
def test_whether_another_request_may_follow(framing: str, version: str, connection: str, kept: bool) -> None:
    """HTTP/1.0 is never kept open: we do not say `Connection: keep-alive`, which its clients wait for."""
    data = f"POST /x/docs HTTP/{version}\r\nHost: x\r\n{framing}{connection}\r\n"
    assert parse_head(data.encode()).keep_alive is kept
