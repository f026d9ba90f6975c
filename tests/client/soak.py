"""A program that subscribes while everything fails at once, for as long as wanted, and checks itself.

    python -m tests.client.soak --seed 1 --seconds 60

Writers fill four collections. Meanwhile the server is killed and restarted and its signing secret rotated, and
a proxy between it and the subscribers cuts, stalls, delays and refuses. Subscribers of random collections come
and go, fast and slow. Some belong to a client with an API key, which renews its tokens every two seconds.
Others belong to a client that asks a back end, whose tokens last for seconds and which fails now and then, so
that they expire in use.

At the end, each must have received a prefix of the changes in its collections after its start (those that
stayed: all of them), in order, each once, as a reader of the whole log sees them. Every acknowledged write must
be among them. Prints the seed and the figures; exits with 1 if anything is wrong.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import httpx
import trio

from paperdb_trio import Client, PaperDBError, create_client
from paperdb_trio.client import backoff, token
from tests.client.harness import Proxy, proxied, shortened
from tests.conftest import Server

NAMES = ("a", "b", "c", "d")
QUICK = ("refuse", "kill", "cut", "rotate")
"""Those that a few seconds have time for. While the proxy refuses, writes bypass it: those can be missed."""
TROUBLES = (*QUICK, "cut", "kill", "restart", "stall", "silence")
"""Each comes once before any comes again."""


@dataclass
class Record:
    """What one subscriber received."""

    names: list[str]
    start: int | None
    stays: bool
    seqs: list[int] = field(default_factory=list)


class Soak:
    def __init__(self, server: Server, seed: int, seconds: float, troubles: tuple[str, ...]) -> None:
        self.server = server
        self.troubles = troubles
        self.silent = False
        self.chance = random.Random(seed)
        self.seconds = seconds
        self.records: list[Record] = []
        self.acknowledged: set[int] = set()
        self.stopping = trio.Event()
        self.cuts = self.kills = self.rotations = self.expired = self.writing = 0

    async def run(self) -> list[tuple[int, str]]:
        """The whole log, as `(seq, collection)`."""
        chance = self.chance
        async with proxied(self.server) as proxy:
            proxy.budget = lambda: chance.choice([chance.uniform(300, 5e3), chance.uniform(5e3, 2e5), 1e9])
            proxy.delay = lambda: chance.choice((0, 0, 0, 0, 0.002))
            key = self.server.key
            async with (
                create_client(base_url=proxy.url, api_key=key, token_seconds=30, renewal_margin=28) as db,
                create_client(base_url=proxy.url, get_token=self.get_token) as asking,
                create_client(base_url=self.server.url, api_key=key) as direct,
            ):
                async with trio.open_nursery() as nursery:
                    for _ in range(3):
                        nursery.start_soon(self.write, direct)
                    staying = (db, db, db, asking, asking, asking)
                    for client in staying:
                        names = chance.sample(NAMES, chance.randrange(1, 4))
                        slow = chance.choice((0, 0.01, 0.03))
                        nursery.start_soon(self.subscribe, client, names, slow, True)
                    nursery.start_soon(self.churn, db)
                    nursery.start_soon(self.churn, asking)
                    watching = await nursery.start(self.count_expired, asking)
                    await self.trouble(proxy)
                    watching.cancel()
                    proxy.budget = lambda: float("inf")
                    # One that is entered later would wait for its last event forever.
                    while sum(record.stays for record in self.records) < len(staying):
                        await trio.sleep(0.01)
                    self.stopping.set()
                    while self.writing:  # no event follows the last document of a collection
                        await trio.sleep(0.01)
                    for name in NAMES:
                        while not await self.succeeds(direct, name):
                            await trio.sleep(0.1)
                self.cuts = proxy.cuts
                async with direct.realtime.subscribe(*NAMES, since=0) as events:
                    log, ended = [], 0
                    while ended < len(NAMES):
                        event = await anext(events)
                        log.append((event.seq, event.collection))
                        ended += "last" in event.data
        return log

    async def succeeds(self, direct: Client, name: str) -> bool:
        try:
            await direct.collection(name).insert({"key": "last", "last": True})
        except PaperDBError as error:
            return error.status == 409
        return True

    async def write(self, direct: Client) -> None:
        chance = self.chance
        self.writing += 1
        while not self.stopping.is_set():
            collection = direct.collection(chance.choice(NAMES))
            try:
                if chance.random() < 0.2:
                    await collection.insert_bulk({"text": "x" * chance.randrange(300)} for _ in range(20))
                else:
                    document = await collection.insert({})
                    assert document.seq is not None
                    self.acknowledged.add(document.seq)
            except PaperDBError:
                await trio.sleep(0.05)
            await trio.sleep(chance.random() * 0.02)
        self.writing -= 1

    async def subscribe(self, db: Client, names: list[str], slow: float, stays: bool) -> None:
        chance = self.chance
        life = float("inf") if stays else chance.uniform(0, 4)
        subscription = db.realtime.subscribe(*names, max_events=chance.choice((5, 50, 1000)))
        ended: set[str] = set()
        with trio.move_on_after(life):
            async with subscription as events:
                record = Record(names, events._channel.start, stays)
                self.records.append(record)
                while len(ended) < len(names):
                    event = await anext(events)
                    record.seqs.append(event.seq)
                    if "last" in event.data:
                        ended.add(event.collection)
                    if chance.random() < slow:
                        await trio.sleep(0.02)

    async def churn(self, db: Client) -> None:
        chance = self.chance
        async with trio.open_nursery() as nursery:
            while not self.stopping.is_set():
                names = chance.sample(NAMES, chance.randrange(1, 4))
                nursery.start_soon(self.subscribe, db, names, chance.choice((0, 0, 0.3)), False)
                await trio.sleep(chance.random() * 0.3)

    async def get_token(self) -> str:
        """The response of the application's back end: a token from the server, made to last for seconds."""
        if self.silent or self.chance.random() < 0.2:
            raise OSError("the back end is out of order")
        try:
            minted = await trio.to_thread.run_sync(partial(self.server.token, *NAMES))
        except httpx.TransportError as error:
            raise OSError("the back end has no response from the server") from error
        return shortened(self.server, minted, self.chance.choice((2, 3, 4)))

    async def count_expired(
        self, client: Client, task_status: trio.TaskStatus[trio.CancelScope] = trio.TASK_STATUS_IGNORED
    ) -> None:
        with trio.CancelScope() as scope:
            task_status.started(scope)
            async for status in client.realtime.status():
                self.expired += "expired" in status.reason

    async def trouble(self, proxy: Proxy) -> None:
        chance, server = self.chance, self.server
        end = trio.current_time() + self.seconds
        deck = chance.sample(self.troubles, len(self.troubles))
        while deck or trio.current_time() < end:
            await trio.sleep(chance.uniform(0.1, 0.8))
            deck = deck or chance.sample(self.troubles, len(self.troubles))
            kind = deck.pop()
            if kind == "rotate":
                await trio.to_thread.run_sync(server.cli, "keys", "rotate-signing")
                self.rotations += 1
            elif kind == "silence":  # open connections stay until their token ends
                budget, proxy.budget = proxy.budget, lambda: float("inf")
                proxy.cut()
                await trio.sleep(1)
                self.silent = True
                await trio.sleep(chance.uniform(3, 5))
                self.silent, proxy.budget = False, budget
            elif kind == "kill":
                await trio.to_thread.run_sync(server.kill)
                await trio.sleep(chance.random() * 0.5)
                await trio.to_thread.run_sync(server.start)
                self.kills += 1
            elif kind == "restart":
                await trio.to_thread.run_sync(server.stop)
                await trio.to_thread.run_sync(server.start)
            else:
                proxy.stalled, proxy.accepting = kind == "stall", kind != "refuse"
                if kind != "stall":
                    proxy.cut()
                await trio.sleep(chance.random())
                proxy.stalled, proxy.accepting = False, True
                proxy.cut()

    def faults(self, log: list[tuple[int, str]]) -> list[str]:
        found = []
        seqs = [seq for seq, _ in log]
        if seqs != sorted(set(seqs)):
            found.append("the log's reader was not given increasing seqs")
        if missing := self.acknowledged - set(seqs):
            found.append(f"acknowledged, and not in the log: {sorted(missing)[:5]}")
        for record in self.records:
            if record.start is None:
                found.append(f"a subscriber of {record.names} was entered without a start")
                continue
            expected = [seq for seq, name in log if name in record.names and seq > record.start]
            if record.seqs != (expected if record.stays else expected[: len(record.seqs)]):
                first = next((a, b) for a, b in zip([*record.seqs, 0], [*expected, 0], strict=False) if a != b)
                found.append(f"a subscriber of {record.names} was given {first[0]} instead of {first[1]}")
        return found


def soak(server: Server, seed: int, seconds: float, troubles: tuple[str, ...] = TROUBLES) -> list[str]:
    """Run and print the figures; returns what was wrong."""
    backoff.MAX_DELAY = 1.0  # the network is cut every few hundred bytes: try again soon
    token.RENEWAL_PAUSE = 1.0
    run = Soak(server, seed, seconds, troubles)
    log = trio.run(run.run)
    faults = run.faults(log)
    delivered = sum(len(record.seqs) for record in run.records)
    print(
        f"seed {seed}: {len(log)} changes, {len(run.records)} subscribers, {delivered} deliveries, "
        f"{run.kills} kills, {run.rotations} rotations, {run.cuts} cuts in mid-frame, "
        f"{run.expired} tokens that expired in use, {len(faults)} faults"
    )
    return faults


def main() -> None:
    parser = argparse.ArgumentParser(description="Subscribe through every trouble at once.")
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000))
    parser.add_argument("--seconds", type=float, default=60)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder) / "data")
        try:
            faults = soak(server, options.seed, options.seconds)
        finally:
            server.kill()
    print("\n".join(faults))
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
