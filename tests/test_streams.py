"""Streams that cannot be written: one line, the right exit code, and no secret that was never shown."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Final

import pytest

from paperdb_trio.store.operations import Delete
from paperdb_trio.store.sqlite.file import connect
from tests.auth.commands import run_here
from tests.conftest import COMMAND, ENVIRONMENT, Server, StartServer, fill, wait_until
from tests.store.tools import DATABASE, apply_all, inserting, new_file, rows
from tests.zygote import Popen

GOOD_KEY = "pdb_sk_" + "0aA_-" * 9
REASONS = {">/dev/full": "No space left on device", ">&-": "it is closed", ">&3": "Broken pipe"}
broken = pytest.mark.parametrize("stdout", REASONS)


def start(redirection: str, *arguments: str | Path, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
    """`paperdb` with its streams redirected; 3 is a pipe without a reader."""
    reading, writing = os.pipe()
    os.close(reading)
    if redirection in (">/dev/full", ">&3"):  # no shell, so that it can be a fork
        with open(writing, "wb") as pipe, open("/dev/full", "wb") as full:
            return Popen(
                [*COMMAND, *map(str, arguments)],
                stdout=full if redirection == ">/dev/full" else pipe,
                stderr=subprocess.PIPE,
                text=True,
                env=ENVIRONMENT | (env or {}),
            )
    script = f'exec 3>&{writing}; exec "$@" {redirection}'
    try:
        return subprocess.Popen(
            ["bash", "-c", script, "bash", *COMMAND, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=ENVIRONMENT | (env or {}),
            pass_fds=(writing,),
        )
    finally:
        os.close(writing)


def ends(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    with process:
        output, error = process.communicate(timeout=30)
    return process.returncode, output or "", error


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data directory with a document, without a server."""
    directory = tmp_path / "data"
    directory.mkdir()
    apply_all(new_file(directory), inserting({"_id": "a"}))
    return directory


def keys(data: Path) -> int:
    return len(rows(data / "paperdb.sqlite", "SELECT * FROM keys"))


# --- stdout --------------------------------------------------------------------------------------

COMMANDS = [
    *(
        "--version",
        "--help",
        "keys --help",
        "keys list",
        "keys create",
        "keys create --json",
        "keys list --json",
    ),
    *("keys rotate-signing", "keys revoke key-id", "databases list", "databases create d --plan pro"),
    *("databases set-plan default pro", "check", "export", "backup copy", "import lines"),
]


@pytest.mark.parametrize(
    ("command", "stdout"),
    [(command, ">/dev/full") for command in COMMANDS]
    + [(command, how) for command in ("--help", "keys create", "check", "export") for how in (">&-", ">&3")],
)
def test_output_that_cannot_be_written_is_one_line(
    data: Path, monkeypatch: pytest.MonkeyPatch, command: str, stdout: str
) -> None:
    monkeypatch.chdir(data)
    Path("lines").write_text('{"collection": "c", "document": {}}')
    where: list[str | Path] = [] if "--" in command.split()[-1] and "json" not in command else ["--data", data]
    code, output, error = ends(start(stdout, *command.split(), *where))
    assert (code, output) == (6, "")
    assert error == f"paperdb: Cannot write to stdout: {REASONS[stdout]}\n"
    assert keys(data) == 1  # keys that could not be shown were not created


@pytest.mark.executable
def test_export_into_a_broken_pipe_says_so(data: Path) -> None:
    apply_all(data / "paperdb.sqlite", *(inserting({"pad": "x" * 10_000}) for _ in range(100)))
    script = 'set -o pipefail; "$@" | head -n 1'
    done = subprocess.run(
        ["bash", "-c", script, "bash", *COMMAND, "export", "--data", str(data)],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=30,
        check=False,
    )
    assert done.returncode == 6
    assert done.stdout.count("\n") == 1
    assert done.stderr == "paperdb: Cannot write to stdout: Broken pipe\n"


