"""The start of a store, which a signal may stop."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator

import trio

from paperdb_trio.store.protocol import Store


async def started(core: trio.Nursery, store: Store, signals: AsyncIterator[int]) -> bool:
    """Start the store, which first finishes what was interrupted. False: a signal stopped it."""
    stopped = False

    async def watch() -> None:
        nonlocal stopped
        async for number in signals:
            if number != signal.SIGHUP:
                stopped = True
                store.stop()
                break

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        await core.start(store.run)
        nursery.cancel_scope.cancel()
    return not stopped
