"""The base of every live connection: a grant that can end, and a heartbeat.

Law: closes a connection only through `close`; needs no task and no timer of its own (it is on the wheel).
"""

from __future__ import annotations

import logging
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

import trio

from paperdb_trio.auth.tokens import Grant
from paperdb_trio.delivery.encodings import Encoding
from paperdb_trio.delivery.subscriber import BehindTheLog, Subscriber
from paperdb_trio.errors import ApiError
from paperdb_trio.loop.wheel import Wheel
from paperdb_trio.net.stream import ByteStream
from paperdb_trio.realtime.protocol import CloseCode
from paperdb_trio.services import Services
from paperdb_trio.store.protocol import Interest

log = logging.getLogger("paperdb.connection")

CLOSE_SECONDS = 1.0
"""Time for a client to read the current message, and then to respond to a close frame."""


class Live(ABC):
    """A connection whose task reads from the peer until `_interrupt`.

    A second task, the sender, exists only while the subscriber has events that the stream does not accept
    immediately. It runs beside the first one, in the same nursery, and ends before it: a nursery for each
    connection took 10 µs and 1.5 KB of it.
    """

    __slots__ = (
        "_accounts",
        "_close_by",
        "_closing",
        "_expires",
        "_grant",
        "_hub",
        "_nursery",
        "_pinged",
        "_reading",
        "_scope",
        "_sender",
        "_settings",
        "_stream",
        "_subscriber",
        "_wheel",
        "due",
        "number",
        "since",
    )

    transport: ClassVar[str]

    def __init__(
        self,
        services: Services,
        wheel: Wheel,
        stream: ByteStream,
        grant: Grant,
        interest: Interest,
        encoding: Encoding,
    ) -> None:
        self._settings = services.settings
        self._accounts = services.accounts
        self._hub = services.hub
        self._wheel = wheel
        self._stream = stream
        self._pinged = -math.inf
        self._reading = False
        self._scope: trio.CancelScope | None = None
        self._nursery: trio.Nursery | None = None
        self._sender: tuple[trio.CancelScope, trio.Event] | None = None
        """While there is one: what cancels it, and what is set when it has ended."""
        self._closing: tuple[int, str] | None = None
        self._close_by = math.inf
        self._take_grant(grant)
        self.due: int | None = None  # the wheel's
        self.number = 0  # the gateway's
        self.since = time.time()
        self._subscriber = Subscriber(
            services.hub,
            services.store,
            grant.database.id,
            encoding,
            stream,
            interest,
            self._start_sender,
            queue_events=services.settings.queue_events,
            queue_bytes=services.settings.queue_bytes,
        )

    @property
    def subscriber(self) -> Subscriber:
        return self._subscriber

    def _begin_events(self) -> None:
        """Call it before the first event, after the response to the handshake, which must be read in time."""
        self._nursery = trio.lowlevel.current_task().parent_nursery
        self._stream.write_timeout = math.inf  # slow is not gone
        log.debug("live connection of %s: key %s", self._stream.peer, self._grant.key_id)
        self._wheel.add(self, min(self._expires, self._stream.last_received + self._settings.ping_interval))

    async def _end_events(self) -> None:
        """Call it at the end, whatever happened."""
        self._wheel.remove(self)
        self._subscriber.close()
        if self._sender is not None:
            scope, done = self._sender
            scope.cancel()
            with trio.CancelScope(shield=True):
                await done.wait()
        self._stream.end()

    def _is_closing(self) -> bool:
        """Ask by this call again after an `await`: mypyc keeps what an `if` said of an attribute."""
        return self._closing is not None

    def _take_grant(self, grant: Grant) -> None:
        self._grant = grant
        self._expires = trio.current_time() + grant.expires - time.time()

    def close(self, code: int, reason: str, *, grace: float = CLOSE_SECONDS) -> None:
        """Close with this code, after the current write, within `grace` seconds."""
        if self._closing is None:
            log.debug("closing a live connection of %s: %d %s", self._stream.peer, code, reason)
            self._closing = (code, reason)
            self._close_by = trio.current_time() + grace
            self._subscriber.close()
            if self._sender is None:
                self._interrupt()
            else:  # when it has ended, at the latest at `_close_by`
                self._wheel.add(self, self._close_by)

    def _interrupt(self) -> None:
        """Let the connection's task do nothing more for its peer.

        Waits of any length must be `_interruptible`. A scope around all that the task does took 7 µs of a
        connect, and 1 KB of each idle connection.
        """
        if self._reading:
            self._stream.interrupt()
            if self._scope is not None:
                self._scope.cancel()

    @contextmanager
    def _interruptible(self) -> Iterator[trio.CancelScope]:
        """The body is cancelled by `_interrupt`."""
        with trio.CancelScope() as self._scope:
            try:
                yield self._scope
            finally:
                self._scope = None

    def _stop_reading(self) -> None:
        self._reading = False
        self._stream.resume()

    def _start_sender(self) -> None:
        assert self._nursery is not None
        scope, done = self._sender = trio.CancelScope(), trio.Event()
        self._nursery.start_soon(self._send, scope, done)

    async def _send(self, scope: trio.CancelScope, done: trio.Event) -> None:
        try:
            with scope:
                await self._subscriber.run()
        except BehindTheLog:
            self.close(CloseCode.BEHIND_THE_LOG, "behind the log's oldest change")
        except ApiError as error:  # the log could not be read in time
            log.warning("closing a subscriber: %s", error.message)
            self.close(CloseCode.RESTARTING, "busy")
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._interrupt()
        except Exception:  # it ends only its own connection
            log.exception("events to %s failed", self._stream.peer)
            self._interrupt()
        finally:
            self._sender = None
            done.set()
            if self._closing is not None:
                self._interrupt()

    async def _sent(self) -> bool:
        """Wait for the end of the current write, or of its time; returns whether it is complete."""
        with trio.move_on_at(self._close_by):
            if self._sender is not None:
                await self._sender[1].wait()
        return self._sender is None

    @property
    def grant(self) -> Grant:
        return self._grant

    @property
    def address(self) -> str:
        return self._stream.peer

    def progress(self) -> tuple[int | None, int]:
        """Bytes that the peer's machine has acknowledged (None: unknown), and bytes that it has not yet."""
        sent, unsent = self._stream.progress()
        return sent, unsent + self._subscriber.queued_bytes

    @property
    def mode(self) -> str:
        """Whether events have a seq (`cursor`) or not (`plain`)."""
        return "cursor"

    def enforce(self) -> None:
        """Close it if its key or token was revoked, or its plan has lost realtime."""
        key = self._accounts.key(self._grant.key_id)
        if key is None or key.revoked:
            self.close(CloseCode.ACCESS_LOST, "API key revoked")
        elif self._grant.is_revoked(self._accounts):
            self.close(CloseCode.ACCESS_LOST, "token revoked")
        elif (database := self._accounts.database(self._grant.database.id)) is None:
            self.close(CloseCode.ACCESS_LOST, "the database was deleted")
        elif not database.realtime:
            self.close(CloseCode.ACCESS_LOST, "the plan has no realtime")

    def check(self, now: float) -> float | None:
        """Called by the wheel when due. Returns when to check again; None: never."""
        if self._closing is not None:
            if now < self._close_by:
                return self._close_by
            self._interrupt()
            return None
        if now >= self._expires:
            self.close(CloseCode.TOKEN_EXPIRED, "token expired")
            return None
        try:
            again = self._check_peer(now)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._interrupt()
            return None
        return None if self._is_closing() else min(self._expires, again)

    @abstractmethod
    def _check_peer(self, now: float) -> float:
        """Send a heartbeat if it is due, or `close` if the peer is gone; returns when to check again.

        May raise Broken- and ClosedResourceError.
        """
