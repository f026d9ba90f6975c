"""Row keys: which rows of the big tables belong to whom.

A row of `changes` has the key `database << 40 | seq`; a row of `documents`, `collection << 40 | seq of its
insert`. Each owner's rows are one contiguous range in order of time: a page of the log, a scan of a collection
in insertion order and a trim need no further index.
"""

from __future__ import annotations

from typing import Final

SEQ_BITS: Final = 40
SEQ_MASK: Final = (1 << SEQ_BITS) - 1


def span(owner: int) -> tuple[int, int]:
    """The first and the last row key that an owner can have."""
    return owner << SEQ_BITS, owner << SEQ_BITS | SEQ_MASK
