"""What a store in PostgreSQL costs."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack

from websockets.sync.client import connect

from bench.audience import TEXT
from bench.clients import Http, load, request_bytes
from bench.machine import CLIENT_CORE, SERVER_CORE
from bench.rows import Row, Scale, ratio
from bench.server import Process, paperdb

CORES = (SERVER_CORE, CLIENT_CORE)
"""PostgreSQL needs one, too."""


def postgres(scale: Scale) -> Iterator[Row]:
    """Durable inserts and gets beside SQLite, and events from a node to another, over one PostgreSQL server.

    The clients, PaperDB and PostgreSQL share two cores. PostgreSQL fsyncs each commit, as SQLite does.
    """
    from tests.postgres import postgres_server  # Debian's

    rounds, seconds = scale(8, 4, 1), scale(2.0, 1.0, 0.1)
    with ExitStack() as stack:
        server = stack.enter_context(postgres_server(fsync="on", shared_buffers="128MB"))
        url = server.url(server.new())
        sqlite = stack.enter_context(paperdb(cores=CORES))
        node = stack.enter_context(paperdb("--store", url, cores=CORES))
        servers = (sqlite, node)
        ids = []
        for each in servers:
            http = Http(each.port, each.key)
            ids.append(http.request("POST", "/bench/docs", {"text": TEXT})["_id"])
            http.close()
        for name, clients, budget in (("inserts", 64, "≥ 0.5"), ("inserts", 1, ""), ("gets", 32, "")):
            rates: tuple[list[float], list[float]] = ([], [])
            for turn in range(rounds + 1):
                for each, id, own in zip(servers, ids, rates, strict=True):
                    if name == "inserts":
                        request = request_bytes("POST", "/bench/docs", each.key, {"text": TEXT})
                    else:
                        request = request_bytes("GET", f"/bench/docs/{id}", each.key)
                    done, took, _ = load(each.port, clients, seconds, request)
                    if turn:
                        own.append(done / took)
            said = f"{name}, {clients} connection{'s' if clients > 1 else ''}"
            yield Row(f"{said}: SQLite", rates[0], "requests/s")
            yield Row(f"{said}: PostgreSQL", rates[1], "requests/s", "SQLite", ratio(*reversed(rates)), budget)
        other = stack.enter_context(paperdb("--store", url, cores=CORES))
        other.key = node.key
        delays = _delays(node, other, scale(500, 200, 5))
        yield Row("event of another node, after the write's response", delays, "ms", budget="≤ 5")


def _delays(node: Process, other: Process, events: int) -> list[float]:
    """Milliseconds from the response to a write on one node to its event on another."""
    http = Http(node.port, node.key)
    token = http.request("POST", "/realtime/token", {"collections": ["events"]})["token"]
    delays = []
    came: list[float] = []
    seen = threading.Semaphore(0)
    with connect(f"ws://127.0.0.1:{other.port}/?token={token}", proxy=None) as socket:

        def listen() -> None:
            while json.loads(socket.recv(timeout=10))["data"]["n"] < events - 1:
                came.append(time.perf_counter())
                seen.release()
            came.append(time.perf_counter())
            seen.release()

        thread = threading.Thread(target=listen)
        thread.start()
        for n in range(events):
            http.request("POST", "/events/docs", {"n": n})
            responded = time.perf_counter()
            assert seen.acquire(timeout=10)
            delays.append(max(came[n] - responded, 0.0) * 1000)
        thread.join()
    http.close()
    return delays
