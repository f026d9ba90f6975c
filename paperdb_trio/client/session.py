"""One connection of a link, from the server's `ready` to its end.

Law: `run` ends only by an exception. One task reads, and acts on the server's messages in their order; the
others only send.

A collection that is added to a live connection starts at the `seq` in the server's reply `subscribed`. Several
that are added together start at the latest of their seqs, which is not always that of the last reply. A reply
without one does not say where the collection starts. Then the connection is made anew at the same cursor, and
the added collection starts at the head that `ready` names.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Awaitable, Callable
from typing import Protocol

import trio

from .backoff import Backoff
from .buffer import Received
from .channel import Channel
from .errors import PaperDBError
from .token import Token, TokenSource, is_passing
from .types import ConnectionState
from .wire import Lost, Message, Stop, TokenRefused, Wire, retry_after

PING_SECONDS = 10.0
"""From the deadline of the last pong to the next ping. The server's own pings do not reveal a half-open
connection; and its pongs keep the cursor of a quiet collection recent."""
PONG_SECONDS = 15.0
READY_SECONDS = 10.0
QUIET_SECONDS = 1.0
"""A server sends the past without pause: once it is quiet for this long, the link is live."""
EVENTS = frozenset({"insert", "update", "delete"})
AUTH = "auth"


def received(message: Message) -> Received:
    """What a message with an event tells."""
    assert message.seq is not None
    return Received(
        message.type, message.collection, message.seq, message.data, message.cause or None, message.txn
    )


class Again(Exception):
    """Connect again at once; nothing is wrong."""


class Host(Protocol):
    """A session's link, as the session sees it: its channels, and what it must be told."""

    channels: list[Channel]
    cursor: int
    shared: bool

    @property
    def wanted(self) -> frozenset[str]: ...

    def remove(self, channel: Channel) -> None: ...

    def refuse_uncovered(self, token: Token, asked: frozenset[str]) -> None: ...

    def begins(self) -> None: ...

    def show(self, state: ConnectionState, reason: str = "", retry_in: float | None = None) -> None: ...

    def note(self, reason: str = "", retry_in: float | None = None) -> None: ...

    def is_live(self) -> None: ...

    async def deliver(self, event: Received) -> None: ...

    def advance(self, seq: int) -> None: ...

    def missed(self, oldest: int, head: int) -> None: ...

    def reset(self, channel: Channel, reason: str, seq: int) -> None: ...


