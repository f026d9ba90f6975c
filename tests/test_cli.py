"""The command line as a process: its exit codes, its one-line errors, and the files that it leaves."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import socket
import subprocess
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from paperdb_trio import __version__
from paperdb_trio.config import Settings
from paperdb_trio.store.sqlite.file import connect
from tests import zygote
from tests.auth.commands import Done, fails, fails_here, run, run_here
from tests.conftest import COMMAND, ENVIRONMENT, Server, StartServer, fill, lacking, need
from tests.store.tools import content, new_file
from tests.test_config import service_variables

GOOD_KEY = "pdb_sk_" + "0aA_-" * 9


def fails_as_usage(done: Done, *words: str) -> None:
    """Click's format: the usage, then the error."""
    assert done.exit_code == 2, done
    assert done.stdout == ""
    _, _, error = done.stderr.partition("Error: ")
    for word in words:
        assert word in error


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data directory with a database, without a server."""
    new_file(tmp_path)
    return tmp_path


# --- starting ------------------------------------------------------------------------------------


@pytest.mark.smoke
@pytest.mark.executable
def test_first_start_prints_a_key_once_and_commands_that_work(start_server: StartServer) -> None:
    server = start_server()
    assert re.fullmatch(r"pdb_sk_[\w-]{43}", server.key)
    assert server.insert("c", {})["_id"]
    assert server.stop() == 0
    key = server.key
    server.key = ""
    server.start()
    assert server.key == ""  # a second start shows none
    assert server.request("GET", "/c/count", key=key).json() == {"count": 1}


@pytest.mark.smoke
@pytest.mark.executable
def test_given_first_key_is_used_and_not_printed(start_server: StartServer) -> None:
    server = start_server(env={"PAPERDB_API_KEY": GOOD_KEY})
    assert server.key == ""
    assert server.insert("c", {}, key=GOOD_KEY)["_id"]
    listed = json.loads(server.cli("keys", "list", "--json"))
    assert [(key["database"], key["kind"]) for key in listed] == [("default", "secret")]


def test_given_key_counts_only_on_a_first_start(start_server: StartServer, tmp_path: Path) -> None:
    first = start_server(data=tmp_path / "d")
    assert first.stop() == 0
    second = start_server(data=tmp_path / "d", env={"PAPERDB_API_KEY": GOOD_KEY})
    assert second.request("GET", "/collections", key=GOOD_KEY).status_code == 401
    assert second.request("GET", "/collections", key=first.key).status_code == 200


@pytest.mark.parametrize("key", ["secret", GOOD_KEY[:49], "pdb_pk_" + "a" * 43])
def test_weak_first_key_is_refused_and_a_good_one_can_follow(
    start_server: StartServer, tmp_path: Path, key: str
) -> None:
    done = run_here("serve", "--data", tmp_path / "d", "--port", "0", env={"PAPERDB_API_KEY": key})
    fails_here(done, 2, "PAPERDB_API_KEY", "43")
    assert key not in done.stderr
    if key == "secret":
        server = start_server(data=tmp_path / "d", env={"PAPERDB_API_KEY": GOOD_KEY})
        assert server.insert("c", {}, key=GOOD_KEY)["_id"]


@pytest.mark.smoke
@pytest.mark.executable
def test_second_server_on_a_directory_is_refused_and_the_first_continues(server: Server) -> None:
    done = run("serve", "--data", server.data, "--port", "0")
    fails(done, 5, str(server.data), f"pid {server.pid}")
    assert done.stdout == ""
    assert server.request("GET", "/readyz").status_code == 200


@pytest.mark.executable
def test_directory_is_free_again_after_a_kill(start_server: StartServer) -> None:
    server = start_server()
    server.insert("c", {"key": "a"})
    server.kill()
    server.start()
    assert server.request("GET", "/c/docs/a").status_code == 200


@pytest.mark.smoke
@pytest.mark.executable
def test_port_in_use_is_refused(data: Path) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = str(taken.getsockname()[1])
        fails(run("serve", "--data", data, "--port", port), 7, f"127.0.0.1:{port}", "in use")


@pytest.mark.parametrize("workers", ["1", "2"])
def test_too_few_open_files_are_named(data: Path, workers: str) -> None:
    serve = [*COMMAND, "serve", "--data", str(data), "--port", "0", "--workers", workers]
    limited = ["sh", "-c", 'ulimit -n 40; exec "$@"', "sh", *serve]
    done = subprocess.run(limited, capture_output=True, text=True, env=ENVIRONMENT, timeout=30, check=False)
    fails(done, 1, "limit of open files is 40", "64")


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid"])
def test_foreign_address_is_refused(data: Path, host: str) -> None:
    fails(run("serve", "--data", data, "--port", "0", "--host", host), 7, host)


@pytest.mark.smoke
@pytest.mark.executable
def test_first_start_is_short_and_coloured_only_on_a_terminal(tmp_path: Path) -> None:
    try:
        ours, theirs = os.openpty()
    except OSError as error:
        lacking(f"needs a terminal, and there is none: {error}")
    serving = subprocess.Popen(
        [*COMMAND, "serve", "--port", "0", "--data", str(tmp_path / "d")],
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=subprocess.DEVNULL,
        env=ENVIRONMENT,
    )
    os.close(theirs)
    shown = b""
    try:
        while b"/messages/docs" not in shown:
            shown += os.read(ours, 4096)
    finally:
        serving.terminate()
        serving.wait(20)
        os.close(ours)
    assert b"\x1b[" in shown
    assert shown.count(b"\n") < 15
    piped = run("keys", "create", "--data", tmp_path / "d")
    assert "\x1b" not in piped.stdout
    plain = re.sub(rb"\x1b\[[0-9;]*m", b"", shown).decode()
    assert plain.index("First secret key") < plain.index("Listening on http://127.0.0.1:") < plain.index("curl")


@pytest.mark.executable
def test_server_can_be_process_1_of_a_container(tmp_path: Path) -> None:
    """Process 1 gets only the signals that it handles, and must reap its children itself."""
    alone = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
    need(*alone, "true")
    outer = subprocess.Popen(
        [*alone, *COMMAND, "serve", "--port", "0", "--data", str(tmp_path / "d")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )
    try:
        assert outer.stdout is not None
        shown = [outer.stdout.readline() for _ in range(2)]
        assert shown[1].startswith("Listening on"), shown
        assert (tmp_path / "d" / "paperdb.lock").read_text().strip() == "1"
        (server,) = Path(f"/proc/{outer.pid}/task/{outer.pid}/children").read_text().split()
        os.kill(int(server), signal.SIGTERM)
        _, errors = outer.communicate(timeout=20)
    finally:
        outer.kill()
        outer.wait()
    assert outer.returncode == 0
    assert "SIGTERM: draining" in errors
    assert "Traceback" not in errors


# --- the data directory --------------------------------------------------------------------------

COMMANDS = [["serve", "--port", "0"], ["keys", "list"], ["check"]]
commands = pytest.mark.parametrize("command", COMMANDS, ids=" ".join)


def overwrite(start: int, length: int) -> Callable[[Path], object]:
    def damage(file: Path) -> None:
        with file.open("r+b") as opened:
            opened.seek(start)
            opened.write(b"\xa5" * length)

    return damage


@commands
@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda file: file.write_bytes(b"this is no database, whatever it is " * 500), id="text"),
        pytest.param(lambda file: os.truncate(file, 5000), id="cut short"),
        pytest.param(
            overwrite(3 * 4096, 6 * 4096),
            id="pages",
        ),
    ],
)
def test_damaged_file_is_named_and_left_unchanged(
    data: Path, command: list[str], damage: Callable[[Path], object]
) -> None:
    file = data / "paperdb.sqlite"
    damage(file)
    before = file.read_bytes()
    fails_here(run_here(*command, "--data", data), 3, str(file), "damaged")
    assert file.read_bytes() == before


@commands
def test_directory_of_a_newer_version_is_left_alone(data: Path, command: list[str]) -> None:
    with closing(connect(data / "paperdb.sqlite")) as connection:
        connection.execute(
            "INSERT INTO _sqlite_migrations (migration_set, name) VALUES ('paperdb', 'm999_flying')"
        )
    fails_here(run_here(*command, "--data", data), 4, str(data), "newer version", "m999_flying")


@pytest.mark.parametrize("path", ["file/d", "/proc/d", "file"])
def test_directory_that_cannot_be_created_is_refused(tmp_path: Path, path: str) -> None:
    (tmp_path / "file").write_text("")
    fails_here(run_here("serve", "--data", tmp_path / path, "--port", "0"), 6, path)


@pytest.mark.parametrize(
    "command",
    [
        "keys list",
        "keys create",
        "keys revoke x",
        "keys rotate-signing",
        "databases list",
        "databases create x --plan pro",
        "databases set-plan x pro",
        "check",
        "export",
        "import",
        "backup copy",
    ],
)
def test_other_commands_need_an_existing_directory_and_create_none(tmp_path: Path, command: str) -> None:
    done = run_here(*command.split(), "--data", tmp_path / "none")
    assert (done.exit_code, done.stdout) == (1, "")
    assert re.fullmatch(r"paperdb: There is no PaperDB in [^\n]+none[^\n]+\n", done.stderr)
    assert list(tmp_path.iterdir()) == []


def by_nobody(*arguments: str | Path, **more: Any) -> subprocess.CompletedProcess[str]:
    """A command without root's rights."""
    options = {"user": 65534, "group": 65534, "extra_groups": []} if os.geteuid() == 0 else {}
    return zygote.run(
        [*COMMAND, *map(str, arguments)], text=True, env=ENVIRONMENT, timeout=30, **options, **more
    )


