"""Resets of a renewal with other rules, at moments that a real server meets by chance."""

from __future__ import annotations

import itertools
import time

import jwt
import pytest

from paperdb_trio import ConnectionState, create_client
from paperdb_trio.client import backoff
from paperdb_trio.client.token import SPARE
from tests.client.harness import Peer, faked, numbers, renew_soon, take


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backoff, "MAX_DELAY", 0.1)


@pytest.mark.parametrize(("owner", "expected"), [(1, [[10], [20]]), (0, [[10, 20], [20]])])
async def test_each_gap_is_told_although_the_connection_is_lost_between_two_resets(
    monkeypatch: pytest.MonkeyPatch, owner: int, expected: list[list[int]]
) -> None:
    """The server follows one collection after another under the new rule. The events of the first have brought
    the cursor beyond changes of the second. `owner`: the next connection's rule, the new or the old one."""
    renew_soon(monkeypatch)
    owners = itertools.chain([0, 1], itertools.repeat(owner))

    async def get_token() -> str:
        rule = {"filter": {"owner": next(owners)}}
        now = time.time()
        claims = {"iat": now, "exp": now + SPARE, "collections": {"a": rule, "b": rule}}
        return jwt.encode(claims, "0" * 32, "HS256")

    async def script(peer: Peer) -> None:
        await peer.say(type="ready", seq=10)
        await peer.subscribed(10, query="b0")
        await peer.authenticated()
        await peer.say(type="reset", query="a0", collection="a", reason="rule", seq=10, becomes="a1")
        await peer.event(15, "a", n=1)  # before it, there was a change of "b"
        await peer.ws.aclose(1012)

    async def then(peer: Peer) -> None:
        assert "since=15" in peer.path
        await peer.say(type="ready", seq=20)
        await peer.event(21, "b", n=2)
        await peer.closed()

    async with (
        faked(script, then) as fake,
        create_client(base_url=fake.url, get_token=get_token) as db,
        db.realtime.subscribe("a", on_gap="continue") as a,
        db.realtime.subscribe("b", on_gap="continue") as b,
    ):
        assert numbers(await take(a, 1)) == [1]
        assert numbers(await take(b, 1)) == [2]
        gaps = [[s.cursor for s in x.status()._board.kept if s.state is ConnectionState.GAP] for x in (a, b)]
        assert gaps == expected
