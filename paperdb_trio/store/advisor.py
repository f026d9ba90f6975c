"""Automatic indexes: made where finds keep scanning whole collections, removed when nothing uses them.

Law: a note may come from any thread and is one append. Notes are acted on only on the event loop.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from typing import Final, NamedTuple

import trio

from paperdb_trio.errors import ApiError
from paperdb_trio.loop.tick import tick
from paperdb_trio.store.housekeeping import KeepUsedIndexes, MakeIndex
from paperdb_trio.store.protocol import Submits

log = logging.getLogger("paperdb.store")

SECONDS: Final = 1.0
"""Seconds between two readings of the notes."""
USED_SECONDS: Final = 3600.0
"""Seconds between two times that the used indexes are saved."""
MAX_WISHES: Final = 1000
"""Different wishes that are counted. Beyond this, counting starts again from zero."""
SLOW_SECONDS: Final = 0.001
"""Seconds of CPU time below which a find wishes for no index."""


class Wish(NamedTuple):
    """An index that would have made a find faster."""

    database_id: int
    collection: str
    fields: tuple[str, ...]


class IndexAdvisor:
    """An index is made after `after` finds that wish for it; 0 makes none. Run `run()` in a nursery."""

    def __init__(self, after: int) -> None:
        self._after = after
        self._notes: deque[Wish | int] = deque(maxlen=10_000)
        self._wishes: Counter[Wish] = Counter()
        self._used: set[int] = set()

    def wish(self, wish: Wish) -> None:
        if self._after:
            self._notes.append(wish)

    def used(self, index_id: int) -> None:
        self._notes.append(index_id)

    async def run(self, writer: Submits) -> None:
        """Returns when the writer closes."""
        next_used = trio.current_time() + USED_SECONDS
        while True:
            await tick(SECONDS)
            try:
                await self._make(writer)
                if trio.current_time() >= next_used:
                    next_used = trio.current_time() + USED_SECONDS
                    used, self._used = frozenset(self._used), set()
                    for removed in await writer.submit(KeepUsedIndexes(used)):
                        log.info("removed the index of %s: it has not been used for a long time", removed)
            except ApiError as error:
                if error.code == "SHUTTING_DOWN":
                    return
                log.warning("could not make or remove indexes: %s", error)

    async def _make(self, writer: Submits) -> None:
        while self._notes:
            note = self._notes.popleft()
            if isinstance(note, int):
                self._used.add(note)
                continue
            self._wishes[note] += 1
            if self._wishes[note] == self._after:
                del self._wishes[note]  # the index may not fit, or be removed later: then count again
                if await writer.submit(MakeIndex(*note)):
                    log.info(
                        "making an index of %s in '%s': %d finds scanned every document",
                        ", ".join(note.fields),
                        note.collection,
                        self._after,
                    )
            elif len(self._wishes) > MAX_WISHES:
                self._wishes.clear()
