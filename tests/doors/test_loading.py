"""When Quart or Hypercorn cannot be loaded: one log line for operators, a clean close for clients."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.conftest import COMMAND, ENVIRONMENT, Server, StartServer
from tests.net.http2 import Http2

LINE = "Quart and Hypercorn cannot be loaded: ImportError: cannot import name 'NoSuchContext' from 'quart.ctx'"


@pytest.fixture
def broken(tmp_path: Path) -> dict[str, str]:
    """An environment whose quart-trio imports a name that Quart lacks, as 0.12 does with Quart 0.23."""
    (tmp_path / "quart_trio.py").write_text("from quart.ctx import NoSuchContext\n")
    return {"PYTHONPATH": str(tmp_path)}


def errors(server: Server) -> list[str]:
    return [line for line in server.stderr.splitlines() if " ERROR " in line]


def test_log_has_one_line_and_clients_are_sent_to_http_1(
    start_server: StartServer, broken: dict[str, str]
) -> None:
    server = start_server(env=broken)
    for _ in range(3):
        with Http2(server) as client:
            client.ask("/healthz")
            client.flush()
            client.drain()
            assert client.went_away == 0xD  # HTTP_1_1_REQUIRED
    assert server.insert("c", {})
    lines = errors(server)
    assert 1 <= len(lines) <= int(server.workers)
    for line in lines:
        assert "HTTP/2 is not served." in line
        assert LINE in line
    assert server.stop() == 0
    assert "Traceback" not in server.stderr


def test_server_with_quart_only_does_not_start(tmp_path: Path, broken: dict[str, str]) -> None:
    done = subprocess.run(
        [*COMMAND, "serve", "--http", "quart", "--port", "0", "--data", str(tmp_path / "d")],
        capture_output=True,
        text=True,
        env={**ENVIRONMENT, **broken},
        timeout=20,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith(f"paperdb: {LINE}")
    assert done.stderr.count("\n") == 1
