"""What the SDK's tests need: a proxy that is a bad network, a server that follows a script, tokens that end
when wanted.

Rules: loopback, port 0; a real server wherever it can do what the test is about, `FakeServer` only for what it
never does; every wait has a limit.
"""

from __future__ import annotations

import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import jwt
import msgspec
import pytest
import trio
from trio_websocket import ConnectionClosed, WebSocketConnection, WebSocketRequest, serve_websocket

from paperdb_trio import Event
from paperdb_trio.client.realtime import Subscription
from paperdb_trio.client.token import Token
from tests.conftest import Server

SECONDS = 10
"""The limit of every wait."""


async def take(events: Subscription, count: int, seconds: float = SECONDS) -> list[Event]:
    """The next `count` events."""
    taken: list[Event] = []
    with trio.fail_after(seconds):
        while len(taken) < count:
            taken.append(await anext(events))
    return taken


async def nothing_more(events: Subscription, collection: str, server: Server) -> None:
    """No event is on its way: the next one is that of a document written now."""
    last = await insert(server, collection, {"last": True})
    (event,) = await take(events, 1)
    assert event.data == last


async def insert(server: Server, collection: str, document: dict[str, Any]) -> dict[str, Any]:
    """Without the SDK, and in a thread, so that proxies and consumers continue meanwhile."""
    return await trio.to_thread.run_sync(server.insert, collection, document)


async def write(server: Server, collection: str, numbers: range) -> None:
    """Insert `{"n": …}` for each number, in bulks."""
    for first in range(numbers.start, numbers.stop, 500):
        documents = [{"n": n} for n in range(first, min(first + 500, numbers.stop))]
        post = partial(server.request, "POST", f"/{collection}/bulk", json=documents)
        response = await trio.to_thread.run_sync(post)
        assert response.json()["inserted"] == len(documents)


def numbers(events: list[Event]) -> list[int]:
    return [event.data["n"] for event in events]


async def eventually(condition: Callable[[], bool], seconds: float = SECONDS) -> None:
    with trio.fail_after(seconds):
        while not condition():
            await trio.sleep(0.01)


def short_token(server: Server, *collections: str, seconds: float, issued: float = -30) -> str:
    """A token that ends sooner than any that the server would mint. Both times are in seconds from now."""
    ((kid, secret),) = server.rows("SELECT kid, secret FROM signing_secrets WHERE retired_at IS NULL")
    (key,) = server.rows("SELECT id FROM keys WHERE revoked_at IS NULL ORDER BY created_at")[0]
    now = time.time()
    claims = {
        "iss": "paperdb",
        "aud": "paperdb-realtime",
        "sub": "default",
        "key": key,
        "collections": list(collections),
        "permissions": ["read"],
        "iat": now + issued,
        "exp": now + seconds,
        "jti": str(random.random()),
    }
    return jwt.encode(claims, secret, "HS256", headers={"kid": kid})


def shortened(server: Server, token: str, seconds: int) -> str:
    """A token that the server issued, made to end sooner than any that it would mint."""
    kid = jwt.get_unverified_header(token)["kid"]
    secrets = dict(server.rows("SELECT kid, secret FROM signing_secrets"))
    claims = jwt.decode(token, options={"verify_signature": False})
    claims["exp"] = claims["iat"] + seconds
    return jwt.encode(claims, secrets[kid], "HS256", headers={"kid": kid})


