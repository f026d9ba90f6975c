"""Memory that the processes of one server share.

Law: made before they are forked, and each cell has one process that writes it, so that no lock is needed. A
reader may see a count a moment late. What a worker wrote is cleared when it is dead.

It holds, for each worker, the counts that limits are about; how many reads each has under way, and until when
new ones are held back; and for each database how often it was committed to.
"""

from __future__ import annotations

import mmap
import time
from collections.abc import Callable, Iterable
from typing import Final

from paperdb_trio.store.sqlite.gate import ReadGate

MARKS: Final = 1024
"""Cells of `commit`. Databases that share one only wait for each other's commits."""
_HELD_UNTIL: Final = 0
_COMMITS: Final = 1
_OPERATIONS: Final = 2
_STATE: Final = 3
_BEATS: Final = 4
_FIRST_MARK: Final = 8
_READS: Final = 0
_USED: Final = 1
"""How many slots of the table are in use."""
_TABLE: Final = 8
"""Where the table of a worker's counts begins in its region."""
_BITS: Final = (1 << 64) - 1
_FULL: Final = 1
_GONE: Final = 2
HOLD_STEP: Final = 0.002
"""Seconds between two looks at whether reads are still held back."""


class Board:
    """`counts`: how many counts a worker may have above zero at the same time."""

    def __init__(self, workers: int, counts: int) -> None:
        self.workers = workers
        self.began = time.monotonic()
        self._slots = 1 << (2 * counts - 1).bit_length()
        self._region = _TABLE + 2 * self._slots
        self._passed = _FIRST_MARK + MARKS  # by the worker that gets it, then by the one that passes it on
        self._taken = self._passed + workers * workers
        self._first = self._taken + workers
        self._cells = memoryview(mmap.mmap(-1, 8 * (self._first + workers * self._region))).cast("Q")

    def forget(self, worker: int) -> None:
        """Clear what a dead worker wrote."""
        start = self._start(worker)
        self._cells[start : start + self._region] = memoryview(bytes(8 * self._region)).cast("Q")

    def _start(self, worker: int) -> int:
        return self._first + worker * self._region

    # --- commits ---------------------------------------------------------------------------------

    def commit(self, databases: Iterable[int]) -> dict[int, int]:
        """Count a commit to these databases, before it is acknowledged. Returns the new marks, by cell."""
        marks = {}
        for cell in {database_id % MARKS for database_id in databases}:
            self._cells[_FIRST_MARK + cell] = marks[cell] = self._cells[_FIRST_MARK + cell] + 1
        return marks

    def marks(self) -> dict[int, int]:
        """All marks that are not zero, by cell."""
        found = self._cells[_FIRST_MARK : _FIRST_MARK + MARKS].tolist()
        return {cell: mark for cell, mark in enumerate(found) if mark}

    def mark(self, cell: int) -> int:
        return self._cells[_FIRST_MARK + cell]

    # --- the state of the writer -----------------------------------------------------------------

    def tell_counts(self, commits: int, operations: int) -> None:
        self._cells[_COMMITS], self._cells[_OPERATIONS] = commits, operations

    def tell_state(self, *, full: bool, gone: bool) -> None:
        self._cells[_STATE] = full * _FULL | gone * _GONE

    def beat(self) -> None:
        """The writer lives: call this now and then."""
        self._cells[_BEATS] += 1

    @property
    def beats(self) -> int:
        return self._cells[_BEATS]

    @property
    def commits(self) -> int:
        return self._cells[_COMMITS]

    @property
    def operations(self) -> int:
        return self._cells[_OPERATIONS]

    @property
    def full(self) -> bool:
        return bool(self._cells[_STATE] & _FULL)

    @property
    def gone(self) -> bool:
        return bool(self._cells[_STATE] & _GONE)

    # --- reads -----------------------------------------------------------------------------------

    def hold_reads(self, until: float) -> None:
        """Hold back new reads of all workers until then, in seconds of `time.monotonic`."""
        self._cells[_HELD_UNTIL] = int(until * 1e9)

    def held(self) -> float:
        """Seconds for which reads are still held back; at most 0 if they are not."""
        until = self._cells[_HELD_UNTIL]
        return until / 1e9 - time.monotonic() if until else 0.0

    def set_reads(self, worker: int, reads: int) -> None:
        self._cells[self._start(worker) + _READS] = reads

    def reads(self) -> int:
        """The reads of all workers that are under way."""
        return sum(self._cells[self._start(worker) + _READS] for worker in range(self.workers))

    # --- connections that are passed on ----------------------------------------------------------

    def passed(self, worker: int, to: int) -> None:
        """Count a connection that a worker has passed on to another. A new start of either goes on counting."""
        self._cells[self._passed + to * self.workers + worker] += 1

    def taken(self, worker: int) -> None:
        """Count one that arrived."""
        self._cells[self._taken + worker] += 1

    def taken_all(self, worker: int, passed: int) -> None:
        """Count those as arrived that had been passed before none was found: it died before it counted one."""
        self._cells[self._taken + worker] = max(self._cells[self._taken + worker], passed)

    def passed_to(self, worker: int) -> int:
        """How many have been passed on to a worker."""
        start = self._passed + worker * self.workers
        return sum(self._cells[start : start + self.workers])

    def passing(self, worker: int) -> int:
        """How many are on their way to a worker."""
        return self.passed_to(worker) - self._cells[self._taken + worker]

    # --- counts ----------------------------------------------------------------------------------

    def set_count(self, worker: int, name: int, count: int) -> None:
        """`name`: a hash. A count that finds no room is known only to its worker."""
        cells, used = self._cells, self._start(worker) + _USED
        base = self._start(worker) + _TABLE
        at = self._find(base, name)
        is_there = cells[base + 2 * at] == name
        if count and (is_there or 2 * cells[used] <= self._slots):
            cells[base + 2 * at + 1] = count & _BITS
            cells[base + 2 * at] = name
            cells[used] += not is_there
        elif is_there and not count:
            self._take_out(base, at)
            cells[used] -= 1

    def count_elsewhere(self, worker: int, name: int) -> int:
        return sum(self.count(other, name) for other in range(self.workers) if other != worker)

    def count(self, worker: int, name: int) -> int:
        base = self._start(worker) + _TABLE
        at = self._find(base, name)
        return self._cells[base + 2 * at + 1] if self._cells[base + 2 * at] == name else 0

    def _find(self, base: int, name: int) -> int:
        """The slot of a name, or the empty one where it may go: at least half of them are empty."""
        cells, mask = self._cells, self._slots - 1
        at = name & mask
        while (found := cells[base + 2 * at]) and found != name:
            at = (at + 1) & mask
        return at

    def _take_out(self, base: int, at: int) -> None:
        """Empty a slot, and move up those behind it that would not be found any more."""
        cells, mask = self._cells, self._slots - 1
        hole = at
        while True:
            at = (at + 1) & mask
            name = cells[base + 2 * at]
            if not name:
                break
            if (at - name) & mask >= (at - hole) & mask:  # its own place is at the hole or before it
                cells[base + 2 * hole + 1] = cells[base + 2 * at + 1]
                cells[base + 2 * hole] = name
                hole = at
        cells[base + 2 * hole] = cells[base + 2 * hole + 1] = 0


