"""One subscriber: a position in the change log, and how it moves.

Law: every way of listening (WebSocket, server-sent events) is a `Subscriber` with another sink. While it is
live, the hub hands it bytes. While it catches up, its own task reads the log at its reader's pace. It never has
more in memory than its queue's limits and one page.

Invariant: every change up to `_position` that it wants has been given to its sink or queue, in order of seq,
exactly once. Nothing after `_position` has. It becomes live in one synchronous step (compare with the hub's
head, register), so nothing falls between the log and the hub, and nothing comes from both.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import trio

from paperdb_trio.delivery.encodings import Encoding
from paperdb_trio.delivery.feed import Chunk, Feed, Write
from paperdb_trio.delivery.hub import Hub
from paperdb_trio.delivery.pages import KeptPage, PageKey, Reading
from paperdb_trio.delivery.states import MOVES, IllegalMove, Situation, SubscriberState
from paperdb_trio.delivery.views import page_text
from paperdb_trio.errors import ApiError
from paperdb_trio.store.protocol import FIRST_ROWS, MAX_ROWS, PAGE_BYTES, Interest, Log, Page, Topic


class Sink(Protocol):
    """Where a subscriber's bytes go."""

    @property
    def needs_flush(self) -> bool:
        """Whether the next `send_all` still has to write a part of what `push` took."""
        ...

    def push(self, data: bytes) -> int:
        """Take all of `data` without blocking. Returns how many bytes are left for the next `send_all`.

        Returns -1, and takes nothing, while something is being written.
        """
        ...

    async def send_all(self, data: bytes) -> None:
        """Write `data` after all that was taken before. Raises trio's Broken- and ClosedResourceError."""
        ...

    def keep(self, tail: memoryview) -> None:
        """Keep what neither a writer nor `push` took for the next `send_all`, behind what waits already."""
        ...

    def writer(self) -> Write | None:
        """The shortest way to write whole messages, as long as everything goes through it. None while something
        is in the way."""
        ...


def _no_task() -> None:
    pass


class BehindTheLog(Exception):
    """The subscriber's position is older than the oldest kept change."""


