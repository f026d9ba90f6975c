"""A short run of the soak program; longer ones are for `python -m tests.client.soak`."""

from __future__ import annotations

import pytest

from paperdb_trio.client import backoff, token
from tests.client.soak import QUICK, soak
from tests.conftest import StartServer


def test_a_few_seconds_of_every_trouble(start_server: StartServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backoff, "MAX_DELAY", backoff.MAX_DELAY)  # what the program sets is undone
    monkeypatch.setattr(token, "RENEWAL_PAUSE", token.RENEWAL_PAUSE)
    assert soak(start_server(), seed=1, seconds=2, troubles=QUICK) == []
