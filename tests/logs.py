"""Reading a server's log, and requests that no client library sends. A server logs with `--log-format json`."""

from __future__ import annotations

import json
import socket
from typing import Any

from tests.conftest import Server, wait_until


def lines(server: Server, logger: str) -> list[dict[str, Any]]:
    """The lines of a logger, in order."""
    found = [json.loads(line) for line in server.stderr.splitlines(keepends=True) if line.endswith("\n")]
    return [line for line in found if line["logger"] == logger]


def line_of(server: Server, logger: str, **members: Any) -> dict[str, Any]:
    """The only line of a logger with these members, as soon as it is there."""

    def found() -> list[dict[str, Any]]:
        return [line for line in lines(server, logger) if members.items() <= line.items()]

    wait_until(lambda: bool(found()))
    (line,) = found()
    return line


def raw(server: Server, request: str) -> str:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
        client.sendall(request.encode())
        response = b""
        while b"\r\n\r\n" not in response and (data := client.recv(65536)):
            response += data
    return response.decode("latin-1")


HANDSHAKE = (
    "GET /?{query} HTTP/1.1\r\nHost: a\r\nX-Request-Id: mine\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)
