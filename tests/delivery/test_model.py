"""The model: the hub, subscribers and the real store against a Python list that is the log.

Hypothesis writes, tells the hub late, subscribes anywhere, blocks and breaks sinks, posts replies, changes
interests, disconnects, resumes and trims, in any order and at any checkpoint. After each step, each subscriber
is in a legal situation. In the end, each sink holds exactly the changes that its subscriber was promised, in
order, once; or its subscriber was told that it is behind a log that was trimmed.
"""

from __future__ import annotations

import json
import queue
import tempfile
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import outcome
import pytest
import trio
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from paperdb_trio.auth.keys import hash_key
from paperdb_trio.delivery import feed as feed_module
from paperdb_trio.delivery.encodings import CURSOR, cursor_event
from paperdb_trio.delivery.hub import Hub
from paperdb_trio.delivery.states import SITUATIONS, SubscriberState
from paperdb_trio.delivery.subscriber import BehindTheLog, Subscriber
from paperdb_trio.loop import turn
from paperdb_trio.model import Change
from paperdb_trio.net.frames import text_frame
from paperdb_trio.store import admin
from paperdb_trio.store.change_log import ChangeLog
from paperdb_trio.store.file import prepare
from paperdb_trio.store.housekeeping import Trim
from paperdb_trio.store.operations import Draft, InsertBulk
from paperdb_trio.store.writer import Writer
from tests.delivery.fakes import DATABASE, FakeSink, payloads

NAMES = ("a", "b", "c")
MAX_BYTES = 100_000


@dataclass(eq=False)
class Reader:
    """A subscriber, its sink, and what it was promised.

    `wants`: collections, each with the seq after which it is wanted. None is all. `maybe`: changes that may or
    may not come. They were under way when their collection was dropped, or not yet known when it was added.
    `replies`: how many were posted.
    """

    sink: FakeSink
    wants: dict[str, int] | None
    position: int
    subscriber: Subscriber = field(init=False)
    scope: trio.CancelScope | None = None
    must: set[int] = field(default_factory=set)
    maybe: set[int] = field(default_factory=set)
    replies: int = 0
    behind: bool = False
    gone: bool = False

    def promise(self, change: Change) -> None:
        wanted = self.wants is None or change.seq > self.wants.get(change.collection, change.seq)
        if change.seq > self.position and wanted and change.seq not in self.maybe:
            self.must.add(change.seq)

    def received(self) -> list[int]:
        """The seqs of whole events so far. The last one may still be on its way."""
        return [message["seq"] for message in self.messages() if "seq" in message]

    def messages(self) -> list[dict[str, Any]]:
        return [json.loads(text) for text in payloads(self.sink.data, partial=True)]


