"""Messages between the process that writes and a worker, over a Unix socket.

Law: both ends are forks of one process, and nobody else can reach the socket, so `pickle` is safe here. A
message that was sent arrives whole and in order, or the link ends.
"""

from __future__ import annotations

import logging
import pickle
import socket
import struct
from collections import deque
from collections.abc import Awaitable, Callable
from enum import IntEnum
from typing import Any, Final

import trio

from paperdb_trio.errors import ApiError
from paperdb_trio.store.refusals import internal

log = logging.getLogger("paperdb.link")

_HEAD: Final = struct.Struct("=IB")
READ_BYTES: Final = 256 * 1024
BUFFER_BYTES: Final = 1024 * 1024
"""What the kernel keeps in each direction."""
REPORT_SECONDS: Final = 2.0
"""Seconds within which a process must report."""


class Kind(IntEnum):
    """What a message is. The first four go to a worker, the rest to the writer, `ASK` and `REPLY` both ways."""

    HELLO = 0
    """Marks: every commit from now on is told."""
    CHANGES = 1
    """Marks, and the changes of one commit."""
    HEADS = 2
    """Marks, and the heads of databases: instead of changes, for a worker that reads slowly."""
    TRIMMED = 3
    """A database, and the seq of the newest change that is gone."""
    OPERATIONS = 4
    """Numbers and operations, each pickled."""
    RESULTS = 5
    """Numbers, whether each succeeded, and results or errors."""
    DROPS_LEFT = 6
    ASK = 7
    """A number, the name of a report, and its argument."""
    REPLY = 8
    """The number of what was asked, and the response."""


class Link:
    """One end. `handle(kind, payload)` gets each message, one after the other. Run `run()` in a nursery: it
    returns when the other end is gone."""

    def __init__(self, sock: socket.socket, handle: Callable[[Kind, bytes], Awaitable[None]]) -> None:
        sock.setblocking(False)
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            sock.setsockopt(socket.SOL_SOCKET, option, BUFFER_BYTES)
        self._sock = sock
        self._handle = handle
        self._held = b""
        self._unsent: deque[bytes | memoryview] = deque()
        self.unsent_bytes = 0
        self._wake = trio.Event()
        self._over = False
        self.on_drained: Callable[[], None] = lambda: None
        """Called when everything has been taken by the kernel, after some was not."""

    def hold(self, kind: Kind, payload: bytes) -> None:
        """Send it with the next message, or at the next `release`: the other end wakes up once for both."""
        self._held += _HEAD.pack(len(payload), kind) + payload

    def release(self) -> None:
        """Send what is held."""
        if self._held:
            self._put(b"")

    def send(self, kind: Kind, payload: bytes) -> None:
        """Never blocks. After the end of the link, nothing happens."""
        self._put(_HEAD.pack(len(payload), kind) + payload)

    def _put(self, data: bytes) -> None:
        message: bytes | memoryview = self._held + data
        self._held = b""
        if self._over:
            return
        if not self._unsent:
            sent = self._send(message)
            if sent == len(message):
                return
            message = memoryview(message)[sent:]
        self._unsent.append(message)
        self.unsent_bytes += len(message)
        self._wake.set()

    def send_object(self, kind: Kind, value: object) -> None:
        self.send(kind, pickle.dumps(value, pickle.HIGHEST_PROTOCOL))

    def _send(self, data: bytes | memoryview) -> int:
        try:
            return self._sock.send(data)
        except BlockingIOError:
            return 0
        except OSError:
            self._end()
            return len(data)

    def _end(self) -> None:
        """The other end is gone. The task that reads finds out as well."""
        self._over = True
        self._unsent.clear()
        self.unsent_bytes = 0

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._send_rest)
            await self._receive()
            self._end()
            nursery.cancel_scope.cancel()

    async def _send_rest(self) -> None:
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            while self._unsent:
                await trio.lowlevel.wait_writable(self._sock)
                while self._unsent:
                    first = self._unsent[0]
                    sent = self._send(first)
                    if self._over:
                        return
                    self.unsent_bytes -= sent
                    if sent < len(first):
                        self._unsent[0] = memoryview(first)[sent:]
                        break
                    self._unsent.popleft()
            self.on_drained()

    async def _receive(self) -> None:
        received, is_more = bytearray(), False
        while True:
            if is_more:
                await trio.lowlevel.checkpoint()
            else:
                await trio.lowlevel.wait_readable(self._sock)
            try:
                data = self._sock.recv(READ_BYTES)
            except BlockingIOError:
                is_more = False
                continue
            except OSError:
                return
            if not data:
                return
            received += data
            is_more = len(data) == READ_BYTES
            at = 0
            while len(received) - at >= _HEAD.size:
                length, kind = _HEAD.unpack_from(received, at)
                end = at + _HEAD.size + length
                if len(received) < end:
                    break
                await self._handle(Kind(kind), bytes(received[at + _HEAD.size : end]))
                at = end
            del received[:at]


def receive_first(sock: socket.socket, seconds: float) -> tuple[Kind, bytes]:
    """The first message, before `Link.run`. Blocks: for start-up only. Raises OSError."""
    sock.settimeout(seconds)
    length, kind = _HEAD.unpack(_exactly(sock, _HEAD.size))
    return Kind(kind), _exactly(sock, length)


def _exactly(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = sock.recv(size - len(data))
        if not piece:
            raise ConnectionResetError("the other end is gone")
        data += piece
    return data


class Questions:
    """What one end has asked and waits for."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._waiting: dict[int, tuple[trio.Event, list[Any]]] = {}
        self._number = 0

    async def ask(self, name: str, argument: Any) -> Any:
        """Waits for as long as it takes: bound it."""
        self._number += 1
        number = self._number
        event, response = self._waiting[number] = trio.Event(), []
        try:
            self._link.send_object(Kind.ASK, (number, name, argument))
            await event.wait()
        finally:
            del self._waiting[number]
        return response[0]

    def replied(self, number: int, response: Any) -> None:
        if number in self._waiting:
            event, place = self._waiting[number]
            place.append(response)
            event.set()


Report = Callable[[Any], Awaitable[Any]]
"""What a process says of itself: plain data that other processes understand."""
Reports = dict[str, Report]


async def report_of(reports: Reports, name: str, argument: Any) -> Any:
    """The report of that name; None if there is none. A failure is an `ApiError`, for who asked."""
    try:
        return await reports[name](argument) if name in reports else None
    except ApiError as error:
        return error
    except Exception:
        log.exception("the report '%s' failed", name)
        return internal()
