"""The hub: it encodes each change once and hands it to exactly those who want it, in order, in buffers of a
bounded size, and lets other tasks run meanwhile. It knows the bounds of each database's log."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from paperdb_trio.delivery import feed as feed_module
from paperdb_trio.delivery import hub as hub_module
from paperdb_trio.delivery.encodings import CURSOR, PLAIN, cursor_event, plain_event
from paperdb_trio.delivery.hub import CHUNK_BYTES, Hub
from paperdb_trio.delivery.subscriber import Subscriber
from paperdb_trio.loop import turn
from paperdb_trio.match.query import query
from paperdb_trio.model import Change
from paperdb_trio.store.protocol import Topic
from tests.delivery.fakes import FakeLog, FakeSink, World, change, payloads


async def test_each_change_goes_to_those_who_want_it_and_to_no_one_else(nursery: trio.Nursery) -> None:
    world = World(nursery)
    wants = [("a",), ("b",), ("a", "b"), ("c",), ()]
    sinks = [FakeSink() for _ in wants]
    for names, sink in zip(wants, sinks, strict=True):
        world.subscriber(sink, *names).start(0)
    nursery.start_soon(world.hub.run)
    world.commit("a", "b", "d")
    world.commit("b")
    world.commit("d")
    await wait_all_tasks_blocked()
    for names, sink in zip(wants, sinks, strict=True):
        assert payloads(sink.data) == world.events(*names)


async def test_plain_and_cursor_mode_have_their_own_text(nursery: trio.Nursery) -> None:
    world = World(nursery)
    plain, cursor = FakeSink(), FakeSink()
    world.subscriber(plain, encoding=PLAIN).start(0)
    world.subscriber(cursor, encoding=CURSOR).start(0)
    nursery.start_soon(world.hub.run)
    changes = world.commit("a", "b")
    await wait_all_tasks_blocked()
    assert payloads(plain.data) == [plain_event(c) for c in changes]
    assert payloads(cursor.data) == [cursor_event(c) for c in changes]


async def test_an_event_is_encoded_once_however_many_want_it(nursery: trio.Nursery) -> None:
    world = World(nursery)
    encoded: list[int] = []

    def event(change: Change) -> bytes:
        encoded.append(change.seq)
        return cursor_event(change)

    counting = replace(CURSOR, event=event)
    for n in range(50):
        world.subscriber(FakeSink(), *("a", "b", "c")[: 1 + n % 3], encoding=counting).start(0)
    nursery.start_soon(world.hub.run)
    world.commit("a", "b", "a")
    await wait_all_tasks_blocked()
    assert sorted(encoded) == [1, 2, 3]


async def test_a_commit_is_one_write_for_each_subscriber_unless_it_is_large(nursery: trio.Nursery) -> None:
    world = World(nursery)
    sink = FakeSink()
    world.subscriber(sink).start(0)
    nursery.start_soon(world.hub.run)
    world.commit(*["a"] * 100)
    await wait_all_tasks_blocked()
    assert sink.pushed == 1
    world.commit(*["a"] * 100, size=10_000)
    await wait_all_tasks_blocked()
    writes = sink.pushed - 1
    assert 1_000_000 / (CHUNK_BYTES + 10_100) <= writes <= 1_000_000 / (CHUNK_BYTES - 10_100) + 1
    world.commit("a", "a", size=CHUNK_BYTES * 2)
    await wait_all_tasks_blocked()
    assert payloads(sink.data) == world.events()


async def test_commits_that_wait_are_published_together_and_in_order(nursery: trio.Nursery) -> None:
    world = World(nursery)
    sink = FakeSink()
    world.subscriber(sink).start(0)
    for _ in range(50):
        world.commit("a", "b")
    nursery.start_soon(world.hub.run)
    await wait_all_tasks_blocked()
    assert payloads(sink.data) == world.events()
    assert sink.pushed == 1


async def test_databases_know_nothing_of_each_other(nursery: trio.Nursery) -> None:
    hub = Hub()
    hub.set_bounds(1, 10, 3)
    sinks = {}
    for database in (1, 2):
        sinks[database] = FakeSink()
        Subscriber(
            hub,
            FakeLog(),  # type: ignore[arg-type]
            database,
            CURSOR,
            sinks[database],
            {None: 0},
            lambda: None,
            queue_events=10,
            queue_bytes=1000,
        ).start(hub.committed(database))
    nursery.start_soon(hub.run)
    changes = [change(11, database=1), change(1, database=2), change(12, database=1)]
    hub.on_commit(changes)
    assert (hub.committed(1), hub.committed(2)) == (12, 1)
    await wait_all_tasks_blocked()
    assert (hub.published(1), hub.published(2)) == (12, 1)
    assert payloads(sinks[1].data) == [cursor_event(changes[0]), cursor_event(changes[2])]
    assert payloads(sinks[2].data) == [cursor_event(changes[1])]


async def test_the_bounds_only_grow() -> None:
    hub = Hub()
    assert (hub.committed(7), hub.published(7), hub.trimmed(7)) == (0, 0, 0)
    hub.set_bounds(1, 10, 3)
    assert (hub.committed(1), hub.published(1), hub.trimmed(1)) == (10, 10, 3)
    hub.set_trimmed(1, 5)
    hub.set_trimmed(1, 4)
    assert hub.trimmed(1) == 5
    hub.on_commit([change(11), change(12)])
    assert (hub.committed(1), hub.published(1)) == (12, 10)


@pytest.mark.interpreted
async def test_other_tasks_run_while_it_publishes(
    nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turn, "SLICE", -1.0)
    world = World(nursery)
    for _ in range(feed_module.STEP * 10):
        world.subscriber(FakeSink()).start(0)
    turns = 0

    async def other() -> None:
        nonlocal turns
        while world.hub.published(1) < 1:
            turns += 1
            await trio.lowlevel.checkpoint()

    nursery.start_soon(world.hub.run)
    await wait_all_tasks_blocked()
    world.commit("a")
    nursery.start_soon(other)
    await wait_all_tasks_blocked()
    assert turns >= 9


@pytest.mark.interpreted
async def test_a_large_commit_is_published_in_portions_and_nothing_is_missing_or_repeated(
    nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_module, "PORTION_BYTES", 100)
    monkeypatch.setattr(turn, "SLICE", -1.0)
    world = World(nursery)
    sinks = [FakeSink() for _ in range(3)]
    for sink, names in zip(sinks, [(), ("a",), ("b", "a")], strict=True):
        world.subscriber(sink, *names).start(0)
    nursery.start_soon(world.hub.run)
    await wait_all_tasks_blocked()
    published = set()

    async def watch() -> None:
        while world.hub.published(1) < 40:
            published.add(world.hub.published(1))
            await trio.lowlevel.checkpoint()

    world.commit(*"ab" * 10)
    world.commit(*"ab" * 10)
    nursery.start_soon(watch)
    await wait_all_tasks_blocked()
    assert len(published) > 4
    assert [len(payloads(sink.data)) for sink in sinks] == [40, 20, 40]
    assert len(set(payloads(sinks[0].data))) == 40


async def test_a_subscriber_that_leaves_leaves_nothing_behind(nursery: trio.Nursery) -> None:
    world = World(nursery)
    nursery.start_soon(world.hub.run)
    subscribers = [world.subscriber(FakeSink(), *names) for names in [("a",), ("a", "b"), (), ("a",)]]
    for subscriber in subscribers:
        subscriber.start(0)
    assert not world.is_forgotten()
    world.commit("a", "b")
    await wait_all_tasks_blocked()
    for subscriber in subscribers:
        subscriber.close()
    assert world.is_forgotten()


@pytest.mark.interpreted
async def test_a_member_that_leaves_inside_a_publish_gets_nothing_more(
    nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one to get the change closes all others."""
    monkeypatch.setattr(turn, "SLICE", -1.0)
    monkeypatch.setattr(feed_module, "STEP", 1)
    world = World(nursery)
    subscribers: list[Subscriber] = []

    class Killer(FakeSink):
        def _write_some(self, data: bytes) -> int:
            taken = super()._write_some(data)
            for other in subscribers:
                if other._sink is not self:
                    other.close()
            return taken

    for _ in range(10):
        subscribers.append(world.subscriber(Killer()))
        subscribers[-1].start(0)
    nursery.start_soon(world.hub.run)
    world.commit("a")
    await wait_all_tasks_blocked()
    assert sum(bool(s._sink.data) for s in subscribers) == 1  # type: ignore[attr-defined]


