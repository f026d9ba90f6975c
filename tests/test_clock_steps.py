"""The computer's clock is set back and forth under a running server.

The tests must not set this machine's clock, so `sitecustomize` gives the server its own, controlled by a file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Server, StartServer, receive, wait_until

DAY = 86_400

SITE = """
import os, time
_real, _file = time.time, os.environ["CLOCK_FILE"]
def _set():
    with open(_file) as file:
        return _real() + float(file.read())
time.time = _set
"""


class Clock:
    """Set `step` seconds ahead of the right time."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self.file = directory / "step"
        self.set(0)
        (directory / "sitecustomize.py").write_text(SITE)
        self.env = {"PYTHONPATH": str(directory), "CLOCK_FILE": str(self.file)}

    def set(self, step: float) -> None:
        new = self.file.with_suffix(".new")
        new.write_text(str(step))
        new.replace(self.file)


@pytest.fixture
def clock(tmp_path: Path) -> Clock:
    return Clock(tmp_path / "clock")


def changes(server: Server, since: int | None = None) -> dict[str, Any]:
    response = server.request("GET", "/c/changes" + ("" if since is None else f"?since={since}"))
    return {"status": response.status_code, **response.json()}


def oldest(server: Server) -> int:
    found = changes(server)
    return int(found["changes"][0]["seq"])


@pytest.mark.parametrize("step", [-50 * 365 * DAY, 30 * DAY, 14 * 365 * DAY])
def test_clock_step_loses_no_change_of_the_log(start_server: StartServer, clock: Clock, step: float) -> None:
    """The log is also bounded by count here, which shows that a trim has run since."""
    server = start_server("--retention-count", "5", env=clock.env)
    for n in range(10):
        server.insert("c", {"key": str(n)})
    wait_until(lambda: oldest(server) == 6)
    clock.set(step)
    server.insert("c", {"key": "stepped"})
    wait_until(lambda: oldest(server) == 7)
    clock.set(0)
    server.insert("c", {"key": "back"})
    wait_until(lambda: oldest(server) == 8)
    assert [change["seq"] for change in changes(server)["changes"]] == [8, 9, 10, 11, 12]
    clock.set(step)
    server.stop()
    server.start()
    server.insert("c", {"key": "restarted"})
    wait_until(lambda: oldest(server) == 9)
    assert len(changes(server)["changes"]) == 5


def test_tokens_and_sockets_survive_a_clock_set_back(start_server: StartServer, clock: Clock) -> None:
    server = start_server(env=clock.env)
    token = server.token("c")
    with server.connect("c", query="since=now") as ws:
        receive(ws)
        first = server.insert("c", {"key": "a"})
        clock.set(-30)
        patched = server.request("PATCH", "/c/docs/a", json={"n": 1}).json()
        assert patched["updatedAt"] >= first["createdAt"] == patched["createdAt"]
        assert [receive(ws)["type"] for _ in range(2)] == ["insert", "update"]
        response = server.request(
            "GET", f"/c/changes?token={token}", headers={"Authorization": f"Bearer {token}"}
        )
        assert response.status_code == 200
