"""HTTP/2, and with `--http quart` HTTP/1.1: Quart on Hypercorn's connection class, with our streams.

Law: Hypercorn's own accept loop is never used, because one upgrade request with trailing bytes ends that whole
server (hypercorn #225). The class is internal to Hypercorn 0.18; tests/doors/test_hypercorn.py covers it. The
first connection that needs Quart and Hypercorn loads them: most servers never see one, and they take half of
the start's time and a third of the memory. If loading fails, the log says so, and clients are sent to HTTP/1.1.
"""

from __future__ import annotations

import gc
import logging
import math
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from functools import cache
from typing import Any, Final, NamedTuple

import trio

from paperdb_trio.client.groups import leaves
from paperdb_trio.config import Settings
from paperdb_trio.errors import ApiError
from paperdb_trio.limits import SMALL_RESPONSE
from paperdb_trio.loop.turn import OnePerTurn
from paperdb_trio.loop.wheel import Wheel
from paperdb_trio.net.cors import refusal
from paperdb_trio.net.messages import REQUEST, Request
from paperdb_trio.net.stream import ByteStream
from paperdb_trio.realtime.eventpages import StreamCut
from paperdb_trio.services import Services

log = logging.getLogger("paperdb.hypercorn")

PIECE_BYTES: Final = 16_384
"""Bytes of a response per piece for Hypercorn, which copies it and waits once it holds two."""
TURN_BYTES: Final = 2048
"""Bytes of input parsed per loop iteration: h2 takes 15 µs for a frame of 9 bytes."""
UNWANTED_BYTES: Final = 65_536
"""Bytes of a body that no handler reads; Quart buffers it all the same."""

LOAD_AGAIN_SECONDS: Final = 60.0
"""After a failure to load: wrong versions stay wrong, but a lack of files or memory may pass."""
HTTP_1_1_REQUIRED: Final = b"\0\0\0\4\0\0\0\0\0\0\0\x08\7\0\0\0\0\0\0\0\0\0\0\0\0\x0d"
"""SETTINGS and GOAWAY (RFC 9113, section 7): no request was processed; use HTTP/1.1."""

App = Callable[[Any, Any, Any], Awaitable[None]]


class _Connection:
    """A stream that Hypercorn serves. The wheel closes it when it has been idle for too long.

    Hypercorn's own timeout misses an HTTP/2 connection that never sends a request. Only a request keeps a
    connection open, not a ping.
    """

    def __init__(self, stream: ByteStream, timeout: float) -> None:
        self.due: int | None = None  # the wheel's
        self.over = trio.Event()  # set when the last request's response has been sent, or begun without an end
        self.stream = stream
        self._timeout = timeout
        self._exchanges = 0
        self._idle_since = trio.current_time()

    @contextmanager
    def exchange(self) -> Iterator[None]:
        over = self.over
        self._exchanges += 1
        try:
            yield
        finally:
            self._exchanges -= 1
            self._idle_since = trio.current_time()
            over.set()

    def check(self, now: float) -> float | None:
        """Called by the wheel."""
        end = (now if self._exchanges else self._idle_since) + self._timeout
        if now < end:
            return end
        self.stream.end()
        return None


_connection: ContextVar[_Connection] = ContextVar("connection")


class HypercornConnections:
    """Serves streams that the door hands over, each until its peer or the server closes it."""

    def __init__(self, services: Services, wheel: Wheel) -> None:
        self._services = services
        self._wheel = wheel
        self._loading = trio.Lock()
        self._loaded: _Loaded | None = None
        self._load_at = -math.inf
        self._draining = False

    async def load(self) -> str | None:
        """Load Quart and Hypercorn; returns the failure, if any."""
        try:
            # On a thread, so that the event loop runs during half a second of imports.
            self._loaded = await trio.to_thread.run_sync(_load, self._services)
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            return (
                f"Quart and Hypercorn cannot be loaded: {reason}. "
                "`pip check` shows whether paperdb-trio has the versions that it needs."
            )
        if self._draining:
            await self.drain()
        return None

    async def serve(self, stream: ByteStream) -> None:
        """Serve one connection to its end; bytes that were read from it must be unread first."""
        async with self._loading:
            if self._loaded is None and trio.current_time() >= self._load_at:
                if failure := await self.load():
                    log.error("HTTP/2 is not served. %s", failure)
                self._load_at = trio.current_time() + LOAD_AGAIN_SECONDS
        if self._loaded is None:
            await stream.send_all(HTTP_1_1_REQUIRED)
            return
        connection = _Connection(stream, self._services.settings.keep_alive_timeout)
        _connection.set(connection)
        self._wheel.add(connection, trio.current_time())
        try:
            await self._loaded.serve(stream)
        except* self._loaded.faults as group:
            log.debug("Hypercorn gave up on %s: %r", stream.peer, next(leaves(group)))
        finally:
            self._wheel.remove(connection)

    async def drain(self) -> None:
        """Close idle connections now, and the others after their current response."""
        self._draining = True
        if self._loaded is not None:
            await self._loaded.context.terminated.set()


