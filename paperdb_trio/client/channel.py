"""What lies between a link and one subscription.

Law: no I/O, no decisions.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import trio

from .buffer import Buffer, Received
from .errors import PaperDBError
from .status import StatusBoard
from .token import Rule
from .types import ConnectionState, Status


class Holder(Protocol):
    """The link that fills it."""

    def remove(self, channel: Channel) -> None: ...


@dataclass(frozen=True, slots=True)
class Query:
    """What a channel wants of its one collection. `snapshot`: without a start, it begins with all documents."""

    filter: Mapping[str, Any] | None
    select: tuple[str, ...] | None
    snapshot: bool = False


@dataclass(eq=False)
class Channel:
    """`start`: the subscription wants what comes after this seq. None: from now; the server will say which seq
    that is.

    `started` is set when it has a start and a connection, or has ended, and then `error` says why.
    `query_id` is the server's, which is another one under another rule. Without a query, `views` are what the
    server shows of its collections, under which it is where it is; a collection that the server is about to
    follow under another rule is missing there.
    `unanswered` counts the collections that the server has been asked for and has not confirmed yet.
    `confirmed` is the latest seq of its replies.
    """

    collections: frozenset[str]
    start: int | None
    buffer: Buffer
    goes_on_after_gap: bool
    query: Query | None = None
    query_id: str | None = None
    views: dict[str, Rule] | None = None
    status: StatusBoard = field(default_factory=lambda: StatusBoard(Status(ConnectionState.CONNECTING)))
    started: trio.Event = field(default_factory=trio.Event)
    error: Exception | None = None
    link: Holder | None = None
    unanswered: int = 0
    confirmed: int = 0

    def wants(self, event: Received) -> bool:
        return event.collection in self.collections and self.start is not None and event.seq > self.start

    def end(self, error: PaperDBError) -> None:
        """What is buffered can still be taken; then the iterator raises a copy of `error`."""
        self.error = error = copy.copy(error)
        self.buffer.close(error)
        self.status.end(Status(ConnectionState.CLOSED, error.message, error=error))
        self.started.set()

    def leave(self, reason: str) -> None:
        """The consumer has gone."""
        self.error = self.error or trio.ClosedResourceError(reason)
        self.buffer.discard(trio.ClosedResourceError(reason))
        self.status.end(Status(ConnectionState.CLOSED, reason))
        self.started.set()
