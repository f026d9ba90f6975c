"""HTTP/1.1 without a framework: one request after another on one connection.

Law: only frames requests and responses; `dispatch.respond`, the function that Quart calls too, gives them a
meaning. After a request with doubtful framing the connection closes behind the response.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable
from contextlib import suppress
from email.utils import formatdate
from http import HTTPStatus
from typing import Final

import trio

from paperdb_trio.config import Settings
from paperdb_trio.errors import ApiError, bad_request
from paperdb_trio.limits import Limits
from paperdb_trio.loop.turn import OnePerTurn
from paperdb_trio.loop.wheel import Wheel
from paperdb_trio.net.chunked import ChunkedDecoder, chunk
from paperdb_trio.net.cors import refusal
from paperdb_trio.net.head import Head, parse_head
from paperdb_trio.net.messages import Request, Response, body_too_large, body_too_late
from paperdb_trio.net.stream import AT_ONCE_BYTES, ByteStream, Interrupted

HTTP2_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
RECEIVE_BYTES: Final = 65_536
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"

_STATUS_LINES: Final = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n" for status in HTTPStatus}
_date: tuple[int, str] = (0, "")


def _date_line() -> str:
    global _date
    now = int(time.time())
    if now != _date[0]:
        _date = now, f"Date: {formatdate(now, usegmt=True)}\r\n"
    return _date[1]


def response_bytes(response: Response, *, keep_alive: bool, body: bool = True) -> bytes:
    """A response as bytes; without its `body` for HEAD."""
    head = _response_head(response, None if response.status in (204, 304) else len(response.body), keep_alive)
    return head + response.body if body else head


def _response_head(response: Response, length: int | None, keep_alive: bool) -> bytes:
    lines = [_STATUS_LINES[response.status], _date_line()]
    lines += [f"{name}: {value}\r\n" for name, value in response.headers.items()]
    if length is not None:
        lines.append(f"Content-Length: {length}\r\n")
    lines.append("\r\n" if keep_alive else "Connection: close\r\n\r\n")
    return "".join(lines).encode("latin-1")


_NO_HEAD: Final = Head()
IDLE_LOOK_SECONDS: Final = 1.0
LONG_HEAD_BYTES: Final = 2048
"""Heads above this size take up to 3 ms to parse: one per loop iteration."""


class HttpConnection:
    """One connection's requests: `read_head`, then `request` and `send`, and so on.

    The wheel ends the wait for a head that does not become whole in time, and closes the connection when it has
    been idle for too long after a response. A timeout of its own for each request took a tenth of a get, and
    one for each first head 8 µs of a connect. The caller of `read_head` takes it off the wheel in the end.
    """

    __slots__ = (
        "_body_at",
        "_body_read",
        "_buffer",
        "_head",
        "_head_by",
        "_limits",
        "_settings",
        "_turns",
        "_waiting",
        "_wheel",
        "due",
        "stream",
    )

    def __init__(
        self, stream: ByteStream, settings: Settings, limits: Limits, turns: OnePerTurn, wheel: Wheel
    ) -> None:
        self.due: int | None = None  # the wheel's
        self._wheel = wheel
        self._waiting = False
        self._head_by = math.inf
        """When the head must be whole that is being read."""
        self.stream = stream
        self._settings = settings
        self._limits = limits
        self._turns = turns
        self._buffer = b""
        self._head = _NO_HEAD
        self._body_at = 0
        self._body_read = True

    @property
    def is_waiting(self) -> bool:
        """Whether no byte of the next request has arrived."""
        return self._waiting and not self._buffer

    def check(self, now: float) -> float:
        """Called by the wheel: close the connection if it has waited too long for a request."""
        if now >= self._head_by:
            self.stream.interrupt()  # its task looks at the clock, and responds
            return now
        if self._head_by < math.inf or not self.is_waiting:
            return min(self._head_by, now + IDLE_LOOK_SECONDS)
        end = self.stream.last_received + self._settings.keep_alive_timeout
        if now >= end:
            self.stream.end()
        return end

    async def read_head(self, *, first: bool) -> Head | None:
        """The next head; None for HTTP/2. `give_back` returns the bytes that were read.

        Raises EndOfChannel when the peer closes, ClosedResourceError when it was idle for too long; a 400, 408
        or 431.
        """
        settings = self._settings
        self._waiting = True
        if first:
            # Without a checkpoint: its task has just begun.
            self._buffer = self.stream.take_now(RECEIVE_BYTES)
        elif self._buffer:  # pipelined: let other tasks run between two requests
            await trio.lowlevel.checkpoint()
        else:
            await self._receive()
        end = self._buffer.find(b"\r\n\r\n") + 4
        if end == 3:
            self._head_by = trio.current_time() + settings.head_timeout
            self._wheel.add(self, self._head_by)
            while (end := self._buffer.find(b"\r\n\r\n") + 4) == 3:
                if trio.current_time() >= self._head_by:
                    raise ApiError(
                        408,
                        "HEAD_TIMEOUT",
                        f"The request's head did not arrive within {settings.head_timeout:g} s",
                    )
                if len(self._buffer) >= settings.max_head_bytes:
                    break
                if not _may_be_http(self._buffer):
                    raise bad_request("Not an HTTP/1.1 request")
                with suppress(Interrupted):
                    await self._receive()
            self._head_by = math.inf
            self._wheel.remove(self)
            self.stream.resume()
        buffer = self._buffer
        if first and buffer.startswith(HTTP2_PREFACE[:18]):
            return None
        if end == 3 or end > settings.max_head_bytes:
            raise ApiError(
                431, "HEAD_TOO_LARGE", f"The request's head is larger than {settings.max_head_bytes:,} bytes"
            )
        if end > LONG_HEAD_BYTES:
            await self._turns.next()
        head = self._head = parse_head(buffer[:end])
        self._waiting = False
        self._body_at = end
        self._body_read = False
        return head

    def give_back(self, *, after_head: bool = False) -> None:
        """Put everything from the last head on, or after it, back into the stream for another reader."""
        rest = self._buffer[self._body_at :] if after_head else self._buffer
        if rest:
            self.stream.unread(rest)
        self._buffer = b""

    def request(self) -> Request:
        """The request of the last head. Its body is read when the handler asks for it."""
        head = self._head
        return Request(
            head.method, head.path, head.query_string, head.headers, self._read_body, self.stream.peer
        )

    def refused_request(self) -> Request:
        """The current request, which no route sees. If its head is incomplete or malformed, only an Origin is
        known."""
        if not self._waiting:
            return self.request()
        found = _ORIGIN_LINE.search(self._buffer)
        headers = {} if found is None else {"origin": found[1].decode("latin-1")}
        return Request("", "", "", headers, self._read_body, self.stream.peer)

    async def send(self, response: Response, *, last: bool = False) -> bool:
        """Write a response; returns whether another request may follow on this connection."""
        head = self._head
        if last:
            head.keep_alive = False
        if not self._body_read and not self._skip_body():
            head.keep_alive = False
        body = head.method != "HEAD"
        # A large body is written separately: joined to its head it would be a copy of the bytes that the cache
        # and all slow readers share.
        alone = body and len(response.body) > AT_ONCE_BYTES
        await self.stream.send_all(
            response_bytes(response, keep_alive=head.keep_alive, body=body and not alone)
        )
        if alone:
            await self.stream.send_all(response.body)
        return head.keep_alive

    async def refuse(self, request: Request, error: ApiError) -> None:
        """Respond to the current request with `error`. No other request may follow."""
        method = request.method
        response = refusal(self._settings, method, request.headers.get("origin"), error, request.id)
        await self.stream.send_all(response_bytes(response, keep_alive=False, body=method != "HEAD"))

    async def begin_endless(self, response: Response, first: bytes) -> bool:
        """Write the head and the `first` bytes of an endless response; returns whether its body is chunked.

        HTTP/1.0 has no chunks: there the body ends with the connection.
        """
        chunked = self._head.version == "1.1"
        if chunked:
            response.headers["Transfer-Encoding"] = "chunked"
        head = _response_head(response, None, keep_alive=False)
        await self.stream.send_all(head + (chunk(first) if chunked else first))
        return chunked

    # --- bodies ----------------------------------------------------------------------------------

    async def _read_body(self, max_bytes: int) -> bytes:
        """Raises a 400 (framing, cut short), 408, 413 or 503."""
        head, settings = self._head, self._settings
        self._buffer = self._buffer[self._body_at :]
        self._body_read = True
        head_keep_alive, head.keep_alive = head.keep_alive, False  # until the body is whole
        length = head.content_length or 0
        if length > max_bytes:
            raise body_too_large(max_bytes)
        if not head.chunked and len(self._buffer) >= length:
            body, self._buffer = self._buffer[:length], self._buffer[length:]
        else:
            try:
                with self._limits.arriving() as arrived, trio.move_on_after(settings.body_timeout) as scope:
                    if head.expects_continue and not self._buffer:
                        await self.stream.send_all(_CONTINUE)
                    body = await (
                        self._receive_chunked(max_bytes, arrived)
                        if head.chunked
                        else self._receive_exactly(length, arrived)
                    )
            except (trio.BrokenResourceError, trio.ClosedResourceError):  # no one is left to be told
                raise bad_request("The connection ended before the body") from None
            if scope.cancelled_caught:
                raise body_too_late(settings.body_timeout)
        head.keep_alive = head_keep_alive
        return body

    async def _receive_exactly(self, length: int, arrived: Callable[[int], None]) -> bytes:
        # Not a list of pieces: pieces of one byte would take 50 times their content.
        body = bytearray(self._buffer)
        self._buffer = b""
        while len(body) < length:
            data = await self.stream.receive_some(RECEIVE_BYTES)
            if not data:
                raise bad_request("The body is shorter than its Content-Length")
            body += data
            arrived(len(body))
        self._buffer = bytes(body[length:])
        del body[length:]
        return bytes(body)

    async def _receive_chunked(self, max_bytes: int, arrived: Callable[[int], None]) -> bytes:
        decoder = ChunkedDecoder()
        data, self._buffer = self._buffer, b""
        while True:
            decoder.feed(data)
            if len(decoder.body) > max_bytes:
                raise body_too_large(max_bytes)
            arrived(len(decoder.body))
            if decoder.done:
                self._buffer = decoder.rest
                return bytes(decoder.body)
            data = await self.stream.receive_some(RECEIVE_BYTES)
            if not data:
                raise bad_request("The chunked body was cut short")

    def _skip_body(self) -> bool:
        """Skip an unread body if all of it has arrived; else the connection must close."""
        length = self._head.content_length or 0
        if self._head.chunked or len(self._buffer) - self._body_at < length:
            return False
        self._buffer = self._buffer[self._body_at + length :]
        return True

    async def _receive(self) -> None:
        data = await self.stream.receive_some(RECEIVE_BYTES)
        if not data:
            raise trio.EndOfChannel
        self._buffer += data


_ORIGIN_LINE: Final = re.compile(rb"\r\norigin:[ \t]*([^\r\n]*)\r\n", re.IGNORECASE)
_BEGINNING: Final = re.compile(rb"(?:\r\n)?(?:\r?\Z|[A-Za-z][A-Za-z-]{0,23}(?:\Z| ))")


def _may_be_http(data: bytes) -> bool:
    """Whether this can be the beginning of a request: an optional blank line, and a method."""
    return _BEGINNING.match(data) is not None
