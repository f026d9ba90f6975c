"""Kill the server with SIGKILL at random moments, many times, while writers write and subscribers listen.

Afterwards every acknowledged write must exist, no unacknowledged one may be half-written, and every cursor
subscriber must have seen every change exactly once, in order of seq. A batch that is repeated with its key must
be there whole, and once. Every follower of a live query must have seen exactly what the query makes of the
changes.

    python -m tests.stress.crash --kills 200 --seed 7

With `--workers 2`, a kill hits the supervisor, the process that writes, or a worker. Half of the kills of the
latter two only stop them for a while (SIGSTOP).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import sys
import time
from contextlib import suppress
from typing import Any

import httpx
from websockets.asyncio.client import connect

from tests.conftest import NO_TLS, Server
from tests.server.test_workers import processes
from tests.stress.batches import BatchWriter
from tests.stress.harness import (
    OFFLINE,
    PROMISE,
    Follower,
    head_of,
    is_unknown,
    new_server,
    report,
    until,
)
from tests.stress.views import Asked, LiveEventSource, LiveFollower, Recorder

COLLECTION = "crash"
LEDGER = "ledger"
BULK = 5
RECENT = 20
"""Documents of one writer that change: few, so that each moves in and out of views often."""

RULE: dict[str, Any] = {"filter": {"room": {"in": ["r1", "r2", "r4"]}}, "select": ["room", "n"]}
QUERIES = [
    Asked(COLLECTION, {"room": "r1"}),
    Asked(COLLECTION, {"n": {"gte": 2, "lt": 5}}),
    Asked(COLLECTION, {"room": {"in": ["r2", "r3"]}}, ("n",)),
    Asked(COLLECTION, {"_id": {"startsWith": "w1"}, "n": {"lt": 4}}, ("room",)),
    Asked(COLLECTION, {"or": [{"room": "r4"}, {"n": {"gt": 6}}]}),
    Asked(COLLECTION, {"room": {"ne": "r0"}}),  # no index finds it
    Asked(LEDGER, {"room": {"in": ["r0", "r1"]}}),
]
RULED = [
    Asked(COLLECTION, filter, tuple(RULE["select"]), RULE["filter"])
    for filter in ({}, {"n": {"gte": 2}}, {"room": "r2"})
]


class Writer:
    """Writes its own documents, one request at a time, and knows the possible states of each."""

    def __init__(self, server: Server, number: int, seed: int) -> None:
        self.server = server
        self.number = number
        self.random = random.Random(f"{seed}/{number}")
        self.made = 0
        self.acknowledged = 0
        self.unknown = 0
        self.sure: dict[str, int | None] = {}  # id -> value of "n", None: deleted
        self.unsure: dict[str, set[int | None]] = {}
        self.bulks: list[list[str]] = []

    async def run(self, stop: asyncio.Event) -> None:
        headers = {"Authorization": f"Bearer {self.server.key}"}
        async with httpx.AsyncClient(
            base_url=self.server.url, headers=headers, timeout=10, verify=NO_TLS
        ) as client:
            while not stop.is_set():
                method, path, body, effects = self.plan()
                response: httpx.Response | None
                try:
                    response = await client.request(method, path, json=body)
                except httpx.ConnectError:  # never sent
                    await asyncio.sleep(0.02)
                    continue
                except OFFLINE:
                    response = None
                if response is None or is_unknown(response):
                    self.unknown += 1
                    for id, value in effects.items():
                        self.unsure[id] = {self.sure.pop(id, None), value}
                    await asyncio.sleep(0.02)
                    continue
                if response.status_code == 503:  # draining, or not yet: nothing was written
                    await asyncio.sleep(0.02)
                    continue
                if response.status_code not in (200, 201):
                    raise PROMISE(f"{method} {path}: {response.status_code} {response.text}")
                self.acknowledged += 1
                self.sure.update(effects)

    def plan(self) -> tuple[str, str, Any, dict[str, int | None]]:
        """`(method, path, body, effects)` of the next request; documents in an unknown state are left alone."""
        living = [id for id, n in self.sure.items() if n is not None]
        dice = self.random.random()
        if dice < 0.45 or not living:
            id = self.new_id()
            return "POST", f"/{COLLECTION}/docs", {"_id": id, "n": 0, "room": self.room()}, {id: 0}
        if dice < 0.6:
            ids = [self.new_id() for _ in range(BULK)]
            self.bulks.append(ids)
            documents = [{"_id": id, "n": 1, "room": self.room()} for id in ids]
            return "POST", f"/{COLLECTION}/bulk?atomic=true", documents, dict.fromkeys(ids, 1)
        id = self.random.choice(living[-RECENT:])
        if dice < 0.9:
            n = self.sure[id]
            assert n is not None
            fields = {"n": {"increment": 1}, "room": self.room()}
            return "PATCH", f"/{COLLECTION}/docs/{id}", fields, {id: n + 1}
        return "DELETE", f"/{COLLECTION}/docs/{id}", None, {id: None}

    def room(self) -> str:
        return f"r{self.random.randrange(5)}"

    def new_id(self) -> str:
        self.made += 1
        return f"w{self.number}-{self.made}"

    def check(self, documents: dict[str, dict[str, Any]]) -> None:
        for id, n in self.sure.items():
            found = documents.get(id, {}).get("n")
            if found != n:
                raise PROMISE(f"acknowledged write lost: {id} is {found}, acknowledged was {n}")
        for id, possible in self.unsure.items():
            found = documents.get(id, {}).get("n")
            if found not in possible:
                raise PROMISE(f"{id} is {found}, which no writer wrote (possible: {possible})")
        for ids in self.bulks:
            touched = [id for id in ids if id in self.unsure]
            there = sum(id in documents for id in touched)
            if len(touched) == BULK and there not in (0, BULK):
                raise PROMISE(f"half of an atomic bulk is there: {there} of {BULK}")


async def plain_listener(server: Server, token: str, counts: dict[str, int]) -> None:
    """Plain mode promises nothing across a disconnection, only shape and order while it lasts."""
    while True:
        with suppress(*OFFLINE):
            async with connect(f"{server.ws_url}/?token={token}", proxy=None, close_timeout=1) as ws:
                async for text in ws:
                    if set(json.loads(text)) != {"type", "collection", "data"}:
                        raise PROMISE(f"plain event of another shape: {text!r}")
                    counts["plain"] += 1
        await asyncio.sleep(0.02)


def live_followers(server: Server, token: str, seed: int) -> list[LiveFollower | LiveEventSource]:
    ruled = server.request(
        "POST", "/realtime/token", json={"collections": {COLLECTION: RULE}, "expiresIn": 86_400}
    )
    rule = ruled.json()["token"]
    return [
        LiveFollower(server, token, "snapshots", QUERIES, snapshots=True, seed=seed),
        LiveFollower(server, token, "since", QUERIES, snapshots=False),
        LiveFollower(server, rule, "rule, snapshots", RULED, snapshots=True, seed=seed),
        LiveFollower(server, rule, "rule, since", RULED, snapshots=False),
        LiveEventSource(server, token, "sse", Asked(COLLECTION, {})),
        LiveEventSource(server, token, "sse", QUERIES[1]),
        LiveEventSource(server, token, "sse", QUERIES[2]),
        LiveEventSource(server, rule, "rule, sse", RULED[1]),
    ]


async def crash(
    kills: int, seed: int, writers: int = 12, batch_writers: int = 4, workers: int = 1
) -> dict[str, int]:
    """Returns the counts. Raises AssertionError for a broken promise."""
    # Progress, too, moves the cursors.
    server = new_server("--ping-interval", "0.1", "--workers", str(workers))
    dice = random.Random(seed)
    token = server.token("*", expiresIn=86_400)
    counts = {"plain": 0}
    crew = [Writer(server, number, seed) for number in range(writers)]
    batches = [BatchWriter(server, number, seed, COLLECTION, LEDGER) for number in range(batch_writers)]
    recorder = Recorder(server, token, "recorder")
    followers: list[Follower] = [recorder, *(Follower(server, token, f"cursor {n}") for n in range(2))]
    live = live_followers(server, token, seed)
    stop = asyncio.Event()
    try:
        async with asyncio.TaskGroup() as group:
            listening = [group.create_task(follower.run()) for follower in followers]
            listening += [group.create_task(follower.run()) for follower in live]
            listening.append(group.create_task(plain_listener(server, token, counts)))
            writing = [group.create_task(writer.run(stop)) for writer in crew]
            writing += [group.create_task(writer.run(stop)) for writer in batches]
            for _ in range(kills):
                await asyncio.sleep(dice.uniform(0.02, 0.4))
                await asyncio.to_thread(kill_some, server, dice)
            await asyncio.sleep(0.3)
            stop.set()
            await asyncio.gather(*writing)
            head = await head_of(server, token)
            await until(lambda: all(f.cursor == head for f in followers), 30, "followers at the head")
            await asyncio.gather(*(follower.reach(head) for follower in live))
            for task in listening:
                task.cancel()
        documents = {name: all_documents(server, name) for name in (COLLECTION, LEDGER)}
        check(documents, crew, batches, recorder.log)
        for follower in followers:
            if follower.documents != documents[COLLECTION] | documents[LEDGER]:
                raise PROMISE(f"{follower.name}: its events do not add up to the documents")
            if follower.seen != head:
                raise PROMISE(f"{follower.name}: saw {follower.seen} of {head} changes")
        views = [view for follower in live for view in follower.views]
        for view in views:
            view.check(recorder.log)
    finally:
        server.stop()
    return {
        "kills": kills,
        "acknowledged writes": sum(writer.acknowledged for writer in crew),
        "writes of unknown fate": sum(writer.unknown for writer in crew),
        "acknowledged batches": sum(len(writer.sizes) for writer in batches),
        "batches repeated with their key": sum(writer.repeated for writer in batches),
        "of these, done before the kill": sum(writer.replayed for writer in batches),
        "documents": sum(map(len, documents.values())),
        "changes": head,
        "followers of everything": len(followers),
        "followers of live queries": len(live),
        "resumes": sum(follower.resumes for follower in (*followers, *live)),
        "plain events": counts["plain"],
        "events of live queries": sum(len(s.events) for view in views for s in view.segments),
        "their snapshots": sum(len(f.views[0].segments) for f in live if getattr(f, "snapshots", False)),
        "lost": 0,
        "repeated": 0,
    }


def kill_some(server: Server, dice: random.Random) -> None:
    """Kill the server, or kill or stop one of its processes. Its supervisor starts again what was killed."""
    children = processes(server)
    name = dice.choice(["supervisor", *children])
    if name == "supervisor":
        server.kill()
        server.start()
        return
    stops = dice.random() < 0.5
    with suppress(ProcessLookupError):
        os.kill(children[name], signal.SIGSTOP if stops else signal.SIGKILL)
        if stops:
            time.sleep(dice.uniform(0.1, 1))
            os.kill(children[name], signal.SIGCONT)


def check(
    documents: dict[str, dict[str, dict[str, Any]]],
    crew: list[Writer],
    batches: list[BatchWriter],
    log: list[dict[str, Any]],
) -> None:
    for writer in crew:
        writer.check(documents[COLLECTION])
    for batch_writer in batches:
        batch_writer.check(documents[COLLECTION], log)


def all_documents(server: Server, collection: str) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    more = True
    while more:
        page = server.request("GET", f"/{collection}/docs?limit=1000&offset={len(found)}").json()
        found.update({document["_id"]: document for document in page["documents"]})
        more = page["hasMore"]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    return report(crash(options.kills, options.seed, workers=options.workers), options.seed)


if __name__ == "__main__":
    sys.exit(main())