class _Loaded(NamedTuple):
    serve: Callable[[ByteStream], Awaitable[None]]
    context: Any
    faults: tuple[type[Exception], ...]
    """Exceptions that a peer can cause in Hypercorn: by a path that is not ASCII, or frames for a stream that
    has ended. `respond` catches failures of our own code, logs them and responds with a 500."""


def _load(services: Services) -> _Loaded:
    from h2.exceptions import H2Error
    from h11 import ProtocolError
    from hypercorn.app_wrappers import ASGIWrapper
    from hypercorn.config import Config
    from hypercorn.trio.tcp_server import TCPServer
    from hypercorn.trio.worker_context import WorkerContext
    from priority.priority import PriorityError

    from paperdb_trio.doors.app import create_app

    _mend_hypercorn()
    app: Any = ASGIWrapper(_bounded(create_app(services), services))
    config = _configured(Config(), services.settings)
    context = WorkerContext(None)
    gc.freeze()  # as after the server's start

    async def serve(stream: ByteStream) -> None:
        # Hypercorn decides by AttributeError whether a stream is TLS; ours has no `do_handshake`.
        server = TCPServer(app, config, context, {}, stream)  # type: ignore[arg-type]
        try:
            await server
        finally:
            _let_go(server)

    return _Loaded(serve, context, (UnicodeDecodeError, KeyError, H2Error, ProtocolError, PriorityError))


def _configured(config: Any, settings: Settings) -> Any:
    config.keep_alive_timeout = settings.keep_alive_timeout
    config.keep_alive_max_requests = 100_000  # the default of 1,000 closes a busy connection each second
    config.h11_max_incomplete_size = config.h2_max_header_list_size = settings.max_head_bytes
    config.include_server_header = False
    config.accesslog = None
    config.errorlog = None
    return config


