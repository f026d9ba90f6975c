"""`paperdb backup` and `restore`: a copy is of one moment, and complete or absent. No cursor points into
another history afterwards."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from paperdb_trio.files import by_command
from paperdb_trio.store.rowkeys import JUMP
from paperdb_trio.store.sqlite import library as sqlite
from paperdb_trio.store.sqlite.file import connect
from tests.auth.commands import fails_here, run_here
from tests.conftest import Server, StartServer, fill, receive, wait_until
from tests.store.tools import apply_all, inserting, new_file, rows


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data directory with three documents and no server."""
    directory = tmp_path / "data"
    directory.mkdir()
    file = new_file(directory)
    apply_all(file, *(inserting({"_id": str(n)}) for n in range(3)))
    return directory


@pytest.fixture
def copy(data: Path, tmp_path: Path) -> Path:
    """Its backup."""
    file = tmp_path / "copy.db"
    assert run_here("backup", file, "--data", data).exit_code == 0
    return file


def content(directory: Path) -> bytes:
    return (directory / "paperdb.sqlite").read_bytes()


def ids(server: Server) -> set[str]:
    page = server.request("GET", "/c/docs?limit=1000").json()
    return {document["_id"] for document in page["documents"]}


# --- backup --------------------------------------------------------------------------------------


def test_backup_is_one_moment_while_writes_go_on(start_server: StartServer, tmp_path: Path) -> None:
    """A writer inserts 0, 1, 2, … without pause. Each backup has all documents up to some number."""
    server = start_server()
    stop, written = threading.Event(), 0

    def write() -> None:
        nonlocal written
        with httpx.Client(base_url=server.url, headers={"X-API-Key": server.key}) as client:
            while not stop.is_set():
                assert client.post("/c/docs", json={"_id": str(written), "pad": "x" * 5000}).status_code == 201
                written += 1

    thread = threading.Thread(target=write)
    thread.start()
    try:
        wait_until(lambda: written > 0)
        for n in range(3):
            before = written
            server.cli("backup", str(tmp_path / f"{n}.db"))
            after = written + 1
            kept = [int(id) for (id,) in rows(tmp_path / f"{n}.db", "SELECT id FROM documents")]
            assert sorted(kept) == list(range(len(kept)))
            assert before <= len(kept) <= after
    finally:
        stop.set()
        thread.join()
    assert after > before > 0


def test_backup_is_one_private_file_that_opens_read_only(copy: Path) -> None:
    assert copy.stat().st_mode & 0o077 == 0
    assert [path.name for path in copy.parent.iterdir() if path.name.startswith("copy")] == ["copy.db"]
    assert rows(copy, "PRAGMA journal_mode") == [("delete",)]
    assert rows(copy, "SELECT count(*) FROM changes") == [(3,)]


def test_backup_overwrites_a_file_only_with_force(data: Path, tmp_path: Path) -> None:
    target = tmp_path / "mine"
    target.write_text("precious")
    fails_here(run_here("backup", target, "--data", data), 9, str(target), "--force")
    assert target.read_text() == "precious"
    assert run_here("backup", target, "--data", data, "--force").exit_code == 0
    assert rows(target, "SELECT count(*) FROM documents") == [(3,)]


@pytest.mark.parametrize("name", ["paperdb.sqlite", "../data/paperdb.sqlite"])
def test_backup_never_overwrites_its_own_database(data: Path, name: str) -> None:
    before = content(data)
    fails_here(run_here("backup", data / name, "--data", data, "--force"), 9, "itself")
    assert content(data) == before


def test_backup_never_overwrites_a_directory(data: Path, tmp_path: Path) -> None:
    fails_here(run_here("backup", tmp_path, "--data", data, "--force"), 9, str(tmp_path))


@pytest.mark.parametrize("target", ["none/copy.db", "file/copy.db"])
def test_unwritable_backup_target_is_named(data: Path, tmp_path: Path, target: str) -> None:
    (tmp_path / "file").write_text("")
    fails_here(run_here("backup", tmp_path / target, "--data", data), 6, target)


def test_failed_backup_on_a_full_disk_leaves_nothing_behind(
    start_server: StartServer, small_disk: Path
) -> None:
    server = start_server()
    server.request("POST", "/c/bulk", json=[{"text": "x" * 50_000} for _ in range(100)])
    (small_disk / "old.db").write_text("the last good one")
    fill(small_disk / "filler")
    os.truncate(small_disk / "filler", (small_disk / "filler").stat().st_size - 1_000_000)
    done = run_here("backup", small_disk / "old.db", "--data", server.data, "--force")
    fails_here(done, 6, "old.db", "full")
    assert sorted(path.name for path in small_disk.iterdir()) == ["filler", "old.db"]
    assert (small_disk / "old.db").read_text() == "the last good one"