@pytest.mark.parametrize("stdout", [">/dev/full", ">&-"])
def test_listen_that_cannot_write_says_so(server: Server, collection: str, stdout: str) -> None:
    """tests/client/test_listen.py covers a broken pipe, which ends it."""
    server.insert(collection, {})
    where = ("--url", server.url, "--key", server.key, "--since", "0")
    code, _, error = ends(start(stdout, "listen", collection, *where))
    assert code == 6
    assert error.endswith(f"paperdb: Cannot write to stdout: {REASONS[stdout]}\n")
    assert "Traceback" not in error


@broken
def test_first_key_that_cannot_be_shown_is_not_created(
    start_server: StartServer, tmp_path: Path, stdout: str
) -> None:
    data = tmp_path / "new"
    code, output, error = ends(start(stdout, "serve", "--port", "0", "--data", data))
    assert (code, output) == (6, "")
    assert error == f"paperdb: Cannot write to stdout: {REASONS[stdout]}\n"
    assert keys(data) == 0
    server = start_server(data=data)
    assert server.insert("c", {}, key=server.key)


@pytest.mark.parametrize(("stdout", "first"), [*((how, True) for how in REASONS), (">&-", False)])
def test_server_without_a_secret_to_show_continues(
    data: Path, tmp_path: Path, stdout: str, first: bool
) -> None:
    where = tmp_path / "new" if first else data
    with start(stdout, "serve", "--port", "0", "--data", where, env={"PAPERDB_API_KEY": GOOD_KEY}) as serving:
        assert serving.stderr is not None
        line = serving.stderr.readline()
        assert re.search(rf"WARNING paperdb: .*{REASONS[stdout]}; listening on http://127.0.0.1:\d+\n", line)
        serving.terminate()
        _, rest = serving.communicate(timeout=20)
    assert serving.returncode == 0
    assert "WARNING" not in rest
    assert "Exception" not in rest


def test_key_that_cannot_be_stored_is_not_shown(data: Path) -> None:
    done = run_here("keys", "create", "--database", "nowhere", "--data", data)
    assert (done.exit_code, done.stdout) == (1, "")


@pytest.mark.executable
def test_key_shown_but_not_stored_is_reported(small_disk: Path) -> None:
    with closing(connect(new_file(small_disk))) as other:
        other.execute("SELECT * FROM keys").fetchall()  # so that all files exist
        fill(small_disk / "filler")
        done = run_here("keys", "create", "--data", small_disk)
        assert (done.exit_code, done.stdout.count("pdb_sk_")) == (6, 1)
        assert done.stderr.endswith("disk is full; the key that was shown is not stored\n")
        assert other.execute("SELECT count(*) FROM keys").fetchone() == (1,)


# --- stderr, and all of them ---------------------------------------------------------------------


@pytest.mark.executable
@pytest.mark.parametrize("stderr", ["2>/dev/full", "2>&-", "2>&3"])
def test_error_with_closed_stderr_keeps_its_exit_code(data: Path, stderr: str) -> None:
    assert ends(start(stderr, "keys", "revoke", "nobody", "--data", data)) == (1, "", "")
    assert ends(start(stderr, "keys", "lst")) == (2, "", "")
    assert ends(start(f"{stderr} >&-", "keys", "list", "--data", data)) == (6, "", "")


@pytest.mark.parametrize("stderr", ["2>/dev/full", "2>&-", "2>&3"])
def test_server_with_unwritable_log_serves_and_drains(data: Path, stderr: str) -> None:
    with start(stderr, "serve", "--port", "0", "--data", data) as serving:
        assert serving.stdout is not None
        assert serving.stdout.readline().startswith("Listening on ")
        serving.terminate()
        serving.communicate(timeout=20)
    assert serving.returncode == 0


@pytest.mark.executable
def test_file_never_replaces_a_closed_stream(data: Path) -> None:
    """Otherwise lines for stderr would go into it."""
    with start("<&- >&- 2>&-", "serve", "--port", "0", "--data", data) as serving:
        wait_until(lambda: (data / "paperdb.sock").exists())
        streams = {os.readlink(f"/proc/{serving.pid}/fd/{number}") for number in (0, 1, 2)}
        assert streams == {"/dev/null"}
        serving.terminate()
    assert serving.returncode == 0