def renew_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Renew tokens soon, although they last for long."""
    monkeypatch.setattr(Token, "renew_at", lambda token, margin: token.obtained + 0.2)


class Proxy:
    """Forwards connections to a server.

    `accepting` False: connections are closed at once. `stalled`: bytes are read and dropped. `budget()`: how
    many of the server's bytes a new connection forwards before it is cut, wherever that is; `silent`: instead
    of being cut, it stays open and silent. `delay()`: seconds that each piece is held up. `websockets` counts
    upgrades.
    """

    def __init__(self, port: int) -> None:
        self._target = port
        self.url = ""
        self.accepting = True
        self.stalled = False
        self.silent = False
        self.budget: Callable[[], float] = lambda: float("inf")
        self.delay: Callable[[], float] = lambda: 0.0
        self.websockets = 0
        self.cuts = 0
        self._open: set[trio.SocketStream] = set()

    async def serve(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.url = f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        await trio.serve_listeners(self._serve, listeners, task_status=task_status)  # type: ignore[arg-type]

    def cut(self) -> None:
        """Cut every connection now."""
        for stream in self._open:
            stream.socket.close()

    async def _serve(self, client: trio.SocketStream) -> None:
        if not self.accepting:
            await client.aclose()
            return
        self._open.add(client)
        try:
            async with (
                client,
                await trio.open_tcp_stream("127.0.0.1", self._target) as server,
                trio.open_nursery() as nursery,
            ):
                nursery.start_soon(self._pump, client, server, float("inf"), nursery.cancel_scope)
                nursery.start_soon(self._pump, server, client, self.budget(), nursery.cancel_scope)
        except* OSError:
            pass
        finally:
            self._open.discard(client)

    async def _pump(
        self, source: trio.SocketStream, sink: trio.SocketStream, budget: float, scope: trio.CancelScope
    ) -> None:
        try:
            while data := await source.receive_some(65536):
                self.websockets += b"\r\nupgrade: websocket" in data.lower() and data.startswith(b"GET ")
                if self.stalled:
                    await trio.sleep_forever()
                if pause := self.delay():
                    await trio.sleep(pause)
                if len(data) > budget:
                    self.cuts += 1
                    await sink.send_all(data[: int(budget)])
                    if self.silent:
                        await trio.sleep_forever()
                    break
                budget -= len(data)
                await sink.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        scope.cancel()


@asynccontextmanager
async def proxied(server: Server) -> AsyncIterator[Proxy]:
    proxy = Proxy(server.port)
    async with trio.open_nursery() as nursery:
        await nursery.start(proxy.serve)
        yield proxy
        nursery.cancel_scope.cancel()


class Peer:
    """One connection to a `FakeServer`: `heard` is what the client said."""

    def __init__(self, ws: WebSocketConnection, request: WebSocketRequest) -> None:
        self.ws = ws
        self.path = request.path
        self.authorization = dict(request.headers).get(b"authorization", b"").decode()

    async def say(self, **message: Any) -> None:
        await self.ws.send_message(msgspec.json.encode(message).decode())

    async def event(self, seq: int, collection: str = "a", **data: Any) -> None:
        await self.say(seq=seq, type="insert", collection=collection, data=data)

    async def heard(self, action: str) -> dict[str, Any]:
        """The next message with this action; pings are passed over."""
        while True:
            message: dict[str, Any] = msgspec.json.decode(await self.ws.get_message())
            if message["action"] == action:
                return message
            assert message["action"] == "ping", message

    async def subscribed(self, seq: int, **about: Any) -> None:
        """The client's next message asks for a collection, and gets it from `seq` on."""
        asked = await self.heard("subscribe")
        await self.say(type="subscribed", ref=asked["ref"], collection=asked["collection"], seq=seq, **about)

    async def authenticated(self) -> None:
        """The client's next message offers a token, which is good."""
        asked = await self.heard("auth")
        await self.say(type="authenticated", ref=asked["ref"])

    async def closed(self) -> None:
        """Return when the client has closed, or gone."""
        try:
            while True:
                await self.ws.get_message()
        except ConnectionClosed:
            pass


Script = Callable[[Peer], Awaitable[None]]


class FakeServer:
    """Plays the next script for each connection, and from then on the last one."""

    def __init__(self, *scripts: Script) -> None:
        self._scripts = scripts
        self.peers: list[Peer] = []
        self.url = ""

    async def handle(self, request: WebSocketRequest) -> None:
        script = self._scripts[min(len(self.peers), len(self._scripts) - 1)]
        ws = await request.accept(subprotocol="paperdb.v1")
        peer = Peer(ws, request)
        self.peers.append(peer)
        try:
            await script(peer)
        except ConnectionClosed:
            pass


@asynccontextmanager
async def faked(*scripts: Script) -> AsyncIterator[FakeServer]:
    fake = FakeServer(*scripts)
    async with trio.open_nursery() as nursery:
        server = await nursery.start(serve_websocket, fake.handle, "127.0.0.1", 0, None)
        fake.url = f"http://127.0.0.1:{server.port}"
        yield fake
        nursery.cancel_scope.cancel()


async def any_token() -> str:
    """For fake servers."""
    return "opaque"
