"""What one subscription has received and its consumer has not yet taken.

Law: bounded by events and by bytes. Nothing is taken out before it can be handed over, nor put in halfway:
cancelling either side loses and repeats nothing.
"""

from __future__ import annotations

from collections import deque

import msgspec
import trio


class Received(msgspec.Struct, frozen=True):
    """An event off the wire; `data` is JSON text still, so that a waiting event costs what it weighs."""

    type: str
    collection: str
    seq: int
    data: msgspec.Raw

    @property
    def weight(self) -> int:
        return len(self.data) + 200


class Buffer:
    """One side puts, the other takes; `close` lets what is in it be taken first, `discard` does not."""

    def __init__(self, max_events: int, max_bytes: int) -> None:
        self._max_events = max_events
        self._max_bytes = max_bytes
        self._items: deque[Received] = deque()
        self._bytes = 0
        self._error: BaseException | None = None
        self._takers = trio.lowlevel.ParkingLot()
        self._putters = trio.lowlevel.ParkingLot()

    def __len__(self) -> int:
        return len(self._items)

    @property
    def closed(self) -> bool:
        return self._error is not None

    def offer(self, item: Received) -> bool:
        """Put `item` in if there is room (one always fits in an empty buffer). A closed one swallows it."""
        if self._error is not None:
            return True
        if self._items and (
            len(self._items) >= self._max_events or self._bytes + item.weight > self._max_bytes
        ):
            return False
        self._items.append(item)
        self._bytes += item.weight
        self._takers.unpark()
        return True

    async def put(self, item: Received) -> None:
        """Wait for room."""
        while not self.offer(item):
            await self._putters.park()

    async def take(self) -> Received:
        """The next item; when there is none and never will be, raises what `close` was given."""
        await trio.lowlevel.checkpoint()
        while not self._items:
            if self._error is not None:
                raise self._error.with_traceback(None)
            await self._takers.park()
        item = self._items.popleft()
        self._bytes -= item.weight
        self._putters.unpark_all()
        return item

    def close(self, error: BaseException) -> None:
        """No more will come; the first error counts."""
        if self._error is None:
            self._error = error
        self._takers.unpark_all()
        self._putters.unpark_all()

    def discard(self, error: BaseException) -> None:
        """Nobody will take what is left."""
        self._items.clear()
        self._bytes = 0
        self._error = error
        self._takers.unpark_all()
        self._putters.unpark_all()
