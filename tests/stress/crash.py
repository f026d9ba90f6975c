"""Kill the server with SIGKILL at random moments, many times, while writers write and subscribers listen.

Afterwards every acknowledged write must exist, no unacknowledged one may be half-written, and every cursor
subscriber must have seen every change exactly once, in order of seq.

    python -m tests.stress.crash --kills 200 --seed 7
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
from contextlib import suppress
from typing import Any

import httpx
from websockets.asyncio.client import connect

from tests.conftest import NO_TLS, Server
from tests.stress.harness import (
    OFFLINE,
    PROMISE,
    EventSourceFollower,
    Follower,
    head_of,
    new_server,
    report,
    until,
)

COLLECTION = "crash"
BULK = 5


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
                try:
                    response = await client.request(method, path, json=body)
                except httpx.ConnectError:  # never sent
                    await asyncio.sleep(0.02)
                    continue
                except OFFLINE:
                    self.unknown += 1
                    for id, value in effects.items():
                        self.unsure[id] = {self.sure.pop(id, None), value}
                    await asyncio.sleep(0.02)
                    continue
                if response.status_code == 503:  # draining, or not yet: nothing was written
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
            return "POST", f"/{COLLECTION}/docs", {"_id": id, "n": 0}, {id: 0}
        if dice < 0.6:
            ids = [self.new_id() for _ in range(BULK)]
            self.bulks.append(ids)
            documents = [{"_id": id, "n": 1} for id in ids]
            return "POST", f"/{COLLECTION}/bulk?atomic=true", documents, dict.fromkeys(ids, 1)
        id = self.random.choice(living)
        if dice < 0.9:
            n = self.sure[id]
            assert n is not None
            return "PATCH", f"/{COLLECTION}/docs/{id}", {"n": {"increment": 1}}, {id: n + 1}
        return "DELETE", f"/{COLLECTION}/docs/{id}", None, {id: None}

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


async def crash(kills: int, seed: int, writers: int = 12) -> dict[str, int]:
    """Returns the counts. Raises AssertionError for a broken promise."""
    server = new_server()
    dice = random.Random(seed)
    token = server.token("*", expiresIn=86_400)
    counts = {"plain": 0}
    crew = [Writer(server, number, seed) for number in range(writers)]
    followers: list[Follower] = [Follower(server, token, f"cursor {n}") for n in range(3)]
    followers += [EventSourceFollower(server, token, f"sse {n}", COLLECTION) for n in range(2)]
    stop = asyncio.Event()
    try:
        async with asyncio.TaskGroup() as group:
            listening = [group.create_task(follower.run()) for follower in followers]
            listening.append(group.create_task(plain_listener(server, token, counts)))
            writing = [group.create_task(writer.run(stop)) for writer in crew]
            for _ in range(kills):
                await asyncio.sleep(dice.uniform(0.02, 0.4))
                await asyncio.to_thread(server.kill)
                await asyncio.to_thread(server.start)
            await asyncio.sleep(0.3)
            stop.set()
            await asyncio.gather(*writing)
            head = await head_of(server, token)
            await until(
                lambda: all(follower.cursor == head for follower in followers), 30, "followers at the head"
            )
            for task in listening:
                task.cancel()
        documents = all_documents(server)
        for writer in crew:
            writer.check(documents)
        for follower in followers:
            if follower.documents != documents:
                raise PROMISE(f"{follower.name}: its events do not add up to the documents")
            if follower.seen != head:
                raise PROMISE(f"{follower.name}: saw {follower.seen} of {head} changes")
    finally:
        server.stop()
    return {
        "kills": kills,
        "acknowledged writes": sum(writer.acknowledged for writer in crew),
        "writes of unknown fate": sum(writer.unknown for writer in crew),
        "documents": len(documents),
        "changes": head,
        "followers": len(followers),
        "resumes": sum(follower.resumes for follower in followers),
        "plain events": counts["plain"],
        "lost": 0,
        "repeated": 0,
    }


def all_documents(server: Server) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    more = True
    while more:
        page = server.request("GET", f"/{COLLECTION}/docs?limit=1000&offset={len(found)}").json()
        found.update({document["_id"]: document for document in page["documents"]})
        more = page["hasMore"]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    options = parser.parse_args()
    return report(crash(options.kills, options.seed), options.seed)


if __name__ == "__main__":
    sys.exit(main())
