"""The model: the hub, subscribers and the real store against a Python list that is the log.

Hypothesis writes, tells the hub late, subscribes anywhere to collections and queries, blocks and breaks sinks,
posts replies, changes interests, disconnects, resumes and trims, in any order and at any checkpoint. Documents
move in and out of queries. After each step, each subscriber is in a legal situation. In the end, each sink has
exactly the events that its subscriber was promised, for each topic in order, once; or its subscriber was told
that it is behind a log that was trimmed.
"""

from __future__ import annotations

import json
import queue
import tempfile
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
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
from paperdb_trio.delivery.encodings import CURSOR, cursor_event, view_event
from paperdb_trio.delivery.hub import Hub
from paperdb_trio.delivery.states import SITUATIONS, SubscriberState
from paperdb_trio.delivery.subscriber import BehindTheLog, Subscriber
from paperdb_trio.errors import ApiError
from paperdb_trio.loop import turn
from paperdb_trio.match.query import Query, query
from paperdb_trio.model import Change
from paperdb_trio.net.frames import text_frame
from paperdb_trio.store.administration import SetUp
from paperdb_trio.store.housekeeping import Trim
from paperdb_trio.store.operations import Delete, Draft, InsertBulk, Replace
from paperdb_trio.store.protocol import Topic
from paperdb_trio.store.records import NewKey
from paperdb_trio.store.sqlite import admin
from paperdb_trio.store.sqlite.change_log import ChangeLog
from paperdb_trio.store.sqlite.file import prepare
from paperdb_trio.store.sqlite.writer import Writer
from tests.delivery.fakes import DATABASE, FakeSink, payloads

NAMES = ("a", "b", "c")
IDS = ("1", "2")
GROUPS = (0, 1, 2)
MAX_BYTES = 100_000

QUERIES = (
    query("a", {"g": 1}),
    query("a", {"g": {"gte": 1}}, ["g"]),
    query("a", {"or": [{"g": 0}, {"_id": "2"}]}),
    query("b", {"g": {"ne": 1}}),
    query("b", {}, ["h"]),
)
MATCHES: dict[Query, Callable[[dict[str, Any]], bool]] = {
    QUERIES[0]: lambda document: bool(document["g"] == 1),
    QUERIES[1]: lambda document: bool(document["g"] >= 1),
    QUERIES[2]: lambda document: bool(document["g"] == 0 or document["_id"] == "2"),
    QUERIES[3]: lambda document: bool(document["g"] != 1),
    QUERIES[4]: lambda document: True,
}
"""What the queries mean, said again."""

Key = tuple[str | None, int]
"""The id of a query, or None, and a seq: there is one event for each."""


def view_of(topic: Query, change: Change, before: Any, after: Any) -> bytes | None:
    """The event that a query makes of a change, by the table in the documentation."""
    was = before is not None and MATCHES[topic](before)
    now = after is not None and MATCHES[topic](after)
    shown = [
        {
            name: value
            for name, value in (document or {}).items()
            if topic.select is None or name in topic.select
        }
        for document in (before, after)
    ]
    if not was and not now:
        return None
    if was and now and shown[0] == shown[1]:
        return None
    type = "delete" if not now else "update" if was else "insert"
    data = json.dumps(shown[now], separators=(",", ":")).encode()
    return view_event(change, topic.id, type, data)


@dataclass(eq=False)
class Reader:
    """A subscriber, its sink, and what it was promised.

    `wants`: topics, each with the seq after which it is wanted. `maybe`: events that may or may not come: they
    were under way when their topic was dropped. `had`: topics that were dropped. `rewound`: a topic was wanted
    from before what had been reached. `replies`: how many were posted.
    """

    sink: FakeSink
    wants: dict[Topic, int]
    position: int
    subscriber: Subscriber = field(init=False)
    scope: trio.CancelScope | None = None
    must: set[Key] = field(default_factory=set)
    maybe: set[Key] = field(default_factory=set)
    had: set[Topic] = field(default_factory=set)
    rewound: bool = False
    replies: int = 0
    behind: bool = False
    gone: bool = False

    def received(self) -> list[Key]:
        """The keys of whole events so far. The last one may still be on its way."""
        return [(message.get("query"), message["seq"]) for message in self.messages() if "seq" in message]

    def messages(self) -> list[dict[str, Any]]:
        return [json.loads(text) for text in payloads(self.sink.data, partial=True)]


