"""The last pages of the log, as subscribers got them, for those that ask for the same.

Law: no I/O. Whether a page is still the newest one, its user asks the hub.

After a restart thousands of clients come back, and most of them are where the server stopped. To read the page
for each of them took 0.3 ms of CPU, more than the rest of a connect.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import trio

from paperdb_trio.delivery.encodings import Encoding
from paperdb_trio.errors import ApiError
from paperdb_trio.store.protocol import PAGE_BYTES, Page, Topic

KEPT_BYTES: Final = 4 * PAGE_BYTES
KEPT_PAGES: Final = 64

PageKey = tuple[int, int, Encoding, frozenset[tuple[Topic, int]], int]
"""The database, the position after which the page begins, the encoding, the interest, and the most changes."""


class KeptPage(NamedTuple):
    """`events` of them are joined in `data`. `position`, `reached_end`: as in `Page`."""

    position: int
    reached_end: bool
    events: int
    data: bytes


class Reading:
    """A page that is being read. Once it is `done` it has a `page` (a `Page` if it is expired), or the log's
    `error`, which is that of all who wait: each on its own would wait for as long again, one after another. If
    its reader was cancelled or failed otherwise, it has neither."""

    __slots__ = ("done", "error", "page")

    def __init__(self) -> None:
        self.done = trio.Event()
        self.page: KeptPage | Page | None = None
        self.error: ApiError | None = None


class KeptPages:
    """`reading`: what is being read now. Who reads it adds and removes it."""

    def __init__(self) -> None:
        self.reading: dict[PageKey, Reading] = {}
        self._pages: dict[PageKey, KeptPage] = {}
        self._bytes = 0

    def get(self, key: PageKey) -> KeptPage | None:
        return self._pages.get(key)

    def keep(self, key: PageKey, page: KeptPage) -> None:
        """Keep it until others need its room: the oldest goes first."""
        self._forget(key)
        if len(page.data) > PAGE_BYTES:
            return
        self._pages[key] = page
        self._bytes += len(page.data)
        while self._bytes > KEPT_BYTES or len(self._pages) > KEPT_PAGES:
            self._forget(next(iter(self._pages)))

    def clear(self) -> None:
        """Forget all, also what is being read, because the log is another one."""
        self.reading, self._pages, self._bytes = {}, {}, 0

    def _forget(self, key: PageKey) -> None:
        page = self._pages.pop(key, None)
        if page is not None:
            self._bytes -= len(page.data)
