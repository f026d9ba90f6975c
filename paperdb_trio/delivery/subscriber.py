"""One subscriber: a position in the change log, and how it moves.

Law: every way of listening (WebSocket, server-sent events) is a `Subscriber` with another sink. It is
live, when the hub hands it bytes, or catching up, when its own task reads the log at the pace of its
reader; it never has more in memory than its queue's limits and one page.

Invariant: every change up to `_position` that it wants has been given to its sink or queue, in order of
seq, exactly once; nothing after it has. Becoming live is one synchronous step (compare with the hub's
head, register), so nothing falls between the log and the hub, and nothing comes from both.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Final, Protocol

import trio

from paperdb_trio.delivery.encodings import Encoding
from paperdb_trio.delivery.hub import Feed, Hub
from paperdb_trio.delivery.lane import Chunk, Write
from paperdb_trio.store.change_log import FIRST_ROWS, MAX_ROWS, PAGE_BYTES, ChangeLog, Interest


class Sink(Protocol):
    """Where a subscriber's bytes go."""

    @property
    def needs_flush(self) -> bool:
        """Whether a part of what `push` took is still to be written, by the next `send_all`."""
        ...

    def push(self, data: bytes) -> int:
        """Take all of `data` without blocking; returns how many bytes of it the next `send_all` has yet to
        write. Or take nothing, and return -1: something is being written."""
        ...

    async def send_all(self, data: bytes) -> None:
        """Write `data` after all that was taken before. Raises trio's Broken- and ClosedResourceError."""
        ...

    def keep(self, tail: memoryview) -> None:
        """What a writer did not take, for the next `send_all`."""
        ...

    def writer(self) -> Write | None:
        """The shortest way to write whole messages, as long as everything goes through it; None while
        something is in the way."""
        ...


class State(Enum):
    NEW = "new"
    LIVE = "live"
    CATCHING_UP = "catching up"
    CLOSED = "closed"


MOVES: Final[dict[State, frozenset[State]]] = {
    State.NEW: frozenset({State.LIVE, State.CATCHING_UP, State.CLOSED}),
    State.LIVE: frozenset({State.CATCHING_UP, State.CLOSED}),
    State.CATCHING_UP: frozenset({State.LIVE, State.CLOSED}),
    State.CLOSED: frozenset(),
}


class IllegalMove(Exception):
    """A bug of ours: a subscriber was told to become what it cannot from where it is."""


class BehindTheLog(Exception):
    """The subscriber's position is older than the oldest kept change."""


