"""One subscriber, without a socket: it gives its sink every change once and in order, while its sink blocks,
its queue fills and the hub is in the middle of a publish."""

from __future__ import annotations

import weakref

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from paperdb_trio.delivery.encodings import CURSOR
from paperdb_trio.delivery.states import SITUATIONS, IllegalMove, Situation, SubscriberState
from paperdb_trio.delivery.subscriber import Subscriber
from tests.delivery.fakes import DATABASE, FakeSink, World, payloads


@pytest.fixture
async def world(nursery: trio.Nursery) -> World:
    return World(nursery)


# --- states --------------------------------------------------------------------------------------


async def test_it_starts_live_at_the_head_and_catching_up_behind_it(world: World) -> None:
    world.commit("a", "a")
    for position, state in (
        (2, SubscriberState.LIVE),
        (1, SubscriberState.CATCHING_UP),
        (0, SubscriberState.CATCHING_UP),
    ):
        subscriber = world.subscriber(FakeSink())
        assert subscriber.state is SubscriberState.NEW
        subscriber.start(position)
        assert subscriber.state is state


@pytest.mark.parametrize("before", ["start", "close"])
async def test_an_illegal_move_is_refused_and_named(world: World, before: str) -> None:
    subscriber = world.subscriber(FakeSink())
    subscriber.start(0)
    if before == "close":
        subscriber.close()
    with pytest.raises(IllegalMove, match=r"live.* can become|closed can become nothing; not live"):
        subscriber.start(0)
    assert subscriber.state is (SubscriberState.CLOSED if before == "close" else SubscriberState.LIVE)


async def test_each_situation_in_the_table_is_reached_and_no_other(nursery: trio.Nursery) -> None:
    seen: dict[SubscriberState, set[Situation]] = {state: set() for state in SubscriberState}

    async def look(subscriber: Subscriber) -> None:
        await wait_all_tasks_blocked()
        seen[subscriber.state].add(subscriber.situation)

    world = World()  # no task runs unless it is started here
    nursery.start_soon(world.hub.run)
    sink = FakeSink()
    slow = world.subscriber(sink, queue_events=2)
    await look(slow)
    slow.start(0)
    await look(slow)  # in the lane
    sink.block()
    world.commit("a")
    await look(slow)  # it has asked for a task
    nursery.start_soon(slow.run)
    await look(slow)  # the task has taken the queue, and waits for the sink
    for _ in range(3):
        world.commit("a")
        await look(slow)  # in the end the queue is full, and it catches up
    slow.close()
    await look(slow)
    sink.unblock()
    await look(slow)  # the task has ended, and left the queue

    world.log.gate = trio.Event()
    late = world.subscriber(FakeSink())
    late.start(0)
    nursery.start_soon(late.run)
    await look(late)
    late.close()
    await look(late)
    world.log.gate.set()
    await look(late)

    early = world.subscriber(FakeSink())
    world.commit("a")
    early.start(world.log.head)  # not published yet: no lane
    seen[early.state].add(early.situation)
    early.close()

    assert seen == SITUATIONS


async def test_closing_takes_it_off_the_hub_ends_its_task_and_may_be_repeated(
    world: World, nursery: trio.Nursery
) -> None:
    sink = FakeSink()
    subscriber = world.subscriber(sink)
    subscriber.start(0)
    assert not world.is_forgotten()
    subscriber.close()
    subscriber.close()
    assert world.is_forgotten()
    await subscriber.run()  # returns
    nursery.start_soon(world.hub.run)
    world.commit("a")
    await wait_all_tasks_blocked()
    assert sink.data == b""


async def test_a_closed_subscriber_wants_nothing_anew(world: World) -> None:
    """As when a connection closes while an action of its client waits."""
    subscriber = world.subscriber(FakeSink())
    subscriber.start(0)
    (topic,) = subscriber.interest
    subscriber.close()
    subscriber.unwant(topic)
    subscriber.want(topic, 0)
    assert world.is_forgotten()


async def test_a_closed_subscriber_does_not_keep_its_maker(world: World) -> None:
    """Else the garbage collector would have to find dead connections, each with some 10 KB of OpenSSL's."""

    class Maker:
        def need_task(self) -> None:
            pass

    maker = Maker()
    subscriber = Subscriber(
        world.hub,
        world.log,  # type: ignore[arg-type]
        DATABASE,
        CURSOR,
        FakeSink(),
        {None: 0},
        maker.need_task,
        queue_events=1,
        queue_bytes=1,
    )
    subscriber.start(0)
    subscriber.close()
    alive = weakref.ref(maker)
    del maker
    assert alive() is None


