"""One webhook: its deliveries, one at a time, in the order of the changes.

Law: before a delivery is sent, its bounds are in the store. So a server that is killed sends it again as it
was, with the same id; and nothing that follows is sent before it arrived. A server that another one has taken
for dead cannot store further bounds.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from typing import Final

import trio
from msgspec.structs import replace

from paperdb_trio.errors import ApiError
from paperdb_trio.hooks.reading import Batch, read, topic_of
from paperdb_trio.hooks.sending import DeliveryError, Sender
from paperdb_trio.logs import SparingLog
from paperdb_trio.store.protocol import Store, Topic
from paperdb_trio.store.webhook_changes import KeepProgress
from paperdb_trio.store.webhooks import Webhook

log = logging.getLogger("paperdb.webhooks")
sparing_log = SparingLog(log)

FIRST_PAUSE: Final = 1.0
LAST_PAUSE: Final = 300.0
"""Seconds until a delivery is tried again: after the first failure, and after many."""
SAVE_SECONDS: Final = 1.0
"""After the last of several deliveries, until its success is in the file: the next one says so, too."""
SAVE_IDLE_SECONDS: Final = 30.0
"""Between two notes in the file that the changes since the last delivery were none of this webhook's."""
AGAIN_SECONDS: Final = 1.0
"""After the store failed."""


class Totals:
    """Of all webhooks since the start."""

    def __init__(self) -> None:
        self.deliveries = 0
        self.events = 0
        self.failures = 0


class Running:
    """The task of one webhook. `state` and `lag` are for figures. `next_try`: in seconds since the epoch, while
    it waits for that after a failure."""

    def __init__(
        self, webhook: Webhook, store: Store, sender: Sender, totals: Totals, dead_after: float
    ) -> None:
        self._webhook = webhook
        self._topic: Topic = None
        self._store = store
        self._sender = sender
        self._totals = totals
        self._dead_after = dead_after
        self._progress = webhook.progress
        self._saved = webhook.progress
        self._woken = trio.Event()
        self._own_head = webhook.progress.cursor
        self.next_try: float | None = None

    @property
    def state(self) -> str:
        return self._progress.state

    @property
    def lag(self) -> int:
        """Changes since the cursor, if one of them is of its collection."""
        return max(self._own_head - self._progress.cursor, 0)

    @property
    def id(self) -> str:
        return self._webhook.id

    @property
    def database_id(self) -> int:
        return self._webhook.database_id

    @property
    def generation(self) -> int:
        return self._webhook.generation

    @property
    def collection(self) -> str | None:
        return self._webhook.collection

    def wake(self, seq: int) -> None:
        """There is a change of its collection."""
        self._own_head = seq
        self._woken.set()

    async def run(self) -> None:
        """Returns when the webhook is dead or paused, or began anew elsewhere. Raises a 400 for a stored filter
        that is not valid any more."""
        self._topic = topic_of(self._webhook)
        while self._progress.dead_at is None:
            try:
                await self._step()
            except ApiError as error:
                if error.code in ("SHUTTING_DOWN", "CONFLICT"):
                    return
                sparing_log.warning("webhook %s: %s", self.id, error)
                await trio.sleep(AGAIN_SECONDS)

    async def _step(self) -> None:
        """Deliver what there is, or wait."""
        self._woken = trio.Event()
        progress = self._progress
        batch = await read(self._store, self.database_id, self._topic, progress.cursor, progress.until)
        self._own_head = max(self._own_head, batch.until)
        if batch.events:
            if batch.until != progress.until:
                await self._save(until=batch.until)
            await self._deliver(batch)
        elif batch.until > progress.cursor:
            self._progress = replace(progress, cursor=batch.until, until=None)
        else:
            await self._wait()

    async def _deliver(self, batch: Batch) -> None:
        progress = self._progress
        delivery = f"{self.id}.{progress.cursor}.{batch.until}"
        now = int(time.time() * 1000)
        try:
            await self._sender.send(self._webhook, delivery, batch.events)
        except DeliveryError as error:
            await self._failed(str(error), now)
            return
        if progress.failures:
            log.info("webhook %s: delivers again", self.id)
        self._totals.deliveries += 1
        self._totals.events += len(batch.events)
        self._progress = replace(
            self._progress,
            cursor=batch.until,
            until=None,
            failures=0,
            error=None,
            failing_since=None,
            delivered_at=int(time.time() * 1000),
        )

    async def _failed(self, error: str, began: int) -> None:
        self._totals.failures += 1
        progress = self._progress
        now = int(time.time() * 1000)
        since = began if progress.failing_since is None else progress.failing_since
        failures = progress.failures + 1
        dead = now - since >= self._dead_after * 1000 and failures > 1
        await self._save(failures=failures, error=error, failing_since=since, dead_at=now if dead else None)
        if dead:
            log.error("webhook %s: dead after %d failures, the last: %s", self.id, failures, error)
            return
        sparing_log.warning("webhook %s: a delivery failed, and will be tried again: %s", self.id, error)
        seconds = pause(failures)
        self.next_try = time.time() + seconds
        await trio.sleep(seconds)
        self.next_try = None

    async def _wait(self) -> None:
        """Until there are more changes. Meanwhile progress is saved, lest the log be trimmed beyond it."""
        delivered = self._progress.delivered_at != self._saved.delivered_at
        with trio.move_on_after(SAVE_SECONDS if delivered else SAVE_IDLE_SECONDS):
            await self._woken.wait()
            return
        if self._progress != self._saved:
            await self._save()

    async def _save(self, **changed: object) -> None:
        progress = replace(self._progress, **changed)
        await self._store.submit(KeepProgress(self.id, self.generation, progress))
        self._progress = self._saved = progress


def pause(failures: int, jitter: Callable[[], float] = random.random) -> float:
    """Seconds until the next try: twice as long after each failure, less up to a half of it."""
    longest = min(FIRST_PAUSE * 2.0 ** min(failures - 1, 30), LAST_PAUSE)
    return longest * (1 - jitter() / 2)
