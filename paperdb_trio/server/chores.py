"""What the process that writes does beside writing: webhooks, backups, imports, the demo.

Law: nothing here may hold up the writer, or end the process.
"""

from __future__ import annotations

import socket
from pathlib import Path

import trio

from paperdb_trio import demo, import_socket
from paperdb_trio.backups.schedule import Backups
from paperdb_trio.config import Settings
from paperdb_trio.hooks.webhooks import Webhooks
from paperdb_trio.measures import Family
from paperdb_trio.server.link import Reports
from paperdb_trio.store.sqlite.engine import SqliteStore


class Chores:
    """`reports`: what other processes may ask. Call `committed` for each commit."""

    def __init__(self, settings: Settings, file: Path, store: SqliteStore) -> None:
        self._settings = settings
        self._store = store
        self._webhooks = Webhooks(settings, store)
        self._backups = Backups(settings, file)
        self.committed = self._webhooks.committed
        self.reports: Reports = {"webhook_test": self._webhooks.test, "webhook_tries": self._webhooks.tries}

    async def run(self, imports: socket.socket | None) -> None:
        """Until it is cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._webhooks.run)
            nursery.start_soon(self._backups.run)
            if imports is not None:
                nursery.start_soon(import_socket.run, self._store, self._settings, imports)
            if self._settings.demo:
                nursery.start_soon(demo.run, self._store, self._settings)

    def measures(self) -> list[Family]:
        return [*self._webhooks.measures(), *self._backups.measures()]
