"""The clock of a file."""

from __future__ import annotations

import time

from paperdb_trio.store import clock
from paperdb_trio.store.rowkeys import SEQ_BITS
from paperdb_trio.store.sqlite import library as sqlite


def continued(connection: sqlite.Connection) -> clock.LogClock:
    """The file's clock, continued from the saved time."""
    (newest,) = connection.execute(
        f"SELECT max(at)/1000.0 FROM databases d JOIN changes c ON c.rowkey=(d.id<<{SEQ_BITS})|d.head"
    ).fetchone()
    kept = dict(connection.execute("SELECT name, value/1000.0 FROM meta").fetchall())
    return clock.continued(kept, newest, time.time())
