"""One subscriber, without a socket: however its sink blocks, its queue fills, its interest changes or the hub
is in the middle of something, it gives its sink every change once and in order."""

from __future__ import annotations

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from paperdb_trio.delivery.subscriber import BehindTheLog, IllegalMove, State
from paperdb_trio.net.frames import text_frame
from tests.delivery.fakes import FakeSink, World, payloads


@pytest.fixture
async def world(nursery: trio.Nursery) -> World:
    return World(nursery)


# --- states --------------------------------------------------------------------------------------


async def test_it_starts_live_at_the_head_and_catching_up_behind_it(world: World) -> None:
    world.commit("a", "a")
    for position, state in ((2, State.LIVE), (1, State.CATCHING_UP), (0, State.CATCHING_UP)):
        subscriber = world.subscriber(FakeSink())
        assert subscriber.state is State.NEW
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
    assert subscriber.state is (State.CLOSED if before == "close" else State.LIVE)


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
    await subscriber.run()  # nothing to do
    nursery.start_soon(world.hub.run)
    world.commit("a")
    await wait_all_tasks_blocked()
    assert sink.data == b""


async def test_one_that_never_started_can_be_closed(world: World) -> None:
    subscriber = world.subscriber(FakeSink())
    subscriber.close()
    await subscriber.run()


# --- live ----------------------------------------------------------------------------------------


async def test_a_live_one_gets_changes_without_its_task_running(world: World, nursery: trio.Nursery) -> None:
    sink = FakeSink()
    world.subscriber(sink).start(0)
    nursery.start_soon(world.hub.run)
    world.commit("a", "b")
    await wait_all_tasks_blocked()
    assert payloads(sink.data) == world.events()
    assert sink.pushed == 1
    assert world.log.reads == 0


@pytest.mark.parametrize("block", ["all", "part"])
async def test_what_a_live_one_s_sink_does_not_take_its_task_writes_in_order(
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
        for _ in range(3):
            world.commit("a")
            await wait_all_tasks_blocked()
        sink.unblock()
        await wait_all_tasks_blocked()
        assert payloads(sink.data) == world.events()
    assert subscriber.state is State.LIVE
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
        for _ in range(10):
            world.commit("a", "b")
            await wait_all_tasks_blocked()
        behind = subscriber.state
        assert behind is State.CATCHING_UP
        reads = world.log.reads
        sink.unblock()
        await wait_all_tasks_blocked()
        assert subscriber.state is State.LIVE
        assert world.log.reads > reads
        assert payloads(sink.data) == world.events()


async def test_one_that_is_idle_has_no_task(world: World, nursery: trio.Nursery) -> None:
    """What ten thousand idle connections cost: a task comes when there is something to write, and goes."""
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
    for _ in range(3):
        world.commit("a")
        await wait_all_tasks_blocked()
    assert started == 0
    for expected in (1, 2):
        sink.block()
        for _ in range(3):
            world.commit("a")
            await wait_all_tasks_blocked()
        sink.unblock()
        await wait_all_tasks_blocked()
        assert started == expected
        assert not any("Subscriber" in task.name for task in nursery.child_tasks)
    assert payloads(sink.data) == world.events()


async def test_one_event_larger_than_the_queue_still_arrives(world: World, nursery: trio.Nursery) -> None:
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


# --- catching up ---------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 2, 7, 250])
@pytest.mark.parametrize("start", [0, 1, 6, 20])
async def test_it_catches_up_from_any_position_in_pages_of_any_size(
    world: World, nursery: trio.Nursery, start: int, rows: int
) -> None:
    for _ in range(10):
        world.commit("a", "b")
    world.log.rows = rows
    sink = FakeSink()
    subscriber = world.subscriber(sink)
    subscriber.start(start)
    nursery.start_soon(world.hub.run)
    await wait_all_tasks_blocked()
    assert payloads(sink.data) == world.events(after=start)
    assert subscriber.state is State.LIVE
    world.commit("a")
    await wait_all_tasks_blocked()
    assert payloads(sink.data) == world.events(after=start)


async def test_commits_while_it_reads_its_last_page_come_once(world: World, nursery: trio.Nursery) -> None:
    world.commit("a")
    sink = FakeSink()
    subscriber = world.subscriber(sink)
    subscriber.start(0)
    world.log.gate = trio.Event()
    nursery.start_soon(world.hub.run)
    await wait_all_tasks_blocked()
    world.commit("a")  # after the page was read, before it is here
    await wait_all_tasks_blocked()
    world.log.gate.set()
    await wait_all_tasks_blocked()
    assert payloads(sink.data) == world.events()
    assert subscriber.state is State.LIVE


async def test_commits_in_the_log_that_the_event_loop_does_not_know_yet_come_once(
    world: World, nursery: trio.Nursery
) -> None:
    """The page is ahead of the hub: what the hub publishes of it later has been seen, the rest has not."""
    sink = FakeSink()
    subscriber = world.subscriber(sink)
    world.commit("a")
    subscriber.start(0)
    untold = [world.write("a"), world.write("a", "b"), world.write("a")]
    await wait_all_tasks_blocked()
    assert payloads(sink.data) == world.events()
    assert subscriber.state is State.LIVE
    nursery.start_soon(world.hub.run)
    for changes in untold[:2]:
        world.hub.on_commit(changes)
        await wait_all_tasks_blocked()
    assert payloads(sink.data) == world.events()
    # One chunk of a change that it has and one that it lacks: it began before where the page ended.
    world.hub.on_commit(untold[2])
    world.commit("a")
    await wait_all_tasks_blocked()
    assert payloads(sink.data) == world.events()
    assert subscriber.state is State.LIVE


async def test_a_position_older_than_the_log_is_an_error() -> None:
    world = World()
    for _ in range(5):
        world.commit("a")
    world.log.trimmed = 3
    subscriber = world.subscriber(FakeSink())
    subscriber.start(2)
    with pytest.raises(BehindTheLog, match="position 2, oldest kept change 4"):
        await subscriber.run()


async def test_falling_behind_a_log_that_is_trimmed_is_an_error_after_a_prefix(
    world: World, nursery: trio.Nursery
) -> None:
    sink = FakeSink()
    subscriber = world.subscriber(sink, queue_events=2)
    subscriber.start(0)
    nursery.start_soon(world.hub.run)
    sink.block()
    for _ in range(10):
        world.commit("a")
        await wait_all_tasks_blocked()
    world.log.trimmed = 9
    sink.unblock()
    await wait_all_tasks_blocked()
    assert [type(error) for error in world.errors] == [BehindTheLog]
    got = payloads(sink.data)
    assert 0 < len(got) < 9
    assert got == world.events()[: len(got)]


async def test_a_reply_given_while_a_page_is_read_comes_before_the_page(nursery: trio.Nursery) -> None:
    """It carries `reached`, from which on its reader counts: behind the page, it would hide its events."""
    world = World(nursery)
    world.commit("a", "a")
    sink = FakeSink()
    subscriber = world.subscriber(sink, "a")
    world.log.gate = trio.Event()
    subscriber.start(0)
    await wait_all_tasks_blocked()  # the page has been read, and is not here yet
    for _ in range(2):
        await subscriber.post(text_frame(b'{"reached":%d}' % subscriber.reached))
    world.log.gate.set()
    await wait_all_tasks_blocked()
    assert payloads(sink.data) == [b'{"reached":0}', b'{"reached":0}', *world.events()]
    assert subscriber.reached == 2
    assert subscriber.state is State.LIVE
