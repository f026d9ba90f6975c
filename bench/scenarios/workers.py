"""What a second worker adds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial

from bench.audience import TEXT, Audience, PaperDb
from bench.clients import Http, load, request_bytes
from bench.rows import Row, Scale, ratio
from bench.server import Process, paperdb

CORES = 2


def workers(scale: Scale) -> Iterator[Row]:
    """Two workers for two cores beside one process: gets, inserts and deliveries per second, in turn.

    All processes of a server share one core, and the clients have the other: clients that ran between the
    requests of a worker would leave it one in each turn of its event loop instead of twenty. A rate is what two
    cores would do: what was done, divided by the CPU time of the busiest process, or by half of all processes'
    if that is more.
    """
    rounds, seconds, connections = scale(8, 4, 1), scale(2.0, 1.0, 0.1), scale(1000, 1000, 20)
    with ExitStack() as stack:
        servers = [stack.enter_context(paperdb("--workers", count)) for count in ("1", "2")]
        documents = []
        for server in servers:
            http = Http(server.port, server.key)
            documents.append(http.request("POST", "/bench/docs", {"text": TEXT})["_id"])
            http.close()
        for name, request, clients in (
            ("gets, 32 connections", lambda server, id: ("GET", f"/bench/docs/{id}", None), 32),
            ("inserts, 64 connections", lambda server, id: ("POST", "/bench/docs", {"text": TEXT}), 64),
        ):
            requests = [
                request_bytes(method, path, server.key, body)
                for server, id in zip(servers, documents, strict=True)
                for method, path, body in [request(server, id)]
            ]
            rates: list[list[float]] = [[], []]
            for turn in range(rounds + 1):
                for n, server in enumerate(servers):
                    rate = _rate(server, partial(_load, server, clients, seconds, requests[n]))
                    if turn:
                        rates[n].append(rate)
            yield from _rows(name, "requests/s", rates, "≥ 1.6" if name.startswith("gets") else "")
        audiences = []
        for server in servers:
            service = PaperDb(server, TEXT, 1, None)
            stack.callback(service.close)
            audiences.append(Audience(service.service, connections))
            stack.callback(audiences[-1].close)
        rates = [[], []]
        for turn in range(scale(100, 30, 1) + 1):
            for n, (server, audience) in enumerate(zip(servers, audiences, strict=True)):

                def deliver(audience: Audience = audience) -> int:
                    audience.round()
                    return connections

                rate = _rate(server, deliver)
                if turn:
                    rates[n].append(rate)
        yield from _rows(f"deliveries to {connections:,} subscribers", "deliveries/s", rates, "≥ 1.6")


def _load(server: Process, clients: int, seconds: float, request: bytes) -> int:
    return load(server.port, clients, seconds, request)[0]


def _rate(server: Process, act: Callable[[], int]) -> float:
    """What `act` says that it did, per second of the cores."""
    server.settled_cpu()
    before = server.cpus()
    done = act()
    server.settled_cpu()
    spent = [after - at for after, at in zip(server.cpus(), before, strict=True)]
    return done / max(max(spent), sum(spent) / CORES)


def _rows(name: str, unit: str, rates: list[list[float]], budget: str) -> Iterator[Row]:
    yield Row(f"{name}: one process", rates[0], unit)
    yield Row(f"{name}: two workers", rates[1], unit, "one process", ratio(rates[1], rates[0]), budget)
