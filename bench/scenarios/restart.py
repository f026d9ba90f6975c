"""All clients come back at once."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from bench.audience import TEXT
from bench.clients import Http
from bench.machine import CLIENT_CORE, SERVER_CORE
from bench.probe import probe
from bench.readers import Storm, token
from bench.rows import Row, Scale, percentile, ratio
from bench.server import directory, paperdb

MISSED = 5
"""Changes that each client has missed and reads from the log."""


def restart(scale: Scale) -> Iterator[Row]:
    """10,000 cursor clients come back at once after a restart, while 100 live ones receive 20 events/s."""
    clients, live, rounds = scale(10_000, 5000, 50), scale(100, 100, 10), scale(3, 1, 1)
    alone: list[float] = []
    beside: list[float] = []
    for number, name, workers in ((1, "one token", 1), (clients, "a token each", 1), (1, "two workers", 2)):
        seconds, costs = [], []
        for _ in range(rounds):
            with directory() as data:
                took, cost = _round(data / "d", clients, number, live, scale(3, 2, 0.2), alone, beside, workers)
            seconds.append(took)
            costs.append(cost)
        budget = "< 10 s" if workers == 1 else "≤ 4 s"
        yield Row(f"until all {clients:,} are served, {name}", seconds, "s", budget=budget)
        yield Row(f"server CPU of each, {name}", costs, "µs", note=f"handshake, {MISSED} changes from the log")
    before = f"an event to the last of {live} live ones, before"
    yield Row(before, alone, "ms")
    yield Row("the same while the others come back", beside, "ms", before, ratio(beside, alone))
    yield Row("the same, 99th percentile", [percentile(beside, 99)], "ms")


def _round(
    data: Path,
    clients: int,
    tokens: int,
    live: int,
    pause: float,
    alone: list[float],
    beside: list[float],
    workers: int,
) -> tuple[float, float]:
    """One restart; several workers share the clients' core, too. Returns the seconds until all are served, and
    the server's CPU per client in µs.

    That CPU includes the 20 inserts a second and their events. Their times in ms go to `alone`, before the
    clients come, and to `beside`, while they come.
    """
    with paperdb("--tokens-per-second", "0", data=data) as server:
        http = Http(server.port, server.key)
        secrets = [token(http, "bench") for _ in range(tokens)] * (clients // tokens)
        secret = token(http, "live")
        head = http.request("POST", "/bench/bulk", [{"text": TEXT}] * 10)["inserted"]
        key, port = server.key, server.port
        http.close()
    targets = [f"/?token={secret}&since={head - MISSED}" for secret in secrets]
    cores = (SERVER_CORE, CLIENT_CORE) if workers > 1 else (SERVER_CORE,)
    with paperdb("--workers", str(workers), data=data, port=port, cores=cores) as server:
        server.key = key
        with probe(server, "insert", "live", 0.05, secret, str(live)) as pulse:
            time.sleep(pause)
            before, begun = server.cpu, time.perf_counter()
            storm = Storm(port, targets, f'"seq":{head},'.encode())
            took = storm.run()
            cost = (server.settled_cpu() - before) / clients * 1e6
            events = pulse.end()
        storm.close()
    alone += [ms for when, ms in events if when < begun]
    beside += [ms for when, ms in events if begun <= when <= begun + took] or [events[-1][1]]
    return took, cost
