"""A real server against mutated requests, pipelines and handshakes over many connections.

Law: h11's client accepts every response, wsproto's client every frame after a 101, and the only 5xx are
`EXPECTED`. A normal client is served after each batch. At the end the open files are as at the start, memory as
after the first batches, the log has no traceback, and the server exits with 0 after SIGTERM.
"""

from __future__ import annotations

import json
import random
import socket
import ssl
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Final

import h11
from wsproto.connection import Connection, ConnectionType
from wsproto.events import TextMessage

from tests.conftest import Server, wait_until
from tests.fuzz.corpus import ACTIONS, CHUNKED, FRAMES, HEADS, JSON, mutate
from tests.net.http2 import ask, begin
from tests.realtime.raw import TEXT, frame, handshake
from tests.stress.harness import files, memory

WARM_UP: Final = 4
"""Batches before memory is measured, because the first request that needs Quart loads it."""
MORE_MEMORY: Final = 24 * 2**20
CONNECTIONS: Final = 8
CACHE_BYTES: Final = 16 * 2**20
"""SQLite's page caches: each connection keeps this much of the file, which grows by the valid documents."""
TIMEOUTS: Final = (
    *("--head-timeout", "1", "--body-timeout", "1"),
    *("--keep-alive-timeout", "2", "--write-timeout", "2"),
)
SMALL_CACHE: Final = ("--cache-bytes", "1000000")
EXPECTED: Final = (501, 503)
"""The correct 5xx: 501 is for an unknown transfer coding (RFC 9112, section 6.1)."""
_HEALTH: Final = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


def requests(server: Server) -> list[bytes]:
    """Whole requests, pipelines and conversations that this server accepts, and odd ones."""
    token = server.token("x")
    head = f"HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {server.key}\r\n".encode()
    health = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    posts = [
        b"POST /x/docs %sContent-Length: %d\r\n\r\n%s" % (head, len(body), body)
        for body in (*JSON, b'{"a":1}', b'{"_id":"one","n":2}')
    ]
    chunked = [b"POST /x/docs %sTransfer-Encoding: chunked\r\n\r\n%s" % (head, body) for body in CHUNKED]
    gets = [
        b"%s %s %sContent-Length: 0\r\n\r\n" % (method, target, head)
        for method in (b"GET", b"DELETE", b"PATCH", b"OPTIONS", b"BREW")
        for target in (
            b"/x/docs?limit=2&sort=-a",
            b"/x/docs?filter=%7B%22a%22%3A%7B%22%24gt%22%3A1%7D%7D&skip=1",
            *(b"/x/docs/one", b"/x/changes?since=0&limit=3", b"/collections", b"/metrics", b"/openapi.json"),
        )
    ]
    events = f"GET /x/changes?token={token} HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n\r\n".encode()
    upgrade = handshake(server, f"/?token={token}")
    talks = [upgrade + frames for frames in (*FRAMES, *(frame(TEXT, action) for action in ACTIONS))]
    resumed = handshake(server, f"/x/realtime?token={token}&since=0", "Sec-WebSocket-Protocol: paperdb.v1")
    pipelines = [health * 3, health + posts[-1] + gets[0] + health, posts[-2] * 2 + upgrade + FRAMES[0]]
    plain = [*HEADS, *posts, *chunked, *gets, events, *talks, resumed, *pipelines]
    return plain + [http2(server, **how) for how in ({}, {"window": 0}, {"reset": True}, {"end": False})] * 4


def http2(server: Server, *, window: int = 65_535, reset: bool = False, end: bool = True) -> bytes:
    """The client's side of an HTTP/2 conversation."""
    h2 = begin(window)
    for method, path in (("GET", "/sdk/realtime.js"), ("POST", "/x/docs"), ("GET", "/x/docs?limit=2")):
        stream = ask(h2, path, method, key=server.key, end=method == "GET" and end)
        if method == "POST":
            h2.send_data(stream, b'{"a":', end_stream=False)
            h2.send_data(stream, b"1}", end_stream=end)
        if reset:
            h2.reset_stream(stream, 8)
    h2.ping(b"12345678")
    h2.prioritize(99, weight=7)
    h2.increment_flow_control_window(1000)
    return h2.data_to_send()


