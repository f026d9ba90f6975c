"""What is measured. Each scenario returns rows: a name, a value with its unit, and the ratio to a baseline."""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from bench.baseline import bare_fanout_server, bare_sqlite
from bench.clients import Http, Readers, load, request_bytes, websocket
from bench.server import Process, paperdb

TEXT_200 = "x" * 100
"""With ids and times this makes an event of about 250 bytes, a document of about 200."""


@dataclass
class Row:
    """One line of the table. `samples` in `unit`; the median is shown, with the spread of the middle half."""

    name: str
    samples: list[float]
    unit: str
    baseline: str = ""
    ratio: float | None = None
    budget: str = ""
    note: str = field(default="")

    @property
    def median(self) -> float:
        return statistics.median(self.samples)


def token(http: Http, *collections: str) -> str:
    answer = http.request("POST", "/realtime/token", {"collections": list(collections), "expiresIn": 86400})
    return str(answer["token"])


def event_frame_size(document: dict[str, object], collection: str) -> int:
    """Bytes of the plain-mode frame of an insert."""
    size = len(
        json.dumps({"type": "insert", "collection": collection, "data": document}, separators=(",", ":"))
    )
    return size + (2 if size < 126 else 4)


def _bare(connections: int, size: int, rounds: int) -> list[float]:
    """µs of CPU per delivery of the bare loop."""
    samples = []
    with bare_fanout_server(connections) as server:
        import socket

        readers = Readers([socket.create_connection(("127.0.0.1", server.port)) for _ in range(connections)])
        assert server.process.stdin is not None
        assert server.process.stdout is not None
        for _ in range(rounds):
            before, target = server.cpu, readers.received + size * connections
            server.process.stdin.write(f"{size}\n")
            server.process.stdin.flush()
            readers.until(target)
            server.process.stdout.readline()
            samples.append((server.cpu - before) / connections * 1e6)
        readers.close()
    return samples


def _fanout(connections: int, events: int, rounds: int, text: str = TEXT_200) -> tuple[list[float], int]:
    """µs of server CPU per delivery, and the bytes of one event's frame."""
    samples = []
    with paperdb() as server:
        http = Http(server.port, server.key)
        secret = token(http, "bench")
        readers = Readers([websocket(server.port, secret) for _ in range(connections)])
        size = event_frame_size(http.request("POST", "/bench/docs", {"text": text}), "bench")
        readers.until(size * connections)
        bulk = [{"text": text}] * events
        for _ in range(rounds):
            before, target = server.cpu, readers.received + size * connections * events
            if events == 1:
                http.request("POST", "/bench/docs", bulk[0])
            else:
                http.request("POST", "/bench/bulk", bulk)
            readers.until(target)
            samples.append((server.cpu - before) / (connections * events) * 1e6)
        readers.close()
        http.close()
    return samples, size


def fanout(quick: bool) -> list[Row]:
    """One event at a time to 1,000 subscribers: server CPU per delivery, the durable insert included."""
    connections, rounds = 1000, 15 if quick else 60
    ours, size = _fanout(connections, 1, rounds)
    bare = _bare(connections, size, rounds)
    ratio = statistics.median(ours) / statistics.median(bare)
    return [
        Row("bare loop of os.write, 1,000 sockets", bare, "µs/delivery"),
        Row("one event to 1,000 subscribers", ours, "µs/delivery", "bare loop", ratio, "≤ 1.25"),
    ]


def burst(quick: bool) -> list[Row]:
    """200 events at once to 1,000 subscribers."""
    connections, rounds = 1000, 5 if quick else 20
    ours, size = _fanout(connections, 200, rounds)
    bare = _bare(connections, size, 15)
    ratio = statistics.median(ours) / statistics.median(bare)
    return [
        Row("bare loop of os.write, one event", bare, "µs/delivery"),
        Row("200 events at once", ours, "µs/delivery", "bare loop", ratio, "≤ 0.1"),
    ]


