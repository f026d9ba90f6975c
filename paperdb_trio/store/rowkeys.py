"""Row keys: the owner and the order of the rows in the big tables.

A row of `changes` has the key `database << 40 | seq`. A row of `documents` has the key `collection << 40 | seq
of its insert`. So the rows of one owner are a contiguous range in order of time. A page of the log, a scan of a
collection in insertion order and a trim need no other index.
"""

from __future__ import annotations

from typing import Final

SEQ_BITS: Final = 40
SEQ_MASK: Final = (1 << SEQ_BITS) - 1


EPOCH: Final = 1_735_689_600
"""2025-01-01 in seconds. A log that begins anew starts at the milliseconds since then. So beginning anew twice
gives two ranges of seqs, which overlap only if more than 1,000 changes a second were written in between. The
number fits into the 40 bits of a seq until 2059."""
JUMP: Final = 1 << 24
"""Allowance for changes that were lost, and that a client may have seen."""


def jump_base(now: float) -> int:
    """The seq that corresponds to a time in seconds. A log begins anew `JUMP` beyond this and its head."""
    return int((now - EPOCH) * 1000)


def span(owner: int) -> tuple[int, int]:
    """The first and the last row key that an owner can have."""
    return owner << SEQ_BITS, owner << SEQ_BITS | SEQ_MASK
