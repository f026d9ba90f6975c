"""Cheap WebSocket clients: raw sockets and epoll; what comes is counted, not parsed."""

from __future__ import annotations

import os
import select
import socket
import ssl
import time
from base64 import b64encode

from bench.clients import Http, receive


def token(http: Http, *collections: str) -> str:
    response = http.request("POST", "/realtime/token", {"collections": list(collections), "expiresIn": 86400})
    return str(response["token"])


def websocket(
    port: int,
    token: str,
    query: str = "",
    *,
    receive_buffer: int | None = None,
    tls: ssl.SSLContext | None = None,
) -> socket.socket:
    """Shake hands. Returns the socket, blocking. What came behind the handshake's response is lost.

    Raises ConnectionRefusedError, with the head of the response, unless that is a 101.
    """
    sock = socket.socket()
    if receive_buffer is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    sock.connect(("127.0.0.1", port))
    return upgrade(sock, f"/?token={token}{query}", tls=tls)


def upgrade(sock: socket.socket, target: str, *, tls: ssl.SSLContext | None = None) -> socket.socket:
    if tls is not None:
        sock = tls.wrap_socket(sock, server_hostname="localhost")
    sock.sendall(handshake(target))
    head = b""
    while b"\r\n\r\n" not in head:
        more = sock.recv(4096)
        if not more:
            break
        head += more
    if b" 101 " not in head:
        sock.close()
        raise ConnectionRefusedError(head.decode())
    return sock


def handshake(target: str) -> bytes:
    key = b64encode(os.urandom(16)).decode()
    return (
        f"GET {target} HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\n"
        f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n"
    ).encode()


def client_tls() -> ssl.SSLContext:
    """TLS 1.3. The certificate is not checked: checking costs the client, not the server."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context


class Readers:
    """Many sockets, plain or TLS, whose (decrypted) bytes are only counted."""

    def __init__(self, socks: list[socket.socket]) -> None:
        self.socks = socks
        self.received = 0
        self._epoll = select.epoll()
        self._by_fd = {sock.fileno(): sock for sock in socks}
        for sock in socks:
            sock.setblocking(False)
            self._epoll.register(sock.fileno(), select.EPOLLIN)

    def until(self, total: int, seconds: float = 60) -> None:
        """Read until `total` bytes have come in all. Raises TimeoutError; RuntimeError if more come."""
        deadline = time.perf_counter() + seconds
        while self.received < total:
            self._read(1)
            if time.perf_counter() > deadline:
                raise TimeoutError(f"{self.received} of {total} bytes")
        if self.received > total:
            raise RuntimeError(f"{self.received} bytes came; expected {total}")

    def until_quiet(self, seconds: float = 0.2) -> None:
        """Read until nothing has come for `seconds`."""
        before = -1
        while before != self.received:
            before = self.received
            self.for_seconds(seconds)

    def each_since(self, before: int, seconds: float = 10) -> int:
        """Read until every socket has received the same number of bytes since `received` was `before`.

        Returns that number. Raises TimeoutError.
        """
        deadline = time.perf_counter() + seconds
        while time.perf_counter() < deadline:
            self.until_quiet()
            size, rest = divmod(self.received - before, len(self.socks))
            if size and not rest:
                return size
        raise TimeoutError(f"{self.received - before} bytes came to {len(self.socks)} subscribers")

    def for_seconds(self, seconds: float) -> None:
        deadline = time.perf_counter() + seconds
        while (left := deadline - time.perf_counter()) > 0:
            self._read(left)

    def _read(self, seconds: float) -> None:
        for fd, _ in self._epoll.poll(seconds, 4096):
            sock = self._by_fd[fd]
            if isinstance(sock, ssl.SSLSocket):
                self._decrypt(sock)
            else:
                self.received += len(receive(sock))

    def _decrypt(self, sock: ssl.SSLSocket) -> None:
        """Read all that has come: one call returns one record."""
        try:
            while True:
                self.received += len(receive(sock))
        except ssl.SSLWantReadError:
            pass

    def close(self) -> None:
        self._epoll.close()
        for sock in self.socks:
            sock.close()


class Storm:
    """Clients that connect all at once. Each is served once `last` has come, behind the handshake.

    All connects start without waiting, as fast as the kernel allows; then one loop does the rest.
    """

    def __init__(self, port: int, targets: list[str], last: bytes) -> None:
        self.socks: list[socket.socket] = []
        self.seconds: list[float] = []
        """How long each took, from the very first connect."""
        self.refused = 0
        self._last = last
        self._epoll = select.epoll()
        self._buffers: dict[int, bytes] = {}
        by_fd: dict[int, tuple[socket.socket, bytes]] = {}
        requests = [handshake(target) for target in targets]
        self._begun = time.perf_counter()
        for request in requests:
            sock = socket.socket()
            sock.setblocking(False)
            sock.connect_ex(("127.0.0.1", port))
            self.socks.append(sock)
            by_fd[sock.fileno()] = sock, request
            self._epoll.register(sock.fileno(), select.EPOLLOUT)
        self._by_fd = by_fd

    def run(self, seconds: float = 120) -> float:
        """Run until all are served. Returns the seconds since the first connect. Raises TimeoutError."""
        deadline = self._begun + seconds
        while len(self.seconds) + self.refused < len(self.socks):
            for fd, event in self._epoll.poll(1, 4096):
                sock, request = self._by_fd[fd]
                if fd not in self._buffers:
                    self._buffers[fd] = b""
                    sock.send(request)
                    self._epoll.modify(fd, select.EPOLLIN)
                elif event & select.EPOLLIN:
                    self._take(fd, sock.recv(1 << 16))
            if time.perf_counter() > deadline:
                raise TimeoutError(f"{len(self.seconds)} of {len(self.socks)} served")
        return time.perf_counter() - self._begun

    def _take(self, fd: int, data: bytes) -> None:
        buffer = self._buffers[fd] = self._buffers[fd] + data
        if self._last in buffer:
            self.seconds.append(time.perf_counter() - self._begun)
        elif data:
            return
        else:
            self.refused += 1
        self._epoll.unregister(fd)

    def close(self) -> None:
        self._epoll.close()
        for sock in self.socks:
            sock.close()
