"""The stress programs, short: `just crash`, `storm`, `slow`, `loris`, `deaf`, `heavy` are the long versions."""

from __future__ import annotations

import pytest

from tests.stress.crash import crash
from tests.stress.deaf import deaf
from tests.stress.harness import report
from tests.stress.heavy import heavy
from tests.stress.loris import crowd, handshakes, loris
from tests.stress.slow import slow
from tests.stress.storm import storm


def test_nothing_acknowledged_is_lost_and_nothing_comes_twice_when_the_server_is_killed() -> None:
    assert report(crash(kills=6, seed=1), 1) == 0


def test_a_storm_of_resuming_subscribers_misses_and_repeats_nothing() -> None:
    assert report(storm(subscribers=200, rate=100, rounds=2, seed=1), 1) == 0


def test_readers_that_do_not_read_are_kept_and_cost_little_and_get_everything_later() -> None:
    assert report(slow(stuck=100, seconds=3, rate=300), 1) == 0


def test_heads_of_a_byte_a_second_end_with_408_and_keep_nobody_waiting() -> None:
    assert report(loris(connections=200, head_timeout=1), 1) == 0


def test_connections_beyond_the_limit_are_refused_and_then_there_is_room_again() -> None:
    assert report(crowd(limit=20, more=20), 1) == 0


def test_handshakes_that_stop_half_way_leave_nothing_behind() -> None:
    assert report(handshakes(connections=100, head_timeout=0.5, seed=1), 1) == 0


@pytest.mark.parametrize("http2", [False, True], ids=["1.1", "2"])
def test_a_client_that_never_reads_its_answers_is_ended_and_costs_little(http2: bool) -> None:
    assert report(deaf(clients=5, requests=2000, write_timeout=1, http2=http2), 1) == 0


def test_what_says_much_in_few_bytes_is_answered_and_memory_returns() -> None:
    assert report(heavy(mebibytes=1, connections=5), 0) == 0
