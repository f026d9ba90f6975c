"""The states that a connection goes through, for whoever wants to watch.

Law: watching never holds anything up: a watcher that is more than `KEPT` changes behind misses the oldest.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator

import trio

from paperdb_trio.client.types import Status

KEPT = 64


class Statuses:
    """`async for status in statuses`: the present one, then each change; ends when there will be no more.

    Every loop is a watcher of its own. `current` is the present one, without waiting.
    """

    def __init__(self, first: Status) -> None:
        self._kept = deque([first], KEPT)
        self._count = 1
        self._ended = False
        self._waiting = trio.lowlevel.ParkingLot()

    def __repr__(self) -> str:
        return f"<statuses, now {self.current}>"

    @property
    def current(self) -> Status:
        return self._kept[-1]

    def _publish(self, status: Status) -> None:
        if not self._ended and status != self.current:
            self._kept.append(status)
            self._count += 1
            self._waiting.unpark_all()

    def _end(self, status: Status) -> None:
        """`status` is the last one."""
        self._publish(status)
        self._ended = True
        self._waiting.unpark_all()

    def __aiter__(self) -> AsyncIterator[Status]:
        return _Watcher(self)


class _Watcher:
    def __init__(self, board: Statuses) -> None:
        self._board = board
        self._seen = board._count - 1

    def __aiter__(self) -> AsyncIterator[Status]:
        return self

    async def __anext__(self) -> Status:
        await trio.lowlevel.checkpoint()
        board = self._board
        while self._seen == board._count:
            if board._ended:
                raise StopAsyncIteration
            await board._waiting.park()
        index = max(0, len(board._kept) - (board._count - self._seen))
        self._seen = board._count - len(board._kept) + index + 1
        return board._kept[index]
