"""Tokens that expire: renewal in place, and its failures. None of them costs an event, runs hot, or gives up on
what passes by itself."""

from __future__ import annotations

import base64
import itertools
import math
import time
from collections import Counter
from functools import partial
from typing import Any

import jwt
import msgspec
import pytest
import trio

from paperdb_trio import ConnectionState, PaperDBError, create_client
from paperdb_trio.client import backoff, token
from paperdb_trio.client.token import Token, read_token
from tests.client.harness import (
    SECONDS,
    Peer,
    eventually,
    faked,
    nothing_more,
    numbers,
    proxied,
    renew_soon,
    short_token,
    take,
    write,
)
from tests.conftest import Server


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
            assert events.status().current.state is ConnectionState.LIVE
        assert took > 2 * 0.4 - 0.1  # the first at once, the others when the one before has 3.6 s left
        assert proxy.websockets == 1


async def test_a_minted_token_is_renewed_before_its_end(server: Server, collection: str) -> None:
    async with proxied(server) as proxy:
        client = create_client(base_url=proxy.url, api_key=server.key, token_seconds=30, renewal_margin=29.7)
        async with client as db, db.realtime.subscribe(collection) as events:
            tokens = set()
            for _ in range(2):
                first = db._links._tokens._last
                tokens.add(first)
                await eventually(partial(lambda first: db._links._tokens._last is not first, first))
            assert len(tokens) == 2
            await nothing_more(events, collection, server)
        assert proxy.websockets == 1


async def test_a_token_that_expires_in_use_is_replaced(
    server: Server, collection: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Token, "renew_at", lambda *_: math.inf)  # as if its end were unknown

    async def get_token() -> str:
        return short_token(server, collection, seconds=3)  # must outlast the pauses of a slow machine

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
async def test_a_token_refused_only_for_its_time_is_asked_for_again(
    server: Server, collection: str, issued: float, ends: float, reason: str
) -> None:
    """The server's clock was set, and the application keeps its tokens. It is asked less and less often, until
    it has another one; the status says what is wrong."""
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
                refused = [s for s in subscription.status()._board.kept if s.state is ConnectionState.OFFLINE]
                assert reason in refused[0].reason
                assert refused[0].retry_in is not None
                tokens.append(short_token(server, collection, seconds=60))

            with trio.fail_after(SECONDS):
                async with subscription as events:
                    await nothing_more(events, collection, server)


async def test_an_expired_token_is_replaced_before_it_is_used(server: Server, collection: str) -> None:
    """A token that was good before is replaced at once."""
    async with create_client(base_url=server.url, api_key=server.key) as db:
        db._links._tokens._last = read_token(short_token(server, collection, seconds=-5))
        subscription = db.realtime.subscribe(collection)
        async with subscription:
            pass
        assert ConnectionState.OFFLINE not in {status.state for status in subscription.status()._board.kept}


async def test_a_wrong_clock_does_not_renew_without_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next token is not asked for before a pause, whatever this machine's clock says about the last one."""
    now = time.time()
    trio_now = trio.current_time()
    for ahead in (-900, -30, 0, 14.5 * 60, 899.9, 900, 5000):
        monkeypatch.setattr("paperdb_trio.client.token.time.time", lambda ahead=ahead: now + ahead)
        for lifetime in (1, 30, 60, 900):
            claims = {"iat": now, "exp": now + lifetime, "collections": ["a"]}
            for margin in (0, 60, 1000):
                renewed = read_token(jwt.encode(claims, "0" * 32, "HS256")).renew_at(margin)
                assert renewed >= trio_now + token.RENEWAL_PAUSE


