"""What a delivery costs, and how long it takes."""

from __future__ import annotations

import time
from collections.abc import Iterator

from bench.audience import TEXT, measure
from bench.clients import Http, request_bytes
from bench.readers import Readers, token, websocket
from bench.rows import Row, Scale, ratio
from bench.server import paperdb


def fanout(scale: Scale) -> Iterator[Row]:
    """One event at a time to 1,000 subscribers: server CPU per delivery, with and without the insert."""
    connections = scale(1000, 1000, 5)
    found = measure(connections, 1, scale(100, 20, 2))
    loop = f"bare loop of os.write to {connections:,} sockets"
    yield Row(loop, found.bare, "µs/delivery")
    yield Row("a durable insert without subscribers", found.insert, "µs/insert")
    yield Row(
        f"one event to {connections:,} subscribers, insert included",
        found.whole,
        "µs/delivery",
        loop,
        ratio(found.whole, found.bare),
        "≤ 1.25",
    )
    yield Row(
        "the same, without the cost of the insert",
        found.net,
        "µs/delivery",
        loop,
        ratio(found.net, found.bare),
        "≤ 1.25",
    )


def burst(scale: Scale) -> Iterator[Row]:
    """200 events at once to 1,000 subscribers: server CPU per delivery, with and without the bulk."""
    connections, events = scale(1000, 1000, 5), scale(200, 200, 10)
    found = measure(connections, events, scale(30, 5, 2))
    loop = f"bare loop of os.write to {connections:,} sockets, one event"
    yield Row(loop, found.bare, "µs/delivery")
    yield Row(f"a durable bulk of {events} without subscribers", found.insert, "µs/bulk")
    yield Row(
        f"{events} events to {connections:,} subscribers, bulk included",
        found.whole,
        "µs/delivery",
        loop,
        ratio(found.whole, found.bare),
        "≤ 0.1",
    )
    yield Row(
        "the same, without the cost of the bulk",
        found.net,
        "µs/delivery",
        loop,
        ratio(found.net, found.bare),
        "≤ 0.1",
    )


def latency(scale: Scale) -> Iterator[Row]:
    """Time from a durable insert over REST until the last of 1, 100 and 1,000 subscribers has its event."""
    audiences = [1, 100, scale(1000, 1000, 110)]
    with paperdb() as server:
        http = Http(server.port, server.key)
        readers = []
        for connections in audiences:
            secret = token(http, f"bench{connections}")
            readers.append(Readers([websocket(server.port, secret) for _ in range(connections)]))
        samples: list[list[float]] = [[] for _ in audiences]
        sizes = [0 for _ in audiences]
        for turn in range(scale(200, 30, 2) + 1):
            for n, connections in enumerate(audiences):
                request = request_bytes("POST", f"/bench{connections}/docs", server.key, {"text": TEXT})
                if turn == 0:
                    http.exchange(request)
                    sizes[n] = readers[n].each_since(0)
                    continue
                begun = time.perf_counter()
                http.sock.sendall(request)
                readers[n].until(readers[n].received + sizes[n] * connections)
                samples[n].append((time.perf_counter() - begun) * 1e3)
                http.sock.recv(65536)
        for reader in readers:
            reader.close()
        http.close()
    for connections, sample in zip(audiences, samples, strict=True):
        yield Row(f"insert to the last of {connections:,} subscribers", sample, "ms")
