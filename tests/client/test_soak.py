"""A short run of the soak program; `python -m tests.client.soak` is for longer ones."""

from __future__ import annotations

import pytest

from paperdb_trio.client import backoff, token
from tests.client.soak import QUICK, soak
from tests.conftest import StartServer


def test_a_few_seconds_of_the_soak(start_server: StartServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backoff, "MAX_DELAY", backoff.MAX_DELAY)  # undone after the test
    monkeypatch.setattr(token, "RENEWAL_PAUSE", token.RENEWAL_PAUSE)
    assert soak(start_server(), seed=1, seconds=2, troubles=QUICK) == []
