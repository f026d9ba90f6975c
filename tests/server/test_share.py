"""Connections that a worker passes on, so that each has an even share of them."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any, NoReturn

import httpx
import pytest
import trio

from paperdb_trio.doors.listener import Door, listen
from paperdb_trio.limits import OPEN
from paperdb_trio.server.board import Board, WorkerCounts
from paperdb_trio.server.share import MOST_PASSING, Passage, Passed, Sharing, share
from tests.conftest import NO_TLS, StartServer


class Two:
    """Two workers, of which clients only reach the first one."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self.board = Board(2, 16)
        listener = stack.enter_context(listen("127.0.0.1", 0))
        self.address = listener.getsockname()
        listener.settimeout(10)
        passages = [Passage(), Passage()]
        for passage in passages:
            stack.callback(passage.close)
        self.first: Sharing = share(listener, self.board, 0, passages)[0]
        self.second = Passed(self.board, 1, passages[1], listener.family)

    def have(self, first: int, second: int) -> None:
        for worker, count in enumerate((first, second)):
            WorkerCounts(self.board, worker).tell(*OPEN, count)

    def connect(self) -> socket.socket:
        return self._stack.enter_context(socket.create_connection(self.address, timeout=10))

    def accept(self, by: Sharing | Passed) -> tuple[socket.socket, tuple[str, int]]:
        raw, address = by.accept()
        return self._stack.enter_context(raw), address


@pytest.fixture
def two() -> Iterator[Two]:
    with ExitStack() as stack:
        yield Two(stack)


def test_who_has_more_passes_on(two: Two) -> None:
    two.have(6, 5)
    over, own = two.connect(), two.connect()
    own.sendall(b"own")
    over.sendall(b"over")
    two.first._listener.settimeout(0)
    raw, address = two.accept(two.first)
    assert address == own.getsockname()
    assert raw.recv(10) == b"own"
    raw, address = two.accept(two.second)
    assert address == over.getsockname()
    assert raw.recv(10) == b"over"


def test_who_does_not_have_more_keeps_all(two: Two) -> None:
    for first, second in ((0, 0), (5, 5), (4, 9), (1000, 990)):
        two.have(first, second)
        client = two.connect()
        assert two.accept(two.first)[1] == client.getsockname()
    with pytest.raises(BlockingIOError):
        two.second.accept()


def test_one_that_takes_nothing_gets_no_more(two: Two) -> None:
    two.have(100, 0)
    clients = [two.connect() for _ in range(MOST_PASSING + 1)]
    assert two.accept(two.first)[1] == clients[-1].getsockname()
    two.board.forget(1)  # it dies, and begins anew
    for client in clients[:-1]:
        assert two.accept(two.second)[1] == client.getsockname()
    assert two.board.passing(1) == 0


def test_connections_that_a_dead_worker_did_not_count_are_counted_by_the_next(two: Two) -> None:
    two.have(100, 0)
    for _ in range(MOST_PASSING):
        two.connect()
    own = two.connect()
    assert two.accept(two.first)[1] == own.getsockname()
    for _ in range(MOST_PASSING):
        _, files, *_ = socket.recv_fds(two.second._into, 100, 1)
        os.close(files[0])
    assert two.board.passing(1) == MOST_PASSING
    with pytest.raises(BlockingIOError):
        two.second.accept()
    assert two.board.passing(1) == 0


def test_count_is_not_raised_by_one_that_is_passed_on_meanwhile(
    two: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    def receive(*_: Any) -> Any:
        two.board.passed(0, to=1)
        raise BlockingIOError

    monkeypatch.setattr(socket, "recv_fds", receive)
    with pytest.raises(BlockingIOError):
        two.second.accept()
    assert two.board.passing(1) == 1


async def test_worker_looks_for_connections_before_it_waits_for_any() -> None:
    looked = trio.Event()

    class Empty:
        def fileno(self) -> int:
            return silent.fileno()

        def accept(self) -> NoReturn:
            looked.set()
            raise BlockingIOError

    silent, other = socket.socketpair()
    with silent, other:
        door = Door(SimpleNamespace(settings=None), *[None] * 4)  # type: ignore[arg-type]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(door.run, Empty(), nursery)
            with trio.fail_after(10):
                await looked.wait()
            nursery.cancel_scope.cancel()


def test_connection_stays_where_the_way_is_closed(two: Two) -> None:
    two.have(100, 0)
    two.first._passages[1].into.close()
    client = two.connect()
    assert two.accept(two.first)[1] == client.getsockname()


def test_each_worker_serves_as_many(start_server: StartServer) -> None:
    server = start_server("--workers", "2")
    with ExitStack() as stack:
        for _ in range(40):
            client = stack.enter_context(httpx.Client(base_url=server.url, verify=NO_TLS, timeout=20))
            assert client.get("/healthz").status_code == 200
        found = re.findall(r"^paperdb_connections\{.*\} (\d+)", client.get("/metrics").text, re.MULTILINE)
        assert sorted(map(int, found)) == [20, 20]