async def test_a_subscriber_that_never_started_can_be_closed(world: World) -> None:
    subscriber = world.subscriber(FakeSink())
    subscriber.close()
    await subscriber.run()


# --- live ----------------------------------------------------------------------------------------


async def test_a_live_subscriber_gets_changes_without_a_task(world: World, nursery: trio.Nursery) -> None:
    sink = FakeSink()
    world.subscriber(sink).start(0)
    nursery.start_soon(world.hub.run)
    world.commit("a", "b")
    await wait_all_tasks_blocked()
    assert payloads(sink.data) == world.events()
    assert sink.pushed == 1
    assert world.log.reads == 0


@pytest.mark.parametrize("block", ["all", "part"])
async def test_its_task_writes_what_the_sink_of_a_live_subscriber_did_not_take(
    world: World, nursery: trio.Nursery, block: str
) -> None:
    sink = FakeSink()
    sink.take_part = block == "part"
    subscriber = world.subscriber(sink)
    subscriber.start(0)
    nursery.start_soon(world.hub.run)
    for _ in range(5):
        if block == "all":
            sink.block()
        await world.commit_each(3, "a")
        sink.unblock()
        await wait_all_tasks_blocked()
        assert payloads(sink.data) == world.events()
    assert subscriber.state is SubscriberState.LIVE
    assert world.log.reads == 0


@pytest.mark.parametrize(("queue_events", "queue_bytes"), [(3, 1_000_000), (1000, 200), (1, 1)])
async def test_a_full_queue_makes_it_catch_up_and_nothing_is_lost(
    world: World, nursery: trio.Nursery, queue_events: int, queue_bytes: int
) -> None:
    sink = FakeSink()
    subscriber = world.subscriber(sink, queue_events=queue_events, queue_bytes=queue_bytes)
    subscriber.start(0)
    nursery.start_soon(world.hub.run)
    for _ in range(3):
        sink.block()
        await world.commit_each(10, "a", "b")
        behind = subscriber.state
        assert behind is SubscriberState.CATCHING_UP
        reads = world.log.reads
        sink.unblock()
        await wait_all_tasks_blocked()
        assert subscriber.state is SubscriberState.LIVE
        assert world.log.reads > reads
        assert payloads(sink.data) == world.events()


async def test_an_idle_subscriber_has_no_task(world: World, nursery: trio.Nursery) -> None:
    """It keeps ten thousand idle connections cheap: a task comes when there is something to write, and goes."""
    started = 0

    def count() -> None:
        nonlocal started
        started += 1
        nursery.start_soon(subscriber.run)

    sink = FakeSink()
    subscriber = world.subscriber(sink)
    subscriber._need_task = count
    subscriber.start(0)
    nursery.start_soon(world.hub.run)
    await world.commit_each(3, "a")
    assert started == 0
    for expected in (1, 2):
        sink.block()
        await world.commit_each(3, "a")
        sink.unblock()
        await wait_all_tasks_blocked()
        assert started == expected
        assert not any("Subscriber" in task.name for task in nursery.child_tasks)
    assert payloads(sink.data) == world.events()


async def test_an_event_larger_than_the_queue_arrives(world: World, nursery: trio.Nursery) -> None:
    sink = FakeSink()
    subscriber = world.subscriber(sink, queue_bytes=100)
    subscriber.start(0)
    nursery.start_soon(world.hub.run)
    sink.block()
    world.commit("a")
    world.commit("a", size=1000)
    world.commit("a")
    await wait_all_tasks_blocked()
    sink.unblock()
    await wait_all_tasks_blocked()
    assert payloads(sink.data) == world.events()


async def test_what_waits_for_a_blocked_sink_is_bounded(world: World, nursery: trio.Nursery) -> None:
    sink = FakeSink()
    subscriber = world.subscriber(sink, queue_events=1000, queue_bytes=5000)
    subscriber.start(0)
    nursery.start_soon(world.hub.run)
    sink.block()
    most = 0
    for _ in range(100):
        world.commit("a", size=200)
        await wait_all_tasks_blocked()
        most = max(most, subscriber._queued_bytes)
    assert most <= 5000
    assert len(subscriber._queue) <= 1000
