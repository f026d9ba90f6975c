"""Admission of live connections, and the set of open ones.

Law: checks everything before it upgrades, so that a refusal is a plain HTTP response.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import lru_cache
from typing import Any, Final

import trio

from paperdb_trio.auth import tokens
from paperdb_trio.auth.tokens import Grant
from paperdb_trio.delivery.subscriber import Subscriber
from paperdb_trio.delivery.topics import Asked
from paperdb_trio.delivery.views import has_queries
from paperdb_trio.errors import ApiError, bad_request
from paperdb_trio.json_input import parse_json
from paperdb_trio.limits import too_many_subscriptions
from paperdb_trio.loop.wheel import Wheel
from paperdb_trio.model import check_collection
from paperdb_trio.net.chunked import LAST_CHUNK
from paperdb_trio.net.frames import close_frame
from paperdb_trio.net.head import Head
from paperdb_trio.net.messages import Request
from paperdb_trio.net.parameters import parse_parameters
from paperdb_trio.net.stream import ByteStream
from paperdb_trio.realtime.connection import Live
from paperdb_trio.realtime.eventstream import EventConnection
from paperdb_trio.realtime.handshake import check_handshake, handshake_response
from paperdb_trio.realtime.protocol import BEARER, SUBPROTOCOL, CloseCode, refusal_close
from paperdb_trio.realtime.websocket import WebSocket
from paperdb_trio.services import Services
from paperdb_trio.store.protocol import Topic
from paperdb_trio.store.slow import REQUEST

PATHS: Final = ("/", "/realtime")
_NOTHING: Final = nullcontext()
PARAMETERS: Final = ("token", "since", "collections", "filter", "errors")


class Gateway:
    """All live connections."""

    def __init__(self, services: Services, wheel: Wheel) -> None:
        self._services = services
        self._wheel = wheel
        self.connections: set[Live] = set()

    async def serve(self, stream: ByteStream, head: Head) -> None:
        """Serve one connection until it ends; its head has been read. Raises an `ApiError` to refuse it, unless
        the client asked for a close code."""
        try:
            query = parse_parameters(head.query_string, PARAMETERS, errors="replace")  # a bad token is a 401
            if query.get("errors", "close") != "close":
                raise bad_request(f"Invalid errors: '{query['errors'][:40]}'. Use close, or omit it.")
            grant, protocol = self._admit(head, query)
            since = query.get("since")
            if since not in (None, "now") and not (since.isascii() and since.isdigit() and len(since) <= 18):
                raise bad_request(
                    f"Invalid since: '{since[:40]}'. Use the seq of the last change seen, or now."
                )
            cursor_mode = protocol == SUBPROTOCOL or since is not None
            most = self._services.settings.max_subscriptions
            first = _first_asked(grant, query.get("collections"), query.get("filter"), most)
            # Ten thousand idle connections to whole collections need not keep a generator each.
            hub = self._services.hub
            following = hub.following(grant.database.id, first) if has_queries(first) else _NOTHING
            with following, self.admission(stream, head, grant):
                connection = WebSocket(self._services, self._wheel, stream, grant, first, cursor_mode)
                # Before any await: `enforce` and `drain` must not miss a connection during its handshake.
                self._enter(connection)
                try:
                    await self._services.store.current(grant.database.id)
                    response = handshake_response(head, protocol, self._upgraded(stream, head, grant))
                    del first, query, grant  # this frame lives as long as the connection
                    head.forget()
                    await connection.run(response, since)
                finally:
                    self.connections.discard(connection)
        except ApiError as error:
            await self.refuse(stream, head, error)

    async def refuse(self, stream: ByteStream, head: Head, error: ApiError) -> None:
        """Send a client with `?errors=close` the reason after the upgrade; raise `error` for others.

        A browser hides a refused handshake from its page, which would retry forever.
        """
        if "errors=close" not in head.query_string.split("&"):
            raise error
        check_handshake(head)
        protocol = SUBPROTOCOL if SUBPROTOCOL in (offered := _offered(head)) else _bearer(offered)
        request = _request(stream, head)
        self._services.exchanges.refuse(request, error)
        response = handshake_response(head, protocol, request.id)
        await stream.send_all(response + close_frame(*refusal_close(error)))

    def _upgraded(self, stream: ByteStream, head: Head, grant: Grant) -> str:
        """End the request that becomes a WebSocket; returns its id."""
        request, exchanges = _request(stream, head), self._services.exchanges
        exchanges.begin(request)
        REQUEST.set(request.id)  # finds of snapshots are for it
        request.identity, request.token = self._services.accounts.still(grant.key_id, grant.database.id), grant
        exchanges.end(request, 101, 0)
        return request.id

    def _enter(self, connection: Live) -> None:
        connection.number = next(self._services.readers.numbers)
        self.connections.add(connection)

    def admission(self, stream: ByteStream, head: Head, grant: Grant) -> AbstractContextManager[None]:
        """Count a listener while it lasts: for its database, and behind a proxy for its client address.

        Entering raises a 503.
        """
        limits = self._services.limits
        client = limits.client_address(stream.peer, head.headers.get("x-forwarded-for"))
        listener = limits.listener(grant.database.id)
        if client == stream.peer:
            return listener
        stream.peer = client
        return _both(limits.connection(client), listener)

    async def serve_events(
        self, stream: ByteStream, grant: Grant, topic: Topic, position: int, *, chunked: bool
    ) -> None:
        """Serve server-sent events until the connection ends; the head of the response has been sent.

        `enforce` and `drain` do not see the connection during that send, so this checks again. If there is no
        room for another query any more, the connection is cut off.
        """
        if self._services.draining:
            return
        if not grant.still_good(self._services.accounts):
            if chunked:
                await stream.send_all(LAST_CHUNK)
            return
        connection = EventConnection(self._services, self._wheel, stream, grant, topic, chunked=chunked)
        with suppress(ApiError), self._services.hub.following(grant.database.id, [topic]):
            self._enter(connection)
            try:
                await connection.run(position)
            finally:
                self.connections.discard(connection)

    def _admit(self, head: Head, query: dict[str, str]) -> tuple[Grant, str | None]:
        """The grant and the subprotocol. Raises the refusal."""
        services = self._services
        if head.path not in PATHS:
            raise ApiError(404, "NOT_FOUND", "WebSockets connect to / or /realtime")
        if services.draining:
            raise ApiError(503, "SHUTTING_DOWN", "The server is shutting down", headers={"Retry-After": "1"})
        check_handshake(head)
        origin = head.headers.get("origin")
        if origin is not None and not services.settings.origins.allows(origin):
            raise ApiError(403, "ORIGIN_NOT_ALLOWED", "This web origin may not connect")
        offered = _offered(head)
        bearer = _bearer(offered)
        grant = tokens.verify(services.accounts, _token(head, query, bearer))
        services.accounts.used.add(grant.key_id)
        # A client that offers subprotocols must get one of them.
        return grant, SUBPROTOCOL if SUBPROTOCOL in offered else bearer

    async def drain(self, seconds: float) -> None:
        """Close every connection with 1012, each after its current write, within `seconds`."""
        for index, connection in enumerate(tuple(self.connections)):
            connection.close(CloseCode.RESTARTING, "server restarting", grace=seconds)
            if not index % 100:
                await trio.lowlevel.checkpoint()

    def subscribers(self) -> list[Subscriber]:
        return [connection.subscriber for connection in self.connections]

    def enforce(self) -> None:
        """Close connections whose key or plan is no longer valid, after a change of the accounts."""
        for connection in tuple(self.connections):
            connection.enforce()


@contextmanager
def _both(one: AbstractContextManager[None], other: AbstractContextManager[None]) -> Iterator[None]:
    with one, other:
        yield


def _request(stream: ByteStream, head: Head) -> Request:
    route = head.path if head.path in PATHS else ""
    return Request(head.method, head.path, head.query_string, head.headers, _no_body, stream.peer, route=route)


async def _no_body(max_bytes: int) -> bytes:
    return b""


def _offered(head: Head) -> list[str]:
    return head.tokens("sec-websocket-protocol")


def _bearer(offered: list[str]) -> str | None:
    for item in offered:
        if item.startswith(BEARER):
            return item
    return None


def _token(head: Head, query: dict[str, str], bearer: str | None) -> str:
    if "token" in query:
        return query["token"]
    if bearer is not None:
        return bearer[len(BEARER) :]
    scheme, _, token = head.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token:
        return token.strip()
    raise ApiError(
        401,
        "TOKEN_MISSING",
        "A token is needed: ?token=…, Authorization: Bearer, or the subprotocol bearer.<token>",
        headers={"WWW-Authenticate": 'Bearer realm="paperdb"'},
    )


@lru_cache(maxsize=1024)
def _whole(collection: str) -> Asked:
    return Asked(collection)


def _first_asked(grant: Grant, narrowed: str | None, filters: str | None, most: int) -> dict[Topic, Asked]:
    """What a connection follows from the start. Raises a 400 or 403."""
    chosen = {} if filters is None else _filters(filters)
    if narrowed is not None:
        names = [check_collection(name) for name in narrowed.split(",") if name]
    elif grant.collections is not None:
        names = list(grant.collections)
    elif chosen:
        raise bad_request("'filter' needs 'collections': name the collections to follow", "INVALID_FILTER")
    else:
        return {Asked(None).within(grant): Asked(None)}
    for name in chosen:
        if name not in names:
            raise bad_request(f"'filter' names '{name[:80]}', which is not followed", "INVALID_FILTER")
    if len(names) > most:
        raise too_many_subscriptions(most)
    asked = {}
    for name in names:
        one = Asked(name, chosen[name]) if name in chosen else _whole(name)
        asked[one.within(grant)] = one
    return asked


def _filters(text: str) -> dict[str, dict[str, Any]]:
    """The filters by collection. Raises a 400."""
    filters = parse_json(text.encode("utf-8", "surrogatepass"))
    if not isinstance(filters, dict) or not all(isinstance(filter, dict) for filter in filters.values()):
        raise bad_request('Invalid filter: use an object like {"messages": {"room": "r1"}}', "INVALID_FILTER")
    return filters
