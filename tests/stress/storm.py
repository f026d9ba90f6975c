"""Thousands of cursor subscribers are dropped at once and resume from different positions while writes go on.

Each must see every change of its collection after its cursor exactly once, in order of seq.

    python -m tests.stress.storm --subscribers 2000 --rate 500 --seed 7
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from contextlib import suppress
from typing import Any

import httpx
from websockets.asyncio.client import ClientConnection, connect

from tests.conftest import NO_TLS, Server
from tests.stress.harness import OFFLINE, PROMISE, new_server, report, until

COLLECTIONS = 100


class Subscriber:
    """Follows one collection from a cursor, and records the seqs that it has seen."""

    def __init__(self, server: Server, token: str, collection: str, cursor: int) -> None:
        self.server, self.token, self.collection = server, token, collection
        self.first = self.cursor = cursor
        self.seqs: list[int] = []
        self.connection: ClientConnection | None = None
        self.resumes = 0

    async def run(self) -> None:
        while True:
            query = f"token={self.token}&since={self.cursor}&collections={self.collection}"
            with suppress(*OFFLINE):
                async with connect(
                    f"{self.server.ws_url}/?{query}", proxy=None, open_timeout=120, ping_interval=None
                ) as self.connection:
                    async for text in self.connection:
                        message = json.loads(text)
                        if message["type"] == "gap":
                            raise PROMISE(f"gap after {self.cursor}")
                        if message["type"] != "ready":
                            self.cursor = message["seq"]
                            self.seqs.append(self.cursor)
            self.connection = None
            self.resumes += 1

    def drop(self) -> None:
        """Cut the connection silently."""
        if self.connection is not None:
            self.connection.transport.abort()
            self.connection = None


class Load:
    """Inserts at a rate over a few connections, and records the seqs by collection."""

    def __init__(self, server: Server, rate: int) -> None:
        self.server, self.rate = server, rate
        self.seqs: dict[str, list[int]] = {f"c{n}": [] for n in range(COLLECTIONS)}
        self.written = 0

    async def run(self, stop: asyncio.Event, connections: int = 8) -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(connections):
                group.create_task(self._write(stop, number, connections))

    async def _write(self, stop: asyncio.Event, number: int, connections: int) -> None:
        headers = {"Authorization": f"Bearer {self.server.key}"}
        async with httpx.AsyncClient(
            base_url=self.server.url, headers=headers, timeout=60, verify=NO_TLS
        ) as client:
            due = time.monotonic()
            for turn in range(number, 10**9, connections):
                if stop.is_set():
                    return
                collection = f"c{turn % COLLECTIONS}"
                response = await client.post(f"/{collection}/docs", json={"turn": turn})
                if response.status_code != 201:
                    raise PROMISE(f"insert: {response.status_code} {response.text}")
                self.seqs[collection].append(int(response.headers["etag"].strip('"')))
                self.written += 1
                due += connections / self.rate
                await asyncio.sleep(max(0.0, due - time.monotonic()))


async def storm(subscribers: int, rate: int, rounds: int, seed: int) -> dict[str, Any]:
    """Returns the counts. Raises AssertionError for a broken promise."""
    server = new_server()
    dice = random.Random(seed)
    token = server.token("*", expiresIn=86_400)
    load = Load(server, rate)
    # Older changes to resume from.
    for n in range(COLLECTIONS):
        documents = [{"past": i} for i in range(50)]
        server.request("POST", f"/c{n}/bulk", json=documents)
        load.seqs[f"c{n}"] += range(n * 50 + 1, n * 50 + 51)
    past = COLLECTIONS * 50
    crowd = [Subscriber(server, token, f"c{n % COLLECTIONS}", dice.randrange(past)) for n in range(subscribers)]
    stop = asyncio.Event()
    recoveries = []
    try:
        async with asyncio.TaskGroup() as group:
            listening = [group.create_task(subscriber.run()) for subscriber in crowd]
            writing = group.create_task(load.run(stop))
            everybody = lambda: all(s.connection is not None for s in crowd)  # noqa: E731
            await until(everybody, 120, "everybody connected")
            for _ in range(rounds):
                await asyncio.sleep(2)
                begun = time.monotonic()
                for subscriber in crowd:
                    subscriber.drop()
                await until(everybody, 120, "everybody back")
                recoveries.append(time.monotonic() - begun)
            stop.set()
            await writing
            last = {name: max(seqs) for name, seqs in load.seqs.items()}
            await until(lambda: all(s.cursor == last[s.collection] for s in crowd), 60, "all caught up")
            for task in listening:
                task.cancel()
        for subscriber in crowd:
            expected = [seq for seq in sorted(load.seqs[subscriber.collection]) if seq > subscriber.first]
            if subscriber.seqs != expected:
                missing = set(expected) - set(subscriber.seqs)
                raise PROMISE(
                    f"{subscriber.collection} after {subscriber.first}: {len(missing)} missing, "
                    f"{len(subscriber.seqs) - len(set(subscriber.seqs))} repeated"
                )
    finally:
        server.stop()
    return {
        "subscribers": subscribers,
        "rounds": rounds,
        "writes in the storm": load.written,
        "resumes": sum(s.resumes for s in crowd),
        "events": sum(len(s.seqs) for s in crowd),
        "seconds until all are back": f"{max(recoveries):.1f}",
        "gaps": 0,
        "repeated": 0,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--subscribers", type=int, default=2000)
    parser.add_argument("--rate", type=int, default=500, help="inserts a second")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    o = parser.parse_args()
    return report(storm(o.subscribers, o.rate, o.rounds, o.seed), o.seed)


if __name__ == "__main__":
    sys.exit(main())
