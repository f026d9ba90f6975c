"""Cheap HTTP clients: requests are made beforehand, responses are counted and not decoded.

They measure and do not test: what they count is compared with what must come.
"""

from __future__ import annotations

import json
import select
import socket
import time
from typing import Any


def connected(port: int) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", port))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


class Http:
    """One keep-alive connection that waits for each response."""

    def __init__(self, port: int, key: str = "") -> None:
        self.sock = connected(port)
        self.key = key

    def request(self, method: str, path: str, value: Any = None) -> Any:
        """Send, wait, decode. Raises RuntimeError unless the response is a 2xx."""
        return json.loads(self.exchange(request_bytes(method, path, self.key, value)) or b"null")

    def exchange(self, request: bytes) -> bytes:
        """Send what `request_bytes` made. Returns the response's body, not decoded."""
        self.sock.sendall(request)
        data = b""
        while (end := response_end(data)) is None:
            data += receive(self.sock)
        if data[9:10] != b"2":
            raise RuntimeError(data.decode())
        head, _, body = data[:end].partition(b"\r\n\r\n")
        return joined(body) if b"transfer-encoding: chunked" in head.lower() else body

    def close(self) -> None:
        self.sock.close()


def request_bytes(method: str, path: str, key: str, value: Any = None) -> bytes:
    body = b"" if value is None else json.dumps(value).encode()
    authorization = f"Authorization: Bearer {key}\r\n" if key else ""
    return (
        f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{authorization}"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode() + body


def response_end(data: bytes) -> int | None:
    """Where the only response in `data` ends; None if it is not complete."""
    head_end = data.find(b"\r\n\r\n")
    if head_end < 0:
        return None
    head = data[:head_end].lower()
    at = head.find(b"\r\ncontent-length:")
    if at >= 0:
        end = head_end + 4 + int(head[at + 17 :].split(b"\r\n", 1)[0])
        return end if len(data) >= end else None
    if b"\r\ntransfer-encoding: chunked" in head:  # Go's servers send this above 2 KB
        return len(data) if data.endswith(b"\r\n0\r\n\r\n") else None
    return head_end + 4


def joined(chunks: bytes) -> bytes:
    """A chunked body, without the sizes of its chunks."""
    body = b""
    while size := int(chunks[: chunks.index(b"\r\n")], 16):
        start = chunks.index(b"\r\n") + 2
        body += chunks[start : start + size]
        chunks = chunks[start + size + 2 :]
    return body


def load(port: int, connections: int, seconds: float, request: bytes) -> tuple[int, float, list[float]]:
    """Closed loop: for `seconds`, every connection sends the request and waits for the response.

    Returns (responses, seconds taken, latencies in seconds). Raises RuntimeError if a response is not a 2xx.
    """
    epoll = select.epoll()
    socks: dict[int, socket.socket] = {}
    buffers: dict[int, bytes] = {}
    sent: dict[int, float] = {}
    latencies: list[float] = []
    for _ in range(connections):
        sock = connected(port)
        socks[sock.fileno()] = sock
        buffers[sock.fileno()] = b""
        epoll.register(sock.fileno(), select.EPOLLIN)
    try:
        begun = time.perf_counter()
        for fd, sock in socks.items():
            sent[fd] = time.perf_counter()
            sock.sendall(request)
        waiting = connections
        while waiting:
            for fd, _ in epoll.poll(5):
                data = buffers[fd] + receive(socks[fd])
                if response_end(data) is None:
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
        return len(latencies), time.perf_counter() - begun, latencies
    finally:
        epoll.close()
        for sock in socks.values():
            sock.close()


def receive(sock: socket.socket) -> bytes:
    """The next bytes. Raises ConnectionError when the server has closed the connection."""
    data = sock.recv(1 << 20)
    if not data:
        raise ConnectionError("the server closed the connection")
    return data
