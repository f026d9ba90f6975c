"""The only accept loop, and the choice of the server for each request.

Law: a failure ends only its own connection. A peer that has not sent a whole head costs one task and at most
`max_head_bytes`, for at most `head_timeout`.
"""

from __future__ import annotations

import errno
import logging
import socket
import ssl
import time
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, Final, Protocol

import trio

from paperdb_trio.client.groups import leaves
from paperdb_trio.delivery.encodings import sse_progress
from paperdb_trio.doors.hypercorn import HypercornConnections
from paperdb_trio.errors import ApiError, StartupError
from paperdb_trio.limits import SMALL_RESPONSE, too_many_connections
from paperdb_trio.loop.turn import OnePerTurn, TimeSlice
from paperdb_trio.loop.wheel import Wheel
from paperdb_trio.net.head import Head
from paperdb_trio.net.http1 import HttpConnection
from paperdb_trio.net.messages import EventStream, Request
from paperdb_trio.net.stream import ByteStream, prepare_listener
from paperdb_trio.net.tls import TlsError, TlsStream
from paperdb_trio.realtime.gateway import PATHS, Gateway
from paperdb_trio.rest.dispatch import respond
from paperdb_trio.services import Services

log = logging.getLogger("paperdb.door")

ALONE: Final = 0.0002
"""Seconds. A connection for which the door waited longer than this probably comes alone. Then the door waits
again: an accept that finds nothing, and the loop iteration before it, take 6 µs."""
SLOW_TURN: Final = 0.01
"""Seconds. After a longer loop iteration, the door accepts for a whole `TimeSlice`, not just one connection."""

MOST_TURNED_AWAY: Final = 256
"""Connections beyond the limit whose heads are still read; beyond this, they are refused unread."""
TURN_AWAY_SECONDS: Final = 1.0

BACKLOG: Final = 4096
TAKEN_SECONDS: Final = 0.5
"""After which a taken address is refused. Until then, it may be that of a killed server's children, and the
kernel is ending them."""
EXIT_PORT: Final = 7
_OUT_OF_RESOURCES: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Listening(socket.socket):
    """A listening socket that knows its family and type. `accept` asks for both, and the base class makes enums
    of them anew each time."""

    __slots__ = ("family", "type")

    def __init__(self, family: socket.AddressFamily, type: socket.SocketKind) -> None:
        super().__init__(family, type)
        self.family = family  # type: ignore[misc]
        self.type = type  # type: ignore[misc]


