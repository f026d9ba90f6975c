"""What the store answers fast, and what its indexes cost others."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from urllib.parse import urlencode

from bench.audience import TEXT
from bench.clients import Http, request_bytes
from bench.rows import Row, Scale, percentile
from bench.server import Process, paperdb

ROOMS = 1000
INDEXES = {"properties": {"n": {"index": True}}, "indexes": [["room", "-createdAt"]]}


def questions(scale: Scale) -> Iterator[Row]:
    """Finds in a million documents, and how long writes wait while an index of them is built."""
    count, rounds = scale(1_000_000, 100_000, 2000), scale(500, 200, 20)
    with paperdb("--index-after", "0", "--query-timeout", "60") as server:
        http = Http(server.port, server.key)
        for start in range(0, count, 1000):
            documents = [{"text": TEXT, "n": n, "room": f"r{n % ROOMS}"} for n in range(start, start + 1000)]
            http.request("POST", "/big/bulk", documents)
        yield _finds(
            server, http, "newest 50, no index", [{"sort": "-createdAt", "limit": 50}], rounds, "≤ 2 ms"
        )
        slow: list[dict[str, object]] = [{"filter": json.dumps({"n": {"gte": count - 50}}), "limit": 50}]
        yield _finds(server, http, "range of 50, no index", slow, scale(5, 3, 1))
        waits, took = _waits_while_building(server, http)
        note = f"of {len(waits)} inserts in {took:.1f} s, p99 {percentile(waits, 99):.1f} ms"
        yield Row(
            f"longest wait of a write while {count:,} documents are indexed", [max(waits)], "ms", note=note
        )
        step = max(count // rounds, 1)
        ranges: list[dict[str, object]] = [
            {"filter": json.dumps({"n": {"gte": at}}), "sort": "n", "limit": 50} for at in range(0, count, step)
        ]
        yield _finds(server, http, "range of 50, sorted, indexed", ranges, rounds, "p99 ≤ 3 ms")
        yield _finds(server, http, "sort=-n, 50, indexed", [{"sort": "-n", "limit": 50}], rounds, "p99 ≤ 3 ms")
        chat: list[dict[str, object]] = [
            {"filter": json.dumps({"room": f"r{n % ROOMS}"}), "sort": "-createdAt", "limit": 50}
            for n in range(rounds)
        ]
        yield _finds(server, http, "newest 50 of a room, indexed", chat, rounds)
        http.close()


def _finds(
    server: Process, http: Http, name: str, asked: list[dict[str, object]], rounds: int, budget: str = ""
) -> Row:
    requests = [request_bytes("GET", f"/big/docs?{urlencode(parameters)}", server.key) for parameters in asked]
    took = []
    before = server.cpu
    for n in range(rounds):
        begun = time.perf_counter()
        http.exchange(requests[n % len(requests)])
        took.append((time.perf_counter() - begun) * 1e3)
    cpu = (server.settled_cpu() - before) / rounds * 1e6
    note = f"p99 {percentile(took, 99):.2f} ms, {cpu:.0f} µs CPU each"
    return Row(name, took, "ms", budget=budget, note=note)


def _waits_while_building(server: Process, http: Http) -> tuple[list[float], float]:
    """Milliseconds that inserts took, one after another, from the schema on until its indexes are whole."""
    insert = request_bytes("POST", "/big/docs", server.key, {"text": TEXT, "n": -1, "room": "new"})
    look = request_bytes("GET", "/big/docs?limit=1&explain=true", server.key)
    waits, begun = [], time.perf_counter()
    http.request("PUT", "/big/schema", INDEXES)
    building = True
    while building:
        before = time.perf_counter()
        http.exchange(insert)
        waits.append((time.perf_counter() - before) * 1e3)
        if len(waits) % 20 == 0:
            building = bool(json.loads(http.exchange(look))["explain"]["building"])
    return waits, time.perf_counter() - begun


def strangers(scale: Scale) -> Iterator[Row]:
    """Inserts into a collection without indexes, beside a thousand indexes of other collections."""
    rounds, inserts, others = scale(10, 4, 1), scale(2000, 1000, 50), scale(16, 16, 1)
    with paperdb() as alone, paperdb() as beside:
        servers = {"without": alone, "beside": beside}
        clients = {name: Http(server.port, server.key) for name, server in servers.items()}
        fields = [f"f{n}" for n in range(64)]
        for n in range(others):
            schema = {"properties": {field: {"index": True} for field in fields}}
            clients["beside"].request("PUT", f"/other{n}/schema", schema)
            clients["beside"].request("POST", f"/other{n}/bulk", [dict.fromkeys(fields, k) for k in range(100)])
        cpu: dict[str, list[float]] = {name: [] for name in servers}
        for _ in range(rounds):
            for name, server in servers.items():
                insert = request_bytes("POST", "/bench/docs", server.key, {"text": TEXT})
                before = server.settled_cpu()
                for _ in range(inserts):
                    clients[name].exchange(insert)
                cpu[name].append((server.settled_cpu() - before) / inserts * 1e6)
        for client in clients.values():
            client.close()
    base = "insert, no index anywhere"
    yield Row(base, cpu["without"], "µs CPU")
    ratios = sorted(one / other for one, other in zip(cpu["beside"], cpu["without"], strict=True))
    name = f"the same beside {others * 64:,} indexes of others"
    yield Row(name, cpu["beside"], "µs CPU", base, ratios[len(ratios) // 2], "≤ 1.05")
