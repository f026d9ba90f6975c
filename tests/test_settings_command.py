"""`paperdb config`, the variables in each command's help, and what a start says of its page and its keys."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import click
import pytest

from paperdb_trio.cli import main
from paperdb_trio.config import Settings
from tests.auth.commands import fails_here, run_here
from tests.conftest import StartServer
from tests.test_docs import commands

GOOD_KEY = "pdb_sk_" + "k" * 43


def config(*arguments: str, **env: str) -> dict[str, Any]:
    done = run_here("config", "--json", *arguments, env=env)
    assert done.exit_code == 0, done.stderr
    printed: dict[str, Any] = json.loads(done.stdout)
    return printed


# --- paperdb config ------------------------------------------------------------------------------


def test_config_prints_each_value_and_where_it_comes_from(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text("port = 1\nmax_wait = 30\ndemo = true\n")
    printed = config("--config", str(file), "--port", "3", PAPERDB_PORT="2", PAPERDB_DEMO="false")
    defaults = dataclasses.asdict(Settings())
    given = {
        "port": {"value": 3, "source": "--port"},
        "max_wait": {"value": 30, "source": f"file {file}"},
        "demo": {"value": False, "source": "PAPERDB_DEMO"},
    }
    assert printed == {name: {"value": value, "source": "default"} for name, value in defaults.items()} | given


def test_text_of_config_is_a_file_for_it(tmp_path: Path) -> None:
    options = ("--port", "3", "--data", 'a"\\é \t\u2028😀', "--demo", "--max-wait", "1.5")
    done = run_here("config", *options)
    file = tmp_path / "c.toml"
    file.write_text(done.stdout, "utf-8")
    again, expected = config("--config", str(file)), config(*options)
    assert {name: one["value"] for name, one in again.items()} == {
        name: one["value"] for name, one in expected.items()
    }
    assert re.search(r"^port = 3 +# --port$", done.stdout, re.MULTILINE)
    assert re.search(r'^host = "127.0.0.1" +# default$', done.stdout, re.MULTILINE)


def test_config_hides_secrets(tmp_path: Path) -> None:
    for arguments in ((), ("--json",)):
        done = run_here("config", *arguments, env={"PAPERDB_METRICS_KEY": "hush"})
        assert done.exit_code == 0
        assert "hush" not in done.stdout
        assert "PAPERDB_METRICS_KEY" in done.stdout
    assert config(PAPERDB_METRICS_KEY="hush")["metrics_key"] == {
        "value": None,
        "source": "PAPERDB_METRICS_KEY",
        "hidden": True,
    }


@pytest.mark.parametrize(
    ("arguments", "env"),
    [
        (["--port", "70000"], {}),
        (["--log-format", "xml"], {}),
        ([], {"PAPERDB_ACCESS_LOG": "always"}),
        ([], {"PAPERDB_PROT": "1"}),
        (["--config", "/no/such/file"], {}),
    ],
)
def test_config_refuses_what_serve_refuses(tmp_path: Path, arguments: list[str], env: dict[str, str]) -> None:
    data = ["--data", str(tmp_path / "d")]
    by_config = run_here("config", *arguments, *data, env=env)
    fails_here(by_config, 2)
    assert by_config == run_here("serve", *arguments, *data, env=env)


# --- help ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "command"), list(commands()), ids=lambda part: part if isinstance(part, str) else ""
)
def test_help_names_each_variable_that_a_command_reads(name: str, command: click.Command) -> None:
    shown = run_here(*name.split()[1:], "--help").stdout
    variables = {str(option.envvar) for option in command.params if option.envvar}
    assert variables <= set(re.findall(r"PAPERDB_[A-Z_]+", shown))
    reads = {"--data": "PAPERDB_DATA", "--url": "PAPERDB_URL", "--key": "PAPERDB_API_KEY"}
    for option in command.params:
        for opt in option.opts:
            assert opt not in reads or reads[opt] in variables, opt


def test_help_of_serve_names_the_first_key() -> None:
    assert "PAPERDB_API_KEY" in run_here("serve", "--help").stdout
    assert main.commands.keys() >= {"serve", "config", "listen", "types"}


# --- the banner ----------------------------------------------------------------------------------


def banner(start_server: StartServer, data: Path, **env: str) -> str:
    """What a start prints after its address."""
    server = start_server(data=data, env=env)
    output = server.process.stdout
    assert output is not None
    server.process.terminate()
    printed = output.read()
    assert server.process.wait(20) == 0
    return printed


def test_banner_names_the_page(start_server: StartServer, tmp_path: Path) -> None:
    server = start_server(data=tmp_path / "d")
    assert server.process.stdout is not None
    line = server.process.stdout.readline()
    assert line == f"Open {server.url}/ in a browser to see the data live.\n"
    assert "<!doctype html>" in server.request("GET", "/").text.lower()


def test_start_says_how_to_make_a_key(start_server: StartServer, tmp_path: Path) -> None:
    data = tmp_path / "the data"
    assert start_server(data=data).stop() == 0
    create = f"keys create --data '{data}'\n"
    said = banner(start_server, data)
    assert re.search(rf"^To create another API key: \S+ {re.escape(create)}", said, re.MULTILINE)
    assert "PAPERDB_API_KEY" not in said
    said = banner(start_server, data, PAPERDB_API_KEY=GOOD_KEY)
    assert "PAPERDB_API_KEY is not a valid key here" in said
    for key in json.loads(run_here("keys", "list", "--json", "--data", data).stdout):
        run_here("keys", "revoke", key["id"], "--data", data)
    said = banner(start_server, data)
    assert re.search(rf"^No API key is valid. To create one: \S+ {re.escape(create)}", said, re.MULTILINE)
