"""The one writer: group commit on one thread, one connection.

Law: the only code that writes documents and changes. Requests that wait together are committed together,
with one fsync; they are answered, and their changes published, after that and in commit order.
"""

from __future__ import annotations

import logging
import queue
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import outcome
import trio

from paperdb_trio.errors import ApiError
from paperdb_trio.model import Change
from paperdb_trio.store.operations import Operation
from paperdb_trio.store.schema import connect
from paperdb_trio.store.transaction import Transaction

log = logging.getLogger("paperdb.writer")

MAX_BATCH: Final = 256
"""Operations in one transaction. More gain nothing (37,000 documents/s in hundreds, 25,000 in tens) and
make the first of them wait longer."""
ENOUGH_BYTES: Final = 4 * 1024 * 1024
ENOUGH_SECONDS: Final = 0.05
"""What a transaction has written, or how long it has taken, when it takes no further operation: what others
wait for, and hold in memory, grows with the largest operation, not with 256 of them."""

_CLOSE: Final = object()
_DAMAGED: Final = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


class _Ticket:
    """One waiting operation. `task` is None once its waiter was cancelled: the write still happens."""

    __slots__ = ("operation", "task")

    def __init__(self, operation: Operation, task: trio.lowlevel.Task) -> None:
        self.operation = operation
        self.task: trio.lowlevel.Task | None = task


_Result = tuple[_Ticket, "outcome.Outcome[Any]"]


