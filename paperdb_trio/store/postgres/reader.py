"""Reads of documents and collections.

Law: event loop only; PostgreSQL does the work. A get costs no round trip of its own: those that wait together
are one query.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final, TypeVar

import trio

from paperdb_trio.config import Settings
from paperdb_trio.errors import ApiError, bad_request, not_found
from paperdb_trio.json_input import decode
from paperdb_trio.model import encode
from paperdb_trio.store.advisor import IndexAdvisor, Wish
from paperdb_trio.store.indexes import stored_indexes
from paperdb_trio.store.paging import edge_text, parse_edge
from paperdb_trio.store.plan import Plan, Shelf, improvement
from paperdb_trio.store.postgres import find as finding
from paperdb_trio.store.postgres.change_log import BEGIN, ChangeLog
from paperdb_trio.store.postgres.connection import Connection, Pool
from paperdb_trio.store.postgres.directory import directory
from paperdb_trio.store.postgres.records import Asked
from paperdb_trio.store.postgres.wire import Ints, Statement, Texts
from paperdb_trio.store.projection import parse_select, project
from paperdb_trio.store.protocol import Directory, Found, Stored
from paperdb_trio.store.query import Question, ask
from paperdb_trio.store.refusals import database_gone
from paperdb_trio.store.slow import SlowQueries, Watch
from paperdb_trio.store.view import View

T = TypeVar("T")

SLOW_SECONDS: Final = 0.003
"""Seconds below which a find wishes for no index."""
GETTERS: Final = 2
"""Queries of gets that run at the same time: while they run, further gets wait together."""
MOST_GETS: Final = 500

_GET: Final = (
    "SELECT u.n, d.data, d.seq FROM unnest($1::bigint[],$2::text[],$3::text[]) WITH ORDINALITY "
    "u(database_id, name, id, n) JOIN collections c ON c.database_id=u.database_id AND c.name=u.name "
    "CROSS JOIN LATERAL (SELECT data, seq FROM documents WHERE collection_id=c.id AND id=u.id OFFSET 0) d"
)
"""Without the LATERAL, PostgreSQL reads the whole collection in a table that was never analysed, and compares
ids."""


class _Get:
    __slots__ = ("collection", "database_id", "found", "id", "task")

    def __init__(self, database_id: int, collection: str, id: str, task: trio.lowlevel.Task) -> None:
        self.database_id, self.collection, self.id = database_id, collection, id
        self.task: trio.lowlevel.Task | None = task
        self.found: Stored | Exception | None = None


class Reader:
    """Run `run()` in a nursery."""

    def __init__(self, pool: Pool, log: ChangeLog, settings: Settings, advisor: IndexAdvisor) -> None:
        self._pool = pool
        self._log = log
        self._advisor = advisor
        self._slow = SlowQueries(settings.slow_query_ms)
        self.slow_queries = self._slow.latest
        self.slow_measure = self._slow.measure
        self._max_result_bytes = settings.max_result_bytes
        # One thread projects at a time: it holds the interpreter's lock for each document.
        self._projecting = trio.CapacityLimiter(1)
        self._gets: list[_Get] = []
        self._waiting = trio.Event()

    # --- gets --------------------------------------------------------------------------------------

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(GETTERS):
                nursery.start_soon(self._getter)

    async def _getter(self) -> None:
        while True:
            while not self._gets:
                await self._waiting.wait()
            self._waiting = trio.Event()
            gets, self._gets = self._gets[:MOST_GETS], self._gets[MOST_GETS:]
            try:
                async with self._pool.lease("get") as connection:
                    rows = await connection.query(
                        _GET,
                        Ints([get.database_id for get in gets]),
                        Texts([get.collection for get in gets]),
                        Texts([get.id for get in gets]),
                    )
                for n, data, seq in rows:
                    gets[n - 1].found = Stored(data, seq)
            except ApiError as error:
                for get in gets:
                    get.found = error
            for get in gets:
                if get.task is not None:
                    task, get.task = get.task, None
                    trio.lowlevel.reschedule(task)

    async def get(self, database_id: int, collection: str, id: str, within: Question | None = None) -> Stored:
        """One document, which matches `within`. Raises a 404."""
        get = _Get(database_id, collection, id, trio.lowlevel.current_task())
        self._gets.append(get)
        self._waiting.set()

        def abandon(_: Any) -> trio.lowlevel.Abort:
            get.task = None
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abandon)
        found = get.found
        if isinstance(found, Exception):
            raise found
        if found is None or (within is not None and not within.matches(decode(found.data))):
            raise not_found()
        return found

    # --- finds -------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _snapshot(
        self, kind: str, database_id: int, collection: str
    ) -> AsyncIterator[tuple[Connection, int, Shelf | None]]:
        """A connection in a read transaction, the head, and what finding needs of the collection."""
        shelf: Statement = (
            "SELECT c.id, n.documents, c.indexes, n.newest IS NOT NULL FROM collections c "
            "JOIN counts n ON n.collection_id=c.id WHERE c.database_id=$1 AND c.name=$2",
            (database_id, collection),
        )
        head: Statement = (
            "SELECT h.head FROM heads h JOIN databases d ON d.id=h.database_id WHERE h.database_id=$1",
            (database_id,),
        )
        async with self._pool.lease(kind) as connection:
            _, seqs, rows = await connection.queries([BEGIN, head, shelf])
            if not seqs:
                raise database_gone()
            of = None
            if rows:
                id, documents, text, in_order = rows[0]
                indexes = () if text is None else stored_indexes(text.decode()).all
                of = Shelf(id, documents, indexes, in_order)
            yield connection, seqs[0][0], of  # the pool ends the transaction

    async def _do(self, connection: Connection, steps: finding.Steps[T]) -> T:
        try:
            sql = next(steps)
            while True:
                sql = steps.send(await connection.query(sql.numbered(), *sql.parameters))
        except StopIteration as done:
            result: T = done.value
            return result

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
        """See `Store.find`."""
        question = ask(filter, sort) if view is None else view.ask(filter, sort)
        wanted = parse_select(select) if view is None else view.selection(select)
        async with self._snapshot("find", database_id, collection) as (connection, head, of):
            if of is None:
                return Found([], False, 0 if count else None, head)
            edge = None if after is None else parse_edge(after, sort, question, of.id)
            with Watch(self._slow, "find", database_id, collection, filter, sort) as watch:
                began = time.perf_counter()
                plan = await self._do(connection, finding.choose_plan(question, of))
                watch.chosen = plan, question, of
                # The size of what a client may not see must not decide whether it gets the rest.
                of_view = None if view is None or view.select is None else view.project
                most = self._max_result_bytes
                page = await self._do(
                    connection, finding.find(plan, question, of, edge, limit, offset, most, of_view)
                )
                self._advise(database_id, collection, plan, question, began)
                rows = page.documents
                total = None
                if count:
                    counting = await self._do(connection, finding.choose_plan_to_count(question, of))
                    total = await self._do(connection, finding.count(counting, question, of))
                next = edge_text(sort, question, rows[-1], page.last) if page.more else None
                explained = await self._do(connection, finding.explain(plan, question, of)) if explain else None
        if wanted:
            rows = await trio.to_thread.run_sync(
                lambda: [project(row, wanted) for row in rows], limiter=self._projecting
            )
        return Found(rows, page.more, total, head, next, explained)

    async def count(
        self, database_id: int, collection: str, filter: str | None, view: View | None = None
    ) -> int:
        question = ask(filter) if view is None else view.ask(filter)
        async with self._snapshot("count", database_id, collection) as (connection, _, of):
            if of is None:
                return 0
            with Watch(self._slow, "count", database_id, collection, filter) as watch:
                began = time.perf_counter()
                plan = await self._do(connection, finding.choose_plan_to_count(question, of))
                watch.chosen = plan, question, of
                n = await self._do(connection, finding.count(plan, question, of))
                self._advise(database_id, collection, plan, question, began)
                return n

    def _advise(self, database_id: int, collection: str, plan: Plan, question: Question, began: float) -> None:
        """Note the index that was used, or one that would have made a slow query faster."""
        if plan.index is not None and plan.index.made:
            self._advisor.used(plan.index.id)
        if time.perf_counter() - began >= SLOW_SECONDS and (fields := improvement(plan, question)) is not None:
            self._advisor.wish(Wish(database_id, collection, fields))

    # --- collections -------------------------------------------------------------------------------

    async def collections(self, database_id: int) -> bytes:
        """A JSON array of all collections of a database, sorted by name: `{"name", "count", "schema"}`."""
        async with self._pool.lease("collections") as connection:
            rows = await connection.query(
                "SELECT c.name, n.documents, c.schema FROM collections c JOIN counts n ON n.collection_id=c.id "
                "WHERE c.database_id=$1 ORDER BY c.name",
                database_id,
            )
        parts = [
            b'{"name":%b,"count":%d,"schema":%b}' % (encode(name.decode()), count, schema or b"null")
            for name, count, schema in rows
        ]
        return b"[" + b",".join(parts) + b"]"

    async def schema(self, database_id: int, collection: str) -> str | None:
        """The schema of a collection as JSON text."""
        async with self._pool.lease("schema") as connection:
            rows = await connection.query(
                "SELECT schema FROM collections WHERE database_id=$1 AND name=$2", database_id, collection
            )
        return rows[0][0].decode() if rows and rows[0][0] is not None else None

    async def history(self, database_id: int, collection: str, id: str, limit: int) -> list[bytes]:
        async with self._pool.lease("history") as connection:
            versions = await self._log.history(connection, database_id, collection, id, limit)
        if sum(map(len, versions)) > self._max_result_bytes and len(versions) > 1:
            raise bad_request(
                f"The result is larger than {self._max_result_bytes:,} bytes; use a smaller 'limit'",
                "RESULT_TOO_LARGE",
            )
        return versions

    async def directory(self, known: int, last: int) -> Directory | None:
        """See `Store.directory`."""
        async with self._pool.lease("directory") as connection:
            return await directory(connection, known, last)

    async def ask(self, asked: Asked[T]) -> T:
        """What one of `records` finds."""
        async with self._pool.lease("administration") as connection:
            return asked.made(await connection.query(asked.sql, *asked.parameters))

    async def head(self, database_id: int) -> int:
        async with self._pool.lease("head") as connection:
            rows = await connection.query("SELECT head FROM heads WHERE database_id=$1", database_id)
        return int(rows[0][0]) if rows else 0
