"""Row keys: the owner and the order of the rows in the big tables.

A row of `changes` has the key `database << 40 | seq`. A row of `documents` has the key `collection << 40 | seq
of its insert`. So the rows of one owner are a contiguous range in order of time. A page of the log, a scan of a
collection in insertion order and a trim need no other index.
"""

from __future__ import annotations

from typing import Final

SEQ_BITS: Final = 40
SEQ_MASK: Final = (1 << SEQ_BITS) - 1


def span(owner: int) -> tuple[int, int]:
    """The first and the last row key that an owner can have."""
    return owner << SEQ_BITS, owner << SEQ_BITS | SEQ_MASK
