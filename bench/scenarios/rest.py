"""Requests and documents per second."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from urllib.parse import quote

from bench import peers
from bench.audience import TEXT
from bench.baseline import BareSqlite
from bench.clients import Http, load, request_bytes
from bench.machine import SERVER_CORE, on_core
from bench.rows import Row, Scale, percentile, ratio
from bench.server import Process, directory, paperdb

GROUPS = 500
"""Each has 20 of 10,000 documents."""


@dataclass
class Contender:
    """A server, and its requests for the same things."""

    name: str
    server: Process
    requests: dict[str, bytes]
    cpu: dict[str, list[float]] = field(default_factory=dict)
    rates: dict[str, list[float]] = field(default_factory=dict)
    latencies: dict[str, list[float]] = field(default_factory=dict)

    def run(self, what: str, connections: int, seconds: float) -> None:
        """Run one round of closed loop, and keep its figures."""
        before = self.server.settled_cpu()
        responses, took, latencies = load(self.server.port, connections, seconds, self.requests[what])
        self.cpu.setdefault(what, []).append((self.server.settled_cpu() - before) / responses * 1e6)
        self.rates.setdefault(what, []).append(responses / took)
        self.latencies.setdefault(what, []).extend(latencies)

    def row(self, what: str) -> Row:
        cpu = statistics.median(self.cpu[what])
        p99 = percentile(self.latencies[what], 99) * 1e3
        note = f"{cpu:.0f} µs CPU each, p99 {p99:.1f} ms"
        return Row(f"{what}: {self.name}", self.rates[what], "requests/s", note=note)


ONE = "insert, 1 connection"
GET_ONE = "get by id, 1 connection"
KINDS = {ONE: 1, "insert, 64 connections": 64, "get by id, 32 connections": 32}
FIND = "find 20 of 10,000, unindexed, 8 connections"
BUDGETS = {"insert, 64 connections": "≥ 2.5", "get by id, 32 connections": "≥ 4", FIND: "≥ 3"}
VARIANTS = {
    ONE: ("no fsync", ("--durability", "process"), "≥ 1"),
    FIND: ("no index", ("--index-after", "0"), "≥ 0.8"),
}
"""PaperDB with other options, beside PocketBase: a name, the options, the budget."""


def rest(scale: Scale) -> Iterator[Row]:
    """Requests per second: durable inserts, gets, finds; beside Quart on Hypercorn and PocketBase, in turn."""
    count, rounds, seconds = scale(10_000, 10_000, 500), scale(6, 3, 1), scale(2.0, 1.0, 0.1)
    with ExitStack() as stack:
        contenders = [
            fill_paperdb(stack.enter_context(paperdb("--http", "raw")), "PaperDB", count),
            fill_paperdb(stack.enter_context(paperdb("--http", "quart")), "Quart on Hypercorn", count),
        ]
        if missing := peers.POCKETBASE.missing():
            yield Row("PocketBase", [], "", note=missing)
        else:
            contenders.append(fill_pocketbase(stack.enter_context(peers.pocketbase()), count))
        ours, *others = contenders
        variants = {
            what: fill_paperdb(stack.enter_context(paperdb(*options)), f"PaperDB, {name}", count)
            for what, (name, options, _) in VARIANTS.items()
        }
        commits: list[float] = []
        sqlite = BareSqlite(str(stack.enter_context(directory()) / "bare.sqlite"))
        stack.callback(sqlite.close)
        for what in (*KINDS, FIND):
            for _ in range(rounds):
                for contender in (*contenders, *([variants[what]] if what in variants else ())):
                    contender.run(what, KINDS.get(what, 8), seconds)
                if what == ONE:
                    ours.run(GET_ONE, 1, seconds)
                    commits.append(_commits(sqlite, seconds))
            if what == ONE:
                # PocketBase does not wait for the disk. This is the most that waiting allows, without a server.
                yield Row(f"{ONE}: bare SQLite, one commit after another", commits, "commits/s")
                yield ours.row(GET_ONE)
                yield _beside_commit_and_get(ours, commits)
            for contender in others:
                yield contender.row(what)
            row = _beside(ours, others, what)
            yield row
            if what in variants and others[1:]:
                row = _beside(variants[what], others[-1:], what)
                row.budget = VARIANTS[what][-1]
                yield row


def _commits(sqlite: BareSqlite, seconds: float) -> float:
    """Documents per second, each in a commit of its own that is on disk before the next."""
    count, begun = 0, time.perf_counter()
    with on_core(SERVER_CORE):
        while (took := time.perf_counter() - begun) < seconds:
            sqlite.insert([(f"{begun}-{count}", json.dumps({"text": TEXT, "group": 1}))])
            count += 1
    return count / took


def _beside_commit_and_get(ours: Contender, commits: list[float]) -> Row:
    """What an insert takes, beside a bare commit and a request that needs no commit."""
    inserts, gets = ([1e6 / rate for rate in ours.rates[what]] for what in (ONE, GET_ONE))
    parts = [1e6 / commit + get for commit, get in zip(commits, gets, strict=True)]
    name = "a bare commit and a get"
    return Row(f"{ONE}: time, beside {name}", inserts, "µs", name, ratio(inserts, parts), "≤ 1.25")


def _beside(ours: Contender, others: list[Contender], what: str) -> Row:
    """PaperDB's row. Its ratio is to the last of the others; its note has the ratios to the rest."""
    row = ours.row(what)
    ratios = {other.name: ratio(ours.rates[what], other.rates[what]) for other in others}
    row.baseline, row.ratio = ratios.popitem()
    row.budget = BUDGETS.get(what, "") if row.baseline.startswith("PocketBase") else ""
    row.note = f"beside {row.baseline}; {row.note}"
    row.note += "".join(f"; {value:.1f} × {name}" for name, value in ratios.items())
    return row