class System:
    """The system under test, and the list. Everything here runs on trio's thread."""

    def __init__(self, directory: Path) -> None:
        self._file = prepare(directory, create=True)
        admin.apply(self._file, SetUp("test", NewKey("key", "secret", "", hash_key("key")), "kid", b"secret"))
        self.history: list[Change] = []
        self.documents: dict[tuple[str, str], dict[str, Any]] = {}
        self.events: dict[Key, bytes] = {}
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
        for change in changes:
            self.events[None, change.seq] = cursor_event(change)
            before = self.documents.pop((change.collection, change.id), None)
            after = None if change.type == "delete" else json.loads(change.data)
            if after is not None:
                self.documents[change.collection, change.id] = after
            for topic in QUERIES:
                event = view_of(topic, change, before, after) if topic.collection == change.collection else None
                if event is not None:
                    self.events[topic.id, change.seq] = event

    async def write(self, names: list[str], size: int, commits: int) -> None:
        """Write, and tell the hub of so many commits of those that it does not know."""
        for name in names:
            drafts: list[Any] = [Draft.parse({"g": 2, "pad": "x" * size}) for _ in range(2)]
            await self.writer.submit(InsertBulk(DATABASE, name, drafts, MAX_BYTES, 10 * MAX_BYTES, False))
        self.tell(commits)

    async def move(self, moves: list[tuple[str, str, int | None]], commits: int) -> None:
        """Put documents into groups; None deletes one."""
        for name, id, group in moves:
            if group is None:
                operation: Any = Delete(DATABASE, name, id, None)
            else:
                large = {"pad": "x" * 40_000} if id == "2" else {}  # two views of it exceed a buffer
                operation = Replace(DATABASE, name, id, {"g": group, "h": 0, **large}, None, MAX_BYTES)
            with suppress(ApiError):
                await self.writer.submit(operation)
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
                    self._promise_one(reader, change.seq)  # even to one that left: it may have read the log
        del self.untold[:commits]

    def subscribe(self, back: int, wanted: set[Topic], limit: int) -> None:
        position = max(self.trimmed, self.hub.committed(DATABASE) - back)
        self._start(position, dict.fromkeys(wanted, 0), limit)

    def _start(self, position: int, wants: dict[Topic, int], limit: int) -> None:
        reader = Reader(FakeSink(), {topic: max(since, position) for topic, since in wants.items()}, position)
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
        self._promise(reader)
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

    def want(self, reader: Reader, wanted: set[Topic], back: int) -> None:
        """A client's subscribe and unsubscribe. New topics are wanted from the head on, or from before it."""
        if reader.gone:
            return
        disk = self.history[-1].seq if self.history else 0
        received = set(reader.received())
        for topic in reader.wants.keys() - wanted:
            # Some events that it no longer wants may be on their way, or have come from the log, before the hub
            # was told of them.
            told = self.hub.committed(DATABASE)
            for key in self.events:
                if self.is_about(topic, key) and (key not in received or key[1] > told):
                    reader.must.discard(key)
                    reader.maybe.add(key)
            del reader.wants[topic]
            reader.had.add(topic)
            reader.subscriber.unwant(topic)
        for topic in wanted - reader.wants.keys():
            # What was wanted before could come twice; then from where nothing has come yet.
            since = disk if reader.had else max(self.trimmed, self.hub.committed(DATABASE) - back)
            reader.rewound = reader.rewound or since < reader.subscriber.reached
            reader.subscriber.want(topic, since)
            reader.wants[topic] = since
        self._promise(reader)

    def last(self, reader: Reader, topic: Topic) -> int:
        """Where a topic stands."""
        seqs = [key[1] for key in reader.received() if self.is_about(topic, key)]
        return max([*seqs, reader.wants[topic]])

    def line(self, key: Key) -> str:
        """What is in order, whatever else was wanted from further back: a query, or a collection."""
        id, seq = key
        return id or self.history[seq - 1].collection

    def is_about(self, topic: Topic, key: Key) -> bool:
        id, seq = key
        if isinstance(topic, Query):
            return id == topic.id
        return id is None and topic in (None, self.history[seq - 1].collection)

    def _promise(self, reader: Reader) -> None:
        """What is wanted of the changes that the hub knows."""
        for seq in range(1, self.hub.committed(DATABASE) + 1):
            self._promise_one(reader, seq)

    def _promise_one(self, reader: Reader, seq: int) -> None:
        for topic, since in reader.wants.items():
            key = (topic.id if isinstance(topic, Query) else None, seq)
            if seq > since and key in self.events and self.is_about(topic, key) and key not in reader.maybe:
                reader.must.add(key)

    def leave(self, reader: Reader) -> None:
        reader.gone = True
        told = self.hub.committed(DATABASE)
        reader.maybe |= {key for key in self.events if key[1] > told}  # it may have read ahead
        reader.subscriber.close()
        if reader.scope is not None:
            reader.scope.cancel()

    def resume(self, reader: Reader, limit: int) -> None:
        """Come back, each topic with its last seq that arrived whole. A gap is told before anything is
        promised."""
        self.leave(reader)
        wants = {topic: self.last(reader, topic) for topic in reader.wants}
        position = min(wants.values(), default=self.hub.committed(DATABASE))
        if position >= self.trimmed:
            self._start(position, wants, limit)

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
        assert len(received) == len(set(received)), "twice"
        assert set(received) <= reader.must | reader.maybe, "something that was not wanted"
        lines: dict[str, list[int]] = {}
        for key in received:
            lines.setdefault(self.line(key), []).append(key[1])
        assert all(seqs == sorted(seqs) for seqs in lines.values()), "not in order"
        if not reader.rewound:
            assert [seq for _, seq in received] == sorted(seq for _, seq in received), "not in order"
        if reader.behind and not reader.rewound:
            assert self.trimmed > reader.position
        last = received[-1][1] if received and not reader.rewound else 0
        due = {
            (id, seq)
            for id, seq in reader.must
            if not reader.gone or seq < last or seq <= max(lines.get(self.line((id, seq)), [0]))
        }
        assert due <= set(received), "something is missing"
        reached = replies = 0
        for message in reader.messages():
            if "seq" in message:
                assert message["seq"] > reached or reader.rewound, "a reply told of an event that came after it"
            else:
                reached, replies = max(reached, message["reached"]), replies + 1
        assert replies <= reader.replies
        if not reader.gone:
            assert replies == reader.replies, "a reply is missing"
            events = [text for text in payloads(reader.sink.data) if b'"seq"' in text[:6]]
            assert events == [self.events[key] for key in received]