async def test_the_hub_ends_when_cancelled_and_takes_changes_even_then() -> None:
    world = World()
    for _ in range(2):
        async with trio.open_nursery() as nursery:
            await nursery.start(world.hub.run)
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        world.commit("a")


# --- waiting for a change ------------------------------------------------------------------------


async def test_a_waiter_returns_when_its_collection_has_a_change(nursery: trio.Nursery) -> None:
    world = World()
    nursery.start_soon(world.hub.run)
    returned: list[str] = []

    async def wait(name: str) -> None:
        await world.hub.wait(1, name, world.hub.committed(1))
        returned.append(name)

    for name in "aabc":
        nursery.start_soon(wait, name)
    await wait_all_tasks_blocked()
    world.commit("d")
    await wait_all_tasks_blocked()
    assert returned == []
    world.commit("a")
    await wait_all_tasks_blocked()
    assert returned == ["a", "a"]
    world.hub.stop_waiting()
    await wait_all_tasks_blocked()
    assert sorted(returned) == ["a", "a", "b", "c"]
    assert world.is_forgotten()


async def test_a_waiter_that_is_behind_or_comes_after_stop_waiting_returns_at_once() -> None:
    world = World()
    world.commit("a")
    with trio.fail_after(5):
        await world.hub.wait(1, "a", 0)
        world.hub.stop_waiting()
        await world.hub.wait(1, "a", 1)
    assert world.is_forgotten()