def listen(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """A listening socket. `shared`: others may listen at the same address, each for some of the connections.

    Raises `StartupError` when the address is taken or not ours.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = Listening(family, kind)
    except OSError as error:
        raise StartupError(f"Cannot listen on {host}:{port}: {error.strerror}", EXIT_PORT) from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, shared)
        prepare_listener(listener)
        _bind(listener, address)
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise StartupError(f"Cannot listen on {host}:{port}: {error.strerror}", EXIT_PORT) from None
    return listener


def _bind(listener: socket.socket, address: Any) -> None:
    end = time.monotonic() + TAKEN_SECONDS
    while True:
        try:
            listener.bind(address)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or time.monotonic() > end:
                raise
        else:
            return
        time.sleep(0.01)


class Listener(Protocol):
    """A listening socket, or what does as one."""

    def accept(self) -> tuple[socket.socket, tuple[Any, ...]]: ...
    def fileno(self) -> int: ...


class Door:
    """`run()` accepts until cancelled. The door tracks every open connection, and closes them on request.

    `tls` is the context for new connections, None without TLS; it may be replaced at any time.
    """

    def __init__(
        self,
        services: Services,
        gateway: Gateway,
        hypercorn: HypercornConnections,
        wheel: Wheel,
        tls: ssl.SSLContext | None,
    ) -> None:
        self.tls = tls
        self._handshakes = OnePerTurn()
        self._records = ssl.MemoryBIO()  # of TLS
        self._services = services
        self._settings = services.settings
        self._gateway = gateway
        self._hypercorn = hypercorn
        self._wheel = wheel
        self._turning_away = 0
        self._streams: set[ByteStream] = set()
        self._connections: set[HttpConnection] = set()  # those served here, not by Hypercorn

    @property
    def open(self) -> int:
        """Connections that are not finished."""
        return len(self._streams)

    async def run(self, listener: Listener, nursery: trio.Nursery) -> None:
        """Accept connections and serve each in a task of `nursery`, which outlives this call."""
        turn, slow, alone = TimeSlice(), False, False  # the first look comes without a wait: see `Passed`
        while True:
            if alone:
                begun = time.perf_counter()
                await trio.lowlevel.wait_readable(listener)
                turn.begin()
                alone = time.perf_counter() - begun > ALONE
            try:
                raw, address = listener.accept()
            except BlockingIOError:
                alone = True
                continue
            except OSError as error:
                if error.errno in _OUT_OF_RESOURCES:
                    log.error("cannot accept connections: %s", error.strerror)  # noqa: TRY400 - no traceback
                    await trio.sleep(0.1)
                else:  # the peer left before we accepted it
                    await trio.lowlevel.checkpoint()
                continue
            nursery.start_soon(self._guarded, raw, address[0].removeprefix("::ffff:"))
            # One per loop iteration, so that the first is served first: Trio runs the tasks of an iteration in
            # any order. More when other work makes the iterations long.
            if not alone and (not slow or turn.is_over()):
                begun = time.perf_counter()
                await turn.pass_on()
                slow = time.perf_counter() - begun > SLOW_TURN

    async def drain(self) -> None:
        """Close the connections that wait for a request; the others close after their current response."""
        for connection in self._connections:
            if connection.is_waiting:
                connection.stream.end()
        await self._hypercorn.drain()

    def abort(self) -> None:
        """Drop every connection. Hypercorn shields its writes from cancellation, so only this ends them."""
        for stream in tuple(self._streams):
            stream.abort()

    async def _guarded(self, raw: socket.socket, peer: str) -> None:
        """Serve one connection; log any failure, and free the socket."""
        raw.setblocking(False)
        encrypted = None
        if self.tls is not None:
            encrypted = TlsStream(raw, peer, self.tls, self._records, self._services.turns)
        stream = encrypted or ByteStream(raw, peer)
        self._streams.add(stream)
        self._services.limits.open(len(self._streams))
        log.debug("connection from %s", peer)
        try:
            if encrypted is not None:
                await self._shake_hands(encrypted)
            await self._serve(stream)
        except* (trio.BrokenResourceError, trio.ClosedResourceError, trio.EndOfChannel):
            pass
        except* TlsError as group:
            log.debug("no TLS with %s: %s", peer, next(leaves(group)))
        except* Exception:
            log.exception("a connection from %s failed", stream.peer)
        finally:
            if not stream.finish_now():
                with trio.CancelScope(shield=True):
                    await stream.linger()
            self._streams.discard(stream)
            self._services.limits.open(len(self._streams))
            log.debug("connection from %s ended", peer)

    async def _shake_hands(self, stream: TlsStream) -> None:
        stream.write_timeout = self._settings.head_timeout
        try:
            with (
                self._services.limits.handshake(stream.peer),
                trio.move_on_after(self._settings.head_timeout) as scope,
            ):
                await stream.handshake(self._handshakes)
        except ApiError as error:
            raise TlsError(error.message) from None
        if scope.cancelled_caught:
            raise TlsError("the handshake did not arrive in time")

    async def _serve(self, stream: ByteStream) -> None:
        stream.write_timeout = self._settings.write_timeout
        connection = HttpConnection(
            stream, self._settings, self._services.limits, self._services.turns, self._wheel
        )
        place = self._services.limits.connection(stream.peer)
        try:
            if self._services.limits.is_full:
                raise too_many_connections()
            place.__enter__()
        except ApiError as error:
            await self._turn_away(connection, error)
            return
        try:
            rest = await self._serve_requests(stream, connection)
            if rest is not None:
                await rest
        except ApiError as error:
            await self._refuse(connection, error)
        finally:
            place.__exit__(None, None, None)

    async def _refuse(
        self, connection: HttpConnection, error: ApiError, request: Request | None = None
    ) -> None:
        """Refuse the current request; it is `request`, if a route has responded to it."""
        if request is None:
            request = connection.refused_request()
            if request.path in PATHS:  # a WebSocket's, which no route handles
                request.route = request.path
        self._services.exchanges.refuse(request, error)
        await connection.refuse(request, error)

    async def _turn_away(self, connection: HttpConnection, error: ApiError) -> None:
        """Refuse a connection beyond the limit, after its head if that arrives soon: a browser shows a refusal
        and its `Retry-After` to the page only as the response to a request."""
        head = None
        if self._turning_away < MOST_TURNED_AWAY:
            self._turning_away += 1
            try:
                with trio.move_on_after(TURN_AWAY_SECONDS), suppress(ApiError):
                    head = await connection.read_head(first=True)
            finally:
                self._turning_away -= 1
                self._wheel.remove(connection)
        try:
            if head is not None and head.is_websocket:
                await self._gateway.refuse(connection.stream, head, error)
            else:
                await self._refuse(connection, error)
        except ApiError:
            await self._refuse(connection, error)

    async def _serve_requests(
        self, stream: ByteStream, connection: HttpConnection
    ) -> Coroutine[Any, Any, None] | None:
        """Respond to one request after another; raises the refusal of the last one.

        Returns what serves the rest of the connection, if that is not HTTP/1.1. It does not run in here:
        each frame that lives as long as a WebSocket takes half a KB.
        """
        self._connections.add(connection)
        try:
            head = await connection.read_head(first=True)
            while head is not None and not (upgrades := head.is_websocket) and self._settings.http == "raw":
                if not await self._respond(connection, head):
                    return None
                if connection.due is None:
                    self._wheel.add(connection, trio.current_time())
                head = await connection.read_head(first=False)
        finally:
            self._wheel.remove(connection)
            self._connections.discard(connection)
        if head is not None and upgrades:
            connection.give_back(after_head=True)
            return self._gateway.serve(stream, head)
        connection.give_back()
        return self._hypercorn.serve(stream)

    async def _respond(self, connection: HttpConnection, head: Head) -> bool:
        """Respond to the current request; returns whether another may follow."""
        request = connection.request()
        response = await respond(self._services, request)
        exchanges = self._services.exchanges
        try:
            if isinstance(response, EventStream):
                with self._gateway.admission(connection.stream, head, response.grant):
                    exchanges.end(request, response.status, 0)
                    del request  # this frame lives as long as the connection
                    chunked = await connection.begin_endless(response, sse_progress(response.position))
                    await self._gateway.serve_events(
                        connection.stream,
                        response.grant,
                        response.topic,
                        response.position,
                        chunked=chunked,
                    )
                return False
            last = self._services.draining
            size = len(response.body)
            if size <= SMALL_RESPONSE:
                exchanges.end(request, response.status, size)
                return await connection.send(response, last=last)
            with self._services.limits.pending(size):
                exchanges.end(request, response.status, size)
                return await connection.send(response, last=last)
        except ApiError as error:  # there is no room for its response
            await self._refuse(connection, error, request)
            return False
