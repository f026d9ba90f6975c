"""Fair use of the event loop by work of many steps.

Law: no task works for longer than `SLICE` without a checkpoint.
"""

from __future__ import annotations

import time
from typing import Final

import trio

SLICE: Final = 0.002
"""Seconds. A publish to 20,000 sockets takes 0.15 s in total."""


class TimeSlice:
    """Between two steps: `if turn.is_over(): await turn.pass_on()`."""

    __slots__ = ("_end",)

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        self._end = time.perf_counter() + SLICE

    def is_over(self) -> bool:
        return time.perf_counter() > self._end

    async def pass_on(self) -> None:
        await trio.lowlevel.checkpoint()
        self.begin()


class OnePerTurn:
    """For long steps: `await turns.next()` returns for one caller per loop iteration, in order."""

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = trio.Lock()

    async def next(self) -> None:
        async with self._lock:  # handed to the next in line, who runs in the next loop iteration
            pass
