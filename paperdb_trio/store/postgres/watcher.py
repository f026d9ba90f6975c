"""Hears of commits of other nodes: a NOTIFY wakes at once, and a look at all heads misses none.

Law: event loop only; one connection of its own. It also holds the lock of the node that keeps the store.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

import trio

from paperdb_trio.logs import SparingLog
from paperdb_trio.store.postgres.connection import Connection
from paperdb_trio.store.postgres.history import BREAK, SAME
from paperdb_trio.store.postgres.log_rows import BOUNDS
from paperdb_trio.store.postgres.publisher import Publisher
from paperdb_trio.store.postgres.schema import KEEPER_LOCK
from paperdb_trio.store.postgres.wire import ConnectionLost, ServerError
from paperdb_trio.store.postgres.writer import CHANNEL

log = logging.getLogger("paperdb.store")

LOOK_SECONDS: Final = 0.15
"""Between two looks at the heads."""
RETRY_SECONDS: Final = 0.5
PATIENCE_SECONDS: Final = 5
"""For one look. The kernel of a server that hangs keeps the connection alive."""
HELD_MILLISECONDS: Final = 10_000
"""For how long a node that hangs may hold the lock of the one that keeps the store."""

BARRIER: Final = "SELECT pg_logical_emit_message(true, 'paperdb', '') IS NULL"
"""A commit that waits for the standby. A server that has just recovered, or taken over, shows commits that no
standby has yet: they may still be lost, and must not be told before. An old primary never gets so far."""


class Watcher:
    """`term`: see `Store.term`. `on_keeps` is called when this becomes the node that keeps the store, `on_lost`
    when the connection is lost."""

    def __init__(
        self,
        url: str,
        publisher: Publisher,
        on_trimmed: Callable[[int, int], None],
        on_keeps: Callable[[], None],
        on_lost: Callable[[], None],
    ) -> None:
        self._url = url
        self._publisher = publisher
        self._on_trimmed = on_trimmed
        self._on_keeps = on_keeps
        self._on_lost = on_lost
        self._sparing_log = SparingLog(log)
        self._trimmed: dict[int, int] = {}
        self._terms = 0
        self.term: int | None = None

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """It has started when it has looked once."""
        started = False
        while True:
            try:
                connection = await Connection.open(self._url)
                try:
                    with trio.fail_after(PATIENCE_SECONDS):
                        await connection.query(f"SET idle_session_timeout={HELD_MILLISECONDS}")
                        await connection.query(f"LISTEN {CHANNEL}")
                        await connection.query(BARRIER)
                        if await connection.query(SAME) != [(True,)]:
                            await connection.queries(BREAK)
                    while True:
                        with trio.fail_after(PATIENCE_SECONDS):
                            await self._look(connection)
                        if not started:
                            started = True
                            task_status.started()
                        with trio.move_on_after(LOOK_SECONDS):
                            while True:
                                for payload in await connection.notifications():
                                    database_id, _, head = payload.partition(" ")
                                    self._publisher.heard(int(database_id), int(head))
                finally:
                    connection.close()
            except (ConnectionLost, ServerError, trio.TooSlowError) as error:
                self.term = None
                self._on_lost()
                what = str(error).strip() or f"no response for {PATIENCE_SECONDS} s"
                self._sparing_log.error("no connection to PostgreSQL: %s", what)
                await trio.sleep(RETRY_SECONDS)

    async def _look(self, connection: Connection) -> None:
        rows = await connection.query(BOUNDS)
        for database_id, head, trimmed in rows:
            self._publisher.heard(database_id, head)
            if trimmed > self._trimmed.get(database_id, 0):
                self._trimmed[database_id] = trimmed
                self._on_trimmed(database_id, trimmed)
        if self.term is None:
            ((keeps,),) = await connection.query("SELECT pg_try_advisory_lock($1::bigint)", KEEPER_LOCK)
            if keeps:
                self._terms += 1
                self.term = self._terms
                self._on_keeps()
