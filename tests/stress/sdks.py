"""Hundreds of subscriptions of both SDKs are dropped at once, and resume, while writes go on.

Each must receive every change of its collection exactly once, in order of seq.

    python -m tests.stress.sdks --clients 150 --rate 300 --rounds 3 --seed 7

The clients of each SDK run in one process, with two subscriptions on each client's socket, behind a proxy that
cuts all of them at once. (`tests.web.soak` and `tests.client.soak` add kills, cuts in mid-frame, and expiring
tokens.)
"""

from __future__ import annotations

import argparse
import json
import queue
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import trio

from paperdb_trio import create_client
from tests.conftest import ENVIRONMENT, NO_TLS, Server, wait_until
from tests.stress.harness import new_server
from tests.web.tools import HERE, Proxy, current_node, new_package

COLLECTIONS = 20
WRITERS = 4
SECONDS = 90
"""Timeout of every wait."""

Given = list[tuple[str, list[Any]]]
"""For each subscription its collection, and the seqs that it received."""


def names(number: int) -> tuple[str, str]:
    """The collections of a client."""
    return f"c{number % COLLECTIONS}", f"c{(number * 7 + 1) % COLLECTIONS}"


class NodeCrowd:
    """The clients of the JavaScript SDK."""

    def __init__(self, package: Path, url: str, token: str, clients: int) -> None:
        script = package / "storm.mjs"
        script.write_bytes((HERE / "storm.mjs").read_bytes())
        options = {"baseUrl": url, "token": token, "clients": clients, "collections": COLLECTIONS}
        self._process = subprocess.Popen(
            [current_node(), str(script), json.dumps(options)],
            cwd=package,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=ENVIRONMENT,
        )
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)

    def wait_ready(self) -> None:
        assert self._lines.get(timeout=SECONDS) == "ready\n"

    def given(self) -> Given:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return [(name, seqs) for name, seqs in json.loads(self._lines.get(timeout=SECONDS))]

    def __enter__(self) -> NodeCrowd:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()


class TrioCrowd:
    """The clients of the Python SDK, in their own thread."""

    def __init__(self, url: str, token: str, clients: int) -> None:
        self._url, self._token, self._clients = url, token, clients
        self._given: Given = []
        self._ready = threading.Event()
        self._scope = trio.CancelScope()
        self._trio: trio.lowlevel.TrioToken | None = None
        self._thread = threading.Thread(target=trio.run, args=(self._run,))

    async def _run(self) -> None:
        self._trio = trio.lowlevel.current_trio_token()
        with self._scope:
            async with trio.open_nursery() as nursery:
                for number in range(self._clients):
                    await nursery.start(self._client, number)
                self._ready.set()

    async def _client(self, number: int, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        async def get_token() -> str:
            return self._token

        async with (
            create_client(base_url=self._url, get_token=get_token) as db,
            trio.open_nursery() as nursery,
        ):
            for name in names(number):
                await nursery.start(self._subscription, db, name)
            task_status.started()

    async def _subscription(
        self, db: Any, name: str, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        seqs: list[Any] = []
        async with db.realtime.subscribe(name) as events:
            self._given.append((name, seqs))
            task_status.started()
            async for event in events:
                seqs.append(event.seq)

    def wait_ready(self) -> None:
        assert self._ready.wait(SECONDS)

    def given(self) -> Given:
        return self._given

    def __enter__(self) -> TrioCrowd:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._trio is not None
        self._trio.run_sync_soon(self._scope.cancel)
        self._thread.join(SECONDS)


class Load:
    """Inserts at a rate from a few threads, and records the seqs of each collection."""

    def __init__(self, server: Server, rate: int, seed: int) -> None:
        self._server, self._pause, self._seed = server, WRITERS / rate, seed
        self.seqs: dict[str, list[int]] = {f"c{n}": [] for n in range(COLLECTIONS)}
        self.failures: list[str] = []
        self._stop = threading.Event()

    @contextmanager
    def running(self) -> Iterator[None]:
        threads = [threading.Thread(target=self._write, args=(number,)) for number in range(WRITERS)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            for thread in threads:
                thread.join(SECONDS)

    def _write(self, number: int) -> None:
        chance = random.Random(f"{self._seed}/{number}")
        headers = {"Authorization": f"Bearer {self._server.key}"}
        with httpx.Client(base_url=self._server.url, headers=headers, timeout=60, verify=NO_TLS) as client:
            while not self._stop.wait(self._pause):
                name = f"c{chance.randrange(COLLECTIONS)}"
                response = client.post(f"/{name}/docs", json={"n": number})
                if response.status_code != 201:
                    self.failures.append(response.text)
                    return
                self.seqs[name].append(int(response.headers["etag"].strip('"')))


def faults(crowds: dict[str, Given], written: dict[str, list[int]]) -> list[str]:
    """Subscriptions whose changes differ from the writes."""
    found = []
    for crowd, given in crowds.items():
        for name, seqs in given:
            if seqs != written[name]:
                missing = len(set(written[name]) - set(seqs))
                repeated = len(seqs) - len(set(seqs))
                found.append(
                    f"{crowd}, {name}: {missing} missing, {repeated} repeated, of {len(seqs)}: {seqs[-3:]}"
                )
    return found


def storm(server: Server, package: Path, clients: int, rate: int, rounds: int, seed: int) -> list[str]:
    """Run `clients` clients of each SDK. Prints the figures; returns the faults."""
    token = server.token(*(f"c{n}" for n in range(COLLECTIONS)), expiresIn=86_400)
    load = Load(server, rate, seed)
    chance = random.Random(seed)
    with ExitStack() as stack:
        proxy = stack.enter_context(Proxy(server.port))
        crowds: dict[str, NodeCrowd | TrioCrowd] = {
            "JavaScript": stack.enter_context(NodeCrowd(package, proxy.url, token, clients)),
            "Python": stack.enter_context(TrioCrowd(proxy.url, token, clients)),
        }
        for crowd in crowds.values():
            crowd.wait_ready()
        connected = len(proxy.sockets)
        with load.running():
            for round in range(1, rounds + 1):
                time.sleep(chance.uniform(0.3, 1))
                proxy.cut()
                everybody = connected + 2 * clients * round
                wait_until(lambda: len(proxy.sockets) >= everybody, SECONDS)  # noqa: B023 - at once
        written = {name: sorted(seqs) for name, seqs in load.seqs.items()}

        def all_given() -> dict[str, Given]:
            return {name: crowd.given() for name, crowd in crowds.items()}

        try:
            wait_until(lambda: not faults(all_given(), written), 20)
        except AssertionError:
            pass  # reported below
        given = all_given()
        resumed = len(proxy.sockets) - connected
    found = faults(given, written) + load.failures
    print(
        f"seed {seed}: {2 * clients} clients, {4 * clients} subscriptions, {rounds} rounds, {resumed} sockets "
        f"resumed, {sum(map(len, written.values()))} writes, "
        f"{sum(len(seqs) for own in given.values() for _, seqs in own)} deliveries, {len(found)} faults"
    )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Subscriptions of both SDKs, dropped at once.")
    parser.add_argument("--clients", type=int, default=150, help="of each SDK; each has two subscriptions")
    parser.add_argument("--rate", type=int, default=300, help="inserts a second")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    o = parser.parse_args()
    server = new_server()
    with tempfile.TemporaryDirectory() as folder:
        try:
            new_package(Path(folder), server.url)
            found = storm(server, Path(folder), o.clients, o.rate, o.rounds, o.seed)
        finally:
            server.kill()
    print("\n".join(found[:20]))
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
