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

from paperdb_trio.store.sqlite import library as sqlite
from paperdb_trio.store.sqlite.rowkeys import SEQ_BITS

MAX_PAUSE: Final = 86_400.0
"""The most seconds that count of the time between two servers."""

_BOOT: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class LogClock:
    def __init__(self, start: float) -> None:
        self._offset = start - time.clock_gettime(_BOOT)

    def now(self) -> float:
        """Seconds since the epoch; off if the computer's clock ever was, or after a long pause."""
        return self._offset + time.clock_gettime(_BOOT)

    def keep(self, connection: sqlite.Connection) -> None:
        """Save the time, inside a transaction. Call this more often than every `MAX_PAUSE`."""
        for name, seconds in (("log_time", self.now()), ("wall_time", time.time())):
            connection.execute("INSERT OR REPLACE INTO meta VALUES (?,?)", (name, int(seconds * 1000)))


def continued(connection: sqlite.Connection) -> LogClock:
    """The file's clock, continued from the saved time."""
    wall = time.time()
    (newest,) = connection.execute(
        f"SELECT max(at)/1000.0 FROM databases d JOIN changes c ON c.rowkey=(d.id<<{SEQ_BITS})|d.head"
    ).fetchone()
    kept = dict(connection.execute("SELECT name, value/1000.0 FROM meta"))
    if "log_time" in kept:
        last, then = kept["log_time"], kept["wall_time"]
    elif newest is not None:  # a file of an older version, in which changes had the computer's time
        last = then = newest
    else:
        last = then = wall
    start = last + min(max(wall - then, 0.0), MAX_PAUSE)
    return LogClock(start if newest is None else max(start, newest))
