"""A subscriber that starts, or changes its interest, while the hub publishes: it misses and repeats nothing.
From a new collection it gets only the changes after it asked."""

from __future__ import annotations

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from paperdb_trio.delivery import feed as feed_module
from paperdb_trio.loop import turn
from paperdb_trio.store.protocol import Interest
from tests.delivery.fakes import DATABASE, FakeSink, World, payloads, set_interest


@pytest.fixture
async def world(nursery: trio.Nursery) -> World:
    return World(nursery)


@pytest.fixture
def yielding(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub yields after each offer."""
    monkeypatch.setattr(turn, "SLICE", -1.0)
    monkeypatch.setattr(feed_module, "STEP", 1)


async def test_the_interest_of_a_live_subscriber_changes_at_once_and_without_a_gap(
    world: World, nursery: trio.Nursery
) -> None:
    sink = FakeSink()
    subscriber = world.subscriber(sink, "a")
    subscriber.start(0)
    nursery.start_soon(world.hub.run)
    expected = []
    steps: list[tuple[Interest, str]] = [
        ({"a": 0}, "a"),
        ({"a": 0, "b": 2}, "ab"),
        ({"b": 2}, "b"),
        ({}, ""),
        ({"a": 8}, "a"),
        ({None: 10}, "abc"),
    ]
    for interest, wanted in steps:
        set_interest(subscriber, interest)
        changes = world.commit("a", "b")
        expected += [e for c, e in zip(changes, world.events()[-2:], strict=True) if c.collection in wanted]
        await wait_all_tasks_blocked()
        assert payloads(sink.data) == expected


async def test_a_new_interest_does_not_bring_older_changes(world: World, nursery: trio.Nursery) -> None:
    """Even when it has to read the log, which holds older changes of the new collection."""
    for _ in range(3):
        world.commit("a", "b")
    sink = FakeSink()
    subscriber = world.subscriber(sink, "a")
    subscriber.start(0)
    nursery.start_soon(world.hub.run)
    set_interest(subscriber, {"a": 0, "b": 6})
    world.commit("b", "a")
    await wait_all_tasks_blocked()
    assert payloads(sink.data) == [e for e in world.events() if b'"a"' in e or b'{"seq":7,' in e]


async def test_a_topic_comes_after_the_seq_from_which_it_is_wanted(world: World) -> None:
    """Although less has been reached: changes that are not published yet concern other topics."""
    subscriber = world.subscriber(FakeSink(), "a")
    subscriber.start(0)
    world.commit("b", "a")  # the hub does not run
    subscriber.want("b", 2)
    assert [subscriber.comes_after(topic) for topic in ("a", "b")] == [0, 2]


@pytest.mark.interpreted
@pytest.mark.parametrize("extra", range(6))
async def test_interest_that_changes_inside_a_publish_misses_and_repeats_nothing(
    world: World, nursery: trio.Nursery, yielding: None, extra: int
) -> None:
    """20 subscribers in two feeds. After each of the hub's offers, another one changes its interest."""
    sinks = [FakeSink() for _ in range(20)]
    subscribers = [world.subscriber(sink, *("a", "b")[: 1 + n % 2]) for n, sink in enumerate(sinks)]
    for subscriber in subscribers:
        subscriber.start(0)
    await wait_all_tasks_blocked()

    async def meddle() -> None:
        for _ in range(extra):
            await trio.lowlevel.checkpoint()
        for n, subscriber in enumerate(subscribers):
            # All want "a" throughout. The odd ones drop "b", the even ones add "c".
            since = world.hub.committed(DATABASE)
            set_interest(subscriber, {"a": 0} if n % 2 else {"a": 0, "c": since})
            await trio.lowlevel.checkpoint()

    nursery.start_soon(world.hub.run)
    world.commit("a", "a", "a")
    nursery.start_soon(meddle)
    for _ in range(10):
        world.commit("a", "a")
        await trio.lowlevel.checkpoint()
    await wait_all_tasks_blocked()
    world.commit("a", "c")
    await wait_all_tasks_blocked()
    for n, sink in enumerate(sinks):
        assert payloads(sink.data) == (world.events("a") if n % 2 else world.events("a", "c"))


@pytest.mark.interpreted
async def test_becoming_live_inside_a_publish_misses_and_repeats_nothing(
    world: World, nursery: trio.Nursery, yielding: None
) -> None:
    """A new subscriber starts at each of the hub's checkpoints, at the head or up to 3 changes behind it."""
    sinks: list[tuple[int, FakeSink]] = []
    for _ in range(5):
        sink = FakeSink()
        subscriber = world.subscriber(sink)
        subscriber.start(0)
        sinks.append((0, sink))

    async def arrive() -> None:
        for n in range(60):
            sink = FakeSink()
            position = max(0, world.hub.committed(DATABASE) - n % 4)
            subscriber = world.subscriber(sink)
            subscriber.start(position)
            sinks.append((position, sink))
            await trio.lowlevel.checkpoint()

    nursery.start_soon(world.hub.run)
    nursery.start_soon(arrive)
    for n in range(30):
        world.commit(*["a"] * (1 + n % 3))
        await trio.lowlevel.checkpoint()
    await wait_all_tasks_blocked()
    assert len(sinks) == 65
    for position, sink in sinks:
        assert payloads(sink.data) == world.events(after=position)
