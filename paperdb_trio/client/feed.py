"""One subscription, as the link that feeds it sees it.

Law: no I/O, no decisions.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Protocol

import trio

from paperdb_trio.client.buffer import Buffer
from paperdb_trio.client.errors import PaperDBError
from paperdb_trio.client.status import Statuses
from paperdb_trio.client.types import State, Status


class Holder(Protocol):
    """Who feeds it: a link."""

    def remove(self, feed: Feed) -> None: ...


@dataclass(eq=False)
class Feed:
    """`start`: it wants what comes after this seq; None: from now, which seq that is the server will say.

    `started` is set when it has a start and a connection, or has ended, and then `error` says why.
    `unanswered` counts the collections that the server has been asked for and not yet confirmed.
    """

    collections: frozenset[str]
    start: int | None
    buffer: Buffer
    goes_on_after_gap: bool
    statuses: Statuses = field(default_factory=lambda: Statuses(Status(State.CONNECTING)))
    started: trio.Event = field(default_factory=trio.Event)
    error: Exception | None = None
    link: Holder | None = None
    unanswered: int = 0

    def end(self, error: PaperDBError) -> None:
        """What is buffered can still be taken; then the iterator raises a copy of `error`."""
        self.error = error = copy.copy(error)
        self.buffer.close(error)
        self.statuses._end(Status(State.CLOSED, error.message, error=error))
        self.started.set()

    def leave(self, reason: str) -> None:
        """Nobody is interested any more."""
        self.error = self.error or trio.ClosedResourceError(reason)
        self.buffer.discard(trio.ClosedResourceError(reason))
        self.statuses._end(Status(State.CLOSED, reason))
        self.started.set()
