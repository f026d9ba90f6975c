"""Reads of documents and collections.

Law: event loop only; PostgreSQL does the work. A get costs no round trip of its own: those that wait together
are one query.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import trio

from paperdb_trio.errors import ApiError, bad_request, not_found
from paperdb_trio.json_input import decode
from paperdb_trio.model import encode
from paperdb_trio.store import keys
from paperdb_trio.store.paging import Edge, edge_text, parse_edge
from paperdb_trio.store.postgres.admin import directory
from paperdb_trio.store.postgres.change_log import BEGIN, END, ChangeLog
from paperdb_trio.store.postgres.connection import Connection, Pool, query_timeout
from paperdb_trio.store.postgres.wire import ConnectionLost, Ints, ServerError, Texts
from paperdb_trio.store.projection import parse_select, project
from paperdb_trio.store.protocol import Directory, Found, Stored
from paperdb_trio.store.query import Question, ask
from paperdb_trio.store.refusals import storage_away, storage_failed
from paperdb_trio.store.view import View

GETTERS: Final = 2
"""Queries of gets that run at the same time: while they run, further gets wait together."""
MOST_GETS: Final = 500

_GET: Final = (
    "SELECT u.n, d.data, d.seq FROM unnest($1::bigint[],$2::text[],$3::text[]) WITH ORDINALITY "
    "u(database_id, name, id, n) JOIN collections c ON c.database_id=u.database_id AND c.name=u.name "
    "JOIN documents d ON d.collection_id=c.id AND d.id=u.id"
)
_CANCELED: Final = "57014"


class _Get:
    __slots__ = ("collection", "database_id", "found", "id", "task")

    def __init__(self, database_id: int, collection: str, id: str, task: trio.lowlevel.Task) -> None:
        self.database_id, self.collection, self.id = database_id, collection, id
        self.task: trio.lowlevel.Task | None = task
        self.found: Stored | Exception | None = None


class Reader:
    """Run `run()` in a nursery."""

    def __init__(self, pool: Pool, log: ChangeLog, timeout: float, max_result_bytes: int) -> None:
        self._pool = pool
        self._log = log
        self._timeout = timeout
        self._max_result_bytes = max_result_bytes
        self._gets: list[_Get] = []
        self._waiting = trio.Event()

    @asynccontextmanager
    async def _lease(self) -> AsyncIterator[Connection]:
        """Raises a 503 `QUERY_TIMEOUT`, `STORAGE_AWAY` or `STORAGE_ERROR`."""
        try:
            async with self._pool.lease() as connection:
                yield connection
        except ConnectionLost:
            raise storage_away() from None
        except ServerError as error:
            if error.state == _CANCELED:
                raise query_timeout(self._timeout) from None
            raise storage_failed() from error

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
                async with self._lease() as connection:
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

    async def _all(
        self, connection: Connection, database_id: int, collection: str
    ) -> tuple[int, int, list[Any]]:
        (((head,),), documents) = (
            await connection.queries(
                [
                    BEGIN,
                    ("SELECT head FROM heads WHERE database_id=$1", (database_id,)),
                    (
                        "SELECT d.rowkey, d.data, c.id FROM collections c JOIN documents d ON d.rowkey BETWEEN "
                        "c.id<<40 AND (c.id<<40)+1099511627775 WHERE c.database_id=$1 AND c.name=$2 "
                        "ORDER BY d.rowkey",
                        (database_id, collection),
                    ),
                    END,
                ]
            )
        )[1:3]
        return (
            head,
            documents[0][2] if documents else 0,
            [(row[0], row[1], decode(row[1])) for row in documents],
        )

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
        question = ask(filter, sort) if view is None else view.ask(filter, sort)
        wanted = parse_select(select) if view is None else view.selection(select)
        async with self._lease() as connection:
            head, collection_id, documents = await self._all(connection, database_id, collection)
        found = [d for d in documents if question.matches(d[2])]
        if question.newest_first:
            found.reverse()

        def value(document: Any, path: str) -> Any:
            for name in path.split("."):
                document = document.get(name) if isinstance(document, dict) else None
            return keys.part(document)

        for name in reversed(question.sort):
            found.sort(key=lambda d: value(d[2], name.path), reverse=name.descending)
        total = len(found) if count else None
        if after is not None:
            edge: Edge = parse_edge(after, sort, question, collection_id)
            at = next((n for n, d in enumerate(found) if d[0] == edge.rowkey), -1)
            found = found[at + 1 :]
        page = found[offset : offset + limit]
        more = len(found) > offset + limit
        next_ = edge_text(sort, question, page[-1][1], page[-1][0]) if more else None
        texts = [d[1] for d in page]
        if sum(map(len, texts)) > self._max_result_bytes and len(texts) > 1:
            raise bad_request(
                f"The result is larger than {self._max_result_bytes:,} bytes; use a smaller 'limit'",
                "RESULT_TOO_LARGE",
            )
        if wanted:
            texts = [project(text, wanted) for text in texts]
        return Found(texts, more, total, head, next_, {} if explain else None)

    async def count(
        self, database_id: int, collection: str, filter: str | None, view: View | None = None
    ) -> int:
        question = ask(filter) if view is None else view.ask(filter)
        async with self._lease() as connection:
            _, _, documents = await self._all(connection, database_id, collection)
        return sum(question.matches(d[2]) for d in documents)

    # --- collections -------------------------------------------------------------------------------

    async def collections(self, database_id: int) -> bytes:
        """A JSON array of all collections of a database, sorted by name: `{"name", "count", "schema"}`."""
        async with self._lease() as connection:
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
        async with self._lease() as connection:
            rows = await connection.query(
                "SELECT schema FROM collections WHERE database_id=$1 AND name=$2", database_id, collection
            )
        return rows[0][0].decode() if rows and rows[0][0] is not None else None

    async def history(self, database_id: int, collection: str, id: str, limit: int) -> list[bytes]:
        async with self._lease() as connection:
            versions = await self._log.history(connection, database_id, collection, id, limit)
        if sum(map(len, versions)) > self._max_result_bytes and len(versions) > 1:
            raise bad_request(
                f"The result is larger than {self._max_result_bytes:,} bytes; use a smaller 'limit'",
                "RESULT_TOO_LARGE",
            )
        return versions

    async def directory(self, known: int, last: int) -> Directory | None:
        """See `Store.directory`."""
        async with self._lease() as connection:
            return await directory(connection, known, last)

    async def head(self, database_id: int) -> int:
        async with self._lease() as connection:
            rows = await connection.query("SELECT head FROM heads WHERE database_id=$1", database_id)
        return int(rows[0][0]) if rows else 0
