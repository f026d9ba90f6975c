"""A short run of the soak program; longer ones are for `just soak`."""

from __future__ import annotations

from pathlib import Path

from tests.conftest import StartServer
from tests.web.soak import QUICK, soak


def test_a_few_seconds_of_every_trouble(package: Path, start_server: StartServer) -> None:
    assert soak(start_server(), package, seed=1, seconds=2, troubles=QUICK) == []
