"""HTTP/2, and with `--http quart` HTTP/1.1: Quart on Hypercorn's connection class, fed with our streams.

Law: Hypercorn's own accept loop is never used (one upgrade request with trailing bytes ends that whole
server: hypercorn #225). What is used is internal to Hypercorn 0.18; tests/doors/test_hypercorn.py holds it.
Both are loaded by the first connection that needs them: most servers never see one, and they are half of
the time of a start and a third of the memory. If that fails, the log says so, and clients are sent to HTTP/1.1.
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
from paperdb_trio.limits import SMALL_ANSWER
from paperdb_trio.loop.turn import OnePerTurn
from paperdb_trio.loop.wheel import Wheel
from paperdb_trio.net.cors import refusal
from paperdb_trio.net.stream import ByteStream
from paperdb_trio.realtime.eventstream import StreamCut
from paperdb_trio.services import Services

log = logging.getLogger("paperdb.hypercorn")

PIECE_BYTES: Final = 16_384
"""Of an answer, what Hypercorn gets at once: it copies that, and waits once it has two such pieces."""
TURN_BYTES: Final = 2048
"""Of what comes in, what is parsed in one turn of the loop: h2 takes 15 µs for a frame of 9 bytes."""
UNWANTED_BYTES: Final = 65_536
"""Of a body that no handler will read; Quart keeps it all the same."""

LOAD_AGAIN_SECONDS: Final = 60.0
"""After a failure to load: other versions stay so, a lack of files or memory does not."""
HTTP_1_1_REQUIRED: Final = b"\0\0\0\4\0\0\0\0\0\0\0\x08\7\0\0\0\0\0\0\0\0\0\0\0\0\x0d"
"""SETTINGS and GOAWAY (RFC 9113, section 7): no request was looked at; ask in HTTP/1.1."""

App = Callable[[Any, Any, Any], Awaitable[None]]


class _Connection:
    """A stream that Hypercorn serves. On the wheel, which ends it when it has been idle for too long.

    Hypercorn's own timeout does not see a connection of HTTP/2 that never asks. What keeps one open is a
    request, not a ping.
    """

    def __init__(self, stream: ByteStream, timeout: float) -> None:
        self.due: int | None = None  # the wheel's
        self.stream = stream
        self._timeout = timeout
        self._exchanges = 0
        self._idle_since = trio.current_time()

    @contextmanager
    def exchange(self) -> Iterator[None]:
        self._exchanges += 1
        try:
            yield
        finally:
            self._exchanges -= 1
            self._idle_since = trio.current_time()

    def check(self, now: float) -> float | None:
        """Called by the wheel."""
        end = (now if self._exchanges else self._idle_since) + self._timeout
        if now < end:
            return end
        self.stream.end()
        return None


_connection: ContextVar[_Connection] = ContextVar("connection")


class HypercornConnections:
    """Serves streams that the door hands over, each until its peer or the server has had enough."""

    def __init__(self, services: Services, wheel: Wheel) -> None:
        self._services = services
        self._wheel = wheel
        self._loading = trio.Lock()
        self._loaded: _Loaded | None = None
        self._load_at = -math.inf
        self._draining = False

    async def load(self) -> str | None:
        """Load Quart and Hypercorn; what went wrong, if anything did."""
        try:
            # On a thread: the event loop gets its turns between the pieces of half a second's imports.
            self._loaded = await trio.to_thread.run_sync(_load, self._services)
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            return (
                f"Quart and Hypercorn cannot be loaded: {reason}. "
                "`pip check` tells whether their versions are those that paperdb-trio needs."
            )
        if self._draining:
            await self.drain()
        return None

    async def serve(self, stream: ByteStream) -> None:
        """Serve one connection to its end; what has been read of it must be unread before."""
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
        """Close idle connections now, and the others after the answer that they are waiting for."""
        self._draining = True
        if self._loaded is not None:
            await self._loaded.context.terminated.set()


class _Loaded(NamedTuple):
    serve: Callable[[ByteStream], Awaitable[None]]
    context: Any
    faults: tuple[type[Exception], ...]
    """What a peer can make Hypercorn fail with: a path that is not ASCII, frames for a stream that has ended.
    A request that fails in our own code has been answered with a 500 and logged by `respond`."""


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
    gc.freeze()  # like what was loaded at the start

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
    config.keep_alive_max_requests = 100_000  # its default of 1,000 ends a busy client's connection each second
    config.h11_max_incomplete_size = config.h2_max_header_list_size = settings.max_head_bytes
    config.include_server_header = False
    config.accesslog = None
    config.errorlog = None
    return config


@cache  # once in a process, whose servers share Hypercorn's modules
def _mend_hypercorn() -> None:
    """Put two classes of ours in the place of Hypercorn's, which have no settings for what they change."""
    from h2.errors import ErrorCodes
    from h2.events import DataReceived, RequestReceived
    from h2.exceptions import H2Error, StreamClosedError
    from h2.settings import SettingCodes, Settings
    from hypercorn import protocol
    from hypercorn.events import RawData
    from hypercorn.protocol import h2
    from hypercorn.protocol.events import StreamClosed

    turns = OnePerTurn()

    class H2Protocol(h2.H2Protocol):
        """Hypercorn says that it takes WebSockets over HTTP/2 (RFC 8441). A browser that has an HTTP/2
        connection would send them there, to Quart, instead of to our gateway."""

        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            settings: dict[Any, int] = dict(self.connection.local_settings)
            del settings[SettingCodes.ENABLE_CONNECT_PROTOCOL]
            self.connection.local_settings = Settings(client=False, initial_values=settings)

        async def handle(self, event: Any) -> None:
            """What a connection sends at once, Hypercorn parses at once: 64 KiB of small frames take 0.1 s,
            and for each connection. Here it is one part of one connection in each turn of the loop."""
            if not isinstance(event, RawData):
                return await super().handle(event)
            for start in range(0, len(event.data), TURN_BYTES):
                await turns.next()
                if self.closed:
                    return None
                await super().handle(RawData(event.data[start : start + TURN_BYTES]))
            return None

        async def stream_send(self, event: Any) -> None:
            """Reset an answer that its app leaves without an end: Hypercorn lets the client wait."""
            if isinstance(event, StreamClosed):
                buffer = self.stream_buffers.get(event.stream_id)
                if buffer is not None and not buffer._complete:
                    with suppress(H2Error):
                        self.connection.reset_stream(event.stream_id, ErrorCodes.INTERNAL_ERROR)
                    await self._flush()
            await super().stream_send(event)

        async def _priority_updated(self, event: Any) -> None:
            """Priorities are deprecated (RFC 9113, section 5.3.2), and cost 1 ms a frame with 1,000 streams."""

        async def _handle_events(self, events: list[Any]) -> None:
            for event in events:
                if isinstance(event, DataReceived) and event.stream_id not in self.streams:
                    self._take_no_more(event)
                elif isinstance(event, RequestReceived) and not dict(event.headers)[b":method"].isupper():
                    self._refuse_method(event.stream_id)
                else:
                    await super()._handle_events([event])
            await super()._handle_events([])  # it flushes

        def _refuse_method(self, stream_id: int) -> None:
            """Methods are case-sensitive; Hypercorn makes `delete` a DELETE."""
            self.connection.send_headers(stream_id, [(b":status", b"400")], end_stream=True)
            with suppress(StreamClosedError):  # a body may be on its way
                self.connection.reset_stream(stream_id, ErrorCodes.NO_ERROR)

        def _take_no_more(self, event: Any) -> None:
            """A body that comes behind its answer. To Hypercorn it is the end of the whole connection."""
            self.connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            with suppress(StreamClosedError):
                self.connection.reset_stream(event.stream_id, ErrorCodes.NO_ERROR)

    class StreamBuffer(h2.StreamBuffer):
        """Hypercorn takes more of an answer whenever it has sent little of it, and so all of it from a stream
        that may send nothing; it should when little is left."""

        async def pop(self, max_length: int) -> bytes:
            data = bytes(self.buffer[:max_length])
            del self.buffer[:max_length]
            if len(self.buffer) < PIECE_BYTES:
                await self._paused.set()
            if not self.buffer:
                await self._is_empty.set()
            return data

    patched: Any = protocol
    patched.H2Protocol = H2Protocol
    h2.StreamBuffer = StreamBuffer  # type: ignore[misc]


