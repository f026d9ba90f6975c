"""Recently read documents, kept up to date: a point read that finds one here needs no thread.

Law: event loop only. It holds committed data only. Every commit is applied to it before it is published, so
that the cache is never behind what a client knows. Bounded in bytes; the least recently read documents go
first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Final

from paperdb_trio.model import Change
from paperdb_trio.store.protocol import Stored

OVERHEAD_BYTES: Final = 400
"""The memory of an entry beside the document's bytes: key, id, tuple and dictionary slot."""

Key = tuple[int, str, str]
"""Database, collection, id."""


class _Reading:
    """Marks a document that a thread is reading. A commit to the document removes the mark."""


class DocumentCache:
    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self.bytes = 0
        self.hits = 0
        self.misses = 0
        self._entries: OrderedDict[Key, Stored] = OrderedDict()
        self._reading: dict[Key, _Reading] = {}

    def get(self, key: Key) -> Stored | None:
        found = self._entries.get(key)
        if found is None:
            self.misses += 1
        else:
            self.hits += 1
            self._entries.move_to_end(key)
        return found

    def begin_reading(self, key: Key) -> _Reading:
        """Call this before reading a document from the file."""
        return self._reading.setdefault(key, _Reading())

    def end_reading(self, key: Key, mark: _Reading, found: Stored | None) -> None:
        """Keep the document, unless it has changed since or the read failed (`found` None)."""
        if self._reading.get(key) is mark:
            del self._reading[key]
            if found is not None:
                self._put(key, found)

    def apply(self, changes: Iterable[Change]) -> None:
        """Follow a commit. Only documents that were read are kept: a bulk insert must not evict them."""
        if not self._entries and not self._reading:
            return
        for change in changes:
            key = (change.database_id, change.collection, change.id)
            if self._reading:
                self._reading.pop(key, None)
            old = self._entries.get(key)
            if old is None or old.seq >= change.seq:  # the read from the file already saw this commit
                continue
            if change.type == "delete":
                self._drop(key)
            else:
                self._put(key, Stored(change.data, change.seq))

    def _put(self, key: Key, stored: Stored) -> None:
        old = self._entries.get(key)
        if old is not None:
            self.bytes -= len(old.data) + OVERHEAD_BYTES
        self._entries[key] = stored
        self.bytes += len(stored.data) + OVERHEAD_BYTES
        while self.bytes > self._max_bytes:
            self._drop(next(iter(self._entries)))

    def _drop(self, key: Key) -> None:
        self.bytes -= len(self._entries.pop(key).data) + OVERHEAD_BYTES
