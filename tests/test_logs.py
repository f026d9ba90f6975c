"""The log at its most verbose: never a key or a token, however it was sent."""

from __future__ import annotations

import logging
import subprocess

import pytest

from paperdb_trio.logs import SparingLog
from tests.conftest import StartServer, need, wait_until


def test_keys_and_tokens_are_not_logged(start_server: StartServer) -> None:
    server = start_server("--log-level", "debug")
    token = server.token("x")
    for protocol in ("--http1.1", "--http2-prior-knowledge"):
        for secret in (server.key, token):
            for where in (
                ["-H", f"Authorization: Bearer {secret}", f"{server.url}/x/changes"],
                ["-H", f"X-API-Key: {secret}", f"{server.url}/x/docs"],
                [f"{server.url}/x/changes?token={secret}"],
                [f"{server.url}/a/b/c/d?token={secret}"],
            ):
                command = [need("curl"), "-s", "-o", "/dev/null", "--max-time", "5", protocol, *where]
                assert subprocess.run(command, check=False).returncode == 0
    with server.connect("x") as ws:
        ws.send(f'{{"action": "auth", "token": "{token}"}}')
        ws.recv()
    assert server.stop() == 0
    wait_until(lambda: "stopped" in server.stderr)
    assert server.key not in server.stderr
    assert token.rpartition(".")[2] not in server.stderr


def test_fault_that_lasts_is_one_line_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    now = 100.0
    sparing = SparingLog(logging.getLogger("paperdb.test"), lambda: now)
    for _ in range(5):
        sparing.error("no room for %s", "a")
    sparing.warning("another fault")
    now += 59.9
    sparing.error("no room for %s", "b")
    now += 0.2
    sparing.error("no room for %s", "c")
    now += 60.1
    sparing.error("no room for %s", "d")
    assert [record.getMessage() for record in caplog.records] == [
        "no room for a",
        "another fault",
        "no room for c; and 5 more times since the last such line",
        "no room for d",
    ]
