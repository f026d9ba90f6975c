"""Subscriptions while networks and servers fail: no change is missed or repeated, and all are in order."""

from __future__ import annotations

import random

import pytest
import trio

from paperdb_trio import ConnectionState, PaperDBError, create_client
from paperdb_trio.client import backoff, session
from paperdb_trio.client.link import Link
from tests.client.harness import SECONDS, eventually, insert, nothing_more, numbers, proxied, take, write
from tests.conftest import Server, StartServer


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test's outages are short; so are its waits."""
    monkeypatch.setattr(backoff, "MAX_DELAY", 0.2)


async def test_subscriptions_resume_when_a_killed_server_is_back(start_server: StartServer) -> None:
    server = start_server()
    async with (
        create_client(base_url=server.url, api_key=server.key) as db,
        db.realtime.subscribe("a", "b") as both,
        db.realtime.subscribe("b") as b,
    ):
        for round in range(3):
            first = round * 100
            await write(server, "a", range(first, first + 20))
            taken = await take(both, 10)
            await trio.to_thread.run_sync(server.kill)
            await eventually(lambda: both.status().current.state is ConnectionState.OFFLINE)
            assert "connect" in both.status().current.reason  # the connection was lost, or cannot be made anew
            await trio.to_thread.run_sync(server.start)
            await write(server, "b", range(first + 20, first + 40))
            await write(server, "a", range(first + 40, first + 60))
            taken += await take(both, 50)
            assert numbers(taken) == list(range(first, first + 60))
            assert numbers(await take(b, 20)) == list(range(first + 20, first + 40))
        await nothing_more(b, "b", server)


async def test_the_status_shows_a_restart_of_the_server(start_server: StartServer) -> None:
    server = start_server()
    async with (
        create_client(base_url=server.url, api_key=server.key) as db,
        db.realtime.subscribe("a") as events,
    ):
        assert await trio.to_thread.run_sync(server.stop) == 0
        await eventually(lambda: events.status().current.state is not ConnectionState.LIVE)
        await trio.to_thread.run_sync(server.start)
        await write(server, "a", range(5))
        assert numbers(await take(events, 5)) == list(range(5))


