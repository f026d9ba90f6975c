"""What the owner's card costs, built to the letter (bench/card.py), and what PaperDB costs beside it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress

from bench.audience import TEXT, Audience, PaperDb
from bench.baseline import bare_loop
from bench.clients import Http, connected, request_bytes
from bench.readers import handshake, token
from bench.rows import Row, Scale, ratio
from bench.scenarios.rest import Contender
from bench.server import Process, paperdb
from bench.server import card as card_server

CARD, OURS = "the card", "PaperDB"
REQUESTS = {"insert, 64 connections": 64, "get by id, 32 connections": 32}


def card(scale: Scale) -> Iterator[Row]:
    """The owner's card to the letter (Quart-Trio, trio-websocket, memory channels) and PaperDB, in turn."""
    with card_server() as theirs, paperdb() as ours:
        servers = {CARD: theirs, OURS: ours}
        yield from _connections(servers, scale)
        yield from _deliveries(servers, scale)
        yield from _requests(servers, scale)
        yield from _survival(servers)


# --- connections -------------------------------------------------------------------------------------


def _connections(servers: dict[str, Process], scale: Scale) -> Iterator[Row]:
    step, rounds = scale(250, 250, 5), scale(8, 3, 2)
    cpu: dict[str, list[float]] = {name: [] for name in servers}
    wall: dict[str, list[float]] = {name: [] for name in servers}
    memory: dict[str, list[float]] = {name: [] for name in servers}
    with ExitStack() as stack:
        services = {name: PaperDb(server, TEXT, 1, None) for name, server in servers.items()}
        for service in services.values():
            stack.callback(service.close)
        for turn in range(rounds + 1):
            for name, server in servers.items():
                before, empty, begun = server.settled_cpu(), server.memory, time.perf_counter()
                for n in range(step):
                    stack.callback(services[name].service.subscribe(n).close)
                took = time.perf_counter() - begun
                cost = server.settled_cpu() - before
                if turn > 0:
                    cpu[name].append(cost / step * 1e6)
                    wall[name].append(took / step * 1e6)
                    memory[name].append((server.memory - empty) / step / 1024)
    yield from _both("connect, CPU", cpu, "µs/connect")
    yield from _both("connect, one after the other, wall", wall, "µs/connect")
    yield from _both(f"memory per idle connection, of {step * (rounds + 1):,}", memory, "KiB")


# --- deliveries --------------------------------------------------------------------------------------


def _deliveries(servers: dict[str, Process], scale: Scale) -> Iterator[Row]:
    connections, rounds = scale(1000, 1000, 5), scale(30, 8, 2)
    bare: list[float] = []
    whole: dict[str, list[float]] = {name: [] for name in servers}
    beyond: dict[str, list[float]] = {name: [] for name in servers}
    with ExitStack() as stack:
        loop = stack.enter_context(bare_loop(connections))
        services = {name: PaperDb(server, TEXT, 1, None) for name, server in servers.items()}
        audiences: dict[str, Audience] = {}
        for name, service in services.items():
            stack.callback(service.close)
            frame = service.frame()
            audiences[name] = Audience(service.service, connections)
            stack.callback(audiences[name].close)
        for turn in range(rounds + 1):
            single = loop.round(frame) * 1e6
            for name, service in services.items():
                insert = service.alone(1) / connections * 1e6
                cost = audiences[name].round() / connections * 1e6
                if turn > 0:
                    whole[name].append(cost)
                    beyond[name].append(cost - insert - single)
            if turn > 0:
                bare.append(single)
    what = f"one event to {connections:,}"
    name = f"{what}: bare loop of os.write"
    yield Row(name, bare, "µs/delivery")
    yield from _both(f"{what}, its insert included", whole, "µs/delivery")
    yield from _both(f"{what}, beyond the loop and the insert", beyond, "µs/delivery")


# --- requests ----------------------------------------------------------------------------------------


def _requests(servers: dict[str, Process], scale: Scale) -> Iterator[Row]:
    rounds, seconds = scale(6, 3, 1), scale(2.0, 1.0, 0.1)
    contenders = [_contender(name, server) for name, server in servers.items()]
    for what, connections in REQUESTS.items():
        for _ in range(rounds):
            for contender in contenders:
                contender.run(what, connections, seconds)
        rates = [statistics.median(contender.rates[what]) for contender in contenders]
        rows = _both(f"{what}, CPU", {it.name: it.cpu[what] for it in contenders}, "µs/request")
        for row, rate in zip(rows, rates, strict=True):
            row.note = f"{rate:,.0f} requests/s"
            yield row


def _contender(name: str, server: Process) -> Contender:
    http = Http(server.port, server.key)
    document = {"text": TEXT, "group": 1}
    id = http.request("POST", "/found/docs", document)["_id"]
    http.close()
    insert, get = REQUESTS
    return Contender(
        name,
        server,
        {
            insert: request_bytes("POST", "/bench/docs", server.key, document),
            get: request_bytes("GET", f"/found/docs/{id}", server.key),
        },
    )


# --- one bad request ---------------------------------------------------------------------------------


def _survival(servers: dict[str, Process]) -> Iterator[Row]:
    """Whether a server outlives an upgrade request with a byte behind its head (Hypercorn #225)."""
    for name, server in servers.items():
        with closing(connected(server.port)) as sock, suppress(ConnectionError):
            sock.settimeout(10)
            sock.sendall(handshake("/nowhere") + b"x")
            while sock.recv(4096):
                pass
        try:
            with closing(Http(server.port, server.key)) as http:
                token(http, "bench")
        except ConnectionError:
            note = "the server ends"
        else:
            note = "the server goes on"
        yield Row(f"an upgrade request with a byte too many: {name}", [], "", note=note)


def _both(what: str, samples: dict[str, list[float]], unit: str) -> Iterator[Row]:
    """A row for the card, and one for PaperDB with the ratio to it."""
    yield Row(f"{what}: {CARD}", samples[CARD], unit)
    yield Row(f"{what}: {OURS}", samples[OURS], unit, f"{what}: {CARD}", ratio(samples[OURS], samples[CARD]))
