"""A subscriber's replies, failures and cancellation: what is written stays in order; what ends one subscriber
ends no other and leaves nothing behind."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from paperdb_trio.delivery.states import SubscriberState
from paperdb_trio.delivery.subscriber import Subscriber
from paperdb_trio.net.frames import text_frame
from tests.delivery.fakes import FakeSink, World, payloads


@pytest.fixture
async def world(nursery: trio.Nursery) -> World:
    return World(nursery)


# --- post ----------------------------------------------------------------------------------------


async def test_a_reply_goes_behind_queued_events(world: World, nursery: trio.Nursery) -> None:
    sink = FakeSink()
    subscriber = world.subscriber(sink)
    subscriber.start(0)
    nursery.start_soon(world.hub.run)
    await subscriber.post(text_frame(b"first"))
    assert payloads(sink.data) == [b"first"]
    sink.block()
    world.commit("a")
    await wait_all_tasks_blocked()
    await subscriber.post(text_frame(b"second"))
    world.commit("a")
    await wait_all_tasks_blocked()
    sink.unblock()
    await wait_all_tasks_blocked()
    one, two = world.events()
    assert payloads(sink.data) == [b"first", one, b"second", two]


async def test_a_reply_waits_while_the_queue_is_full_and_can_be_given_up(
    autojump_clock: MockClock, world: World, nursery: trio.Nursery
) -> None:
    sink = FakeSink()
    subscriber = world.subscriber(sink, queue_events=2)
    subscriber.start(0)
    nursery.start_soon(world.hub.run)
    sink.block()
    await world.commit_each(6, "a")
    with trio.move_on_after(1) as scope:
        for _ in range(5):
            await subscriber.post(text_frame(b"given up or not"))
    assert scope.cancelled_caught
    sink.unblock()
    await wait_all_tasks_blocked()
    got = payloads(sink.data)
    assert [item for item in got if item != b"given up or not"] == world.events()
    assert subscriber.state is SubscriberState.LIVE
    pushed = sink.pushed
    world.commit("a")
    await wait_all_tasks_blocked()
    assert sink.pushed == pushed + 1  # the queue's count is right again


async def test_replies_to_a_peer_that_does_not_read_are_bounded_in_bytes(
    autojump_clock: MockClock, world: World, nursery: trio.Nursery
) -> None:
    """A thousand replies that echo as much as they may are two megabytes."""
    sink = FakeSink()
    subscriber = world.subscriber(sink, queue_bytes=10_000)
    subscriber.start(0)
    sink.block()
    posted = 0
    with trio.move_on_after(1):
        while posted < 1000:
            await subscriber.post(text_frame(b"x" * 1000))
            posted += 1
    assert posted < 15
    sink.unblock()
    await wait_all_tasks_blocked()
    assert payloads(sink.data) == [b"x" * 1000] * posted
    await subscriber.post(text_frame(b"goes on"))
    assert payloads(sink.data)[-1] == b"goes on"


# --- failures and cancellation -------------------------------------------------------------------


async def test_a_broken_sink_ends_its_subscriber_and_no_other(world: World, nursery: trio.Nursery) -> None:
    broken, good = FakeSink(), FakeSink()
    victim = world.subscriber(broken)
    victim.start(0)
    world.subscriber(good).start(0)
    broken.broken = True
    nursery.start_soon(world.hub.run)
    world.commit("a")
    await wait_all_tasks_blocked()
    assert victim.state is SubscriberState.CLOSED
    await victim.run()
    assert payloads(good.data) == world.events()


async def test_a_sink_that_breaks_while_it_catches_up_fails_its_task_and_closes_it() -> None:
    world = World()
    world.commit("a")
    sink = FakeSink()
    sink.broken = True
    subscriber = world.subscriber(sink)
    subscriber.start(0)
    with pytest.raises(trio.BrokenResourceError):
        await subscriber.run()
    assert subscriber.state is SubscriberState.CLOSED


@pytest.mark.parametrize("position", [0, 1], ids=["catching up", "live"])
async def test_a_task_that_is_cancelled_leaves_it_closed(nursery: trio.Nursery, position: int) -> None:
    """No other task would write what is queued. The hub must not go on offering."""
    world = World()
    world.commit("a")
    world.log.gate = trio.Event()
    sink = FakeSink()
    sink.block()
    subscriber = world.subscriber(sink)
    subscriber.start(position)
    nursery.start_soon(world.hub.run)
    world.commit("a")
    await wait_all_tasks_blocked()
    with trio.CancelScope() as scope:
        scope.cancel()
        await subscriber.run()
    assert subscriber.state is SubscriberState.CLOSED
    assert world.is_forgotten()


async def catching_up(world: World, sink: FakeSink, subscriber: Subscriber) -> None:
    world.log.rows = 2
    if subscriber.state is SubscriberState.NEW:
        subscriber.start(0)
    await trio.lowlevel.checkpoint()


async def queued(world: World, sink: FakeSink, subscriber: Subscriber) -> None:
    if subscriber.state is SubscriberState.NEW:
        subscriber.start(world.log.head)
    sink.block()
    for _ in range(4):
        world.commit("a")
    for _ in range(3):
        await trio.lowlevel.checkpoint()
    sink.unblock()


@pytest.mark.parametrize("scene", [catching_up, queued])
async def test_it_can_be_cancelled_at_every_checkpoint(
    autojump_clock: MockClock, scene: Callable[[World, FakeSink, Subscriber], Awaitable[None]]
) -> None:
    """It ends, and the hub forgets it. Its sink has got a prefix; the last frame may be cut."""
    finished = 0
    for ticks in range(60):
        async with trio.open_nursery() as others:
            async with trio.open_nursery() as nursery:
                world = World(nursery)
                for _ in range(8):
                    world.commit("a")
                sink = FakeSink()
                subscriber = world.subscriber(sink, queue_events=3)
                start = 0 if scene is catching_up else world.log.head
                others.start_soon(world.hub.run)
                await wait_all_tasks_blocked()
                others.start_soon(scene, world, sink, subscriber)
                for _ in range(ticks):
                    await trio.lowlevel.checkpoint()
                nursery.cancel_scope.cancel()
                subscriber.close()
            await wait_all_tasks_blocked()
            others.cancel_scope.cancel()
        assert world.is_forgotten()
        assert world.errors == []
        expected = b"".join(text_frame(event) for event in world.events(after=start))
        assert expected.startswith(bytes(sink.data))
        finished += bytes(sink.data) == expected
    assert 0 < finished < 60  # the last ones were cancelled when all was done
