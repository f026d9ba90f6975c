"""The write-ahead log stays short although reads always overlap: finders that scan, and patchers.

    just wal --seconds 600

The promise: the log never exceeds --max-wal-bytes by more than one transaction and what is written while reads
pause. `--max-wal-bytes 1000000000000` shows how it grows without a bound.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import httpx

from paperdb_trio.config import Settings
from paperdb_trio.store.sqlite.writer import MAX_PATIENCE
from tests.conftest import NO_TLS, Server
from tests.stress.harness import PROMISE, new_server, report

DOCUMENTS: Final = 5000
PAD: Final = "x" * 8000
MARGIN: Final = 8 * 1024 * 1024
"""Bytes of the largest transaction, and of the writes while reads pause (`MAX_PATIENCE` s at most)."""
LONGEST_WAIT: Final = MAX_PATIENCE + 8
"""Seconds. A pause of the reads, and the time that the machine needs for what had to wait."""


class Client:
    """Sends requests one after the other, and keeps the count and the longest wait in seconds."""

    def __init__(self) -> None:
        self.count = 0
        self.longest = 0.0

    async def send(self, http: httpx.AsyncClient, method: str, path: str, **more: Any) -> None:
        began = time.perf_counter()
        response = await http.request(method, path, **more)
        self.longest = max(self.longest, time.perf_counter() - began)
        self.count += 1
        if response.status_code != 200:
            raise PROMISE(f"{method} {path}: {response.status_code} {response.text[:200]}")


async def find(http: httpx.AsyncClient, client: Client, rng: random.Random) -> None:
    while True:
        query = {"filter": json.dumps({"n": {"gte": rng.randrange(1000)}}), "sort": "-n", "limit": "20"}
        await client.send(http, "GET", "/c/docs", params=query)


async def patch(http: httpx.AsyncClient, client: Client, rng: random.Random) -> None:
    while True:
        fields = {"n": rng.randrange(1000), "pad": PAD}
        await client.send(http, "PATCH", f"/c/docs/{rng.randrange(DOCUMENTS)}", json=fields)


async def watch(wal: Path, sizes: list[int]) -> None:
    while True:
        sizes.append(wal.stat().st_size)
        await asyncio.sleep(0.02)


async def fill(server: Server, http: httpx.AsyncClient, rng: random.Random) -> None:
    for start in range(0, DOCUMENTS, 1000):
        documents = [
            {"_id": str(n), "n": rng.randrange(1000), "pad": PAD[:100]} for n in range(start, start + 1000)
        ]
        (await http.post("/c/bulk", json=documents)).raise_for_status()


async def wal(seconds: float, max_wal_bytes: int, finders: int, patchers: int, seed: int) -> dict[str, Any]:
    """Returns counts and waits. Raises AssertionError for a log beyond its bound."""
    # Without automatic indexes each find scans all documents, so that reads overlap all the time.
    server = new_server("--max-wal-bytes", str(max_wal_bytes), "--index-after", "0")
    rng = random.Random(seed)
    sizes: list[int] = []
    finding, patching = [Client() for _ in range(finders)], [Client() for _ in range(patchers)]
    headers = {"Authorization": f"Bearer {server.key}"}
    try:
        async with httpx.AsyncClient(
            base_url=server.url, headers=headers, timeout=30, verify=NO_TLS, trust_env=False
        ) as http:
            await fill(server, http, rng)
            work = [find(http, client, rng) for client in finding]
            work += [patch(http, client, rng) for client in patching]
            work.append(watch(server.data / "paperdb.sqlite-wal", sizes))
            tasks = [asyncio.create_task(each) for each in work]
            done, _ = await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
            for task in tasks:
                task.cancel()
            for task in done:
                task.result()  # raises what broke
            await asyncio.gather(*tasks, return_exceptions=True)
    finally:
        server.kill()
    if max(sizes) > max_wal_bytes + MARGIN:
        raise PROMISE(f"the log had {max(sizes):,} bytes, its bound is {max_wal_bytes:,}")
    longest = max(client.longest for client in finding + patching)
    if longest > LONGEST_WAIT:
        raise PROMISE(f"a client waited {longest:.1f} s")
    written = sum(max(0, after - before) for before, after in pairwise(sizes))
    return {
        "finds per second": f"{sum(client.count for client in finding) / seconds:.1f}",
        "patches per second": f"{sum(client.count for client in patching) / seconds:.1f}",
        "longest wait of a find": f"{max(client.longest for client in finding) * 1e3:.0f} ms",
        "longest wait of a patch": f"{max(client.longest for client in patching) * 1e3:.0f} ms",
        "largest log, bytes": max(sizes),
        "growth of the log in all, bytes": written,
        "restarts of the log": sum(after < before for before, after in pairwise(sizes)),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--max-wal-bytes", type=int, default=Settings().max_wal_bytes)
    parser.add_argument("--finders", type=int, default=6)
    parser.add_argument("--patchers", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    o = parser.parse_args()
    return report(wal(o.seconds, o.max_wal_bytes, o.finders, o.patchers, o.seed), o.seed)


if __name__ == "__main__":
    sys.exit(main())
