"""Subscribers that catch up from the same place share pages of the log; none misses or repeats a change."""

from __future__ import annotations

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from paperdb_trio.delivery.encodings import CURSOR
from paperdb_trio.delivery.hub import COUNTED
from paperdb_trio.delivery.pages import KEPT_BYTES, KEPT_PAGES, KeptPage, KeptPages, PageKey
from paperdb_trio.delivery.states import SubscriberState
from paperdb_trio.errors import ApiError
from paperdb_trio.net.frames import text_frame
from paperdb_trio.store.protocol import PAGE_BYTES, Topic
from tests.delivery.fakes import DATABASE, FakeSink, World, change, payloads


@pytest.fixture
async def world(nursery: trio.Nursery) -> World:
    return World(nursery)


async def test_subscribers_at_the_same_place_share_a_page(world: World, nursery: trio.Nursery) -> None:
    """The first one reads it. The others are live at once, and none misses or repeats what comes then."""
    nursery.start_soon(world.hub.run)
    world.commit("a", "a", "b")
    sinks = [FakeSink() for _ in range(4)]
    world.subscriber(sinks[0]).start(1)
    await wait_all_tasks_blocked()
    reads = world.log.reads
    second = world.subscriber(sinks[1])
    second.start(1, text_frame(b"first"))
    assert second.state is SubscriberState.LIVE
    world.subscriber(sinks[2]).start(1)
    assert world.log.reads == reads
    world.subscriber(sinks[3], "a").start(1)  # it wants something else
    world.commit("a")
    await wait_all_tasks_blocked()
    assert world.log.reads == reads + 1
    late = FakeSink()
    world.subscriber(late).start(1)  # the page that is kept is not the newest one any more
    await wait_all_tasks_blocked()
    assert (world.log.reads, late.pushed) == (reads + 2, 0)
    everything = world.events(after=1)
    assert payloads(sinks[1].data) == [b"first", *everything]
    assert payloads(sinks[0].data) == payloads(sinks[2].data) == payloads(late.data) == everything
    assert payloads(sinks[3].data) == world.events("a", after=1)


@pytest.mark.parametrize("names", [("a",), ("a", "b"), (None,), tuple(map(str, range(COUNTED + 5)))])
async def test_a_page_is_shared_until_there_is_a_change_that_it_lacks(
    world: World, nursery: trio.Nursery, names: tuple[Topic, ...]
) -> None:
    """`names`: what is followed; more collections than the hub tells apart, too."""
    nursery.start_soon(world.hub.run)
    world.commit("a", "b", "c", *map(str, range(COUNTED + 5)))
    await wait_all_tasks_blocked()
    collections = [str(name) for name in names if name is not None]
    world.subscriber(FakeSink(), *names).start(0)
    await wait_all_tasks_blocked()
    for other in ("c", "unknown", collections[-1] if collections else "c"):
        world.commit(other)
        await wait_all_tasks_blocked()
        sink = FakeSink()
        subscriber = world.subscriber(sink, *names)
        subscriber.start(0)
        await wait_all_tasks_blocked()
        assert subscriber.state is SubscriberState.LIVE
        assert payloads(sink.data) == world.events(*collections)
        reads = world.log.reads
        world.commit("other")
        await wait_all_tasks_blocked()
        world.subscriber(FakeSink(), *names).start(0)
        await wait_all_tasks_blocked()
        if names == ("a",):
            assert world.log.reads == reads


async def test_changes_that_do_not_concern_it_are_skipped_unread(world: World, nursery: trio.Nursery) -> None:
    nursery.start_soon(world.hub.run)
    world.write("a", "b")
    world.hub.set_bounds(DATABASE, 2, 0)  # as at the start: the hub knows nothing of these
    world.commit("b", "b")
    await wait_all_tasks_blocked()
    sink = FakeSink()
    subscriber = world.subscriber(sink, "a")
    subscriber.start(2)
    assert (subscriber.state, subscriber.reached, world.log.reads) == (SubscriberState.LIVE, 4, 0)
    early = FakeSink()
    world.subscriber(early, "a").start(0)
    world.subscriber(FakeSink()).start(2)
    await wait_all_tasks_blocked()
    assert world.log.reads == 2
    world.commit("a")
    await wait_all_tasks_blocked()
    assert payloads(early.data) == world.events("a")
    assert payloads(sink.data) == world.events("a", after=2)


