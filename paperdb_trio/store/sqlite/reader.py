"""Reads: on threads, with a deadline at which SQLite really stops.

Law: never on the event loop, never on the writer's connection. SQLite joins a page into one string. Each row
that Python fetches waits for the interpreter's lock, up to 5 ms if the event loop is busy; one string waits
once.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

import trio

from paperdb_trio.errors import ApiError, bad_request, not_found
from paperdb_trio.measures import Histogram
from paperdb_trio.store.advisor import SLOW_SECONDS, IndexAdvisor, Wish
from paperdb_trio.store.paging import edge_text, parse_edge
from paperdb_trio.store.plan import Plan, improvement
from paperdb_trio.store.projection import parse_select, project
from paperdb_trio.store.protocol import Directory, Found, Stored
from paperdb_trio.store.query import Question, ask
from paperdb_trio.store.refusals import database_gone
from paperdb_trio.store.slow import SlowQueries, Watch
from paperdb_trio.store.sqlite import find as finding
from paperdb_trio.store.sqlite import library as sqlite
from paperdb_trio.store.sqlite import records
from paperdb_trio.store.sqlite.file import connect
from paperdb_trio.store.sqlite.gate import ReadGate
from paperdb_trio.store.sqlite.question import condition
from paperdb_trio.store.view import View

T = TypeVar("T")

PROGRESS_STEPS: Final = 1_000_000
"""Steps of SQLite's virtual machine between two checks whether a query must stop: about 15 ms."""