@cache  # once in a process, whose servers share Hypercorn's modules
def _mend_hypercorn() -> None:
    """Replace three of Hypercorn's classes by ours, because Hypercorn has no settings for these changes."""
    from h2.errors import ErrorCodes
    from h2.events import DataReceived, RequestReceived
    from h2.exceptions import H2Error, StreamClosedError
    from h2.settings import SettingCodes, Settings
    from h11 import DONE, MUST_CLOSE, SEND_BODY, SEND_RESPONSE
    from hypercorn import protocol
    from hypercorn.events import RawData
    from hypercorn.protocol import h2, h11
    from hypercorn.protocol.events import StreamClosed

    turns = OnePerTurn()

    class H11Protocol(h11.H11Protocol):
        """Hypercorn takes the end of what a client sends for its departure, and drops the response."""

        async def _create_stream(self, request: Any) -> None:
            _connection.get().over = trio.Event()
            await super()._create_stream(request)

        async def handle(self, event: Any) -> None:
            if isinstance(event, RawData) and not event.data and self._owes_response():
                await _connection.get().over.wait()
            await super().handle(event)

        def _owes_response(self) -> bool:
            states = self.connection.our_state, self.connection.their_state
            return states[0] in (SEND_RESPONSE, SEND_BODY) and states[1] in (DONE, MUST_CLOSE)

    class H2Protocol(h2.H2Protocol):
        """Hypercorn offers WebSockets over HTTP/2 (RFC 8441). A browser with an HTTP/2 connection would open
        them there, in Quart, instead of in our gateway."""

        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            settings: dict[Any, int] = dict(self.connection.local_settings)
            del settings[SettingCodes.ENABLE_CONNECT_PROTOCOL]
            self.connection.local_settings = Settings(client=False, initial_values=settings)

        async def handle(self, event: Any) -> None:
            """Parse one part of one connection's input per loop iteration. Hypercorn would parse all of it at
            once: 64 KiB of small frames take 0.1 s per connection."""
            if not isinstance(event, RawData):
                return await super().handle(event)
            for start in range(0, len(event.data), TURN_BYTES):
                await turns.next()
                if self.closed:
                    return None
                await super().handle(RawData(event.data[start : start + TURN_BYTES]))
            return None

        async def stream_send(self, event: Any) -> None:
            """Reset a response that the app leaves unfinished: Hypercorn would let the client wait."""
            if isinstance(event, StreamClosed):
                buffer = self.stream_buffers.get(event.stream_id)
                if buffer is not None and not buffer._complete:
                    with suppress(H2Error):
                        self.connection.reset_stream(event.stream_id, ErrorCodes.INTERNAL_ERROR)
                    await self._flush()
            await super().stream_send(event)

        async def _priority_updated(self, event: Any) -> None:
            """Ignored: deprecated (RFC 9113, section 5.3.2), and 1 ms per frame with 1,000 streams."""

        async def _handle_events(self, events: list[Any]) -> None:
            for event in events:
                if isinstance(event, DataReceived) and event.stream_id not in self.streams:
                    self._take_no_more(event)
                elif isinstance(event, RequestReceived) and not dict(event.headers)[b":method"].isupper():
                    self._refuse_method(event.stream_id)
                else:
                    await super()._handle_events([event])
            await super()._handle_events([])  # this flushes

        def _refuse_method(self, stream_id: int) -> None:
            """Methods are case-sensitive; Hypercorn turns `delete` into DELETE."""
            self.connection.send_headers(stream_id, [(b":status", b"400")], end_stream=True)
            with suppress(StreamClosedError):  # a body may be on its way
                self.connection.reset_stream(stream_id, ErrorCodes.NO_ERROR)

        def _take_no_more(self, event: Any) -> None:
            """Discard a body that arrives after its response. Hypercorn would close the whole connection."""
            self.connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            with suppress(StreamClosedError):
                self.connection.reset_stream(event.stream_id, ErrorCodes.NO_ERROR)

    class StreamBuffer(h2.StreamBuffer):
        """Hypercorn accepts more of a response whenever it has sent a little, and so buffers all of it for a
        stream whose window is 0. This one accepts more only when little is left."""

        async def pop(self, max_length: int) -> bytes:
            data = bytes(self.buffer[:max_length])
            del self.buffer[:max_length]
            if len(self.buffer) < PIECE_BYTES:
                await self._paused.set()
            if not self.buffer:
                await self._is_empty.set()
            return data

    patched: Any = protocol
    patched.H11Protocol, patched.H2Protocol = H11Protocol, H2Protocol
    h2.StreamBuffer = StreamBuffer  # type: ignore[misc]


def _let_go(server: Any) -> None:
    """Free the streams of a closed connection now: they are cycles, and the collector is slow."""
    protocol = getattr(getattr(server, "protocol", None), "protocol", None)
    server.__dict__.clear()
    if protocol is not None:
        for buffer in getattr(protocol, "stream_buffers", {}).values():
            buffer.buffer.clear()
        protocol.__dict__.clear()


def _bounded(app: App, services: Services) -> App:
    """The ASGI app with bounds that Hypercorn lacks: each exchange goes through an `_Exchange`, and HTTP/2
    streams count as connections."""

    async def bounded(scope: Any, receive: Any, send: Any) -> None:
        with ExitStack() as stack:
            connection = _connection.get()
            exchange = _Exchange(services, connection, scope, receive, send, stack)
            stack.enter_context(connection.exchange())
            try:
                if scope["http_version"] == "2":
                    stack.enter_context(services.limits.stream(connection.stream.peer))
            except ApiError as error:
                await exchange.refuse(error)
            else:
                try:
                    await app(scope, exchange.receive, exchange.send)
                except* StreamCut:
                    pass  # Hypercorn sees an unfinished response, and does not finish it

    return bounded


