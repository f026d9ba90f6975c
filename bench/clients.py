"""Clients that cost little: raw sockets and epoll, requests made beforehand, answers counted, not decoded.

They are measuring instruments, not tests: what they count is checked against what must come.
"""

from __future__ import annotations

import json
import os
import select
import socket
import time
from base64 import b64encode
from typing import Any


class Http:
    """One keep-alive connection that waits for each answer."""

    def __init__(self, port: int, key: str) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port))
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.key = key

    def request(self, method: str, path: str, value: Any = None) -> Any:
        """Send, wait, decode. Raises for anything but 2xx."""
        self.sock.sendall(request_bytes(method, path, self.key, value))
        head, body = read_answer(self.sock)
        if not head.startswith((b"HTTP/1.1 20",)):
            raise RuntimeError((head + body).decode())
        return json.loads(body)

    def close(self) -> None:
        self.sock.close()


def request_bytes(method: str, path: str, key: str, value: Any = None) -> bytes:
    body = b"" if value is None else json.dumps(value).encode()
    return (
        f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode() + body


def read_answer(sock: socket.socket) -> tuple[bytes, bytes]:
    data = b""
    while b"\r\n\r\n" not in data:
        more = sock.recv(65536)
        if not more:
            raise ConnectionError("the server closed the connection")
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    length = content_length(head)
    while len(body) < length:
        body += receive(sock)
    return head, body


def content_length(head: bytes) -> int:
    lower = head.lower()
    at = lower.index(b"content-length:") + 15
    end = lower.find(b"\r\n", at)
    return int(lower[at : end if end >= 0 else None])


def load(port: int, connections: int, seconds: float, request: bytes) -> tuple[int, float, list[float]]:
    """Closed loop: every connection sends the request and waits for its answer, for some seconds.

    Returns (answers, seconds that it took, latencies in seconds). Raises for an answer that is not 2xx.
    """
    epoll = select.epoll()
    socks: dict[int, socket.socket] = {}
    buffers: dict[int, bytes] = {}
    sent: dict[int, float] = {}
    latencies: list[float] = []
    for _ in range(connections):
        sock = socket.create_connection(("127.0.0.1", port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        socks[sock.fileno()] = sock
        buffers[sock.fileno()] = b""
        epoll.register(sock.fileno(), select.EPOLLIN)
    begun = time.perf_counter()
    for fd, sock in socks.items():
        sent[fd] = time.perf_counter()
        sock.sendall(request)
    waiting = connections
    while waiting:
        for fd, _ in epoll.poll(5):
            data = buffers[fd] + receive(socks[fd])
            end = data.find(b"\r\n\r\n")
            if end < 0 or len(data) < end + 4 + content_length(data[:end]):
                buffers[fd] = data
                continue
            if data[9:10] != b"2":
                raise RuntimeError(data.decode())
            buffers[fd] = b""
            now = time.perf_counter()
            latencies.append(now - sent[fd])
            if now - begun < seconds:
                sent[fd] = now
                socks[fd].sendall(request)
            else:
                waiting -= 1
    took = time.perf_counter() - begun
    for sock in socks.values():
        sock.close()
    return len(latencies), took, latencies


def websocket(port: int, token: str, query: str = "", *, receive_buffer: int | None = None) -> socket.socket:
    """Shake hands; returns the socket, blocking."""
    sock = socket.socket()
    if receive_buffer is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    sock.connect(("127.0.0.1", port))
    sock.sendall(handshake(token, query))
    head = b""
    while b"\r\n\r\n" not in head:
        more = sock.recv(4096)
        if not more:
            raise ConnectionError(head)
        head += more
    if b" 101 " not in head:
        raise RuntimeError(head)
    return sock


def handshake(token: str, query: str = "") -> bytes:
    key = b64encode(os.urandom(16)).decode()
    return (
        f"GET /?token={token}{query} HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\n"
        f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n"
    ).encode()


def receive(sock: socket.socket) -> bytes:
    """Some bytes. Raises ConnectionError at the end."""
    data = sock.recv(1 << 20)
    if not data:
        raise ConnectionError("the server closed the connection")
    return data


class Readers:
    """Many sockets whose bytes are only counted."""

    def __init__(self, socks: list[socket.socket]) -> None:
        self.socks = socks
        self.received = 0
        self._epoll = select.epoll()
        self._by_fd = {sock.fileno(): sock for sock in socks}
        for sock in socks:
            sock.setblocking(False)
            self._epoll.register(sock.fileno(), select.EPOLLIN)

    def until(self, total: int, seconds: float = 60) -> None:
        """Read until `total` bytes have come in all. Raises TimeoutError."""
        deadline = time.perf_counter() + seconds
        while self.received < total:
            for fd, _ in self._epoll.poll(1, 4096):
                self.received += len(receive(self._by_fd[fd]))
            if time.perf_counter() > deadline:
                raise TimeoutError(f"{self.received} of {total} bytes")

    def for_seconds(self, seconds: float) -> None:
        deadline = time.perf_counter() + seconds
        while (left := deadline - time.perf_counter()) > 0:
            for fd, _ in self._epoll.poll(left, 4096):
                self.received += len(receive(self._by_fd[fd]))

    def close(self) -> None:
        self._epoll.close()
        for sock in self.socks:
            sock.close()