class _Lease:
    """A connection in use by one thread. It is never interrupted after `end`: that would stop another query.

    SQLite forgets an interrupt that comes between two statements. The progress handler stops the second one.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._connection: sqlite.Connection | None = None
        self._stopped = False

    def start(self, connection: sqlite.Connection) -> None:
        with self._lock:
            self._connection = connection
            connection.set_progress_handler(lambda: self._stopped, PROGRESS_STEPS)

    def end(self) -> None:
        with self._lock:
            if self._connection is not None:
                self._connection.set_progress_handler(None, 0)
            self._connection = None

    def stop(self) -> None:
        with self._lock:
            self._stopped = True
            if self._connection is not None:
                self._connection.interrupt()


class Reader:
    """A pool of read-only connections, one per thread. `close()` it when no query is running any more."""

    def __init__(
        self,
        file: Path,
        *,
        threads: int,
        timeout: float,
        max_result_bytes: int,
        gate: ReadGate | None = None,
        advisor: IndexAdvisor | None = None,
        slow: SlowQueries | None = None,
    ) -> None:
        self._gate = gate or ReadGate()
        self._slow = slow or SlowQueries(0)
        self._advisor = advisor
        self._timeout = timeout
        self._limiter = trio.CapacityLimiter(threads)
        self._idle: deque[sqlite.Connection] = deque(
            connect(file, read_only=True, max_length=max_result_bytes) for _ in range(threads)
        )
        self._max_result_bytes = max_result_bytes
        self._closed = False
        self.seconds: defaultdict[str, Histogram] = defaultdict(Histogram)
        """How long reads of each kind took, with the time that they waited for a thread."""

    def close(self) -> None:
        """A thread whose query was cancelled may still be running: it closes its connection itself."""
        self._closed = True
        self._close_idle()

    def _close_idle(self) -> None:
        while self._idle:
            self._idle.popleft().close()

    async def run(self, query: Callable[[sqlite.Connection], T], kind: str = "other") -> T:
        """Run `query(connection)` on a thread, in one read transaction. `kind` is for `seconds`.

        Cancelling, and the deadline, interrupt the query. Raises a 503 `QUERY_TIMEOUT`, a 400
        `RESULT_TOO_LARGE`, or what the query raises.
        """
        lease = _Lease()

        def work() -> T:
            self._gate.enter()
            connection = self._idle.pop()  # the most recently used: its pages are in the CPU's cache
            lease.start(connection)
            try:
                connection.execute("BEGIN")
                return query(connection)
            finally:
                lease.end()
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                self._gate.leave()
                self._idle.append(connection)
                if self._closed:
                    self._close_idle()

        finished, began = False, time.perf_counter()
        try:
            with trio.move_on_after(self._timeout):
                result = await trio.to_thread.run_sync(work, abandon_on_cancel=True, limiter=self._limiter)
                finished = True
                return result
        except sqlite.TooBigError:
            raise bad_request(
                f"The result is larger than {self._max_result_bytes:,} bytes; use a smaller 'limit'",
                "RESULT_TOO_LARGE",
            ) from None
        finally:
            self.seconds[kind].observe(time.perf_counter() - began)
            if not finished:
                lease.stop()
        raise ApiError(
            503,
            "QUERY_TIMEOUT",
            f"The query took longer than {self._timeout:g} s and was stopped. Narrow the filter, or page.",
            headers={"Retry-After": "1"},
        )

    # --- documents -------------------------------------------------------------------------------

    async def get(self, database_id: int, collection: str, id: str, within: Question | None = None) -> Stored:
        """One document, which matches `within`. Raises a 404."""
        matching, parameters = ("1", []) if within is None else condition(within)

        def fetch(connection: sqlite.Connection) -> tuple[str, int] | None:
            row: tuple[str, int] | None = connection.execute(
                "SELECT json(data), seq FROM documents WHERE id=? AND collection_id="
                f"(SELECT id FROM collections WHERE database_id=? AND name=?) AND {matching}",
                (id, database_id, collection, *parameters),
            ).fetchone()
            return row

        def query(connection: sqlite.Connection) -> tuple[str, int] | None:
            try:
                return fetch(connection)
            except sqlite.TooBigError:
                with any_length(connection):
                    return fetch(connection)

        row = await self.run(query, "get")
        if row is None:
            raise not_found()
        return Stored(row[0].encode(), row[1])

    async def find(
        self,
        database_id: int,
        collection: str,
        *,
        filter: str | None,
        sort: str | None,
        limit: int,
        offset: int,
        select: str | None,
        count: bool,
        after: str | None = None,
        explain: bool = False,
        view: View | None = None,
    ) -> Found:
        """A page of the matching documents. `count` adds their `total`, and `explain` the plan. Raises what
        `ask` and `parse_select` do; with a `view`, what its methods of these names do."""
        question = ask(filter, sort) if view is None else view.ask(filter, sort)
        wanted = parse_select(select) if view is None else view.selection(select)

        def query(connection: sqlite.Connection) -> Found:
            row = connection.execute("SELECT head FROM databases WHERE id=?", (database_id,)).fetchone()
            if row is None:
                raise database_gone()
            head = row[0]
            of = finding.shelf(connection, database_id, collection)
            if of is None:
                return Found([], False, 0 if count else None, head)
            edge = None if after is None else parse_edge(after, sort, question, of.id)
            with Watch(self._slow, "find", database_id, collection, filter, sort) as watch:
                began = time.thread_time()
                plan = finding.choose_plan(connection, question, of)
                watch.chosen = plan, question, of
                try:
                    page = finding.find(connection, question, of, edge, limit, offset, plan=plan)
                except sqlite.TooBigError:
                    if limit > 1 and (view is None or view.select is None):
                        raise
                    with any_length(connection):
                        # The size of what a client may not see must not decide whether it gets the rest.
                        texts = None if view is None else partial(self._projected, view)
                        page = finding.find(connection, question, of, edge, limit, offset, texts, plan)
                self._advise(database_id, collection, plan, question, began)
                rows = page.documents
                total = finding.count(connection, question, of)[0] if count else None
                next = edge_text(sort, question, rows[-1], page.last) if page.more else None
                if wanted:
                    with _PROJECTING:
                        rows = [project(row, wanted) for row in rows]
                explained = finding.explain(connection, plan, question, of) if explain else None
                return Found(rows, page.more, total, head, next, explained)

        return await self.run(query, "find")

    def _projected(self, view: View, connection: sqlite.Connection, rowkeys: list[int]) -> list[bytes]:
        """What a view shows of documents, which alone counts for `max_result_bytes`."""
        found: list[bytes] = []
        size = 0
        for rowkey in rowkeys:
            (text,) = connection.execute(
                "SELECT json(data) FROM documents WHERE rowkey=?", (rowkey,)
            ).fetchone()
            with _PROJECTING:
                found.append(view.project(text.encode()))
            size += len(found[-1])
            if size > self._max_result_bytes and len(rowkeys) > 1:
                raise sqlite.TooBigError
        return found

    async def count(
        self, database_id: int, collection: str, filter: str | None, view: View | None = None
    ) -> int:
        question = ask(filter) if view is None else view.ask(filter)

        def query(connection: sqlite.Connection) -> int:
            of = finding.shelf(connection, database_id, collection)
            if of is None:
                return 0
            with Watch(self._slow, "count", database_id, collection, filter) as watch:
                began = time.thread_time()
                plan = finding.choose_plan_to_count(connection, question, of)
                watch.chosen = plan, question, of
                n, _ = finding.count(connection, question, of, plan)
                self._advise(database_id, collection, plan, question, began)
                return n

        return await self.run(query, "count")

    def _advise(self, database_id: int, collection: str, plan: Plan, question: Question, began: float) -> None:
        """Note the index that was used, or one that would have made a slow query faster."""
        if self._advisor is None:
            return
        if plan.index is not None and plan.index.made:
            self._advisor.used(plan.index.id)
        if time.thread_time() - began >= SLOW_SECONDS and (fields := improvement(plan, question)) is not None:
            self._advisor.wish(Wish(database_id, collection, fields))

    async def collections(self, database_id: int) -> bytes:
        """A JSON array of all collections of a database, sorted by name: `{"name", "count", "schema"}`."""
        (text,) = await self.run(
            lambda connection: connection.execute(
                "SELECT '['||ifnull(group_concat(json_object("
                "'name',name,'count',documents,'schema',json(schema))),'')||']' FROM "
                "(SELECT name, documents, schema FROM collections WHERE database_id=? ORDER BY name)",
                (database_id,),
            ).fetchone(),
            "collections",
        )
        return str(text).encode()

    async def directory(self, known: int, last: int) -> Directory | None:
        """See `Store.directory`."""
        return await self.run(lambda connection: records.directory(connection, known, last), "directory")

    async def schema(self, database_id: int, collection: str) -> str | None:
        """The schema of a collection as JSON text."""
        row = await self.run(
            lambda connection: connection.execute(
                "SELECT schema FROM collections WHERE database_id=? AND name=?", (database_id, collection)
            ).fetchone(),
            "schema",
        )
        return None if row is None else row[0]


@contextmanager
def any_length(connection: sqlite.Connection) -> Iterator[None]:
    """Lift the limit, for a single document: one stored under a larger limit must stay readable."""
    most = connection.limit(sqlite.LENGTH, 2**31 - 1)
    try:
        yield
    finally:
        connection.limit(sqlite.LENGTH, most)


_PROJECTING: Final = threading.Lock()
"""One thread projects at a time: it holds the interpreter's lock for each document, and the event loop
waits."""
