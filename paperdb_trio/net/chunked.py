"""Chunked bodies (RFC 9112, section 7.1), in both directions.

Law: no I/O.
"""

from __future__ import annotations

import re
from typing import Final

from paperdb_trio.errors import ApiError, bad_request

_CHUNK_LINE: Final = re.compile(rb"([0-9A-Fa-f]{1,8})(?:;[\t -~\x80-\xff]*)?")
_TRAILERS: Final = re.compile(rb"(?:[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t -~\x80-\xff]*\r\n)*\r\n")


class ChunkedDecoder:
    """RFC 9112, section 7.1, strictly: no bare LF, no sign, no space; extensions and trailers are skipped.

    Feed it bytes, and `body` grows. Once it is `done`, `rest` holds the bytes after the body. The time is
    proportional to the bytes, however small the chunks and the pieces are.
    """

    MAX_LINE: Final = 4096
    """Bytes of a chunk's size line, and of all trailers."""

    def __init__(self) -> None:
        self.body = bytearray()
        self.done = False
        self.rest = b""
        self._buffer = b""  # less than a size line, the CRLF of a chunk, or the trailers
        self._left = 0  # bytes of the current chunk with its CRLF
        self._last = False  # only the trailers are missing

    def feed(self, data: bytes) -> None:
        """Raises a 400 for bad framing."""
        data = self._buffer + data
        at = self._read(data)
        if self.done:
            self.rest, self._buffer = data[at:], b""
        else:
            self._buffer = data[at:]

    def _read(self, data: bytes) -> int:
        """Decode the complete parts of `data`; returns where the rest begins."""
        at, size = 0, len(data)
        while not self._last:
            if self._left > 2:
                end = min(size, at + self._left - 2)
                self.body += data[at:end]
                self._left -= end - at
                at = end
            if self._left:
                if self._left > 2 or size - at < 2:
                    return at
                if data[at : at + 2] != b"\r\n":
                    raise _bad_chunk("a chunk is longer than its size")
                at, self._left = at + 2, 0
            end = data.find(b"\r\n", at, at + self.MAX_LINE + 2)
            if end < 0:
                if size - at >= self.MAX_LINE + 2:
                    raise _bad_chunk("a chunk's size line is too long")
                return at
            line = _CHUNK_LINE.fullmatch(data, at, end)
            if line is None:
                raise _bad_chunk(f"invalid chunk size {data[at : min(end, at + 20)]!r}")
            at, length = end + 2, int(line[1], 16)
            self._left, self._last = (length + 2, False) if length else (0, True)
        end = at + 2 if data.startswith(b"\r\n", at) else data.find(b"\r\n\r\n", at, at + self.MAX_LINE + 4) + 4
        if end == 3:
            if size - at >= self.MAX_LINE + 4:
                raise _bad_chunk("the trailers are too long")
            return at
        if not _TRAILERS.fullmatch(data, at, end):
            raise _bad_chunk("invalid trailers")
        self.done = True
        return end


def _bad_chunk(why: str) -> ApiError:
    return bad_request(f"Bad chunked body: {why}")


def chunk(data: bytes) -> bytes:
    """One chunk of a body (RFC 9112, section 7.1). Empty for no data, because an empty chunk ends the body."""
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""


LAST_CHUNK: Final = b"0\r\n\r\n"
