"""Tells of commits in the order of the log: this node's from memory, those of other nodes from the log.

Law: event loop only. Each change is told once, in order of seq, and before any writer of this node that wrote
it or a later one. A wake-up only says where the head is. A break in the log (`history`) is told in its place.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import NamedTuple

import trio

from paperdb_trio.errors import ApiError
from paperdb_trio.logs import SparingLog
from paperdb_trio.model import Change
from paperdb_trio.store.postgres.change_log import Following

log = logging.getLogger("paperdb.store")

RETRY_SECONDS = 0.2

Read = Callable[[int, int], Awaitable[Following]]
"""What follows a seq in the log of a database; a transaction is never cut in two."""


class _Parked(NamedTuple):
    """A commit of this node that comes after changes that are not told yet."""

    changes: list[Change]
    resume: Callable[[], None]


class Publisher:
    """Run `run()` in a nursery."""

    def __init__(
        self,
        on_commit: Callable[[list[Change]], None],
        on_break: Callable[[int, int, int], None],
        read: Read,
    ) -> None:
        self._on_commit = on_commit
        self._on_break = on_break
        self._read = read
        self._sparing_log = SparingLog(log)
        self._told: dict[int, int] = {}
        self._heads: dict[int, int] = {}
        self._parked: dict[int, deque[_Parked]] = {}
        self._behind: set[int] = set()
        self._catching_up: set[int] = set()
        self._work = trio.Event()
        self._moved = trio.Event()

    def begin(self, database_id: int, head: int) -> None:
        """What is in the log already need not be told."""
        self._told[database_id] = self._heads[database_id] = head

    def committed(self, changes: list[Change], resume: Callable[[], None]) -> None:
        """This node has committed changes. `resume` is called when they have been told."""
        by_database: dict[int, list[Change]] = {}
        for change in changes:
            by_database.setdefault(change.database_id, []).append(change)
        waiting = 0

        def one_told() -> None:
            nonlocal waiting
            waiting -= 1
            if not waiting:
                resume()

        waiting = len(by_database)
        for database_id, own in by_database.items():
            self._parked.setdefault(database_id, deque()).append(_Parked(own, one_told))
            self._release(database_id)  # at once, if they are next, or if another look at the log was faster
            self.heard(database_id, own[-1].seq)

    def heard(self, database_id: int, head: int) -> None:
        """The head of a database is at least this far."""
        if head > self._heads.get(database_id, 0):
            self._heads[database_id] = head
        if self._heads.get(database_id, 0) > self._told.get(database_id, 0):
            self._behind.add(database_id)
            self._work.set()

    async def current(self, database_id: int, head: int) -> None:
        """Return when everything up to seq `head` has been told."""
        self.heard(database_id, head)
        while self._told.get(database_id, 0) < head:
            await self._moved.wait()

    def _tell(self, database_id: int, changes: list[Change]) -> None:
        self._told[database_id] = changes[-1].seq
        if changes[-1].seq > self._heads.get(database_id, 0):
            self._heads[database_id] = changes[-1].seq
        self._on_commit(changes)
        self._moved.set()
        self._moved = trio.Event()

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            while True:
                await self._work.wait()
                self._work = trio.Event()
                for database_id in self._behind - self._catching_up:
                    self._catching_up.add(database_id)
                    nursery.start_soon(self._catch_up, database_id)
                self._behind.clear()

    async def _catch_up(self, database_id: int) -> None:
        while self._told.get(database_id, 0) < self._heads[database_id]:
            self._release(database_id)
            told = self._told.get(database_id, 0)
            if told >= self._heads[database_id]:
                break
            try:
                changes, broken = await self._read(database_id, told)
            except ApiError as error:
                self._sparing_log.warning("could not read the change log: %s", error)
                await trio.sleep(RETRY_SECONDS)
                continue
            if broken is not None:
                self._pass(database_id, *broken)
            elif not changes:  # read from a primary that has been replaced
                await trio.sleep(RETRY_SECONDS)
            changes = [change for change in changes if change.seq > self._told.get(database_id, 0)]
            if changes:
                if changes[0].seq != self._told.get(database_id, 0) + 1:
                    raise RuntimeError("the change log was trimmed before this node had told its changes")
                self._tell(database_id, changes)
        self._release(database_id)
        self._catching_up.discard(database_id)

    def _pass(self, database_id: int, since: int, until: int) -> None:
        """Go on behind a break. What this node has committed in it is lost: it was acknowledged, and so its
        writers are told."""
        if self._told.get(database_id, 0) >= until:
            return
        self._told[database_id] = until
        self._heads[database_id] = max(self._heads.get(database_id, 0), until)
        self._on_break(database_id, since, until)
        parked = self._parked.get(database_id)
        while parked and parked[0].changes[-1].seq <= until:
            parked.popleft().resume()
        self._moved.set()
        self._moved = trio.Event()

    def _release(self, database_id: int) -> None:
        """Tell what was parked, as far as it is next; some of it was read from the log."""
        parked = self._parked.get(database_id)
        while parked and parked[0].changes[0].seq <= self._told.get(database_id, 0) + 1:
            changes, resume = parked.popleft()
            rest = [change for change in changes if change.seq > self._told.get(database_id, 0)]
            if rest:
                self._tell(database_id, rest)
            resume()