@pytest.mark.executable
@commands
def test_directory_without_permission_is_refused(data: Path, command: list[str]) -> None:
    data.chmod(0)
    try:
        done = by_nobody(*command, "--data", data)
    finally:
        data.chmod(0o700)
    fails(done, 6, str(data), "ermission")


@pytest.mark.executable
def test_full_disk_is_one_line(small_disk: Path) -> None:
    """Both in an empty directory and beside a database, which stays unchanged."""
    new_file(small_disk)
    fill(small_disk / "filler")
    before = content(small_disk / "paperdb.sqlite")
    fails_here(
        run_here("serve", "--data", small_disk / "new", "--port", "0"), 6, str(small_disk), "o space left"
    )
    fails_here(run_here("keys", "create", "--data", small_disk), 6, str(small_disk), "full")
    assert content(small_disk / "paperdb.sqlite") == before


def test_directory_and_its_files_are_for_the_owner_only(server: Server) -> None:
    for path in server.data.iterdir():
        assert path.stat().st_mode & 0o077 == 0, path


# --- options -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["serve", "--prot", "1"], ["--prot", "--port"]),
        (["serve", "--max-body-byte", "1"], ["--max-body-byte", "--max-body-bytes"]),
        (["serve", "--port", "abc"], ["--port", "abc"]),
        (["serve", "--port"], ["--port"]),
        (["srve"], ["'srve'", "'serve'"]),
        (["keys", "lst"], ["'lst'", "'list'"]),
        (["databases", "set_plan", "a", "pro"], ["'set_plan'", "'set-plan'"]),
        (["databases", "create", "x"], ["--plan"]),
        (["databases", "create", "x", "--plan", "gold"], ["gold", "free", "pro", "team"]),
        (["databases", "set-plan", "x", "gold"], ["gold"]),
        (["keys", "revoke"], ["ID"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_wrong_option_or_command_is_named_with_the_nearest(arguments: list[str], words: list[str]) -> None:
    fails_as_usage(run_here(*arguments), *words)


def test_option_overrides_its_variable_which_overrides_the_file(tmp_path: Path) -> None:
    """Each names a port that is out of range; the error shows which one counts."""
    config = tmp_path / "c.toml"
    config.write_text("port = 70003\n")
    arguments = ["serve", "--data", str(tmp_path / "d"), "--config", str(config)]
    fails_here(run_here(*arguments), 2, "70003", "'port'")
    fails_here(run_here(*arguments, env={"PAPERDB_PORT": "70002"}), 2, "70002")
    fails_here(run_here(*arguments, "--port", "70001", env={"PAPERDB_PORT": "70002"}), 2, "70001")
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize(
    ("env", "config", "words"),
    [
        ({"PAPERDB_PROT": "1"}, None, ["PAPERDB_PROT", "'PAPERDB_PORT'"]),
        ({}, "prot = 1", ["'prot'", "'port'"]),
        ({}, "port = ", ["Cannot read"]),
        ({"PAPERDB_LOG_LEVEL": "loud"}, None, ["log_level", "loud"]),
    ],
)
def test_wrong_variable_or_key_is_named(
    tmp_path: Path, env: dict[str, str], config: str | None, words: list[str]
) -> None:
    if config is not None:
        (tmp_path / "c.toml").write_text(config)
        env = env | {"PAPERDB_CONFIG": str(tmp_path / "c.toml")}
    fails_here(run_here("serve", "--data", tmp_path / "d", "--port", "0", env=env), 2, *words)


@pytest.mark.executable
@pytest.mark.parametrize("command", ["keys list", "check", "listen c --key k"])
def test_every_command_refuses_an_unknown_variable(data: Path, command: str) -> None:
    done = run_here(*command.split(), env={"PAPERDB_DTA": str(data)})
    fails_here(done, 2, "PAPERDB_DTA", "'PAPERDB_DATA'")


@pytest.mark.executable
def test_service_of_our_name_stops_no_command(tmp_path: Path) -> None:
    """Kubernetes announces it to each pod. Its PAPERDB_PORT is an address, so the file's port counts."""
    (tmp_path / "c.toml").write_text("port = 0\n")
    env = ENVIRONMENT | {**service_variables("PAPERDB"), "PAPERDB_CONFIG": str(tmp_path / "c.toml")}
    command = [*COMMAND, "serve", "--data", str(tmp_path / "d")]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env
    ) as serving:
        assert serving.stdout is not None
        assert serving.stderr is not None
        while not (line := serving.stdout.readline()).startswith("Listening on"):
            assert line
        assert not line.endswith(":8000\n")
        first = serving.stderr.readline()
        serving.terminate()
        rest = serving.stderr.read()
    assert serving.returncode == 0
    assert first.startswith("paperdb: PAPERDB_PORT=tcp://10.0.0.1:8000 ")
    assert "enableServiceLinks: false" in first
    assert "PAPERDB_PORT" not in rest
    done = run("keys", "list", "--data", tmp_path / "d", env=service_variables("PAPERDB"))
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.smoke
@pytest.mark.executable
def test_version_names_ours_and_its_foundations() -> None:
    done = run("--version")
    assert done.returncode == 0
    numbers = r"\(Python 3\.[\d.]+, SQLite 3\.[\d.]+, trio 0\.[\d.]+\)"
    assert re.fullmatch(rf"paperdb {re.escape(__version__)} {numbers}\n", done.stdout)
    assert done.stderr == ""


def test_help_names_every_setting_with_its_variable_and_default() -> None:
    done = run("serve", "--help", env={"COLUMNS": "200"})
    assert done.returncode == 0
    text = re.sub(r"\s+", " ", done.stdout)
    for setting in dataclasses.fields(Settings):
        assert f"--{setting.name.replace('_', '-')} " in text
        assert f"PAPERDB_{setting.name.upper()}" in text
        assert f"[default: {setting.default}]" in text
