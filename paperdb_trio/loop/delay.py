"""How late the event loop is: what each request and each event waits for it at least.

Law: one task that sleeps, and notes how much longer than it asked for that took.
"""

from __future__ import annotations

from typing import Final

import trio

from paperdb_trio.measures import Histogram

EVERY: Final = 0.25
"""Seconds between two samples. Not at a tick: other tasks would run before it."""
WINDOW: Final = 30.0
"""Seconds. The longest delay is that of this window and the one before: a reader of the figure does not take it
away from another, as a maximum "since the last scrape" would."""


class LoopDelay:
    """Run `run()` in a nursery."""

    def __init__(self) -> None:
        self.seconds = Histogram()
        self._longest = [0.0, 0.0]
        self._ends = 0.0

    @property
    def longest(self) -> float:
        """The longest delay of the last 30 to 60 s, in seconds."""
        return max(self._longest)

    async def run(self) -> None:
        self._ends = trio.current_time() + WINDOW
        while True:
            due = trio.current_time() + EVERY
            await trio.sleep_until(due)
            self._note(trio.current_time(), due)

    def _note(self, now: float, due: float) -> None:
        self.seconds.observe(now - due)
        if now >= self._ends:
            self._ends = now + WINDOW
            self._longest = [0.0, self._longest[0]]
        self._longest[0] = max(self._longest[0], now - due)
