"""A short storm of SDK subscriptions; the long version is `just storm-sdks`."""

from __future__ import annotations

from pathlib import Path

from tests.conftest import StartServer
from tests.stress.sdks import storm
from tests.web.conftest import package

__all__ = ["package"]  # the fixture


def test_subscriptions_of_both_sdks_dropped_at_once_miss_and_repeat_nothing(
    package: Path, start_server: StartServer
) -> None:
    assert storm(start_server(), package, clients=40, rate=100, rounds=2, seed=1) == []