async def test_a_get_token_that_never_returns_is_tried_again(
    server: Server, collection: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """During a renewal: it is called again, the status shows it, collections that the present token covers are
    subscribed at once, and no subscription is held up."""
    renew_soon(monkeypatch)
    other = collection + "_other"
    hanging, cancelled = False, 0
    tokens = (server.token(collection, other, expiresIn=30) for _ in itertools.count())

    async def get_token() -> str:
        nonlocal cancelled
        if hanging:
            try:
                await trio.sleep_forever()
            finally:
                cancelled += 1
        return next(tokens)

    client = create_client(base_url=server.url, get_token=get_token, timeout=0.2)
    async with client as db, db.realtime.subscribe(collection) as events:
        hanging = True
        await eventually(lambda: "get_token did not return within 0.2 s" in events.status().current.reason)
        assert events.status().current.state is ConnectionState.LIVE
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
        assert events.status().current.state is ConnectionState.LIVE


async def test_a_renewal_that_fails_for_good_is_shown_and_the_old_token_is_used_up(
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
        assert events.status().current.state is ConnectionState.LIVE
        await write(server, collection, range(1))
        assert numbers(await take(events, 1)) == [0]
        with pytest.raises(PaperDBError, match="logged out"):
            await take(events, 1)


async def test_a_first_token_that_never_comes_is_shown(server: Server, collection: str) -> None:
    async with create_client(base_url=server.url, get_token=trio.sleep_forever, timeout=0.1) as db:
        subscription = db.realtime.subscribe(collection)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(subscription.__aenter__)
            with trio.fail_after(SECONDS):
                async for status in subscription.status():
                    if status.state is ConnectionState.OFFLINE:
                        break
            assert "get_token did not return within 0.1 s" in status.reason
            nursery.cancel_scope.cancel()


def test_what_a_token_says_about_itself() -> None:
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


async def test_a_renewal_that_is_refused_leads_to_a_new_connection(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    renew_soon(monkeypatch)

    async def script(peer: Peer) -> None:
        await peer.say(type="ready", seq=10)
        asked = await peer.heard("auth")
        await peer.say(type="error", ref=asked["ref"], code="INVALID_TOKEN", message="no")
        await peer.closed()

    tokens = (server.token("a", expiresIn=30 + n) for n in itertools.count())

    async def get_token() -> str:
        return next(tokens)

    async with (
        faked(script, continuing_at_10) as fake,
        create_client(base_url=fake.url, get_token=get_token) as db,
        db.realtime.subscribe("a") as events,
    ):
        assert numbers(await take(events, 1)) == [1]
        assert fake.peers[0].authorization != fake.peers[1].authorization


async def test_a_renewal_refused_only_for_its_time_is_tried_again_in_place(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the old token covers continues meanwhile, and the status shows the refusal."""
    renew_soon(monkeypatch)

    async def script(peer: Peer) -> None:
        await peer.say(type="ready", seq=10)
        for n, why in enumerate(("the token is not yet valid", "the token has expired")):
            asked = await peer.heard("auth")
            await peer.event(11 + n, n=n)
            await peer.say(type="error", ref=asked["ref"], code="TOKEN_EXPIRED", message=why)
        await peer.authenticated()
        await peer.event(13, n=2)
        await peer.closed()

    tokens = (server.token("a", expiresIn=30 + n) for n in itertools.count())

    async def get_token() -> str:
        return next(tokens)

    async with (
        faked(script) as fake,
        create_client(base_url=fake.url, get_token=get_token) as db,
        db.realtime.subscribe("a") as events,
    ):
        assert numbers(await take(events, 3)) == [0, 1, 2]
        assert len(fake.peers) == 1
        kept = events.status()._board.kept

        def is_over() -> bool:
            """It was shown, and then that it is over. On a busy machine the next renewal has begun since."""
            reasons = [status.reason for status in kept if status.state is ConnectionState.LIVE]
            shown = [at for at, reason in enumerate(reasons) if "the token has expired" in reason]
            return bool(shown) and "" in reasons[shown[-1] :]

        await eventually(is_over)


async def continuing_at_10(peer: Peer) -> None:
    await peer.say(type="ready", seq=10)
    await peer.event(11, n=1)
    await peer.closed()
