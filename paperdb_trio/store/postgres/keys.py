"""Index keys as PostgreSQL stores them: a B-tree's entry has at most 2,704 bytes.

Law: no I/O. Equal keys stay equal, and different ones different, so that `unique` and equality need no more.
Long keys are in order only up to `LONG` bytes: what is found through them has to be sorted.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256
from typing import Final

from paperdb_trio.store import keys
from paperdb_trio.store.plan import Interval

LONG: Final = 1000
"""The most bytes of a key that is stored as it is. A longer one is its beginning and a digest. No key is a
prefix of another, so a long and a short one differ in these bytes."""


def stored(key: bytes) -> bytes:
    return key if len(key) <= LONG else key[:LONG] + sha256(key).digest()


def intervals(of: Iterable[Interval]) -> list[Interval]:
    """Disjoint intervals of stored keys with all keys of these, in order."""
    found: list[Interval] = []
    for low, high in sorted([(low[:LONG], _end(high)) for low, high in of]):
        if found and low <= found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], high))
        else:
            found.append((low, high))
    return found


def _end(key: bytes) -> bytes:
    return key if len(key) <= LONG else keys.after(key[:LONG])
