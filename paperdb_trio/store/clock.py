"""The time by which changes age.

Law: it never goes back and never jumps, whatever happens to the computer's clock. While a server runs, it goes
on with the time since boot, sleep included, which nobody can set. What it says is kept in the file, with what
the computer's clock said then. Only that clock knows how long there was no server, and it is believed for a day
at most. So a clock that is wrong for a while (1970 until NTP has an answer, 2040 by mistake) costs a day of the
log at most; and after a long pause changes are kept longer than they had to be.
"""

from __future__ import annotations

import time
from typing import Final

from paperdb_trio.store import sqlite
from paperdb_trio.store.rowkeys import SEQ_BITS

MAX_PAUSE: Final = 86_400.0
"""Seconds of the time without a server that count."""

_BOOT: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class LogClock:
    def __init__(self, start: float) -> None:
        self._offset = start - time.clock_gettime(_BOOT)

    def now(self) -> float:
        """Seconds. Since the epoch, unless the computer's clock was wrong once, or off for long."""
        return self._offset + time.clock_gettime(_BOOT)

    def keep(self, connection: sqlite.Connection) -> None:
        """Write down what it says; inside a transaction. To be done more often than once in `MAX_PAUSE`."""
        for name, seconds in (("log_time", self.now()), ("wall_time", time.time())):
            connection.execute("INSERT OR REPLACE INTO meta VALUES (?,?)", (name, int(seconds * 1000)))


def continued(connection: sqlite.Connection) -> LogClock:
    """The clock of the file, going on from what it said last."""
    wall = time.time()
    (newest,) = connection.execute(
        f"SELECT max(at)/1000.0 FROM databases d JOIN changes c ON c.rowkey=(d.id<<{SEQ_BITS})|d.head"
    ).fetchone()
    kept = dict(connection.execute("SELECT name, value/1000.0 FROM meta"))
    if "log_time" in kept:
        last, then = kept["log_time"], kept["wall_time"]
    elif newest is not None:  # of an older version, to which both were the same
        last = then = newest
    else:
        last = then = wall
    start = last + min(max(wall - then, 0.0), MAX_PAUSE)
    return LogClock(start if newest is None else max(start, newest))
