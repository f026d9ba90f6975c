"""One subscriber, without a socket: it gives its sink every change once and in order, while its sink blocks,
its queue fills and the hub is in the middle of a publish."""

from __future__ import annotations

import weakref

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from paperdb_trio.delivery.encodings import CURSOR
from paperdb_trio.delivery.hub import COUNTED
from paperdb_trio.delivery.pages import KEPT_BYTES, KEPT_PAGES, KeptPage, KeptPages, PageKey
from paperdb_trio.delivery.states import SITUATIONS, IllegalMove, Situation, SubscriberState
from paperdb_trio.delivery.subscriber import BehindTheLog, Subscriber
from paperdb_trio.errors import ApiError
from paperdb_trio.net.frames import text_frame
from paperdb_trio.store.protocol import PAGE_BYTES, Topic
from tests.delivery.fakes import DATABASE, FakeSink, World, change, payloads


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
        for _ in range(3):
            world.commit("a")
            await wait_all_tasks_blocked()
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
        for _ in range(10):
            world.commit("a", "b")
            await wait_all_tasks_blocked()
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
    assert subscriber.state is SubscriberState.LIVE
    world.commit("a")
    await wait_all_tasks_blocked()
    assert payloads(sink.data) == world.events(after=start)


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
