"""Renewals at moments that a real server meets by chance."""

from __future__ import annotations

import itertools
import time

import jwt
import pytest
import trio
import trio.testing

from paperdb_trio import create_client
from tests.client.harness import Peer, faked, numbers, renew_soon, take


def token_for(*collections: str) -> str:
    """For fake servers, which do not verify it."""
    now = time.time()
    claims = {"iat": now, "exp": now + 900, "jti": str(now), "collections": collections}
    return jwt.encode(claims, "0" * 32, "HS256")


async def test_what_only_the_old_token_covers_is_not_asked_for_while_another_is_offered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The server goes by the new one before the client hears of that, and would refuse what it may not see."""
    renew_soon(monkeypatch)
    covered = itertools.chain(["ab", "a"], itertools.repeat("ab"))
    offered, added = trio.Event(), trio.Event()

    async def get_token() -> str:
        return token_for(*next(covered))

    async def script(peer: Peer) -> None:
        await peer.say(type="ready", seq=10)
        asked = await peer.heard("auth")
        offered.set()
        await added.wait()
        await peer.say(type="authenticated", ref=asked["ref"])
        await peer.authenticated()
        await peer.subscribed(10)
        await peer.event(11, n=1)
        await peer.closed()

    async with (
        faked(script) as fake,
        create_client(base_url=fake.url, get_token=get_token) as db,
        db.realtime.subscribe("a") as events,
        trio.open_nursery() as nursery,
    ):
        await offered.wait()
        nursery.start_soon(db.realtime.subscribe("b").__aenter__)
        await trio.testing.wait_all_tasks_blocked(0.05)
        added.set()
        assert numbers(await take(events, 1)) == [1]


async def test_a_renewal_leaves_no_collection_that_has_been_left_already(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It would end a subscription that began in between."""
    renew_soon(monkeypatch)
    renewing, given = trio.Event(), trio.Event()
    asked = itertools.count()

    async def get_token() -> str:
        if next(asked) == 1:
            renewing.set()
            await given.wait()
        return token_for("a", "b", "c")

    async def script(peer: Peer) -> None:
        await peer.say(type="ready", seq=10)
        await peer.subscribed(10)
        await peer.subscribed(10)
        left = [(await peer.heard("unsubscribe"))["collection"] for _ in "bc"]
        assert sorted(left) == ["b", "c"]
        await peer.authenticated()
        await peer.event(11, n=1)
        await peer.heard("auth")
        await peer.closed()

    async with (
        faked(script) as fake,
        create_client(base_url=fake.url, get_token=get_token) as db,
        db.realtime.subscribe("a") as events,
    ):
        async with db.realtime.subscribe("b"), db.realtime.subscribe("c"):
            await renewing.wait()
            given.set()  # both are left before the token is here
        assert numbers(await take(events, 1)) == [1]
        assert len(fake.peers) == 1
