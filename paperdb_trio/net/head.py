"""The head of a request: its method, target and headers, and how its body is framed.

Law: no I/O. llhttp parses it strictly and refuses two lengths, a bare LF, a folded line, an unknown transfer
coding. So no proxy in front of us can have read a different request from the same bytes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final

import httptools

from paperdb_trio.errors import ApiError, bad_request


@dataclass(slots=True)
class Head:
    """`headers` have lower-case names; commas join the values of a repeated header.

    `content_length` in bytes, None without one; `keep_alive`: the peer may send another request.
    """

    method: str = ""
    target: str = ""
    path: str = ""
    query_string: str = ""
    version: str = "1.1"
    keep_alive: bool = True
    headers: dict[str, str] = field(default_factory=dict)
    content_length: int | None = None
    chunked: bool = False

    def tokens(self, name: str) -> list[str]:
        """The comma-separated items of a header."""
        if name not in self.headers:
            return []
        return [item.strip() for item in self.headers[name].split(",") if item.strip()]

    def forget(self) -> None:
        """Let go of what is large: a connection may outlive its last head by days."""
        self.target = self.query_string = ""
        self.headers = {}

    @property
    def is_websocket(self) -> bool:
        if self.method != "GET" or "websocket" not in self.headers.get("upgrade", "").lower():
            return False
        connection = self.headers.get("connection", "").lower()
        return connection == "upgrade" or "upgrade" in (item.strip() for item in connection.split(","))

    @property
    def expects_continue(self) -> bool:
        """Whether the peer waits for a 100 before it sends its body (RFC 9110, section 10.1.1)."""
        return "expect" in self.headers and self.version == "1.1"


# llhttp also accepts RTSP and ICE, HTTP/0.9 and 2.0, and any CRs and LFs before the method, not just one blank
# line (RFC 9112, section 2.2).
_METHOD: Final = re.compile(rb"(?:\r\n)?[A-Z][A-Z-]* ")
_IN_TARGET: Final = bytes(byte for byte in range(256) if byte > 0x20 and byte != 0x7F)
_BEHIND_TARGET: Final = frozenset((b" HTTP/1.0\r\n", b" HTTP/1.1\r\n"))
_SMALL_METHOD: Final = re.compile(rb"(?:\r\n)?((?=[A-Z]*[a-z])[A-Za-z]{3,7}) [^\x00-\x20\x7f]+ HTTP/1\.")
_ABSOLUTE: Final = re.compile(r"https?://[^/?#]*", re.IGNORECASE)


class _Parser:
    __slots__ = ("head", "target")

    def __init__(self) -> None:
        self.head = Head()
        self.target = b""

    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        key, text = name.decode("latin-1").lower(), value.decode("latin-1")
        before = self.head.headers.get(key)
        self.head.headers[key] = text if before is None else f"{before},{text}"


def parse_head(data: bytes) -> Head:
    """Parse a head, from one blank line or the request line to an empty line. Raises a 400."""
    if not _is_request_line(data):
        small = _SMALL_METHOD.match(data)
        if small is not None:  # a proxy may read `head` differently than we do, so we refuse it
            method = small[1].decode()
            raise bad_request(f"Methods are case-sensitive: '{method}' is not {method.upper()}")
        raise bad_request("Not an HTTP/1.1 request: invalid request line")
    protocol = _Parser()
    parser = httptools.HttpRequestParser(protocol)
    try:
        parser.feed_data(data)
    except httptools.HttpParserUpgrade:
        pass
    except httptools.HttpParserError as error:
        raise bad_request(f"Not an HTTP/1.1 request: {error}") from None
    head = protocol.head
    try:
        head.target = protocol.target.decode("ascii")
    except UnicodeDecodeError:
        raise bad_request("The request target must be percent-encoded ASCII") from None
    if not head.target.startswith("/"):
        head.target = _origin_form(head.target)
    head.path, _, head.query_string = head.target.partition("?")
    head.method = parser.get_method().decode("ascii")
    head.version = parser.get_http_version()
    head.keep_alive = head.version == "1.1" and _keeps(head)
    headers = head.headers
    if "," in headers.get("host", "" if head.version == "1.0" else ","):
        raise bad_request("An HTTP/1.1 request needs exactly one Host header")
    if "content-length" in headers:
        head.content_length = int(headers["content-length"])  # llhttp has checked that this is one number
    if "transfer-encoding" in headers:
        _check_coding(head)
        head.chunked = True
    if head.expects_continue and headers["expect"].lower() != "100-continue":
        raise ApiError(417, "EXPECTATION_FAILED", "The only supported expectation is 100-continue")
    return head


def _is_request_line(data: bytes) -> bool:
    """Whether it begins with one. A regular expression took 7 µs for a target with a token."""
    method = _METHOD.match(data)
    if method is None:
        return False
    begin = method.end()
    end = data.find(b" ", begin)
    return (
        end > begin
        and data[end : end + 11] in _BEHIND_TARGET
        and not data[begin:end].translate(None, _IN_TARGET)
    )


def _origin_form(target: str) -> str:
    """The path and the query of an absolute target, which servers must accept (RFC 9112, section 3.2.2)."""
    absolute = _ABSOLUTE.match(target)
    if absolute is None:
        return target
    rest = target[absolute.end() :]
    return rest if rest.startswith("/") else f"/{rest}"


def _check_coding(head: Head) -> None:
    """Raises a 400 or 501 for a body whose end is unclear or whose coding is unknown (RFC 9112, section 6.1).

    llhttp checks some of this, but not beside an Upgrade.
    """
    codings = [item.lower() for item in head.tokens("transfer-encoding")]
    if head.content_length is not None or codings[-1:] != ["chunked"] or head.version == "1.0":
        raise bad_request(
            "The last Transfer-Encoding of a request must be chunked, in HTTP/1.1 and without a Content-Length"
        )
    if head.headers["transfer-encoding"].lower() != "chunked":
        raise ApiError(501, "NOT_IMPLEMENTED", "The only supported Transfer-Encoding of a request is chunked")


def _keeps(head: Head) -> bool:
    # llhttp's own flag does not help: it is false until the body has arrived and true afterwards, whatever the
    # Connection header says.
    connection = head.headers.get("connection", "").lower()
    return "close" not in connection or "close" not in (item.strip() for item in connection.split(","))