@pytest.mark.executable
def test_import_from_a_closed_stdin_has_nothing_to_import(data: Path) -> None:
    code, output, error = ends(start("<&-", "import", "--data", data))
    assert (code, error) == (0, "")
    assert output.startswith("0 documents inserted")


# --- a signal just after a write -----------------------------------------------------------------

INTERRUPTING: Final = """
import os, signal, sys
kernel_write = os.write
def write(number, data):
    written = kernel_write(number, data)
    if number == 1 and b'"last"' in bytes(data):
        signal.raise_signal(signal.SIGINT)
    return written
os.write = write
from paperdb_trio.cli import main
main()
"""
"""`paperdb`, with a SIGINT that comes after the kernel took the bytes and before Python's buffer knows."""


def interrupted(*arguments: str | Path) -> tuple[int, str, str]:
    with subprocess.Popen(
        [sys.executable, "-c", INTERRUPTING, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    ) as process:
        return ends(process)


def test_listen_prints_nothing_twice_when_a_signal_ends_it(server: Server, collection: str) -> None:
    ids = ["first", "last", "later"]
    for id in ids:
        server.insert(collection, {"_id": id})
    where = ("--url", server.url, "--key", server.key, "--since", "0")
    code, output, error = interrupted("listen", collection, *where)
    assert [json.loads(line)["data"]["_id"] for line in output.splitlines()] == ids[:2]
    assert code == 0
    assert "Traceback" not in error


def test_export_prints_nothing_twice_when_a_signal_ends_it(data: Path) -> None:
    size = 1000
    texts = [{"_id": "last" if n == size // 2 else f"{n}", "pad": "x" * 500} for n in range(size)]
    apply_all(data / "paperdb.sqlite", *map(inserting, texts))
    code, output, error = interrupted("export", "--data", data)
    assert code == 128 + 2
    assert error == ""
    *whole, _ = output.split("\n")
    found = [json.loads(line)["document"]["_id"] for line in whole]
    assert found == ["a", *(text["_id"] for text in texts)][: len(found)]
    assert size // 2 < len(found) < size


# --- a reader that pauses ------------------------------------------------------------------------

IMPATIENT: Final = """
import select
from paperdb_trio.cli import main, spooling, streams
streams.UNREAD_SECONDS, spooling.PAUSES = 0.05, 2
count = spooling.Spooling.paused
def paused(spooling):
    if select.select([0], [], [], 0)[0]:
        count(spooling)
spooling.Spooling.paused = paused
main()
"""
"""`paperdb`, of which pauses count once its stdin is closed."""


def test_export_that_nobody_reads_ends_its_snapshot_and_loses_nothing(data: Path) -> None:
    """The write-ahead log can start over, and the output is that of one moment all the same."""
    file = data / "paperdb.sqlite"
    apply_all(file, *(inserting({"_id": f"{n}", "pad": "x" * 10_000}) for n in range(100)))
    with (
        subprocess.Popen(
            [sys.executable, "-c", IMPATIENT, "export", "--data", str(data)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=ENVIRONMENT,
        ) as process,
        closing(connect(file)) as another,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        first = os.read(process.stdout.fileno(), 1).decode()
        apply_all(file, inserting({"_id": "later"}), Delete(DATABASE, "c", "99", None))

        def log_is_free() -> bool:
            busy, _, _ = another.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            return not busy

        another.set_busy_timeout(0)
        assert not log_is_free()
        process.stdin.close()
        process.stdin = None
        wait_until(log_is_free)
        code, output, error = ends(process)
    assert (code, error) == (0, "")
    found = [json.loads(line)["document"]["_id"] for line in (first + output).splitlines()]
    assert found == ["a", *(f"{n}" for n in range(100))]