def latency(quick: bool) -> list[Row]:
    """From sending a durable insert over REST to the last of N subscribers having its event."""
    rows = []
    for connections in (1, 100, 1000):
        samples = []
        with paperdb() as server:
            http = Http(server.port, server.key)
            secret = token(http, "bench")
            readers = Readers([websocket(server.port, secret) for _ in range(connections)])
            size = event_frame_size(http.request("POST", "/bench/docs", {"text": TEXT_200}), "bench")
            readers.until(size * connections)
            for _ in range(30 if quick else 200):
                begun = time.perf_counter()
                http.sock.sendall(request_bytes("POST", "/bench/docs", server.key, {"text": TEXT_200}))
                readers.until(readers.received + size * connections)
                samples.append((time.perf_counter() - begun) * 1e3)
                http.sock.recv(65536)
            readers.close()
            http.close()
        rows.append(Row(f"insert to the last of {connections:,} subscribers", samples, "ms"))
    return rows


def connect(quick: bool) -> list[Row]:
    """Server CPU of a WebSocket connect: handshake, token check, subscription."""
    connections = 1000 if quick else 5000
    with paperdb() as server:
        http = Http(server.port, server.key)
        secret = token(http, "bench")
        samples = []
        socks = []
        for _ in range(connections // 500):
            before = server.cpu
            socks += [websocket(server.port, secret) for _ in range(500)]
            samples.append((server.cpu - before) / 500 * 1e6)
        for sock in socks:
            sock.close()
    return [Row("connect with handshake and token", samples, "µs/connect", budget="≤ 250 µs")]


def idle(quick: bool) -> list[Row]:
    """Resident memory per idle WebSocket."""
    connections = 2000 if quick else 10_000
    with paperdb() as server:
        http = Http(server.port, server.key)
        secret = token(http, "bench")
        warm = [websocket(server.port, secret) for _ in range(100)]
        time.sleep(0.3)
        empty = server.memory
        socks = [websocket(server.port, secret) for _ in range(connections)]
        time.sleep(1)
        per_connection = (server.memory - empty) / connections / 1024
        for sock in (*warm, *socks):
            sock.close()
    return [
        Row("resident memory with 100 connections", [empty / 2**20], "MiB"),
        Row(f"per idle connection, of {connections:,}", [per_connection], "KiB", budget="≤ 20"),
    ]


def mixed(quick: bool) -> list[Row]:
    """Fairness: a REST get while thousands of subscribers receive 20 events a second."""
    from threading import Event, Thread

    connections = 2000 if quick else 10_000
    with paperdb() as server:
        http = Http(server.port, server.key)
        secret = token(http, "bench")
        readers = Readers([websocket(server.port, secret) for _ in range(connections)])
        document = http.request("POST", "/other/docs", {"text": TEXT_200})
        stop = Event()

        def write() -> None:
            writer = Http(server.port, server.key)
            while not stop.wait(0.05):
                writer.request("POST", "/bench/docs", {"text": TEXT_200})
            writer.close()

        samples: list[float] = []

        def get() -> None:
            reader = Http(server.port, server.key)
            while not stop.wait(0.01):
                begun = time.perf_counter()
                reader.request("GET", f"/other/docs/{document['_id']}")
                samples.append((time.perf_counter() - begun) * 1e3)
            reader.close()

        threads = [Thread(target=write), Thread(target=get)]
        for thread in threads:
            thread.start()
        before, begun = server.cpu, time.perf_counter()
        readers.for_seconds(5 if quick else 15)
        share = (server.cpu - before) / (time.perf_counter() - begun)
        stop.set()
        for thread in threads:
            thread.join()
        readers.close()
    p99 = statistics.quantiles(samples, n=100)[98]
    return [
        Row(f"get beside {connections:,} subscribers, median", samples, "ms"),
        Row("the same, 99th percentile", [p99], "ms", budget="≤ 15", note=f"server at {share:.0%} of its core"),
    ]


def catchup(quick: bool) -> list[Row]:
    """One subscriber reads the whole log, beside a bare SELECT of the same rows."""
    import sqlite3

    count = 20_000 if quick else 100_000
    ours, bare = [], []
    with paperdb() as server:
        http = Http(server.port, server.key)
        size = 0
        for _ in range(count // 1000):
            answer = http.request("POST", "/bench/bulk", [{"text": TEXT_200}] * 1000)
            size += sum(event_frame_size(document, "bench") for document in answer["documents"])
        secret = token(http, "bench")
        data = f"/proc/{server.process.pid}/cwd"
        for descriptor in os.scandir(f"/proc/{server.process.pid}/fd"):
            target = os.readlink(descriptor.path)
            if target.endswith("paperdb.sqlite"):
                data = target
        for _ in range(3 if quick else 7):
            sock = websocket(server.port, secret, "&since=0")
            begun = time.perf_counter()
            received = 0
            # Cursor mode: `"seq":N,` comes on top of each plain event.
            while received < size:
                received += len(sock.recv(1 << 20))
            ours.append(count / (time.perf_counter() - begun))
            sock.close()
            connection = sqlite3.connect(f"file:{data}?mode=ro", uri=True)
            begun = time.perf_counter()
            for _row in connection.execute("SELECT position, type, collection, data FROM changes"):
                pass
            bare.append(count / (time.perf_counter() - begun))
            connection.close()
        http.close()
    ratio = statistics.median(ours) / statistics.median(bare)
    return [
        Row("bare SELECT of the log", bare, "changes/s"),
        Row("one subscriber catching up", ours, "changes/s", "bare SELECT", ratio, "≥ 0.5"),
    ]


def _rest(server: Process, name: str, connections: int, seconds: float, request: bytes) -> Row:
    before = server.cpu
    answers, took, latencies = load(server.port, connections, seconds, request)
    cpu = (server.cpu - before) / answers * 1e6
    p99 = statistics.quantiles(latencies, n=100)[98] * 1e3
    return Row(name, [answers / took], "requests/s", note=f"{cpu:.0f} µs CPU each, p99 {p99:.1f} ms")


def rest(quick: bool) -> list[Row]:
    """Requests a second: durable inserts, gets, finds; by our own HTTP and through Quart on Hypercorn."""
    seconds = 2.0 if quick else 6.0
    rows = []
    for way in ("raw", "quart"):
        with paperdb("--http", way) as server:
            insert = request_bytes("POST", "/bench/docs", server.key, {"text": TEXT_200, "n": 1})
            for connections in (1, 64):
                rows.append(
                    _rest(
                        server,
                        f"insert, {connections} connections, {way}",
                        connections,
                        seconds,
                        insert,
                    )
                )
            http = Http(server.port, server.key)
            id = http.request("POST", "/bench/docs", {"text": TEXT_200})["_id"]
            http.close()
            get = request_bytes("GET", f"/bench/docs/{id}", server.key)
            rows.append(_rest(server, f"get, 32 connections, {way}", 32, seconds, get))
            http = Http(server.port, server.key)
            http.request("DELETE", "/bench")
            for start in range(0, 10_000, 1000):
                documents = [{"text": TEXT_200, "group": n % 500} for n in range(start, start + 1000)]
                http.request("POST", "/bench/bulk", documents)
            http.close()
            find = request_bytes("GET", '/bench/docs?filter={"group":7}', server.key)
            rows.append(_rest(server, f"find 20 of 10,000, unindexed, {way}", 8, seconds, find))
    return rows


def bulk(quick: bool) -> list[Row]:
    """Documents a second by bulk requests of 1,000, beside bare SQLite with the same rows and pragmas."""
    batches = 10 if quick else 50
    documents = [{"text": TEXT_200, "n": n} for n in range(1000)]
    ours, bare = [], []
    with paperdb() as server:
        http = Http(server.port, server.key)
        body = request_bytes("POST", "/bench/bulk", server.key, documents)
        stored: list[tuple[str, str]] = []
        for _ in range(batches):
            begun = time.perf_counter()
            http.sock.sendall(body)
            from bench.clients import read_answer

            _, answer = read_answer(http.sock)
            ours.append(1000 / (time.perf_counter() - begun))
            stored += [(d["_id"], json.dumps(d)) for d in json.loads(answer)["documents"]]
        http.close()
    for _ in range(3 if quick else 5):
        with tempfile.TemporaryDirectory() as directory:
            bare.append(len(stored) / bare_sqlite(f"{directory}/bare.sqlite", stored, 1000))
    ratio = statistics.median(ours) / statistics.median(bare)
    return [
        Row("bare SQLite, executemany, 1,000 a commit", bare, "documents/s"),
        Row("bulk of 1,000", ours, "documents/s", "bare SQLite", ratio, "≥ 0.7"),
    ]


SCENARIOS: dict[str, Callable[[bool], list[Row]]] = {
    "fanout": fanout,
    "burst": burst,
    "latency": latency,
    "connect": connect,
    "idle": idle,
    "mixed": mixed,
    "catchup": catchup,
    "rest": rest,
    "bulk": bulk,
}
