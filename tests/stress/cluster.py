"""Kill, stop and cut off the machines of examples/cluster at random, while writers write through HAProxy and
subscribers follow on both PaperDB nodes.

Afterwards every acknowledged write must exist, no unacknowledged one may be half-written, and every cursor
subscriber must have seen every change exactly once, in order of seq: as in tests/stress/crash.py.

    python -m tests.stress.cluster --kills 20 --seed 7

As root, each machine has a network namespace, and cables are cut, too; otherwise not.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import re
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from examples.cluster.cluster import BALANCER, NODES, NUMBERS, Cluster
from examples.cluster.network import Loopback, Namespaces
from tests.conftest import Server
from tests.stress.batches import BatchWriter
from tests.stress.crash import COLLECTION, LEDGER, QUERIES, Writer, all_documents, check
from tests.stress.faults import CUTS, FAULTS, primary_of
from tests.stress.harness import PROMISE, Follower, head_of, report, until
from tests.stress.views import LiveFollower, Recorder

RECOVERY_SECONDS = 120
SETTLED_SECONDS = 2.0


class Place(Server):
    """A server of the cluster, or HAProxy before them."""

    def __init__(self, cluster: Cluster, machine: str) -> None:
        self.url = cluster.url(machine)
        self.key = cluster.key
        self.http2 = False
        self.data = Path("/nowhere")


async def cluster_under_fire(
    kills: int, seed: int, only: str = "", writers: int = 8, batch_writers: int = 3
) -> dict[str, Any]:
    """Returns the counts. Raises AssertionError for a broken promise."""
    dice = random.Random(seed)
    root = os.geteuid() == 0
    cluster = Cluster((Namespaces if root else Loopback)(NUMBERS))
    faults = {**FAULTS, **(CUTS if root else {})}
    names = [name for name in faults if only in name]
    outages: dict[str, list[float]] = defaultdict(list)
    broken = True
    try:
        cluster.start()
        lb, first, second = (Place(cluster, machine) for machine in (BALANCER, *NODES))
        token = lb.token("*", expiresIn=86_400)
        crew = [Writer(lb, number, seed) for number in range(writers)]
        batches = [BatchWriter(lb, number, seed, COLLECTION, LEDGER) for number in range(batch_writers)]
        recorder = Recorder(first, token, "app1, recorder")
        followers: list[Follower] = [
            recorder,
            Follower(first, token, "app1"),
            Follower(second, token, "app2, first"),
            Follower(second, token, "app2, second"),
            Follower(lb, token, "balanced"),
        ]
        live = [
            LiveFollower(first, token, "app1, live", QUERIES, snapshots=False),
            LiveFollower(second, token, "app2, live", QUERIES, snapshots=False),
            LiveFollower(lb, token, "balanced, live", QUERIES, snapshots=True, seed=seed),
        ]
        for follower in followers:
            follower.breaks = True
        stop = asyncio.Event()
        clock = Acknowledged(crew)
        async with asyncio.TaskGroup() as group:
            listening = [group.create_task(follower.run()) for follower in followers]
            listening += [group.create_task(follower.run()) for follower in live]
            listening += [group.create_task(clock.run()), group.create_task(look_after(cluster))]
            writing = [group.create_task(writer.run(stop)) for writer in crew]
            writing += [group.create_task(writer.run(stop)) for writer in batches]
            for number in range(kills):
                name = names[number % len(names)] if kills >= len(names) else dice.choice(names)
                clock.longest = 0.0
                async with faults[name](cluster, dice) as hit:
                    print(f"{time.strftime('%X')} {number + 1}: {name} ({hit})", end="", flush=True)
                async with asyncio.timeout(RECOVERY_SECONDS):
                    await primary_of(cluster)
                    await clock.moving()
                outages[name].append(clock.longest)
                print(f": longest time without a write {clock.longest:.1f} s", flush=True)
            stop.set()
            await asyncio.gather(*writing)
            head = await head_of(lb, token)
            await until(lambda: all(f.cursor == head for f in followers), 60, "followers at the head")
            await asyncio.gather(*(follower.reach(head, 60) for follower in live))
            for task in listening:
                task.cancel()
        changes = logged(lb)
        documents = {name: all_documents(lb, name) for name in (COLLECTION, LEDGER)}
        check(documents, crew, batches, recorder.log)
        for follower in followers:
            if follower.documents != documents[COLLECTION] | documents[LEDGER]:
                raise PROMISE(f"{follower.name}: its events do not add up to the documents")
            if follower.seen != changes:
                raise PROMISE(f"{follower.name}: saw {follower.seen} of {changes} changes")
        for view in (view for follower in live for view in follower.views):
            view.check(recorder.log)
        broken = False
    finally:
        cluster.close(keep=broken)
        if broken:
            print(f"\nlogs are in {cluster.home}")
    return {
        **{f"{name}, s": " ".join(f"{s:.1f}" for s in seconds) for name, seconds in outages.items()},
        "kills": kills,
        "acknowledged writes": sum(writer.acknowledged for writer in crew),
        "writes of unknown fate": sum(writer.unknown for writer in crew),
        "acknowledged batches": sum(len(writer.sizes) for writer in batches),
        "batches repeated with their key": sum(writer.repeated for writer in batches),
        "of these, done before": sum(writer.replayed for writer in batches),
        "documents": sum(map(len, documents.values())),
        "changes": changes,
        "resumes": sum(f.resumes for f in followers) + sum(f.resumes for f in live),
        "lost": 0,
        "repeated": 0,
    }


def logged(server: Server) -> int:
    """How many changes the log holds."""
    (text,) = re.findall(r"^paperdb_log_changes (\S+)$", server.request("GET", "/metrics").text, re.MULTILINE)
    return int(float(text))


async def look_after(cluster: Cluster) -> None:
    """Start again what ends, as systemd would; but no fault of others may end PaperDB."""
    while True:
        for name, process in list(cluster.processes.items()):
            if process.poll() is not None:
                if name.startswith("paperdb"):
                    raise PROMISE(f"{name} ended with {process.returncode}: {cluster.log(name)[-2000:]}")
                print(f" [{name} ended with {process.returncode}, and starts again]", end="", flush=True)
                cluster.begin(name)
        await asyncio.sleep(0.5)


class Acknowledged:
    """How long no write was acknowledged."""

    def __init__(self, crew: list[Writer]) -> None:
        self.crew = crew
        self.last = time.monotonic()
        self.longest = 0.0

    async def run(self) -> None:
        before = 0
        while True:
            now = sum(writer.acknowledged for writer in self.crew)
            if now > before:
                self.last, before = time.monotonic(), now
            self.longest = max(self.longest, time.monotonic() - self.last)
            await asyncio.sleep(0.05)

    async def moving(self) -> None:
        """Return when writes have been acknowledged for a while."""
        began = time.monotonic()
        while time.monotonic() < began + SETTLED_SECONDS:
            if time.monotonic() - self.last > 0.5:
                began = time.monotonic()
            await asyncio.sleep(0.05)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--only", default="", help="faults whose name contains this")
    options = parser.parse_args()
    return report(cluster_under_fire(options.kills, options.seed, options.only), options.seed)


if __name__ == "__main__":
    sys.exit(main())
