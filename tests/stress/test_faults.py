"""A full disk, and a failing one: writes are refused clearly, everything else continues, nothing is
half-written.

The faults are real: a file system of a few MiB, and a file size limit that makes the kernel refuse a write in
the middle of a commit.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import Server, StartServer, fill, need, receive, wait_until
from tests.server.test_workers import processes


def documents(server: Server, collection: str) -> int:
    return int(server.request("GET", f"/{collection}/count").json()["count"])


def test_full_disk_refuses_writes_with_507_while_reads_and_sockets_continue(
    small_disk: Path, start_server: StartServer
) -> None:
    server = start_server(data=small_disk / "data")
    filler = small_disk / "filler"
    with server.connect("c", query="since=now") as ws:
        receive(ws)
        first = server.insert("c", {"n": 0})
        assert receive(ws)["data"] == first
        fill(filler)
        response = None
        kept = 1
        for _ in range(400):  # SQLite's reserved space may still hold some
            response = server.request("POST", "/c/docs", json={"text": "x" * 20_000})
            if response.status_code != 201:
                break
            kept += 1
            receive(ws)
        assert response is not None
        assert (response.status_code, response.json()["code"]) == (507, "STORAGE_FULL")
        bulk = [{"text": "x" * 20_000} for _ in range(50)]
        assert server.request("POST", "/c/bulk", json=bulk).status_code == 507
        assert documents(server, "c") == kept
        assert server.request("GET", f"/c/docs/{first['_id']}").json() == first
        ws.send('{"action": "ping", "ref": 1}')
        assert receive(ws) == {"type": "pong", "ref": 1, "seq": kept}
        filler.unlink()
        again = server.insert("c", {"n": "there is room"})
        message = receive(ws)
        assert (message["data"], message["seq"]) == (again, kept + 1)
    server.kill()
    server.start()
    assert documents(server, "c") == kept + 1


def test_io_error_in_a_commit_is_a_503_and_the_next_write_works(start_server: StartServer) -> None:
    server = start_server()
    server.insert("c", {"n": 0})
    wal = next(server.data.glob("*-wal")).stat().st_size
    writer = processes(server).get("writer", server.pid)
    unlimited = resource.prlimit(writer, resource.RLIMIT_FSIZE)
    resource.prlimit(writer, resource.RLIMIT_FSIZE, (wal + 6000, unlimited[1]))
    with server.connect("c", query="since=now") as ws:
        assert receive(ws)["seq"] == 1
        response = server.request("POST", "/c/docs", json={"text": "x" * 200_000})
        assert (response.status_code, response.json()["code"]) == (503, "STORAGE_ERROR")
        assert documents(server, "c") == 1
        resource.prlimit(writer, resource.RLIMIT_FSIZE, unlimited)
        second = server.insert("c", {"n": 1})
        assert receive(ws) == {"seq": 2, "type": "insert", "collection": "c", "data": second}
    server.kill()
    server.start()
    assert documents(server, "c") == 2


def test_file_damaged_while_serving_ends_the_process(
    start_server: StartServer,
) -> None:
    server = start_server()
    for n in range(50):
        server.insert("c", {"n": n, "text": "x" * 2000})
    server.stop()
    server.start()
    file = server.data / "paperdb.sqlite"
    size = file.stat().st_size
    with file.open("r+b") as raw:
        raw.seek(4096)
        raw.write(os.urandom(size - 4096))
    with suppress(httpx.TransportError):  # it may have noticed by itself, and be gone
        assert server.request("POST", "/c/docs", json={"n": 1}).status_code in (500, 503)
    wait_until(lambda: server.process.poll() is not None)
    assert server.process.returncode not in (0, None)


def test_damaged_file_is_refused_at_start_in_one_line(start_server: StartServer) -> None:
    server = start_server()
    server.insert("c", {"n": 1})
    server.stop()
    file = server.data / "paperdb.sqlite"
    content = bytearray(file.read_bytes())
    content[4096 : 4096 + 2000] = os.urandom(2000)
    file.write_bytes(content)
    with pytest.raises(AssertionError, match="is damaged"):
        server.start()
    assert server.process.returncode == 3
    assert "Traceback" not in server.stderr
    assert file.read_bytes() == bytes(content)


def ready(server: Server) -> tuple[int, str | None]:
    response = httpx.get(f"{server.url}/readyz", trust_env=False)
    return response.status_code, response.json().get("code")


def replace(data: Path) -> None:
    copy = data / "copy"
    shutil.copy(data / "paperdb.sqlite", copy)
    copy.replace(data / "paperdb.sqlite")


def unmount(data: Path) -> None:
    subprocess.run(["umount", "-l", str(data)], check=True)


GONE: dict[str, Callable[[Path], object]] = {
    "the directory removed": shutil.rmtree,
    "the directory moved": lambda data: data.rename(data.with_name("elsewhere")),
    "the file removed": lambda data: (data / "paperdb.sqlite").unlink(),
    "the file replaced": replace,
    "the log removed": lambda data: (data / "paperdb.sqlite-wal").unlink(),
}


def assert_gone(server: Server, acknowledged: int) -> None:
    assert ready(server) == (503, "STORAGE_GONE")
    writes: tuple[tuple[str, str, Any], ...] = (
        ("POST", "/c/docs", {"n": 1}),
        ("POST", "/c/bulk", [{"n": 1}]),
        ("PUT", "/c/docs/a", {}),
        ("DELETE", "/c?confirm=c", None),
    )
    for _ in range(2):
        for method, path, body in writes:
            response = server.request(method, path, json=body)
            assert (response.status_code, response.json()["code"]) == (503, "STORAGE_GONE")
    with server.connect("c", query=f"since={acknowledged}") as ws:  # none of them is published
        assert receive(ws) == {"type": "ready", "seq": acknowledged}
    assert server.process.poll() is None
    assert server.stop() == 0
    assert "Traceback" not in server.stderr


@pytest.mark.parametrize("how", GONE)
def test_writes_are_refused_once_the_file_is_gone(start_server: StartServer, how: str) -> None:
    server = start_server()
    server.insert("c", {"key": "a"})
    assert ready(server) == (200, None)
    GONE[how](server.data)
    assert_gone(server, 1)


def test_writes_are_refused_once_the_disk_is_unmounted(small_disk: Path, start_server: StartServer) -> None:
    server = start_server(data=small_disk)
    server.insert("c", {"key": "a"})
    try:
        unmount(small_disk)
        assert_gone(server, 1)
    finally:
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(small_disk)], check=True)  # for its fixture


def test_read_only_directory_is_not_ready(small_disk: Path, start_server: StartServer) -> None:
    need("mount")
    server = start_server(data=small_disk)
    assert ready(server) == (200, None)
    subprocess.run(["mount", "--bind", str(small_disk), str(small_disk)], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", str(small_disk)], check=True)
        assert ready(server) == (503, "NOT_READY")
    finally:
        unmount(small_disk)
    assert ready(server) == (200, None)
