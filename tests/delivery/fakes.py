"""A sink, a log and changes in memory: tests of the hub and its subscribers need no socket and no file."""

from __future__ import annotations

from collections.abc import Callable

import trio
from trio.testing import wait_all_tasks_blocked

from paperdb_trio.delivery.encodings import CURSOR, Encoding, cursor_event, plain_event
from paperdb_trio.delivery.hub import Hub
from paperdb_trio.delivery.subscriber import BehindTheLog, Subscriber
from paperdb_trio.errors import ApiError
from paperdb_trio.model import Change
from paperdb_trio.store.protocol import EventText, Interest, Page, Topic

DATABASE = 1


def change(seq: int, collection: str = "a", *, size: int = 10, database: int = DATABASE) -> Change:
    return Change(database, seq, "insert", collection, str(seq), b'{"n":"%b"}' % (b"x" * size))


def payloads(data: bytes | bytearray, *, partial: bool = False) -> list[bytes]:
    """The payloads of whole server frames. Fails on anything but text, and on half a frame unless `partial`."""
    found = []
    at = 0
    while at < len(data):
        assert data[at] == 0x81, f"{data[at]:#x} instead of a text frame"
        size = data[at + 1] if at + 1 < len(data) else 0
        start = at + {126: 4, 127: 10}.get(size, 2)
        if size >= 126:
            size = int.from_bytes(data[at + 2 : start], "big")
        at = start + size
        if at > len(data):
            assert partial, "a frame is cut"
            break
        found.append(bytes(data[start:at]))
    return found


def set_interest(subscriber: Subscriber, interest: Interest) -> None:
    """Want these topics, and no others."""
    for topic in subscriber.interest.keys() - interest.keys():
        subscriber.unwant(topic)
    for topic in interest.keys() - subscriber.interest.keys():
        subscriber.want(topic, interest[topic])


class FakeSink:
    """Takes bytes as a socket does: all, a part, or nothing while `blocked`.

    `pushed` counts writes that did not wait. `broken`: writing raises BrokenResourceError. `when_sent` is
    called once, at the end of the next write that waits.
    """

    def __init__(self) -> None:
        self.data = bytearray()
        self.pushed = 0
        self.broken = False
        self.take_part = False
        self.when_sent: Callable[[], object] | None = None
        self._tail = b""
        self._writing = trio.StrictFIFOLock()
        self._free = trio.Event()
        self._free.set()

    @property
    def blocked(self) -> bool:
        return not self._free.is_set()

    def block(self) -> None:
        if self._free.is_set():
            self._free = trio.Event()

    def unblock(self) -> None:
        self._free.set()

    @property
    def needs_flush(self) -> bool:
        return bool(self._tail)

    def push(self, data: bytes) -> int:
        if self.broken:
            raise trio.BrokenResourceError
        if self.blocked or self._tail or self._writing.locked():
            return -1
        self.pushed += 1
        cut = len(data) // 2 if self.take_part else len(data)
        self.data += data[:cut]
        self._tail = data[cut:]
        return len(self._tail)

    def keep(self, tail: memoryview) -> None:
        self._tail = bytes(tail)

    def writer(self) -> Callable[[bytes], int] | None:
        return None if self._tail or self._writing.locked() else self._write_some

    def _write_some(self, data: bytes) -> int:
        if self.broken:
            raise BrokenPipeError
        if self.blocked:
            raise BlockingIOError
        self.pushed += 1
        cut = len(data) // 2 if self.take_part else len(data)
        self.data += data[:cut]
        return cut

    async def send_all(self, data: bytes) -> None:
        async with self._writing:
            tail, self._tail = self._tail, b""
            for part in (tail, data):
                if part:
                    half = len(part) // 2
                    await self._write(part[:half])
                    await self._write(part[half:])
        if self.when_sent is not None:
            then, self.when_sent = self.when_sent, None
            then()

    async def _write(self, data: bytes) -> None:
        await trio.lowlevel.checkpoint()
        await self._free.wait()
        if self.broken:
            raise trio.BrokenResourceError
        self.data += data


