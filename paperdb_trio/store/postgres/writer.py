"""The writer of one node: group commit on one thread, one connection.

Law: this is the only code of a node that writes documents and changes. Operations of one database that wait
together are one transaction, which takes the row of the database's head: this orders the nodes. A write that is
acknowledged is committed. If the connection is lost during a COMMIT, the outcome is looked up; it is never
guessed, and never tried a second time.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from typing import Final, TypeVar

from paperdb_trio.errors import ApiError
from paperdb_trio.logs import SparingLog
from paperdb_trio.model import Change
from paperdb_trio.store.clock import continued
from paperdb_trio.store.group_commit import GroupCommit, Results, Ticket, applied
from paperdb_trio.store.postgres.ahead import database_of, is_blind, needs
from paperdb_trio.store.postgres.history import keep_history
from paperdb_trio.store.postgres.rows import Known, Unread
from paperdb_trio.store.postgres.session import Session
from paperdb_trio.store.postgres.transaction import Transaction
from paperdb_trio.store.postgres.wire import ConnectionLost, ServerError
from paperdb_trio.store.protocol import Fault
from paperdb_trio.store.refusals import (
    internal,
    shutting_down,
    storage_away,
    storage_failed,
    storage_full,
    storage_unknown,
)
from paperdb_trio.store.webhook_changes import KeepProgress

log = logging.getLogger("paperdb.writer")

Result = TypeVar("Result")

RETRY_SECONDS: Final = (0.05, 0.1, 0.2, 0.5, 1.0)
"""Between two attempts to connect; the last one for all further ones."""
PATIENCE_SECONDS: Final = 15
"""For a response of PostgreSQL. If that was too little, nothing is lost: the outcome is looked up."""
HELD_MILLISECONDS: Final = 5000
"""For how long a node that hangs may hold the lock of a database."""
CLOCK_SECONDS: Final = 60.0
"""Between two looks at PostgreSQL's clock."""
GUESS_AGAIN_SECONDS: Final = 0.25
"""After a guess at the head that failed, because another node writes to the same database."""

CHANNEL: Final = "paperdb"
_WAKE: Final = (
    f"SELECT set_config('synchronous_commit','off',true), pg_notify('{CHANNEL}', $1||' '||head) "
    "FROM heads WHERE database_id=$1::bigint"
)
"""In a transaction of its own: a NOTIFY takes a lock of the whole cluster until its commit is on disk."""

_LOOK_UP: Final = (
    "WITH w AS (UPDATE writers SET id=$2 WHERE id=$1 RETURNING batch) "
    "SELECT batch FROM w UNION ALL SELECT batch FROM writers WHERE id=$2"
)
"""The last batch of a connection. It waits for a transaction that still runs; one that comes later fails,
without its row. It can be asked again, if its own response is lost."""

_NOT_HERE: Final = ("25006", "22012")
"""The server became a standby; or the writer's row is gone, or the guess was wrong: see
`Transaction.finish`."""
_AGAIN: Final = ("40001", "40P01")


