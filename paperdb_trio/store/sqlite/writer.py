"""The one writer: group commit on one thread, one connection.

Law: this is the only code that writes documents and changes. Operations that wait together are committed
together, with one fsync. The writer also keeps the write-ahead log short, which only it can do.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any, ClassVar, Final

from paperdb_trio.errors import ApiError, StartupError
from paperdb_trio.files import EXIT_UNWRITABLE
from paperdb_trio.logs import SparingLog
from paperdb_trio.model import Change
from paperdb_trio.store.group_commit import GroupCommit, Results, Ticket, applied
from paperdb_trio.store.housekeeping import HOUSEKEEPING
from paperdb_trio.store.operations import frees
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

_UNREAD: Final = object()


class Writer(GroupCommit):
    """A damaged file is a fatal error, too. All reads of this process must go through `gate`."""

    UNCOUNTED: ClassVar = (*HOUSEKEEPING, FreePages)

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
        super().__init__()
        self._file = file
        self._durability = durability
        self._reserve = Reserve(file, reserve_bytes)
        self._sparing_log = SparingLog(log)
        self._on_commit = on_commit
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

    def stop(self) -> None:
        """Like `close`, but at once: refuse the waiting operations, too, and interrupt the running one."""
        self._stopped = True  # stops the next statement if the interrupt comes between two
        if self._connection is not None:
            with suppress(sqlite.ConnectionClosedError):
                self._connection.interrupt()
        super().stop()

    def fault(self) -> Fault | None:
        """The reason why writes cannot be stored, if one is known."""
        if self._gone or self._place is None:
            return "gone"
        return self._place.fault()

    @property
    def full(self) -> bool:
        """Whether the disk is full: only operations that free space are done."""
        return self._reserve.spent

    def _publish(self, changes: list[Change], resume: Callable[[], None]) -> None:
        if self.full:
            self.owed.update(change.database_id for change in changes)
        try:
            self._on_commit(changes)
        finally:
            resume()

    # --- on the thread ---------------------------------------------------------------------------

    def _work(self) -> None:
        connection = self._connection = connect(self._file)
        try:
            try:
                self._begin(connection)
            except OSError as error:
                raise StartupError(f"Cannot open {self._file}: {error.strerror}", EXIT_UNWRITABLE) from None
            closing = False
            while not closing:
                batch, closing = self._next_batch()
                try:
                    self._write(connection, batch)
                except sqlite.Error as error:  # the file is damaged: no further write is safe
                    log.critical("the database file is damaged: %s", error)
                    self._token.run_sync_soon(self._fail, error)
                    self._refuse(batch, storage_failed())
            self._refuse_rest()
        finally:
            self._gate.open()
            connection.close()

    def _begin(self, connection: sqlite.Connection) -> None:
        connection.set_progress_handler(lambda: self._stopped, PROGRESS_STEPS)
        if self._durability == "process":
            relax(connection)
        clock = continued(connection)  # this query also makes SQLite open the files
        self._place = Place(self._file)
        self._reserve.open()
        self._open(clock)

    def _take(self, item: Any) -> None:
        """No read is running: see `ReadGate`."""
        assert self._connection is not None
        self._begin_log_anew(self._connection)

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

    def _write(self, connection: sqlite.Connection, batch: list[Ticket]) -> None:
        """Commit or refuse all operations of the batch; it is empty then."""
        while batch:
            if self._reserve.spent and self._refusal() is None and not self._is_roomy_again(connection):
                connection.wal_autocheckpoint(0)  # it would take the reserve, and could not finish
                for ticket in batch:
                    if not frees(ticket.operation):
                        self._refuse([ticket], self._told_full("the reserve is kept for deletes"))
                batch[:] = [ticket for ticket in batch if frees(ticket.operation)]
            del batch[: self._commit_or_split(connection, batch) if batch else 0]

    def _is_roomy_again(self, connection: sqlite.Connection) -> bool:
        if not self._reserve.restore():
            return False
        connection.wal_autocheckpoint(AUTOCHECKPOINT_PAGES)
        self._sparing_log.warning("the disk has room again: all writes are allowed")
        self._tell([], [], index_work=True)  # indexes whose building had to wait
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

    def _commit_or_split(self, connection: sqlite.Connection, batch: list[Ticket]) -> int:
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
                        self._write(connection, [ticket])
                    return len(batch)
                if isinstance(error, sqlite.DAMAGED):
                    raise
                if refused is None:
                    full = is_full(error, self._file.parent)
                    if full and frees(batch[0].operation) and self._use_reserve(connection):
                        return self._commit_or_split(connection, batch)
                    if full:
                        self._reserve.touch()
                    refused = self._told_full(error) if full else self._told_failed(error)
        if refused is not None:
            self._refuse(batch, refused)
            return len(batch)
        self._tell(results, tx.changes, tx.index_work)
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

    def _commit(self, connection: sqlite.Connection, batch: list[Ticket]) -> tuple[Results, Transaction]:
        began = time.monotonic()
        if began >= self._look_at:
            self._look(began)
        connection.execute("BEGIN IMMEDIATE")
        tx = Transaction(connection, time.time(), self.clock.now())
        results = applied(tx, batch, began)
        tx.flush()
        flushed = time.monotonic()
        connection.execute("COMMIT")
        self.indexes_built += tx.indexes_built
        self._count(results, began, flushed)
        return results, tx
