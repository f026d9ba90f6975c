"""A feed: the live subscribers that get the same bytes, and the lane in which most of them are.

Law: synchronous. Only the hub and the methods here change who is in a feed, and who is in its lane.

The lane holds the subscribers that have everything so far and whose sockets are free. They have no position
of their own: all are where the lane is. A subscriber that has something else to write, or whose socket does
not take all of a chunk, leaves the lane first.

The lane costs 0.1 µs a delivery beyond the system call. A method call, the checks of a stream and a position
for each subscriber cost 1 µs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

import trio

from paperdb_trio.delivery.encodings import Encoding
from paperdb_trio.store.protocol import Topic

STEP: Final = 32
"""Members between two looks at the clock: about 0.2 ms of writes, a tenth of a time slice."""

FeedKey = tuple[Encoding, frozenset[Topic]]
"""What all members of a feed want: an encoding and topics."""

Write = Callable[[bytes], int]
"""Write without blocking. Returns how many bytes were taken; -1 if all were, but some wait for a flush. Raises
OSError or BrokenResourceError."""
_BROKEN: Final = -2


@dataclass(frozen=True, slots=True)
class Chunk:
    """Joined events: they take a subscriber that has everything up to seq `after` to `last`."""

    after: int
    last: int
    data: bytes


class Member(Protocol):
    """What can be in a feed: a subscriber, or a task that only waits."""

    def offer(self, chunk: Chunk, feed: Feed) -> None:
        """Take a chunk of that feed, or not. Never block."""
        ...

    def settle(self) -> None:
        """Enter the feed's lane if nothing is in the way."""
        ...

    def look(self) -> None:
        """Look into the log, which has lost changes."""
        ...


class LaneMember(Member, Protocol):
    """What can be in a lane."""

    def put_out(self, chunk: Chunk, position: int, sent: int) -> None:
        """It has left the lane, at `position`: its writer took only `sent` bytes of the chunk (see `Write`)."""
        ...

    def broken(self) -> None:
        """It has left the lane: its socket is broken."""
        ...


class Published(Protocol):
    @property
    def published(self) -> int:
        """The seq up to which every change has been handed to every live subscriber that wants it."""
        ...


def _vacant(data: bytes) -> int:
    return len(data)


class Feed:
    """Its members are in the lane, or `outside` with a position of their own. `len()` counts both."""

    __slots__ = ("_chunk", "_free", "_given", "_in_lane", "_log", "_next", "_outside", "_writers", "key")

    def __init__(self, key: FeedKey, log: Published) -> None:
        self.key = key
        self._log = log
        self._outside: set[Member] = set()
        # The lane. A member's slot is its index in both lists.
        self._writers: list[Write] = []
        self._in_lane: list[LaneMember | None] = []
        self._free: list[int] = []  # slots
        self._given = 0  # the last chunk's end
        self._chunk: Chunk | None = None  # while it is being written
        self._next = 0  # the slot that gets it next

    def __len__(self) -> int:
        return len(self._outside) + len(self._writers) - len(self._free)

    @property
    def outside(self) -> tuple[Member, ...]:
        """The members that are outside the lane now."""
        return tuple(self._outside)

    @property
    def members(self) -> tuple[Member, ...]:
        return (*self._outside, *(member for member in self._in_lane if member is not None))

    def add(self, member: Member) -> None:
        self._outside.add(member)

    def remove(self, member: Member) -> None:
        """Take out a member, which is outside the lane."""
        self._outside.discard(member)

    # --- the lane --------------------------------------------------------------------------------

    def enter_lane(self, member: LaneMember, write: Write) -> int:
        """Take in a member that is where the lane is. Illegal while a chunk is written. Returns its slot."""
        assert self._chunk is None
        self._outside.discard(member)
        if self._free:
            slot = self._free.pop()
            self._writers[slot], self._in_lane[slot] = write, member
        else:
            slot = len(self._writers)
            self._writers.append(write)
            self._in_lane.append(member)
        return slot

    def leave_lane(self, slot: int) -> int:
        """Put the member there outside. Returns its position."""
        position = self.where(slot)
        member = self._in_lane[slot]
        assert member is not None
        self._outside.add(member)
        self._writers[slot], self._in_lane[slot] = _vacant, None
        self._free.append(slot)
        if len(self._free) == len(self._writers) and self._chunk is None:
            for slots in (self._writers, self._in_lane, self._free):
                slots.clear()
        return position

    def where(self, slot: int) -> int:
        """The position of the member there: it has everything that it wants up to this seq."""
        if self._chunk is not None and slot < self._next:
            return self._chunk.last
        return max(self._given, self._log.published)

    # --- the hub's -------------------------------------------------------------------------------

    def begin(self, chunk: Chunk) -> None:
        """Start to write a chunk: call `write_some` until it returns False."""
        self._chunk, self._next = chunk, 0

    def write_some(self) -> bool:
        """Give the chunk to the next `STEP` members of the lane. Returns whether there are more."""
        chunk = self._chunk
        assert chunk is not None
        data, size = chunk.data, len(chunk.data)
        writers = self._writers
        end = min(self._next + STEP, len(writers))
        while self._next < end:
            part = writers[self._next : end]
            write = part[0]
            sent = 0
            try:
                for write in part:
                    if (sent := write(data)) != size:
                        break
                else:
                    self._next = end
                    break
            except BlockingIOError:
                sent = 0
            except (OSError, trio.BrokenResourceError):
                sent = _BROKEN
            slot = writers.index(write, self._next)
            member = self._in_lane[slot]
            self._next = slot  # the member there has not got all of it
            position = self.leave_lane(slot)
            self._next = slot + 1
            assert member is not None
            if sent == _BROKEN:
                member.broken()
            else:
                member.put_out(chunk, position, sent)
        if self._next < len(writers):
            return True
        self._given, self._chunk = chunk.last, None
        return False
