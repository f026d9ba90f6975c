"""Handshakes, and heads of event streams, during which the key is revoked or the server drains."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio

from paperdb_trio.auth import tokens
from paperdb_trio.config import Settings
from paperdb_trio.delivery.hub import Hub
from paperdb_trio.errors import ApiError
from paperdb_trio.exchanges import Exchanges
from paperdb_trio.limits import Limits
from paperdb_trio.loop.wheel import Wheel
from paperdb_trio.net.chunked import LAST_CHUNK
from paperdb_trio.net.head import parse_head
from paperdb_trio.net.stream import ByteStream
from paperdb_trio.realtime.gateway import Gateway
from paperdb_trio.services import Services
from paperdb_trio.store.administration import ChangeDatabase, RevokeKey
from paperdb_trio.store.sqlite import admin
from tests.auth.test_tokens import World, own_world, token

__all__ = ["own_world"]  # the fixture

HANDSHAKE = (
    b"GET /?token=%b HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)


async def shaken(gateway: Gateway, stream: ByteStream) -> None:
    await gateway.serve(stream, parse_head(HANDSHAKE % token().encode()))


async def streamed(gateway: Gateway, stream: ByteStream) -> None:
    """As the door does: the head first, which takes a while."""
    services = gateway._services
    grant = tokens.verify(services.accounts, token())
    await stream.send_all(b"head")
    await services.store.current(grant.database.id)
    await gateway.serve_events(stream, grant, "a", 0, chunked=True)


async def served(
    world: World,
    act: Callable[[Gateway], Any],
    serve: Callable[[Gateway, ByteStream], Awaitable[None]] = shaken,
) -> bytes:
    """The bytes that a client receives if `act` happens while the store gets current during its handshake, up
    to the close."""
    settings = Settings()
    limits = Limits(settings)

    async def current(database_id: int) -> None:
        await act(gateway)

    unused = cast(Any, None)
    services = Services(
        settings=settings,
        limits=limits,
        accounts=world.accounts,
        store=cast(Any, SimpleNamespace(current=current)),
        cache=unused,
        hub=Hub(),
        assets={},
        exchanges=Exchanges(settings, limits),
    )
    gateway = Gateway(services, Wheel())
    listener = socket.create_server(("127.0.0.1", 0))
    client = socket.create_connection(listener.getsockname())
    raw, _ = listener.accept()
    raw.setblocking(False)
    stream = ByteStream(raw, "test")
    with listener, client, raw, trio.fail_after(10):
        await serve(gateway, stream)
        await stream.finish()
        client.settimeout(5)
        received = b""
        while data := client.recv(65536):
            received += data
    assert not gateway.connections
    return received


def frames_of(received: bytes) -> bytes:
    head, _, frames = received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 101")
    return frames


@pytest.fixture
def revoke(own_world: World) -> Callable[[Gateway], Awaitable[None]]:
    async def revoke(gateway: Gateway) -> None:
        admin.apply(own_world.file, RevokeKey("test", "k1"))
        await own_world.refresh()
        gateway.enforce()

    return revoke


async def drain(gateway: Gateway) -> None:
    gateway._services.draining = True
    await gateway.drain(5)


async def test_key_revoked_during_the_handshake_cannot_listen(own_world: World, revoke: Any) -> None:
    with pytest.raises(ApiError) as refused:
        await served(own_world, revoke)
    assert refused.value.code == "UNAUTHORIZED"


async def test_plan_lost_during_the_handshake_closes_with_4403(own_world: World) -> None:
    async def downgrade(gateway: Gateway) -> None:
        admin.apply(own_world.file, ChangeDatabase("test", "default", plan="free"))
        await own_world.refresh()
        gateway.enforce()

    frames = frames_of(await served(own_world, downgrade))
    assert frames[:4] == b"\x88" + frames[1:2] + (4403).to_bytes(2, "big")


async def test_drain_during_the_handshake_closes_with_1012(own_world: World) -> None:
    frames = frames_of(await served(own_world, drain))
    assert frames[:4] == b"\x88" + frames[1:2] + (1012).to_bytes(2, "big")


async def test_a_stream_ends_whole_if_its_key_is_revoked_while_its_head_is_sent(
    own_world: World, revoke: Any
) -> None:
    assert await served(own_world, revoke, streamed) == b"head" + LAST_CHUNK


async def test_a_stream_is_cut_off_if_the_server_drains_while_its_head_is_sent(own_world: World) -> None:
    assert await served(own_world, drain, streamed) == b"head"
