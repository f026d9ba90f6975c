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

    def on_header(self, name: bytes, value: bytes) -> None:
        """Called by llhttp for each header."""
        key, text = name.decode("latin-1").lower(), value.decode("latin-1")
        before = self.headers.get(key)
        self.headers[key] = text if before is None else f"{before},{text}"

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
        upgrade = self.headers.get("upgrade")
        if upgrade is None or self.method != "GET" or "websocket" not in upgrade.lower():
            return False
        connection = self.headers.get("connection", "").lower()
        return connection == "upgrade" or "upgrade" in (item.strip() for item in connection.split(","))

    @property
    def expects_continue(self) -> bool:
        """Whether the peer waits for a 100 before it sends its body (RFC 9110, section 10.1.1)."""
        return "expect" in self.headers and self.version == "1.1"


# llhttp also accepts RTSP and ICE, HTTP/0.9 and 2.0, and any CRs and LFs before the method, not just one blank
# line (RFC 9112, section 2.2).
_METHOD: Final = re.compile(rb"(?:\r\n)?([A-Z][A-Z-]*) ")
_IN_TARGET: Final = bytes(byte for byte in range(256) if byte > 0x20 and byte != 0x7F)
_BEHIND_TARGET: Final = {b" HTTP/1.0\r\n": "1.0", b" HTTP/1.1\r\n": "1.1"}
_SMALL_METHOD: Final = re.compile(rb"(?:\r\n)?((?=[A-Z]*[a-z])[A-Za-z]{3,7}) [^\x00-\x20\x7f]+ HTTP/1\.")
_ABSOLUTE: Final = re.compile(r"https?://[^/?#]*", re.IGNORECASE)


def parse_head(data: bytes) -> Head:
    """Parse a head, from one blank line or the request line to an empty line. Raises a 400."""
    head = _request_line(data)
    parser = httptools.HttpRequestParser(head)
    try:
        parser.feed_data(data)
    except httptools.HttpParserUpgrade:
        pass
    except httptools.HttpParserError as error:
        raise bad_request(f"Not an HTTP/1.1 request: {error}") from None
    headers = head.headers
    head.keep_alive = head.version == "1.1" and _keeps(headers)
    if "," in headers.get("host", "" if head.version == "1.0" else ","):
        raise bad_request("An HTTP/1.1 request needs exactly one Host header")
    if "content-length" in headers:
        head.content_length = int(headers["content-length"])  # llhttp has checked that this is one number
    if "transfer-encoding" in headers:
        _check_coding(head)
        head.chunked = True
    if "expect" in headers and head.expects_continue and headers["expect"].lower() != "100-continue":
        raise ApiError(417, "EXPECTATION_FAILED", "The only supported expectation is 100-continue")
    return head


def _request_line(data: bytes) -> Head:
    """What it says. A regular expression for all of it took 7 µs for a target with a token."""
    method = _METHOD.match(data)
    begin = 0 if method is None else method.end()
    end = data.find(b" ", begin)
    # Compiled, a slice of bytes whose end is before its start raises SystemError.
    version = _BEHIND_TARGET.get(data[end : end + 11]) if end >= 0 else None
    raw = data[begin:end]
    if method is None or version is None or not raw or raw.translate(None, _IN_TARGET):
        small = _SMALL_METHOD.match(data)
        if small is not None:  # a proxy may read `head` differently than we do, so we refuse it
            name = small[1].decode()
            raise bad_request(f"Methods are case-sensitive: '{name}' is not {name.upper()}")
        raise bad_request("Not an HTTP/1.1 request: invalid request line")
    try:
        target = raw.decode("ascii")
    except UnicodeDecodeError:
        raise bad_request("The request target must be percent-encoded ASCII") from None
    if not target.startswith("/"):
        target = _origin_form(target)
    path, _, query_string = target.partition("?")
    return Head(method[1].decode(), target, path, query_string, version)


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


def _keeps(headers: dict[str, str]) -> bool:
    # llhttp's own flag does not help: it is false until the body has arrived and true afterwards, whatever the
    # Connection header says.
    connection = headers.get("connection", "").lower()
    return "close" not in connection or "close" not in (item.strip() for item in connection.split(","))
