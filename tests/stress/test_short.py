"""The stress programs, short: `just crash`, `just storm` and `just slow` are the long versions."""

from __future__ import annotations

from tests.stress.crash import crash
from tests.stress.harness import report
from tests.stress.slow import slow
from tests.stress.storm import storm


def test_nothing_acknowledged_is_lost_and_nothing_comes_twice_when_the_server_is_killed() -> None:
    assert report(crash(kills=6, seed=1), 1) == 0


def test_a_storm_of_resuming_subscribers_misses_and_repeats_nothing() -> None:
    assert report(storm(subscribers=200, rate=100, rounds=2, seed=1), 1) == 0


def test_readers_that_do_not_read_are_kept_and_cost_little_and_get_everything_later() -> None:
    assert report(slow(stuck=100, seconds=3, rate=300), 1) == 0
