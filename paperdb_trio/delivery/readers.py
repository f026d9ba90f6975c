"""Those who listen without a subscriber: a long poll that waits, an event stream that a framework sends.

Law: a reader does nothing by itself. It is for those who look: the inspector, figures. The code that reads the
log for it says how far it is, and ends once it is closed.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import trio

from paperdb_trio.auth.tokens import Grant
from paperdb_trio.delivery.hub import Hub
from paperdb_trio.delivery.states import SubscriberState
from paperdb_trio.store.protocol import Interest, Topic


@dataclass(eq=False, slots=True)
class Reader:
    """`position`: the seq up to which it was given everything; `unsent` bytes of that were not taken yet.
    `behind`: the log had more."""

    transport: str
    address: str
    grant: Grant
    hub: Hub
    topic: Topic
    position: int
    behind: bool = True
    unsent: int = 0
    closed: bool = False
    number: int = 0
    since: float = field(default_factory=time.time)
    origin: int = field(init=False)
    interest: Interest = field(init=False)
    _waiting: trio.CancelScope | None = None

    def __post_init__(self) -> None:
        self.origin = self.position
        self.interest = {self.topic: 0}

    async def wait(self, seconds: float) -> bool:
        """Wait for changes beyond its position, at most so long, or until it is closed. Returns whether there
        may be some. Raises what `Hub.wait` does."""
        with trio.move_on_after(0 if self.closed else seconds) as self._waiting:
            await self.hub.wait(self.database_id, self.topic, self.position)
        found, self._waiting = not self._waiting.cancelled_caught, None
        return found

    def close(self, code: int = 0, reason: str = "") -> None:
        """There is no way to tell the client: it asks again, or it has lost its access."""
        self.closed = True
        if self._waiting is not None:
            self._waiting.cancel()

    @property
    def subscriber(self) -> Reader:
        """It is its own."""
        return self

    @property
    def mode(self) -> str:
        return "cursor"

    def progress(self) -> tuple[int | None, int]:
        """As of a connection: what was sent before is not known."""
        return None, self.unsent

    @property
    def database_id(self) -> int:
        return self.grant.database.id

    @property
    def state(self) -> SubscriberState:
        if self.closed:
            return SubscriberState.CLOSED
        is_behind = self.behind or (self.unsent and self._waiting is None)
        return SubscriberState.CATCHING_UP if is_behind else SubscriberState.LIVE

    @property
    def reached(self) -> int:
        """As of a subscriber: while it is live, nothing that was published beyond its position concerns it."""
        published = self.hub.published(self.database_id) if self.state is SubscriberState.LIVE else 0
        return max(self.position, published)

    @property
    def lag(self) -> int:
        return max(0, self.hub.committed(self.database_id) - self.reached)


class Readers:
    """`open`: those there are. `numbers`: what tells every connection of this process apart."""

    def __init__(self) -> None:
        self.open: set[Reader] = set()
        self.numbers = itertools.count(1)

    @contextmanager
    def reading(self, reader: Reader) -> Iterator[Reader]:
        reader.number = next(self.numbers)
        self.open.add(reader)
        try:
            yield reader
        finally:
            self.open.discard(reader)
