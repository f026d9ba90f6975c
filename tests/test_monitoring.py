"""examples/monitoring, with Prometheus itself: it accepts the metrics and the rules, each alert fires when it
should and only then, and every expression of the rules and the dashboard finds data in a real scrape."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import ENVIRONMENT, Server, StartServer, need, receive, wait_until
from tests.docs import ROOT, text
from tests.nginx import free_port

FOLDER = ROOT / "examples" / "monitoring"
ALERTS = (FOLDER / "alerts.yml").read_text()
DASHBOARD = json.loads((FOLDER / "grafana-dashboard.json").read_text())
EXPRESSIONS = [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", ())]


def promtool(*arguments: str, stdin: str = "") -> str:
    done = subprocess.run(
        [need("promtool"), *arguments], input=stdin, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def busy(server: Server) -> None:
    """Something of everything that is counted."""
    document = server.insert("messages", {"n": 1})
    for path in (f"/docs/{document['_id']}", f"/docs/{document['_id']}", "/docs", "/count", "/docs/none"):
        server.request("GET", f"/messages{path}")
    server.request("GET", "/messages/docs", key="a.b.c")
    with server.connect("messages", query="since=0") as ws:
        while receive(ws)["type"] != "insert":
            pass
        server.insert("messages", {"n": 2})
        while receive(ws).get("data", {}).get("n") != 2:
            pass


# --- the metrics and the files -------------------------------------------------------------------


def test_promtool_has_no_complaint(start_server: StartServer) -> None:
    server = start_server("--metrics-key", "prometheus")
    busy(server)
    metrics = server.request("GET", "/metrics", key="prometheus").text
    assert "paperdb_collection_changes_total{" in metrics
    assert promtool("check", "metrics", stdin=metrics) == ""
    promtool("check", "rules", "--lint=all", "--lint-fatal", str(FOLDER / "alerts.yml"))
    promtool("check", "config", "--lint=all", "--lint-fatal", str(FOLDER / "prometheus.yml"))


def test_promtool_has_no_complaint_about_workers(start_server: StartServer) -> None:
    server = start_server("--workers", "2", "--metrics-key", "prometheus")
    busy(server)
    metrics = server.request("GET", "/metrics", key="prometheus").text
    assert promtool("check", "metrics", stdin=metrics) == ""
    samples = [line for line in metrics.splitlines() if not line.startswith("#")]
    assert all('worker="' in sample for sample in samples)
    own = re.findall(r'^process_resident_memory_bytes{worker="([\w-]+)"} ', metrics, re.MULTILINE)
    assert len(own) == 3
    assert "writer" in own
    assert re.findall(r"^paperdb_commits_total{(.*)} ", metrics, re.MULTILINE) == ['worker="writer"']
    seen = re.findall(r"^paperdb_changes_total{.*} (\S+)$", metrics, re.MULTILINE)
    assert len(seen) == 2  # all workers publish each change


def test_rules_and_dashboard_name_only_metrics_that_exist() -> None:
    documented = set(
        re.findall(r"^\| `((?:paperdb|process)_\w+)` \|", text("docs/operations.md"), re.MULTILINE)
    )
    used = set(re.findall(r"\b(?:paperdb|process)_\w+", "\n".join([*expressions_of_alerts(), *EXPRESSIONS])))
    assert len(used) > 30
    for name in used:
        assert {name, re.sub("_(bucket|sum|count)$", "", name)} & documented, name


def expressions_of_alerts() -> list[str]:
    found = re.findall(r"^ +expr: (?:>-\n)?((?:.|\n)*?)\n +(?:for|labels):", ALERTS, re.MULTILINE)
    assert len(found) == len(ALERT_NAMES)
    return [" ".join(expression.split()) for expression in found]


ALERT_NAMES = re.findall(r"^ +- alert: (\w+)$", ALERTS, re.MULTILINE)


def test_each_alert_says_what_is_wrong_and_what_to_do() -> None:
    assert ALERTS.count("summary: ") == ALERTS.count("action: ") == len(ALERT_NAMES) == len(FIRES)


# --- the alerts ----------------------------------------------------------------------------------

SLOW = {"0.25": "0+0x120", "0.5": "0+60x120", "10.0": "0+60x120", "+Inf": "0+60x120"}


def slow(name: str, labels: str = "") -> dict[str, str]:
    """Once per second, between 0.25 and 0.5 s."""
    return {f'{name}_bucket{{le="{le}"{labels}}}': values for le, values in SLOW.items()}


VERY_SLOW = {"1.0": "0+0x120", "2.5": "0+60x120", "+Inf": "0+60x120"}
FIRES: dict[str, dict[str, str]] = {
    "PaperDBDown": {'up{job="paperdb"}': "0x120"},
    "PaperDBRestarts": {'process_start_time_seconds{job="paperdb"}': "1x100 2x3 3x3 4x20"},
    "PaperDBStorageFault": {'paperdb_storage_fault{reason="gone"}': "1x120"},
    "PaperDBStorageFull": {"paperdb_storage_full": "1x120"},
    "PaperDBDiskFills": {'paperdb_storage_bytes{part="free"}': "15e9-5e7x120"},
    "PaperDBWriteAheadLogGrows": {'paperdb_storage_bytes{part="wal"}': "3e8x120"},
    "PaperDBSlowDisk": slow("paperdb_fsync_duration_seconds"),
    "PaperDBEventLoopLate": {"paperdb_event_loop_delay_max_seconds": "0.7x120"},
    "PaperDBServerErrors": {
        'paperdb_http_requests_total{status="200"}': "0+900x120",
        'paperdb_http_requests_total{status="503"}': "0+20x120",
    },
    "PaperDBSlowRequests": {
        f'paperdb_http_request_duration_seconds_bucket{{le="{le}",route="/:collection/docs"}}': values
        for le, values in VERY_SLOW.items()
    },
    "PaperDBQueryTimeouts": {'paperdb_refusals_total{code="QUERY_TIMEOUT"}': "0+1x120"},
    "PaperDBTooManyConnections": {'paperdb_refusals_total{code="TOO_MANY_CONNECTIONS"}': "0+1x120"},
    "PaperDBSubscriberMayMissChanges": {
        "paperdb_subscriber_lag_changes": "9000x120",
        "paperdb_log_changes": "10000x120",
    },
    "PaperDBNoBackup": {
        "paperdb_backup_last_success_timestamp_seconds": "0x120",
        "paperdb_backup_every_seconds": "60x120",
    },
    "PaperDBWebhookDead": {'paperdb_webhooks{state="dead"}': "1x120"},
    "PaperDBDeliveryLate": {"paperdb_unpublished_changes": "20000x120"},
    "PaperDBResidualQueries": {"paperdb_residual_queries": "90x120"},
    "PaperDBTokensRefused": {'paperdb_tokens_refused_total{reason="INVALID_TOKEN"}': "0+90x120"},
}
QUIET = {
    **slow("paperdb_http_request_duration_seconds", ',route="/:collection/changes"'),  # long polls
    "paperdb_subscriber_lag_changes": "9x120",  # of ten changes in all
    "paperdb_log_changes": "10x120",
    "paperdb_backup_last_success_timestamp_seconds": "0x120",
    "paperdb_backup_every_seconds": "0x120",
    'paperdb_tokens_refused_total{reason="TOKEN_EXPIRED"}': "0+900x120",
    'paperdb_storage_bytes{part="free"}': "9e11-5e7x120",
    'paperdb_http_requests_total{status="404"}': "0+900x120",
}


def test_each_alert_fires_when_it_should_and_only_then(tmp_path: Path) -> None:
    """Two hours of a figure are enough for each alert to fire; no other one does."""
    cases = [*FIRES.items(), (None, QUIET)]
    tests = [
        {
            "interval": "1m",
            "name": name,
            "input_series": [{"series": of, "values": values} for of, values in series.items()],
            "promql_expr_test": [
                {
                    "expr": 'count by (alertname) (ALERTS{alertstate="firing"})',
                    "eval_time": "118m",
                    "exp_samples": [] if name is None else [{"labels": f'{{alertname="{name}"}}', "value": 1}],
                }
            ],
        }
        for name, series in cases
    ]
    shutil.copy(FOLDER / "alerts.yml", tmp_path)
    (tmp_path / "tests.yml").write_text(
        json.dumps({"rule_files": ["alerts.yml"], "evaluation_interval": "5m", "tests": tests})
    )
    promtool("test", "rules", str(tmp_path / "tests.yml"))


# --- a real scrape -------------------------------------------------------------------------------

Ask = Callable[..., Any]


@contextmanager
def prometheus(home: Path, target: int, key: str) -> Iterator[Ask]:
    """Prometheus with the example's configuration, but for the target, its key and the interval.

    Yields `ask(path, query)`.
    """
    for file in FOLDER.iterdir():
        shutil.copy(file, home)
    config = (home / "prometheus.yml").read_text()
    for documented, here in {
        "127.0.0.1:8000": f"127.0.0.1:{target}",
        "the-metrics-key": key,
        "scrape_interval: 15s": "scrape_interval: 250ms",
        "evaluation_interval: 15s": "evaluation_interval: 250ms",
    }.items():
        assert documented in config
        config = config.replace(documented, here)
    (home / "prometheus.yml").write_text(config)
    port = free_port()
    with (home / "log").open("w") as log:
        process = subprocess.Popen(
            [
                need("prometheus"),
                f"--config.file={home / 'prometheus.yml'}",
                f"--storage.tsdb.path={home / 'tsdb'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stderr=log,
            env=ENVIRONMENT,
        )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=20) as client:

            def ready() -> bool:
                assert process.poll() is None, (home / "log").read_text()
                try:
                    return client.get("/-/ready").status_code == 200
                except httpx.TransportError:
                    return False

            wait_until(ready, 30)

            def ask(path: str, query: str = "") -> Any:
                response = client.get(f"/api/v1/{path}", params={"query": query} if query else {}).json()
                assert response["status"] == "success", (query, response)
                return response["data"]

            yield ask
    finally:
        process.terminate()
        process.wait(20)


def has_value(ask: Ask, expression: str) -> bool:
    return any(not math.isnan(float(of["value"][1])) for of in ask("query", expression)["result"])


def test_prometheus_scrapes_and_every_expression_has_data(start_server: StartServer, tmp_path: Path) -> None:
    server = start_server("--metrics-key", "prometheus")
    home = tmp_path / "prometheus"
    home.mkdir()
    with prometheus(home, server.port, "prometheus") as ask:
        busy(server)
        wait_until(lambda: has_value(ask, 'paperdb_query_duration_seconds_count{kind="find"}'))
        busy(server)  # a rate needs two scrapes
        for expression in EXPRESSIONS:
            here = expression.replace("$__rate_interval", "1m").replace("$instance", ".+")
            wait_until(partial(has_value, ask, here))
        rules = ask("rules")["groups"][0]["rules"]
        assert [rule["name"] for rule in rules] == ALERT_NAMES
        assert [rule["alerts"] for rule in rules] == [[]] * len(rules)  # a healthy server
        for rule in rules:
            for name in set(re.findall(r"\b(?:up|paperdb_\w+|process_\w+)", rule["query"])):
                wait_until(partial(has_value, ask, name))  # a scrape that took too long leaves a hole
        labels = ask("query", 'paperdb_database_log_head{job="paperdb"}')["result"][0]["metric"]
        assert (labels["database"], labels["instance"]) == ("default", f"127.0.0.1:{server.port}")


@pytest.mark.parametrize(
    "panel", [panel for panel in DASHBOARD["panels"] if "targets" in panel], ids=lambda p: p["title"]
)
def test_each_panel_asks_for_the_chosen_servers(panel: dict[str, Any]) -> None:
    for target in panel["targets"]:
        assert target["expr"].count('instance=~"$instance"') == len(re.findall(r"_\w+\{", target["expr"])) > 0
