"""Tokens and those who may not: renewal, expiry, revocation, plans; what stops a subscription and how."""

from __future__ import annotations

import base64
import math
import ssl
import time
from collections import Counter
from functools import partial
from typing import Any

import httpx
import jwt
import msgspec
import pytest
import trio

from paperdb_trio import PaperDBError, State, create_client
from paperdb_trio.client import backoff, token
from paperdb_trio.client.token import Token, read_token
from tests.client.harness import (
    SECONDS,
    eventually,
    nothing_more,
    numbers,
    proxied,
    short_token,
    take,
    write,
)
from tests.conftest import Server, StartServer


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backoff, "MAX_DELAY", 0.2)
    monkeypatch.setattr(token, "RENEWAL_PAUSE", 0.2)


async def test_a_token_is_renewed_in_place(server: Server, collection: str) -> None:
    asked = Counter[str]()

    async def get_token() -> str:
        asked["token"] += 1
        return short_token(server, collection, seconds=4)

    async with proxied(server) as proxy:
        client = create_client(base_url=proxy.url, get_token=get_token, renewal_margin=3.6)
        async with client as db, db.realtime.subscribe(collection) as events:
            began = trio.current_time()
            n = 0
            while asked["token"] < 4:
                await write(server, collection, range(n, n + 1))
                assert numbers(await take(events, 1)) == [n]
                await trio.sleep(0.1)
                n += 1
            took = trio.current_time() - began
            assert events.status().current.state is State.LIVE
        assert took > 2 * 0.4 - 0.1  # at once, and then each when the one before it has 3.6 s left
        assert proxy.websockets == 1


async def test_a_minted_token_is_renewed_before_its_end(server: Server, collection: str) -> None:
    async with proxied(server) as proxy:
        client = create_client(base_url=proxy.url, api_key=server.key, token_seconds=30, renewal_margin=29.7)
        async with client as db, db.realtime.subscribe(collection) as events:
            tokens = set()
            for _ in range(2):
                first = db.realtime._tokens._last
                tokens.add(first)
                await eventually(partial(lambda first: db.realtime._tokens._last is not first, first))
            assert len(tokens) == 2
            await nothing_more(events, collection, server)
        assert proxy.websockets == 1


async def test_a_token_that_ends_in_use_is_replaced(
    server: Server, collection: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Token, "renew_at", lambda *_: math.inf)  # as if its end could not be told

    async def get_token() -> str:
        return short_token(server, collection, seconds=3)  # a fresh one must outlast a slow machine's pauses

    async with proxied(server) as proxy:
        client = create_client(base_url=proxy.url, get_token=get_token)
        async with client as db, db.realtime.subscribe(collection) as events:
            for n in range(20):
                await write(server, collection, range(n, n + 1))
                await trio.sleep(0.2)
            assert numbers(await take(events, 20)) == list(range(20))
        assert proxy.websockets >= 2


@pytest.mark.parametrize(
    ("issued", "ends", "reason"),
    [(-60, -5, "The token has expired"), (600, 900, "(iat)")],
    ids=["ended", "not-begun"],
)
async def test_a_token_that_only_its_time_speaks_against(
    server: Server, collection: str, issued: float, ends: float, reason: str
) -> None:
    """As when the server's clock was set and the application keeps its tokens: it is asked until it has
    another, less and less often, and the status says what is wrong."""
    asked = 0
    tokens = [short_token(server, collection, seconds=ends, issued=issued)]

    async def get_token() -> str:
        nonlocal asked
        asked += 1
        return tokens[-1]

    async with create_client(base_url=server.url, get_token=get_token) as db:
        subscription = db.realtime.subscribe(collection)
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def mend() -> None:
                await eventually(lambda: asked >= 3)
                refused = [s for s in subscription.status()._kept if s.state is State.OFFLINE]
                assert reason in refused[0].reason
                assert refused[0].retry_in is not None
                tokens.append(short_token(server, collection, seconds=60))

            with trio.fail_after(SECONDS):
                async with subscription as events:
                    await nothing_more(events, collection, server)


async def test_a_kept_token_that_has_ended_meanwhile(server: Server, collection: str) -> None:
    """One that was good before is replaced at once."""
    async with create_client(base_url=server.url, api_key=server.key) as db:
        db.realtime._tokens._last = read_token(short_token(server, collection, seconds=-5))
        subscription = db.realtime.subscribe(collection)
        async with subscription:
            pass
        assert State.OFFLINE not in {status.state for status in subscription.status()._kept}


async def test_a_token_of_another_server_is_refused_for_good(server: Server, collection: str) -> None:
    async def get_token() -> str:
        return jwt.encode({"exp": time.time() + 900}, "0" * 32, "HS256")

    async with create_client(base_url=server.url, get_token=get_token) as db:
        with pytest.raises(PaperDBError, match="not issued by this server") as caught:
            await db.realtime.subscribe(collection).__aenter__()
        assert (caught.value.status, caught.value.code) == (401, "INVALID_TOKEN")


async def test_a_wrong_clock_does_not_renew_without_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever this machine's clock makes of a token: the next one is not asked for before a pause."""
    now = time.time()
    trio_now = trio.current_time()
    for ahead in (-900, -30, 0, 14.5 * 60, 899.9, 900, 5000):
        monkeypatch.setattr("paperdb_trio.client.token.time.time", lambda ahead=ahead: now + ahead)
        for lifetime in (1, 30, 60, 900):
            claims = {"iat": now, "exp": now + lifetime, "collections": ["a"]}
            for margin in (0, 60, 1000):
                renewed = read_token(jwt.encode(claims, "0" * 32, "HS256")).renew_at(margin)
                assert renewed >= trio_now + token.RENEWAL_PAUSE


