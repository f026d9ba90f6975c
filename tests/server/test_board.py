"""The memory that processes share: counts against a plain dictionary, marks, and held reads over a fork."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from paperdb_trio.config import Settings
from paperdb_trio.errors import ApiError
from paperdb_trio.limits import Limits, Rate
from paperdb_trio.server.board import Board, WorkerCounts, WorkerGate, WriterGate
from tests.conftest import wait_until

steps = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 30), st.integers(0, 3)), max_size=200)


@given(steps)
@settings(max_examples=100)
def test_counts_are_those_of_a_dictionary(steps: list[tuple[int, int, int]]) -> None:
    board = Board(3, 16)  # 32 slots, often full at one place
    counts = [WorkerCounts(board, worker) for worker in range(3)]
    known: dict[tuple[int, int], int] = {}
    for worker, key, count in steps:
        if sum(1 for (owner, _), value in known.items() if owner == worker and value) < 16:
            counts[worker].tell("connections", key, count)
            known[worker, key] = count
    for worker in range(3):
        for key in range(31):
            expected = sum(known.get((other, key), 0) for other in range(3) if other != worker)
            assert counts[worker].others("connections", key) == expected
    board.forget(1)
    for key in range(31):
        assert counts[0].others("connections", key) == known.get((2, key), 0)


def test_full_table_refuses_nothing_and_keeps_its_counts() -> None:
    board = Board(2, 4)
    ours, theirs = WorkerCounts(board, 0), WorkerCounts(board, 1)
    for key in range(100):
        ours.tell("connections", key, 1)
    found = [theirs.others("connections", key) for key in range(100)]
    assert sum(found) == 5
    for key in range(100):
        ours.tell("connections", key, 0)
    assert not any(theirs.others("connections", key) for key in range(100))


def in_child(act: Callable[[], object]) -> int:
    """Run it in a fork; the exit code: 0 if it returned something true."""
    pid = os.fork()
    if not pid:
        code = 1
        try:
            code = 0 if act() else 1
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def told(counts: WorkerCounts) -> bool:
    counts.tell("connections", "192.0.2.1", 2)
    return True


def test_another_process_sees_counts_and_marks() -> None:
    board = Board(2, 16)
    WorkerCounts(board, 0).tell("connections", "192.0.2.1", 7)
    marks = board.commit([5, 5 + 1024, 9])
    assert marks == {5: 1, 9: 1}
    other = WorkerCounts(board, 1)
    assert in_child(lambda: other.others("connections", "192.0.2.1") == 7) == 0
    assert in_child(lambda: board.marks() == {5: 1, 9: 1} and board.mark(5) == 1) == 0
    assert in_child(partial(told, other)) == 0
    assert WorkerCounts(board, 0).others("connections", "192.0.2.1") == 2


def test_reads_are_held_back_until_the_gate_opens() -> None:
    board = Board(1, 16)
    writer, worker = WriterGate(board), WorkerGate(board, 0)
    emptied: list[bool] = []
    writer.on_empty = lambda: emptied.append(True)
    worker.enter()
    assert not writer.close(5)
    assert writer.look()
    worker.leave()
    assert not writer.look()
    assert emptied == [True]
    pid = os.fork()
    if not pid:
        worker.enter()
        worker.leave()
        os._exit(0)
    time.sleep(0.05)
    assert os.waitpid(pid, os.WNOHANG) == (0, 0)
    writer.open()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert writer.close(5)
    writer.open()
    worker.enter()  # no longer held
    worker.leave()


def test_a_gate_that_nobody_opens_opens_itself() -> None:
    board = Board(1, 16)
    began = time.monotonic()
    WriterGate(board).close(0.05)
    WorkerGate(board, 0).enter()
    assert time.monotonic() - began >= 0.04
    wait_until(lambda: board.held() <= 0, 1)


def test_limits_count_what_other_processes_have() -> None:
    board = Board(2, 64)
    settings = Settings(
        max_connections=3, max_connections_per_address=2, trusted_proxies="", max_pending_bytes=10
    )
    one, other = (Limits(settings, WorkerCounts(board, worker)) for worker in range(2))

    def refused(limits: Limits, address: str) -> bool:
        try:
            with limits.connection(address):
                return False
        except ApiError:
            return True

    with one.connection("192.0.2.1"):
        assert not refused(other, "192.0.2.1")
        with other.connection("192.0.2.1"):
            assert refused(one, "192.0.2.1")
            assert refused(other, "192.0.2.1")
            assert not refused(one, "192.0.2.2")
    assert not refused(one, "192.0.2.1")
    one.open(2)
    other.open(1)
    before = one.is_full, other.is_full
    other.open(2)
    assert (before, one.is_full, other.is_full) == ((False, False), True, True)
    with one.pending(9), other.pending(0), pytest.raises(ApiError) as refusal, other.pending(2):
        pass
    assert refusal.value.code == "TOO_MANY_PENDING_BYTES"


async def test_first_request_of_a_key_counts_what_other_processes_took(mock_clock: MockClock) -> None:
    """A burst for each worker was let through."""
    board = Board(3, 64)
    first, second, third = (Rate(0.1, "tokens", WorkerCounts(board, worker)) for worker in range(3))
    first.take("key")
    with pytest.raises(ApiError) as refusal:
        second.take("key")
    assert refusal.value.headers == {"Retry-After": "10"}
    mock_clock.jump(10)
    second.take("key")
    board.began -= 3600  # long ago: what was taken then has come back
    third.take("key")
