"""What compiling gains: the package as pure Python beside the executable, whose modules are compiled."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack

from bench import peers
from bench.clients import Http
from bench.readers import token, websocket
from bench.rows import Row, Scale, ratio
from bench.scenarios.connections import cost_of_connects
from bench.scenarios.rest import KINDS, ONE, Contender, fill_paperdb, fill_pocketbase
from bench.server import EXECUTABLE, PURE, Process, paperdb

PURE_NAME, COMPILED_NAME = "pure Python", "compiled"


def compiled(scale: Scale) -> Iterator[Row]:
    """The executable, compiled, beside pure Python and PocketBase, in turn: requests, connects, memory."""
    with ExitStack() as stack:
        commands = {PURE_NAME: PURE}
        if EXECUTABLE.exists():
            commands[COMPILED_NAME] = [str(EXECUTABLE)]
        else:
            yield Row(COMPILED_NAME, [], "", note="there is no dist/paperdb: run `just binary`")
        servers = {
            name: stack.enter_context(paperdb("--tokens-per-second", "0", command=command))
            for name, command in commands.items()
        }
        yield from _requests(scale, stack, servers)
        yield from _connections(scale, servers)


def _requests(scale: Scale, stack: ExitStack, ours: dict[str, Process]) -> Iterator[Row]:
    count, rounds, seconds = scale(10_000, 1000, 100), scale(6, 3, 1), scale(2.0, 1.0, 0.1)
    servers = [fill_paperdb(server, name, count) for name, server in ours.items()]
    if missing := peers.POCKETBASE.missing():
        yield Row("PocketBase", [], "", note=missing)
    else:
        servers.append(fill_pocketbase(stack.enter_context(peers.pocketbase()), count))
    for what, connections in KINDS.items():
        if what == ONE:
            continue
        for _ in range(rounds):
            for server in servers:
                server.run(what, connections, seconds)
        for server in servers:
            yield _beside(server, servers, what)


def _beside(server: Contender, servers: list[Contender], what: str) -> Row:
    row = server.row(what)
    last = servers[-1]
    if server is not last:
        row.baseline, row.ratio = last.name, ratio(server.rates[what], last.rates[what])
        row.note = f"beside {last.name}; {row.note}"
    if server.name == COMPILED_NAME:
        row.note += f"; {ratio(server.rates[what], servers[0].rates[what]):.2f} × {PURE_NAME}"
    return row


def _connections(scale: Scale, servers: dict[str, Process]) -> Iterator[Row]:
    step, rounds, idle = scale(250, 250, 5), scale(8, 3, 1), scale(5000, 2000, 20)
    clients = {name: Http(server.port, server.key) for name, server in servers.items()}
    costs: dict[str, list[float]] = {name: [] for name in servers}
    memory: dict[str, float] = {}
    socks: list[socket.socket] = []
    for turn in range(rounds + 1):
        for name, server in servers.items():
            secrets = [token(clients[name], "bench") for _ in range(step)]
            cost = cost_of_connects(server, secrets, socks)
            if turn > 0:
                costs[name].append(cost)
    for name, server in servers.items():
        secret = token(clients[name], "bench")
        before = server.memory
        socks += [websocket(server.port, secret) for _ in range(idle)]
        time.sleep(0.3)
        memory[name] = (server.memory - before) / idle / 1024
    for name in servers:
        beside = (PURE_NAME, ratio(costs[name], costs[PURE_NAME])) if name != PURE_NAME else ("", None)
        yield Row(f"connect, each with its own token: {name}", costs[name], "µs/connect", *beside)
    for name in servers:
        yield Row(f"memory per idle connection, of {idle:,}: {name}", [memory[name]], "KiB")
    for sock in socks:
        sock.close()
    for client in clients.values():
        client.close()
