"""Turns of the event loop, for work in many steps.

Law: nobody works for longer than `SLICE` without letting others have a turn.
"""

from __future__ import annotations

import time
from typing import Final

import trio

SLICE: Final = 0.002
"""Seconds: a publish to 20,000 sockets takes 0.15 s in all."""


class TimeSlice:
    """From step to step: `if turn.is_over(): await turn.pass_on()`."""

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
    """For work that takes long at once: `await turns.next()`, and no other who did so is in this turn of the
    event loop."""

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = trio.Lock()

    async def next(self) -> None:
        async with self._lock:  # handed on, in order, to whoever then runs in the next turn
            pass
