"""The store over one PostgreSQL database, which several nodes may share.

Law: composes, and knows no SQL. Writes go through one thread; everything else is on the event loop.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Final

import trio

from paperdb_trio.config import Settings
from paperdb_trio.errors import ApiError
from paperdb_trio.measures import Family
from paperdb_trio.model import Change
from paperdb_trio.store.advisor import IndexAdvisor
from paperdb_trio.store.keeper import Keeper
from paperdb_trio.store.postgres import records
from paperdb_trio.store.postgres.change_log import BEGIN, END, ChangeLog
from paperdb_trio.store.postgres.connection import Pool
from paperdb_trio.store.postgres.figures import figures
from paperdb_trio.store.postgres.history import BREAKS
from paperdb_trio.store.postgres.log_rows import BOUNDS
from paperdb_trio.store.postgres.publisher import Publisher
from paperdb_trio.store.postgres.reader import Reader
from paperdb_trio.store.postgres.session import Session
from paperdb_trio.store.postgres.watcher import Watcher
from paperdb_trio.store.postgres.writer import Writer
from paperdb_trio.store.protocol import Fault
from paperdb_trio.store.records import AuditEntry, DatabaseInfo, IndexInfo, KeyInfo, SecretInfo
from paperdb_trio.store.webhooks import Webhook, WebhookInfo

CONNECTIONS: Final = 8
"""For reads. A node has two more: the writer's, and one that listens."""
OWN_SECONDS: Final = 5.0
"""At least, for reads of keys, plans, webhooks and heads: a short `query_timeout` is about finds, and no node
starts without keys. If it were longer, a connection to a machine that vanished would be given up late."""


class PostgresStore:
    """A `Store`. `url`: postgresql://…"""

    def __init__(
        self,
        url: str,
        settings: Settings,
        on_commit: Callable[[list[Change]], None],
        on_trimmed: Callable[[int, int], None],
        on_break: Callable[[int, int, int], None] = lambda *_: None,
    ) -> None:
        """`on_break(database_id, since, until)`: the log has no changes there, because a failover lost some."""
        self._url = url
        self._on_break = on_break
        self._breaks: list[tuple[int, int, int]] = []
        self._pool = Pool(url, CONNECTIONS, settings.query_timeout)
        # Keys and plans have their own connection, so that heavy queries cannot delay a revocation.
        self._own = Pool(url, 2, max(OWN_SECONDS, settings.query_timeout))
        self._log = ChangeLog(self._pool, max(30.0, settings.query_timeout))
        self._advisor = IndexAdvisor(settings.index_after)
        self._reader = Reader(self._pool, self._log, settings, self._advisor)
        self._watching = Reader(self._own, self._log, settings, self._advisor)
        self._publisher = Publisher(on_commit, on_break, ChangeLog(self._own, 30.0).changes)
        self.writer = Writer(url, self._publisher.committed)
        # The idle connections are lost with the watcher's: it notices first.
        self._watcher = Watcher(url, self._publisher, on_trimmed, self._begin_keeping, self.close)
        self._keeper = Keeper(self.writer, settings, on_trimmed, leads=lambda: self.term is not None)
        self.closed = self.writer.closed
        self.submit = self.writer.submit
        self.fault: Callable[[], Fault | None] = self.writer.fault
        self.get, self.find, self.count = self._reader.get, self._reader.find, self._reader.count
        self.collections, self.schema = self._reader.collections, self._reader.schema
        self.history, self.slow_queries = self._reader.history, self._reader.slow_queries
        self.directory = self._watching.directory
        self.page = self._log.page

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        for broken in self._breaks:
            self._on_break(*broken)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._pool.run)
            nursery.start_soon(self._own.run)
            nursery.start_soon(self._reader.run)
            nursery.start_soon(self._publisher.run)
            await nursery.start(self.writer.run)
            await nursery.start(self._watcher.run)
            await self._keeper.begin()
            task_status.started()
            nursery.start_soon(self._keeper.run)
            nursery.start_soon(self._advisor.run, self.writer)
            await self.writer.closed.wait()
            nursery.cancel_scope.cancel()

    def _begin_keeping(self) -> None:
        """Go on with what another node may have left."""
        self.writer.index_work.set()
        self._keeper.drops_left = True

    def stop(self) -> None:
        self.writer.stop()

    def close(self) -> None:
        self._pool.close()
        self._own.close()

    def bounds(self) -> dict[int, tuple[int, int]]:
        session = Session(self._url)
        try:
            _, rows, self._breaks, _ = session.run([BEGIN, (BOUNDS, ()), (BREAKS, ()), END])
        finally:
            session.close()
        for database_id, head, _ in rows:
            self._publisher.begin(database_id, head)
        return {database_id: (head, trimmed) for database_id, head, trimmed in rows}

    @property
    def commits(self) -> int:
        return self.writer.commits

    @property
    def operations(self) -> int:
        return self.writer.operations

    @property
    def full(self) -> bool:
        return self.writer.full

    def measures(self) -> list[Family]:
        families = figures(self.writer, {**self._own.seconds, **self._pool.seconds})
        return [*families, self._reader.slow_measure()]

    async def sizes(self) -> list[Family]:
        with suppress(ApiError):
            return await self._reader.ask(records.sizes())
        return []

    def is_current(self, database_id: int) -> bool:
        """Another node may have committed just now."""
        return False

    async def current(self, database_id: int) -> None:
        await self._publisher.current(database_id, await self._watching.head(database_id))

    # --- administration --------------------------------------------------------------------------

    async def databases(self, name: str | None, after: str, limit: int) -> list[DatabaseInfo]:
        return await self._reader.ask(records.databases(name=name, after=after, limit=limit))

    async def keys(self, database: str | None, after: str | None, limit: int) -> list[KeyInfo]:
        return await self._reader.ask(records.keys(database=database, after=after, limit=limit))

    async def secrets(self) -> list[SecretInfo]:
        return await self._reader.ask(records.secrets())

    async def audit(self, before: int | None, limit: int) -> list[AuditEntry]:
        most = records.EVERYTHING if before is None else before
        return await self._reader.ask(records.audit(before=most, limit=limit))

    async def indexes(self, database_id: int, collection: str) -> list[IndexInfo] | None:
        return await self._reader.ask(records.indexes(database_id, collection))

    async def webhook_infos(self) -> list[WebhookInfo]:
        return await self._reader.ask(records.webhook_infos())

    async def webhooks(self, known: int) -> tuple[int, list[Webhook]] | None:
        found = await self._watching.ask(records.webhooks())
        return None if found[0] == known else found

    @property
    def term(self) -> int | None:
        return self._watcher.term

    @property
    def drops_left(self) -> bool:
        return self._keeper.drops_left

    @drops_left.setter
    def drops_left(self, left: bool) -> None:
        self._keeper.drops_left = left
