"""Running `paperdb` as a process, and reading how it failed."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from click.testing import CliRunner, Result

from paperdb_trio.cli import main
from tests.conftest import COMMAND, ENVIRONMENT


def run(*arguments: str | Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=ENVIRONMENT | (env or {}),
        timeout=30,
        check=False,
    )


def fails(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    """It ended with this code, nothing but one line of ours on stderr, and all of the words in it."""
    assert done.returncode == code, done.stderr
    assert re.fullmatch(r"paperdb: [^\n]+\n", done.stderr), done.stderr
    for word in words:
        assert word in done.stderr


def run_here(*arguments: str | Path, input: bytes | None = None) -> Result:
    """The same without a process of its own: for what needs none."""
    unset = {name: None for name in os.environ if name.startswith("PAPERDB_")}
    return CliRunner().invoke(main, [*map(str, arguments)], input=input, env=unset, prog_name="paperdb")


def fails_here(done: Result, code: int, *words: str) -> None:
    """Like `fails`."""
    assert done.exit_code == code, done.output
    assert re.fullmatch(r"paperdb: [^\n]+\n", done.stderr), done.stderr
    for word in words:
        assert word in done.stderr
