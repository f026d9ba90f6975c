"""Access: refused tokens, revoked keys, lost plans, and a `get_token` that fails."""

from __future__ import annotations

import base64
import ssl
import time
from functools import partial
from typing import Any

import httpx
import jwt
import msgspec
import pytest
import trio

from paperdb_trio import ConnectionState, PaperDBError, create_client
from paperdb_trio.client import backoff
from tests.client.harness import (
    eventually,
    nothing_more,
    numbers,
    proxied,
    take,
    write,
)
from tests.conftest import Server, StartServer


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backoff, "MAX_DELAY", 0.2)


async def test_a_token_of_another_server_is_refused_for_good(server: Server, collection: str) -> None:
    async def get_token() -> str:
        return jwt.encode({"exp": time.time() + 900}, "0" * 32, "HS256")

    async with create_client(base_url=server.url, get_token=get_token) as db:
        with pytest.raises(PaperDBError, match="not issued by this server") as caught:
            await db.realtime.subscribe(collection).__aenter__()
        assert (caught.value.status, caught.value.code) == (401, "INVALID_TOKEN")


async def test_a_revoked_key_ends_everything_with_an_error(start_server: StartServer) -> None:
    server = start_server()
    key = server.new_key()
    async with create_client(base_url=server.url, api_key=key["key"]) as db:
        async with db.realtime.subscribe("a") as a, db.realtime.subscribe("b") as b:
            await write(server, "a", range(3))
            await eventually(lambda: len(a._channel.buffer) == 3)
            await trio.to_thread.run_sync(server.cli, "keys", "revoke", key["id"])
            with pytest.raises(PaperDBError) as caught:
                await take(b, 1)
            assert (caught.value.code, caught.value.extra) == ("ACCESS_LOST", {"close_code": 4403})
            assert numbers(await take(a, 3)) == [0, 1, 2]
            for _ in range(2):
                with pytest.raises(PaperDBError, match="API key revoked"):
                    await take(a, 1)
            assert a.status().current.state is ConnectionState.CLOSED
            assert a.status().current.error is not None
        with pytest.raises(PaperDBError) as caught:
            await db.realtime.subscribe("a").__aenter__()
        assert caught.value.status == 401


async def test_a_lost_plan_ends_subscriptions_until_it_is_back(start_server: StartServer) -> None:
    server = start_server()
    async with create_client(base_url=server.url, api_key=server.key) as db:
        async with db.realtime.subscribe("a") as events:
            await trio.to_thread.run_sync(server.cli, "databases", "set-plan", "default", "free")
            with pytest.raises(PaperDBError, match="plan"):
                await take(events, 1)
        with pytest.raises(PaperDBError) as caught:
            await db.realtime.subscribe("a").__aenter__()
        assert (caught.value.status, caught.value.code) == (403, "PLAN_REQUIRED")
        assert caught.value.extra == {"plan": "free"}
        with pytest.raises(PaperDBError, match="Pro and Team"):
            await db.realtime.generate_token(["a"])
        await trio.to_thread.run_sync(server.cli, "databases", "set-plan", "default", "pro")

        async def allowed() -> None:
            while True:
                try:
                    await db.realtime.generate_token(["a"])
                except PaperDBError:
                    await trio.sleep(0.05)
                else:
                    return

        with trio.fail_after(5):
            await allowed()
        async with db.realtime.subscribe("a") as events:
            await write(server, "a", range(1))
            assert numbers(await take(events, 1)) == [0]


async def test_the_token_goes_into_a_header(server: Server, collection: str) -> None:
    seen: list[bytes] = []
    async with proxied(server) as proxy:
        original = proxy._pump

        async def pump(source: trio.SocketStream, *more: Any) -> None:
            class Tap:
                async def receive_some(self, size: int) -> bytes:
                    data = bytes(await source.receive_some(size))
                    seen.append(data)
                    return data

            await original(Tap(), *more)  # type: ignore[arg-type]

        proxy._pump = pump  # type: ignore[method-assign, assignment]
        async with (
            create_client(base_url=proxy.url, api_key=server.key) as db,
            db.realtime.subscribe(collection),
        ):
            pass
    lines = [line for data in seen for line in data.split(b"\r\n")]
    (upgrade,) = [line for line in lines if line.startswith(b"GET ")]
    assert upgrade == b"GET /?since=now HTTP/1.1"  # the token says which collections
    assert any(line.lower().startswith(b"authorization: bearer ey") for line in lines)


async def test_generated_tokens_have_what_was_asked_for(server: Server) -> None:
    async with create_client(base_url=server.url, api_key=server.key) as db:
        token = await db.realtime.generate_token(["a", "b"], ["read", "write"], expires_in=60)
        claims = msgspec.json.decode(base64.urlsafe_b64decode(token.split(".")[1] + "=="))
        assert claims["collections"] == ["a", "b"]
        assert claims["permissions"] == ["read", "write"]
        assert claims["exp"] - claims["iat"] == 60
        with pytest.raises(PaperDBError, match="expiresIn"):
            await db.realtime.generate_token(["a"], expires_in=5)


async def test_a_public_key_can_subscribe(server: Server, collection: str) -> None:
    public = await trio.to_thread.run_sync(partial(server.new_key, public=True))
    async with (
        create_client(base_url=server.url, api_key=public["key"]) as db,
        db.realtime.subscribe(collection) as events,
    ):
        await nothing_more(events, collection, server)


async def test_a_collection_outside_the_application_s_token_is_refused(server: Server, collection: str) -> None:
    async def get_token() -> str:
        return await trio.to_thread.run_sync(server.token, collection)

    async with (
        create_client(base_url=server.url, get_token=get_token) as db,
        db.realtime.subscribe(collection) as events,
    ):
        with pytest.raises(PaperDBError, match="does not cover: other") as caught:
            await db.realtime.subscribe(collection, "other").__aenter__()
        assert (caught.value.status, caught.value.code) == (403, "NOT_IN_TOKEN")
        await nothing_more(events, collection, server)


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("failure", "status"),
    [
        (KeyError("no"), 400),
        (
            httpx.HTTPStatusError(
                "401", request=httpx.Request("GET", "http://a"), response=httpx.Response(401)
            ),
            401,
        ),
        (PaperDBError(403, "MINE", "not you"), 403),
        (caused(httpx.ConnectError("TLS"), ssl.SSLCertVerificationError("expired")), 400),
    ],
)
async def test_a_get_token_that_fails_ends_the_subscription(
    server: Server, failure: Exception, status: int
) -> None:
    async def get_token() -> str:
        raise failure

    async with create_client(base_url=server.url, get_token=get_token) as db:
        with pytest.raises(PaperDBError) as caught:
            await db.realtime.subscribe("a").__aenter__()
        assert caught.value.status == status
        assert caught.value.code == "MINE" if status == 403 else "TOKEN_UNAVAILABLE"


async def test_a_get_token_that_fails_for_a_while_is_tried_again(server: Server, collection: str) -> None:
    failures: list[Exception] = [
        OSError("no route"),
        httpx.ConnectError("refused"),
        httpx.HTTPStatusError("503", request=httpx.Request("GET", "http://a"), response=httpx.Response(503)),
    ]

    async def get_token() -> str:
        if failures:
            raise failures.pop()
        return await trio.to_thread.run_sync(server.token, collection)

    async with (
        create_client(base_url=server.url, get_token=get_token) as db,
        db.realtime.subscribe(collection) as events,
    ):
        await nothing_more(events, collection, server)
