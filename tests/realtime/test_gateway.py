"""Handshakes during which the key is revoked or the server drains."""

from __future__ import annotations

import socket
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio

from paperdb_trio.config import Settings
from paperdb_trio.delivery.hub import Hub
from paperdb_trio.errors import ApiError
from paperdb_trio.exchanges import Exchanges
from paperdb_trio.limits import Limits
from paperdb_trio.loop.wheel import Wheel
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


async def served(world: World, act: Callable[[Gateway], Any]) -> bytes:
    """The bytes that a client receives if `act` happens during its handshake, up to the close."""
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
        await gateway.serve(stream, parse_head(HANDSHAKE % token().encode()))
        await stream.finish()
        client.settimeout(5)
        received = b""
        while data := client.recv(65536):
            received += data
    assert not gateway.connections
    head, _, frames = received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 101")
    return frames


async def test_key_revoked_during_the_handshake_cannot_listen(own_world: World) -> None:
    async def revoke(gateway: Gateway) -> None:
        admin.apply(own_world.file, RevokeKey("test", "k1"))
        await own_world.refresh()
        gateway.enforce()

    with pytest.raises(ApiError) as refused:
        await served(own_world, revoke)
    assert refused.value.code == "UNAUTHORIZED"


async def test_plan_lost_during_the_handshake_closes_with_4403(own_world: World) -> None:
    async def downgrade(gateway: Gateway) -> None:
        admin.apply(own_world.file, ChangeDatabase("test", "default", plan="free"))
        await own_world.refresh()
        gateway.enforce()

    frames = await served(own_world, downgrade)
    assert frames[:4] == b"\x88" + frames[1:2] + (4403).to_bytes(2, "big")


async def test_drain_during_the_handshake_closes_with_1012(own_world: World) -> None:
    async def drain(gateway: Gateway) -> None:
        await gateway.drain(5)

    frames = await served(own_world, drain)
    assert frames[:4] == b"\x88" + frames[1:2] + (1012).to_bytes(2, "big")
