"""The one writer: group commit on one thread, one connection.

Law: this is the only code that writes documents and changes. Operations that wait together are committed
together, with one fsync. Their results are delivered and their changes published after the commit, in commit
order. The writer also keeps the write-ahead log short, which only it can do.
"""

from __future__ import annotations

import logging
import queue
import time
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import outcome
import trio

from paperdb_trio.errors import ApiError, StartupError
from paperdb_trio.files import EXIT_UNWRITABLE
from paperdb_trio.logs import SparingLog
from paperdb_trio.measures import Histogram
from paperdb_trio.model import Change
from paperdb_trio.store.clock import LogClock
from paperdb_trio.store.housekeeping import HOUSEKEEPING
from paperdb_trio.store.operations import Operation, frees
from paperdb_trio.store.protocol import Fault
from paperdb_trio.store.refusals import internal, shutting_down, storage_failed, storage_full, storage_gone
from paperdb_trio.store.sqlite import library as sqlite
from paperdb_trio.store.sqlite.clock import continued
from paperdb_trio.store.sqlite.durability import relax
from paperdb_trio.store.sqlite.file import BUSY_SECONDS, connect
from paperdb_trio.store.sqlite.gate import ReadGate
from paperdb_trio.store.sqlite.place import Place
from paperdb_trio.store.sqlite.reserve import Reserve, is_full
from paperdb_trio.store.sqlite.space import FreePages
from paperdb_trio.store.sqlite.transaction import Transaction

log = logging.getLogger("paperdb.writer")

Result = TypeVar("Result")

MAX_BATCH: Final = 256
"""Operations in one transaction. More would be no faster (37,000 documents/s in hundreds, 25,000 in tens), and
the first would wait longer."""
ENOUGH_BYTES: Final = 4 * 1024 * 1024
ENOUGH_SECONDS: Final = 0.05
"""A transaction that has written this much, or taken this long, takes no further operation. So waiting time and
memory depend on the largest operation, not on 256 of them."""

HEADROOM: Final = 15 / 16
"""The share of its bound at which the write-ahead log restarts: the last transaction may be large."""
PATIENCE: Final = 0.5
"""Seconds that reads are held back, at most, so that a write-ahead log at its bound can restart. The time grows
with the log (twice as long at twice the bound), because a query may take longer."""
MAX_PATIENCE: Final = 2.0
"""The upper limit of that time, in seconds: another process may read for minutes, and cannot be held back."""
BETWEEN_TRIES: Final = 2.0
"""Seconds until the next attempt, if a long query or another process did not stop reading."""
WARN_SECONDS: Final = 60.0
"""Seconds between two warnings about a long write-ahead log."""
PROGRESS_STEPS: Final = 1_000_000
"""Steps of SQLite's virtual machine between two checks whether a statement must stop: about 15 ms."""

LOOK_SECONDS: Final = 0.002
"""Seconds between two checks that the files are where they were. A check before each commit made a single
insert a fifth slower, because it releases the interpreter's lock. A write that is acknowledged between two
checks might as well have come before the file was removed."""
LOOK_AT_RESERVE_SECONDS: Final = 1.0
"""Seconds between two checks that no other process has taken some of the reserve."""
AUTOCHECKPOINT_PAGES: Final = 1000
"""SQLite's default: after so many pages in the log, a commit moves them into the file."""

_UNCOUNTED: Final = (*HOUSEKEEPING, FreePages)
_CLOSE: Final = object()
_UNREAD: Final = object()


Done = Callable[["outcome.Outcome[Any]"], None]
"""Takes the result of an operation, on the event loop."""


class _Ticket:
    """A waiting operation. `done` is None if its waiter was cancelled: the write still happens."""

    __slots__ = ("done", "operation")

    def __init__(self, operation: Operation[Any], done: Done) -> None:
        self.operation = operation
        self.done: Done | None = done


_Result = tuple[_Ticket, "outcome.Outcome[Any]"]