class Subscriber:
    """`start()` it at a position; `close()` it at the end. Whoever makes it owns the sink, and gives it
    `need_task`: a callable that soon has `run()` running in a task, one at a time. A live subscriber whose
    sink takes everything at once needs no task, which is what makes ten thousand idle ones cheap.
    """

    __slots__ = (
        "_database_id",
        "_encoding",
        "_feed",
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
        "_running",
        "_sink",
        "_slot",
        "state",
    )

    def __init__(
        self,
        hub: Hub,
        log: ChangeLog,
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
        self._running = False  # a task runs, or is about to
        self._queue: list[bytes] = []
        self._queue_events = queue_events
        self._queue_bytes = queue_bytes
        self._queued_bytes = 0
        self._room: trio.Event | None = None  # somebody waits for the queue to get shorter
        self._rows = FIRST_ROWS
        self._position = 0
        self._feed: Feed | None = None
        self._slot = -1  # in the feed's lane, which then knows its position
        self.state = State.NEW

    # --- moves -----------------------------------------------------------------------------------

    def _move(self, state: State) -> None:
        if state not in MOVES[self.state]:
            legal = ", ".join(sorted(move.value for move in MOVES[self.state])) or "nothing"
            raise IllegalMove(f"a subscriber that is {self.state.value} can become {legal}; not {state.value}")
        self._leave_lane()
        self.state = state
        if self._feed is not None:
            self._hub.remove(self, self._database_id, self._feed)
            self._feed = None
        if state is State.LIVE:
            collections = None if self._interest is None else frozenset(self._interest)
            self._feed = self._hub.add(self, self._database_id, (self._encoding, collections))
            self.settle()

    def settle(self) -> None:
        """Into the lane, if nothing has to be written before what the lane writes."""
        if self._feed is not None and self._slot < 0 and not self._running:
            write = self._sink.writer()
            if write is not None:
                self._slot = self._hub.settle(self, self._database_id, self._feed, self._position, write)

    def _leave_lane(self) -> None:
        if self._slot >= 0:
            assert self._feed is not None
            self._is_out(self._feed, self._feed.lane.leave(self._slot))

    def _is_out(self, feed: Feed, position: int) -> None:
        """The lane has let us go: from here on we are an ordinary member, with a position of our own."""
        self._slot = -1
        self._position = position
        feed.members.add(self)

    def start(self, position: int) -> None:
        """Begin after seq `position`, live if that is the head."""
        self._position = position
        if self._at_head():
            self._move(State.LIVE)
        else:
            self._fall_behind(position)

    def _at_head(self) -> bool:
        return self._position >= self._hub.committed(self._database_id)

    @property
    def reached(self) -> int:
        """The seq up to which everything that it wants has been given to its sink or queue."""
        if self._slot >= 0:
            assert self._feed is not None
            return self._feed.lane.where(self._slot)
        if self.state is State.LIVE:
            return max(self._position, self._hub.published(self._database_id))
        return self._position

    def _fall_behind(self, position: int) -> None:
        self._leave_lane()
        self._position = position
        self._move(State.CATCHING_UP)
        self._wake()

    def close(self) -> None:
        """Take no more; `run` returns when what is just being written is written."""
        if self.state is not State.CLOSED:
            self._move(State.CLOSED)
            self._make_room()

    # --- what it wants ---------------------------------------------------------------------------

    def set_interest(self, interest: Interest) -> None:
        """Want other collections from now on. What is wanted since before goes on without a gap."""
        self._interest = interest
        self._interest_version += 1
        if self.state is State.LIVE:
            # Everything published has been handed over. If the hub is in the middle of a commit it works
            # on a list of feeds from before this change: then the log tells the rest.
            position = self.reached
            self._leave_lane()
            self._position = position
            if self._at_head():
                self._move_feed()
            else:
                self._fall_behind(self._position)

    def _move_feed(self) -> None:
        self._move(State.CATCHING_UP)
        self._move(State.LIVE)

    # --- live ------------------------------------------------------------------------------------

    def offer(self, chunk: Chunk, feed: Feed) -> None:
        """Called by the hub, for the feed that it thinks this subscriber is in. Never blocks."""
        if self._feed is not feed or chunk.last <= self._position:
            return
        if self._position > chunk.after:  # it became live from a page that ended inside this commit
            self._fall_behind(self._position)
            return
        data = chunk.data
        if not self._running:
            try:
                left = self._sink.push(data)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                self.close()  # whoever reads from the peer ends the connection
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

    def put_out(self, chunk: Chunk, position: int, sent: int) -> None:
        """The lane's: it has let us go, as our writer took only `sent` bytes of the chunk."""
        assert self._feed is not None
        self._is_out(self._feed, position)
        if sent:
            if sent > 0:
                self._sink.keep(memoryview(chunk.data)[sent:])
            self._position = chunk.last
            self._wake()
        else:
            self.offer(chunk, self._feed)

    def broken(self) -> None:
        """The lane's: it has let us go. Whoever reads from the peer ends the connection."""
        assert self._feed is not None
        self._slot = -1
        self._feed.members.add(self)
        self.close()

    def interject(self, data: bytes) -> bool:
        """Give the sink something that is no event, now or not at all; whether it has taken it.

        Raises trio's Broken- and ClosedResourceError.
        """
        left = -1 if self._running else self._sink.push(data)
        if left > 0:
            self._wake()
        return left >= 0

    def _enqueue(self, data: bytes) -> None:
        self._queue.append(data)
        self._queued_bytes += len(data)
        self._wake()

    def _wake(self) -> None:
        """See that a task runs: there is something to write, or to read from the log."""
        if not self._running:
            self._leave_lane()
            self._running = True
            self._need_task()

    async def post(self, data: bytes) -> None:
        """Give the sink something that is no event, behind what is queued. Waits while the queue is full."""
        while self._is_full() and self.state is not State.CLOSED:
            if self._room is None:
                self._room = trio.Event()
            await self._room.wait()
        left = -1 if self._running else self._sink.push(data)
        if left < 0:
            self._enqueue(data)
        elif left:
            self._wake()

    def _is_full(self) -> bool:
        """What is just being sent counts as well, as far as it came from the queue."""
        return len(self._queue) >= self._queue_events or self._queued_bytes >= self._queue_bytes

    def _make_room(self) -> None:
        if self._room is not None:
            self._room.set()
            self._room = None

    # --- the task --------------------------------------------------------------------------------

    async def run(self) -> None:
        """Write what is queued, and catch up, until there is nothing to do or it is closed.

        Raises `BehindTheLog`, and Broken- and ClosedResourceError of the sink.
        """
        try:
            while self.state is not State.CLOSED:
                if self._queue:
                    await self._send_queued()
                elif self.state is State.CATCHING_UP:
                    await self._send_page()
                elif self._sink.needs_flush:
                    await self._sink.send_all(b"")
                else:
                    return
        finally:
            self._running = False
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
        version = self._interest_version
        page = await self._log.page(
            self._database_id, self._position, self._interest, self._encoding.text, self._rows
        )
        while self._queue:  # replies given meanwhile: what they say of the position is true before the page
            await self._send_queued()
        if self.state is not State.CATCHING_UP or version != self._interest_version:
            return
        if page.expired:
            raise BehindTheLog(f"position {self._position}, oldest kept change {page.trimmed + 1}")
        self._position = page.position
        if page.events:
            data = self._encoding.join(page.events)
            self._rows = max(1, min(MAX_ROWS, PAGE_BYTES * len(page.events) // len(data)))
            # Nobody else writes events while it catches up; a reply to the client may go in between.
            await self._sink.send_all(data)
        # Caught up with what the event loop knows: live from here, in this very step.
        if page.reached_end and self.state is State.CATCHING_UP and self._at_head():
            self._move(State.LIVE)
