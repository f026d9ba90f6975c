"""The head of a request: enough of it to know who shall answer, and how its body is framed.

Law: no I/O. Parsed by llhttp, strictly: two lengths, a bare LF, a folded line, an unknown transfer coding
are refused, so that nobody in front of us can have read another request out of the same bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import parse_qs

import httptools

from paperdb_trio.errors import ApiError, bad_request


@dataclass(slots=True)
class Head:
    """`headers` with lower-case names; of a repeated header the values are joined by commas.

    `content_length` in bytes, None without one; `keep_alive`: the peer may send another request.
    """

    method: str = ""
    target: str = ""
    version: str = "1.1"
    keep_alive: bool = True
    headers: dict[str, str] = field(default_factory=dict)
    content_length: int | None = None
    chunked: bool = False

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]

    @property
    def query_string(self) -> str:
        return self.target.partition("?")[2]

    @property
    def query(self) -> dict[str, str]:
        """The query's parameters; of a repeated one the last. Raises a 400."""
        try:
            pairs = parse_qs(self.query_string, keep_blank_values=True, max_num_fields=100)
        except ValueError:
            raise bad_request("The query has over 100 parameters") from None
        return {key: values[-1] for key, values in pairs.items()}

    def tokens(self, name: str) -> list[str]:
        """The comma-separated items of a header."""
        return [item.strip() for item in self.headers.get(name, "").split(",") if item.strip()]

    @property
    def is_websocket(self) -> bool:
        return (
            self.method == "GET"
            and "websocket" in self.headers.get("upgrade", "").lower()
            and "upgrade" in (item.lower() for item in self.tokens("connection"))
        )

    @property
    def is_unusual(self) -> bool:
        """Whether this asks for more than a plain exchange of HTTP/1.1: that is for Hypercorn."""
        headers = self.headers
        return (
            self.version not in ("1.1", "1.0")
            or "upgrade" in headers
            or "expect" in headers
            or "trailer" in headers
            or (self.chunked and (self.version == "1.0" or headers["transfer-encoding"].lower() != "chunked"))
        )


class _Parser:
    __slots__ = ("complete", "head", "target")

    def __init__(self) -> None:
        self.complete = False
        self.head = Head()
        self.target = b""

    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_headers_complete(self) -> None:
        self.complete = True

    def on_header(self, name: bytes, value: bytes) -> None:
        key, text = name.decode("latin-1").lower(), value.decode("latin-1")
        before = self.head.headers.get(key)
        self.head.headers[key] = text if before is None else f"{before},{text}"


def parse_head(data: bytes) -> Head:
    """Parse a head that ends with an empty line. Raises a 400."""
    protocol = _Parser()
    parser = httptools.HttpRequestParser(protocol)
    try:
        parser.feed_data(data)
    except httptools.HttpParserUpgrade:
        pass
    except httptools.HttpParserError as error:
        raise bad_request(f"This is no HTTP/1.1 request: {error}") from None
    if not protocol.complete:  # two blank lines: llhttp reads over any number of them before a request
        raise bad_request("This is no HTTP/1.1 request")
    head = protocol.head
    try:
        head.target = protocol.target.decode("ascii")
    except UnicodeDecodeError:
        raise bad_request("The request target must be percent-encoded ASCII") from None
    head.method = parser.get_method().decode("ascii")
    head.version = parser.get_http_version()
    head.keep_alive = head.version == "1.1" and _keeps(head)
    headers = head.headers
    if head.version == "1.1" and ("host" not in headers or "," in headers["host"]):
        raise bad_request("An HTTP/1.1 request needs exactly one Host header")
    if "content-length" in headers:
        head.content_length = int(headers["content-length"])  # llhttp has checked that it is one number
    head.chunked = "transfer-encoding" in headers
    return head


def _keeps(head: Head) -> bool:
    # llhttp's word is of no use: it says "no" while a body is to come, and "yes" once a request is whole,
    # whatever its Connection header said.
    return "close" not in (item.lower() for item in head.tokens("connection"))


class ChunkedDecoder:
    """RFC 9112, section 7.1, strictly: no bare LF, no sign, no space; extensions are read over.

    Feed it bytes; `body` grows; once `done`, `rest` is what follows the body.
    """

    MAX_LINE = 4096

    def __init__(self) -> None:
        self.body = bytearray()
        self.done = False
        self.rest = b""
        self._buffer = b""
        self._left = 0  # bytes of the present chunk with its CRLF

    def feed(self, data: bytes) -> None:
        """Raises a 400 for bad framing, and for trailers, which had to be announced."""
        buffer, at = self._buffer + data, 0  # `at`: what is before it has been taken; nothing is copied for it
        while not self.done:
            if self._left:
                have = len(buffer) - at
                if have < self._left:
                    taken = max(0, min(have, self._left - 2))
                    self.body += memoryview(buffer)[at : at + taken]
                    self._left -= taken
                    at += taken
                    break
                end = at + self._left
                self.body += memoryview(buffer)[at : end - 2]
                if buffer[end - 2 : end] != b"\r\n":
                    raise _bad_chunk("a chunk is longer than its size")
                at, self._left = end, 0
            eol = buffer.find(b"\r\n", at, at + self.MAX_LINE)
            if eol < 0:
                if len(buffer) - at >= self.MAX_LINE:
                    raise _bad_chunk("a chunk's size line is too long")
                break
            line = buffer[at:eol]
            size = line.partition(b";")[0]
            if b"\n" in line or not 0 < len(size) <= 8 or any(c not in b"0123456789abcdefABCDEF" for c in size):
                raise _bad_chunk(f"invalid chunk size {line[:20]!r}")
            length = int(size, 16)
            if length:
                at, self._left = eol + 2, length + 2
            elif len(buffer) < eol + 4:
                break
            elif buffer[eol + 2 : eol + 4] != b"\r\n":
                raise _bad_chunk("trailers that no Trailer header announced")
            else:
                at, self.done, self.rest = eol + 4, True, buffer[eol + 4 :]
        self._buffer = buffer[at:]


def _bad_chunk(why: str) -> ApiError:
    return bad_request(f"Bad chunked body: {why}")
