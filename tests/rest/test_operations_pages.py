"""`/metrics`: what operators read."""

from __future__ import annotations

import json
import re

import httpx
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from paperdb_trio.rest.admin_health import PUBLISHED
from tests.conftest import NO_TLS, StartServer, receive, wait_until
from tests.rest.tools import client_of

pytestmark = pytest.mark.executable


EACH = PUBLISHED | {"paperdb_log_changes", "paperdb_database_log_head"}
"""What every worker says of the whole: it publishes all changes."""


def value(text: str, name: str) -> float:
    """Of a sample, named with its labels; of all workers together."""
    family, _, labels = name.removesuffix("}").partition("{")
    pattern = rf'^{family}({{{re.escape(labels)})?,?(worker="[^"]+")?}}? (\S+)$'
    found = [float(number) for *_, number in re.findall(pattern, text, re.MULTILINE)]
    assert found, text
    return max(found) if family in EACH else sum(found)


@pytest.mark.smoke
def test_metrics_count_and_need_their_key_if_they_have_one(start_server: StartServer) -> None:
    server = start_server("--metrics-key", "prometheus")
    assert httpx.get(f"{server.url}/metrics", verify=NO_TLS).status_code == 401
    for wrong in (b"Bearer wrong", b"Bearer \xe9", b"prometheus", b"Basic prometheus"):
        refused = httpx.get(f"{server.url}/metrics", headers={b"Authorization": wrong}, verify=NO_TLS)
        assert refused.status_code == 401

    def text() -> str:
        response = server.request("GET", "/metrics", key="prometheus")
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


def test_an_admin_key_shows_each_database_with_and_without_a_metrics_key(start_server: StartServer) -> None:
    open_server, closed_server = start_server(), start_server("--metrics-key", "prometheus")
    for server in (open_server, closed_server):
        server.insert("c", {"n": 1})
        key = json.loads(server.cli("keys", "create", "--admin", "--json"))["key"]
        wait_until(lambda s=server, k=key: s.request("GET", "/admin.v1/me", key=k).status_code == 200)  # type: ignore[misc]
        sample = 'paperdb_collection_changes_total{database="default",collection="c"}'
        assert value(server.request("GET", "/metrics", key=key).text, sample) == 1
        assert server.request("GET", "/metrics", key=f"{key}x").status_code == 401
    assert "paperdb_collection" not in open_server.request("GET", "/metrics").text
    assert closed_server.request("GET", "/metrics").status_code == 401


def test_the_servers_own_housekeeping_is_not_counted(start_server: StartServer) -> None:
    server = start_server("--retention-count", "1")
    for n in range(3):
        server.insert("c", {"n": n})
    wait_until(lambda: server.request("GET", "/c/changes?since=1").status_code == 410)  # it has been trimmed
    metrics = server.request("GET", "/metrics").text
    assert (value(metrics, "paperdb_operations_total"), value(metrics, "paperdb_commits_total")) == (3, 3)


def test_requests_count_by_route_and_status_refusals_by_code(start_server: StartServer) -> None:
    server = start_server()
    server.insert("c", {"n": 1})
    server.request("GET", "/c/docs/none")
    token = server.token("c")
    assert server.request("GET", "/c/docs", key=token).status_code == 200
    assert server.request("GET", "/c/docs", key=f"{token}x").status_code == 401
    for method in ("BREW", "PROPFIND"):
        assert server.request(method, "/c/nothing/at/all").status_code in (400, 404, 405)
    with pytest.raises(InvalidStatus), connect(f"{server.ws_url}/?token=no", proxy=None):
        pass
    with server.connect("c"):
        metrics = server.request("GET", "/metrics").text

    def requests(method: str, route: str, status: int) -> float:
        labels = f'method="{method}",route="{route}",status="{status}"'
        return value(metrics, f"paperdb_http_requests_total{{{labels}}}")

    assert requests("POST", "/:collection/docs", 201) == 1
    assert requests("GET", "/:collection/docs/:id", 404) == 1
    assert requests("GET", "/:collection/docs", 200) == 1
    assert requests("GET", "/:collection/docs", 401) == 1
    assert requests("GET", "/", 101) == 1
    assert "BREW" not in metrics
    assert "PROPFIND" not in metrics
    assert "nothing" not in metrics
    seconds = 'paperdb_http_request_duration_seconds_{}{{method="GET",route="/:collection/docs"{}}}'
    assert value(metrics, seconds.format("count", "")) == 2
    assert value(metrics, seconds.format("bucket", ',le="+Inf"')) == 2
    assert 0 < value(metrics, seconds.format("sum", "")) < 10
    assert value(metrics, 'paperdb_refusals_total{code="NOT_FOUND"}') == 2
    assert value(metrics, "paperdb_tokens_minted_total") == 2
    assert value(metrics, 'paperdb_tokens_refused_total{reason="INVALID_TOKEN"}') == 2


