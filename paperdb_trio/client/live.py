"""`db.messages.live(…)`: a list that stays as the server has it.

Law: one task a list, in the client's nursery. It alone changes the window, under a lock that `more` takes as
well, so that a page is never older than the events before it. Readers are woken and take the newest list; none
holds anything up.

Without a limit, the server sends a snapshot and then what changes. With one, the list is a window: a find, and
what changed after its seq. The window knows some documents more than it shows; when it runs short of these, it
asks for those behind its edge.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Generic, TypeVar

import msgspec
import trio

from . import requests
from .backoff import Backoff
from .buffer import Buffer, Received
from .channel import Channel, Query
from .errors import GapError, PaperDBError
from .http import AsyncTransport
from .links import Links
from .query_session import BEGIN, LAST, SNAPSHOT
from .status import StatusBoard
from .types import ConnectionState, Document, Documents, Status
from .window import Order, Unordered, Window
from .wire import retry_after

V = TypeVar("V")

BUFFER_EVENTS = 1000
BUFFER_BYTES = 4 * 1024 * 1024
PAGE = 1000
"""The most documents of one find."""
LEAST_SLACK, MOST_SLACK = 10, 100


class _Board(StatusBoard):
    """Outlives the channels, which put up their states here one after another. Their `LIVE` is shown when what
    came before it is in the list, as `settle` says, and not while the list `is_behind`."""

    def __init__(self, first: Status, is_behind: Callable[[], bool]) -> None:
        super().__init__(first)
        self._is_behind = is_behind
        self._held: Status | None = None

    def publish(self, status: Status) -> None:
        self._held = status if status.state is ConnectionState.LIVE and self._is_behind() else None
        if self._held is None:
            super().publish(status)

    def settle(self) -> None:
        if self._held is not None:
            self.publish(self._held)

    def end(self, status: Status) -> None:
        if status.error is None:
            return  # the list goes on with another channel, or says so itself
        self.publish(status)

    def finish(self, status: Status) -> None:
        super().end(status)


class Live(Generic[V]):
    """Enter it once: `async with db.messages.live(…) as live`. Entering waits for the first list.

    `async for documents in live` gives the list now, and then each time it has changed; a reader that is slow
    misses lists between, never the newest. Each loop is a reader of its own. It raises `PaperDBError` when the
    list has ended for good, and `trio.ClosedResourceError` after the `async with` block or the client has been
    left. The documents are shared by all readers: do not change them.
    """

    def __init__(
        self,
        transport: AsyncTransport,
        links: Links,
        name: str,
        filter: Mapping[str, Any] | None,
        sort: str | Sequence[str] | None,
        limit: int | None,
        select: str | Sequence[str] | None,
        show: Callable[[Document], V],
    ) -> None:
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
            raise ValueError(f"limit is {limit!r}; expected a number of documents, 1 or more, or None for all")
        self._transport = transport
        self._links = links
        self._name = name
        self._filter = {} if filter is None else filter
        self._sort = sort
        self._step = limit
        order = Order(sort)
        chosen = requests.paths(select)
        # The fields of the sort are needed here, too.
        self._select = None if chosen is None else tuple(dict.fromkeys((*chosen, *order.paths)))
        self._newest_first = order.newest_first
        self._window = Window(order, limit, show)
        self._after: str | None = None
        self._lock = trio.Lock()
        self._scope = trio.CancelScope()
        self._entered = False
        self._begun = trio.Event()
        self._error: Exception | None = None
        self._readers = trio.lowlevel.ParkingLot()
        self._shown: tuple[int, list[V]] = (-1, [])
        self._channel: Channel | None = None
        """The one that it waits for."""
        self._board = _Board(Status(ConnectionState.CONNECTING), self._is_behind)

    def __repr__(self) -> str:
        return f"<live list of {self._name!r}>"

    # --- for users -------------------------------------------------------------------------------

    @property
    def documents(self) -> list[V]:
        """The list as it is now."""
        version, shown = self._shown
        if version != self._window.version:
            shown = self._window.documents()
            self._shown = self._window.version, shown
        return list(shown)

    @property
    def has_more(self) -> bool:
        """Whether there are documents beyond the limit."""
        return self._window.has_more

    @property
    def status(self) -> Status:
        """Whether the list is up to date (`LIVE`), and if not, why."""
        return self._board.statuses.current

    async def more(self, count: int | None = None) -> None:
        """Show so many more; by default, as many as `limit`. Raises `PaperDBError`, and then nothing has
        changed."""
        if self._step is None:
            return
        async with self._lock:
            if self._error is not None:
                raise self._error
            before = self._window.limit
            assert before is not None
            self._window.limit = before + (self._step if count is None else count)
            try:
                await self._fill()
            except BaseException:
                self._window.limit = before
                raise
            self._window.version += 1
        self._readers.unpark_all()

    def __aiter__(self) -> AsyncIterator[list[V]]:
        return _Reader(self)

    async def __aenter__(self) -> Live[V]:
        if self._entered:
            raise RuntimeError("A live list can be entered only once; call live() again")
        self._links.start(self._run, self._closed)
        self._entered = True
        try:
            await self._begun.wait()
            if self._error is not None:
                raise self._error
        except BaseException:
            self._leave("the live list has been left")
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave("the live list has been left")

    def _leave(self, why: str) -> None:
        self._scope.cancel()
        self._links.forget(self._closed)
        self._end(trio.ClosedResourceError(why), Status(ConnectionState.CLOSED, why))

    def _closed(self) -> None:
        self._leave("the client has been closed")

    def _end(self, error: Exception, status: Status) -> None:
        self._error = error
        self._board.finish(status)
        self._begun.set()
        self._readers.unpark_all()

    # --- its task --------------------------------------------------------------------------------

    async def _run(self) -> None:
        follow = self._follow_all if self._step is None else self._follow_window
        backoff = Backoff()
        with self._scope:
            while True:
                since = self._window.version
                await trio.lowlevel.checkpoint()  # a cancelled client takes no new channels
                try:
                    await follow()
                except Unordered:
                    self._show(ConnectionState.CATCHING_UP, "the place of a document is not known")
                except GapError as gap:
                    self._show(ConnectionState.CATCHING_UP, gap.message)
                    if gap.reason == "error":
                        await trio.sleep(backoff.next())
                except PaperDBError as error:
                    if not error.transient:
                        self._end(error, Status(ConnectionState.CLOSED, error.message, error=error))
                        return
                    if self._window.version > since:
                        backoff.reset()
                    wait = backoff.next(retry_after(error))
                    self._show(ConnectionState.OFFLINE, error.message, wait)
                    await trio.sleep(wait)

    def _show(self, state: ConnectionState, reason: str, retry_in: float | None = None) -> None:
        self._board.publish(Status(state, reason, retry_in))

    def _publish(self) -> None:
        self._begun.set()
        if self._shown[0] != self._window.version:
            self._readers.unpark_all()

    def _is_behind(self) -> bool:
        return self._channel is None or len(self._channel.buffer) > 0

    async def _take(self, channel: Channel) -> Received:
        """The next item. All before it are in the list."""
        self._channel = channel
        if not self._is_behind():
            self._board.settle()
        try:
            return await channel.buffer.take()
        finally:
            self._channel = None

    def _new_channel(self, *, snapshot: bool) -> Channel:
        query = Query(self._filter, self._select, snapshot)
        buffer = Buffer(BUFFER_EVENTS, BUFFER_BYTES)
        channel = Channel(frozenset((self._name,)), None, buffer, False, query, status=self._board)
        self._links.add(channel)
        return channel

    async def _follow_all(self) -> None:
        """A snapshot, and then events; the channel begins again with a snapshot by itself."""
        channel = self._new_channel(snapshot=True)
        snapshot: list[Document] = []
        try:
            while True:
                item = await self._take(channel)
                if item.type == BEGIN:
                    snapshot = []
                elif item.type in (SNAPSHOT, LAST):
                    snapshot += map(Document, msgspec.json.decode(item.data, type=list[dict[str, Any]]))
                    if item.type == LAST:
                        self._window.begin(item.seq)
                        if self._newest_first:
                            snapshot.reverse()
                        self._window.extend(snapshot, item.seq, more=False)
                        snapshot = []
                        self._publish()
                else:
                    self._apply(item)
                    self._publish()
        finally:
            _leave(channel)

    async def _follow_window(self) -> None:
        """Listen, then fetch: so the listener hears of another rule that comes between the two."""
        channel = self._new_channel(snapshot=False)
        try:
            await channel.started.wait()
            if channel.error is not None:
                raise channel.error
            async with self._lock:
                await self._fetch()
            self._publish()
            while True:
                item = await self._take(channel)
                async with self._lock:
                    self._apply(item)
                    if self._window.short:
                        await self._fill()
                    self._trim()
                self._publish()
        finally:
            _leave(channel)

    def _apply(self, item: Received) -> None:
        document = Document(msgspec.json.decode(item.data))
        document.seq = None if item.type == "delete" else item.seq
        self._window.apply(item.type, item.cause, document, item.seq)

    # --- the window ------------------------------------------------------------------------------

    @property
    def _slack(self) -> int:
        return min(max(self._window.limit or 0, LEAST_SLACK), MOST_SLACK)

    async def _fetch(self) -> None:
        """Get the window anew."""
        found = await self._find(None)
        assert found.seq is not None
        self._window.begin(found.seq)
        self._extend(found)
        await self._fill(begun=True)

    async def _fill(self, *, begun: bool = False) -> None:
        """Get what the window is short of. `begun`: the first page is of this moment."""
        while self._window.short:
            if self._after is None:
                await self._fetch()
                return
            try:
                self._extend(await self._find(self._after))
            except PaperDBError as error:
                if begun or error.code != "INVALID_CURSOR":
                    raise
                self._after = None  # the token has a rule since the last page, or none any more

    async def _find(self, after: str | None) -> Documents:
        wanted = (self._window.limit or 0) + self._slack - (0 if after is None else len(self._window))
        request = requests.find(
            self._name, self._filter, self._sort, min(wanted, PAGE), None, self._select, False, after
        )
        found = await self._transport.send(request, by_token=True)
        if found.seq is None:
            raise PaperDBError(0, "BAD_ANSWER", "The server is older than live queries: a find has no seq")
        return found

    def _extend(self, found: Documents) -> None:
        assert found.seq is not None
        self._window.extend(found, found.seq, more=found.has_more)
        self._after = found.next

    def _trim(self) -> None:
        """Forget what lies far beyond the limit. The server cannot continue from there, so do it rarely."""
        assert self._window.limit is not None
        if len(self._window) > self._window.limit + 4 * self._slack:
            self._window.trim(self._window.limit + 2 * self._slack)
            self._after = None


class _Reader(Generic[V]):
    def __init__(self, live: Live[V]) -> None:
        self._live = live
        self._seen = -1

    def __aiter__(self) -> AsyncIterator[list[V]]:
        return self

    async def __anext__(self) -> list[V]:
        await trio.lowlevel.checkpoint()
        live = self._live
        while self._seen == live._window.version or not live._begun.is_set():
            if live._error is not None:
                raise live._error.with_traceback(None)
            await live._readers.park()
        if isinstance(live._error, trio.ClosedResourceError):
            raise live._error.with_traceback(None)
        self._seen = live._window.version
        return live.documents


def _leave(channel: Channel) -> None:
    if channel.link is not None:
        channel.link.remove(channel)
    channel.leave("the live list has been left, or begins anew")
