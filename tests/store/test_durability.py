"""Durability `process`: a write survives the end of the server, and clients get a gap after a machine crash."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from paperdb_trio.config import Settings
from paperdb_trio.errors import StartupError
from paperdb_trio.store.sqlite import durability
from paperdb_trio.store.sqlite.file import connect
from tests.conftest import StartServer
from tests.store.test_writer import running
from tests.store.tools import inserting, rows

MARK = "SELECT value FROM meta WHERE name='unsynced_boot'"


def boot_again(data: Path) -> None:
    """Change the file to name another boot, as after the machine has booted again."""
    with closing(connect(data / "paperdb.sqlite")) as connection:
        connection.execute("UPDATE meta SET value=value+1 WHERE name='unsynced_boot'")


def test_killed_server_loses_nothing_and_cursors_stay_valid(start_server: StartServer) -> None:
    server = start_server("--durability", "process")
    key = server.key
    documents = [server.insert("c", {"n": n}) for n in range(50)]
    seq = server.request("GET", "/c/changes").json()["seq"]
    server.kill()
    assert rows(server.data / "paperdb.sqlite", MARK) == [(durability.boot(),)]
    again = start_server("--durability", "process", data=server.data)
    found = again.request("GET", "/c/docs", key=key).json()
    assert [document["_id"] for document in found["documents"]] == [document["_id"] for document in documents]
    assert again.request("GET", f"/c/changes?since={seq}", key=key).json()["changes"] == []


@pytest.mark.parametrize("then", ["disk", "process"])
def test_cursor_gets_a_gap_after_a_machine_crash(start_server: StartServer, then: str) -> None:
    server = start_server("--durability", "process")
    key = server.key
    server.insert("c", {"n": 1})
    seq = server.request("GET", "/c/changes").json()["seq"]
    server.kill()
    boot_again(server.data)
    again = start_server("--durability", then, data=server.data)
    assert again.request("GET", f"/c/changes?since={seq}", key=key).status_code == 410
    again.insert("c", {"n": 2}, key=key)
    assert again.request("GET", f"/c/changes?since={seq}", key=key).status_code == 410
    assert len(again.request("GET", "/c/docs", key=key).json()["documents"]) == 2


def test_stopped_server_leaves_no_mark(start_server: StartServer) -> None:
    server = start_server("--durability", "process")
    server.insert("c", {})
    assert server.stop() == 0
    assert rows(server.data / "paperdb.sqlite", MARK) == []


def test_start_with_disk_removes_the_mark_of_the_same_boot(start_server: StartServer) -> None:
    server = start_server("--durability", "process")
    server.insert("c", {})
    server.kill()
    start_server(data=server.data)
    assert rows(server.data / "paperdb.sqlite", MARK) == []


@pytest.mark.parametrize(("how", "level"), [("disk", 2), ("process", 1)])
async def test_only_durability_process_does_not_wait_for_the_disk(file: Path, how: str, level: int) -> None:
    async with running(file, durability=how) as (writer, _):
        await writer.submit(inserting({}))
        assert writer._connection is not None
        assert writer._connection.execute("PRAGMA synchronous").fetchone() == (level,)


def test_unknown_durability_is_refused() -> None:
    with pytest.raises(StartupError, match="expected disk or process"):
        Settings(durability="none")