class Fuzzer:
    """Sends batches; counts the outcomes."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.counts: Counter[str] = Counter()
        self._context = server.context
        self._corpus = requests(server)

    def connect(self, *, plain: bool = False) -> socket.socket:
        sock = socket.create_connection(("127.0.0.1", self.server.port), timeout=10)
        if self._context is None or plain:
            return sock
        return self._context.wrap_socket(sock, server_hostname="127.0.0.1")

    def batch(self, chance: random.Random, size: int) -> None:
        """Many connections at once, each with one input; then one normal client."""
        sent: list[tuple[bytes, socket.socket]] = []
        for _ in range(size):
            data = mutate(chance, self._corpus)
            plain = chance.random() < 0.1  # for TLS: bytes that are not a handshake
            sock = self.connect(plain=plain)
            sent.append((data, sock))
            try:
                sock.sendall(data)
                if chance.random() < 0.9:
                    _end(sock)
            except OSError:
                pass  # it was refused before it was complete; the response is still read
        for data, sock in sent:
            _end(sock)
            response, cut = _drain(sock)
            sock.close()
            try:
                self.counts[_judge(data, response, cut=cut)] += 1
            except (AssertionError, h11.RemoteProtocolError) as error:
                raise AssertionError(f"{data!r} got {response!r}: {error!r}") from error
        with self.connect() as sock:
            sock.sendall(_HEALTH)
            response, _ = _drain(sock)
            assert response.startswith(b"HTTP/1.1 200 "), response


def _end(sock: socket.socket) -> None:
    """Send the end of the input. (SSLSocket's own `shutdown` would drop its TLS.)"""
    with suppress(OSError):
        socket.socket.shutdown(sock, socket.SHUT_WR)


def _drain(sock: socket.socket) -> tuple[bytes, bool]:
    """Everything up to the end, and whether that was a reset. A missing end is a failure."""
    parts = []
    try:
        while data := sock.recv(65_536):
            parts.append(data)
    except TimeoutError:
        raise AssertionError(f"no end after {b''.join(parts)!r}") from None
    except (ConnectionError, ssl.SSLError):
        return b"".join(parts), True
    return b"".join(parts), False


def _judge(data: bytes, response: bytes, *, cut: bool) -> str:
    """The kind of the response. Raises AssertionError and h11's error."""
    if not response:
        return "no response"
    if data.lstrip(b"\r\n").startswith(b"PRI * HTTP/2.0\r\n\r\n") and not response.startswith(b"HTTP/"):
        return _judge_http2(response, cut=cut)
    what = ""
    while response:
        client = h11.Connection(h11.CLIENT, max_incomplete_event_size=1 << 20)
        upgrade = [("Host", "x"), ("Upgrade", "websocket"), ("Connection", "Upgrade")]
        client.send(h11.Request(method="GET", target="/", headers=upgrade))
        client.send(h11.EndOfMessage())
        client.receive_data(response)
        ended = False
        while True:
            event = client.next_event()
            if event is h11.NEED_DATA:
                if cut or what == "HTTP 100":  # asked for a body that then did not come
                    return "reset" if cut else what
                assert not ended, "a response is cut short"
                client.receive_data(b"")
                ended = True
            elif isinstance(event, h11.InformationalResponse) and event.status_code == 101:
                return _judge_frames(client.trailing_data[0])
            elif isinstance(event, h11.InformationalResponse):
                what = f"HTTP {event.status_code}"
            elif isinstance(event, h11.Response):
                assert event.status_code < 500 or event.status_code in EXPECTED, event
                what = f"HTTP {event.status_code}"
            elif isinstance(event, h11.EndOfMessage):
                break
        response = client.trailing_data[0]
    return what


def _judge_http2(data: bytes, *, cut: bool) -> str:
    """Frames of RFC 9113, complete unless the end was a reset."""
    while data:
        size, kind = int.from_bytes(data[:3], "big"), data[3] if len(data) > 3 else 0
        assert kind <= 9, data
        assert cut or len(data) >= 9 + size, data
        data = data[9 + size :]
    return "HTTP/2"


def _judge_frames(data: bytes) -> str:
    """The last message may be cut off, because our close can come in the middle of many events."""
    client = Connection(ConnectionType.CLIENT)
    client.receive_data(data)
    text = ""
    for event in client.events():
        if isinstance(event, TextMessage):
            text += event.data
            if event.message_finished:
                json.loads(text)
                text = ""
    return "WebSocket"


def fuzz(directory: Path, inputs: int, seed: int, *, tls: bool = False, batch: int = 64) -> Counter[str]:
    """Send at least this many inputs, so many at once, to its own server. Raises AssertionError."""
    options = (*TIMEOUTS, *SMALL_CACHE, *(("--tls-self-signed",) if tls else ()))
    server = Server(directory / "data", options, forked=False)
    try:
        open_files = files(server.pid)
        fuzzer = Fuzzer(server)
        batches = max(-(-inputs // batch), WARM_UP + 1)
        for n in range(batches):
            if n == WARM_UP:
                resident = memory(server.pid)
            try:
                fuzzer.batch(random.Random(f"{seed}/{n}"), batch)
            except Exception as error:
                raise AssertionError(f"seed {seed}, batch {n}: {error!r}\n{server.stderr}") from error
        wait_until(lambda: files(server.pid) <= open_files + 2)
        grown = memory(server.pid) - resident
        cached = CONNECTIONS * min(CACHE_BYTES, (server.data / "paperdb.sqlite").stat().st_size)
        assert grown < MORE_MEMORY + cached, f"{grown:,} bytes more are resident"
        fuzzer.counts["bytes of memory grown"] = max(0, grown)
        assert server.stop() == 0
        assert "Traceback" not in server.stderr, server.stderr
    finally:
        server.kill()
    return fuzzer.counts
