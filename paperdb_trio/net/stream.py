"""The byte stream of one connection: its task writes to it in order, and the hub pushes into it.

Law: all writes of a connection go through here, in the order in which they started. After an incomplete write
nothing more is written.
"""

from __future__ import annotations

import fcntl
import math
import os
import socket
import struct
import termios
from collections.abc import Callable
from functools import partial
from typing import Final

import trio

LINGER_SECONDS: Final = 1.0
GONE_SECONDS: Final = 15
AT_ONCE_BYTES: Final = 65_536
"""Writes up to this size are tried first, before a wait is set up."""
IN_TIME_BYTES: Final = 65_536
"""Bytes of a long write that the peer must read within each `write_timeout`."""
NOT_SENT_BYTES: Final = 128 * 1024
"""Unsent bytes that the kernel buffers; the rest waits in the subscriber's bounded queue."""

# struct tcp_info of linux/tcp.h.
_TCP_INFO_RETRANSMITS, _TCP_INFO_PROBES, _TCP_INFO_LAST_ACK_RECV, _TCP_INFO_SND_WND = 2, 3, 56, 228
_TCP_INFO_BYTES_ACKED = 120


def prepare_listener(listener: socket.socket) -> None:
    """Set the options that our streams need; accepted sockets inherit them (tcp(7))."""
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, NOT_SENT_BYTES)


class Interrupted(trio.ClosedResourceError):
    """`interrupt` has ended a wait for bytes. The stream is still open."""


