"""What a real server hardly ever does: every close code, odd messages, replies with more in them."""

from __future__ import annotations

import pytest
import trio
from trio_websocket import WebSocketRequest

from paperdb_trio import ConnectionState, GapError, PaperDBError, create_client
from paperdb_trio.client import backoff, link, session
from tests.client.harness import FakeServer, Peer, Script, any_token, eventually, faked, numbers, take


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backoff, "MAX_DELAY", 0.1)


async def quiet(peer: Peer) -> None:
    await peer.say(type="ready", seq=10)
    await peer.closed()


def closing(code: int) -> Script:
    async def script(peer: Peer) -> None:
        await peer.say(type="ready", seq=10)
        await peer.event(11, n=1)
        await peer.ws.aclose(code, "because")

    return script


async def continuing(peer: Peer) -> None:
    assert "since=11&" in peer.path
    await peer.say(type="ready", seq=12)
    await peer.event(12, n=2)
    await peer.event(12, n=99)
    await peer.event(5, n=99)
    await peer.event(13, n=3)
    await peer.closed()


@pytest.mark.parametrize("code", [1000, 1001, 1011, 1012, 1013, 4000, 4399, 4401, 4408, 4410])
async def test_close_codes_after_which_it_reconnects(code: int) -> None:
    async with (
        faked(closing(code), continuing) as fake,
        create_client(base_url=fake.url, get_token=any_token) as db,
        db.realtime.subscribe("a") as events,
    ):
        assert numbers(await take(events, 3)) == [1, 2, 3]
        assert len(fake.peers) == 2


@pytest.mark.parametrize("code", [1002, 1003, 1007, 1009, 4400, 4403, 4409, 4499])
async def test_close_codes_after_which_it_stops(code: int) -> None:
    async with (
        faked(closing(code)) as fake,
        create_client(base_url=fake.url, get_token=any_token) as db,
        db.realtime.subscribe("a") as events,
    ):
        assert numbers(await take(events, 1)) == [1]
        with pytest.raises(PaperDBError, match="because") as caught:
            await take(events, 1)
        assert caught.value.extra == {"close_code": code}
        assert len(fake.peers) == 1


async def test_a_subscription_begins_at_the_seq_of_its_reply() -> None:
    """Earlier changes are not delivered twice, and the connection is not made anew."""

    async def script(peer: Peer) -> None:
        await peer.say(type="ready", seq=10)
        await peer.event(11, "a", n=1)
        first = await peer.heard("subscribe")
        assert first["collection"] == "b"
        await peer.event(12, "a", n=2)
        await peer.say(type="subscribed", ref=first["ref"], collection="b", seq=14)
        await peer.event(13, "a", n=3)
        await peer.event(14, "b", n=4)
        await peer.event(15, "b", n=5)
        await peer.subscribed(17)
        await peer.event(17, "a", n=6)
        await peer.event(18, "a", n=7)
        assert (await peer.heard("unsubscribe"))["collection"] == "b"
        await peer.ws.aclose(1012)

    async def then(peer: Peer) -> None:
        assert "since=18&" in peer.path
        assert "collections=a" in peer.path
        await peer.say(type="ready", seq=18)
        await peer.closed()

    async with (
        faked(script, then) as fake,
        create_client(base_url=fake.url, get_token=any_token) as db,
        db.realtime.subscribe("a") as a,
    ):
        async with db.realtime.subscribe("b") as b:
            assert numbers(await take(b, 1)) == [5]
            async with db.realtime.subscribe("a") as again:
                assert numbers(await take(again, 1)) == [7]
                assert numbers(await take(a, 5)) == [1, 2, 3, 6, 7]
                assert len(fake.peers) == 1
        await eventually(lambda: len(fake.peers) == 2)


async def test_several_collections_begin_at_the_latest_seq_of_their_replies() -> None:
    """The server sends changes of the one only after its seq, and may not have come as far with the other."""

    async def script(peer: Peer) -> None:
        await peer.say(type="ready", seq=10)
        asked = [await peer.heard("subscribe") for _ in range(2)]
        for message, seq in zip(asked, (14, 12), strict=True):
            await peer.say(type="subscribed", ref=message["ref"], collection=message["collection"], seq=seq)
        await peer.event(13, asked[1]["collection"], n=1)
        await peer.event(15, asked[0]["collection"], n=2)
        await peer.event(16, asked[1]["collection"], n=3)
        await quiet(peer)

    async with (
        faked(script) as fake,
        create_client(base_url=fake.url, get_token=any_token) as db,
        db.realtime.subscribe("a"),
        db.realtime.subscribe("b", "c") as events,
    ):
        assert numbers(await take(events, 2)) == [2, 3]