class Writer:
    """Start `run()` in a nursery, with `nursery.start`: it has started once the file is open. It ends, together
    with its thread, when cancelled or after `close()`, and first commits everything that was submitted. It
    raises fatal errors: a file that cannot be opened, a damaged file, or a bug in publishing.

    All reads of this process must go through `gate`. `clock` is set once the file is open.
    """

    clock: LogClock

    def __init__(
        self,
        file: Path,
        on_commit: Callable[[list[Change]], None],
        *,
        gate: ReadGate | None = None,
        max_wal_bytes: int = 64 * 1024 * 1024,
        durability: str = "disk",
        reserve_bytes: int = 0,
    ) -> None:
        self._file = file
        self._durability = durability
        self._reserve = Reserve(file, reserve_bytes)
        self._sparing_log = SparingLog(log)
        self._on_commit = on_commit
        self.on_delivered: Callable[[], None] = lambda: None
        """Called when the results of one commit have been given to those who wait."""
        self._gate = gate or ReadGate()
        self._gate.on_empty = lambda: self._queue.put(_UNREAD)
        self._max_wal_bytes = max_wal_bytes
        self._wal_bytes = 0
        self._look_at = 0.0
        self._look_at_reserve = 0.0
        self._next_try = 0.0
        self._next_warning = 0.0
        self._connection: sqlite.Connection | None = None  # the thread's
        self._place: Place | None = None
        self._gone = False
        self._stopped = False
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._closed = False
        self._opened = trio.Event()
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
        token = trio.lowlevel.current_trio_token()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._thread, token)
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
        """Like `close`, but at once: refuse the waiting operations, too, and interrupt the running one."""
        self._stopped = True  # stops the next statement if the interrupt comes between two
        if self._connection is not None:
            with suppress(sqlite.ConnectionClosedError):
                self._connection.interrupt()
        self.close()

    def fault(self) -> Fault | None:
        """The reason why writes cannot be stored, if one is known."""
        if self._gone or self._place is None:
            return "gone"
        return self._place.fault()

    @property
    def full(self) -> bool:
        """Whether the disk is full: only operations that free space are done."""
        return self._reserve.spent

    async def submit(self, operation: Operation[Result]) -> Result:
        """Commit an operation, and return its result once it is on disk.

        Cancelling stops the waiting, not the write. Raises `ApiError`: the operation's own, 507
        `STORAGE_FULL`, 503 `STORAGE_ERROR`, 503 `STORAGE_GONE`, or 503 `SHUTTING_DOWN`.
        """
        if self._closed:
            raise shutting_down()
        ticket = _Ticket(operation, partial(trio.lowlevel.reschedule, trio.lowlevel.current_task()))
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
            self._queue.put(_Ticket(operation, done))

    # --- on the event loop -----------------------------------------------------------------------

    def _deliver(self, results: list[_Result], changes: list[Change], index_work: bool = False) -> None:
        try:
            if index_work:
                self.index_work.set()
            try:
                if changes:
                    if self.full:
                        self.owed.update(change.database_id for change in changes)
                    self._on_commit(changes)
            finally:
                for ticket, result in results:
                    if ticket.done is not None:
                        done, ticket.done = ticket.done, None
                        done(result)
                self.on_delivered()
        except BaseException as error:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        self._fatal = self._fatal or error
        self.close()

    # --- on the writer's thread ------------------------------------------------------------------

    async def _thread(self, token: trio.lowlevel.TrioToken) -> None:
        await trio.to_thread.run_sync(self._loop, token, limiter=trio.CapacityLimiter(1))

    def _loop(self, token: trio.lowlevel.TrioToken) -> None:
        connection = self._connection = connect(self._file)
        try:
            try:
                self._begin(connection)
            except OSError as error:
                raise StartupError(f"Cannot open {self._file}: {error.strerror}", EXIT_UNWRITABLE) from None
            token.run_sync_soon(self._opened.set)
            closing = False
            while not closing:
                batch, closing = self._next_batch(connection)
                try:
                    self._write(connection, batch, token)
                except sqlite.Error as error:  # the file is damaged: no further write is safe
                    log.critical("the database file is damaged: %s", error)
                    token.run_sync_soon(self._fail, error)
                    for ticket in batch:
                        self._refuse(token, ticket, storage_failed())
            self._refuse_rest(token)
        finally:
            self._gate.open()
            connection.close()

    def _begin(self, connection: sqlite.Connection) -> None:
        connection.set_progress_handler(lambda: self._stopped, PROGRESS_STEPS)
        if self._durability == "process":
            relax(connection)
        self.clock = continued(connection)  # this query also makes SQLite open the files
        self._place = Place(self._file)
        self._reserve.open()

    def _next_batch(self, connection: sqlite.Connection) -> tuple[list[_Ticket], bool]:
        """Wait for operations. Returns those that wait together, and whether they are the last."""
        batch: list[_Ticket] = []
        while len(batch) < MAX_BATCH and not (batch and self._queue.empty()):
            item = self._queue.get()
            if item is _CLOSE:
                return batch, True
            if item is _UNREAD:
                self._begin_log_anew(connection)
            else:
                batch.append(item)
        return batch, False

    # --- the write-ahead log ---------------------------------------------------------------------

    def _bound_log(self, connection: sqlite.Connection) -> None:
        """After a commit: keep the log from growing for ever. On a full disk, give its space back each time."""
        now = time.monotonic()
        if (self._wal_bytes <= self._max_wal_bytes * HEADROOM and not self.full) or now < self._next_try:
            return
        if self.full and self._growth(connection) > self._reserve.room():
            return
        if self._wal_bytes > 4 * self._max_wal_bytes and now >= self._next_warning:
            self._next_warning = now + WARN_SECONDS
            log.warning(
                "the write-ahead log has %d MB: a long query, export, backup or check is still reading it",
                self._wal_bytes // 1_000_000,
            )
        patience = min(PATIENCE * max(self._wal_bytes / self._max_wal_bytes, 1), MAX_PATIENCE)
        self._next_try = now + patience + BETWEEN_TRIES
        if self._gate.close(patience):
            self._begin_log_anew(connection)

    def _begin_log_anew(self, connection: sqlite.Connection) -> None:
        """Empty the log. No read of this process is running. If another process reads, nothing happens."""
        try:
            connection.set_busy_timeout(0)
            (busy, _, _) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            if not busy:
                self._next_try = 0.0
                log.debug("the write-ahead log started over, after %d bytes", self._wal_bytes)
        except sqlite.Error as error:
            self._sparing_log.warning("could not shorten the write-ahead log: %s", error)
        finally:
            connection.set_busy_timeout(BUSY_SECONDS * 1000)
            self._gate.open()

    # --- commits ---------------------------------------------------------------------------------

    def _refuse(self, token: trio.lowlevel.TrioToken, ticket: _Ticket, error: ApiError) -> None:
        result: outcome.Outcome[Any] = outcome.Error(error)
        token.run_sync_soon(self._deliver, [(ticket, result)], [])

    def _refuse_rest(self, token: trio.lowlevel.TrioToken) -> None:
        """Refuse operations behind the closing mark: after a failure there may be some."""
        while not self._queue.empty():
            ticket = self._queue.get()
            if isinstance(ticket, _Ticket):
                self._refuse(token, ticket, shutting_down())

    def _write(
        self, connection: sqlite.Connection, batch: list[_Ticket], token: trio.lowlevel.TrioToken
    ) -> None:
        """Commit or refuse all operations of the batch; it is empty then."""
        while batch:
            if self._reserve.spent and self._refusal() is None and not self._is_roomy_again(connection, token):
                connection.wal_autocheckpoint(0)  # it would take the reserve, and could not finish
                for ticket in batch:
                    if not frees(ticket.operation):
                        self._refuse(token, ticket, self._told_full("the reserve is kept for deletes"))
                batch[:] = [ticket for ticket in batch if frees(ticket.operation)]
            del batch[: self._commit_or_split(connection, batch, token) if batch else 0]

    def _is_roomy_again(self, connection: sqlite.Connection, token: trio.lowlevel.TrioToken) -> bool:
        if not self._reserve.restore():
            return False
        connection.wal_autocheckpoint(AUTOCHECKPOINT_PAGES)
        self._sparing_log.warning("the disk has room again: all writes are allowed")
        token.run_sync_soon(self._deliver, [], [], True)  # indexes whose building had to wait
        return True

    def _use_reserve(self, connection: sqlite.Connection) -> bool:
        """Make room for an operation that frees space. Returns whether there is more room than before.

        The log often takes most of the space. If the whole reserve suffices to move it into the file, it does.
        """
        if not self._reserve.spend():
            return False
        growth = self._growth(connection)
        if growth <= self._reserve.room(whole=True):
            while growth > self._reserve.room() and self._reserve.spend():
                pass
            self._begin_log_anew(connection)
        return True

    def _growth(self, connection: sqlite.Connection) -> int:
        """Bytes by which the file grows when the log is moved into it."""
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        (size,) = connection.execute("PRAGMA page_size").fetchone()
        return int(pages * size) - self._file.stat().st_size

    def _commit_or_split(
        self, connection: sqlite.Connection, batch: list[_Ticket], token: trio.lowlevel.TrioToken
    ) -> int:
        """Commit the batch in one transaction, or as many of its first operations as one transaction takes. If
        that fails, commit each alone, so that a bad operation (a bug, or too large for the free space) fails
        alone. Returns the number of operations that are done."""
        refused = self._refusal()
        if refused is None:
            try:
                results, tx = self._commit(connection, batch)
            except Exception as error:
                refused = self._refusal()
                if connection.in_transaction:
                    # After `stop`, the rollback may be interrupted, too. Then closing rolls back.
                    with suppress(sqlite.Error) if self._stopped else nullcontext():
                        connection.execute("ROLLBACK")
                if refused is None and len(batch) > 1:
                    for ticket in batch:
                        self._write(connection, [ticket], token)
                    return len(batch)
                if isinstance(error, sqlite.DAMAGED):
                    raise
                if refused is None:
                    full = is_full(error, self._file.parent)
                    if full and frees(batch[0].operation) and self._use_reserve(connection):
                        return self._commit_or_split(connection, batch, token)
                    if full:
                        self._reserve.touch()
                    refused = self._told_full(error) if full else self._told_failed(error)
        if refused is not None:
            results = [(ticket, outcome.Error(refused)) for ticket in batch]
            token.run_sync_soon(self._deliver, results, [])
        else:
            token.run_sync_soon(self._deliver, results, tx.changes, tx.index_work)
            self._bound_log(connection)
        return len(results)

    def _look(self, now: float) -> None:
        """Check that the files are in place, and note the size of the log. Raises a 503 `STORAGE_GONE`."""
        assert self._place is not None
        wal_bytes = self._place.wal_bytes()
        if wal_bytes is None:
            log.critical("%s was removed, replaced or unmounted: nothing is stored any more", self._file)
            self._gone = True
            raise storage_gone()
        self._wal_bytes = wal_bytes
        self._look_at = now + LOOK_SECONDS
        if now >= self._look_at_reserve:
            self._look_at_reserve = now + LOOK_AT_RESERVE_SECONDS
            self._reserve.look()

    def _told_full(self, why: object) -> ApiError:
        self._sparing_log.error("the disk is full, a write was refused: %s", why)
        return storage_full()

    def _told_failed(self, error: Exception) -> ApiError:
        if isinstance(error, sqlite.Error) and not isinstance(error, sqlite.ConstraintError):
            self._sparing_log.error("a write failed: %s (%s)", error, sqlite.error_name(error))
            return storage_failed()
        log.error("write failed", exc_info=error)
        return internal()

    def _refusal(self) -> ApiError | None:
        """The error for all writes from now on, if there is one."""
        if self._stopped:
            return shutting_down()
        return storage_gone() if self._gone else None

    def _commit(self, connection: sqlite.Connection, batch: list[_Ticket]) -> tuple[list[_Result], Transaction]:
        now = time.monotonic()
        if now >= self._look_at:
            self._look(now)
        connection.execute("BEGIN IMMEDIATE")
        end = now + ENOUGH_SECONDS
        tx = Transaction(connection, time.time(), self.clock.now())
        results: list[_Result] = []
        for ticket in batch:
            try:
                results.append((ticket, outcome.Value(ticket.operation.apply(tx))))
            except ApiError as error:
                results.append((ticket, outcome.Error(error)))
            if tx.size >= ENOUGH_BYTES or time.monotonic() >= end:
                break
        tx.flush()
        flushed = time.monotonic()
        connection.execute("COMMIT")
        self.indexes_built += tx.indexes_built
        asked = sum(not isinstance(ticket.operation, _UNCOUNTED) for ticket, _ in results)
        if asked:
            self.commits += 1
            self.operations += asked
            done = time.monotonic()
            self.batch_sizes.observe(asked)
            self.commit_seconds.observe(done - now)
            self.fsync_seconds.observe(done - flushed)
        return results, tx