async def test_a_get_token_that_never_returns(
    server: Server, collection: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the token is renewed: it is tried again, the status tells, what the present token covers is
    subscribed at once, and nothing of what is subscribed is held up."""
    other = collection + "_other"
    hanging, cancelled = False, 0

    async def get_token() -> str:
        nonlocal cancelled
        if hanging:
            try:
                await trio.sleep_forever()
            finally:
                cancelled += 1
        return await trio.to_thread.run_sync(partial(server.token, collection, other, expiresIn=30))

    client = create_client(base_url=server.url, get_token=get_token, renewal_margin=29, timeout=0.2)
    async with client as db, db.realtime.subscribe(collection) as events:
        hanging = True
        await eventually(lambda: "get_token did not return within 0.2 s" in events.status().current.reason)
        assert events.status().current.state is State.LIVE
        assert events.status().current.retry_in is not None
        await eventually(lambda: cancelled >= 3)
        with trio.fail_after(SECONDS):
            async with db.realtime.subscribe(other) as others:
                await nothing_more(others, other, server)
            async with db.realtime.subscribe(other, since=0) as others:
                assert (await take(others, 1))[0].collection == other
        await nothing_more(events, collection, server)
        hanging = False
        await eventually(lambda: events.status().current.reason == "")
        assert events.status().current.state is State.LIVE


async def test_a_renewal_that_fails_for_good_is_told_and_the_old_token_used_up(
    server: Server, collection: str
) -> None:
    tokens = [short_token(server, collection, seconds=3)]

    async def get_token() -> str:
        if tokens:
            return tokens.pop()
        raise PaperDBError(403, "MINE", "logged out")

    client = create_client(base_url=server.url, get_token=get_token, renewal_margin=2.9)
    async with client as db, db.realtime.subscribe(collection) as events:
        await eventually(lambda: "logged out" in events.status().current.reason)
        assert events.status().current.state is State.LIVE
        await write(server, collection, range(1))
        assert numbers(await take(events, 1)) == [0]
        with pytest.raises(PaperDBError, match="logged out"):
            await take(events, 1)


async def test_a_first_token_that_never_comes_is_told(server: Server, collection: str) -> None:
    async with create_client(base_url=server.url, get_token=trio.sleep_forever, timeout=0.1) as db:
        subscription = db.realtime.subscribe(collection)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(subscription.__aenter__)
            with trio.fail_after(SECONDS):
                async for status in subscription.status():
                    if status.state is State.OFFLINE:
                        break
            assert "get_token did not return within 0.1 s" in status.reason
            nursery.cancel_scope.cancel()


async def test_a_revoked_key_ends_everything_with_an_error(start_server: StartServer) -> None:
    server = start_server()
    key = server.new_key()
    async with create_client(base_url=server.url, api_key=key["key"]) as db:
        async with db.realtime.subscribe("a") as a, db.realtime.subscribe("b") as b:
            await write(server, "a", range(3))
            await eventually(lambda: len(a._feed.buffer) == 3)
            await trio.to_thread.run_sync(server.cli, "keys", "revoke", key["id"])
            with pytest.raises(PaperDBError) as caught:
                await take(b, 1)
            assert (caught.value.code, caught.value.extra) == ("ACCESS_LOST", {"close_code": 4403})
            assert numbers(await take(a, 3)) == [0, 1, 2]
            for _ in range(2):
                with pytest.raises(PaperDBError, match="API key revoked"):
                    await take(a, 1)
            assert a.status().current.state is State.CLOSED
            assert a.status().current.error is not None
        with pytest.raises(PaperDBError) as caught:
            await db.realtime.subscribe("a").__aenter__()
        assert caught.value.status == 401


async def test_a_plan_that_is_lost_and_found(start_server: StartServer) -> None:
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


async def test_generated_tokens_are_what_was_asked_for(server: Server) -> None:
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


async def test_what_the_applications_token_does_not_cover(server: Server, collection: str) -> None:
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
async def test_an_application_that_has_no_token(server: Server, failure: Exception, status: int) -> None:
    async def get_token() -> str:
        raise failure

    async with create_client(base_url=server.url, get_token=get_token) as db:
        with pytest.raises(PaperDBError) as caught:
            await db.realtime.subscribe("a").__aenter__()
        assert caught.value.status == status
        assert caught.value.code == "MINE" if status == 403 else "TOKEN_UNAVAILABLE"


async def test_an_application_that_is_away_for_a_while(server: Server, collection: str) -> None:
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


def test_what_a_token_says_of_itself() -> None:
    def token(**claims: Any) -> str:
        return f"h.{base64.urlsafe_b64encode(msgspec.json.encode(claims)).decode().rstrip('=')}.s"

    async def main() -> None:
        import time

        now = time.time()
        fine = read_token(token(iat=now, exp=now + 100, collections=["a"]))
        assert 98 < fine.expires - trio.current_time() <= 100
        assert fine.covers(frozenset("a"))
        assert not fine.covers(frozenset("ab"))
        kept = read_token(token(iat=now - 60, exp=now + 40, collections=["*"]))
        assert 38 < kept.expires - trio.current_time() <= 40
        assert kept.covers(frozenset("ab"))
        for skewed in (token(iat=now - 500, exp=now - 400), token(iat=now + 400, exp=now + 500)):
            assert 98 < read_token(skewed).expires - trio.current_time() <= 100
        for opaque in ("x", "a.b.c", token(exp="soon"), token()):
            assert read_token(opaque).expires == float("inf")
            assert read_token(opaque).covers(frozenset("a"))
        assert "secret" not in repr(read_token("secret"))
        assert fine.renew_at(10) == fine.expires - 10
        assert fine.renew_at(200) == pytest.approx(fine.expires - 50, abs=1)

    trio.run(main)
