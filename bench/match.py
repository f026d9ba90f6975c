"""The matcher alone, without a server: what a change, a query that comes or goes, and a query's memory cost.

The change concerns one query of each kind, however many there are, except where no index helps. A probe is what
the hub does: the candidates, and what the change is to each.
"""

from __future__ import annotations

import gc
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

from paperdb_trio.match.change import Judged, event_of
from paperdb_trio.match.matcher import Matcher
from paperdb_trio.match.query import Query, query
from paperdb_trio.model import Change, encode, reverse_patch

FEW = 10

Filter = Callable[[int], dict[str, Any]]


def _day(n: int) -> str:
    return f"20{n // 336:02d}-{n // 28 % 12 + 1:02d}-{n % 28 + 1:02d}"


KINDS: dict[str, tuple[str, Filter]] = {
    "eq": ("≤ 1.5", lambda n: {"room": f"room-{n}"}),
    "in, of three": ("≤ 2", lambda n: {"room": {"in": [f"room-{n}", f"a-{n}", f"b-{n}"]}}),
    "range of numbers": ("≤ 2", lambda n: {"n": {"gte": n, "lt": n + 1}}),
    "range of times": ("≤ 2", lambda n: {"due": {"gte": _day(n), "lte": _day(n) + "T24"}}),
    "startsWith": ("≤ 2", lambda n: {"room": {"startsWith": f"room-{n}"}}),
    "contains, in an array": ("", lambda n: {"tags": {"contains": f"tag-{n}"}}),
    "contains, in a text": ("", lambda n: {"text": {"contains": f"{n}-word"}}),
    "rule and filter": ("", lambda n: {"tenant": "t", "owner": f"u-{n}", "n": {"gte": 0}}),
    "own or public": ("", lambda n: {"or": [{"owner": f"u-{n}"}, {"public": True}]}),
    "a field each": ("", lambda n: {f"members.u-{n}": {"exists": True}}),
    "residual": ("", lambda n: {"owner": {"ne": f"u-{n}"}, "text": {"contains": ""}, "n": {"nin": [n]}}),
}


def document(n: int, text: str) -> dict[str, Any]:
    """One that only the query `n` of each kind concerns."""
    return {
        "_id": "V1StGXR8_Z5jdHi6B-myT",
        "room": f"room-{n}",
        "n": n,
        "due": _day(n) + "T12:00:00.000Z",
        "tags": ["red", "blue", f"tag-{n}"],
        "text": f"{text} {n}-word",
        "tenant": "t",
        "owner": f"u-{n}",
        "public": False,
        "members": {f"u-{n}": True},
        "createdAt": "2026-11-26T00:00:00.000Z",
        "updatedAt": "2026-11-26T00:00:01.000Z",
    }


def change(n: int, text: str) -> Change:
    """An update of another field."""
    after = document(n, text)
    before = after | {"text": f"was {text} {n}-word", "updatedAt": "2026-11-26T00:00:00.000Z"}
    return Change(1, 1, "update", "c", "x", encode(after), reverse_patch(before, after))


class Load:
    """A matcher with `count` queries of a kind."""

    def __init__(self, filter: Filter, count: int) -> None:
        self.queries = [query("c", filter(n)) for n in range(count)]
        self.matcher = Matcher(count)
        for each in self.queries:
            self.matcher.add(each)

    def probe(self, changes: list[Change]) -> tuple[float, int]:
        """µs for each change, and events in all."""
        events = 0
        begun = time.thread_time()
        for each in changes:
            judged = Judged(each)
            for candidate in self.matcher.candidates("c", judged):
                events += event_of(candidate, judged) is not None
        return (time.thread_time() - begun) / len(changes) * 1e6, events

    def come_and_go(self, fresh: list[Query]) -> float:
        """µs to add and remove one query."""
        begun = time.thread_time()
        for each in fresh:
            self.matcher.add(each)
        for each in fresh:
            self.matcher.remove(each)
        return (time.thread_time() - begun) / len(fresh) * 1e6


def memory(filter: Filter, count: int) -> float:
    """Bytes that one query and its place in the index take, as Python counts them."""
    query("c", filter(0))
    gc.collect()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        load = Load(filter, count)
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return (after - before) / len(load.queries)