class System:
    """The system under test, and the list. Everything here runs on trio's thread."""

    def __init__(self, directory: Path) -> None:
        self._file = prepare(directory, create=True)
        admin.set_up(self._file, admin.NewKey("key", "secret", "", hash_key("key")), "kid", b"secret")
        self.history: list[Change] = []
        self.untold: list[list[Change]] = []
        self.readers: list[Reader] = []
        self.trimmed = 0

    async def run(self, ready: Callable[[trio.lowlevel.TrioToken], None]) -> None:
        self.hub = Hub()
        self.log = ChangeLog(self._file, timeout=10, max_document_bytes=MAX_BYTES)
        self.writer = Writer(self._file, self._committed)
        self.end = trio.Event()
        async with trio.open_nursery() as self.nursery:
            await self.nursery.start(self.writer.run)
            await self.nursery.start(self.hub.run)
            ready(trio.lowlevel.current_trio_token())
            await self.end.wait()
            self.writer.close()
            await self.writer.closed.wait()
            self.nursery.cancel_scope.cancel()
        self.log.close()

    def _committed(self, changes: list[Change]) -> None:
        """The writer's callback. The hub is told later, as if the event loop had been busy."""
        self.history += changes
        self.untold.append(changes)

    async def write(self, names: list[str], size: int, commits: int) -> None:
        """Write, and tell the hub of so many commits of those that it does not know."""
        for name in names:
            drafts: list[Any] = [Draft.parse({"pad": "x" * size}) for _ in range(2)]
            await self.writer.submit(InsertBulk(DATABASE, name, drafts, MAX_BYTES, 10 * MAX_BYTES, False))
        self.tell(commits)

    async def trim(self, keep: int) -> None:
        self.trimmed, _ = await self.writer.submit(Trim(DATABASE, 0, keep, limit=10_000))
        self.hub.set_trimmed(DATABASE, self.trimmed)

    # --- steps: none of these yields --------------------------------------------------------------

    def tell(self, commits: int) -> None:
        for changes in self.untold[:commits]:
            self.hub.on_commit(changes)
            for change in changes:
                for reader in self.readers:
                    reader.promise(change)  # even to one that left: it may have read the log
        del self.untold[:commits]

    def subscribe(self, back: int, wanted: set[str] | None, limit: int) -> None:
        position = max(self.trimmed, self.hub.committed(DATABASE) - back)
        self._start(position, None if wanted is None else dict.fromkeys(wanted, 0), limit)

    def _start(self, position: int, wants: dict[str, int] | None, limit: int) -> None:
        reader = Reader(FakeSink(), wants, position)
        reader.subscriber = Subscriber(
            self.hub,
            self.log,
            DATABASE,
            CURSOR,
            reader.sink,
            wants,
            lambda: self.nursery.start_soon(self._run, reader),
            queue_events=limit,
            queue_bytes=limit * 500,
        )
        for change in self.history:
            if change.seq <= self.hub.committed(DATABASE):
                reader.promise(change)
        self.readers.append(reader)
        reader.subscriber.start(position)

    async def _run(self, reader: Reader) -> None:
        with trio.CancelScope() as reader.scope:
            try:
                await reader.subscriber.run()
            except BehindTheLog:
                reader.behind = reader.gone = True
            except trio.BrokenResourceError:
                assert reader.gone

    def post(self, reader: Reader) -> None:
        """A reply, which says how far everything has been given to the sink."""
        reply = text_frame(b'{"reached":%d}' % reader.subscriber.reached)
        self.nursery.start_soon(self._post, reader, reply)

    async def _post(self, reader: Reader, reply: bytes) -> None:
        if not reader.gone:
            reader.replies += 1
            try:
                await reader.subscriber.post(reply)
            except trio.BrokenResourceError:
                assert reader.gone

    def interject(self, reader: Reader) -> None:
        reader.replies += reader.subscriber.interject(text_frame(b'{"reached":0}'))

    def break_(self, reader: Reader) -> None:
        """The peer is gone: the next write finds out."""
        reader.gone = reader.sink.broken = True

    def want(self, reader: Reader, wanted: set[str]) -> None:
        """A client's subscribe and unsubscribe: new collections are wanted from the head on."""
        if reader.gone or reader.wants is None:
            return
        head = self.hub.committed(DATABASE)
        received = set(reader.received())
        for change in self.history:
            # Some changes that it no longer wants may be on their way, also those that only the log knows.
            ahead = change.seq > head and change.collection in reader.wants
            if change.collection not in wanted and (ahead or change.seq in reader.must - received):
                reader.must.discard(change.seq)
                reader.maybe.add(change.seq)
            if change.collection in wanted - set(reader.wants) and change.seq > head:
                reader.maybe.add(change.seq)  # it is on disk, so it may count as before the subscription
        reader.wants = {name: reader.wants.get(name, head) for name in wanted}
        unsure = reader.maybe
        reader.must -= unsure
        reader.subscriber.set_interest(reader.wants)

    def leave(self, reader: Reader) -> None:
        reader.gone = True
        told = self.hub.committed(DATABASE)
        reader.maybe |= {change.seq for change in self.history if change.seq > told}  # it may have read ahead
        reader.subscriber.close()
        if reader.scope is not None:
            reader.scope.cancel()

    def resume(self, reader: Reader, limit: int) -> None:
        """Come back with the last seq that arrived whole. A gap is told before anything is promised."""
        self.leave(reader)
        position = (reader.received() or [reader.position])[-1]
        if position >= self.trimmed:
            self._start(position, None if reader.wants is None else dict.fromkeys(reader.wants, 0), limit)

    # --- what must hold ---------------------------------------------------------------------------

    async def settle(self) -> None:
        """Let everything arrive that will arrive."""
        self.tell(len(self.untold))
        for reader in self.readers:
            reader.sink.take_part = False
            reader.sink.unblock()
        with trio.move_on_after(10):
            while not all(reader.gone or self._is_settled(reader) for reader in self.readers):
                await trio.sleep(0.0005)
        for reader in self.readers:
            self.check(reader)

    def _is_settled(self, reader: Reader) -> bool:
        published = self.hub.published(DATABASE) == self.hub.committed(DATABASE)
        return published and reader.subscriber.state is SubscriberState.LIVE and not reader.subscriber._has_task

    def check_situations(self) -> None:
        """What each subscriber is, at this very moment, is in the table."""
        for reader in self.readers:
            state, situation = reader.subscriber.state, reader.subscriber.situation
            assert situation in SITUATIONS[state], (state, situation)
            if reader.sink.needs_flush and not reader.gone:
                assert situation.has_task, "no task will write what the sink kept"

    def check(self, reader: Reader) -> None:
        received = reader.received()
        assert received == sorted(set(received)), "not in order, or twice"
        assert set(received) <= reader.must | reader.maybe, "something that was not wanted"
        last = received[-1] if received else 0
        if reader.behind:
            assert self.trimmed > reader.position
        due = {seq for seq in reader.must if seq <= last} if reader.gone else reader.must
        assert due <= set(received), "something is missing"
        reached = replies = 0
        for message in reader.messages():
            if "seq" in message:
                assert message["seq"] > reached, "a reply told of an event that came after it"
            else:
                reached, replies = max(reached, message["reached"]), replies + 1
        assert replies <= reader.replies
        if not reader.gone:
            assert replies == reader.replies, "a reply is missing"
            texts = {change.seq: cursor_event(change) for change in self.history}
            events = [text for text in payloads(reader.sink.data) if b'"seq"' in text[:6]]
            assert events == [texts[seq] for seq in received]


