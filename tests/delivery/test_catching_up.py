"""A subscriber behind the head reads the log: it gets every change once and in order, whatever is committed
meanwhile; what the log lacks is an error."""

from __future__ import annotations

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from paperdb_trio.delivery.states import SubscriberState
from paperdb_trio.delivery.subscriber import BehindTheLog
from paperdb_trio.net.frames import text_frame
from tests.delivery.fakes import DATABASE, FakeSink, World, change, payloads


@pytest.fixture
async def world(nursery: trio.Nursery) -> World:
    return World(nursery)


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
    assert subscriber.state is SubscriberState.LIVE
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
    assert subscriber.state is SubscriberState.LIVE


async def test_commits_in_the_log_that_the_event_loop_does_not_know_yet_come_once(
    world: World, nursery: trio.Nursery
) -> None:
    """The page is ahead of the hub: it holds some of the changes that the hub publishes later, not all."""
    sink = FakeSink()
    subscriber = world.subscriber(sink)
    world.commit("a")
    subscriber.start(0)
    untold = [world.write("a"), world.write("a", "b"), world.write("a")]
    await wait_all_tasks_blocked()
    assert payloads(sink.data) == world.events()
    assert subscriber.state is SubscriberState.LIVE
    nursery.start_soon(world.hub.run)
    for changes in untold[:2]:
        world.hub.on_commit(changes)
        await wait_all_tasks_blocked()
    assert payloads(sink.data) == world.events()
    # One chunk with a change that it has and one that it lacks: the chunk begins before the page's end.
    world.hub.on_commit(untold[2])
    world.commit("a")
    await wait_all_tasks_blocked()
    assert payloads(sink.data) == world.events()
    assert subscriber.state is SubscriberState.LIVE


async def test_a_position_older_than_the_log_is_an_error() -> None:
    world = World()
    for _ in range(5):
        world.commit("a")
    world.log.trimmed = 3
    subscriber = world.subscriber(FakeSink())
    subscriber.start(2)
    with pytest.raises(BehindTheLog, match="position 2, oldest kept change 4"):
        await subscriber.run()


async def test_falling_behind_a_trimmed_log_is_an_error_after_a_prefix(
    world: World, nursery: trio.Nursery
) -> None:
    sink = FakeSink()
    subscriber = world.subscriber(sink, queue_events=2)
    subscriber.start(0)
    nursery.start_soon(world.hub.run)
    sink.block()
    await world.commit_each(10, "a")
    world.log.trimmed = 9
    sink.unblock()
    await wait_all_tasks_blocked()
    assert [type(error) for error in world.errors] == [BehindTheLog]
    got = payloads(sink.data)
    assert 0 < len(got) < 9
    assert got == world.events()[: len(got)]


async def test_a_reply_given_while_a_page_is_read_comes_before_the_page(nursery: trio.Nursery) -> None:
    """A client counts its events from the reply on. A reply behind the page would hide the page's events."""
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
    assert subscriber.state is SubscriberState.LIVE


@pytest.mark.parametrize("lost", [True, False])
async def test_a_break_in_the_log_ends_only_who_was_given_what_is_lost(
    world: World, nursery: trio.Nursery, lost: bool
) -> None:
    """Also in the lane, and while it waits to be written."""
    nursery.start_soon(world.hub.run)
    sinks = FakeSink(), FakeSink()
    live, slow = (world.subscriber(sink) for sink in sinks)
    for subscriber in (live, slow):
        subscriber.start(0)
    for _ in range(3):
        world.commit("a")
    await wait_all_tasks_blocked()
    assert live.situation.in_lane
    sinks[1].block()
    world.commit("a")
    await wait_all_tasks_blocked()
    since, until = (2, 100) if lost else (4, 100)
    del world.log.changes[since:]
    world.log.changes.append(change(until + 1, "a"))
    world.log.breaks = [(since, until)]
    world.hub.on_break(DATABASE, since, until)
    assert [world.hub.missing(DATABASE, seq) for seq in (since, since + 1, until)] == [None, until, None]
    await wait_all_tasks_blocked()
    assert world.hub.published(DATABASE) == until  # from where others become live
    world.hub.on_commit(world.log.changes[-1:])
    sinks[1].unblock()
    await wait_all_tasks_blocked()
    if lost:
        assert [type(error) for error in world.errors] == [BehindTheLog] * 2
    else:
        assert [live.state, slow.state] == [SubscriberState.LIVE] * 2
        for sink in sinks:
            assert payloads(sink.data) == world.events()
    assert world.hub.published(DATABASE) == until + 1
    assert world.hub.figures()[DATABASE].logged == since + 1


async def test_a_break_is_not_skipped_by_who_follows_one_collection(
    world: World, nursery: trio.Nursery
) -> None:
    nursery.start_soon(world.hub.run)
    subscriber = world.subscriber(FakeSink(), "a")
    subscriber.start(0)
    for _ in range(4):
        world.commit("a")
    await wait_all_tasks_blocked()
    since, until = 2, 100
    world.log.changes[since:] = [change(until + 1, "b")]
    world.log.breaks = [(since, until)]
    world.hub.on_break(DATABASE, since, until)
    world.hub.on_commit(world.log.changes[-1:])
    await wait_all_tasks_blocked()
    assert [type(error) for error in world.errors] == [BehindTheLog]