async def test_a_pong_advances_the_cursor() -> None:
    """The cursor of a quiet collection in a busy database must not age out of the log."""

    async def script(peer: Peer) -> None:
        await peer.say(type="ready", seq=500)
        await peer.heard("ping")
        await peer.say(type="pong", seq=600)
        await peer.ws.aclose(1012)

    async def then(peer: Peer) -> None:
        assert "since=600&" in peer.path
        await quiet(peer)

    async with (
        faked(script, then) as fake,
        create_client(base_url=fake.url, get_token=any_token) as db,
        db.realtime.subscribe("a", since=100) as events,
    ):
        with trio.fail_after(5):
            async for status in events.status():
                if status.state is ConnectionState.LIVE:
                    break
        await eventually(lambda: len(fake.peers) == 2)


async def test_a_refusal_on_a_live_connection_ends_only_the_subscription_that_asked() -> None:
    async def script(peer: Peer) -> None:
        await peer.say(type="ready", seq=10)
        asked = await peer.heard("subscribe")
        await peer.say(type="error", ref=asked["ref"], code="NOT_IN_TOKEN", message="not b")
        await peer.event(11, n=1)
        await peer.closed()

    async with (
        faked(script) as fake,
        create_client(base_url=fake.url, get_token=any_token) as db,
        db.realtime.subscribe("a") as events,
    ):
        with pytest.raises(PaperDBError, match="not b") as caught:
            await db.realtime.subscribe("b").__aenter__()
        assert caught.value.status == 403
        assert numbers(await take(events, 1)) == [1]