class Subscriber:
    """`start()` it at a position; `close()` it at the end. Its maker owns the sink.

    `need_task` is a callable that soon has `run()` running in a task. It is not called again before `run()` has
    ended. A live subscriber whose sink takes everything at once has no task: ten thousand idle ones are cheap.
    """

    __slots__ = (
        "_database_id",
        "_encoding",
        "_feed",
        "_follows",
        "_has_task",
        "_hub",
        "_interest",
        "_interest_version",
        "_log",
        "_need_task",
        "_position",
        "_queue",
        "_queue_bytes",
        "_queue_events",
        "_queued_bytes",
        "_room",
        "_rows",
        "_sink",
        "_slot",
        "origin",
        "state",
    )

    def __init__(
        self,
        hub: Hub,
        log: Log,
        database_id: int,
        encoding: Encoding,
        sink: Sink,
        interest: Interest,
        need_task: Callable[[], None],
        *,
        queue_events: int,
        queue_bytes: int,
    ) -> None:
        self._hub = hub
        self._log = log
        self._database_id = database_id
        self._encoding = encoding
        self._sink = sink
        self._interest = interest
        self._interest_version = 0
        self._need_task = need_task
        self._has_task = False  # it runs, or is about to
        self._queue: list[bytes] = []
        self._queue_events = queue_events
        self._queue_bytes = queue_bytes
        self._queued_bytes = 0
        self._room: trio.Event | None = None  # a `post` waits for the queue to get shorter
        self._rows = FIRST_ROWS
        self._position = 0
        self.origin = 0
        """The seq after which it began."""
        self._feed: Feed | None = None
        self._follows = False  # the hub holds changes against its queries
        self._slot: int | None = None  # in the feed's lane, which then knows its position
        self.state = SubscriberState.NEW

    # --- moves -----------------------------------------------------------------------------------

    @property
    def situation(self) -> Situation:
        return Situation(
            in_feed=self._feed is not None,
            in_lane=self._slot is not None,
            has_task=self._has_task,
            has_queue=bool(self._queue),
        )

    def _move(self, state: SubscriberState) -> None:
        if state not in MOVES[self.state]:
            legal = ", ".join(sorted(move.value for move in MOVES[self.state])) or "nothing"
            raise IllegalMove(f"a subscriber that is {self.state.value} can become {legal}; not {state.value}")
        self._leave_feed()
        self.state = state
        if state is SubscriberState.LIVE:
            self._enter_feed()

    def _enter_feed(self) -> None:
        key = (self._encoding, frozenset(self._interest))
        self._feed = self._hub.add(self, self._database_id, key)
        self.settle()

    def _leave_feed(self) -> None:
        if self._feed is not None:
            self._leave_lane()
            self._hub.remove(self, self._database_id, self._feed)
            self._feed = None

    def settle(self) -> None:
        """Enter the lane if nothing has to be written before what the lane writes."""
        if self._feed is not None and self._slot is None and not self._has_task:
            write = self._sink.writer()
            if write is not None:
                self._slot = self._hub.enter_lane(self, self._database_id, self._feed, self._position, write)

    def _leave_lane(self) -> None:
        """Have a position of its own again, if it is in the lane."""
        if self._slot is not None:
            assert self._feed is not None
            self._position = self._feed.leave_lane(self._slot)
            self._slot = None

    def start(self, position: int, first: bytes = b"") -> None:
        """Begin after seq `position`: live if that is the head, or if others have just read what is missing.
        The sink gets the bytes `first`, then events.

        Raises a 400, having done nothing, for too many queries that no index finds, and the sink's Broken- and
        ClosedResourceError.
        """
        self._hub.follow(self._database_id, self._interest)
        self._follows = True
        self._position = self.origin = position
        live = self._at_head()
        if not live:
            self._skip()
            live = self._at_head()
        if not live:
            page = self._kept_page(self._page_key())
            if page is not None and page.reached_end:
                self._position = page.position
                self._skip()
                live = self._at_head()
                self._hub.count_from_log(self._database_id, len(page.data))
                first += page.data
        if first and self._sink.push(first) < 0:
            self._sink.keep(memoryview(first))
        if live:
            self._move(SubscriberState.LIVE)
        else:
            self._fall_behind(self._position)
        if self._sink.needs_flush:
            self._wake()

    def _at_head(self) -> bool:
        """Whether it can be live. The hub knows no `since`, so that all must be behind it."""
        return self._position >= max(self._hub.committed(self._database_id), *self._interest.values(), 0)

    @property
    def reached(self) -> int:
        """The seq up to which everything that it wants has been given to its sink or queue."""
        if self._slot is not None:
            assert self._feed is not None
            return self._feed.where(self._slot)
        if self.state is SubscriberState.LIVE:
            return max(self._position, self._hub.published(self._database_id))
        return self._position

    @property
    def queued_bytes(self) -> int:
        """Bytes that wait here for the sink."""
        return self._queued_bytes

    @property
    def database_id(self) -> int:
        return self._database_id

    @property
    def lag(self) -> int:
        """Committed changes beyond what it has reached; 0 while it is live."""
        if self.state is not SubscriberState.CATCHING_UP:
            return 0
        return self._hub.changes_after(self._database_id, self._position)

    def _fall_behind(self, position: int) -> None:
        self._move(SubscriberState.CATCHING_UP)
        self._position = position
        self._wake()

    def close(self) -> None:
        """Take no more. `run` returns once the write that is under way is done."""
        if self.state is not SubscriberState.CLOSED:
            self._move(SubscriberState.CLOSED)
            # No cycle with its maker: a dead connection, with what OpenSSL holds for it, need not wait for the
            # garbage collector.
            self._need_task = _no_task
            if self._follows:
                self._hub.unfollow(self._database_id, self._interest)
            self._make_room()

    # --- what it wants ---------------------------------------------------------------------------

    @property
    def interest(self) -> Interest:
        """The topics that it wants now, each with the seq after which it does."""
        return self._interest

    def comes_after(self, topic: Topic) -> int:
        """The seq after which all changes of a topic are still to come: what has been reached, or what `want`
        named, if that is later."""
        return max(self.reached, self._interest[topic])

    def want(self, topic: Topic, since: int) -> None:
        """Want the changes of another topic after seq `since`, too. The other topics go on without a gap or a
        repetition, even if `since` is before what has been reached. Raises a 400, having done nothing, for too
        many queries that no index finds."""
        if self.state is SubscriberState.CLOSED:  # `unwant` took nothing out any more
            return
        assert topic not in self._interest
        self._hub.follow(self._database_id, [topic])
        reached = self.reached
        if since < reached:
            self._interest = {other: max(seen, reached) for other, seen in self._interest.items()}
        self._change_interest({**self._interest, topic: since}, min(since, reached))

    def unwant(self, topic: Topic) -> None:
        """Want a topic no more. No event of it is given to the sink from now on, but for those in the queue."""
        if self.state is SubscriberState.CLOSED:
            return
        kept = {other: since for other, since in self._interest.items() if other != topic}
        self._change_interest(kept, self.reached)
        self._hub.unfollow(self._database_id, [topic])

    def _change_interest(self, interest: Interest, position: int) -> None:
        self._interest = interest
        self._interest_version += 1
        if self.state is SubscriberState.LIVE:
            # Everything published has been handed over. In the middle of a commit, the hub works on a list of
            # feeds from before this change: then the rest comes from the log.
            self._leave_feed()
            self._position = position
            if self._at_head():
                self._enter_feed()
            else:
                self._fall_behind(position)
        else:
            self._position = position

    # --- live ------------------------------------------------------------------------------------

    def offer(self, chunk: Chunk, feed: Feed) -> None:
        """The hub's: a chunk for the members of `feed`, which this subscriber may have left. Never blocks."""
        if self._feed is not feed or chunk.last <= self._position:
            return
        if self._position > chunk.after:  # the page from which it became live ended inside this commit
            self._fall_behind(self._position)
            return
        data = chunk.data
        if not self._has_task:
            try:
                left = self._sink.push(data)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                self.close()  # the task that reads from the peer ends the connection
                return
            if left >= 0:
                self._position = chunk.last
                if left:
                    self._wake()
                return
        if len(self._queue) >= self._queue_events or self._queued_bytes + len(data) > self._queue_bytes:
            self._fall_behind(chunk.after)
            return
        self._enqueue(data)
        self._position = chunk.last

    def look(self) -> None:
        """The hub's: the log has lost changes. If they were given to the sink, its page says so."""
        if self.state is SubscriberState.LIVE:
            self._fall_behind(self.reached)

    def put_out(self, chunk: Chunk, position: int, sent: int) -> None:
        """The feed's: it is outside the lane now, as its writer took only `sent` bytes of the chunk."""
        assert self._feed is not None
        self._slot = None
        if sent:
            if sent > 0:
                self._sink.keep(memoryview(chunk.data)[sent:])
            self._position = chunk.last
            self._wake()
        else:
            self._position = position
            self.offer(chunk, self._feed)

    def broken(self) -> None:
        """The feed's: it is outside the lane now. The task that reads from the peer ends the connection."""
        self._slot = None
        self.close()

    def interject(self, data: bytes) -> bool:
        """Give the sink something other than an event, now or not at all. Returns whether the sink took it.

        Raises trio's Broken- and ClosedResourceError.
        """
        left = -1 if self._has_task else self._sink.push(data)
        if left > 0:
            self._wake()
        return left >= 0

    def _enqueue(self, data: bytes) -> None:
        self._queue.append(data)
        self._queued_bytes += len(data)
        self._wake()

    def _wake(self) -> None:
        """Have a task: there is something to write, or to read from the log."""
        if not self._has_task:
            self._leave_lane()
            self._has_task = True
            self._need_task()

    async def post(self, data: bytes) -> None:
        """Give the sink something other than an event, behind what is queued. Waits while the queue is full.

        Raises trio's Broken- and ClosedResourceError.
        """
        await self.room()
        self.put(data)

    async def room(self) -> None:
        """Wait while the queue is full."""
        while self._is_full() and self.state is not SubscriberState.CLOSED:
            if self._room is None:
                self._room = trio.Event()
            await self._room.wait()

    def put(self, data: bytes) -> None:
        """`post` without waiting, once there is `room`. What is put in the same step as a `want` comes before
        the first event of that topic.

        Raises trio's Broken- and ClosedResourceError.
        """
        left = -1 if self._has_task else self._sink.push(data)
        if left < 0:
            self._enqueue(data)
        elif left:
            self._wake()

    def _is_full(self) -> bool:
        """The bytes of the queue that are being sent count too."""
        return len(self._queue) >= self._queue_events or self._queued_bytes >= self._queue_bytes

    def _make_room(self) -> None:
        if self._room is not None:
            self._room.set()
            self._room = None

    # --- the task --------------------------------------------------------------------------------

    async def run(self) -> None:
        """Write what is queued, and catch up, until there is nothing to do or it is closed.

        Raises `BehindTheLog`, the log's `ApiError`, and the sink's Broken- and ClosedResourceError. Then, and
        when cancelled, the subscriber is closed: nothing else would write what is queued.
        """
        try:
            while self.state is not SubscriberState.CLOSED:
                if self._queue:
                    await self._send_queued()
                elif self.state is SubscriberState.CATCHING_UP:
                    await self._send_page()
                elif self._sink.needs_flush:
                    await self._sink.send_all(b"")
                else:
                    return
        except BaseException:
            self.close()
            raise
        finally:
            self._has_task = False
            self.settle()

    async def _send_queued(self) -> None:
        data = b"".join(self._queue) if len(self._queue) > 1 else self._queue[0]
        self._queue.clear()
        try:
            await self._sink.send_all(data)
        finally:
            self._queued_bytes -= len(data)
            self._make_room()

    async def _send_page(self) -> None:
        self._skip()
        if self._at_head():
            self._move(SubscriberState.LIVE)
            return
        version = self._interest_version
        page = await self._read_page()
        while self._queue:  # replies posted meanwhile: the position that they tell is from before the page
            await self._send_queued()
        if self.state is not SubscriberState.CATCHING_UP or version != self._interest_version:
            return
        if isinstance(page, Page):
            raise BehindTheLog(f"position {self._position}, oldest kept change {page.trimmed + 1}")
        self._position = page.position
        if page.events:
            self._rows = max(1, min(MAX_ROWS, PAGE_BYTES * page.events // len(page.data)))
            # No one else writes events while it catches up. A reply may go in between.
            await self._sink.send_all(page.data)
            self._hub.count_from_log(self._database_id, len(page.data))
        # It has caught up with what the event loop knows: it is live from here, in this very step.
        if self.state is SubscriberState.CATCHING_UP:
            self._skip()
            if self._at_head():
                self._move(SubscriberState.LIVE)

    # --- pages that others have read -------------------------------------------------------------

    def _page_key(self) -> PageKey:
        interest = frozenset(self._interest.items())
        return self._database_id, self._position, self._encoding, interest, self._rows

    def _kept_page(self, key: PageKey) -> KeptPage | None:
        """The page after its position, if others have read it, and it would be the same now."""
        page = self._hub.pages.get(key)
        if page is not None and page.reached_end:  # else it was full
            newest = self._hub.last_published(self._database_id, self._interest)
            return page if page.position >= newest else None
        return page

    def _skip(self) -> None:
        """Move over published changes that do not concern it."""
        if self._position >= self._hub.last_published(self._database_id, self._interest):
            self._position = max(self._position, self._hub.published(self._database_id))

    async def _read_page(self) -> KeptPage | Page:
        """The page after its position, which others may read or have read. A `Page` if it is expired."""
        key, pages = self._page_key(), self._hub.pages
        while (kept := self._kept_page(key)) is None:
            others = pages.reading.get(key)
            if others is None:
                return await self._read_for_all(key)
            await others.done.wait()
            if others.error is not None:
                raise others.error.with_traceback(None)
            if others.page is not None:
                return others.page
        await trio.lowlevel.checkpoint()
        return kept

    async def _read_for_all(self, key: PageKey) -> KeptPage | Page:
        pages, reading = self._hub.pages, Reading()
        pages.reading[key] = reading
        try:
            text = page_text(self._encoding, self._interest)
            try:
                page = await self._log.page(self._database_id, self._position, self._interest, text, self._rows)
            except ApiError as error:
                reading.error = error
                raise
            if page.expired:
                reading.page = page
                return page
            data = self._encoding.join(page.events)
            kept = reading.page = KeptPage(page.position, page.reached_end, len(page.events), data)
            if pages.reading.get(key) is reading:
                pages.keep(key, kept)
            return kept
        finally:
            if pages.reading.get(key) is reading:
                del pages.reading[key]
            reading.done.set()
