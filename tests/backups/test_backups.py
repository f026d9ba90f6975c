"""Backups by schedule: to a directory, and to a server that speaks S3."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from paperdb_trio.backups.places import BackupError, Directory, name_at, time_of
from paperdb_trio.config import Settings
from paperdb_trio.errors import StartupError
from paperdb_trio.store.sqlite import backup
from paperdb_trio.store.sqlite.backup import snapshot
from paperdb_trio.store.sqlite.file import prepare
from tests.auth.commands import fails, run, run_here
from tests.backups.programs import program
from tests.conftest import Server, StartServer, wait_until
from tests.store.tools import apply_all, inserting

pytestmark = pytest.mark.sqlite

EVERY = ("--backup-every", "1")


def metric(server: Server, name: str) -> float:
    (value,) = re.findall(rf"^{name}(?:{{.*}})? (\S+)$", server.request("GET", "/metrics").text, re.MULTILINE)
    return float(value)


def test_backups_are_made_kept_and_restored(start_server: StartServer, tmp_path: Path) -> None:
    to = tmp_path / "backups"
    to.mkdir()
    other = to / "paperdb-mine.backup"
    other.write_text("not the server's")
    (to / name_at(0)).write_text("an old one, and so it goes")
    (to / name_at(1)).write_text("another")
    server = start_server(*EVERY, "--backup-to", str(to), "--backup-keep", "2")
    document = server.insert("c", {"n": 1})
    made = metric(server, "paperdb_backups_total")
    wait_until(lambda: metric(server, "paperdb_backups_total") >= made + 3)
    assert metric(server, "paperdb_backup_every_seconds") == 1
    assert abs(time.time() - metric(server, "paperdb_backup_last_success_timestamp_seconds")) < 60
    wait_until(lambda: len(Directory(to).names()) == 2)
    server.stop()
    names = Directory(to).names()
    assert len(names) in (2, 3)  # it may have been stopped before it removed another old one
    assert min(map(time_of, names)) > 1
    assert other.read_text() == "not the server's"
    assert {path.name for path in to.iterdir()} == {*names, other.name}
    assert (to / names[-1]).stat().st_mode & 0o077 == 0
    assert told("made a backup", server)
    restored = run_here("restore", to / names[-1], "--data", tmp_path / "new")
    assert restored.exit_code == 0, restored
    again = start_server(data=tmp_path / "new")
    found = again.request("GET", f"/c/docs/{document['_id']}", key=server.key)
    assert found.json() == document


def told(message: str, server: Server) -> bool:
    return re.search(rf"INFO paperdb.backups: {message} .*bytes=\d+ ms=\d+", server.stderr) is not None


def test_a_restart_waits_until_the_next_one_is_due(start_server: StartServer, tmp_path: Path) -> None:
    to = tmp_path / "backups"
    to.mkdir()
    newest = to / name_at(time.time() - 60)
    newest.write_text("made before the restart")
    server = start_server("--backup-every", "3600", "--backup-to", str(to))
    at = time_of(newest.name)
    wait_until(lambda: metric(server, "paperdb_backup_last_success_timestamp_seconds") == at)
    assert metric(server, "paperdb_backups_total") == 0
    assert list(to.iterdir()) == [newest]


def test_a_backup_that_fails_harms_nothing_and_is_tried_again(
    start_server: StartServer, tmp_path: Path
) -> None:
    to = tmp_path / "backups"
    to.write_text("a file")
    server = start_server(*EVERY, "--backup-to", str(to))
    wait_until(lambda: metric(server, "paperdb_backup_failures_total") >= 2)
    server.insert("c", {})
    assert f"no backup to {to}" in server.stderr
    to.unlink()
    wait_until(lambda: metric(server, "paperdb_backups_total") >= 1)
    assert server.stop() == 0
    assert "Traceback" not in server.stderr


def test_a_copy_that_is_damaged_never_has_a_name(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaged(source: Path, target: Path, *_: Any, **more: Any) -> None:
        whole = source.read_bytes()
        target.write_bytes(whole[:-4096] + bytes(4096))

    file = prepare(data, create=False)
    monkeypatch.setattr(backup, "_copy", damaged)
    to = tmp_path / "backups"
    to.mkdir()
    with pytest.raises(BackupError, match="damaged"):
        Directory(to).add(name_at(0), lambda target: snapshot(file, target, stopped=lambda: False))
    assert not list(to.iterdir())


def test_a_copy_is_given_up_when_the_server_stops(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backup, "SIGNAL_STEPS", 100)
    file = prepare(data, create=False)
    apply_all(file, *[inserting({"n": n}) for n in range(300)])
    target = tmp_path / "target"
    target.touch()
    with pytest.raises(StartupError, match="interrupted"):
        snapshot(file, target, stopped=lambda: True)


@pytest.mark.parametrize(
    "settings",
    [
        {"backup_every": 1.0},
        {"backup_every": 1.0, "backup_to": "x", "store": "postgresql://x/y"},
        {"backup_keep": 0},
        {"backup_endpoint": "s3.example.com"},
    ],
    ids=str,
)
def test_settings_that_make_no_backup_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(StartupError):
        Settings(**settings)


# --- S3 ------------------------------------------------------------------------------------------

KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "secret-of-the-test"}


@pytest.fixture
def s3(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """The address of `rclone serve s3`, and where its buckets are."""
    root = tmp_path / "s3"
    (root / "bucket").mkdir(parents=True)
    server = subprocess.Popen(
        [
            *(program("rclone"), "serve", "s3", str(root), "--addr", "127.0.0.1:0", "--config", "/dev/null"),
            *("--auth-key", ",".join(KEYS.values())),
        ],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert server.stderr is not None
    for line in server.stderr:
        if found := re.search(r"http://127\.0\.0\.1:\d+", line):
            break
    else:
        raise AssertionError("rclone did not start")
    with server.stderr:
        yield found[0], root / "bucket"
        server.kill()
        server.wait()


def test_backups_to_s3(start_server: StartServer, s3: tuple[str, Path], tmp_path: Path) -> None:
    url, bucket = s3
    options = (*EVERY, "--backup-to", "s3://bucket/a/b", "--backup-endpoint", url, "--backup-keep", "2")
    refused = start_server(*options, env={**KEYS, "AWS_SECRET_ACCESS_KEY": "wrong"})
    wait_until(lambda: metric(refused, "paperdb_backup_failures_total") >= 1)
    refused.kill()
    assert not list(bucket.rglob("*.backup"))
    server = start_server(*options, env=KEYS)
    document = server.insert("c", {"n": 1})
    made = metric(server, "paperdb_backups_total")
    wait_until(lambda: metric(server, "paperdb_backups_total") >= made + 3)
    server.stop()
    place = bucket / "a" / "b"
    names = Directory(place).names()
    assert 1 <= len(names) <= 3
    assert not list(server.data.glob("*.partial"))
    assert run_here("restore", place / names[-1], "--data", tmp_path / "new").exit_code == 0
    again = start_server(data=tmp_path / "new")
    assert again.request("GET", f"/c/docs/{document['_id']}", key=server.key).json() == document


def test_without_credentials_the_server_does_not_start(tmp_path: Path) -> None:
    done = run("serve", "--data", tmp_path / "d", "--port", "0", *EVERY, "--backup-to", "s3://bucket")
    fails(done, 2, "AWS_ACCESS_KEY_ID")