class Writer(GroupCommit):
    """It has started once it is connected. `committed(changes, resume)` is called on the event loop for each
    transaction, in the order of the commits of this node. It calls `resume()` when its writers may be told.
    """

    def __init__(self, url: str, committed: Callable[[list[Change], Callable[[], None]], None]) -> None:
        super().__init__()
        self._url = url
        self._committed = committed
        self._sparing_log = SparingLog(log)
        self._session: Session | None = None  # the thread's
        self._id = b""
        self._batch = 0
        self._wall = 0.0  # what PostgreSQL's clock is ahead of `time.monotonic`
        self._next_clock = 0.0
        self._known: dict[int, Known] = {}
        self._guess_from: dict[int, float] = {}
        self._tries = 0
        self._next_try = 0.0
        self.full = False

    def fault(self) -> Fault | None:
        return "away" if self._session is None else None

    def _publish(self, changes: list[Change], resume: Callable[[], None]) -> None:
        self._committed(changes, resume)

    # --- on the thread ---------------------------------------------------------------------------

    def _work(self) -> None:
        try:
            self._connect()
            assert self._session is not None
            kept = {
                name.decode(): value / 1000
                for name, value in self._session.query("SELECT name, value FROM meta")
            }
            self._open(continued(kept, None, self._now()))
            closing = False
            while not closing:
                batch, closing = self._next_batch()
                for database_id, tickets in _by_database(batch):
                    self._write(database_id, tickets)
            self._refuse_rest()
        finally:
            if self._session is not None:
                self._leave(self._session)

    def _leave(self, session: Session) -> None:
        try:
            session.rollback()
            session.run([("DELETE FROM writers WHERE id=$1", (self._id,))])
        except (ConnectionLost, ServerError):
            pass
        session.close()
        self._session = None

    def _now(self) -> float:
        """PostgreSQL's time: that of the nodes may differ."""
        return self._wall + time.monotonic()

    # --- the connection ----------------------------------------------------------------------------

    def _connect(self) -> None:
        """Raises `ConnectionLost` or `ServerError`."""
        self._next_try = time.monotonic() + RETRY_SECONDS[min(self._tries, len(RETRY_SECONDS) - 1)]
        self._tries += 1
        session = Session(self._url, lambda: self._stopped, PATIENCE_SECONDS)
        try:
            id = os.urandom(16)
            # A node that hangs or is cut off within a transaction holds up the others: they wait for its locks.
            session.add(f"SET idle_in_transaction_session_timeout={HELD_MILLISECONDS}")
            # A timeout would end the wait for a standby, and PostgreSQL would call the commit a success.
            session.add("SET statement_timeout=0")
            keep_history(session)
            session.add("DELETE FROM writers WHERE at<now()-interval '30 days'")
            session.add("INSERT INTO writers (id, batch) VALUES ($1,0)", id)
            self._set_clock(session)
        except BaseException:
            session.close()
            raise
        self._session, self._id, self._batch = session, id, 0
        self._known.clear()
        self._tries = 0

    def _set_clock(self, session: Session) -> None:
        sent = time.monotonic()
        ((wall,),) = session.query("SELECT extract(epoch FROM clock_timestamp())::float8")
        received = time.monotonic()
        self._wall = wall - (sent + received) / 2
        self._next_clock = received + CLOCK_SECONDS

    def _is_connected(self) -> bool:
        if self._session is None and time.monotonic() >= self._next_try and not self._stopped:
            try:
                self._connect()
                self._sparing_log.warning("PostgreSQL is back: writes are stored again")
            except (ConnectionLost, ServerError) as error:
                self._sparing_log.error("no connection to PostgreSQL: %s", str(error).strip())
        return self._session is not None

    def _lose(self, error: Exception) -> None:
        self._sparing_log.error("lost the connection to PostgreSQL: %s", str(error).strip())
        if self._session is not None:
            self._session.close()
        self._session = None
        self._known.clear()

    # --- commits -----------------------------------------------------------------------------------

    def _write(self, database_id: int | None, tickets: list[Ticket]) -> None:
        """Commit or refuse all of them."""
        while tickets:
            if self._stopped:
                self._refuse(tickets, shutting_down())
                return
            if not self._is_connected():
                self._refuse(tickets, storage_away())
                return
            done = self._commit_or_split(database_id, tickets)
            tickets = tickets[done:]

    def _commit_or_split(self, database_id: int | None, tickets: list[Ticket]) -> int:
        """Commit them in one transaction, or as many of the first as one takes. If that fails, each alone, so
        that a bad operation fails alone. Returns how many are done."""
        session = self._session
        assert session is not None
        try:
            try:
                return self._commit(session, database_id, tickets)
            except Exception as error:
                if isinstance(error, ConnectionLost) or (
                    isinstance(error, ServerError) and error.state in _NOT_HERE
                ):
                    raise
                session.rollback()
                self._known.clear()
                if isinstance(error, ServerError) and error.state in _AGAIN:
                    return 0
                if len(tickets) > 1:
                    for ticket in tickets:
                        self._write(database_id, [ticket])
                    return len(tickets)
                self._refuse(tickets, self._told(error))
                return 1
        except (ConnectionLost, ServerError) as error:
            # COMMIT was not sent, so that nothing was written.
            self._lose(error)
            self._refuse(tickets, shutting_down() if self._stopped else storage_failed())
            return len(tickets)

    def _told(self, error: Exception) -> ApiError:
        if isinstance(error, ServerError):
            if error.state == "53100":
                self._sparing_log.error("PostgreSQL's disk is full, a write was refused: %s", error)
                return storage_full()
            if not error.state.startswith(("22", "23", "42")):
                self._sparing_log.error("a write failed: %s", error)
                return storage_failed()
        log.error("write failed", exc_info=error)
        return internal()

    def _commit(self, session: Session, database_id: int | None, tickets: list[Ticket]) -> int:
        if time.monotonic() >= self._next_clock:
            self._set_clock(session)
        if database_id is not None:
            known = self._known.get(database_id)
            if (
                known is not None
                and time.monotonic() >= self._guess_from.get(database_id, 0)
                and all(is_blind(ticket.operation) for ticket in tickets)
            ):
                try:
                    return self._try(session, database_id, tickets, known)
                except Unread:
                    pass
                except ServerError as error:
                    session.rollback()
                    self._known.pop(database_id, None)
                    if error.state == "22012":
                        self._guess_from[database_id] = time.monotonic() + GUESS_AGAIN_SECONDS
        return self._try(session, database_id, tickets, None)

    def _try(
        self, session: Session, database_id: int | None, tickets: list[Ticket], known: Known | None
    ) -> int:
        tx = Transaction(session, self._now(), self.clock.now(), database_id=database_id, known=known)
        if database_id is None:
            tx.begin()
        elif known is None:
            tx.read_ahead(database_id, needs(ticket.operation for ticket in tickets))
        began = time.monotonic()
        results = applied(tx, tickets, began)
        writes, statements = tx.finish(self._id, self._batch + 1)
        statements = [*session.take(), *statements]
        if known is None:
            statements.append(("COMMIT", ()))
        sent = time.monotonic()
        session.send(statements)
        databases = {change.database_id for change in tx.changes}
        for changed in databases:
            session.send([(_WAKE, (changed,))])
        try:
            session.receive()
        except ConnectionLost as error:
            if not writes:
                raise
            self._settle(error, results, tx, began, sent)
            return len(results)
        self._batch += 1
        self.indexes_built += tx.indexes_built
        self._count(results, began, sent)
        if database_id is not None:
            after = tx.known(database_id)
            if after is None:
                self._known.pop(database_id, None)
            else:
                self._known[database_id] = after
        self._tell(results, tx.changes, tx.index_work)
        try:
            for _ in databases:
                session.receive()
        except (ConnectionLost, ServerError) as error:  # only of the wake-ups
            self._lose(error)
        return len(results)

    def _settle(self, error: Exception, results: Results, tx: Transaction, began: float, sent: float) -> None:
        """Find out whether a transaction was committed whose COMMIT was not answered. Meanwhile, refuse
        others."""
        id, batch = self._id, self._batch + 1
        self._lose(error)
        while not self._stopped:
            if self._is_connected():
                assert self._session is not None
                try:
                    found = self._session.query(_LOOK_UP, id, id + b"?")
                except (ConnectionLost, ServerError) as lost:
                    self._lose(lost)
                    continue
                if found == [(batch,)]:
                    self._count(results, began, sent)
                    self._tell(results, tx.changes, tx.index_work)
                else:
                    self._refuse([ticket for ticket, _ in results], storage_failed())
                return
            self._refuse_waiting(self._next_try - time.monotonic(), storage_away)
        self._refuse([ticket for ticket, _ in results], storage_unknown())


def _by_database(batch: list[Ticket]) -> list[tuple[int | None, list[Ticket]]]:
    """Those of one database together, in their order. Without a database, each alone, but for the progress of
    webhooks."""
    groups: list[tuple[int | None, list[Ticket]]] = []
    own: dict[int | None, list[Ticket]] = {}
    for ticket in batch:
        database_id = database_of(ticket.operation)
        if database_id is None and not isinstance(ticket.operation, KeepProgress):
            groups.append((None, [ticket]))
        elif database_id in own:
            own[database_id].append(ticket)
        else:
            own[database_id] = [ticket]
            groups.append((database_id, own[database_id]))
    return groups