class _Exchange:
    """A request and its response.

    An HTTP/2 client can refuse a response (a window of 0) without blocking its connection, whose deadline then
    never fires. So each piece of a response has its own deadline. An unexpected body is not kept.
    """

    def __init__(
        self, services: Services, connection: _Connection, scope: Any, receive: Any, send: Any, stack: ExitStack
    ) -> None:
        self._connection = connection
        self._stream = connection.stream
        self._services = services
        self._request = scope[REQUEST] = _request(scope, self._stream.peer)
        self._has_body = scope.get("method", "GET") not in ("GET", "HEAD", "DELETE", "OPTIONS")
        self._version = scope["http_version"]
        self._body_ended = not _declares_body(scope["headers"])
        self._receive, self._send = receive, send
        self._stack = stack
        self._unwanted = 0
        self._refused = False

    async def receive(self) -> Any:
        message = await self._receive()
        self._body_ended = self._body_ended or not message.get("more_body", False)
        if not self._has_body:
            self._unwanted += len(message.get("body", b""))
            if self._unwanted > UNWANTED_BYTES:
                raise self._ended("an unexpected body")
        return message

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            length = dict(message["headers"]).get(b"content-length")
            if length is None:  # server-sent events
                self._connection.over.set()
            size = int(length or 0)
            try:
                if size > SMALL_RESPONSE:
                    self._stack.enter_context(self._services.limits.pending(size))
            except ApiError as error:
                await self.refuse(error)
            else:
                self._services.exchanges.end(self._request, message["status"], size)
        if self._refused:
            return
        body = memoryview(message.get("body", b""))
        while len(body) > PIECE_BYTES:
            await self._send_in_time(message | {"body": body[:PIECE_BYTES], "more_body": True})
            body = body[PIECE_BYTES:]
        await self._send_in_time(message | {"body": body} if body else message)

    async def refuse(self, error: ApiError) -> None:
        """Respond without a body, because a body could wait for the client's window."""
        self._refused = True
        request = self._request
        self._services.exchanges.refuse(request, error)
        origin = request.headers.get("origin")
        response = refusal(self._services.settings, request.method, origin, error, request.id)
        response.headers.pop("Content-Type", None)
        headers = [(name.lower().encode(), value.encode("latin-1")) for name, value in response.headers.items()]
        await self._send_in_time({"type": "http.response.start", "status": response.status, "headers": headers})
        await self._send_in_time({"type": "http.response.body", "body": b""})

    async def _send_in_time(self, message: Any) -> None:
        if message["type"] == "http.response.start" and self._is_last():
            message = message | {"headers": [*message["headers"], (b"connection", b"close")]}
        with trio.move_on_after(self._services.settings.write_timeout) as scope:
            await self._send(message)
        if scope.cancelled_caught:
            raise self._ended("the peer does not read")

    def _is_last(self) -> bool:
        """Whether Hypercorn will close the connection after this response. It does not announce that itself,
        and the client's next request would be lost."""
        return self._version != "2" and (self._services.draining or not self._body_ended)

    def _ended(self, why: str) -> trio.BrokenResourceError:
        self._stream.abort()
        return trio.BrokenResourceError(why)


async def _no_body(max_bytes: int) -> bytes:
    return b""


def _request(scope: Any, peer: str) -> Request:
    """The request of an ASGI scope; the app gives it its body. The values of a repeated header are joined by
    commas (RFC 9110, section 5.3)."""
    headers: dict[str, str] = {}
    for name, value in scope["headers"]:
        key, text = name.decode("latin-1").lower(), value.decode("latin-1")
        headers[key] = f"{headers[key]},{text}" if key in headers else text
    path, query_string = scope["raw_path"].decode("ascii"), scope["query_string"].decode("latin-1")
    return Request(scope.get("method", "GET"), path, query_string, headers, _no_body, peer)


def _declares_body(headers: list[tuple[bytes, bytes]]) -> bool:
    return any(
        name == b"transfer-encoding" or (name == b"content-length" and value != b"0") for name, value in headers
    )
