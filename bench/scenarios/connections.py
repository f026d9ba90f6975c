"""What a connection costs: to open, to keep, to refuse."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator

from bench.audience import TEXT
from bench.baseline import bare_accept
from bench.clients import Http
from bench.readers import Readers, token, websocket
from bench.rows import Row, Scale, ratio
from bench.server import Process, paperdb


def connect(scale: Scale) -> Iterator[Row]:
    """Server CPU of a WebSocket connect (handshake, token, subscription): one token for all, or one each."""
    step, rounds = scale(250, 250, 5), scale(10, 3, 2)
    # The bare loop also pays for loopback and accept(): the difference is the server's own cost.
    same: list[float] = []
    distinct: list[float] = []
    bare: list[float] = []
    with paperdb("--tokens-per-second", "0") as server, bare_accept(step * (rounds + 1)) as loop:
        http = Http(server.port, server.key)
        secret = token(http, "bench")
        socks: list[socket.socket] = []
        for turn in range(rounds + 1):
            secrets = [token(http, "bench") for _ in range(step)]
            costs = [
                cost_of_connects(server, [secret] * step, socks),
                cost_of_connects(server, secrets, socks),
                cost_of_connects(loop, [secret] * step, socks),
            ]
            if turn > 0:
                for samples, cost in zip((same, distinct, bare), costs, strict=True):
                    samples.append(cost)
        for sock in socks:
            sock.close()
        http.close()
    name = "bare loop: accept, read a head, send a 101"
    yield Row(name, bare, "µs/connect")
    yield Row("connect, all with one token", same, "µs/connect", name, ratio(same, bare), "≤ 180 µs")
    yield Row(
        "connect, each with its own token", distinct, "µs/connect", name, ratio(distinct, bare), "≤ 180 µs"
    )
    own = [ours - theirs for ours, theirs in zip(distinct, bare, strict=True)]
    yield Row("the same, without the bare loop's cost", own, "µs/connect")


def cost_of_connects(server: Process, tokens: list[str], socks: list[socket.socket]) -> float:
    before = server.settled_cpu()
    socks += [websocket(server.port, secret) for secret in tokens]
    return (server.settled_cpu() - before) / len(tokens) * 1e6


def idle(scale: Scale) -> Iterator[Row]:
    """Resident memory per idle WebSocket, of 10,000."""
    connections = scale(10_000, 2000, 20)
    with paperdb() as server:
        http = Http(server.port, server.key)
        secret = token(http, "bench")
        warm = [websocket(server.port, secret) for _ in range(100)]
        time.sleep(0.3)
        empty = server.memory
        socks = [websocket(server.port, secret) for _ in range(connections)]
        time.sleep(0.3)
        per_connection = (server.memory - empty) / connections / 1024
        before, begun = server.cpu, time.perf_counter()
        time.sleep(scale(10, 3, 0.2))
        share = (server.cpu - before) / (time.perf_counter() - begun) * 100
        for sock in (*warm, *socks):
            sock.close()
        http.close()
    yield Row("resident memory with 100 connections", [empty / 2**20], "MiB")
    yield Row(f"per idle connection, of {connections:,}", [per_connection], "KiB", budget="≤ 20")
    yield Row(f"CPU while {connections + 100:,} are idle", [share], "% of a core")


def connections(scale: Scale) -> Iterator[Row]:
    """15,000 WebSockets in one process: all open, all served, and how the next one is refused."""
    most = scale(15_000, 15_000, 30)
    with paperdb("--max-connections", str(most)) as server:
        http = Http(server.port, server.key)
        secret = token(http, "bench")
        before, begun = server.settled_cpu(), time.perf_counter()
        socks = [websocket(server.port, secret) for _ in range(most - 1)]  # `http` has the last one
        took, cpu = time.perf_counter() - begun, server.settled_cpu() - before
        yield Row(f"open connections of {most:,}", [len(socks) + 1], "connections", note=f"in {took:.1f} s")
        yield Row("server CPU per connect", [cpu / len(socks) * 1e6], "µs/connect")
        yield Row("resident memory of all", [server.memory / 2**20], "MiB")
        refusals = [_refusal(server, secret) for _ in range(3)]
        logged = _log_lines(server, "refused with 503 TOO_MANY_CONNECTIONS")
        wrong = [] if all(r.startswith("HTTP/1.1 503 ") for r in refusals) else [f"responded {refusals[0]!r}"]
        wrong += [] if all("\r\nretry-after:" in r.lower() for r in refusals) else ["no Retry-After"]
        wrong += [] if logged == 3 else [f"{logged} log lines"]
        note = f"NOT SO: {'; '.join(wrong)}" if wrong else "503 with Retry-After, and a log line each"
        yield Row("one more is refused", [], "", note=note)
        readers = Readers(socks)
        begun = time.perf_counter()
        document = http.request("POST", "/bench/docs", {"text": TEXT})
        event = {"type": "insert", "collection": "bench", "data": document}
        readers.until((len(json.dumps(event, separators=(",", ":"))) + 4) * len(socks))
        yield Row("insert to the last of them", [(time.perf_counter() - begun) * 1e3], "ms")
        readers.close()
        http.close()


def _refusal(server: Process, secret: str) -> str:
    """The head of the response to one more connection."""
    try:
        websocket(server.port, secret).close()
    except ConnectionRefusedError as refused:
        return str(refused)
    return "HTTP/1.1 101"


def _log_lines(server: Process, text: str) -> int:
    assert server.log is not None
    return server.log.read_text().count(text)
