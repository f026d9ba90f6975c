"""How fast the change log is read."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

from bench.audience import TEXT
from bench.clients import Http
from bench.machine import SERVER_CORE, on_core
from bench.readers import token, websocket
from bench.rows import Row, Scale, ratio
from bench.server import directory, paperdb
from paperdb_trio.store.sqlite.file import connect


def catchup(scale: Scale) -> Iterator[Row]:
    """One subscriber reads the whole log, beside a bare SELECT of the same rows."""
    count = scale(100_000, 20_000, 1000)
    ours: list[float] = []
    bare: list[float] = []
    ours_cpu: list[float] = []
    bare_cpu: list[float] = []
    with directory() as data, paperdb(data=data / "d") as server:
        http = Http(server.port, server.key)
        size = 0
        for _ in range(count // 1000):
            response = http.request("POST", "/bench/bulk", [{"text": TEXT}] * 1000)
            size += sum(_frame_size(document) for document in response["documents"])
        secret = token(http, "bench")
        (file,) = (data / "d").glob("*.sqlite")
        for _ in range(scale(9, 3, 2)):
            sock = websocket(server.port, secret, "&since=0")
            before, begun = server.settled_cpu(), time.perf_counter()
            received = 0
            # In cursor mode each event is longer, by `"seq":N,`.
            while received < size:
                received += len(sock.recv(1 << 20))
            ours.append(count / (time.perf_counter() - begun))
            ours_cpu.append((server.settled_cpu() - before) / count * 1e6)
            sock.close()
            connection = connect(file, read_only=True)
            with on_core(SERVER_CORE):
                before, begun = time.process_time(), time.perf_counter()
                for _row in connection.execute("SELECT rowkey, type, collection, data FROM changes"):
                    pass
                bare.append(count / (time.perf_counter() - begun))
                bare_cpu.append((time.process_time() - before) / count * 1e6)
            connection.close()
        http.close()
    yield Row("bare SELECT of the log", bare, "changes/s")
    yield Row("one subscriber catching up", ours, "changes/s", "bare SELECT", ratio(ours, bare), "≥ 0.5")
    name = "CPU of the bare SELECT"
    yield Row(name, bare_cpu, "µs/change")
    yield Row("server CPU of the subscriber", ours_cpu, "µs/change", name, ratio(ours_cpu, bare_cpu))


def _frame_size(document: dict[str, object]) -> int:
    """Bytes of the document's insert event as a frame in plain mode."""
    event = {"type": "insert", "collection": "bench", "data": document}
    return len(json.dumps(event, separators=(",", ":"))) + 4
