"""Tools beyond well-behaved clients: raw sockets that can misuse WebSocket, tokens that no server would mint,
and writers that flood."""

from __future__ import annotations

import json
import math
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import jwt
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection

from tests.conftest import NO_TLS, Server

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10


def handshake(server: Server, target: str, *headers: str, version: str = "13") -> bytes:
    """The head of an upgrade request."""
    lines = [
        f"GET {target} HTTP/1.1",
        f"Host: 127.0.0.1:{server.port}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        f"Sec-WebSocket-Version: {version}",
        *headers,
    ]
    return "".join(f"{line}\r\n" for line in [*lines, ""]).encode("latin-1")


def request(server: Server, method: str, path: str, body: bytes = b"", *headers: str) -> bytes:
    """A request with the server's key, and the headers that frame its body."""
    lines = [
        f"{method} {path} HTTP/1.1",
        "Host: x",
        f"Authorization: Bearer {server.key}",
        "Content-Type: application/json",
        *headers,
    ]
    return "".join(f"{line}\r\n" for line in [*lines, ""]).encode() + body


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True, masked: bool = True, rsv: int = 0) -> bytes:
    """One frame from a client (RFC 6455, section 5.2), right or wrong."""
    head = bytes([fin << 7 | rsv << 4 | opcode])
    mask_bit = masked << 7
    if len(payload) < 126:
        head += bytes([mask_bit | len(payload)])
    elif len(payload) < 65536:
        head += bytes([mask_bit | 126]) + struct.pack(">H", len(payload))
    else:
        head += bytes([mask_bit | 127]) + struct.pack(">Q", len(payload))
    return head + (b"\0\0\0\0" if masked else b"") + payload


def say(**message: Any) -> bytes:
    """A client's action as a frame."""
    return frame(TEXT, json.dumps(message).encode())


class Raw:
    """A TCP connection to a server, optionally with a small receive buffer. `timeout` ends every wait."""

    def __init__(self, server: Server, *, receive_buffer: int | None = None, timeout: float = 10) -> None:
        self.socket = socket.socket()
        if receive_buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(timeout)
        self.socket.connect(("127.0.0.1", server.port))
        if server.context is not None:
            self.socket = server.context.wrap_socket(self.socket, server_hostname="127.0.0.1")
        self.buffer = bytearray()

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def fill(self) -> bool:
        """Receive more; False at the end of the stream, clean or not."""
        try:
            data = self.socket.recv(1 << 20)
        except ConnectionError:
            return False
        self.buffer += data
        return bool(data)

    def take(self, size: int) -> bytes:
        """Exactly `size` bytes. Raises EOFError."""
        while len(self.buffer) < size:
            if not self.fill():
                raise EOFError(f"the connection ended; {bytes(self.buffer[:200])!r} is left")
        data = bytes(self.buffer[:size])
        del self.buffer[:size]
        return data

    def head(self) -> tuple[int, dict[str, str]]:
        """Status and headers (lower-case names) of a response. Raises EOFError."""
        while b"\r\n\r\n" not in self.buffer:
            if not self.fill():
                raise EOFError(f"no response; {bytes(self.buffer[:200])!r} came")
        lines = self.take(self.buffer.index(b"\r\n\r\n") + 4).decode("latin-1").split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines[1:-2])
        return int(lines[0].split()[1]), {name.lower(): value for name, value in headers.items()}

    def response(self) -> tuple[int, dict[str, str], Any]:
        """Status, headers and JSON body of a response."""
        status, headers = self.head()
        return status, headers, json.loads(self.take(int(headers["content-length"])))

    def frame(self) -> tuple[int, bytes]:
        """Opcode and payload of the next frame; the server's frames are whole and unmasked."""
        first, size = self.take(2)
        assert first & 0xF0 == 0x80, f"FIN and no reserved bits were due, not {first:#x}"
        assert not size & 0x80, "a server's frame is masked"
        if size == 126:
            (size,) = struct.unpack(">H", self.take(2))
        elif size == 127:
            (size,) = struct.unpack(">Q", self.take(8))
        return first & 0x0F, self.take(size)

    def message(self) -> dict[str, Any]:
        """The next text message as JSON; pings before it get a pong."""
        while True:
            opcode, payload = self.frame()
            if opcode == TEXT:
                message = json.loads(payload)
                assert isinstance(message, dict)
                return message
            if opcode == PING:
                self.send(frame(PONG, payload))
            assert opcode in (PING, PONG), f"opcode {opcode} with {payload!r}"

    def close_code(self) -> int | None:
        """Read to the end and respond to the close frame; returns its code, None if there was none."""
        code = None
        try:
            while True:
                opcode, payload = self.frame()
                if opcode == CLOSE:
                    code = int.from_bytes(payload[:2], "big") if payload else 1005  # none was given
                    self.socket.sendall(frame(CLOSE, payload[:2]))
        except (EOFError, ConnectionError):
            return code

    def drain(self) -> bytes:
        """Read to the end of the stream."""
        while self.fill():
            pass
        return bytes(self.buffer)

    def drop(self) -> None:
        """Close with a reset."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


def open_raw(
    server: Server, *collections: str, query: str = "", receive_buffer: int | None = None, timeout: float = 10
) -> Raw:
    """A raw WebSocket that has been accepted."""
    raw = Raw(server, receive_buffer=receive_buffer, timeout=timeout)
    raw.send(handshake(server, f"/?token={server.token(*collections)}{'&' if query else ''}{query}"))
    status, _ = raw.head()
    assert status == 101
    return raw


def forge(server: Server, *collections: str, lifetime: float = 60, secret: bytes = b"", **claims: Any) -> str:
    """A token with any claims, signed with the server's own secret (or `secret`)."""
    ((kid, own),) = server.rows("SELECT kid, secret FROM signing_secrets WHERE retired_at IS NULL")
    ((key,),) = server.rows("SELECT id FROM keys ORDER BY created_at LIMIT 1")
    now = time.time()
    body = {
        "iss": "paperdb",
        "aud": "paperdb-realtime",
        "sub": "default",
        "key": key,
        "collections": list(collections),
        "permissions": ["read"],
        "iat": int(now),
        "exp": math.ceil(now + lifetime),  # whole seconds, as a server mints them
        "jti": os.urandom(8).hex(),
        **claims,
    }
    return jwt.encode(body, secret or own, "HS256", headers={"kid": kid})


