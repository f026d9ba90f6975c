"""The log at its most verbose: never a key or a token, however it was sent."""

from __future__ import annotations

import subprocess

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
