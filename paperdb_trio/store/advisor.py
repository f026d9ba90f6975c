"""Indexes that nobody declared: made where finds keep looking at everything, removed when nothing uses them.

Law: a note may come from any thread and is one append. What follows from notes happens on the event loop.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from typing import Final, NamedTuple

import trio

from paperdb_trio.errors import ApiError
from paperdb_trio.store.housekeeping import KeepUsedIndexes, MakeIndex
from paperdb_trio.store.writer import Writer

log = logging.getLogger("paperdb.store")

SECONDS: Final = 1.0
"""Between two looks at the notes."""
USED_SECONDS: Final = 3600.0
"""Between two times that it is written down which indexes were used."""
MAX_WISHES: Final = 1000
"""Different ones that are counted; then counting begins anew."""
SLOW_SECONDS: Final = 0.001
"""Seconds of CPU below which a find wishes for nothing."""
DAY: Final = 86_400.0


class Wish(NamedTuple):
    """An index that a find would have used."""

    database_id: int
    collection: str
    fields: tuple[str, ...]


class IndexAdvisor:
    """`after`: finds that wish for the same index until it is made; 0: none is. Run `run()` in a nursery."""

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

    async def run(self, writer: Writer) -> None:
        """Until cancelled, or the writer closes."""
        next_used = trio.current_time() + USED_SECONDS
        while True:
            await trio.sleep(SECONDS)
            try:
                await self._make(writer)
                if trio.current_time() >= next_used:
                    next_used = trio.current_time() + USED_SECONDS
                    used, self._used = frozenset(self._used), set()
                    for removed in await writer.submit(KeepUsedIndexes(used, int(writer.clock.now() / DAY))):
                        log.info("the index of %s has not been used for long: it is removed", removed)
            except ApiError as error:
                if error.code == "SHUTTING_DOWN":
                    return
                log.warning("could not look after indexes: %s", error)

    async def _make(self, writer: Writer) -> None:
        while self._notes:
            note = self._notes.popleft()
            if isinstance(note, int):
                self._used.add(note)
                continue
            self._wishes[note] += 1
            if self._wishes[note] == self._after:
                del self._wishes[note]  # it may go again, or find no room
                if await writer.submit(MakeIndex(*note, today=int(writer.clock.now() / DAY))):
                    log.info(
                        "making an index of %s in '%s': %d finds looked at every document",
                        ", ".join(note.fields),
                        note.collection,
                        self._after,
                    )
            elif len(self._wishes) > MAX_WISHES:
                self._wishes.clear()