async def test_a_cancelled_waiter_leaves_nothing_behind(nursery: trio.Nursery) -> None:
    world = World()
    nursery.start_soon(world.hub.run)
    async with trio.open_nursery() as own:
        own.start_soon(world.hub.wait, 1, "a", 0)
        await wait_all_tasks_blocked()
        assert not world.is_forgotten()
        own.cancel_scope.cancel()
    assert world.is_forgotten()
    world.commit("a")
    await wait_all_tasks_blocked()


async def test_query_that_fails_ends_with_a_reset_and_harms_no_one_else(
    nursery: trio.Nursery, caplog: pytest.LogCaptureFixture
) -> None:
    world = World(nursery)
    failing, healthy = query("a", {"n": {"exists": True}}), query("a", {"n": {"startsWith": "x"}})
    looked: list[object] = []

    def fail(document: object) -> bool:
        looked.append(document)
        raise RuntimeError("a bug of ours")

    failing.matches = fail
    sinks = [FakeSink() for _ in range(4)]
    topics: list[Topic] = [failing, failing, healthy, "a"]
    for sink, topic in zip(sinks, topics, strict=True):
        world.subscriber(sink, topic).start(0)
    nursery.start_soon(world.hub.run)
    for _ in range(3):
        world.commit("a")
    await wait_all_tasks_blocked()
    assert len(looked) == 1  # it is not asked again
    reset = b'{"seq":1,"type":"reset","collection":"a","query":"%b","reason":"error"}' % failing.id.encode()
    assert payloads(sinks[0].data) == payloads(sinks[1].data) == [reset]
    views = [json.loads(text) for text in payloads(sinks[2].data)]
    assert [(event["seq"], event["query"]) for event in views] == [(n, healthy.id) for n in (1, 2, 3)]
    assert payloads(sinks[3].data) == world.events()
    assert "a bug of ours" in caplog.text


async def test_hub_holds_changes_only_against_queries_that_someone_follows(nursery: trio.Nursery) -> None:
    world = World(nursery)
    subscribers = [world.subscriber(FakeSink(), query("a", {"n": n % 2})) for n in range(4)]
    for subscriber in subscribers:
        subscriber.start(0)
    assert world.hub.queries == (2, 0)
    for subscriber in subscribers[:3]:
        subscriber.close()
    assert world.hub.queries == (1, 0)
    subscribers[3].want(query("a", {"n": {"ne": 1}}), 0)
    assert world.hub.queries == (2, 1)
    subscribers[3].unwant(query("a", {"n": 1}))
    subscribers[3].close()
    subscribers[3].want("b", 0)  # too late: it is closed
    assert world.hub.queries == (0, 0)
    assert world.is_forgotten()


async def test_all_views_of_a_large_change_reach_a_subscriber_outside_the_lane(nursery: trio.Nursery) -> None:
    """They are one buffer: a position cannot be in the middle of a change."""
    world = World(nursery)
    queries = [query("a", {"n": {"startsWith": "x" * n}}) for n in range(1, 4)]
    sinks = [FakeSink(), FakeSink()]
    sinks[1].writer = lambda: None  # type: ignore[method-assign] # never in the lane
    for sink in sinks:
        world.subscriber(sink, *queries).start(0)
    nursery.start_soon(world.hub.run)
    world.commit("a", "a", size=CHUNK_BYTES)
    world.commit("a", size=10)
    await wait_all_tasks_blocked()
    expected = {(n, one.id) for n in (1, 2, 3) for one in queries}
    for sink in sinks:
        events = [json.loads(text) for text in payloads(sink.data)]
        assert {(event["seq"], event["query"]) for event in events} == expected
        assert [event["seq"] for event in events] == sorted([1, 2, 3] * 3)
