"""Slow consumers: memory is bounded, others continue, nothing is lost."""

from __future__ import annotations

import msgspec
import pytest
import trio

from paperdb_trio import ConnectionState, create_client
from paperdb_trio.client.buffer import Buffer, Received
from paperdb_trio.client.status import KEPT, StatusBoard, Statuses
from paperdb_trio.client.types import Status
from tests.client.harness import eventually, insert, nothing_more, numbers, proxied, take, write
from tests.conftest import Server


async def test_a_slow_consumer_moves_out_and_misses_nothing(server: Server, collection: str) -> None:
    async with (
        proxied(server) as proxy,
        create_client(base_url=proxy.url, api_key=server.key) as db,
        db.realtime.subscribe(collection, max_events=10) as slow,
        db.realtime.subscribe(collection) as fast,
    ):
        await write(server, collection, range(10))
        assert proxy.websockets == 1  # for both subscriptions
        await write(server, collection, range(10, 500))
        assert numbers(await take(fast, 500)) == list(range(500))
        assert slow._channel.link is not fast._channel.link
        assert len(slow._channel.buffer) == 10
        # A body that waits for another subscription while its own events wait does not hold anything up.
        async with db.realtime.subscribe(collection + "_other") as other:
            await insert(server, collection + "_other", {"n": 0})
            assert numbers(await take(other, 1)) == [0]
        assert numbers(await take(slow, 500)) == list(range(500))
        assert proxy.websockets == 2  # the slow one has its own now
        await write(server, collection, range(500, 502))
        assert numbers(await take(slow, 2)) == [500, 501]
        assert numbers(await take(fast, 2)) == [500, 501]
        await nothing_more(fast, collection, server)


async def test_a_buffer_is_bounded_in_bytes(server: Server, collection: str) -> None:
    async with (
        create_client(base_url=server.url, api_key=server.key) as db,
        db.realtime.subscribe(collection, since=0, max_bytes=200_000) as events,
    ):
        documents = [{"n": n, "text": "x" * 50_000} for n in range(40)]
        await db.collection(collection).insert_bulk(documents)
        await eventually(lambda: len(events._channel.buffer) == 3)
        await trio.testing.wait_all_tasks_blocked(0.1)
        assert events._channel.buffer._bytes <= 200_000
        assert len(events._channel.buffer) == 3
        assert numbers(await take(events, 40)) == list(range(40))


async def test_a_slow_consumer_misses_nothing_when_its_connection_is_lost(
    server: Server, collection: str
) -> None:
    async with (
        proxied(server) as proxy,
        create_client(base_url=proxy.url, api_key=server.key) as db,
        db.realtime.subscribe(collection, since=0, max_events=5) as events,
    ):
        await write(server, collection, range(300))
        assert numbers(await take(events, 100)) == list(range(100))
        proxy.cut()
        assert numbers(await take(events, 200)) == list(range(100, 300))
        await nothing_more(events, collection, server)


def received(seq: int, size: int = 1) -> Received:
    return Received("insert", "a", seq, msgspec.Raw(b"1" * size))


async def test_a_buffer_is_bounded_and_takes_one_that_is_too_large(autojump_clock: object) -> None:
    buffer = Buffer(max_events=2, max_bytes=1000)
    assert buffer.offer(received(1, 5000))
    assert not buffer.offer(received(2))
    put: list[int] = []

    async def fill() -> None:
        for seq in range(2, 6):
            await buffer.put(received(seq))
            put.append(seq)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(fill)
        await trio.testing.wait_all_tasks_blocked()
        assert put == []
        assert (await buffer.take()).seq == 1
        await trio.testing.wait_all_tasks_blocked()
        assert put == [2, 3]
        assert [(await buffer.take()).seq for _ in range(4)] == [2, 3, 4, 5]
    with trio.move_on_after(1) as scope:
        await buffer.take()
    assert scope.cancelled_caught
    buffer.offer(received(6))
    buffer.close(ValueError("end"))
    assert buffer.offer(received(7))
    assert (await buffer.take()).seq == 6
    with pytest.raises(ValueError, match="end"):
        await buffer.take()


async def test_a_watcher_that_is_too_slow_misses_the_oldest(autojump_clock: object) -> None:
    board = StatusBoard(Status(ConnectionState.CONNECTING))
    statuses = board.statuses
    watcher = aiter(statuses)
    assert (await anext(watcher)).state is ConnectionState.CONNECTING
    for n in range(KEPT + 10):
        board.publish(Status(ConnectionState.OFFLINE, str(n)))
        board.publish(Status(ConnectionState.OFFLINE, str(n)))  # the same again is no change
    assert (await anext(watcher)).reason == "10"
    assert [status.reason async for status in _until(statuses, "73")] == ["73"]
    board.end(Status(ConnectionState.CLOSED))
    rest = [status async for status in watcher]
    assert rest[0].reason == "11"
    assert rest[-1].state is ConnectionState.CLOSED
    assert [status.state async for status in statuses] == [ConnectionState.CLOSED]


async def _until(statuses: Statuses, reason: str):  # type: ignore[no-untyped-def]
    async for status in statuses:
        yield status
        if status.reason == reason:
            return
