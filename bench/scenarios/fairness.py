"""Fairness: requests beside many subscribers, fast readers beside stuck ones."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack

from bench.audience import TEXT
from bench.clients import Http
from bench.probe import probe
from bench.readers import Readers, token, websocket
from bench.rows import Row, Scale, percentile, ratio
from bench.server import paperdb


def mixed(scale: Scale) -> Iterator[Row]:
    """Fairness: a REST get while 10,000 subscribers receive 20 events a second."""
    connections = scale(10_000, 2000, 10)
    with paperdb() as server:
        http = Http(server.port, server.key)
        secret = token(http, "bench")
        document = http.request("POST", "/other/docs", {"text": TEXT})
        target = f"/other/docs/{document['_id']}"
        readers = Readers([websocket(server.port, secret) for _ in range(connections)])
        with probe(server, "get", target, 0.01) as gets:
            time.sleep(scale(5, 2, 0.3))
            alone = [ms for _, ms in gets.end()]
        with probe(server, "insert", "bench", 0.05) as inserts, probe(server, "get", target, 0.01) as gets:
            before, begun, received = server.cpu, time.perf_counter(), readers.received
            readers.for_seconds(scale(20, 5, 0.3))
            share = (server.cpu - before) / (time.perf_counter() - begun)
            beside = [ms for _, ms in gets.end()]
            inserted = len(inserts.end())
        if readers.received == received:
            raise RuntimeError("the subscribers received nothing")
        readers.close()
        http.close()
    seconds = time.perf_counter() - begun
    name = f"get, {connections:,} subscribers idle"
    yield Row(name, alone, "ms")
    yield Row(
        f"get, {connections:,} subscribers receiving",
        beside,
        "ms",
        name,
        ratio(beside, alone),
        note=f"{inserted / seconds:.0f} events/s; the server at {share:.0%} of its core",
    )
    yield Row("the same, 99th percentile", [percentile(beside, 99)], "ms", budget="≤ 15 ms")


def slow(scale: Scale) -> Iterator[Row]:
    """1,000 readers that never read beside 100 fast ones: memory of each, and the delay of the fast ones."""
    stuck, fast, seconds = scale(1000, 1000, 10), scale(100, 100, 5), scale(8, 3, 0.3)
    with paperdb() as server, ExitStack() as stack:
        http = Http(server.port, server.key)
        secret = token(http, "bench")

        def events() -> list[float]:
            with probe(server, "insert", "bench", 0.01, secret, str(fast)) as pulse:
                time.sleep(seconds)
                return [ms for _, ms in pulse.end()]

        alone = events()
        for _ in range(stuck):
            stack.callback(websocket(server.port, secret, "&since=now", receive_buffer=4096).close)
        before = server.settled_cpu(), server.memory
        # More than the kernel's buffers hold for one reader, so that events wait in the server.
        for _ in range(scale(40, 20, 2)):
            http.request("POST", "/bench/bulk", [{"text": TEXT * 10}] * 100)
        filled = (server.settled_cpu() - before[0]) * 1e3
        beside = events()
        per_reader = (server.memory - before[1]) / stuck / 1024
        http.close()
    name = f"an event to the last of {fast} fast readers, alone"
    yield Row(name, alone, "ms")
    yield Row(f"the same beside {stuck:,} that never read", beside, "ms", name, ratio(beside, alone))
    yield Row(
        "the same, 99th percentile",
        [percentile(beside, 99)],
        "ms",
        note=f"alone {percentile(alone, 99):.2f} ms",
    )
    yield Row("memory of one that never reads", [per_reader], "KiB", budget="≤ 1,024")
    yield Row("CPU until their buffers were full", [filled], "ms")
