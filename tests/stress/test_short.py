"""Short runs of the stress programs; `just crash`, `storm`, `slow`, `wal`, `loris`, `deaf`, `heavy` are the
long ones."""

from __future__ import annotations

import pytest

from tests.stress.crash import crash
from tests.stress.deaf import deaf
from tests.stress.harness import report
from tests.stress.heavy import heavy
from tests.stress.loris import crowd, handshakes, loris
from tests.stress.slow import slow
from tests.stress.storm import storm
from tests.stress.wal import wal


def test_kills_lose_no_acknowledged_write_and_repeat_no_event() -> None:
    assert report(crash(kills=3, seed=1), 1) == 0


def test_storm_of_resuming_subscribers_misses_and_repeats_nothing() -> None:
    assert report(storm(subscribers=100, live=100, rate=100, rounds=2, seed=1), 1) == 0


def test_stuck_readers_cost_little_and_get_everything_later() -> None:
    assert report(slow(stuck=100, seconds=3, rate=300), 1) == 0


def test_slow_heads_get_408_and_delay_no_other_client() -> None:
    assert report(loris(connections=200, head_timeout=1), 1) == 0


def test_connections_beyond_the_limit_are_refused_until_there_is_room() -> None:
    assert report(crowd(limit=20, more=20), 1) == 0


def test_unfinished_handshakes_leave_nothing_behind() -> None:
    assert report(handshakes(connections=100, head_timeout=0.5, seed=1), 1) == 0


@pytest.mark.parametrize("http2", [False, True], ids=["1.1", "2"])
def test_client_that_never_reads_is_closed_and_costs_little(http2: bool) -> None:
    assert report(deaf(clients=5, requests=2000, write_timeout=1, http2=http2), 1) == 0


def test_dense_bodies_get_responses_and_memory_returns() -> None:
    assert report(heavy(mebibytes=0.25, connections=2), 0) == 0


def test_log_stays_short_although_reads_always_overlap() -> None:
    assert report(wal(seconds=3, max_wal_bytes=2**20, finders=6, patchers=3, seed=1), 1) == 0