def _let_go(server: Any) -> None:
    """Free what the streams of an ended connection hold: they are cycles, and the collector is slow."""
    protocol = getattr(getattr(server, "protocol", None), "protocol", None)
    server.__dict__.clear()
    if protocol is not None:
        for buffer in getattr(protocol, "stream_buffers", {}).values():
            buffer.buffer.clear()
        protocol.__dict__.clear()


def _bounded(app: App, services: Services) -> App:
    """The ASGI app, with bounds that Hypercorn lacks: each exchange through an `_Exchange`, and the streams of
    HTTP/2 counted as connections are."""

    async def bounded(scope: Any, receive: Any, send: Any) -> None:
        with ExitStack() as stack:
            connection = _connection.get()
            exchange = _Exchange(services, connection.stream, scope, receive, send, stack)
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
                    pass  # Hypercorn finds an answer without an end, and does not make one

    return bounded


class _Exchange:
    """A request and its answer.

    A client of HTTP/2 may take no answer (a window of 0) without blocking its connection, whose own deadline
    then never comes: so each piece of an answer has one. A body where there should be none is not kept.
    """

    def __init__(
        self, services: Services, stream: ByteStream, scope: Any, receive: Any, send: Any, stack: ExitStack
    ) -> None:
        self._stream = stream
        self._services = services
        self._scope = scope
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
                raise self._ended("a body where there should be none")
        return message

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            size = int(dict(message["headers"]).get(b"content-length", 0))
            try:
                if size > SMALL_ANSWER:
                    self._stack.enter_context(self._services.limits.pending(size))
            except ApiError as error:
                await self.refuse(error)
        if self._refused:
            return
        body = memoryview(message.get("body", b""))
        while len(body) > PIECE_BYTES:
            await self._send_in_time(message | {"body": body[:PIECE_BYTES], "more_body": True})
            body = body[PIECE_BYTES:]
        await self._send_in_time(message | {"body": body} if body else message)

    async def refuse(self, error: ApiError) -> None:
        """Without a body, which could wait for the client's window."""
        self._refused = True
        origin = dict(self._scope["headers"]).get(b"origin")
        response = refusal(
            self._services.settings,
            self._scope["method"],
            None if origin is None else origin.decode("latin-1"),
            error,
        )
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
        """Whether Hypercorn will close the connection behind this answer. It does not say so by itself, and a
        client's next request would be lost."""
        return self._version != "2" and (self._services.draining or not self._body_ended)

    def _ended(self, why: str) -> trio.BrokenResourceError:
        self._stream.abort()
        return trio.BrokenResourceError(why)


def _declares_body(headers: list[tuple[bytes, bytes]]) -> bool:
    return any(
        name == b"transfer-encoding" or (name == b"content-length" and value != b"0") for name, value in headers
    )
