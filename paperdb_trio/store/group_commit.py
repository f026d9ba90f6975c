"""Group commit: one thread applies what waits, as much as fits together in one transaction.

Law: knows no engine and no SQL. Results are delivered on the event loop, in the order of the commits. Changes
are published before their writers are told.
"""

from __future__ import annotations

import queue
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, Final, TypeVar

import outcome
import trio

from paperdb_trio.errors import ApiError
from paperdb_trio.measures import Histogram
from paperdb_trio.model import Change
from paperdb_trio.store.clock import LogClock
from paperdb_trio.store.housekeeping import HOUSEKEEPING
from paperdb_trio.store.operations import Operation
from paperdb_trio.store.refusals import shutting_down
from paperdb_trio.store.transaction import Transaction

Result = TypeVar("Result")

MAX_BATCH: Final = 256
"""Operations in one transaction. More would be no faster (37,000 documents/s in hundreds, 25,000 in tens), and
the first would wait longer."""
ENOUGH_BYTES: Final = 4 * 1024 * 1024
ENOUGH_SECONDS: Final = 0.05
"""A transaction that has written this much, or taken this long, takes no further operation. So waiting time and
memory depend on the largest operation, not on 256 of them."""

_CLOSE: Final = object()

Done = Callable[["outcome.Outcome[Any]"], None]
"""Takes the result of an operation, on the event loop."""


class Ticket:
    """A waiting operation. `done` is None if its waiter was cancelled: the write still happens."""

    __slots__ = ("done", "operation")

    def __init__(self, operation: Operation[Any], done: Done) -> None:
        self.operation = operation
        self.done: Done | None = done


Results = list[tuple[Ticket, "outcome.Outcome[Any]"]]


