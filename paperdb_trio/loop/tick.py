"""Waits that end at the same time, so that an idle process seldom wakes up.

Law: no task and no state; the clock is trio's.
"""

from __future__ import annotations

from typing import Final

import trio

TICK: Final = 0.25
"""Seconds. Longer periods are a multiple of it."""


async def tick(every: float = TICK) -> None:
    """Sleep until the next multiple of `every` seconds."""
    await trio.sleep_until((trio.current_time() // every + 1) * every)