async def test_leaving_while_connecting_does_not_move_the_others_cursor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Found by a soak test: the cursor of the subscriptions that stay must not jump to the head."""
    # Otherwise its first delay may be over before "b" has come.
    monkeypatch.setattr("paperdb_trio.client.backoff.random.uniform", lambda low, high: high)
    left = trio.Event()

    async def offline_then(peer: Peer) -> None:
        assert "since=11&collections=a%2Cb" in peer.path
        await left.wait()
        await peer.say(type="ready", seq=20)
        await peer.event(15, n=2)
        await peer.closed()

    async with (
        faked(closing(1012), offline_then) as fake,
        create_client(base_url=fake.url, get_token=any_token) as db,
        db.realtime.subscribe("a") as events,
    ):
        await eventually(lambda: events.status().current.state is ConnectionState.OFFLINE)
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(db.realtime.subscribe("b").__aenter__)
                await eventually(lambda: len(fake.peers) == 2)
                scope.cancel()
        left.set()
        assert numbers(await take(events, 2)) == [1, 2]


async def test_a_gap_ends_only_the_subscriptions_that_have_it() -> None:
    async def script(peer: Peer) -> None:
        await peer.say(type="ready", seq=10)
        await peer.subscribed(50)
        await peer.ws.aclose(4410)

    async def gap(peer: Peer) -> None:
        assert "since=10&collections=a%2Cb" in peer.path
        await peer.say(type="ready", seq=60)
        await peer.say(type="gap", since=10, oldest=40)
        await peer.closed()

    async def rest(peer: Peer) -> None:
        assert "since=50&collections=b" in peer.path
        await peer.say(type="ready", seq=60)
        await peer.event(55, "b", n=1)
        await peer.closed()

    async with (
        faked(script, gap, rest) as fake,
        create_client(base_url=fake.url, get_token=any_token) as db,
        db.realtime.subscribe("a") as a,
        db.realtime.subscribe("b") as b,
    ):
        with pytest.raises(GapError) as caught:
            await take(a, 1)
        assert (caught.value.since, caught.value.oldest) == (10, 40)
        assert numbers(await take(b, 1)) == [1]


async def test_a_restored_database_is_a_gap() -> None:
    async def gap(peer: Peer) -> None:
        await peer.say(type="ready", seq=5)
        await peer.say(type="gap", since=11, oldest=1)
        await peer.event(6, n=6)
        await peer.ws.aclose(1012)

    async def rest(peer: Peer) -> None:
        assert "since=6&" in peer.path
        await quiet(peer)

    async with (
        faked(closing(1012), gap, rest) as fake,
        create_client(base_url=fake.url, get_token=any_token) as db,
        db.realtime.subscribe("a", on_gap="continue") as events,
    ):
        states = []

        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def watch() -> None:
                async for status in events.status():
                    states.append(status.state)

            assert numbers(await take(events, 2)) == [1, 6]
            await eventually(lambda: len(fake.peers) == 3)
            nursery.cancel_scope.cancel()
        assert ConnectionState.GAP in states
        assert ConnectionState.LIVE in states[states.index(ConnectionState.GAP) :]


async def garbage(peer: Peer) -> None:
    await peer.ws.send_message("no json")
    await peer.closed()


async def array(peer: Peer) -> None:
    await peer.ws.send_message("[]")
    await peer.closed()


async def unready(peer: Peer) -> None:
    await peer.event(1)
    await peer.closed()


async def mute(peer: Peer) -> None:
    await peer.closed()


@pytest.mark.parametrize("script", [garbage, array, unready, mute])
async def test_a_server_that_sends_nonsense_is_tried_again(
    script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "READY_SECONDS", 0.2)
    async with (
        faked(script, script, quiet) as fake,
        create_client(base_url=fake.url, get_token=any_token) as db,
        db.realtime.subscribe("a") as events,
    ):
        assert events.status().current.state is ConnectionState.LIVE
        assert len(fake.peers) >= 3  # a busy machine may not be ready in time either


async def test_a_server_without_the_subprotocol_is_given_up() -> None:
    async def accept_plainly(self: FakeServer, request: WebSocketRequest) -> None:
        ws = await request.accept()
        await self_closed(Peer(ws, request))

    async def self_closed(peer: Peer) -> None:
        await peer.closed()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FakeServer, "handle", accept_plainly)
        async with faked(quiet) as fake, create_client(base_url=fake.url, get_token=any_token) as db:
            with pytest.raises(PaperDBError, match=r"does not speak paperdb\.v1"):
                await db.realtime.subscribe("a").__aenter__()


async def test_a_peer_that_goes_away_during_the_handshake_is_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    attempts = 0

    async def hang_up(stream: trio.SocketStream) -> None:
        nonlocal attempts
        await stream.receive_some(10)
        attempts += 1
        await stream.aclose()

    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, hang_up, listeners)
        url = f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        async with create_client(base_url=url, get_token=any_token) as db:
            subscription = db.realtime.subscribe("a")
            async with trio.open_nursery() as inner:
                inner.start_soon(subscription.__aenter__)
                with trio.fail_after(5):
                    while attempts < 3:
                        await trio.sleep(0.01)
                assert "handshake" in next(
                    status.reason
                    for status in subscription.status()._board.kept
                    if status.state is ConnectionState.OFFLINE
                )
                inner.cancel_scope.cancel()
        nursery.cancel_scope.cancel()


async def test_delays_grow_with_full_jitter_until_a_connection_has_lasted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A connection that ends as soon as it has begun is one more failure."""
    asked: list[tuple[float, float]] = []

    def uniform(low: float, high: float) -> float:
        asked.append((low, high))
        return 0.0

    monkeypatch.setattr(backoff, "MAX_DELAY", 15.0)
    monkeypatch.setattr("paperdb_trio.client.backoff.random.uniform", uniform)

    async def good(peer: Peer) -> None:
        await peer.say(type="ready", seq=10)
        monkeypatch.setattr(link, "GOOD_SECONDS", 0.0)  # it has lasted
        await peer.ws.aclose(1012)

    async def bad(peer: Peer) -> None:
        monkeypatch.setattr(link, "GOOD_SECONDS", 60.0)
        await garbage(peer)

    async with (
        faked(bad, *[closing(1012)] * 3, *[garbage] * 4, good, bad, quiet) as fake,
        create_client(base_url=fake.url, get_token=any_token) as db,
        db.realtime.subscribe("a"),
    ):
        await eventually(lambda: len(fake.peers) == 11)
    assert [high for _, high in asked] == [0.25, 0.5, 1, 2, 4, 8, 15, 15, 0.25, 0.5]
    assert {low for low, _ in asked} == {0}