# --- Hypothesis ----------------------------------------------------------------------------------

wanted = st.sets(st.sampled_from(NAMES))
which = st.integers(0, 9)
limits = st.sampled_from([1, 3, 1000])
written = st.lists(st.sampled_from(NAMES), min_size=1, max_size=3)
# Few steps end a subscriber: one that lives long gets into more situations.
steps = st.one_of(
    st.tuples(st.just("write"), written, st.sampled_from([1, 300, 30_000]), st.integers(0, 3)),
    st.tuples(st.just("write"), written, st.sampled_from([1, 300, 30_000]), st.integers(1, 3)),
    st.tuples(st.just("tell"), st.integers(1, 3)),
    st.tuples(st.just("subscribe"), st.sampled_from([0, 0, 1, 3, 30]), st.none() | wanted, limits),
    st.tuples(st.just("want"), which, wanted),
    st.tuples(st.sampled_from(["block", "unblock", "part"]), which),
    st.tuples(st.sampled_from(["post", "interject"]), which),
    st.tuples(st.just("slice"), st.sampled_from([-1.0, 1.0])),
    st.tuples(st.sampled_from(["leave", "break_"]), which) | st.tuples(st.just("resume"), which, limits),
)


class Machine(RuleBasedStateMachine):
    """Each rule calls into trio's thread once."""

    def __init__(self) -> None:
        super().__init__()
        self._patch = pytest.MonkeyPatch()
        self._patch.setattr(turn, "SLICE", -1.0)  # a checkpoint after each offer, but for the step "slice"
        self._patch.setattr(feed_module, "STEP", 1)
        self._directory = tempfile.TemporaryDirectory()
        self._system = System(Path(self._directory.name))
        self._result: outcome.Outcome[None] = outcome.Value(None)
        ready: queue.SimpleQueue[trio.lowlevel.TrioToken] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._main, args=(ready.put,))
        self._thread.start()
        self._token = ready.get(timeout=10)

    def _main(self, ready: Callable[[trio.lowlevel.TrioToken], None]) -> None:
        self._result = outcome.capture(trio.run, self._system.run, ready)

    def _call(self, function: Callable[..., Awaitable[None]], *arguments: Any) -> None:
        try:
            trio.from_thread.run(self._step, function, *arguments, trio_token=self._token)
        except trio.RunFinishedError:
            self._result.unwrap()
            raise

    async def _step(self, function: Callable[..., Awaitable[None]], *arguments: Any) -> None:
        await function(*arguments)
        self._system.check_situations()

    @rule(burst=st.lists(st.tuples(steps, st.integers(0, 4)), min_size=1, max_size=12))
    def act(self, burst: list[tuple[tuple[Any, ...], int]]) -> None:
        self._call(self._act, burst)

    async def _act(self, burst: list[tuple[tuple[Any, ...], int]]) -> None:
        system = self._system
        for (name, *arguments), pauses in burst:
            if name == "write":
                await system.write(*arguments)
            elif name == "tell":
                system.tell(*arguments)
            elif name == "slice":
                self._patch.setattr(turn, "SLICE", arguments[0])
            elif name == "subscribe":
                system.subscribe(*arguments)
            elif alive := [reader for reader in system.readers if not reader.gone]:
                reader = alive[arguments[0] % len(alive)]
                if name == "block":
                    reader.sink.block()
                elif name == "unblock":
                    reader.sink.unblock()
                elif name == "part":
                    reader.sink.take_part = not reader.sink.take_part
                else:
                    getattr(system, name)(reader, *arguments[1:])
            system.check_situations()
            for _ in range(pauses):
                await trio.lowlevel.checkpoint()
                system.check_situations()

    @rule(keep=st.integers(0, 20))
    def trim(self, keep: int) -> None:
        self._call(self._system.trim, keep)

    @rule()
    def settle(self) -> None:
        self._call(self._system.settle)

    def teardown(self) -> None:
        try:
            self._call(self._system.settle)
            self._token.run_sync_soon(self._system.end.set)
        except BaseException:
            if self._thread.is_alive():
                self._token.run_sync_soon(self._system.end.set)
            raise
        finally:
            self._thread.join(10)
            self._patch.undo()
            self._directory.cleanup()
        self._result.unwrap()


TestModel = Machine.TestCase
TestModel.settings = settings(max_examples=40, stateful_step_count=25)