# --- Hypothesis ----------------------------------------------------------------------------------

names = st.sets(st.sampled_from(NAMES))
queries = st.sets(st.sampled_from(QUERIES))
wanted = st.tuples(st.just({None}) | names, st.just(set()) | queries).map(lambda both: both[0] | both[1])
backs = st.sampled_from([0, 0, 1, 3, 30])
moves = st.lists(
    st.tuples(st.sampled_from("ab"), st.sampled_from(IDS), st.none() | st.sampled_from(GROUPS)),
    min_size=1,
    max_size=4,
)
which = st.integers(0, 9)
limits = st.sampled_from([1, 3, 1000])
written = st.lists(st.sampled_from(NAMES), min_size=1, max_size=3)
# Few steps end a subscriber: one that lives long gets into more situations.
steps = st.one_of(
    st.tuples(st.just("write"), written, st.sampled_from([1, 300, 30_000]), st.integers(0, 3)),
    st.tuples(st.just("write"), written, st.sampled_from([1, 300, 30_000]), st.integers(1, 3)),
    st.tuples(st.just("tell"), st.integers(1, 3)),
    st.tuples(st.just("move"), moves, st.integers(0, 3)),
    st.tuples(st.just("move"), moves, st.integers(1, 3)),
    st.tuples(st.just("subscribe"), backs, wanted, limits),
    st.tuples(st.just("want"), which, wanted, backs),
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
            if name in ("write", "move"):
                await getattr(system, name)(*arguments)
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
