"""What one subscription has received and its consumer has not taken yet.

Law: bounded by events and by bytes. An event is put in whole, and taken out only when it can be handed over:
cancelling either side loses and repeats nothing.
"""

from __future__ import annotations

from collections import deque

import msgspec
import trio


class Received(msgspec.Struct, frozen=True):
    """An event off the wire. `data` is still JSON text, so that a waiting event takes no more memory than
    that."""

    type: str
    collection: str
    seq: int
    data: msgspec.Raw
    cause: str | None = None
    txn: int | None = None

    @property
    def weight(self) -> int:
        return len(self.data) + 200


class Buffer:
    """One side puts, the other takes. After `close`, what is in it can still be taken; after `discard`, it
    cannot."""

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
        """Put `item` in if there is room. An empty buffer has room for any one item; a closed one drops it."""
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
        """The next item. When there is none and never will be, raises what `close` was given."""
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
        """Drop what is left: there is no consumer any more."""
        self._items.clear()
        self._bytes = 0
        self._error = error
        self._takers.unpark_all()
        self._putters.unpark_all()
