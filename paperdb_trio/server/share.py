"""An even share of the connections for each worker.

The kernel chooses a worker by a hash of both addresses, so that one of two workers gets 20 of 32 connections
now and then. A worker that has more of them open than another one passes new ones on to it.

Law: bytes of a client are never read before its connection is where it stays. A connection that was passed on
waits for its worker, like one in the backlog of a listener: also while that worker is started again.
"""

from __future__ import annotations

import errno
import os
import socket
from typing import Final

from paperdb_trio.limits import OPEN
from paperdb_trio.server.board import Board, name_of

SLACK: Final = 1 / 32
"""The part by which a worker may have more connections than another. Of many, hardly one is passed on."""
MOST_PASSING: Final = 2
"""Connections on their way to a worker. One that takes them late has more in its own backlog than its count
says: without this, a burst of 1,000 ended as 546 and 454, more uneven than the kernel's choice."""
ADDRESS_BYTES: Final = 256


class Passage:
    """What connections are passed through to one worker. The supervisor holds it."""

    def __init__(self) -> None:
        self.out, self.into = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.out.setblocking(False)
        self.into.setblocking(False)

    def close(self) -> None:
        self.out.close()
        self.into.close()


class Sharing:
    """A listener of a worker, as the door sees it: `accept` returns only connections that stay here."""

    def __init__(self, listener: socket.socket, board: Board, worker: int, passages: list[Passage]) -> None:
        self._listener = listener
        self._board = board
        self._worker = worker
        self._passages = passages
        self._others = [other for other in range(len(passages)) if other != worker]
        self._open = name_of(*OPEN)

    def fileno(self) -> int:
        return self._listener.fileno()

    def accept(self) -> tuple[socket.socket, tuple[str, int]]:
        while True:
            raw, address = self._listener.accept()
            if not self._pass_on(raw, address):
                return raw, address

    def _pass_on(self, raw: socket.socket, address: tuple[str, int]) -> bool:
        board = self._board
        theirs, other = min(
            (board.count(other, self._open) + board.passing(other), other) for other in self._others
        )
        ours = board.count(self._worker, self._open)
        if ours <= theirs * (1 + SLACK) or board.passing(other) >= MOST_PASSING:
            return False
        try:
            message = f"{address[0]} {address[1]}".encode()
            socket.send_fds(self._passages[other].out, [message], [raw.fileno()])
        except OSError:
            return False
        board.passed(self._worker, other)
        raw.close()
        return True


class Passed:
    """The other listener of a worker: `accept` returns what others pass on to it.

    A worker can die after it has taken a connection and before it has counted it. Left so, the count would in
    the end keep all others from passing any on to it. Whenever none waits, and so at a start, all have arrived.
    """

    def __init__(self, board: Board, worker: int, passage: Passage, family: int) -> None:
        self._board = board
        self._worker = worker
        self._into = passage.into
        self._family = family

    def fileno(self) -> int:
        return self._into.fileno()

    def accept(self) -> tuple[socket.socket, tuple[str, int]]:
        passed = self._board.passed_to(self._worker)
        try:
            message, files, _, _ = socket.recv_fds(self._into, ADDRESS_BYTES, 1, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            self._board.taken_all(self._worker, passed)
            raise
        self._board.taken(self._worker)
        host, _, port = message.decode().partition(" ")
        if not files:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        raw = socket.socket(self._family, socket.SOCK_STREAM, socket.IPPROTO_TCP, files[0])
        return raw, (host, int(port))


def share(
    listener: socket.socket, board: Board, worker: int, passages: list[Passage]
) -> tuple[Sharing, Passed]:
    """The listeners of a worker that is one of several."""
    return Sharing(listener, board, worker, passages), Passed(board, worker, passages[worker], listener.family)