class ByteStream(trio.abc.HalfCloseableStream):
    """A TCP connection that the door accepted; the door frees it with `finish()`.

    Hypercorn uses it as its stream: `receive_some`, `send_all`, `send_eof`, `aclose` and `socket`. `push` is
    for whole messages between a task's writes.
    """

    __slots__ = (
        "_blocked",
        "_broken",
        "_busy",
        "_closed",
        "_fd",
        "_interrupted",
        "_largest_window",
        "_lot",
        "_more",
        "_raw",
        "_tail",
        "_unread",
        "last_received",
        "peer",
        "write_timeout",
    )

    def __init__(self, raw: socket.socket, peer: str) -> None:
        self.peer = peer
        self.last_received = trio.current_time()
        self.write_timeout = math.inf
        """Seconds within which `IN_TIME_BYTES`, or all of a write, must be written; else the stream breaks."""
        self._raw = raw
        self._fd = raw.fileno()
        self._unread = b""
        self._more = True  # there is probably something to read right away: here, a request's head
        self._tail: bytes | memoryview = b""  # the unwritten rest of a push
        self._busy = False  # a task is writing
        self._lot: trio.lowlevel.ParkingLot | None = None  # tasks that wait for their turn, in order
        self._broken = False
        self._closed = False
        self._interrupted = False
        self._blocked = False  # any of the four, so that `push` checks only one flag
        self._largest_window = 0

    @property
    def socket(self) -> trio.socket.SocketType:
        """Made anew each time: only Hypercorn asks for it."""
        return trio.socket.from_stdlib_socket(self._raw)

    # --- reading ---------------------------------------------------------------------------------

    def unread(self, data: bytes) -> None:
        """Put bytes back; the next `receive_some` returns them first."""
        self._unread = data + self._unread

    def take_now(self, max_bytes: int) -> bytes:
        """What has arrived already: the first bytes of a connection mostly come with it. Empty if that is
        nothing, or the end. Raises BrokenResourceError."""
        try:
            data = self._raw.recv(max_bytes)
        except BlockingIOError:
            data = b""
        except OSError as error:
            raise trio.BrokenResourceError(str(error)) from None
        self._more = len(data) == max_bytes
        return data

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        if self._closed:
            raise trio.ClosedResourceError
        if self._unread:
            await trio.lowlevel.checkpoint()
            size = len(self._unread) if max_bytes is None else max_bytes
            data, self._unread = self._unread[:size], self._unread[size:]
            return data
        return await self._receive(max_bytes or 65_536)

    async def _receive(self, max_bytes: int) -> bytes:
        """Bytes from the wire.

        It waits before it reads, unless the last read was full: mostly nothing has arrived yet, and an empty
        read is a wasted system call (8 of the 76 µs of a get).
        """
        while True:
            if self._more:
                await trio.lowlevel.checkpoint()
            elif not self._interrupted:
                try:
                    await trio.lowlevel.wait_readable(self._raw)
                except trio.ClosedResourceError:
                    if not self._interrupted:
                        raise
            if self._closed:  # meanwhile; a new wait would never end
                raise trio.ClosedResourceError
            if self._interrupted:
                break
            try:
                data = self._raw.recv(max_bytes)
            except BlockingIOError:
                self._more = False
                continue
            except OSError as error:
                raise trio.BrokenResourceError(str(error)) from None
            self._more = len(data) == max_bytes
            self.last_received = trio.current_time()
            return data
        self._interrupted = False
        raise Interrupted

    def interrupt(self) -> None:
        """Let the task that waits for bytes, or the next one that would, fail with `Interrupted`. A task that
        waits to write fails with ClosedResourceError."""
        self._interrupted = True
        trio.lowlevel.notify_closing(self._raw)

    def resume(self) -> None:
        """Forget an `interrupt` that came when nothing was waiting."""
        self._interrupted = False

    # --- writing ---------------------------------------------------------------------------------

    @property
    def needs_flush(self) -> bool:
        """Whether the rest of a push is still unwritten; the next `send_all` writes it first."""
        return bool(self._tail)

    def push(self, data: bytes) -> int:
        """Write as much of `data` as the kernel accepts now, and keep the rest for the next `send_all`.

        Returns the size of that rest. Returns -1 and takes nothing while a write is running, an earlier rest
        waits, or the kernel accepts nothing. Raises BrokenResourceError and ClosedResourceError.
        """
        if self._blocked:
            self._check()
            return -1
        return self._write_now(data)

    def _write_now(self, data: bytes) -> int:
        """`push` when nothing blocks it."""
        try:
            # os.write is 0.15 µs cheaper than socket.send, which checks its timeout first.
            sent = os.write(self._fd, data)
        except BlockingIOError:
            return -1
        except OSError as error:
            self._break()
            raise trio.BrokenResourceError(str(error)) from None
        left = len(data) - sent
        if left:
            self._keep(memoryview(data)[sent:])
        return left

    def keep(self, tail: bytes | memoryview) -> None:
        """Keep a message, or the unwritten rest of one, for the next `send_all`, behind what waits already."""
        self._keep(bytes(self._tail) + tail if self._tail else tail)

    def _keep(self, tail: bytes | memoryview) -> None:
        self._tail, self._blocked = tail, True

    def writer(self) -> Callable[[bytes], int] | None:
        """The bare system call, for a caller that writes only through it until it blocks, and then must `keep`
        the rest. None while something blocks."""
        return None if self._blocked else partial(os.write, self._fd)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Write `data` after all earlier writes.

        A write that fits is not a checkpoint. Raises BrokenResourceError (also when the peer does not read
        enough within `write_timeout`) and ClosedResourceError.
        """
        if len(data) <= AT_ONCE_BYTES and isinstance(data, bytes):
            left = self.push(data)  # mostly this is all
            if left == 0:
                return
            if left > 0:
                data = b""
        await self._begin()
        try:
            tail, self._tail = self._tail, b""
            if tail:
                await self._write_raw(tail)
            if data:
                await self._write(data)
        finally:
            self._end()

    async def _begin(self) -> None:
        """Wait for our turn to write."""
        if self._busy:
            if self._lot is None:
                self._lot = trio.lowlevel.ParkingLot()
            await self._lot.park()  # the task that wakes us hands its turn over
        self._busy = self._blocked = True

    def _end(self) -> None:
        if self._lot:
            self._lot.unpark()
        else:
            self._busy = False
            self._blocked = self._broken or self._closed or bool(self._tail)

    async def _write(self, data: bytes | bytearray | memoryview) -> None:
        await self._write_raw(data)

    async def _write_raw(self, data: bytes | bytearray | memoryview) -> None:
        """Put all bytes on the wire; an incomplete write breaks the stream."""
        view = memoryview(data)
        begun = due = 0
        deadline = math.inf
        try:
            while begun < len(view):
                self._check()
                try:
                    begun += self._raw.send(view[begun:])
                except BlockingIOError:
                    if begun >= due:
                        due, deadline = begun + IN_TIME_BYTES, trio.current_time() + self.write_timeout
                    with trio.move_on_at(deadline) as scope:
                        await trio.lowlevel.wait_writable(self._raw)
                    if scope.cancelled_caught:
                        self.abort()  # else the kernel keeps its buffer for minutes
                        raise trio.BrokenResourceError("the peer does not read") from None
        except OSError as error:
            raise trio.BrokenResourceError(str(error)) from None
        finally:
            if begun < len(view):
                self._break()

    def _break(self) -> None:
        self._broken = self._blocked = True

    def _check(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError
        if self._broken:
            raise trio.BrokenResourceError

    async def wait_send_all_might_not_block(self) -> None:
        await self._begin()
        try:
            self._check()
            await trio.lowlevel.wait_writable(self._raw)
        finally:
            self._end()

    async def send_eof(self) -> None:
        await self._begin()
        try:
            self._check()
            self._shutdown()
        finally:
            self._end()

    # --- the end ---------------------------------------------------------------------------------

    async def aclose(self) -> None:
        """Shut down our side and fail the tasks that wait. The door calls `finish` to free the socket."""
        self.end()
        await trio.lowlevel.checkpoint()

    def end(self) -> None:
        """`aclose` without the checkpoint."""
        if not self._closed:
            self._closed = self._blocked = True
            self._shutdown()
            trio.lowlevel.notify_closing(self._raw)

    def abort(self) -> None:
        """Drop the connection at once: unsent bytes are lost, and the peer gets a reset."""
        self.end()
        try:
            self._raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        except OSError:
            pass  # it is gone already
        self._break()

    async def finish(self) -> None:
        """`finish_now`, and if that does not suffice `linger`."""
        if not self.finish_now():
            await self.linger()

    async def linger(self) -> None:
        """Free the socket, after discarding the peer's last bytes for at most `LINGER_SECONDS`.

        A close with unread input makes the kernel send a reset, which can destroy the last response (a 413, a
        close frame) before the peer has read it.
        """
        with trio.move_on_after(LINGER_SECONDS):
            await self._discard()
        self._raw.close()

    def finish_now(self) -> bool:
        """Free the socket if the connection is broken, or if the peer has closed it, too; else only end it.
        Returns whether it is free. A wait takes 10 µs for its cancel scopes."""
        self.end()
        if not self._broken:
            try:
                if self._raw.recv(65_536):
                    return False
            except BlockingIOError:
                return False
            except OSError:
                pass
        self._raw.close()
        return True

    async def _discard(self) -> None:
        """Read until the peer closes."""
        while True:
            try:
                if not self._raw.recv(65_536):
                    return
                await trio.lowlevel.checkpoint()
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._raw)
            except OSError:
                return

    def _shutdown(self) -> None:
        try:
            self._raw.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # no longer connected

    # --- is the peer there? ----------------------------------------------------------------------

    def peer_is_gone(self) -> bool:
        """Whether the peer's machine has been silent for long, although TCP retransmits to it."""
        try:
            info = self._raw.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
        except OSError:
            return True
        (silent_ms,) = struct.unpack_from("I", info, _TCP_INFO_LAST_ACK_RECV)
        return bool(info[_TCP_INFO_RETRANSMITS] or info[_TCP_INFO_PROBES]) and silent_ms > GONE_SECONDS * 1000

    def progress(self) -> tuple[int | None, int]:
        """Bytes that the peer's machine has acknowledged (None if the kernel does not tell), and bytes that it
        has not yet. They include those of TLS. Counting them costs a write nothing."""
        try:
            info = self._raw.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 128)
            (acknowledged,) = struct.unpack_from("Q", info, _TCP_INFO_BYTES_ACKED)
            (queued,) = struct.unpack("i", fcntl.ioctl(self._raw, termios.TIOCOUTQ, b"\0\0\0\0"))
        except (OSError, struct.error):  # it is closed; or a kernel before 4.1
            return None, len(self._tail)
        return acknowledged, queued + len(self._tail)

    def reader_is_behind(self) -> bool:
        """Whether the peer's program has not read everything that we sent.

        It cannot respond to a ping that it has not read yet. TCP shows this: its machine has not accepted all
        bytes, or its receive window is smaller than it was.
        """
        try:
            queued = struct.unpack("i", fcntl.ioctl(self._raw, termios.TIOCOUTQ, b"\0\0\0\0"))[0]
        except OSError:
            return False
        window = self.note_window()
        return queued > 0 or self._blocked or window < self._largest_window * 3 // 4

    def note_window(self) -> int:
        """Record the peer's largest receive window; returns the current one in bytes."""
        try:
            info = self._raw.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
            (window,) = struct.unpack_from("I", info, _TCP_INFO_SND_WND)
        except (OSError, struct.error):  # struct.error: kernels before 5.4 do not report it
            return 0
        self._largest_window = max(self._largest_window, window)
        return int(window)