class FakeLog:
    """A change log that is a list. `reads` counts pages. A page that has been read waits for `gate`, and then
    fails if there is an `error`."""

    def __init__(self) -> None:
        self.changes: list[Change] = []
        self.trimmed = 0
        self.breaks: list[tuple[int, int]] = []
        self.reads = 0
        self.rows: int | None = None
        self.error: ApiError | None = None
        self.gate = trio.Event()
        self.gate.set()

    @property
    def head(self) -> int:
        return self.changes[-1].seq if self.changes else 0

    async def page(
        self, database_id: int, after: int, interest: Interest, text: EventText, rows: int = 250
    ) -> Page:
        await trio.lowlevel.checkpoint()
        self.reads += 1
        rows = self.rows or rows
        head = self.head
        in_break = any(since < after < until for since, until in self.breaks)
        if in_break or not self.trimmed <= after <= head:
            page = Page([], after, True, head, self.trimmed, expired=True)
        else:
            wanted = [
                c
                for c in self.changes
                if c.seq > after and c.seq > min(interest.get(c.collection, c.seq), interest.get(None, c.seq))
            ][:rows]
            event = plain_event if text is EventText.PLAIN else cursor_event
            reached_end = len(wanted) < rows
            position = head if reached_end else wanted[-1].seq
            page = Page([event(c) for c in wanted], position, reached_end, head, self.trimmed)
        gate = self.gate
        await trio.lowlevel.checkpoint()
        await gate.wait()
        if self.error is not None:
            raise self.error
        return page


class World:
    """A hub, its log, and its subscribers. Their tasks run in `nursery`; without one, they never run. `errors`:
    what the tasks ended with."""

    def __init__(self, nursery: trio.Nursery | None = None) -> None:
        self.hub = Hub()
        self.log = FakeLog()
        self.errors: list[Exception] = []
        self.nursery = nursery

    def write(self, *collections: str, size: int = 10) -> list[Change]:
        """One commit of one change in each of these collections. The hub is not told."""
        changes = [change(self.log.head + 1 + n, name, size=size) for n, name in enumerate(collections)]
        self.log.changes += changes
        return changes

    def commit(self, *collections: str, size: int = 10) -> list[Change]:
        """The same, and the hub is told."""
        changes = self.write(*collections, size=size)
        self.hub.on_commit(changes)
        return changes

    async def commit_each(self, times: int, *collections: str) -> None:
        """So many commits. Every task is done with one before the next."""
        for _ in range(times):
            self.commit(*collections)
            await wait_all_tasks_blocked()

    def subscriber(
        self,
        sink: FakeSink,
        *collections: Topic,
        encoding: Encoding = CURSOR,
        queue_events: int = 1000,
        queue_bytes: int = 1_000_000,
    ) -> Subscriber:
        def need_task() -> None:
            if self.nursery is not None:
                self.nursery.start_soon(self._run, subscriber)

        subscriber = Subscriber(
            self.hub,
            self.log,  # type: ignore[arg-type]
            DATABASE,
            encoding,
            sink,
            dict.fromkeys(collections or (None,), 0),
            need_task,
            queue_events=queue_events,
            queue_bytes=queue_bytes,
        )
        return subscriber

    async def _run(self, subscriber: Subscriber) -> None:
        try:
            await subscriber.run()
        except (ApiError, BehindTheLog, trio.BrokenResourceError) as error:
            self.errors.append(error)

    def events(self, *collections: str, after: int = 0) -> list[bytes]:
        """The events in cursor mode of all changes so far, or of those in these collections."""
        return [
            cursor_event(c)
            for c in self.log.changes
            if c.seq > after and (not collections or c.collection in collections)
        ]

    def is_forgotten(self) -> bool:
        """Whether the hub holds no subscriber, no feed and no name."""
        return all(not d.feeds and not d.by_topic for d in self.hub._databases.values())
