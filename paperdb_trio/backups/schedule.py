"""When backups are made, and how many are kept.

Law: a failure harms nothing but itself, and is tried again. The newest backup says when the next one is due, so
that a restart changes nothing.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from functools import partial
from pathlib import Path
from typing import Final

import trio

from paperdb_trio.backups.places import BackupError, Place, name_at, place_of, time_of
from paperdb_trio.config import Settings
from paperdb_trio.measures import Family, counter, gauge
from paperdb_trio.store.sqlite.backup import snapshot

log = logging.getLogger("paperdb.backups")

LOOK_SECONDS: Final = 30.0
"""Between two looks at the clock, which may be set."""
AGAIN_SECONDS: Final = 60.0
"""After a failure."""


class Backups:
    """Raises `StartupError` for a place that cannot be one."""

    def __init__(self, settings: Settings, file: Path) -> None:
        self._every = settings.backup_every
        self._keep = settings.backup_keep
        self._to = settings.backup_to
        self._file = file
        self._place: Place | None = place_of(settings, file.parent) if self._every else None
        self._made = 0
        self._failures = 0
        self._last = 0.0
        self._seconds = 0.0
        self._bytes = 0

    async def run(self) -> None:
        """Until it is cancelled. A backup that is being made then is given up."""
        if self._place is None:
            return
        while True:
            try:
                await self._wait(self._place)
                await self._back_up(self._place)
            except BackupError as error:
                self._failures += 1
                log.error("no backup to %s: %s; the next try is in a minute", self._to, error)  # noqa: TRY400
                await trio.sleep(min(AGAIN_SECONDS, self._every))

    async def _wait(self, place: Place) -> None:
        """Until the next one is due."""
        names = await trio.to_thread.run_sync(place.names, abandon_on_cancel=True)
        if not names:
            return
        self._last = min(time_of(names[-1]), time.time())
        while (left := self._last + self._every - time.time()) > 0:
            await trio.sleep(min(left, LOOK_SECONDS))

    async def _back_up(self, place: Place) -> None:
        began = time.time()
        name = name_at(began)
        stopped = threading.Event()
        write = partial(snapshot, self._file, stopped=stopped.is_set)
        try:
            size = await trio.to_thread.run_sync(place.add, name, write, abandon_on_cancel=True)
        finally:
            stopped.set()  # the thread looks at it every few milliseconds
        self._made += 1
        self._last, self._seconds, self._bytes = began, time.time() - began, size
        names = await trio.to_thread.run_sync(place.names, abandon_on_cancel=True)
        old = names[: -self._keep]
        fields = {"to": self._to, "name": name, "bytes": size, "ms": int(self._seconds * 1000)}
        log.info("made a backup", extra={"fields": {**fields, "removed": len(old)}})
        for name in old:
            await trio.to_thread.run_sync(place.remove, name, abandon_on_cancel=True)

    def measures(self) -> list[Family]:
        return [
            gauge("paperdb_backup_every_seconds", "Time between two backups; 0: none are made", self._every),
            counter("paperdb_backups_total", "Backups made", self._made),
            counter("paperdb_backup_failures_total", "Backups that failed", self._failures),
            gauge(
                "paperdb_backup_last_success_timestamp_seconds",
                "When the newest backup was begun, in seconds since the epoch; 0: there is none",
                math.floor(self._last),
            ),
            gauge("paperdb_backup_last_duration_seconds", "How long the last one took", self._seconds),
            gauge("paperdb_backup_last_size_bytes", "Its size", self._bytes),
        ]