def _documents(count: int) -> list[dict[str, object]]:
    return [{"text": TEXT, "group": n % GROUPS} for n in range(count)]


def fill_paperdb(server: Process, name: str, count: int) -> Contender:
    http = Http(server.port, server.key)
    for start in range(0, count, 1000):
        response = http.request("POST", "/found/bulk", _documents(count)[start : start + 1000])
    http.close()
    insert = request_bytes("POST", "/bench/docs", server.key, {"text": TEXT, "group": 1})
    get = request_bytes("GET", f"/found/docs/{response['documents'][0]['_id']}", server.key)
    find = request_bytes("GET", f"/found/docs?filter={quote(json.dumps({'group': 7}))}", server.key)
    return Contender(name, server, _requests(insert, get, find))


def fill_pocketbase(pocketbase: peers.PocketBase, count: int) -> Contender:
    id = pocketbase.fill("found", _documents(count))
    pocketbase.create_collection("bench")
    path = "/api/collections/{}/records"
    insert = request_bytes("POST", path.format("bench"), "", {"text": TEXT, "group": 1})
    get = request_bytes("GET", f"{path.format('found')}/{id}", "")
    # skipTotal: PaperDB does not count either.
    query = f"?perPage=100&skipTotal=1&filter={quote('(group=7)')}"
    find = request_bytes("GET", path.format("found") + query, "")
    return Contender(pocketbase.name, pocketbase.process, _requests(insert, get, find))


def _requests(insert: bytes, get: bytes, find: bytes) -> dict[str, bytes]:
    return {what: get if what.startswith("get") else insert for what in (*KINDS, GET_ONE)} | {FIND: find}


def bulk(scale: Scale) -> Iterator[Row]:
    """Documents per second by bulk requests of 1,000, beside bare SQLite with the same rows and pragmas."""
    documents = [{"text": TEXT, "n": n} for n in range(1000)]
    ours, four, bare, cpu = [], [], [], []
    with directory() as place, paperdb(data=place / "d") as server:
        http = Http(server.port, server.key)
        sqlite = BareSqlite(str(place / "bare.sqlite"))
        body = request_bytes("POST", "/bench/bulk", server.key, documents)
        for _ in range(scale(50, 10, 2)):
            before, begun = server.cpu, time.perf_counter()
            response = http.exchange(body)
            ours.append(1000 / (time.perf_counter() - begun))
            cpu.append((server.settled_cpu() - before) * 1e3)
            _, took, _ = load(server.port, 4, 0, body)  # each sends one
            four.append(4 * 1000 / took)
            rows = [(d["_id"], json.dumps(d)) for d in json.loads(response)["documents"]]
            with on_core(SERVER_CORE):  # as many as PaperDB: an index over random ids costs more as it grows
                bare.append(1000 / sqlite.insert(rows))
                for n in range(4):
                    sqlite.insert([(id[n + 1 :] + id[: n + 1], text) for id, text in rows])
        sqlite.close()
        http.close()
    name = "bare SQLite, executemany, 1,000 a commit"
    yield Row(name, bare, "documents/s")
    yield Row("bulk of 1,000, one connection", ours, "documents/s", name, ratio(ours, bare), "≥ 0.8")
    yield Row("bulk of 1,000, four connections", four, "documents/s", name, ratio(four, bare), "≥ 0.8")
    yield Row("server CPU of a bulk of 1,000", cpu, "ms")
