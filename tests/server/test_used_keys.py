"""When keys were last used is noted in the file, but not by the requests that use them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import trio
from trio.testing import MockClock

from paperdb_trio.auth.accounts import Accounts
from paperdb_trio.errors import ApiError
from paperdb_trio.server.serving import USED_SECONDS, _keep_used_keys
from paperdb_trio.services import Services
from paperdb_trio.store.housekeeping import KeepUsedKeys


async def test_used_keys_are_noted_once_a_minute_and_not_if_there_are_none(autojump_clock: MockClock) -> None:
    accounts, submitted = Accounts(), list[KeepUsedKeys]()

    async def submit(operation: KeepUsedKeys) -> None:
        submitted.append(operation)
        if len(submitted) == 1:
            raise ApiError(503, "STORAGE_ERROR", "which ends nothing")

    services = cast(Services, SimpleNamespace(accounts=accounts, store=SimpleNamespace(submit=submit)))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_keep_used_keys, services)
        await trio.sleep(1)  # keys are used between two notes
        for used in (["a"], ["a"], [], ["a", "b"]):
            for id in [*used, *used]:
                accounts.used.add(id)
            await trio.sleep(USED_SECONDS)
        nursery.cancel_scope.cancel()
    noted: list[Any] = [set(operation.used) for operation in submitted]
    assert noted == [{"a"}, {"a"}, {"a", "b"}]