def test_full_disk_is_reported_whatever_sqlite_says(small_disk: Path) -> None:
    new_file(small_disk)
    fill(small_disk / "filler")
    for command in ("keys create", "export", "check", "import"):
        done = run_here(*command.split(), "--data", small_disk, input=b"")
        fails_here(done, 6, str(small_disk), "disk is full")


def test_reading_commands_work_on_a_read_only_disk(small_disk: Path, tmp_path: Path) -> None:
    apply_all(new_file(small_disk), inserting({"_id": "a"}))
    for path in small_disk.glob("*-*"):
        path.unlink()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    for command in ("check", "export", "keys list", "databases list", f"backup {tmp_path / 'copy'}"):
        done = run_here(*command.split(), "--data", small_disk)
        assert (done.exit_code, done.stderr) == (0, ""), command
    fails_here(run_here("keys", "create", "--data", small_disk), 6, str(small_disk))


# --- restore -------------------------------------------------------------------------------------


@pytest.mark.smoke
@pytest.mark.executable
def test_restore_brings_back_the_backup_and_nothing_else(start_server: StartServer, tmp_path: Path) -> None:
    """The server was killed: its write-ahead log must not be replayed into the backup."""
    server = start_server()
    server.insert("c", {"_id": "before", "n": 1})
    key = server.new_key()["key"]
    server.cli("backup", str(tmp_path / "copy.db"))
    server.request("POST", "/c/bulk", json=[{"pad": "x" * 1000} for _ in range(200)])
    server.request("PATCH", "/c/docs/before", json={"n": 2})
    server.kill()
    assert (server.data / "paperdb.sqlite-wal").stat().st_size > 0
    server.cli("restore", str(tmp_path / "copy.db"), "--force")
    server.cli("check")
    server.start()
    assert ids(server) == {"before"}
    assert server.request("GET", "/c/docs/before", key=key).json()["n"] == 1
    assert server.insert("c", {"_id": "new"})["_id"] == "new"


@pytest.mark.executable
def test_cursor_of_the_lost_history_gets_a_gap(start_server: StartServer, tmp_path: Path) -> None:
    """Also if there are as many new changes as were lost, so that a new one could have the cursor's number."""
    server = start_server()
    server.insert("c", {})
    server.cli("backup", str(tmp_path / "copy.db"))
    for _ in range(5):
        server.insert("c", {"lost": True})
    server.stop()
    server.cli("restore", str(tmp_path / "copy.db"), "--force")
    server.start()
    for _ in range(10):
        server.insert("c", {"lost": False})
    for since in (0, 1, 3, 6):
        with server.connect("c", query=f"since={since}") as ws:
            head = receive(ws)["seq"]
            gap = receive(ws)
            assert (gap["type"], gap["since"]) == ("gap", since)
            assert 6 < gap["oldest"] == head - 9
        answer = server.request("GET", f"/c/changes?since={since}")
        assert (answer.status_code, answer.json()["code"]) == (410, "CURSOR_EXPIRED")
    answer = server.request("GET", f"/c/changes?since={head - 10}")
    assert [change["data"]["lost"] for change in answer.json()["changes"]] == [False] * 10


@pytest.mark.parametrize("keep", [True, False])
def test_restoring_a_backup_twice_gives_disjoint_seqs(data: Path, copy: Path, keep: bool) -> None:
    """With the replaced database (its head is known), and without it."""
    file = data / "paperdb.sqlite"
    heads = []
    for _ in range(2):
        assert run_here("restore", copy, "--data", data, "--force").exit_code == 0
        ((head, trimmed),) = rows(file, "SELECT head, trimmed FROM databases")
        assert head == trimmed
        heads.append(head)
        apply_all(file, *(inserting({}) for _ in range(3)))
        with closing(connect(file)) as connection:  # as after very many writes
            connection.execute(f"UPDATE databases SET head=head+{JUMP if keep else 0}")
        if not keep:
            file.unlink()
    assert heads[1] > heads[0] + (JUMP if keep else 3)


def test_restore_needs_force_only_over_a_database(data: Path, copy: Path, tmp_path: Path) -> None:
    before = content(data)
    fails_here(run_here("restore", copy, "--data", data), 9, str(data), "--force")
    assert content(data) == before
    assert run_here("restore", copy, "--data", tmp_path / "new" / "deep").exit_code == 0
    new = tmp_path / "new" / "deep" / "paperdb.sqlite"
    recorded = rows(new, "SELECT by, action, target FROM audit ORDER BY id")
    assert recorded[-1] == (by_command(), "store.restore", str(copy))
    assert rows(new, "SELECT id FROM documents ORDER BY rowkey") == [("0",), ("1",), ("2",)]
    assert new.stat().st_mode & 0o077 == 0


