"""The fast path of live subscribers: each committed change is encoded once and handed to all who want it.

Law: hands out only what is committed, each database's changes in order of seq. Never waits for a subscriber.
Lets other tasks run while it publishes. It owns the feeds and the bounds of each database's log. What concerns
one subscriber is in `subscriber`.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Final, NamedTuple

import trio

from paperdb_trio.delivery import feed as feed_module
from paperdb_trio.delivery.encodings import WAKE, Encoding
from paperdb_trio.delivery.feed import Chunk, Feed, FeedKey, LaneMember, Member, Write
from paperdb_trio.delivery.pages import KeptPages
from paperdb_trio.delivery.views import ENOUGH_BYTES, RESET, Seen, see, view_text
from paperdb_trio.errors import ApiError
from paperdb_trio.loop.turn import TimeSlice
from paperdb_trio.match.change import Judged
from paperdb_trio.match.matcher import Matcher, MatcherLimits
from paperdb_trio.match.query import Query
from paperdb_trio.model import Change
from paperdb_trio.store.protocol import Topic

MAX_JOINED: Final = 1000
"""Changes that are published as one portion. Under load it joins small commits: fewer and larger writes."""
PORTION_BYTES: Final = 1024 * 1024
"""Bytes of documents in one portion: it is encoded and joined in one go, while no other task runs."""
COUNTED: Final = 1000
"""Collections of one database whose changes are counted apart, because clients may make and drop any number."""
CHUNK_BYTES: Final = 64 * 1024
"""Bytes of events in one buffer, about: each buffer is one system call per subscriber."""


@dataclass(slots=True)
class _Database:
    """`committed`: the seq up to which changes are on disk. `published`: the seq up to which they are handed
    out, at most `committed`. `began`: both at the start, or the end of the last break. `publishing`: some are
    being handed out now.
    """

    committed: int = 0
    published: int = 0
    began: int = 0
    publishing: bool = False
    trimmed: int = 0
    breaks: list[tuple[int, int]] = field(default_factory=list)
    """Where the log has no changes: after the first seq, up to the second one."""
    feeds: dict[FeedKey, Feed] = field(default_factory=dict)
    by_topic: dict[Topic, set[Feed]] = field(default_factory=dict)
    followers: dict[Query, int] = field(default_factory=dict)
    """How many follow each query that is in `matcher`."""
    matcher: Matcher = field(kw_only=True)
    changes: dict[str, int] = field(default_factory=dict)
    """How many of each collection were published since the start."""
    latest: dict[str, int] = field(default_factory=dict)
    """The seq of the last one of each, with the same names."""
    deliveries: int = 0
    live_bytes: int = 0
    log_bytes: int = 0


class Figures(NamedTuple):
    """What was counted for a database since the start, and what there is. `logged`: changes in the log.
    `unpublished`: changes that are committed, not yet handed out. `deliveries`, `live_bytes`: what live
    subscribers were offered; `log_bytes`: what others were sent from the log. `changes`: published ones by
    collection; those of the collections beyond `COUNTED` have an empty name."""

    head: int
    trimmed: int
    logged: int
    unpublished: int
    queries: int
    residual: int
    deliveries: int
    live_bytes: int
    log_bytes: int
    changes: dict[str, int]


@dataclass(frozen=True, slots=True)
class _Break:
    database_id: int
    since: int
    until: int


class _Waiter:
    """A task that sleeps until something is offered to it."""

    __slots__ = ("_after", "_task")

    def __init__(self, after: int) -> None:
        self._after = after
        self._task: trio.lowlevel.Task | None = None

    async def wait(self) -> None:
        self._task = trio.lowlevel.current_task()

        def give_up(_: object) -> trio.lowlevel.Abort:
            self._task = None
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(give_up)

    def wake(self) -> None:
        if self._task is not None:
            task, self._task = self._task, None
            trio.lowlevel.reschedule(task)

    def offer(self, chunk: Chunk, feed: Feed) -> None:
        if chunk.last > self._after:
            self.wake()

    def settle(self) -> None:
        pass  # it writes nothing

    def look(self) -> None:
        self.wake()


class Hub:
    """Run `run()` in a nursery. It ends when cancelled. `limits`: those of the `Matcher` of each database."""

    def __init__(self, limits: MatcherLimits = MatcherLimits()) -> None:  # noqa: B008 - it is immutable
        self._limits = limits
        # One that is not in it was created by another process since we started: it has no changes yet.
        self._databases: defaultdict[int, _Database] = defaultdict(self._database)
        self.pages = KeptPages()
        self._inbox: deque[list[Change] | _Break] = deque()
        self._parked: trio.lowlevel.Task | None = None
        self._waiters: set[_Waiter] = set()
        self._no_waiting = False
        self._turn = TimeSlice()
        self.published_changes = 0
        self.deliveries = 0

    # --- the log's bounds ------------------------------------------------------------------------

    def set_bounds(self, database_id: int, head: int, trimmed: int) -> None:
        """Take over a database's bounds as its file has them, at start-up."""
        self._databases[database_id] = self._database(head, trimmed)

    def _database(self, head: int = 0, trimmed: int = 0) -> _Database:
        return _Database(head, head, head, trimmed=trimmed, matcher=Matcher(self._limits))

    def set_trimmed(self, database_id: int, trimmed: int) -> None:
        database = self._databases[database_id]
        database.trimmed = max(database.trimmed, trimmed)
        if database.breaks:
            database.breaks = [broken for broken in database.breaks if broken[1] > database.trimmed]

    def committed(self, database_id: int) -> int:
        """The head: the seq of the last change that is on disk and known to the event loop."""
        return self._databases[database_id].committed

    def published(self, database_id: int) -> int:
        """The seq up to which every change has been handed to every live subscriber that wants it."""
        return self._databases[database_id].published

    def last_published(self, database_id: int, topics: Iterable[Topic]) -> int:
        """The seq of the last published change that may concern one of the topics. At least that of the head
        when the hub began, because it does not know earlier ones, and that behind the last break."""
        database = self._databases[database_id]
        last = database.began
        for topic in topics:
            if topic is None:
                return max(last, database.published)
            name = topic if isinstance(topic, str) else topic.collection
            last = max(last, database.latest.get(name) or database.latest.get("", 0))
        return last

    def trimmed(self, database_id: int) -> int:
        """The seq of the newest change that is gone from the log. The oldest kept change is the next."""
        return self._databases[database_id].trimmed

    def missing(self, database_id: int, position: int) -> int | None:
        """None if the log has every change after seq `position`; else the seq up to which it lacks some."""
        database = self._databases[database_id]
        for since, until in database.breaks:
            if since < position < until:
                return until
        return None if database.trimmed <= position <= database.committed else database.trimmed

    def changes_after(self, database_id: int, position: int) -> int:
        """How many the log has after seq `position`."""
        database = self._databases[database_id]
        left_out = sum(until - since for since, until in database.breaks if since >= position)
        return max(0, database.committed - position - left_out)

    # --- who is live -----------------------------------------------------------------------------

    def add(self, member: Member, database_id: int, key: FeedKey) -> Feed:
        """Put it into the feed of that key, outside the lane. Returns the feed."""
        database = self._databases[database_id]
        feed = database.feeds.get(key)
        if feed is None:
            feed = database.feeds[key] = Feed(key, database)
            for topic in key[1]:
                database.by_topic.setdefault(topic, set()).add(feed)
        feed.add(member)
        return feed

    def remove(self, member: Member, database_id: int, feed: Feed) -> None:
        """Take it out of its feed. It is outside the lane."""
        feed.remove(member)
        database = self._databases[database_id]
        if not len(feed) and database.feeds.get(feed.key) is feed:
            del database.feeds[feed.key]
            for topic in feed.key[1]:
                feeds = database.by_topic[topic]
                feeds.discard(feed)
                if not feeds:
                    del database.by_topic[topic]

    def enter_lane(
        self, member: LaneMember, database_id: int, feed: Feed, position: int, write: Write
    ) -> int | None:
        """Move it into its feed's lane. Returns its slot; None if it is not where the lane is."""
        database = self._databases[database_id]
        if database.publishing or position != database.published:
            return None
        return feed.enter_lane(member, write)

    def follow(self, database_id: int, topics: Iterable[Topic]) -> None:
        """Hold changes against these topics' queries, from now on. Raises a 400, having done nothing, if there
        are too many that no index finds."""
        database = self._databases[database_id]
        followed: list[Topic] = []
        try:
            for topic in topics:
                if isinstance(topic, Query):
                    database.matcher.add(topic)
                    database.followers[topic] = database.followers.get(topic, 0) + 1
                    followed.append(topic)
        except ApiError:
            self.unfollow(database_id, followed)
            raise

    @contextmanager
    def following(self, database_id: int, topics: Iterable[Topic]) -> Iterator[None]:
        """`follow` while the block lasts. Whatever it does with these topics cannot be refused any more."""
        self.follow(database_id, topics)
        try:
            yield
        finally:
            self.unfollow(database_id, topics)

    def check(self, database_id: int, topic: Topic) -> None:
        """Raises what `follow` would now."""
        with self.following(database_id, [topic]):
            pass

    def unfollow(self, database_id: int, topics: Iterable[Topic]) -> None:
        """Undo one `follow` of each of these topics."""
        database = self._databases[database_id]
        for topic in topics:
            if isinstance(topic, Query):
                database.followers[topic] -= 1
                if not database.followers[topic]:
                    del database.followers[topic]
                    database.matcher.remove(topic)

    @property
    def queries(self) -> tuple[int, int]:
        """How many queries are followed, and how many of them no index finds."""
        databases = self._databases.values()
        return sum(len(d.followers) for d in databases), sum(d.matcher.residual for d in databases)

    # --- figures ---------------------------------------------------------------------------------

    def count_from_log(self, database_id: int, size: int) -> None:
        """A subscriber that catches up was given that many bytes."""
        self._databases[database_id].log_bytes += size

    def figures(self) -> dict[int, Figures]:
        """What was counted, and what there is, by database."""
        return {
            id: Figures(
                of.committed,
                of.trimmed,
                self.changes_after(id, of.trimmed),
                of.committed - of.published,
                len(of.followers),
                of.matcher.residual,
                of.deliveries,
                of.live_bytes,
                of.log_bytes,
                dict(of.changes),
            )
            for id, of in self._databases.items()
        }

    # --- publishing ------------------------------------------------------------------------------

    def on_commit(self, changes: list[Change]) -> None:
        """Take over what was committed. Call it in commit order. Never blocks."""
        for database_id, seq in {change.database_id: change.seq for change in changes}.items():
            self._databases[database_id].committed = seq
        self._put(changes)

    def on_break(self, database_id: int, since: int, until: int) -> None:
        """The log has no changes after seq `since` up to `until`: some were lost, and may have been published.
        Call it in commit order, like `on_commit`."""
        database = self._databases[database_id]
        database.breaks.append((since, until))
        database.began = max(database.began, until)
        self.pages.clear()
        database.trimmed = min(database.trimmed, since)  # what was trimmed may have been lost, too
        if until > database.committed:
            database.committed = until
            self._put(_Break(database_id, since, until))

    def _put(self, item: list[Change] | _Break) -> None:
        self._inbox.append(item)
        if self._parked is not None:
            task, self._parked = self._parked, None
            trio.lowlevel.reschedule(task)

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        task_status.started()
        while True:
            while self._inbox:
                if isinstance(first := self._inbox[0], _Break):
                    self._inbox.popleft()
                    self._pass(first)
                else:
                    await self._publish(self._next_portion())
            self._parked = trio.lowlevel.current_task()

            def unpark(_: object) -> trio.lowlevel.Abort:
                self._parked = None
                return trio.lowlevel.Abort.SUCCEEDED

            await trio.lowlevel.wait_task_rescheduled(unpark)
            self._turn.begin()

    def _next_portion(self) -> list[Change]:
        """Several small commits, or a part of a large one."""
        portion: list[Change] = []
        size = 0
        while self._inbox and len(portion) < MAX_JOINED and size < PORTION_BYTES:
            changes = self._inbox[0]
            if isinstance(changes, _Break):
                break
            self._inbox.popleft()
            for index, change in enumerate(changes, 1):
                size += len(change.data)
                if size >= PORTION_BYTES and index < len(changes):
                    self._inbox.appendleft(changes[index:])
                    changes = changes[:index]
                    break
            portion = portion + changes if portion else changes
        return portion

    def _pass(self, broken: _Break) -> None:
        """Go on behind a break. Live subscribers that were given what is lost find out from the log."""
        database = self._databases[broken.database_id]
        if database.published > broken.since:
            for feed in tuple(database.feeds.values()):
                for member in feed.members:
                    member.look()
        database.published = broken.until

    async def wait(self, database_id: int, topic: Topic, after: int) -> None:
        """Return when there may be a change of the topic after seq `after`, or after `stop_waiting`. Raises
        what `follow` does."""
        if self._no_waiting or self.committed(database_id) > after:
            return
        waiter = _Waiter(after)
        with self.following(database_id, [topic]):
            feed = self.add(waiter, database_id, (WAKE, frozenset({topic})))
            self._waiters.add(waiter)
            try:
                await waiter.wait()
            finally:
                self._waiters.discard(waiter)
                self.remove(waiter, database_id, feed)

    def stop_waiting(self) -> None:
        """Let every `wait` return at once, now and from now on."""
        self._no_waiting = True
        for waiter in self._waiters:
            waiter.wake()

    async def _publish(self, changes: list[Change]) -> None:
        by_database: dict[int, list[Change]] = {}
        for change in changes:
            by_database.setdefault(change.database_id, []).append(change)
        for database_id, own in by_database.items():
            database = self._databases[database_id]
            offered = size = 0
            database.publishing = True
            plan = await self._plan(database, own, await self._see(database, own))
            for feed, chunks in plan:
                for chunk in chunks:
                    members = len(feed)
                    offered += members
                    size += members * len(chunk.data)
                    feed.begin(chunk)
                    while feed.write_some():
                        if self._turn.is_over():
                            await self._turn.pass_on()
                    # The lane comes first: a member that leaves it meanwhile is outside by now.
                    for index, member in enumerate(feed.outside):
                        member.offer(chunk, feed)
                        if not index % feed_module.STEP and self._turn.is_over():
                            await self._turn.pass_on()
                    if self._turn.is_over():  # there may be as many feeds as subscribers
                        await self._turn.pass_on()
            _count(database, own)
            database.published = own[-1].seq
            database.publishing = False
            for feed, _ in plan:
                for member in feed.outside:
                    member.settle()
            database.deliveries += offered
            database.live_bytes += size
            self.deliveries += offered
        self.published_changes += len(changes)
        if self._turn.is_over():
            await self._turn.pass_on()

    async def _see(self, database: _Database, changes: list[Change]) -> dict[Query, list[tuple[Change, Seen]]]:
        """What the changes are to each query that they concern.

        Other tasks run meanwhile. A subscriber that becomes live is beyond these changes already, and no lane
        takes in a member.
        """
        found: dict[Query, list[tuple[Change, Seen]]] = {}
        if not database.followers:
            return found
        for change in changes:
            judged = Judged(change)
            candidates = database.matcher.candidates(change.collection, judged)
            for query in candidates:
                seen = see(query, judged)
                if seen is not None:
                    found.setdefault(query, []).append((change, seen))
                    if seen[1] == RESET:  # it has ended: no change is held against it any more
                        database.matcher.remove(query)
                if self._turn.is_over():
                    await self._turn.pass_on()
            if self._turn.is_over():
                await self._turn.pass_on()
        return found

    async def _plan(
        self, database: _Database, changes: list[Change], seen: dict[Query, list[tuple[Change, Seen]]]
    ) -> list[tuple[Feed, list[Chunk]]]:
        """Which feed gets which buffers. Feeds that want the same events in the same encoding share buffers."""
        if not database.feeds:
            return []
        names: set[Topic] = {change.collection for change in changes}
        topics = names | seen.keys() | {None}
        feeds = set().union(*(database.by_topic.get(topic, ()) for topic in topics))
        texts: dict[tuple[Encoding, int], bytes] = {}
        buffers: dict[tuple[Encoding, frozenset[Topic]], list[Chunk]] = {}
        plan = []
        for feed in feeds:
            encoding, wanted = feed.key
            touched = wanted & topics
            same = (encoding, touched | names if None in wanted else touched)
            chunks = buffers.get(same)
            if chunks is None:
                own = [change for change in changes if change.collection in same[1]]
                for change in own:
                    if (encoding, change.seq) not in texts:
                        texts[encoding, change.seq] = encoding.event(change)
                events = [(change.seq, texts[encoding, change.seq]) for change in own]
                sizes: dict[int, int] = {}
                for query in wanted.intersection(seen):  # `& seen.keys()` is no frozenset
                    assert isinstance(query, Query)
                    for change, one in seen[query]:
                        size = sizes.get(change.seq, 0)
                        text = view_text(
                            encoding, change, one if size < ENOUGH_BYTES else (query, RESET, b"size")
                        )
                        sizes[change.seq] = size + len(text)
                        events.append((change.seq, text))
                events.sort(key=_seq)
                chunks = buffers[same] = _chunks(encoding, events, changes[0].seq - 1, changes[-1].seq)
            plan.append((feed, chunks))
            if self._turn.is_over():  # there may be as many feeds as subscribers
                await self._turn.pass_on()
        return plan


_seq = itemgetter(0)


def _count(database: _Database, changes: list[Change]) -> None:
    counts, latest = database.changes, database.latest
    for change in changes:
        name = change.collection
        if name not in counts and len(counts) >= COUNTED:
            name = ""
        counts[name] = counts.get(name, 0) + 1
        latest[name] = change.seq


def _chunks(encoding: Encoding, events: list[tuple[int, bytes]], after: int, last: int) -> list[Chunk]:
    """Join the events of one commit, which runs from `after` (exclusive) to `last`, into buffers.

    The events of one change stay together, because a position cannot be in the middle of them.
    """
    chunks: list[Chunk] = []
    texts: list[bytes] = []
    size, seq = 0, after
    for next_seq, text in events:
        if texts and next_seq != seq and size + len(text) > CHUNK_BYTES:
            chunks.append(Chunk(after, seq, encoding.join(texts)))
            after, texts, size = seq, [], 0
        texts.append(text)
        size += len(text)
        seq = next_seq
    chunks.append(Chunk(after, last, encoding.join(texts)))
    return chunks
