"""The PostgreSQL of the tests (tests/postgres.py): it must not outlive them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from tests.conftest import wait_until
from tests.postgres import Postgres

STARTS_AND_HANGS = """
from tests.postgres import Postgres
server = Postgres()
print(server.process.pid, server.home, flush=True)
input()
"""


def test_a_copy_has_what_its_template_has(postgres: Postgres) -> None:
    template = postgres.new()
    with postgres.connect(template) as connection:
        connection.execute("CREATE TABLE t AS SELECT 7 AS n")
    copy = postgres.new(template)
    with postgres.connect(copy) as connection:
        assert connection.execute("SELECT n FROM t").fetchall() == [(7,)]
        postgres.drop(copy)
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")


def test_it_ends_with_a_process_that_is_killed() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", STARTS_AND_HANGS], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    pid, home = process.stdout.readline().split()
    process.kill()
    process.communicate()
    wait_until(lambda: not Path(f"/proc/{pid}").exists())
    subprocess.run(["rm", "-r", home], check=True)