def test_restore_replaces_a_damaged_database(data: Path, copy: Path) -> None:
    file = data / "paperdb.sqlite"
    file.write_bytes(b"\xa5" * 50_000)
    Path(f"{file}-wal").write_bytes(b"\x5a" * 50_000)
    assert run_here("restore", copy, "--data", data, "--force").exit_code == 0
    assert run_here("check", "--data", data).exit_code == 0
    assert not Path(f"{file}-wal").exists() or Path(f"{file}-wal").stat().st_size == 0


def test_restore_refuses_a_database_in_use(server: Server, data: Path, copy: Path) -> None:
    fails_here(run_here("restore", copy, "--data", server.data, "--force"), 5, f"pid {server.pid}")
    assert server.request("GET", "/readyz").status_code == 200
    with closing(connect(data / "paperdb.sqlite")) as other:
        other.execute("BEGIN")
        other.execute("SELECT * FROM databases").fetchall()
        fails_here(run_here("restore", copy, "--data", data, "--force"), 5, "Another command")
    assert not [path.name for path in data.iterdir() if "partial" in path.name]
    assert rows(data / "paperdb.sqlite", "SELECT max(head) FROM databases") == [(3,)]


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def scribble(file: Path) -> None:
    with file.open("r+b") as raw:
        raw.seek(4096 * 6)
        raw.write(b"\xa5" * 4096 * 4)


def make_newer(file: Path) -> None:
    execute(file, "INSERT INTO _sqlite_migrations (migration_set, name) VALUES ('paperdb', 'm999_flying')")


def execute(file: Path, sql: str) -> None:
    with closing(connect(file)) as connection:
        connection.execute(sql)


def make_another(file: Path) -> None:
    file.unlink()
    with closing(sqlite.create(file)) as connection:
        connection.execute("CREATE TABLE books (title)")


@pytest.mark.parametrize(
    ("spoil", "code", "word"),
    [
        (Path.unlink, 1, "no backup"),
        (lambda file: file.write_text("dear diary " * 1000), 3, "damaged"),
        (cut, 3, "damaged"),
        (scribble, 3, "damaged"),
        (make_another, 3, "not a PaperDB backup"),
        (make_newer, 4, "m999_flying"),
    ],
    ids=["missing", "text", "cut", "scribbled", "another", "newer"],
)
def test_invalid_backup_changes_nothing(
    data: Path, copy: Path, tmp_path: Path, spoil: Callable[[Path], Any], code: int, word: str
) -> None:
    before = content(data)
    spoil(copy)
    fails_here(run_here("restore", copy, "--data", data, "--force"), code, str(copy), word)
    assert content(data) == before
    fails_here(run_here("restore", copy, "--data", tmp_path / "new"), code, str(copy))
    assert not (tmp_path / "new").exists()


def test_failed_restore_on_a_full_disk_keeps_the_old_database(small_disk: Path, copy: Path) -> None:
    file = new_file(small_disk)
    apply_all(file, inserting({"_id": "old"}))
    fill(small_disk / "filler")
    fails_here(run_here("restore", copy, "--data", small_disk, "--force"), 6, str(small_disk))
    (small_disk / "filler").unlink()
    assert rows(file, "SELECT id FROM documents") == [("old",)]
    assert not [path.name for path in small_disk.iterdir() if "partial" in path.name]


def test_backup_restored_under_another_server_keeps_its_first_key(
    start_server: StartServer, tmp_path: Path
) -> None:
    first = start_server()
    first.insert("c", {"_id": "a"})
    first.cli("backup", str(tmp_path / "copy.db"))
    assert run_here("restore", tmp_path / "copy.db", "--data", tmp_path / "other").exit_code == 0
    second = start_server(data=tmp_path / "other")
    assert second.key == ""
    assert second.request("GET", "/c/docs/a", key=first.key).status_code == 200
    listed = json.loads(second.cli("keys", "list", "--json"))
    assert [key["label"] for key in listed] == ["first"]


def test_restore_ignores_the_log_of_a_removed_file(tmp_path: Path) -> None:
    server = Server(tmp_path / "data")
    server.insert("c", {"key": "a"})
    server.cli("backup", str(tmp_path / "b"))
    server.request("POST", "/c/bulk", json=[{"pad": "x" * 3000}] * 300)
    server.kill()
    assert (server.data / "paperdb.sqlite-wal").stat().st_size > 0
    (server.data / "paperdb.sqlite").unlink()
    server.cli("restore", str(tmp_path / "b"))
    server.cli("check")
    server.start()
    assert server.request("GET", "/c/count").json() == {"count": 1}
    assert server.stop() == 0
