"""The states that a connection goes through, for anyone who wants to watch.

Law: watching never holds anything up. A watcher that is more than `KEPT` changes behind misses the oldest.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator

import trio

from .types import Status

KEPT = 64


class StatusBoard:
    """Where the SDK puts up each status. Users get `statuses`, which can only be read."""

    def __init__(self, first: Status) -> None:
        self.kept = deque([first], KEPT)
        self.count = 1
        self.ended = False
        self.waiting = trio.lowlevel.ParkingLot()
        self.statuses = Statuses(self)

    def publish(self, status: Status) -> None:
        if not self.ended and status != self.kept[-1]:
            self.kept.append(status)
            self.count += 1
            self.waiting.unpark_all()

    def end(self, status: Status) -> None:
        """`status` is the last one."""
        self.publish(status)
        self.ended = True
        self.waiting.unpark_all()


class Statuses:
    """`async for status in statuses`: the present one, then each change; ends when there will be no more.

    Each loop is a watcher of its own. `current` is the present one, without waiting.
    """

    def __init__(self, board: StatusBoard) -> None:
        self._board = board

    def __repr__(self) -> str:
        return f"<statuses, now {self.current}>"

    @property
    def current(self) -> Status:
        return self._board.kept[-1]

    def __aiter__(self) -> AsyncIterator[Status]:
        return _Watcher(self._board)


class _Watcher:
    def __init__(self, board: StatusBoard) -> None:
        self._board = board
        self._seen = board.count - 1

    def __aiter__(self) -> AsyncIterator[Status]:
        return self

    async def __anext__(self) -> Status:
        await trio.lowlevel.checkpoint()
        board = self._board
        while self._seen == board.count:
            if board.ended:
                raise StopAsyncIteration
            await board.waiting.park()
        index = max(0, len(board.kept) - (board.count - self._seen))
        self._seen = board.count - len(board.kept) + index + 1
        return board.kept[index]
