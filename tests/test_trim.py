"""The task that trims the change logs: it removes what retention says, and nothing else, while others write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio

from paperdb_trio.config import Settings
from paperdb_trio.delivery.hub import Hub
from paperdb_trio.model import Change
from paperdb_trio.store import keeper
from paperdb_trio.store.housekeeping import Trim
from paperdb_trio.store.operations import Operation
from paperdb_trio.store.sqlite.writer import Writer
from tests.store.tools import DATABASE, inserting, new_file, rows


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return new_file(tmp_path)


async def trimmed(file: Path, monkeypatch: pytest.MonkeyPatch, *, owed: int, count: int = 1_000_000) -> int:
    """How many of 20 changes are trimmed. Ten are committed between the look at the log and the trim."""
    monkeypatch.setattr(keeper, "TRIM_SECONDS", 0.001)
    hub = Hub()
    changes: list[Change] = []
    writer = Writer(file, lambda new: (changes.extend(new), hub.on_commit(new))[0])  # type: ignore[func-returns-value]
    done = trio.Event()
    submit = writer.submit

    async def late(operation: Operation[Any]) -> Any:
        if isinstance(operation, Trim):
            if len(changes) < 20:
                for _ in range(10):
                    await submit(inserting({}))
            result = await submit(operation)
            if not result[1]:
                done.set()
            return result
        return await submit(operation)

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            await nursery.start(writer.run)
            nursery.start_soon(hub.run)
            for _ in range(10):
                await submit(inserting({}))
            writer.owed[DATABASE] = owed
            monkeypatch.setattr(writer, "submit", late)
            nursery.start_soon(keeper.Keeper(writer, Settings(retention_count=count), hub.set_trimmed).run)
            await done.wait()
            nursery.cancel_scope.cancel()
    (found,) = rows(file, "SELECT trimmed FROM databases")[0]
    return int(found)


@pytest.mark.interpreted
async def test_changes_that_come_while_it_trims_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await trimmed(new_file(tmp_path), monkeypatch, owed=0) == 0


@pytest.mark.interpreted
async def test_what_deletes_on_a_full_disk_owe_is_trimmed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await trimmed(new_file(tmp_path), monkeypatch, owed=3) == 3


@pytest.mark.interpreted
async def test_count_bounds_the_log(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert await trimmed(file, monkeypatch, owed=0, count=5) == 15