async def test_a_page_that_is_being_read_is_waited_for(world: World, nursery: trio.Nursery) -> None:
    """If reading it fails for the first one, the next one reads it."""
    world.commit("a", "a")
    world.log.gate = trio.Event()
    first = world.subscriber(FakeSink())
    sinks = [FakeSink(), FakeSink()]
    scope = trio.CancelScope()

    async def read() -> None:
        with scope:
            await first.run()

    world.nursery = None  # its task is ours
    first.start(0)
    nursery.start_soon(read)
    await wait_all_tasks_blocked()
    world.nursery = nursery
    for sink in sinks:
        world.subscriber(sink).start(0)
    await wait_all_tasks_blocked()
    assert world.log.reads == 1
    scope.cancel()
    await wait_all_tasks_blocked()
    assert world.log.reads == 2
    world.log.gate.set()
    await wait_all_tasks_blocked()
    assert world.log.reads == 2
    assert [payloads(sink.data) for sink in sinks] == [world.events()] * 2


async def test_a_page_that_cannot_be_read_fails_at_once_for_all_who_wait_for_it(
    world: World, nursery: trio.Nursery
) -> None:
    """Each of a thousand would wait for the log's time limit otherwise, one after another."""
    world.commit("a", "a")
    world.log.gate = trio.Event()
    world.log.error = ApiError(503, "QUERY_TIMEOUT", "too long")
    for _ in range(3):
        world.subscriber(FakeSink()).start(0)
    await wait_all_tasks_blocked()
    world.log.gate.set()
    await wait_all_tasks_blocked()
    assert (world.log.reads, world.errors) == (1, [world.log.error] * 3)
    world.log.error, sink = None, FakeSink()
    world.subscriber(sink).start(0)
    await wait_all_tasks_blocked()
    assert payloads(sink.data) == world.events()


async def test_a_shared_page_is_flushed_to_a_sink_that_takes_a_part(
    world: World, nursery: trio.Nursery
) -> None:
    nursery.start_soon(world.hub.run)
    world.commit("a", "a")
    world.subscriber(FakeSink()).start(0)
    await wait_all_tasks_blocked()
    sink = FakeSink()
    sink.take_part = True
    world.subscriber(sink).start(0)
    blocked = FakeSink()
    blocked.block()
    world.subscriber(blocked).start(0)
    await wait_all_tasks_blocked()
    assert payloads(sink.data) == world.events()
    world.commit("a")
    await wait_all_tasks_blocked()
    blocked.unblock()
    await wait_all_tasks_blocked()
    assert payloads(sink.data) == payloads(blocked.data) == world.events()


def test_kept_pages_are_bounded() -> None:
    pages = KeptPages()
    keys: list[PageKey] = [(1, n, CURSOR, frozenset(), 250) for n in range(2 * KEPT_PAGES)]
    for key in keys:
        pages.keep(key, KeptPage(1, True, 1, b"x"))
    assert [key for key in keys if pages.get(key)] == keys[KEPT_PAGES:]
    large = KeptPage(1, True, 1, b"x" * PAGE_BYTES)
    for key in keys[:KEPT_PAGES]:
        pages.keep(key, large)
    kept = [page for key in keys if (page := pages.get(key))]
    assert 0 < sum(len(page.data) for page in kept) <= KEPT_BYTES
    pages.keep(keys[-1], KeptPage(1, True, 1, b"x" * (PAGE_BYTES + 1)))
    assert pages.get(keys[-1]) is None


async def test_no_page_from_before_a_break_is_shared(world: World, nursery: trio.Nursery) -> None:
    nursery.start_soon(world.hub.run)
    for _ in range(3):
        world.commit("a")
    world.log.rows = 1  # full pages, which are shared whatever comes later
    world.subscriber(FakeSink()).start(0)
    await wait_all_tasks_blocked()
    since, until = 0, 100
    world.log.changes = [change(until + 1, "a")]
    world.log.breaks = [(since, until)]
    world.hub.on_break(DATABASE, since, until)
    world.hub.on_commit(world.log.changes)
    await wait_all_tasks_blocked()
    sink = FakeSink()
    world.subscriber(sink).start(0)
    await wait_all_tasks_blocked()
    assert payloads(sink.data) == world.events()