class WorkerCounts:
    """The `Elsewhere` of a worker's limits."""

    def __init__(self, board: Board, worker: int) -> None:
        self._board = board
        self._worker = worker

    def tell(self, kind: str, key: object, count: int) -> None:
        self._board.set_count(self._worker, name_of(kind, key), count)

    def others(self, kind: str, key: object) -> int:
        return self._board.count_elsewhere(self._worker, name_of(kind, key))

    def age(self) -> float:
        return time.monotonic() - self._board.began


def name_of(kind: str, key: object) -> int:
    """The same in all processes that were forked from one."""
    return hash((kind, key)) & _BITS or 1


class WorkerGate(ReadGate):
    """The gate before a worker's reads, which the writer closes through the board."""

    def __init__(self, board: Board, worker: int) -> None:
        super().__init__()
        self._board = board
        self._worker = worker

    def enter(self) -> None:
        with self._changed:
            while True:
                while (seconds := self._board.held()) > 0:
                    self._changed.wait(min(seconds, HOLD_STEP))
                self._readers += 1
                self._board.set_reads(self._worker, self._readers)
                if self._board.held() <= 0:  # else the writer may have looked before it could see this read
                    return
                self._readers -= 1
                self._board.set_reads(self._worker, self._readers)

    def leave(self) -> None:
        with self._changed:
            self._readers -= 1
            self._board.set_reads(self._worker, self._readers)


class WriterGate(ReadGate):
    """The gate before the reads of all processes. While it is closed, call `look` now and then.

    `on_closed` is called, on the writer's thread, when it was closed before all reads had ended.
    """

    def __init__(self, board: Board) -> None:
        super().__init__()
        self._board = board
        self.on_closed: Callable[[], None] = lambda: None

    def close(self, seconds: float) -> bool:
        self._board.hold_reads(time.monotonic() + seconds)
        empty = super().close(seconds) and not self._board.reads()
        if not empty:
            self.on_closed()
        return empty

    def look(self) -> bool:
        """Tell the writer when no read is left. Returns whether to look again."""
        with self._changed:
            if self._closed_until <= time.monotonic():
                return False
            busy = self._readers or self._board.reads()
        if not busy:
            self.on_empty()
        return bool(busy)

    def leave(self) -> None:
        with self._changed:
            self._readers -= 1

    def open(self) -> None:
        self._board.hold_reads(0.0)
        super().open()
