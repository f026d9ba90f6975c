"""A steady client beside a load. It is a process of its own, so that the load's clients do not delay it.

python -m bench.probe get PORT KEY TARGET PERIOD                     a REST get of TARGET every PERIOD seconds
python -m bench.probe insert PORT KEY COLLECTION PERIOD [TOKEN N]    an insert, and its event to N subscribers

Each is timed from sending the request until its response, or until the last of the N has its event.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Thread

from bench.audience import TEXT
from bench.clients import Http, request_bytes
from bench.machine import raise_file_limit
from bench.readers import Readers, websocket
from bench.server import Process, stop


class Probe:
    """Runs from its construction until `end`."""

    def __init__(self, server: Process, kind: str, target: str, period: float, *more: str) -> None:
        command = [sys.executable, "-m", "bench.probe", kind, str(server.port), server.key, target, str(period)]
        self.process = subprocess.Popen(
            [*command, *more], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        assert self.process.stdout is not None
        if self.process.stdout.readline() != "ready\n":
            raise RuntimeError("the probe did not start")

    def end(self) -> list[tuple[float, float]]:
        """Stop it. Returns (time.perf_counter() when it was sent, ms) of each."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        return [(when, took) for when, took in json.loads(self.process.stdout.read())]


@contextmanager
def probe(server: Process, kind: str, target: str, period: float, *more: str) -> Iterator[Probe]:
    running = Probe(server, kind, target, period, *more)
    try:
        yield running
    finally:
        if running.process.poll() is None:
            stop(running.process)
        assert running.process.stdin is not None
        assert running.process.stdout is not None
        running.process.stdin.close()
        running.process.stdout.close()


def main(kind: str, port: int, key: str, target: str, period: float, token: str, live: int) -> None:
    http = Http(port, key)
    if kind == "get":
        once = _get(http, target)
    else:
        once = _insert(http, target, Readers([websocket(port, token) for _ in range(live)]))
    once()
    ending = Thread(target=sys.stdin.read)
    ending.start()
    print("ready", flush=True)
    samples = []
    due = time.perf_counter()
    while ending.is_alive():
        begun = time.perf_counter()
        once()
        now = time.perf_counter()
        samples.append((begun, (now - begun) * 1e3))
        due = max(due + period, now)
        time.sleep(due - now)
    print(json.dumps(samples))


def _get(http: Http, target: str) -> Callable[[], object]:
    request = request_bytes("GET", target, http.key)
    return lambda: http.exchange(request)


def _insert(http: Http, collection: str, readers: Readers) -> Callable[[], object]:
    request = request_bytes("POST", f"/{collection}/docs", http.key, {"text": TEXT})
    size = 0

    def once() -> None:
        nonlocal size
        before = readers.received
        http.exchange(request)
        if readers.socks and not size:
            size = readers.each_since(before) * len(readers.socks)
        readers.until(before + size)

    return once


if __name__ == "__main__":
    raise_file_limit()
    kind, port, key, target, period, token, live = [*sys.argv[1:], "", "0"][:7]
    main(kind, int(port), key, target, float(period), token, int(live))
