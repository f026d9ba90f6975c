"""One timer for all connections.

Law: no task per timer. The wheel checks each entry when it is due, to the tick, and the entry says when to
check again.
"""

from __future__ import annotations

from typing import Protocol

import trio

from paperdb_trio.loop.tick import TICK, tick


class Timed(Protocol):
    due: int | None
    """The wheel's own record of the entry's slot; None: not on the wheel."""

    def check(self, now: float) -> float | None:
        """Called when due, with `now` on trio's clock. Returns when to check again; None: never."""
        ...


class Wheel:
    """Start `run()` in a nursery; it runs until cancelled. What is due is checked at the next tick, so that an
    expired token closes its connection within a second."""

    def __init__(self) -> None:
        self._slots: dict[int, set[Timed]] = {}

    def add(self, timed: Timed, when: float | None = None) -> None:
        """Check it at `when`, or as soon as possible. This replaces an earlier plan."""
        if timed.due is not None:
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
            await tick()
            now = trio.current_time()
            for due in sorted(due for due in self._slots if due <= now / TICK):
                for index, timed in enumerate(tuple(self._slots.pop(due))):
                    if timed.due != due:
                        continue  # removed or planned anew during the checks of others
                    timed.due = None
                    again = timed.check(now)
                    if again is not None:
                        self.add(timed, again)
                    if not index % 200:
                        await trio.lowlevel.checkpoint()
