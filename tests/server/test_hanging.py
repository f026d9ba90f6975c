"""The process that writes hangs, or something in it fails: who waits is told, and nothing else ends."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from paperdb_trio.errors import ApiError
from paperdb_trio.model import Change
from paperdb_trio.server.remote import ROWS
from paperdb_trio.server.writing import Writing
from paperdb_trio.store.operations import Draft, Insert
from tests.conftest import StartServer, wait_until
from tests.server.test_faults import worker_and_writer
from tests.server.test_workers import processes


def test_write_that_the_writer_does_not_respond_to(start_server: StartServer, collection: str) -> None:
    server = start_server("--workers", "2")
    path, once = f"/{collection}/docs", {"Idempotency-Key": "one"}
    writer = processes(server)["writer"]
    os.kill(writer, signal.SIGSTOP)
    try:
        unknown = server.request("POST", path, json={}, headers=once)
        assert (unknown.status_code, unknown.json()["code"]) == (504, "STORAGE_UNKNOWN")
        assert unknown.headers["retry-after"] == "1"

        def refused() -> bool:  # the other worker may notice half a second later
            response = server.request("POST", path, json={})
            return (response.status_code, response.json()["code"]) == (503, "STORAGE_ERROR")

        wait_until(refused)
        wait_until(lambda: server.request("GET", "/readyz").status_code == 503)
        assert server.request("GET", path).json()["documents"] == []
    finally:
        os.kill(writer, signal.SIGCONT)

    def replayed() -> bool:  # it is written now, once
        return "idempotent-replayed" in server.request("POST", path, json={}, headers=once).headers

    wait_until(replayed)
    assert "the process that writes has not responded" in server.stderr


async def test_writes_that_wait_when_a_worker_stops(tmp_path: Path) -> None:
    async with worker_and_writer(tmp_path) as (worker, _):
        worker._sending.append((1, b""))
        tasks = dict.fromkeys((1, 2), "waits")
        refused: dict[str, str] = {}
        worker._waiting = tasks  # type: ignore[assignment]

        def note(task: Any, result: Any) -> None:
            refused[str(result.error.code)] = task

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("trio.lowlevel.reschedule", note)
            worker._refuse(ApiError(503, "SHUTTING_DOWN", ""))
        assert refused.keys() == {"SHUTTING_DOWN", "STORAGE_UNKNOWN"}


async def test_report_that_raises_ends_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def raises(*_: Any) -> None:
        raise ValueError("a bug")

    monkeypatch.setattr(Writing, "_measures", raises)
    async with worker_and_writer(tmp_path) as (worker, _):
        worker.reports["why"] = raises
        for name in ("metrics", "why", "metrics"):
            with pytest.raises(ApiError, match="Internal error"):
                await worker.gather(name)


async def test_log_that_takes_long_to_read_is_read_in_smaller_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Change] = []
    asked: list[int] = []

    async with worker_and_writer(tmp_path) as (worker, _):
        worker._on_commit = told.extend
        for _ in range(3):
            await worker.submit(Insert(1, "texts", Draft.parse({}), 1000))
        told.clear()
        worker._heads[1] = 0
        page = worker.page

        async def slow(database_id: int, after: int, interest: Any, text: Any, rows: int) -> Any:
            asked.append(rows)
            if rows > 1:
                raise ApiError(503, "QUERY_TIMEOUT", "It took too long")
            return await page(database_id, after, interest, text, rows)

        monkeypatch.setattr(worker, "page", slow)
        await worker._read_up_to(1, 3)
        assert [change.seq for change in told] == [1, 2, 3]
        assert asked[:2] == [ROWS, ROWS // 2]