class Writer:
    """Start `run()` in a nursery, which waits until the file is open; it ends, and its thread with it, when
    cancelled or after `close()`, having committed all that was submitted before. It raises what no server
    can go on after: a file that cannot be opened, a damaged one, or a bug in publishing.
    """

    def __init__(self, file: Path, on_commit: Callable[[list[Change]], None]) -> None:
        self._file = file
        self._on_commit = on_commit
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._closed = False
        self._opened = trio.Event()
        self._closing = trio.Event()
        self.closed = trio.Event()
        self._fatal: BaseException | None = None
        self.commits = 0
        self.operations = 0

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
        # What the thread handed over last still waits in trio's queue of callbacks.
        with trio.CancelScope(shield=True):
            done = trio.Event()
            token.run_sync_soon(done.set)
            await done.wait()
        self.closed.set()
        if self._fatal is not None:
            raise self._fatal

    def close(self) -> None:
        """Commit what is waiting, refuse anything more, and let `run` return."""
        self._closed = True
        self._closing.set()

    async def submit(self, operation: Operation) -> Any:
        """Have an operation committed, and return its result once it is on disk.

        Cancelling stops the waiting, not the write. Raises `ApiError`: the operation's own, 507
        `STORAGE_FULL`, 503 `STORAGE_ERROR`, or 503 `SHUTTING_DOWN`.
        """
        if self._closed:
            raise ApiError(503, "SHUTTING_DOWN", "The server is shutting down", headers={"Retry-After": "1"})
        ticket = _Ticket(operation, trio.lowlevel.current_task())
        self._queue.put(ticket)

        def abandon(_: Any) -> trio.lowlevel.Abort:
            ticket.task = None
            return trio.lowlevel.Abort.SUCCEEDED

        return await trio.lowlevel.wait_task_rescheduled(abandon)

    # --- on the event loop -----------------------------------------------------------------------

    def _deliver(self, results: list[_Result], changes: list[Change]) -> None:
        try:
            for ticket, result in results:
                if ticket.task is not None:
                    task, ticket.task = ticket.task, None
                    trio.lowlevel.reschedule(task, result)
            if changes:
                self._on_commit(changes)
        except BaseException as error:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        self._fatal = self._fatal or error
        self.close()

    # --- on the writer's thread ------------------------------------------------------------------

    async def _thread(self, token: trio.lowlevel.TrioToken) -> None:
        await trio.to_thread.run_sync(self._loop, token, limiter=trio.CapacityLimiter(1))

    def _loop(self, token: trio.lowlevel.TrioToken) -> None:
        connection = connect(self._file)
        try:
            connection.execute("SELECT value FROM meta").fetchall()  # SQLite opens what it is asked for
            token.run_sync_soon(self._opened.set)
            while True:
                first = self._queue.get()
                if first is _CLOSE:
                    break
                batch = [first]
                closing = False
                while len(batch) < MAX_BATCH and not self._queue.empty():
                    ticket = self._queue.get()
                    if ticket is _CLOSE:
                        closing = True
                        break
                    batch.append(ticket)
                try:
                    while batch:
                        del batch[: self._commit_or_split(connection, batch, token)]
                except sqlite3.DatabaseError as error:  # a damaged file: nothing more can be promised
                    log.critical("the database file is damaged: %s", error)
                    token.run_sync_soon(self._fail, error)
                    for ticket in batch:
                        self._refuse(token, ticket, _storage_error(error))
                if closing:
                    break
            self._refuse_rest(token)
        finally:
            connection.close()

    def _refuse(self, token: trio.lowlevel.TrioToken, ticket: _Ticket, error: ApiError) -> None:
        result: outcome.Outcome[Any] = outcome.Error(error)
        token.run_sync_soon(self._deliver, [(ticket, result)], [])

    def _refuse_rest(self, token: trio.lowlevel.TrioToken) -> None:
        """After a failure that closed us, somebody may still be waiting behind the mark."""
        while not self._queue.empty():
            ticket = self._queue.get()
            if ticket is not _CLOSE:
                self._refuse(token, ticket, ApiError(503, "SHUTTING_DOWN", "The server is shutting down"))

    def _commit_or_split(
        self, connection: sqlite3.Connection, batch: list[_Ticket], token: trio.lowlevel.TrioToken
    ) -> int:
        """Commit the batch, or the first of it that are enough, as one; if that fails, each alone, so that one
        bad operation (a bug, or too large for the disk's last room) fails by itself. How many are done."""
        try:
            results, changes = self._commit(connection, batch)
        except Exception as error:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            if len(batch) > 1:
                for ticket in batch:
                    self._commit_or_split(connection, [ticket], token)
                return len(batch)
            if isinstance(error, sqlite3.DatabaseError) and _code_of(error) in _DAMAGED:
                raise
            results, changes = [(batch[0], outcome.Error(_storage_error(error)))], []
        token.run_sync_soon(self._deliver, results, changes)
        return len(results)

    def _commit(
        self, connection: sqlite3.Connection, batch: list[_Ticket]
    ) -> tuple[list[_Result], list[Change]]:
        connection.execute("BEGIN IMMEDIATE")
        end = time.monotonic() + ENOUGH_SECONDS
        tx = Transaction(connection, time.time())
        results: list[_Result] = []
        for ticket in batch:
            try:
                results.append((ticket, outcome.Value(ticket.operation.apply(tx))))
            except ApiError as error:
                results.append((ticket, outcome.Error(error)))
            if tx.size >= ENOUGH_BYTES or time.monotonic() >= end:
                break
        tx.flush()
        connection.execute("COMMIT")
        self.commits += 1
        self.operations += len(results)
        return results, tx.changes


def _code_of(error: Exception) -> int:
    """SQLite's primary result code; 0 for an error that is not of SQLite itself."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _storage_error(error: Exception) -> ApiError:
    """What the requester is told of a failed commit. Nothing of the operation is in the file."""
    if isinstance(error, sqlite3.OperationalError) and "full" in str(error):
        log.error("write refused: %s", error)
        return ApiError(
            507,
            "STORAGE_FULL",
            "The disk is full: nothing was written. Reads go on; try again when there is room.",
        )
    if isinstance(error, sqlite3.OperationalError) or _code_of(error) in _DAMAGED:
        log.error("write failed: %s (%s)", error, getattr(error, "sqlite_errorname", "?"))
        return ApiError(
            503,
            "STORAGE_ERROR",
            "The storage failed: nothing was written. Try again later.",
            headers={"Retry-After": "1"},
        )
    log.error("write failed", exc_info=error)
    return ApiError(500, "INTERNAL", "Internal error; the server's log has the details")
