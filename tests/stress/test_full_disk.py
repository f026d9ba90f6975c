"""A full disk can be freed: the reserve lets deletes, drops, trims and revocations through, and nothing else.

The disks are real: file systems of 16 MiB in memory, on which a file takes what is left.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.auth.commands import fails_here, run_here
from tests.conftest import Server, StartServer, fill, wait_until
from tests.store.tools import rows

MEBI = 2**20
RESERVE = 5 * MEBI
OPTIONS = ("--reserve-bytes", str(RESERVE))
PAD = "x" * 20_000


def health(server: Server) -> tuple[int, str | None]:
    response = httpx.get(f"{server.url}/readyz", trust_env=False)
    return response.status_code, response.json().get("storage")


def reserve(data: Path) -> int:
    return (data / "paperdb.reserve").stat().st_size


def insert(server: Server) -> int:
    return server.request("POST", "/c/docs", json={"pad": PAD}).status_code


def refill(disk: Path) -> None:
    """Fill what is left of a disk."""
    for n in range(100):
        fill(disk / f"filler{n}")
        if (disk / f"filler{n}").stat().st_size == 0:
            break


@pytest.fixture
def full(small_disk: Path, start_server: StartServer) -> Server:
    """A server whose last insert found the disk full."""
    server = start_server(*OPTIONS, data=small_disk / "data")
    assert health(server) == (200, None)
    for start in range(0, 60, 10):
        bulk = [{"_id": f"d{n}", "n": n, "pad": PAD} for n in range(start, start + 10)]
        assert server.request("POST", "/c/bulk", json=bulk).status_code == 200
    schema = {"properties": {"n": {"index": True}}}
    assert server.request("PUT", "/c/schema", json=schema).status_code == 200
    refill(small_disk)
    wait_until(lambda: insert(server) == 507)
    return server


def test_only_writes_that_free_space_use_the_reserve(full: Server) -> None:
    growing: tuple[tuple[str, str, Any], ...] = (
        ("POST", "/c/docs", {}),
        ("POST", "/other/docs", {}),
        ("POST", "/c/bulk", [{}]),
        ("PATCH", "/c/docs/d1", {"pad": 1}),
        ("PUT", "/c/docs/d1", {}),
        ("PUT", "/c/schema", {"properties": {"a": {"type": "string", "index": True}}}),
    )
    for _ in range(3):
        for method, path, body in growing:
            response = full.request(method, path, json=body)
            assert (response.status_code, response.json()["code"]) == (507, "STORAGE_FULL"), path
    assert health(full) == (200, "full")
    assert reserve(full.data) < RESERVE
    for n in range(20):
        assert full.request("DELETE", f"/c/docs/d{n}").status_code == 200
    deletes = {"operations": [{"op": "delete", "collection": "c", "id": f"d{n}"} for n in (20, 21)]}
    response = full.request("POST", "/batch", json=deletes, headers={"Idempotency-Key": "k"})
    assert response.status_code == 200
    assert full.request("DELETE", "/c/docs/missing").status_code == 404
    assert full.request("DELETE", "/c/schema").status_code == 200
    assert full.request("GET", "/c/docs/d50").status_code == 200
    full.cli("keys", "rotate-signing")
    full.cli("databases", "set-plan", "default", "pro")
    assert full.stderr.count("the disk is full") == 1
    # A deleted document is still in the log, so the log gives up some of its oldest changes.
    wait_until(lambda: full.request("GET", "/c/changes?since=0").json().get("oldest", 0) > 1)
    index_is_dropped = "SELECT NOT EXISTS (SELECT 1 FROM index_drops)"
    wait_until(lambda: rows(full.data / "paperdb.sqlite", index_is_dropped) == [(1,)])


def test_deletes_make_room_by_themselves(full: Server) -> None:
    """Also after kill -9. The oldest changes make room, because a deleted document moves into the log."""
    full.kill()
    refill(full.data.parent)
    full.start()
    if insert(full) == 201:  # SQLite has moved its log into the file, which made room
        refill(full.data.parent)
    wait_until(lambda: insert(full) == 507)
    assert health(full) == (200, "full")
    assert full.request("DELETE", "/c?confirm=c").status_code == 200
    wait_until(lambda: insert(full) == 201, 30)
    assert reserve(full.data) == RESERVE
    assert health(full) == (200, None)
    assert "the disk has room again" in full.stderr
    full.kill()
    full.start()
    assert full.request("GET", "/c/count").json()["count"] >= 1


def test_room_is_noticed_by_the_next_write(full: Server) -> None:
    for filler in full.data.parent.glob("filler*"):
        filler.unlink()
    assert insert(full) == 201
    assert reserve(full.data) == RESERVE


def test_server_starts_on_a_full_disk(small_disk: Path, start_server: StartServer) -> None:
    server = start_server(*OPTIONS, data=small_disk / "data")
    server.request("PUT", "/c/docs/a", json={})
    assert server.stop() == 0
    refill(small_disk)
    server.start()
    assert insert(server) == 507
    assert server.request("GET", "/c/docs/a").status_code == 200
    assert server.request("DELETE", "/c/docs/a").status_code == 200
    assert server.stop() == 0


def test_key_is_revoked_on_a_full_disk_while_no_server_runs(
    small_disk: Path, start_server: StartServer
) -> None:
    server = start_server(*OPTIONS, data=small_disk)
    key = server.new_key()
    assert server.stop() == 0
    refill(small_disk)
    fails_here(run_here("keys", "create", "--data", small_disk), 6, "full")
    assert run_here("keys", "revoke", key["id"], "--data", small_disk).exit_code == 0
    assert reserve(small_disk) == RESERVE - MEBI
    server.start()  # it takes another part
    assert server.request("GET", "/c/docs", key=key["key"]).status_code == 401
    assert server.request("GET", "/c/docs").status_code == 200


def test_without_a_reserve_a_full_disk_stays_full(small_disk: Path, start_server: StartServer) -> None:
    server = start_server("--reserve-bytes", "0", data=small_disk)
    server.request("PUT", "/c/docs/a", json={"pad": "x" * 900_000})
    refill(small_disk)
    wait_until(lambda: insert(server) == 507)
    assert not (small_disk / "paperdb.reserve").exists()
    assert health(server) == (200, None)
    assert server.request("DELETE", "/c/docs/a").status_code == 507