@pytest.mark.parametrize("seed", range(3))
async def test_cuts_in_the_middle_of_frames_lose_nothing(server: Server, collection: str, seed: int) -> None:
    chance = random.Random(seed)
    other = collection + "_other"
    total = 600
    async with proxied(server) as proxy:
        proxy.budget = lambda: chance.uniform(300, 30_000)
        proxy.delay = lambda: chance.choice((0, 0, 0, 0.005))
        client = create_client(base_url=server.url, realtime_url=proxy.url, api_key=server.key)
        async with client as db, trio.open_nursery() as nursery:
            wanted = trio.Event()

            async def consume(
                names: list[str], expected: list[int], task_status: trio.TaskStatus[None]
            ) -> None:
                async with db.realtime.subscribe(*names) as events:
                    task_status.started()
                    taken = await take(events, len(expected), 30)
                    assert numbers(taken) == expected
                    assert [e.seq for e in taken] == sorted({e.seq for e in taken})
                    wanted.set()

            async def pour() -> None:
                for first in range(0, total, 20):
                    name = collection if first % 40 else other
                    documents = [
                        {"n": n, "text": "x" * chance.randrange(400)} for n in range(first, first + 20)
                    ]
                    await db.collection(name).insert_bulk(documents)
                    await trio.sleep(0.005)

            everything = list(range(total))
            await nursery.start(consume, [collection, other], everything)
            await nursery.start(consume, [collection], [n for n in everything if n // 20 % 2])
            await nursery.start(consume, [other], [n for n in everything if not n // 20 % 2])
            await pour()
            # Subscriptions that come during the storm start when they come.
            await wanted.wait()
        assert proxy.cuts > 3


async def test_a_subscription_made_offline_starts_when_it_is_connected(server: Server, collection: str) -> None:
    new = collection + "_new"
    async with proxied(server) as proxy:
        client = create_client(base_url=server.url, realtime_url=proxy.url, api_key=server.key)
        async with (
            client as db,
            trio.open_nursery() as nursery,
            db.realtime.subscribe(collection) as old,
        ):
            await write(server, collection, range(5))
            assert numbers(await take(old, 3)) == [0, 1, 2]
            proxy.accepting = False
            proxy.cut()
            await eventually(lambda: old.status().current.state is ConnectionState.OFFLINE)
            await write(server, new, range(3))
            await write(server, collection, range(5, 10))
            subscription = db.realtime.subscribe(new, collection)
            entered = trio.Event()

            async def enter() -> None:
                async with subscription as events:
                    entered.set()
                    assert numbers(await take(events, 4)) == [20, 21, 22, 23]

            nursery.start_soon(enter)
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert not entered.is_set()
            proxy.accepting = True
            with trio.fail_after(SECONDS):
                await entered.wait()
            await write(server, new, range(20, 22))
            await write(server, collection, range(22, 24))
            assert numbers(await take(old, 9)) == [3, 4, 5, 6, 7, 8, 9, 22, 23]
            await nothing_more(old, collection, server)


async def test_a_subscription_added_just_before_a_cut_starts_where_it_was_added(
    server: Server, collection: str
) -> None:
    """It does not get what was written before it, even if the server sends that again."""
    new = collection + "_new"
    async with proxied(server) as proxy:
        client = create_client(base_url=server.url, realtime_url=proxy.url, api_key=server.key)
        async with client as db, db.realtime.subscribe(collection) as old:
            await write(server, new, range(3))
            async with db.realtime.subscribe(new) as events:
                proxy.cut()
                await write(server, new, range(3, 6))
                await write(server, collection, range(6, 8))
                assert numbers(await take(events, 3)) == [3, 4, 5]
                assert numbers(await take(old, 2)) == [6, 7]


async def test_a_half_open_connection_is_noticed(
    server: Server, collection: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "PING_SECONDS", 0.1)
    monkeypatch.setattr(session, "PONG_SECONDS", 0.2)
    async with proxied(server) as proxy:
        client = create_client(base_url=server.url, realtime_url=proxy.url, api_key=server.key)
        async with client as db, db.realtime.subscribe(collection) as events:
            proxy.stalled = True
            await write(server, collection, range(3))
            await eventually(lambda: events.status().current.state is not ConnectionState.LIVE)
            proxy.stalled = False
            proxy.cut()  # the next attempt too, if it came while the proxy was still stalled
            assert numbers(await take(events, 3)) == [0, 1, 2]


async def test_entering_waits_for_a_server_that_is_not_there_yet(server: Server, collection: str) -> None:
    async with proxied(server) as proxy:
        proxy.accepting = False
        async with create_client(base_url=proxy.url, api_key=server.key) as db:
            with trio.move_on_after(0.3) as patience:
                async with db.realtime.subscribe(collection):
                    raise AssertionError
            assert patience.cancelled_caught
            subscription = db.realtime.subscribe(collection)
            async with trio.open_nursery() as nursery:

                async def serve_later() -> None:
                    async for status in subscription.status():
                        if status.state is ConnectionState.OFFLINE:
                            assert "NETWORK" in status.reason
                            assert status.retry_in is not None
                            break
                    proxy.accepting = True

                nursery.start_soon(serve_later)
                with trio.fail_after(SECONDS):
                    async with subscription as events:
                        document = await insert(server, collection, {})
                        assert (await take(events, 1))[0].data == document


async def test_a_restart_resumes_from_a_stored_cursor(server: Server, collection: str) -> None:
    cursor = None
    taken: list[int] = []
    for _ in range(4):
        async with (
            create_client(base_url=server.url, api_key=server.key) as db,
            db.realtime.subscribe(collection, since=cursor) as events,
        ):
            if cursor is None:
                await write(server, collection, range(20))
            got = await take(events, 5)
            taken += numbers(got)
            cursor = got[-1].seq
    assert taken == list(range(20))


async def test_a_gap_is_raised_only_where_it_is_wanted(start_server: StartServer) -> None:
    from paperdb_trio import GapError

    server = start_server("--retention-count", "10", "--retention-age", "0")
    async with proxied(server) as proxy:
        client = create_client(base_url=server.url, realtime_url=proxy.url, api_key=server.key)
        async with (
            client as db,
            db.realtime.subscribe("a") as strict,
            db.realtime.subscribe("a", on_gap="continue") as easy,
        ):
            await write(server, "a", range(3))
            assert numbers(await take(strict, 2)) == [0, 1]
            proxy.accepting = False
            proxy.cut()
            await write(server, "a", range(3, 300))
            await trimmed(server, 200)
            proxy.accepting = True
            assert numbers(await take(strict, 1)) == [2]
            for _ in range(2):
                with pytest.raises(GapError, match="subscribe anew") as caught:
                    await take(strict, 1)
            assert caught.value.since == 3
            assert caught.value.oldest > 200
            assert (caught.value.status, caught.value.code) == (410, "CURSOR_EXPIRED")
            assert strict.status().current.state is ConnectionState.CLOSED
            await eventually(lambda: easy.status().current.state is ConnectionState.LIVE)
            await write(server, "a", range(300, 302))
            assert numbers(await take(easy, 5)) == [0, 1, 2, 300, 301]
            with pytest.raises(GapError):
                async with db.realtime.subscribe("a", since=1) as events:
                    await take(events, 1)


async def test_a_quiet_collection_does_not_age_out_while_connected(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log has moved on, but no change of this collection was missed: the lost connection is not a gap."""
    monkeypatch.setattr(session, "PING_SECONDS", 0.05)
    monkeypatch.setattr(session, "PONG_SECONDS", 2)  # a busy machine may take a while
    # Not by age: the change that comes during the outage must stay until the client is back.
    server = start_server("--retention-count", "10")
    async with proxied(server) as proxy:
        client = create_client(base_url=server.url, realtime_url=proxy.url, api_key=server.key)
        async with client as db, db.realtime.subscribe("quiet") as events:
            await write(server, "busy", range(300))
            await trimmed(server, 200)
            link = events._channel.link
            assert isinstance(link, Link)
            await eventually(lambda: link.cursor == 300)
            proxy.cut()
            await write(server, "quiet", range(1))
            assert numbers(await take(events, 1)) == [0]
            assert proxy.websockets == 2


async def trimmed(server: Server, seq: int) -> None:
    """Wait until retention has removed everything up to `seq`."""

    def status() -> int:
        return server.request("GET", f"/a/changes?since={seq}&limit=1").status_code

    with trio.fail_after(SECONDS):
        while await trio.to_thread.run_sync(status) != 410:
            await trio.sleep(0.05)


async def test_failed_writes_are_not_events(server: Server, collection: str) -> None:
    async with (
        create_client(base_url=server.url, api_key=server.key) as db,
        db.realtime.subscribe(collection) as events,
    ):
        await db.collection(collection).insert({"key": "x"})
        with pytest.raises(PaperDBError):
            await db.collection(collection).insert({"key": "x"})
        await take(events, 1)
        await nothing_more(events, collection, server)
