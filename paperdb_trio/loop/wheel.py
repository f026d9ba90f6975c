"""One timer for all connections.

Law: no task per timer. Whoever is on the wheel is looked at when due, to the tick, and says when next.
"""

from __future__ import annotations

from typing import Final, Protocol

import trio

TICK: Final = 0.25
"""Seconds. A revoked key or an expired token ends a connection within a second."""


class Timed(Protocol):
    due: int | None
    """The wheel's own note of where this is; None: not on the wheel."""

    def check(self, now: float) -> float | None:
        """Look at `now` (trio's clock); return when to look again, or None to be taken off."""
        ...


class Wheel:
    """Run `run()` in a nursery; it ends when cancelled."""

    def __init__(self) -> None:
        self._slots: dict[int, set[Timed]] = {}

    def add(self, timed: Timed, when: float | None = None) -> None:
        """Look at it at `when`, or as soon as possible; whatever was planned for it before is forgotten."""
        self.remove(timed)
        timed.due = 0 if when is None else int(when / TICK) + 1
        self._slots.setdefault(timed.due, set()).add(timed)

    def remove(self, timed: Timed) -> None:
        if timed.due is not None:
            slot = self._slots.get(timed.due)
            if slot is not None:
                slot.discard(timed)
            timed.due = None

    async def run(self) -> None:
        while True:
            await trio.sleep(TICK)
            now = trio.current_time()
            for tick in sorted(tick for tick in self._slots if tick <= now / TICK):
                for index, timed in enumerate(tuple(self._slots.pop(tick))):
                    if timed.due != tick:
                        continue  # taken off, or planned anew, while others were looked at
                    timed.due = None
                    again = timed.check(now)
                    if again is not None:
                        self.add(timed, again)
                    if not index % 200:
                        await trio.lowlevel.checkpoint()
