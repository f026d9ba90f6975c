"""Run `paperdb` as a process, and check its failures."""

from __future__ import annotations

import logging
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from click.testing import CliRunner

from paperdb_trio.cli import main
from paperdb_trio.logs import LIBRARIES
from tests.conftest import COMMAND, ENVIRONMENT
from tests.zygote import run as run_command


def run(*arguments: str | Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [*COMMAND, *map(str, arguments)]
    return run_command(command, text=True, env=ENVIRONMENT | (env or {}), timeout=30)


def fails(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    """It exited with this code, and stderr is one line of ours that contains all of the words."""
    assert done.returncode == code, done.stderr
    assert re.fullmatch(r"paperdb: [^\n]+\n", done.stderr), done.stderr
    for word in words:
        assert word in done.stderr


class Done(NamedTuple):
    exit_code: int
    stdout: str
    stderr: str


def run_here(*arguments: str | Path, input: bytes | None = None, env: dict[str, str] | None = None) -> Done:
    """The same in this process, unless the tests run an executable."""
    if "PAPERDB_TEST_COMMAND" in os.environ:
        done = subprocess.run(
            [*COMMAND, *map(str, arguments)],
            input=input,
            capture_output=True,
            env=ENVIRONMENT | (env or {}),
            timeout=30,
            check=False,
        )
        return Done(done.returncode, done.stdout.decode(), done.stderr.decode())
    unset = {name: None for name in os.environ if name.startswith("PAPERDB_")}
    here = {**unset, **(env or {})}
    with _logs_as_before():
        result = CliRunner().invoke(main, [*map(str, arguments)], input=input, env=here, prog_name="paperdb")
    return Done(result.exit_code, result.stdout, result.stderr)


@contextmanager
def _logs_as_before() -> Iterator[None]:
    """`serve` sets up the logs of its process."""
    loggers = [logging.getLogger(), *map(logging.getLogger, LIBRARIES)]
    levels, source = [one.level for one in loggers], logging._srcfile
    flags = logging.logThreads, logging.logProcesses, logging.logMultiprocessing
    try:
        yield
    finally:
        for one, level in zip(loggers, levels, strict=True):
            one.setLevel(level)
        logging._srcfile = source
        logging.logThreads, logging.logProcesses, logging.logMultiprocessing = flags


def fails_here(done: Done, code: int, *words: str) -> None:
    """Like `fails`."""
    assert done.exit_code == code, done
    assert re.fullmatch(r"paperdb: [^\n]+\n", done.stderr), done.stderr
    for word in words:
        assert word in done.stderr
