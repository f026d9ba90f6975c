"""All webhooks of a server: a task each, in the one process of all that serve a store.

Law: what administrators change is in the store, and read from there. A webhook's failure is its own.
"""

from __future__ import annotations

import logging
import time
from typing import Any, get_args

import trio

from paperdb_trio.config import Settings
from paperdb_trio.errors import ApiError
from paperdb_trio.hooks.sending import DeliveryError, Sender, sending
from paperdb_trio.hooks.webhook import Running, Totals
from paperdb_trio.logs import SparingLog
from paperdb_trio.loop.tick import tick
from paperdb_trio.measures import Family, Sample, counter, gauge
from paperdb_trio.model import Change, new_id
from paperdb_trio.store.protocol import Store
from paperdb_trio.store.webhook_changes import BeginWebhooks
from paperdb_trio.store.webhooks import State, Webhook

log = logging.getLogger("paperdb.webhooks")
sparing_log = SparingLog(log)


class Webhooks:
    def __init__(self, settings: Settings, store: Store) -> None:
        self._settings = settings
        self._store = store
        self._totals = Totals()
        self._scopes: dict[str, trio.CancelScope] = {}
        self._term: int | None = None
        self._version = -1
        self._running: dict[str, Running] = {}

    def committed(self, changes: list[Change]) -> None:
        """Called for each commit."""
        if not self._running:
            return
        last: dict[tuple[int, str | None], int] = {
            (change.database_id, change.collection): change.seq for change in changes
        }
        last |= {(change.database_id, None): change.seq for change in changes}
        for running in self._running.values():
            seq = last.get((running.database_id, running.collection))
            if seq is not None:
                running.wake(seq)

    async def run(self) -> None:
        """Until it is cancelled."""
        while not (found := await self._look()):
            await tick()
        async with sending(self._settings) as sender, trio.open_nursery() as nursery:
            while True:
                if found is not None:
                    self._follow(found, sender, nursery)
                await tick()
                found = await self._look()

    async def _look(self) -> list[Webhook] | None:
        """The webhooks to send, if anything has changed."""
        term = self._store.term
        try:
            if term is None:
                was, self._term = self._term, None
                return None if was is None else []
            if term != self._term:
                await self._store.submit(BeginWebhooks())
                self._term, self._version = term, -1
            found = await self._store.webhooks(self._version)
        except ApiError as error:
            if error.code != "SHUTTING_DOWN":
                sparing_log.warning("could not check for changes of webhooks: %s", error)
            return None
        if found is None:
            return None
        self._version = found[0]
        return found[1]

    def _follow(self, found: list[Webhook], sender: Sender, nursery: trio.Nursery) -> None:
        wanted = {webhook.id: webhook for webhook in found}
        for id, running in tuple(self._running.items()):
            if id not in wanted or wanted[id].generation != running.generation:
                self._scopes.pop(id).cancel()
                del self._running[id]
        for id, webhook in wanted.items():
            if id not in self._running:
                own = Running(webhook, self._store, sender, self._totals, self._settings.webhook_dead_after)
                self._running[id], self._scopes[id] = own, trio.CancelScope()
                nursery.start_soon(self._run, own, self._scopes[id])

    async def _run(self, running: Running, scope: trio.CancelScope) -> None:
        with scope:
            try:
                await running.run()
            except Exception:
                log.exception("webhook %s failed: it goes on after the next start", running.id)

    async def tries(self, _: None) -> dict[str, float]:
        """When each webhook that waits after a failure tries again, in seconds since the epoch."""
        return {id: own.next_try for id, own in self._running.items() if own.next_try is not None}

    async def test(self, id: str) -> dict[str, Any] | None:
        """Send an event of the type `test` now; None if there is no such webhook."""
        found = await self._store.webhooks(-1)
        assert found is not None
        webhook = next((webhook for webhook in found[1] if webhook.id == id), None)
        if webhook is None:
            return None
        return await test(self._settings, webhook)

    def measures(self) -> list[Family]:
        running = self._running.values()
        states = [own.state for own in running]
        return [
            Family(
                "paperdb_webhooks",
                "gauge",
                "Webhooks that deliver, that try again after a failure, that gave up, and that are paused",
                [Sample({"state": state}, states.count(state)) for state in get_args(State)],
            ),
            counter("paperdb_webhook_deliveries_total", "Deliveries that arrived", self._totals.deliveries),
            counter("paperdb_webhook_events_total", "Events in them", self._totals.events),
            counter("paperdb_webhook_failures_total", "Deliveries that failed", self._totals.failures),
            gauge(
                "paperdb_webhook_lag_changes",
                "Changes by which the last webhook is behind",
                max((own.lag for own in running), default=0),
            ),
        ]


async def test(settings: Settings, webhook: Webhook) -> dict[str, Any]:
    began = time.monotonic()
    error = None
    try:
        async with sending(settings) as sender:
            await sender.send(webhook, f"test.{new_id()}", [b'{"type":"test"}'])
    except DeliveryError as failure:
        error = str(failure)
    return {"arrived": error is None, "error": error, "seconds": round(time.monotonic() - began, 3)}
