"""The clock by which the changes in the log age.

Law: it never goes back and never jumps, whatever the computer's clock does. While a server runs, it follows the
time since boot (sleep included), which cannot be set. Its time is saved in the file, together with the time of
the computer's clock. Between two servers only the computer's clock knows how much time has passed, and it is
trusted for a day at most. So a wrong clock (1970 until NTP responds, 2040 by mistake) costs at most a day of
the log. In return, changes are kept longer than necessary after a long pause.
"""

from __future__ import annotations

import time
from typing import Final

MAX_PAUSE: Final = 86_400.0
"""The most seconds that count of the time between two servers."""

_BOOT: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class LogClock:
    def __init__(self, start: float) -> None:
        self._offset = start - time.clock_gettime(_BOOT)

    def now(self) -> float:
        """Seconds since the epoch; off if the computer's clock ever was, or after a long pause."""
        return self._offset + time.clock_gettime(_BOOT)


def continued(kept: dict[str, float], newest: float | None, wall: float) -> LogClock:
    """The clock of a store. `kept`: what was saved of it, as `log_time` and `wall_time`, more often than every
    `MAX_PAUSE`. `newest`: the time of its newest change. `wall`: that of the computer's clock. In seconds."""
    if "log_time" in kept:
        last, then = kept["log_time"], kept["wall_time"]
    elif newest is not None:  # of an older version, in which changes had the computer's time
        last = then = newest
    else:
        last = then = wall
    start = last + min(max(wall - then, 0.0), MAX_PAUSE)
    return LogClock(start if newest is None else max(start, newest))