@contextmanager
def running(data: Path, *options: str, forked: bool = True) -> Iterator[Server]:
    """A server for several tests, which must survive them and log no traceback."""
    server = Server(data, options, forked=forked)
    try:
        yield server
        assert server.process.poll() is None, f"the server died: {server.stderr}"
        assert server.stop() == 0
        assert "Traceback" not in server.stderr, server.stderr
    finally:
        if server.process.poll() is None:
            server.kill()


class Writers:
    """Threads that each insert `{"writer", "n"}` one by one, until stopped or refused by the server.

    `acknowledged` are the documents whose insert got a 201.
    """

    def __init__(self, server: Server, collection: str, count: int = 3, pad: int = 0) -> None:
        self.acknowledged: list[dict[str, Any]] = []
        self.failures: list[str] = []
        self._server, self._collection, self._pad = server, collection, "x" * pad
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._pour, args=(index,)) for index in range(count)]

    def __enter__(self) -> Writers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(20)

    def _pour(self, writer: int) -> None:
        headers = {"Authorization": f"Bearer {self._server.key}"}
        n = 0
        with httpx.Client(base_url=self._server.url, headers=headers, timeout=20, verify=NO_TLS) as client:
            while not self._stop.is_set():
                document = {"writer": writer, "n": n, "pad": self._pad}
                try:
                    response = client.post(f"/{self._collection}/docs", json=document)
                except httpx.TransportError as error:
                    self.failures.append(str(error))
                    return
                if response.status_code != 201:
                    self.failures.append(response.text)
                    return
                self.acknowledged.append(response.json())
                n += 1


def pour(server: Server, collection: str, megabytes: float) -> list[str]:
    """Insert documents of about 20 KB in bulk; their ids in commit order."""
    pad = "x" * 20_000
    ids: list[str] = []
    for _ in range(max(1, round(megabytes * 2))):
        response = server.request("POST", f"/{collection}/bulk", json=[{"pad": pad} for _ in range(25)])
        assert response.status_code == 200, response.text
        ids += [document["_id"] for document in response.json()["documents"]]
    return ids


def end_of(ws: ClientConnection, timeout: float = 10) -> int | None:
    """Read a connection of `websockets` to its end; returns the server's close code, if any."""
    try:
        while True:
            ws.recv(timeout=timeout)
    except ConnectionClosed as closed:
        return None if closed.rcvd is None else closed.rcvd.code


def until(raw: Callable[[], dict[str, Any]], id: str) -> list[dict[str, Any]]:
    """Events from `raw()` up to that of the document `id`."""
    events = [raw()]
    while events[-1].get("data", {}).get("_id") != id:
        events.append(raw())
    return events
