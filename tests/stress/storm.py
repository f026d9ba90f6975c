"""Thousands of cursor subscribers are dropped at once and resume from different positions while writes go on.

Each must see every change of its collection after its cursor exactly once, in order of seq. Others follow
live queries, which documents enter and leave meanwhile: each must see exactly what its query makes of the
changes.

    python -m tests.stress.storm --subscribers 1000 --live 1000 --rate 500 --seed 7
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from contextlib import suppress
from operator import itemgetter
from typing import Any

import httpx
from websockets.asyncio.client import ClientConnection, connect

from paperdb_trio.store.predicate import predicate
from tests.conftest import NO_TLS, Server
from tests.stress.harness import OFFLINE, PROMISE, new_server, report, until

COLLECTIONS = 100
KINDS = 4
PAST = 50
"""Documents in each collection before the storm."""

Event = tuple[int, str]
"""`seq` and `type`."""
Written = tuple[int, dict[str, Any] | None, dict[str, Any]]
"""`seq` of a change, and the fields of its document before and after it."""


class Subscriber:
    """Follows one collection from a cursor, and records the events that it has seen."""

    def __init__(self, server: Server, token: str, collection: str, cursor: int) -> None:
        self.server, self.token, self.collection = server, token, collection
        self.first = self.cursor = cursor
        self.events: list[Event] = []
        self.connection: ClientConnection | None = None
        self.resumes = 0

    async def run(self) -> None:
        while True:
            query = f"token={self.token}&{self.parameters}"
            with suppress(*OFFLINE):
                async with connect(
                    f"{self.server.ws_url}/?{query}", proxy=None, open_timeout=120, ping_interval=None
                ) as connection:
                    await self.begin(connection)
                    self.connection = connection
                    async for text in connection:
                        self.take(json.loads(text))
            self.connection = None
            self.resumes += 1

    @property
    def parameters(self) -> str:
        return f"since={self.cursor}&collections={self.collection}"

    async def begin(self, connection: ClientConnection) -> None:
        pass

    def take(self, message: dict[str, Any]) -> None:
        if message["type"] in ("gap", "reset", "error"):
            raise PROMISE(f"{message} after {self.cursor}")
        if message["type"] not in ("ready", "subscribed", "progress"):
            self.cursor = message["seq"]
            self.events.append((self.cursor, message["type"]))

    def expected(self, log: list[Written]) -> list[Event]:
        return [(seq, "insert" if old is None else "update") for seq, old, _ in log if seq > self.first]

    def drop(self) -> None:
        """Cut the connection silently."""
        if self.connection is not None:
            self.connection.transport.abort()
            self.connection = None


class LiveSubscriber(Subscriber):
    """Follows a live query."""

    def __init__(self, *where: Any, filter: dict[str, Any]) -> None:
        super().__init__(*where)
        self.filter = filter

    parameters = "since=now&collections="

    async def begin(self, connection: ClientConnection) -> None:
        ask = {
            "action": "subscribe",
            "collection": self.collection,
            "filter": self.filter,
            "since": self.cursor,
        }
        await connection.send(json.dumps(ask))

    def expected(self, log: list[Written]) -> list[Event]:
        holds = predicate(self.filter)
        events: list[Event] = []
        for seq, old, new in log:
            was, now = old is not None and holds(old), holds(new)
            if seq > self.first and (was or now):
                events.append((seq, "update" if was and now else "insert" if now else "delete"))
        return events


def live_filter(dice: random.Random) -> dict[str, Any]:
    kind = dice.randrange(KINDS)
    turn = dice.randrange(10_000)
    return dice.choice(
        [
            {"kind": kind},
            {"kind": {"in": [kind, (kind + 1) % KINDS]}, "turn": {"gte": turn}},
            {"kind": {"gte": kind, "lt": kind + 2}},
            {"name": {"startsWith": f"k{kind}"}},
            {"or": [{"kind": kind}, {"turn": {"lt": turn}}]},
        ]
    )


class Load:
    """Inserts and moves documents at a rate over a few connections, and records what it does by collection."""

    def __init__(self, server: Server, rate: int) -> None:
        self.server, self.rate = server, rate
        self.log: dict[str, list[Written]] = {f"c{n}": [] for n in range(COLLECTIONS)}
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
                document = None
                path = f"/c{turn % COLLECTIONS}/docs"
                for step in range(3):  # it is inserted, and moves twice
                    if stop.is_set():
                        return
                    fields = fields_of(turn, turn + step)
                    if document is None:
                        response = await client.post(path, json=fields)
                    else:
                        response = await client.patch(f"{path}/{document['_id']}", json=fields)
                    if response.status_code not in (200, 201):
                        raise PROMISE(f"write: {response.status_code} {response.text}")
                    seq = int(response.headers["etag"].strip('"'))
                    self.log[f"c{turn % COLLECTIONS}"].append((seq, document, response.json()))
                    document = response.json()
                    self.written += 1
                    due += connections / self.rate
                    await asyncio.sleep(max(0.0, due - time.monotonic()))


def fields_of(turn: int, kind: int) -> dict[str, Any]:
    return {"turn": turn, "kind": kind % KINDS, "name": f"k{kind % KINDS}"}


async def storm(subscribers: int, live: int, rate: int, rounds: int, seed: int) -> dict[str, Any]:
    """Returns the counts. Raises AssertionError for a broken promise."""
    server = new_server()
    dice = random.Random(seed)
    token = server.token("*", expiresIn=86_400)
    load = Load(server, rate)
    # Older changes to resume from.
    for n in range(COLLECTIONS):
        documents = [fields_of(i, i) for i in range(PAST)]
        server.request("POST", f"/c{n}/bulk", json=documents)
        load.log[f"c{n}"] += [(n * PAST + i, None, document) for i, document in enumerate(documents, 1)]
    crowd: list[Subscriber] = []
    for n in range(subscribers + live):
        where = server, token, f"c{n % COLLECTIONS}", dice.randrange(COLLECTIONS * PAST)
        if n < subscribers:
            crowd.append(Subscriber(*where))
        else:
            crowd.append(LiveSubscriber(*where, filter=live_filter(dice)))
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
            log = {name: sorted(written, key=itemgetter(0)) for name, written in load.log.items()}
            expected = [subscriber.expected(log[subscriber.collection]) for subscriber in crowd]
            await until(
                lambda: all(len(s.events) >= len(due) for s, due in zip(crowd, expected, strict=True)),
                60,
                "all caught up",
            )
            for task in listening:
                task.cancel()
        for subscriber, due in zip(crowd, expected, strict=True):
            if subscriber.events != due:
                missing = set(due) - set(subscriber.events)
                raise PROMISE(
                    f"{vars(subscriber)} after {subscriber.first}: {len(missing)} missing, "
                    f"{len(subscriber.events) - len(set(subscriber.events))} repeated"
                )
    finally:
        server.stop()
    return {
        "subscribers": subscribers,
        "subscribers of live queries": live,
        "rounds": rounds,
        "writes in the storm": load.written,
        "resumes": sum(s.resumes for s in crowd),
        "events": sum(len(s.events) for s in crowd[:subscribers]),
        "events of live queries": sum(len(s.events) for s in crowd[subscribers:]),
        "seconds until all are back": f"{max(recoveries):.1f}",
        "gaps": 0,
        "repeated": 0,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--subscribers", type=int, default=1000, help="of whole collections")
    parser.add_argument("--live", type=int, default=1000, help="subscribers of live queries")
    parser.add_argument("--rate", type=int, default=500, help="writes a second")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    o = parser.parse_args()
    return report(storm(o.subscribers, o.live, o.rate, o.rounds, o.seed), o.seed)


if __name__ == "__main__":
    sys.exit(main())
