"""The versions of a document that the change log holds."""

from __future__ import annotations

from typing import Any

import httpx

from tests.conftest import StartServer, wait_until
from tests.rest.tools import etag, refusal


def test_history_lists_all_lives_of_a_document_newest_first(api: httpx.Client, docs: str) -> None:
    path = f"{docs}/a"
    expected: list[dict[str, Any]] = []

    def note(type: str, response: httpx.Response, data: Any = None) -> None:
        expected.insert(0, {"seq": etag(response), "type": type, "data": data or response.json()})

    note("insert", api.put(path, json={"n": 1}))
    assert api.put(f"{docs}/other", json={}).status_code == 201
    note("update", api.patch(path, json={"n": 2}))
    last = api.get(path).json()
    note("delete", api.delete(path), last)
    note("insert", api.put(path, json={"n": 3}))
    note("update", api.put(path, json={"m": 4}))
    assert api.get(f"{path}/history").json() == {"versions": expected}
    assert api.get(f"{path}/history?limit=2").json() == {"versions": expected[:2]}
    last = api.get(path).json()
    note("delete", api.delete(path), last)
    assert api.get(f"{path}/history").json() == {"versions": expected}


def test_history_of_a_document_that_never_was_is_a_404(api: httpx.Client, docs: str) -> None:
    assert refusal(api.get(f"{docs}/no/history")) == (404, "NOT_FOUND")


def test_history_is_what_retention_left(start_server: StartServer) -> None:
    server = start_server("--retention-count", "2")
    for n in range(5):
        server.request("PUT", "/c/docs/a", json={"n": n})
    history = "/c/docs/a/history"
    wait_until(lambda: len(server.request("GET", history).json()["versions"]) == 2)
    for _ in range(3):
        server.request("PUT", "/c/docs/b", json={})
    wait_until(lambda: server.request("GET", history).json()["versions"] == [])


def test_history_is_bounded_in_bytes(start_server: StartServer) -> None:
    server = start_server("--max-result-bytes", "1048576")
    for n in range(4):
        server.request("PUT", "/c/docs/a", json={"n": n, "pad": "x" * 400_000})
    assert refusal(server.request("GET", "/c/docs/a/history")) == (400, "RESULT_TOO_LARGE")
    assert len(server.request("GET", "/c/docs/a/history?limit=2").json()["versions"]) == 2
