"""A server for the SDKs that breaks its word. After `ready`, each connection gets one of Autobahn's cases, or a
message that is not ours. The last connection gets the event that the client waits for.
"""

from __future__ import annotations

import json
import re
import socket
import socketserver
import subprocess
import sys
import threading
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import sha1
from pathlib import Path
from typing import Any, Final

from paperdb_trio.net.frames import close_frame, text_frame

CASES = ("1.*", "2.*", "3.*", "4.*", "5.*", "6.*", "7.*", "9.1.6", "9.2.6", "9.3.1")
"""The last three: a text of 16 MiB, binary of 16 MiB, a text of 4 MiB in 65,536 fragments."""
SLOW = ("5.19", "5.20", "6.4.*")
"""These pause for a second or two between frames. Other cases send the same at once."""
CASE_COUNT = 244
MESSAGES = (
    b"null",
    b"true",
    b"1",
    b'"ready"',
    b"[]",
    b"{}",
    b"[" * 100_000,
    b'{"type":null}',
    b'{"type":"ready"}',
    b'{"type":"ready","seq":"7"}',
    b'{"type":"gap"}',
    b'{"type":"insert"}',
    b'{"type":"insert","collection":"x","seq":null}',
    b'{"type":"subscribed","ref":1}',
    b'{"type":"pong","ref":{}}',
    b'{"type":"error"}',
)
"""Some are nearly messages of ours."""
TURNS = CASE_COUNT + len(MESSAGES) + 1

EVENT: Final[dict[str, Any]] = {"seq": 8, "type": "insert", "collection": "x", "data": {"_id": "a"}}
_READY = text_frame(b'{"type":"ready","seq":7}')
_SUBPROTOCOL = b"\r\nSec-WebSocket-Protocol: paperdb.v1\r\n\r\n"
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


@contextmanager
def _suite() -> Iterator[int]:
    """Autobahn's cases for clients, at `/runCase?case=N`; the port."""
    command = [str(Path(sys.executable).with_name("kosoku")), "-m", "fuzzingserver", "127.0.0.1:0"]
    command += [f"--include={case}" for case in CASES] + [f"--exclude={case}" for case in SLOW]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            told = process.stderr.readline()
            found = re.search(r"listening on ws://127\.0\.0\.1:(\d+)", told)
            assert found is not None, told
            yield int(found[1])
        finally:
            process.kill()


class HostileServer(socketserver.ThreadingTCPServer):
    """`connections`: how many there were. Beyond `TURNS` they are closed at once."""

    daemon_threads = True

    def __init__(self, suite_port: int) -> None:
        super().__init__(("127.0.0.1", 0), _Connection)
        self.suite_port = suite_port
        self.connections = 0
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


@contextmanager
def hostile_server() -> Iterator[HostileServer]:
    with _suite() as port, HostileServer(port) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


class _Connection(socketserver.BaseRequestHandler):
    server: HostileServer
    request: socket.socket

    def handle(self) -> None:
        self.server.connections = number = self.server.connections + 1  # they come one after the other
        with suppress(OSError):  # the SDK leaves when it has had enough
            head = _head(self.request)
            if number <= CASE_COUNT:
                self._run_case(number, head)
            elif number < TURNS:
                self._say(MESSAGES[number - CASE_COUNT - 1], head)
            elif number == TURNS:
                self._say(json.dumps(EVENT).encode(), head)

    def _say(self, message: bytes, head: bytes) -> None:
        key = re.search(rb"(?i)\r\nsec-websocket-key: *(\S+)", head)
        assert key is not None
        accept = b64encode(sha1(key[1] + _GUID).digest())
        upgrade = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        self.request.sendall(upgrade + b"Sec-WebSocket-Accept: " + accept + _SUBPROTOCOL)
        self.request.sendall(_READY + text_frame(message) + close_frame(1001))
        self.request.shutdown(socket.SHUT_WR)
        while self.request.recv(65_536):
            pass

    def _run_case(self, number: int, head: bytes) -> None:
        """Pass the connection on to the suite, which knows neither our path nor our subprotocol nor `ready`."""
        with socket.create_connection(("127.0.0.1", self.server.suite_port), 10) as suite:
            suite.sendall(b"GET /runCase?case=%d&agent=sdk HTTP/1.1" % number + head[head.index(b"\r\n") :])
            self.request.sendall(_head(suite)[:-4] + _SUBPROTOCOL + _READY)
            back = threading.Thread(target=_pump, args=(self.request, suite), daemon=True)
            back.start()
            _pump(suite, self.request)
            back.join()


def _head(source: socket.socket) -> bytes:
    """Up to the empty line, and nothing of what follows."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        byte = source.recv(1)
        if not byte:
            raise ConnectionError
        head += byte
    return head


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65_536):
            sink.sendall(data)
    with suppress(OSError):
        sink.shutdown(socket.SHUT_WR)
