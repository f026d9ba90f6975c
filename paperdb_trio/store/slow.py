"""Finds and counts that took too long, as log lines: what was asked, never for which values.

Law: any thread may note one. What is logged is the time that the engine took, not the time in a queue.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from contextvars import ContextVar
from typing import Any, Final

from paperdb_trio.logs import SparingLog
from paperdb_trio.measures import Family, Sample
from paperdb_trio.model import timestamp
from paperdb_trio.store.plan import Plan, Shelf, described
from paperdb_trio.store.query import Question, shape

REQUEST: Final = ContextVar("request", default="")
"""The id of the request that a find or a count is for, on whichever thread it runs; for its line."""
LINES_A_MINUTE: Final = 60
"""For finds, and for counts. Later ones are counted."""


LATEST: Final = 100
"""Slow queries that are remembered."""


class SlowQueries:
    """`seconds`: from then on a query is slow. `ms` 0: none is."""

    def __init__(self, ms: int) -> None:
        self.seconds = ms / 1000 if ms else math.inf
        self._log = SparingLog(logging.getLogger("paperdb.slow"), burst=LINES_A_MINUTE)
        self._lock = threading.Lock()
        self._counts = {"find": 0, "count": 0}
        self._latest: deque[dict[str, Any]] = deque(maxlen=LATEST)

    def note(
        self,
        seconds: float,
        kind: str,
        database_id: int,
        collection: str,
        filter: str | None,
        sort: str | None,
        plan: dict[str, Any],
    ) -> None:
        """`kind`: find or count. `plan`: members for the line, as the engine has them."""
        fields: dict[str, Any] = {"request": request} if (request := REQUEST.get()) else {}
        fields |= {"ms": round(seconds * 1000), "database": database_id, "collection": collection}
        fields |= {"filter": shape(filter)}
        if sort:
            fields["sort"] = sort
        with self._lock:
            self._counts[kind] += 1
        self._latest.append({"at": timestamp(time.time()), "kind": kind, **fields, **plan})
        self._log.log(logging.WARNING, f"slow {kind}", fields=fields | plan)

    def measure(self) -> Family:
        return Family(
            "paperdb_slow_queries_total",
            "counter",
            "Finds and counts that took --slow-query-ms or longer, or were stopped after that",
            [Sample({"kind": kind}, count) for kind, count in self._counts.items()],
        )

    def latest(self) -> list[dict[str, Any]]:
        """The newest ones, the oldest of these first: the fields of their lines, `at` and `kind`."""
        return [*self._latest.copy()]


class Watch:
    """A find or a count that runs: it is logged if it is slow, also if it was stopped."""

    __slots__ = ("_asked", "_slow", "_started", "chosen")

    def __init__(
        self,
        slow: SlowQueries,
        kind: str,
        database_id: int,
        collection: str,
        filter: str | None,
        sort: str | None = None,
    ) -> None:
        self.chosen: tuple[Plan, Question, Shelf] | None = None
        self._slow = slow
        self._asked = kind, database_id, collection, filter, sort

    def __enter__(self) -> Watch:
        self._started = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        seconds = time.perf_counter() - self._started
        if seconds >= self._slow.seconds:
            plan = {} if self.chosen is None else described(*self.chosen)
            self._slow.note(seconds, *self._asked, plan)
