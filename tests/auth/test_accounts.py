"""The accounts in memory follow the store's, however its readings are timed."""

from __future__ import annotations

import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from paperdb_trio.auth.accounts import Accounts
from paperdb_trio.store.protocol import Directory


class Store:
    """Each reading takes a second less than the one before, and sees the plan of when it began."""

    def __init__(self) -> None:
        self.version, self.plan = 1, "free"
        self.asked: list[int] = []

    async def directory(self, known: int, last: int) -> Directory | None:
        self.asked.append(known)
        found = Directory(self.version, [(1, "default", self.plan)], [], [], [])
        await trio.sleep(5 - len(self.asked))
        return found if found.version != known else None


async def test_no_look_reads_what_another_has_read_or_ends_with_an_older_reading(
    autojump_clock: MockClock,
) -> None:
    """A change was logged twice when a token was revoked during the regular look."""
    store, accounts, changed = Store(), Accounts(), list[bool]()

    async def look() -> None:
        changed.append(await accounts.refresh(store))

    await look()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(look)
        await wait_all_tasks_blocked()
        store.version, store.plan = 2, "pro"  # since that look began
        nursery.start_soon(look)
        nursery.start_soon(look)
    assert store.asked == [0, 1, 1, 2]
    assert changed == [True, False, True, False]
    assert accounts.databases()[0].plan == "pro"