class GroupCommit:
    """Start `run()` in a nursery, with `nursery.start`: it has started once the store is open. It ends with its
    thread, when cancelled or after `close()`, and first commits everything that was submitted. It raises fatal
    errors: a store that cannot be opened, or a bug in publishing.

    `clock` is set once the store is open. An engine brings `_work`, `_publish`, and what is in them.
    """

    UNCOUNTED: ClassVar[tuple[type, ...]] = HOUSEKEEPING
    """Operations that no client asked for."""

    clock: LogClock
    _token: trio.lowlevel.TrioToken

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._stopped = False
        self._closed = False
        self._opened = trio.Event()
        self.on_delivered: Callable[[], None] = lambda: None
        """Called when the results of one commit have been given to those who wait."""
        self._closing = trio.Event()
        self.closed = trio.Event()
        self.index_work = trio.Event()
        """Set when there is work for `keep_indexes`."""
        self.owed: Counter[int] = Counter()
        """Changes by database that were logged while the disk was full. The oldest ones make room for them."""
        self._fatal: BaseException | None = None
        self.commits = 0
        self.operations = 0
        self.batch_sizes = Histogram((1, 2, 4, 8, 16, 32, 64, 128, 256))
        """Operations by commit, and the seconds that each commit and its fsync took."""
        self.commit_seconds = Histogram()
        self.fsync_seconds = Histogram()
        self.indexes_built = 0

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        token = self._token = trio.lowlevel.current_trio_token()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._thread)
            try:
                await self._opened.wait()
                task_status.started()
                await self._closing.wait()
            finally:
                self._closed = True
                self._queue.put(_CLOSE)
        # The thread's last results may still be in trio's queue of callbacks.
        with trio.CancelScope(shield=True):
            done = trio.Event()
            token.run_sync_soon(done.set)
            await done.wait()
        self.closed.set()
        if self._fatal is not None:
            raise self._fatal

    def close(self) -> None:
        """Commit the waiting operations, refuse new ones, and let `run` return."""
        self._closed = True
        self._closing.set()

    def stop(self) -> None:
        """Like `close`, but refuse the waiting operations, too."""
        self._stopped = True
        self.close()

    async def submit(self, operation: Operation[Result]) -> Result:
        """See `Store.submit`."""
        if self._closed:
            raise shutting_down()
        ticket = Ticket(operation, partial(trio.lowlevel.reschedule, trio.lowlevel.current_task()))
        self._queue.put(ticket)

        def abandon(_: Any) -> trio.lowlevel.Abort:
            ticket.done = None
            return trio.lowlevel.Abort.SUCCEEDED

        result: Result = await trio.lowlevel.wait_task_rescheduled(abandon)
        return result

    def post(self, operation: Operation[Any], done: Done) -> None:
        """`submit` without a task that waits."""
        if self._closed:
            done(outcome.Error(shutting_down()))
        else:
            self._queue.put(Ticket(operation, done))

    # --- an engine's -----------------------------------------------------------------------------

    def _work(self) -> None:
        """On the thread: open the store, call `_open`, commit each `_next_batch` up to the last one, and
        `_refuse_rest`."""
        raise NotImplementedError

    def _publish(self, changes: list[Change], resume: Callable[[], None]) -> None:
        """On the event loop, for each transaction: publish its changes, then call `resume`, which tells its
        writers."""
        raise NotImplementedError

    def _take(self, item: Any) -> None:
        """On the thread: something in the queue that is no ticket."""
        raise NotImplementedError

    # --- on the event loop -----------------------------------------------------------------------

    def _deliver(self, results: Results, changes: list[Change], index_work: bool) -> None:
        try:
            if index_work:
                self.index_work.set()
            if changes:
                self._publish(changes, partial(self._resume, results))
            else:
                self._resume(results)
        except BaseException as error:
            self._fail(error)

    def _resume(self, results: Results) -> None:
        for ticket, result in results:
            if ticket.done is not None:
                done, ticket.done = ticket.done, None
                done(result)
        self.on_delivered()

    def _fail(self, error: BaseException) -> None:
        self._fatal = self._fatal or error
        self.close()

    # --- on the thread ---------------------------------------------------------------------------

    async def _thread(self) -> None:
        await trio.to_thread.run_sync(self._work, limiter=trio.CapacityLimiter(1))

    def _open(self, clock: LogClock) -> None:
        self.clock = clock
        self._token.run_sync_soon(self._opened.set)

    def _next_batch(self) -> tuple[list[Ticket], bool]:
        """Wait for operations. Returns those that wait together, and whether they are the last."""
        batch: list[Ticket] = []
        while len(batch) < MAX_BATCH and not (batch and self._queue.empty()):
            item = self._queue.get()
            if item is _CLOSE:
                return batch, True
            if isinstance(item, Ticket):
                batch.append(item)
            else:
                self._take(item)
        return batch, False

    def _tell(self, results: Results, changes: list[Change], index_work: bool = False) -> None:
        self._token.run_sync_soon(self._deliver, results, changes, index_work)

    def _refuse(self, tickets: list[Ticket], error: ApiError) -> None:
        self._tell([(ticket, outcome.Error(error)) for ticket in tickets], [])

    def _refuse_rest(self) -> None:
        """Refuse operations behind the closing mark: after a failure there may be some."""
        while not self._queue.empty():
            ticket = self._queue.get()
            if isinstance(ticket, Ticket):
                self._refuse([ticket], shutting_down())

    def _refuse_waiting(self, seconds: float, error: Callable[[], ApiError]) -> None:
        """Refuse what comes during that time, or until `stop`."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0 and not self._stopped:
            try:
                item = self._queue.get(timeout=min(left, 0.1))
            except queue.Empty:
                continue
            if item is _CLOSE:
                self._stopped = True
                self._queue.put(_CLOSE)
            elif isinstance(item, Ticket):
                self._refuse([item], error())
            else:
                self._take(item)

    def _count(self, results: Results, began: float, written: float) -> None:
        """A transaction was committed, which was begun and written at these times."""
        asked = sum(not isinstance(ticket.operation, self.UNCOUNTED) for ticket, _ in results)
        if asked:
            self.commits += 1
            self.operations += asked
            done = time.monotonic()
            self.batch_sizes.observe(asked)
            self.commit_seconds.observe(done - began)
            self.fsync_seconds.observe(done - written)


def applied(tx: Transaction, tickets: list[Ticket], began: float) -> Results:
    """Apply operations, up to those that are enough for one transaction. Returns the results of these."""
    end = began + ENOUGH_SECONDS
    results: Results = []
    for ticket in tickets:
        try:
            results.append((ticket, outcome.Value(ticket.operation.apply(tx))))
        except ApiError as error:
            results.append((ticket, outcome.Error(error)))
        if tx.size >= ENOUGH_BYTES or time.monotonic() >= end:
            break
    return results
