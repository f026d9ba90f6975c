"""The background work of a serving store: trims, unfinished removals, and indexes.

Law: each step is an operation like any other, so that writers hardly notice. What fails is tried again later.
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Callable
from typing import Final, Protocol

import trio

from paperdb_trio.config import Settings
from paperdb_trio.errors import ApiError
from paperdb_trio.logs import SparingLog
from paperdb_trio.loop.tick import tick
from paperdb_trio.store.clock import LogClock
from paperdb_trio.store.housekeeping import Bounds, IndexWork, KeepTime, RemoveDeleted, Trim, finish_drops
from paperdb_trio.store.operations import Operation
from paperdb_trio.store.protocol import Submits
from paperdb_trio.store.requests import ForgetRequests
from paperdb_trio.store.revocations import ForgetRevocations

log = logging.getLogger("paperdb.store")
sparing_log = SparingLog(log)

TRIM_SECONDS: Final = 1.0
DROP_SECONDS: Final = 1.0
"""Between two checks for an interrupted removal of a collection."""
KEEP_TIME_SECONDS: Final = 3600.0
"""Between two writes of the log's clock into the file; see `LogClock.keep`."""
TRIM_AGAIN_SECONDS: Final = 60.0
"""After a failure, unless the disk is full: then trims are what frees it."""
SAY_SECONDS: Final = 60.0
"""Between two log lines about what was trimmed."""
TRIM_PAUSE: Final = 0.002
"""Between two steps of a trim (250 changes, about 1 ms each), so that writers get in between."""


class Writer(Submits, Protocol):
    """An engine's writer, as far as the keeper needs it.

    `index_work` is set when there may be an index to build or remove. `owed`: changes by database that were
    logged while the disk was full. The oldest ones make room for them.
    """

    clock: LogClock
    index_work: trio.Event
    owed: Counter[int]

    @property
    def full(self) -> bool: ...
    @property
    def closed(self) -> trio.Event: ...


class Keeper:
    """`leads`: whether this process does what one is enough for. `free`: makes an operation that gives space
    back, for a full disk or not; it is repeated while it returns true.

    `drops_left`: the store may hold collections whose removal was interrupted.
    """

    def __init__(
        self,
        writer: Writer,
        settings: Settings,
        on_trimmed: Callable[[int, int], None],
        *,
        leads: Callable[[], bool] = lambda: True,
        free: Callable[[bool], Operation[bool]] | None = None,
    ) -> None:
        self._writer = writer
        self._leads = leads
        self._free = free
        self._settings = settings
        self._on_trimmed = on_trimmed
        self.drops_left = False
        self._removed: Counter[int] = Counter()
        """Changes, by database, since the last line about them."""
        self._say_at = -math.inf

    async def begin(self) -> None:
        """Finish the removals that an earlier server started, before a client can write to those collections,
        because its writes would be removed as well."""
        await self._finish_drops(0.0)

    async def run(self) -> None:
        """Returns when the writer closes."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._trim)
            nursery.start_soon(self._watch_drops)
            nursery.start_soon(self._keep_indexes)
            await self._writer.closed.wait()
            nursery.cancel_scope.cancel()

    async def _trim(self) -> None:
        """Keep the change logs within their age and count."""
        kept = -math.inf
        while True:
            await tick(TRIM_SECONDS)
            if not self._leads():
                continue
            try:
                if trio.current_time() >= kept + KEEP_TIME_SECONDS:
                    await self._keep_time()
                    kept = trio.current_time()
                await self._trim_once()
            except ApiError as error:
                if error.code == "SHUTTING_DOWN":
                    return
                sparing_log.warning("could not trim the change log: %s", error)
                again = trio.current_time() + TRIM_AGAIN_SECONDS
                while trio.current_time() < again and not self._writer.full:
                    await tick(TRIM_SECONDS)

    async def _keep_time(self) -> None:
        await self._writer.submit(KeepTime(self._writer.clock))
        while await self._writer.submit(ForgetRevocations(int(time.time() * 1000))):
            await trio.sleep(TRIM_PAUSE)

    async def _trim_once(self) -> None:
        writer, settings = self._writer, self._settings
        for database_id, (head, trimmed) in (await writer.submit(Bounds())).items():
            # On a full disk, deleting a document would otherwise only move it into the log.
            until = trimmed + writer.owed.pop(database_id, 0)
            removed = head - trimmed
            before = trimmed
            while removed:
                cutoff = writer.clock.now() - settings.retention_age
                trim = Trim(database_id, cutoff, settings.retention_count, until=until)
                trimmed, removed = await writer.submit(trim)
                self._on_trimmed(database_id, trimmed)
                await trio.sleep(TRIM_PAUSE)
            if trimmed > before:
                self._removed[database_id] += trimmed - before
        self._say_what_was_trimmed()
        for forget in (ForgetRequests(), RemoveDeleted()):
            while await writer.submit(forget):
                await trio.sleep(TRIM_PAUSE)
        while self._free is not None and await writer.submit(self._free(writer.full)):
            await trio.sleep(TRIM_PAUSE)

    def _say_what_was_trimmed(self) -> None:
        now = trio.current_time()
        if self._removed and now >= self._say_at:
            self._say_at = now + SAY_SECONDS
            for database_id, changes in self._removed.items():
                log.info(
                    "trimmed the change log", extra={"fields": {"database": database_id, "changes": changes}}
                )
            self._removed.clear()

    async def _watch_drops(self) -> None:
        """Finish removals that a failed request started."""
        while True:
            await tick(DROP_SECONDS)
            if self.drops_left:
                await self._finish_drops(TRIM_PAUSE)

    async def _finish_drops(self, pause: float) -> None:
        self.drops_left = False
        try:
            await finish_drops(self._writer, pause)
        except ApiError as error:
            self.drops_left = True
            if error.code != "SHUTTING_DOWN":
                sparing_log.warning("could not remove a collection: %s", error)

    async def _keep_indexes(self) -> None:
        """Build and remove indexes. What is left at the end, the next start goes on with."""
        while True:
            try:
                await keep_indexes(self._writer)
            except ApiError as error:
                if error.code == "SHUTTING_DOWN":
                    return
                sparing_log.warning("could not build an index: %s", error)
                await trio.sleep(DROP_SECONDS)


async def keep_indexes(writer: Writer) -> None:
    """Build and remove indexes whenever there is work, until the writer closes."""
    while True:
        writer.index_work = trio.Event()
        while await writer.submit(IndexWork(build=not writer.full)):
            await trio.lowlevel.checkpoint()
        await writer.index_work.wait()
