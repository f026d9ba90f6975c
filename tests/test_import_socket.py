"""`paperdb import` with and without a running server: one order of writes, and early ends of either side."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

import pytest

from paperdb_trio.files import by_command
from paperdb_trio.store.housekeeping import DropSome
from tests.auth.commands import fails, fails_here, run, run_here
from tests.conftest import COMMAND, ENVIRONMENT, Server, StartServer, receive, wait_until
from tests.realtime.raw import Writers
from tests.store.test_transfer import OLD, exported, import_text, line
from tests.store.tools import DATABASE, apply_all, new_file, rows
from tests.zygote import Popen


@pytest.mark.smoke
@pytest.mark.executable
def test_running_server_writes_the_import_and_subscribers_see_it(server: Server, collection: str) -> None:
    with server.connect(collection, query="since=now") as ws:
        seq = receive(ws)["seq"]
        text = b"\n".join(
            line({"_id": str(n), "createdAt": OLD, "updatedAt": OLD}, collection) for n in range(600)
        )
        done = run_here("import", "--data", server.data, input=text)
        assert (done.exit_code, done.stderr) == (0, "")
        events = [receive(ws) for _ in range(600)]
    assert [event["data"]["_id"] for event in events] == [str(n) for n in range(600)]
    assert [event["seq"] for event in events] == list(range(seq + 1, seq + 601))
    assert {event["type"] for event in events} == {"insert"}
    assert {event["data"]["createdAt"] for event in events} == {OLD}
    assert server.request("GET", f"/{collection}/count").json() == {"count": 600}


@pytest.mark.parametrize("served", [True, False])
def test_import_is_recorded_if_it_did_something(start_server: StartServer, served: bool) -> None:
    server = start_server()
    if not served:
        assert server.stop() == 0
    text = b"\n".join([line({"_id": "a"}), line({"_id": "b"}), b"no"])
    for _ in range(2):  # the second one finds both unchanged
        assert run_here("import", "--data", server.data, input=text).exit_code == 10
    recorded = json.loads(server.cli("audit", "--limit", "10", "--json"))
    (entry,) = (entry for entry in recorded if entry["action"] == "documents.import")
    assert (entry["by"], entry["database"]) == (by_command(), None)
    assert entry["details"] == {"inserted": 2, "replaced": 0, "schemas": 0}


def test_import_and_other_writers_share_one_order(server: Server, collection: str) -> None:
    with (
        server.connect(collection, query="since=now", max_queue=None) as ws,
        Writers(server, collection, count=2) as writers,
    ):
        seq = receive(ws)["seq"]
        done = run_here("import", "--data", server.data, input=b"\n".join([line({}, collection)] * 3000))
        assert done.exit_code == 0
        writers.stop()
        total = 3000 + len(writers.acknowledged)
        seqs = [receive(ws)["seq"] for _ in range(total)]
    assert seqs == list(range(seq + 1, seq + total + 1))
    assert not writers.failures


def test_server_uses_its_own_limit_and_lists_refusals(start_server: StartServer) -> None:
    server = start_server("--max-document-bytes", "1024")
    done = import_text(server.data, line({"t": "x" * 2000}), b"x", line({}))
    fails_here(done, 10, "2 lines")
    assert "line 1: The document is" in done.stdout
    assert "line 2: Invalid JSON" in done.stdout


def test_directory_deeper_than_a_socket_address_works(start_server: StartServer, tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    server = start_server(data=deep)
    assert run_here("import", "--data", deep, input=line({})).exit_code == 0
    assert server.request("GET", "/c/count").json() == {"count": 1}


def test_socket_of_a_killed_server_blocks_nothing(start_server: StartServer) -> None:
    server = start_server()
    server.kill()
    assert (server.data / "paperdb.sock").exists()
    assert run_here("import", "--data", server.data, input=line({})).exit_code == 0
    server.start()
    assert run_here("import", "--data", server.data, input=line({})).exit_code == 0
    assert server.request("GET", "/c/count").json() == {"count": 2}
    assert server.stop() == 0
    assert not (server.data / "paperdb.sock").exists()


def start_import(data: Path) -> subprocess.Popen[bytes]:
    """An import that has sent 300 lines and waits for more."""
    importing = Popen(
        [*COMMAND, "import", "--data", str(data)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
    )
    assert importing.stdin is not None
    importing.stdin.write(b"\n".join([line({"pad": "x" * 1000})] * 300))
    importing.stdin.flush()
    return importing


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_import_stopped_by_the_servers_end_can_be_repeated(start_server: StartServer, how: str) -> None:
    server = start_server("--drain-timeout", "60")  # which it does not wait for
    importing = start_import(server.data)
    wait_until(lambda: server.request("GET", "/c/count").json()["count"] > 0, 10)
    if how == "stop":
        assert server.stop() == 0
    else:
        server.kill()
    output, error = importing.communicate(line({}) * 10, timeout=20)
    assert importing.returncode == 10, error
    assert error.startswith(b"paperdb: The import stopped: ")
    assert b"0 documents inserted" not in output, "some were"
    assert error.count(b"\n") == 1
    assert "Traceback" not in server.stderr


def test_killed_import_does_not_affect_the_server(start_server: StartServer) -> None:
    server = start_server()
    importing = start_import(server.data)
    wait_until(lambda: server.request("GET", "/c/count").json()["count"] > 0, 10)
    importing.kill()
    importing.communicate()
    assert server.insert("c", {})
    assert run_here("check", "--data", server.data).exit_code == 0
    assert server.stop() == 0
    assert "Traceback" not in server.stderr


@pytest.mark.parametrize("served", [False, True])
def test_import_is_interrupted_silently_and_keeps_its_writes(
    start_server: StartServer, data: Path, served: bool
) -> None:
    if served:
        start_server(data=data)
    importing = start_import(data)
    wait_until(lambda: bool(exported(data)), 10)
    importing.send_signal(signal.SIGINT)
    output, error = importing.communicate(timeout=20)
    assert (importing.returncode, output, error) == (130, b"", b"")
    assert run_here("check", "--data", data).exit_code == 0


@pytest.mark.parametrize("served", [False, True])
def test_unreadable_input_stops_the_import(start_server: StartServer, data: Path, served: bool) -> None:
    if served:
        start_server(data=data)
    done = run_here("import", "/proc/self/mem", "--data", data)
    fails_here(done, 10, "The import stopped: the input cannot be read: Input/output error")
    done = run_here("import", data, "--data", data)
    assert (done.exit_code, "Is a directory" in done.stderr) == (2, True)
    done = run_here("import", data / "none", "--data", data)
    assert (done.exit_code, "No such file" in done.stderr) == (2, True)


def test_full_disk_stops_the_import(small_disk: Path) -> None:
    new_file(small_disk)
    lines = [line({"pad": "x" * 100_000})] * 300
    (small_disk.parent / "lines").write_bytes(b"\n".join(lines))
    done = run("import", small_disk.parent / "lines", "--data", small_disk)
    fails(done, 10, "The import stopped: The disk is full")
    assert not (small_disk / "paperdb.sock").exists()


def test_no_server_starts_during_an_import_without_one(data: Path) -> None:
    importing = start_import(data)
    try:
        wait_until(lambda: bool(exported(data)), 10)
        fails_here(run_here("serve", "--port", "0", "--data", data), 5, f"pid {importing.pid}")
    finally:
        importing.communicate(timeout=20)
    assert importing.returncode == 0
    assert len(exported(data)) == 300


def test_interrupted_removal_is_finished_before_an_import(data: Path) -> None:
    """Its server was killed; the next server must not remove documents imported meanwhile."""
    lines = [line({"_id": str(n), "createdAt": OLD, "updatedAt": OLD}) for n in range(20)]
    assert import_text(data, *lines).exit_code == 0
    apply_all(data / "paperdb.sqlite", DropSome(DATABASE, "c", None, limit=10))
    done = import_text(data, *lines)
    assert (done.exit_code, "20 documents inserted, 0 replaced, 0 unchanged" in done.stdout) == (0, True)
    assert rows(data / "paperdb.sqlite", "SELECT * FROM drops") == []
