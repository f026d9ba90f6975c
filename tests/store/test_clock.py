"""The log's clock: a wrong computer's clock must not cost the log, and changes must still expire.

The computer's clock is a replaced `time.time`. Nothing else in these tests reads it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from paperdb_trio.store.clock import MAX_PAUSE, LogClock
from paperdb_trio.store.housekeeping import KeepTime, Trim
from paperdb_trio.store.operations import Patch, Replace
from paperdb_trio.store.sqlite.clock import continued
from tests.store.tools import DATABASE, MAX_BYTES, apply_all, committed, inserting, rows, without_system_fields

NOW = 1_800_000_000.0
DAY = 86_400.0
SLACK = 60.0
"""Seconds that a test may take."""


@dataclass
class Computer:
    """Its clock shows `now`."""

    now: float

    def time(self) -> float:
        return self.now


@pytest.fixture
def computer(monkeypatch: pytest.MonkeyPatch) -> Computer:
    computer = Computer(NOW)
    monkeypatch.setattr(time, "time", computer.time)
    return computer


def started(file: Path) -> LogClock:
    """The clock as at a server's start."""
    with committed(file) as tx:
        found = continued(tx.connection)
        KeepTime(found).apply(tx)
    return found


@pytest.mark.parametrize("step", [-30 * DAY, -5.0, 8 * DAY, 14 * 365 * DAY, 5.0 - NOW])
def test_computer_clock_step_does_not_move_the_log_clock(file: Path, computer: Computer, step: float) -> None:
    running = started(file)
    before = running.now()
    computer.now += step
    assert 0 <= running.now() - before < SLACK


@pytest.mark.parametrize(
    ("pause", "counted"),
    [(0, 0), (3600, 3600), (DAY, DAY), (30 * DAY, MAX_PAUSE), (14 * 365 * DAY, MAX_PAUSE), (-5, 0), (-NOW, 0)],
)
def test_time_without_a_server_counts_for_at_most_a_day(
    file: Path, computer: Computer, pause: float, counted: float
) -> None:
    before = started(file).now()
    computer.now += pause
    after = started(file).now()
    assert counted - 1 <= after - before < counted + SLACK
    computer.now -= pause  # the clock is corrected
    assert -1 <= started(file).now() - after < (MAX_PAUSE if pause < -DAY else max(-pause, 0)) + SLACK


def test_repeated_starts_with_a_wrong_clock_cost_one_day(file: Path, computer: Computer) -> None:
    before = started(file).now()
    computer.now += 1000 * DAY
    for _ in range(20):
        after = started(file).now()
    assert after - before < MAX_PAUSE + SLACK


@pytest.mark.parametrize(("pause", "counted"), [(3600, 3600), (30 * DAY, MAX_PAUSE), (-3600, 0)])
def test_file_without_a_clock_continues_from_its_newest_change(
    file: Path, computer: Computer, pause: float, counted: float
) -> None:
    apply_all(file, inserting({}))  # stamped with the computer's clock, as by an older version
    computer.now += pause
    assert NOW + counted - 1 <= started(file).now() < NOW + counted + SLACK


def test_log_clock_is_never_behind_the_newest_change(file: Path, computer: Computer) -> None:
    started(file)
    computer.now += DAY
    apply_all(file, inserting({}))
    computer.now -= 10 * DAY
    assert started(file).now() >= NOW + DAY - 1


def test_changes_expire_by_the_log_clock(file: Path, computer: Computer) -> None:
    apply_all(file, inserting({}))
    running = started(file)
    computer.now += 1000 * DAY
    assert apply_all(file, Trim(DATABASE, running.now() - 7 * DAY, 100)) == [(0, 0)]
    assert apply_all(file, Trim(DATABASE, running.now() + 1, 0)) == [(1, 1)]


def test_log_clock_is_saved(file: Path, computer: Computer) -> None:
    running = LogClock(5000.0)
    apply_all(file, KeepTime(running))
    kept = dict(rows(file, "SELECT name, value FROM meta"))
    assert 5_000_000 <= kept["log_time"] < 5_060_000
    assert kept["wall_time"] == NOW * 1000


def test_document_times_never_go_back(file: Path, computer: Computer) -> None:
    def times() -> list[str]:
        (row,) = rows(
            file, "SELECT json_extract(data,'$.createdAt'), json_extract(data,'$.updatedAt') FROM documents"
        )
        return list(row)

    apply_all(file, inserting({"key": "a"}))
    created, updated = times()
    assert created == updated
    computer.now -= 30
    patched, replaced = (
        apply_all(file, operation)[0]
        for operation in (
            Patch(DATABASE, "c", "a", {"n": 1}, None, MAX_BYTES),
            Replace(DATABASE, "c", "a", {"n": 2}, None, MAX_BYTES),
        )
    )
    assert times() == [created, created]
    assert [without_system_fields(written.data) for written in (patched, replaced)] == [{"n": 1}, {"n": 2}]
    computer.now += 60
    apply_all(file, Patch(DATABASE, "c", "a", {}, None, MAX_BYTES))
    later = times()[1]
    assert later > created
    computer.now -= 45
    apply_all(file, Replace(DATABASE, "c", "a", {}, None, MAX_BYTES))
    assert times() == [created, later]
