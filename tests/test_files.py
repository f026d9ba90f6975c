"""Files appear whole or not at all, however the process ends. Leftovers of dead processes are removed, files in
use are not, and files that root creates belong to the right owner."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from paperdb_trio import files
from paperdb_trio.errors import StartupError
from paperdb_trio.files import PARTIAL, make_directory, partial, replacing
from tests.auth.commands import fails, run_here
from tests.conftest import COMMAND, ENVIRONMENT, need
from tests.store.tools import apply_all, inserting, new_file
from tests.test_cli import by_nobody

NOBODY = 65534

HOLD = """
import sys, time
from pathlib import Path
from paperdb_trio.files import replacing
with replacing(Path(sys.argv[1]), force=True) as temporary:
    temporary.write_text("half")
    Path(f"{temporary}-journal").write_text("half")
    print("begun", flush=True)
    while True:  # a signal just before a sleep begins does not end it
        time.sleep(0.05)
"""


def begin(target: Path, *before: str) -> subprocess.Popen[str]:
    """A process in the middle of writing a file."""
    process = subprocess.Popen(
        [*before, sys.executable, "-c", HOLD, str(target)], stdout=subprocess.PIPE, text=True, env=ENVIRONMENT
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    return process


def end(process: subprocess.Popen[str], number: int) -> int:
    process.send_signal(number)
    process.communicate(timeout=20)
    return process.returncode


def partials(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir() if PARTIAL in path.name]


# --- leftovers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signal_cleans_up(tmp_path: Path, number: int) -> None:
    (tmp_path / "x").write_text("precious")
    assert end(begin(tmp_path / "x"), number) == 128 + number
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert (tmp_path / "x").read_text() == "precious"


def test_signal_just_after_the_file_was_created_cleans_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_lock", lambda _: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(SystemExit), replacing(tmp_path / "x", force=False):
        pytest.fail("the signal was ignored")
    assert list(tmp_path.iterdir()) == []


def test_ignored_signal_stays_ignored(tmp_path: Path) -> None:
    process = begin(tmp_path / "x", need("nohup"))
    process.send_signal(signal.SIGHUP)
    assert end(process, signal.SIGTERM) == 143


def test_next_process_removes_leftovers_but_no_file_in_use(tmp_path: Path) -> None:
    assert end(begin(tmp_path / "x"), signal.SIGKILL) == -signal.SIGKILL
    assert len(partials(tmp_path)) == 2  # SQLite's journal is a leftover, too
    live = begin(tmp_path / "y")
    try:
        assert len(partials(tmp_path)) == 2
        with replacing(tmp_path / "x", force=False) as temporary:
            assert len(partials(tmp_path)) == 3
            temporary.write_text("whole")
        assert (tmp_path / "x").read_text() == "whole"
        assert len(partials(tmp_path)) == 2
    finally:
        end(live, signal.SIGTERM)
    assert partials(tmp_path) == []


def test_many_processes_can_write_and_sweep_at_once(tmp_path: Path) -> None:
    """No process removes a file that another has just created, even before it is locked."""
    code = (
        "import sys; from pathlib import Path; from paperdb_trio.files import replacing\n"
        "for n in range(200):\n"
        "    with replacing(Path(sys.argv[1]), force=True) as temporary: temporary.write_text(sys.argv[1])"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / str(n))], stderr=subprocess.PIPE, env=ENVIRONMENT
        )
        for n in range(4)
    ]
    for process in processes:
        _, error = process.communicate(timeout=60)
        assert (process.returncode, error) == (0, b"")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1", "2", "3"]
    assert all(path.read_text() == str(path) for path in tmp_path.iterdir())


def test_backup_killed_as_process_1_does_not_block_the_next(tmp_path: Path) -> None:
    """In a container every process has id 1, so a name with the process's id existed already."""
    alone = [need("unshare"), "--pid", "--fork", "--mount-proc", "--kill-child"]
    data = tmp_path / "data"
    data.mkdir()
    new_file(data)
    target = tmp_path / "copies" / "copy.db"
    target.parent.mkdir()
    assert end(begin(target, *alone), signal.SIGKILL) == -signal.SIGKILL
    assert partials(target.parent)
    backup = [*COMMAND, "backup", str(target), "--data", str(data)]
    done = subprocess.run(
        [*alone, *backup], capture_output=True, text=True, env=ENVIRONMENT, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert [path.name for path in target.parent.iterdir()] == ["copy.db"]


@pytest.mark.executable
def test_backup_stopped_by_sigterm_leaves_nothing(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    apply_all(new_file(data), *(inserting({"pad": "x" * 900_000}) for _ in range(10)))
    (tmp_path / "copies").mkdir()
    command = [*COMMAND, "backup", str(tmp_path / "copies" / "copy.db"), "--data", str(data), "--force"]
    for _ in range(50):
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, env=ENVIRONMENT) as process:
            while not partials(tmp_path / "copies") and process.poll() is None:
                time.sleep(0.001)  # the copy takes some milliseconds
            process.terminate()
        assert partials(tmp_path / "copies") == []
        if process.returncode == 143:
            break
    assert process.returncode == 143


# --- owners --------------------------------------------------------------------------------------


@pytest.fixture
def theirs() -> Iterator[Path]:
    """A directory of another user, which that user can reach."""
    if os.geteuid() != 0:
        if os.environ.get("CI"):
            pytest.fail("giving files away needs root")
        pytest.skip("giving files away needs root")
    with tempfile.TemporaryDirectory() as made:
        Path(made).chmod(0o755)
        path = Path(made, "data")
        path.mkdir(0o700)
        os.chown(path, NOBODY, NOBODY)
        yield path


def owners(directory: Path) -> dict[str, tuple[int, int]]:
    return {path.name: (path.stat().st_uid, path.stat().st_gid) for path in directory.iterdir()}


def test_service_can_open_a_file_that_root_restored(theirs: Path, tmp_path: Path) -> None:
    new_file(tmp_path)
    assert run_here("backup", tmp_path / "copy", "--data", tmp_path).exit_code == 0
    assert run_here("restore", tmp_path / "copy", "--data", theirs).exit_code == 0
    assert owners(theirs) == dict.fromkeys(("paperdb.sqlite", "paperdb.lock"), (NOBODY, NOBODY))
    assert by_nobody("keys", "create", "--data", theirs, cwd="/").returncode == 0
    file = theirs / "paperdb.sqlite"
    os.chown(file, NOBODY, 4242)
    file.chmod(0o644)
    os.chown(theirs, 0, 0)  # the replaced file counts more than the directory
    assert run_here("restore", tmp_path / "copy", "--data", theirs, "--force").exit_code == 0
    assert owners(theirs)["paperdb.sqlite"] == (NOBODY, 4242)
    assert file.stat().st_mode & 0o777 == 0o640


@pytest.mark.executable
def test_files_that_root_creates_belong_to_the_directorys_owner(theirs: Path, tmp_path: Path) -> None:
    """Even while it runs, and when it is killed: SQLite gives the files beside a database to its owner."""
    seen: dict[str, tuple[int, int]] = {}
    command = [*COMMAND, "serve", "--port", "0", "--tls-self-signed", "--data", str(theirs)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=ENVIRONMENT
    ) as serving:
        assert serving.stdout is not None
        for line in serving.stdout:
            if line.startswith("Listening"):
                break
        seen |= owners(theirs)
        serving.kill()
    for arguments in ("keys list", "keys create", "check", "export", "databases create d --plan pro"):
        assert run_here(*arguments.split(), "--data", theirs).exit_code == 0
        seen |= owners(theirs)
    assert run_here("import", "--data", theirs, input=b'{"collection":"c","document":{}}').exit_code == 0
    assert run_here("backup", theirs / "copy", "--data", theirs).exit_code == 0
    assert run_here("export", "--output", theirs / "lines", "--data", theirs).exit_code == 0
    seen |= owners(theirs)
    names = {f"paperdb.{end}" for end in ("lock", "sock", "sqlite", "sqlite-wal", "sqlite-shm", "reserve")}
    assert seen.keys() == names | {"tls-self-signed.key", "tls-self-signed.crt", "copy", "lines"}
    assert set(seen.values()) == {(NOBODY, NOBODY)}


def test_new_directory_belongs_to_its_parents_owner(theirs: Path) -> None:
    make_directory(theirs / "a" / "b")
    assert owners(theirs) | owners(theirs / "a") == {"a": (NOBODY, NOBODY), "b": (NOBODY, NOBODY)}


@pytest.mark.parametrize(
    ("closed", "command"),
    [
        ("paperdb.sqlite", "serve --port 0"),
        ("paperdb.sqlite", "keys list"),
        ("paperdb.sqlite", "keys create"),
        ("paperdb.sqlite", "export"),
        ("paperdb.lock", "serve --port 0"),
        ("paperdb.lock", "import"),
        (".", "serve --port 0"),
        (".", "keys list"),
    ],
)
def test_file_that_cannot_be_opened_is_named_with_its_owner(theirs: Path, closed: str, command: str) -> None:
    new_file(theirs)
    (theirs / "paperdb.lock").touch(0o600)
    for path in theirs.iterdir():
        os.chown(path, NOBODY, NOBODY)
    os.chown(theirs / closed, 0, 0)
    (theirs / closed).chmod(0o600)
    done = by_nobody(*command.split(), "--data", theirs, cwd="/")
    fails(
        done,
        6,
        f"Cannot use the data directory {theirs}",
        f"({theirs / closed} belongs to root; this is nobody)",
    )


def test_foreign_directory_is_named_with_its_owner(theirs: Path) -> None:
    for path in (new_file(theirs), *theirs.iterdir()):
        os.chown(path, NOBODY, NOBODY)
    place = theirs.parent
    for mode in (0o755, 0o700):
        shut = place / "shut"
        shut.mkdir(exist_ok=True)
        shut.chmod(mode)
        for command in (["backup"], ["export", "--output"]):
            done = by_nobody(*command, shut / "copy", "--data", theirs, cwd="/")
            fails(
                done, 6, f"Cannot write {shut}/copy: Permission denied ({shut} belongs to root; this is nobody)"
            )


def test_unreadable_backup_is_not_called_damaged(theirs: Path) -> None:
    assert run_here("backup", theirs.parent / "copy", "--data", new_file(theirs).parent).exit_code == 0
    done = by_nobody("restore", theirs.parent / "copy", "--data", theirs, "--force", cwd="/")
    copy = theirs.parent / "copy"
    fails(done, 6, f"Cannot read the backup {copy}: Permission denied ({copy} belongs to root; this is nobody)")


def test_in_tmp_a_replacement_does_not_go_to_the_old_files_owner(theirs: Path) -> None:
    os.chown(theirs, 0, 0)
    theirs.chmod(0o1777)
    (theirs / "x").write_text("mine soon")
    (theirs / "x").chmod(0o666)
    os.chown(theirs / "x", NOBODY, NOBODY)
    with replacing(theirs / "x", force=True) as temporary:
        temporary.write_text("secret")
    assert owners(theirs) == {"x": (0, 0)}
    assert (theirs / "x").stat().st_mode & 0o777 == 0o600


def test_existing_file_keeps_its_groups_rights(tmp_path: Path) -> None:
    target = tmp_path / "x"
    for before, after in ((0o644, 0o640), (0o600, 0o600), (0o666, 0o660)):
        target.touch()
        target.chmod(before)
        with partial(target) as temporary:
            temporary.write_text("new")
        assert target.stat().st_mode & 0o777 == after
    with pytest.raises(StartupError, match="already exists"), replacing(target, force=False):
        raise AssertionError