class Session:
    """`subscribed`: what the server has been asked to send. Set `changed` when the link's channels change.

    `from_head`: no channel has a position yet; the session begins wherever the server is.
    """

    def __init__(self, link: Host, tokens: TokenSource, token: Token) -> None:
        self._link = link
        self._tokens = tokens
        self._token = self._offered = token
        self._followed = token
        """Under which token the server follows what it sends."""
        for channel in link.channels:
            channel.unanswered = 0  # what an earlier connection was asked for
        channels = [channel for channel in link.channels if token.covers(channel.collections)]
        self.subscribed = set[str]().union(*(channel.collections for channel in channels))
        self._new = [channel for channel in channels if channel.start is None]
        self.from_head = len(self._new) == len(channels)
        self.changed = trio.Event()
        self.changed.set()
        self._uncovered = trio.Event()
        self._renew_at = token.renew_at(tokens.margin)
        self._decided: trio.Event | None = None
        self._denial: PaperDBError | None = None
        self._refs = itertools.count(1)
        self._asked: dict[int, Channel] = {}
        self._head = 0
        self._catching_up = False
        self._paused = False
        self._resumed = trio.current_time()
        self._failure: Exception | None = None

    async def run(self, wire: Wire) -> None:
        """Always ends by raising `Again`, `Lost`, `Stop` or `TokenRefused`."""
        self._wire = wire
        await self._begin()
        async with trio.open_nursery() as nursery:
            for task in (self._read, self._reconcile, self._renew, self._ping, self._settle):
                nursery.start_soon(self._guarded, task, nursery.cancel_scope)
        if self._failure is not None:
            raise self._failure

    async def _guarded(self, task: Callable[[], Awaitable[None]], scope: trio.CancelScope) -> None:
        try:
            await task()
        except (Again, Lost, Stop, TokenRefused) as error:
            self._failure = self._failure or error
            scope.cancel()

    async def _begin(self) -> None:
        ready = None
        with trio.move_on_after(READY_SECONDS):
            ready = await self._wire.receive()
        if ready is None or ready.type != "ready" or ready.seq is None:
            raise Lost("the server did not say that it is ready")
        self._head = ready.seq
        link = self._link
        for channel in tuple(link.channels):
            before, channel.views = channel.views, self._token.views(channel.collections)
            if channel.start is not None and before not in (None, channel.views):
                link.reset(channel, "rule", self._head)
        for channel in self._new:
            channel.start = self._head
        if self.from_head:
            link.cursor = self._head
        link.begins()
        self._catching_up = link.cursor < self._head
        if self._catching_up:
            link.show(ConnectionState.CATCHING_UP)
        else:
            link.is_live()
        for channel in link.channels:
            if channel.start is not None:
                channel.started.set()

    # --- what the server says --------------------------------------------------------------------

    async def _read(self) -> None:
        link = self._link
        while True:
            message = await self._wire.receive()
            self._paused = not link.shared
            await self._take(message)
            self._paused, self._resumed = False, trio.current_time()
            if self._catching_up and self._caught_up():
                self._is_live()

    def _caught_up(self) -> bool:
        return self._link.cursor >= self._head

    async def _take(self, message: Message) -> None:
        link = self._link
        if message.type in EVENTS and message.seq is not None:
            await link.deliver(received(message))
        elif message.type == "gap":
            link.missed(message.oldest, self._head)
            self._is_live()
        elif message.type == "reset":
            self._take_reset(message)
            if not self._catching_up:
                self._is_live()
        elif message.type == "pong":
            link.advance(message.seq or 0)
        else:
            self._take_reply(message)

    def _take_reset(self, message: Message) -> None:
        name = message.collection  # "": an older server names the query only, which may be of any
        for channel in tuple(self._link.channels):
            if channel.start is None or name not in ("", *channel.collections):
                continue
            channel.views = (channel.views or {}) | self._followed.views(channel.collections & {name})
            self._link.reset(channel, message.reason, message.seq or 0)

    def _renewed(self) -> None:
        """What the new token shows otherwise has ended. A reset says when the server follows it anew."""
        self._followed = self._offered
        for channel in self._link.channels:
            if channel.views is not None:
                views = self._followed.views(channel.collections)
                channel.views = {name: view for name, view in channel.views.items() if view == views[name]}

    def _take_reply(self, message: Message) -> None:
        channel = self._asked.pop(message.ref, None) if isinstance(message.ref, int) else None
        if message.ref == AUTH and self._decided is not None:
            if message.type == "error":
                if not is_passing(message.code, message.message):
                    raise TokenRefused(None)
                self._offered, self._denial = self._token, PaperDBError(401, message.code, message.message)
            else:
                self._renewed()
            self._decided.set()
        elif message.type == "error":
            if channel is not None and channel.link is self._link:
                self._link.remove(channel)
                status = 403 if message.code == "NOT_IN_TOKEN" else 400
                channel.end(PaperDBError(status, message.code, message.message))
        elif message.type == "subscribed" and channel is not None and channel.link is self._link:
            if message.seq is None:
                raise Again
            channel.unanswered -= 1
            channel.confirmed = max(channel.confirmed, message.seq)
            if not channel.unanswered:
                channel.start = channel.confirmed
                channel.views = self._followed.views(channel.collections)
                channel.started.set()

    def _is_live(self) -> None:
        self._catching_up = False
        self._link.is_live()

    # --- what the client says --------------------------------------------------------------------

    async def _settle(self) -> None:
        """Notice the end of catching up when the last changes are of other collections."""
        while self._catching_up:
            cursor, paused = self._link.cursor, self._paused
            if not paused:
                await self._wire.send({"action": "ping"})
            await trio.sleep(QUIET_SECONDS)
            if self._catching_up and cursor == self._link.cursor and not (paused or self._paused):
                self._is_live()

    async def _ping(self) -> None:
        while True:
            await trio.sleep(PING_SECONDS)
            if self._paused:  # nothing is read, so nothing can be heard
                continue
            sent = trio.current_time()
            with trio.move_on_after(PONG_SECONDS):
                await self._wire.send({"action": "ping"})
            await trio.sleep_until(sent + PONG_SECONDS)
            if not self._paused and max(self._wire.heard, self._resumed) < sent:
                raise Lost("no response to a ping")

    async def _reconcile(self) -> None:
        """Have the server send what the channels want now, as far as the token allows."""
        link = self._link
        while True:
            await self.changed.wait()
            self.changed = trio.Event()
            await self._unsubscribe()
            for channel in tuple(link.channels):
                if channel in link.channels and channel.start is None and not channel.unanswered:
                    # While a token is offered, the server may go by it already.
                    if self._token.covers(channel.collections) and self._offered.covers(channel.collections):
                        await self._subscribe(channel)
                    else:
                        self._uncovered.set()

    async def _unsubscribe(self) -> None:
        while unwanted := self.subscribed - self._link.wanted:  # a name may be wanted again after each send
            name = min(unwanted)
            self.subscribed.discard(name)
            await self._wire.send({"action": "unsubscribe", "collection": name})

    async def _subscribe(self, channel: Channel) -> None:
        channel.unanswered, channel.confirmed = len(channel.collections), 0
        for name in sorted(channel.collections):
            ref = next(self._refs)
            self._asked[ref] = channel
            self.subscribed.add(name)
            await self._wire.send({"action": "subscribe", "collection": name, "ref": ref})

    # --- tokens ----------------------------------------------------------------------------------

    async def _renew(self) -> None:
        """Give the server a new token before the old one ends, or when a channel wants more than it covers."""
        while True:
            with trio.move_on_at(self._renew_at):
                await self._uncovered.wait()
            self._uncovered = trio.Event()
            await self._authorize()

    async def _authorize(self) -> None:
        """Replace the token; keep trying while there is a reason to. Everything else goes on meanwhile."""
        link = self._link
        backoff = Backoff()
        reason = ""
        while trio.current_time() >= self._renew_at or not self._token.covers(link.wanted):
            try:
                await self._replace()
                continue
            except PaperDBError as error:
                if not (error.transient or is_passing(error.code, error.message)):
                    self._give_up(error)
                    return
                reason = f"no new token: {error}"
                wait = backoff.next(retry_after(error))
            link.note(reason, wait)
            await trio.sleep(wait)
        if reason:
            link.note()

    async def _replace(self) -> None:
        """Get a token for all that is wanted, and give it to the server. Ends channels that it does not cover.

        Raises `PaperDBError` if there is none, or the server refuses it.
        """
        link = self._link
        asked = link.wanted
        token = await self._tokens.another(asked, self._token)
        link.refuse_uncovered(token, asked)
        await self._unsubscribe()
        asking = (channel.collections for channel in link.channels if channel.unanswered)
        if not token.covers(frozenset(self.subscribed).union(*asking)):
            return  # a channel was added meanwhile, and the old token covers it
        if token.text != self._token.text:
            self._decided, self._denial, self._offered = trio.Event(), None, token
            await self._wire.send({"action": AUTH, "token": token.text, "ref": AUTH})
            await self._decided.wait()
            self.changed.set()
            if self._denial is not None:
                raise self._denial
        self._token = token
        self._renew_at = token.renew_at(self._tokens.margin)

    def _give_up(self, error: PaperDBError) -> None:
        """There will be no new token. The one in use may still be good for a while. When it ends, the link
        connects anew; if there is no token then either, its channels end with that error."""
        if trio.current_time() >= self._renew_at:
            self._renew_at = math.inf
            self._link.note(f"no new token: {error}")
        for channel in tuple(self._link.channels):
            if not self._token.covers(channel.collections):
                self._link.remove(channel)
                channel.end(error)
