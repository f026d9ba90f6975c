"""Keys of entries as PostgreSQL stores them.

Law: no I/O. A B-tree entry has at most 2.7 KB, so that a long key is shortened to its beginning and a digest:
equal keys stay equal, different ones different.
"""

from __future__ import annotations

from hashlib import sha256
from typing import Final

LONGEST: Final = 1024


def stored(key: bytes) -> bytes:
    return key if len(key) <= LONGEST else key[:LONGEST] + sha256(key).digest()