@pytest.mark.sqlite  # it counts what the cache of documents saves
def test_writes_and_reads_are_timed(start_server: StartServer) -> None:
    server = start_server()
    document = server.insert("c", {"n": 1})
    assert server.request("POST", "/c/bulk", json=[{}, {}, {}]).status_code == 200
    with client_of(server) as client:  # one connection, so that the second one finds it in the cache
        client.headers["Authorization"] = f"Bearer {server.key}"
        for _ in range(2):
            assert client.get(f"/c/docs/{document['_id']}").status_code == 200
    for path in ("/c/docs", "/c/count", "/c/changes?since=0"):
        assert server.request("GET", path).status_code == 200
    schema = {"properties": {"n": {"index": True}}}
    assert server.request("PUT", "/c/schema", json=schema).status_code == 200
    metrics = server.request("GET", "/metrics").text
    commits = value(metrics, "paperdb_commits_total")
    for timed in ("commit_duration_seconds", "fsync_duration_seconds", "commit_operations"):
        assert value(metrics, f"paperdb_{timed}_count") == commits
    fsync, whole = (value(metrics, f"paperdb_{part}_duration_seconds_sum") for part in ("fsync", "commit"))
    assert 0 < fsync < whole
    assert value(metrics, "paperdb_commit_operations_sum") == value(metrics, "paperdb_operations_total")
    for kind, count in {"get": 1, "find": 1, "count": 1, "changes": 1}.items():
        assert value(metrics, f'paperdb_query_duration_seconds_count{{kind="{kind}"}}') == count
    assert "directory" not in metrics  # the server's own look at keys, four times a second
    assert value(metrics, "paperdb_cache_hits_total") == value(metrics, "paperdb_cache_misses_total") == 1
    assert value(metrics, "paperdb_cache_bytes") > 100
    assert value(metrics, "paperdb_index_builds_total") == 1
    assert value(metrics, "paperdb_log_changes") == 4
    assert value(metrics, 'paperdb_storage_bytes{part="file"}') > 10_000
    assert value(metrics, 'paperdb_storage_bytes{part="wal"}') > 10_000
    assert value(metrics, 'paperdb_storage_bytes{part="free"}') > 10_000


def test_each_database_and_collection_is_shown_only_with_the_key(start_server: StartServer) -> None:
    server = start_server(env={"PAPERDB_METRICS_KEY": "prometheus"})
    server.cli("databases", "create", "shop", "--plan", "free")
    shop = server.new_key("shop")["key"]
    server.insert("orders", {}, key=shop)

    def metrics() -> str:
        return server.request("GET", "/metrics", key="prometheus").text

    with server.connect("messages") as ws:
        for _ in range(2):
            server.insert("messages", {})
            ws.recv(timeout=5)
        live = 'paperdb_database_subscribers{database="%s",state="live"}'
        wait_until(lambda: value(metrics(), live % "default") == 1)
        assert value(metrics(), live % "shop") == 0
    changes = 'paperdb_collection_changes_total{database="%s",collection="%s"}'
    assert value(metrics(), changes % ("default", "messages")) == 2
    assert value(metrics(), changes % ("shop", "orders")) == 1
    documents = 'paperdb_collection_documents{database="%s",collection="%s"}'
    assert value(metrics(), documents % ("default", "messages")) == 2
    assert value(metrics(), documents % ("shop", "orders")) == 1
    assert value(metrics(), 'paperdb_database_log_head{database="default"}') == 2
    assert value(metrics(), 'paperdb_database_deliveries_total{database="default"}') == 2
    assert value(metrics(), 'paperdb_database_deliveries_total{database="shop"}') == 0
    size = value(metrics(), 'paperdb_database_event_bytes_total{database="default",source="live"}')
    assert 200 < size == value(metrics(), 'paperdb_event_bytes_total{source="live"}')
    with server.connect("messages", query="since=0") as ws:
        assert [receive(ws)["type"] for _ in range(3)].count("insert") == 2
        wait_until(lambda: value(metrics(), 'paperdb_event_bytes_total{source="log"}') > 200)
    admin = json.loads(server.cli("keys", "create", "--admin", "--json"))["key"]
    wait_until(lambda: server.request("GET", "/metrics", key=admin).status_code == 200)
    assert "database=" in server.request("GET", "/metrics", key=admin).text
    server.stop()
    open_to_all = start_server(data=server.data)
    text = httpx.get(f"{open_to_all.url}/metrics", verify=NO_TLS).text
    assert "database=" not in text
    assert "collection=" not in text
    assert "shop" not in text
    assert "database=" not in open_to_all.request("GET", "/metrics", key=shop).text
    assert "shop" in open_to_all.request("GET", "/metrics", key=admin).text
    assert open_to_all.request("GET", "/metrics", key=f"{admin[:-1]}!").status_code == 401
