"""Slow finds and counts in the log: with their plan, and never with a value."""

from __future__ import annotations

import json
from typing import Any

import pytest

from paperdb_trio.store.query import shape
from tests.conftest import StartServer, wait_until
from tests.logs import line_of, lines
from tests.rest.tools import figure, refusal
from tests.store.tools import LONG_TO_SEARCH


@pytest.mark.parametrize(
    ("filter", "expected"),
    [
        (None, {}),
        ({"a": "v"}, {"a": "?"}),
        ({"a": {"gt": 1, "lt": 2}, "b": None}, {"a": {"gt": "?", "lt": "?"}, "b": "?"}),
        ({"a": {"in": ["v", "w"]}}, {"a": {"in": "?"}}),
        (
            {"or": [{"a": "v"}, {"a": "w"}, {"b": {"exists": True}}]},
            {"or": [{"a": "?"}, {"b": {"exists": "?"}}]},
        ),
        ({"not": {"and": [{"a": "v"}]}}, {"not": {"and": [{"a": "?"}]}}),
        ({"or": {"eq": "v"}}, {"or": {"eq": "?"}}),
    ],
)
def test_shape_has_fields_and_operators_and_no_value(filter: Any, expected: Any) -> None:
    found = shape(None if filter is None else json.dumps(filter))
    assert json.loads(found) == expected
    assert '"v"' not in found


def test_shape_of_a_long_filter_is_cut() -> None:
    assert len(shape(json.dumps({f"field{n}": 1 for n in range(190)}))) == 1001


def test_slow_find_and_count_are_logged_with_shape_and_plan(start_server: StartServer) -> None:
    server = start_server("--log-format", "json", "--slow-query-ms", "1", "--index-after", "0")
    documents = [{"n": n, "state": "hush", "tags": LONG_TO_SEARCH} for n in range(100)]
    assert server.request("POST", "/orders/bulk", json=documents).json()["inserted"] == 100
    filter = json.dumps({"state": "hush", "n": {"gte": 0}, "tags": {"contains": "none"}})
    one = server.request("GET", "/orders/docs", params={"filter": filter, "sort": "-n"})
    other = server.request("GET", "/orders/count", params={"filter": filter})
    assert (one.status_code, other.status_code) == (200, 200)
    plan = {
        "index": "none",
        "documents": 100,
        "suggestion": "state,-n",
        "collection": "orders",
        "level": "warning",
    }
    found = line_of(server, "paperdb.slow", message="slow find")
    assert {**plan, "order": "sorted", "sort": "-n"}.items() <= found.items()
    assert found["ms"] >= 1
    assert found["request"] == one.headers["x-request-id"]
    counted = line_of(server, "paperdb.slow", message="slow count")
    assert {**plan, "suggestion": "state,n", "order": "insertion order"}.items() <= counted.items()
    assert counted["request"] == other.headers["x-request-id"]
    assert figure(server, "paperdb_slow_queries_total") == 2
    assert found["filter"] == counted["filter"]
    assert json.loads(found["filter"]) == {"state": "?", "n": {"gte": "?"}, "tags": {"contains": "?"}}
    assert "hush" not in server.stderr


def test_find_that_is_stopped_is_logged_too(start_server: StartServer) -> None:
    server = start_server("--log-format", "json", "--slow-query-ms", "5", "--query-timeout", "0.02")
    texts = ["x" * 100_000] * 10
    for _ in range(40):
        server.insert("big", {"texts": texts})
    filter = json.dumps({"or": [{"texts": {"contains": f"y{n}"}} for n in range(40)]})

    def is_logged() -> bool:
        """On a busy machine the time may be over before the search has begun."""
        response = server.request("GET", "/big/docs", params={"filter": filter})
        assert refusal(response) == (503, "QUERY_TIMEOUT")
        return bool(lines(server, "paperdb.slow"))

    wait_until(is_logged)
    assert lines(server, "paperdb.slow")[0]["filter"] == '{"or":[{"texts":{"contains":"?"}}]}'
