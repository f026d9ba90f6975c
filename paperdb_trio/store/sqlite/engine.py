"""The store over one SQLite file: a writer, readers, the change log, and the background work.

Law: composes, and knows no SQL. Each part has its own connections and threads.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final

import trio

from paperdb_trio.config import Settings
from paperdb_trio.errors import ApiError
from paperdb_trio.measures import Family
from paperdb_trio.model import Change
from paperdb_trio.store.advisor import IndexAdvisor
from paperdb_trio.store.keeper import Keeper
from paperdb_trio.store.protocol import Fault, Submits
from paperdb_trio.store.records import AuditEntry, DatabaseInfo, IndexInfo, KeyInfo, SecretInfo
from paperdb_trio.store.slow import SlowQueries
from paperdb_trio.store.sqlite import records
from paperdb_trio.store.sqlite.change_log import ChangeLog, read_history
from paperdb_trio.store.sqlite.figures import of_reads, of_writes
from paperdb_trio.store.sqlite.gate import ReadGate
from paperdb_trio.store.sqlite.reader import Reader
from paperdb_trio.store.sqlite.space import SPARE_PAGES, FreePages
from paperdb_trio.store.sqlite.writer import Writer
from paperdb_trio.store.webhooks import Webhook, WebhookInfo

READER_THREADS: Final = 4
OWN_SECONDS: Final = 30.0
"""At least, for reads of keys, plans, webhooks and the log: a short `query_timeout` is about finds, and no
server starts without keys."""


class SqliteReads:
    """The reads of a `Store`. They are bound when it is made, so that the seam costs no call."""

    def __init__(self, file: Path, settings: Settings, gate: ReadGate) -> None:
        self._file = file
        self._max_result_bytes = settings.max_result_bytes
        self._advisor = IndexAdvisor(settings.index_after)
        slow = self._slow = SlowQueries(settings.slow_query_ms)
        self.slow_queries = slow.latest
        # Keys and plans have their own connection, so that heavy queries cannot delay a revocation.
        own = max(OWN_SECONDS, settings.query_timeout)
        self._reader, self._watcher = (
            Reader(
                file,
                threads=threads,
                timeout=timeout,
                max_result_bytes=settings.max_result_bytes,
                gate=gate,
                advisor=self._advisor,
                slow=slow,
            )
            for threads, timeout in ((READER_THREADS, settings.query_timeout), (1, own))
        )
        self._log = ChangeLog(
            file,
            timeout=own,
            max_document_bytes=settings.max_document_bytes,
            gate=gate,
        )
        self.get, self.find, self.count = self._reader.get, self._reader.find, self._reader.count
        self.collections, self.schema = self._reader.collections, self._reader.schema
        self.directory = self._watcher.directory
        self.page, self.bounds = self._log.page, self._log.bounds

    async def advise(self, writer: Submits) -> None:
        """Make and remove indexes as these reads need them. Returns when the writer closes."""
        await self._advisor.run(writer)

    def close(self) -> None:
        self._reader.close()
        self._watcher.close()
        self._log.close()

    def measures(self) -> list[Family]:
        return [*of_reads(self._reader, self._log), self._slow.measure()]

    async def history(self, database_id: int, collection: str, id: str, limit: int) -> list[bytes]:
        # On the threads of finds: however many ask, subscribers catch up.
        return await self._reader.run(
            lambda connection: read_history(
                connection, database_id, collection, id, limit, self._max_result_bytes
            ),
            "history",
        )

    # --- administration --------------------------------------------------------------------------

    async def databases(self, name: str | None, after: str, limit: int) -> list[DatabaseInfo]:
        return await self._reader.run(partial(records.databases, name=name, after=after, limit=limit))

    async def keys(self, database: str | None, after: str | None, limit: int) -> list[KeyInfo]:
        return await self._reader.run(partial(records.keys, database=database, after=after, limit=limit))

    async def secrets(self) -> list[SecretInfo]:
        return await self._reader.run(records.secrets)

    async def audit(self, before: int | None, limit: int) -> list[AuditEntry]:
        most = records.EVERYTHING if before is None else before
        return await self._reader.run(partial(records.audit, before=most, limit=limit))

    async def indexes(self, database_id: int, collection: str) -> list[IndexInfo] | None:
        return await self._reader.run(partial(records.indexes, database_id=database_id, collection=collection))

    async def webhook_infos(self) -> list[WebhookInfo]:
        return await self._reader.run(records.webhook_infos)

    async def webhooks(self, known: int) -> tuple[int, list[Webhook]] | None:
        return await self._watcher.run(partial(records.webhooks, known=known))

    @property
    def term(self) -> int | None:
        return None  # the process that writes does


class SqliteStore(SqliteReads):
    """A `Store`: the one of the process that writes."""

    def __init__(
        self,
        file: Path,
        settings: Settings,
        on_commit: Callable[[list[Change]], None],
        on_trimmed: Callable[[int, int], None],
        gate: ReadGate | None = None,
    ) -> None:
        gate = gate or ReadGate()
        super().__init__(file, settings, gate)
        self.writer = Writer(
            file,
            on_commit,
            gate=gate,
            max_wal_bytes=settings.max_wal_bytes,
            durability=settings.durability,
            reserve_bytes=settings.reserve_bytes,
        )
        self._keeper = Keeper(
            self.writer,
            settings,
            on_trimmed,
            free=lambda full: FreePages(spare=0 if full else SPARE_PAGES),
        )
        self.closed = self.writer.closed
        self.submit = self.writer.submit
        self.fault: Callable[[], Fault | None] = self.writer.fault

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(self.writer.run)
            await self._keeper.begin()
            task_status.started()
            nursery.start_soon(self._keeper.run)
            nursery.start_soon(self.advise, self.writer)
            await self.writer.closed.wait()
            nursery.cancel_scope.cancel()

    def stop(self) -> None:
        self.writer.stop()

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
        return [*super().measures(), *of_writes(self._file, self.writer)]

    async def sizes(self) -> list[Family]:
        with suppress(ApiError):
            # Not on the threads of finds: when these are busy, somebody wants to know why.
            return await self._watcher.run(records.sizes)
        return []

    @property
    def term(self) -> int | None:
        return 1  # the directory's lock sees to that

    async def current(self, database_id: int) -> None:
        """Nothing to wait for: commits are told here before they are acknowledged."""

    def is_current(self, database_id: int) -> bool:
        return True

    @property
    def drops_left(self) -> bool:
        return self._keeper.drops_left

    @drops_left.setter
    def drops_left(self, left: bool) -> None:
        self._keeper.drops_left = left
