"""`/metrics`: what operators read."""

from __future__ import annotations

import re

import httpx
import pytest

from tests.conftest import StartServer, wait_until

pytestmark = pytest.mark.executable


def value(text: str, name: str) -> float:
    found = re.search(rf"^{name} (\S+)$", text, re.MULTILINE)
    assert found, text
    return float(found[1])


@pytest.mark.smoke
def test_metrics_count_and_need_their_key_if_they_have_one(start_server: StartServer) -> None:
    server = start_server("--metrics-key", "prometheus")
    assert httpx.get(f"{server.url}/metrics").status_code == 401
    for wrong in (b"Bearer wrong", b"Bearer \xe9", b"prometheus", b"Basic prometheus"):
        assert httpx.get(f"{server.url}/metrics", headers={b"Authorization": wrong}).status_code == 401

    def text() -> str:
        response = httpx.get(f"{server.url}/metrics", headers={"Authorization": "Bearer prometheus"})
        assert response.status_code == 200
        return response.text

    assert value(text(), "paperdb_live_connections") == 0
    with server.connect("c") as ws:
        server.insert("c", {"n": 1})
        ws.recv(timeout=5)
        assert value(text(), "paperdb_live_connections") == 1
        assert value(text(), "paperdb_changes_total") == 1
        assert value(text(), "paperdb_deliveries_total") == 1
    wait_until(lambda: value(text(), "paperdb_live_connections") == 0)


def test_the_servers_own_housekeeping_is_not_counted(start_server: StartServer) -> None:
    server = start_server("--retention-count", "1")
    for n in range(3):
        server.insert("c", {"n": n})
    wait_until(lambda: server.request("GET", "/c/changes?since=1").status_code == 410)  # it has been trimmed
    metrics = server.request("GET", "/metrics").text
    assert (value(metrics, "paperdb_operations_total"), value(metrics, "paperdb_commits_total")) == (3, 3)
