"""Shared by the stress programs: a server that is killed, clients that reconnect, and their records.

Each program checks itself, prints its counts, accepts a seed for a replay, and exits with 1 when a promise was
broken. The clients are `websockets` and httpx on asyncio, not our own code.
"""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
from websockets.asyncio.client import connect
from websockets.exceptions import WebSocketException

from paperdb_trio.store.rowkeys import JUMP
from tests.conftest import NO_TLS, Server

PROMISE = AssertionError
OFFLINE = (OSError, WebSocketException, httpx.HTTPError, EOFError, TimeoutError)


def report(program: Coroutine[Any, Any, dict[str, Any]], seed: int) -> int:
    """Run a stress program, print its counts, and return the exit code."""
    print(f"seed {seed}", flush=True)
    broken: list[BaseException] = []
    try:
        for name, count in asyncio.run(program).items():
            print(f"{name:36} {count:>12,}" if isinstance(count, int) else f"{name:36} {count:>12}")
    except* PROMISE as group:
        broken.extend(group.exceptions)
    for error in broken:
        print(f"BROKEN: {error!r}")
    return 1 if broken else 0


def is_unknown(response: httpx.Response) -> bool:
    """Whether it leaves open if something was written, as a proxy's own errors and `STORAGE_UNKNOWN` do."""
    if response.status_code not in (502, 503, 504):
        return False
    if not response.headers.get("content-type", "").startswith("application/json"):
        return True
    return bool(response.json()["code"] == "STORAGE_UNKNOWN")


def new_server(*options: str) -> Server:
    return Server(Path(tempfile.mkdtemp(prefix="paperdb-stress-")) / "data", options, forked=False)


class Follower:
    """Follows the change log in cursor mode and checks that every seq comes once and in order.

    `documents` is the state of the collection according to its events. With `breaks`, the log may go on far
    beyond a seq, as after a failover: whether all was seen is for others to check.
    """

    breaks = False

    def __init__(self, server: Server, token: str, name: str, *, keep: bool = True, cursor: int = 0) -> None:
        self.server = server
        self.token = token
        self.name = name
        self.cursor = cursor
        self.seen = 0
        self.resumes = 0
        self.keep = keep
        self.documents: dict[str, dict[str, Any]] = {}

    def take(self, event: dict[str, Any]) -> None:
        seq = event["seq"]
        if seq != self.cursor + 1 and not (self.breaks and seq > self.cursor + JUMP):
            kind = "repeated or out of order" if seq <= self.cursor else "missing"
            raise PROMISE(f"{self.name}: got seq {seq} after {self.cursor}: something is {kind}")
        self.cursor = seq
        self.seen += 1
        if self.keep:
            if event["type"] == "delete":
                del self.documents[event["data"]["_id"]]
            else:
                self.documents[event["data"]["_id"]] = event["data"]

    async def run(self) -> None:
        """Follow forever, across any number of disconnections."""
        while True:
            with suppress(*OFFLINE):
                async for text in self.messages():
                    message = json.loads(text)
                    if message["type"] == "gap":
                        raise PROMISE(f"{self.name}: gap at {self.cursor}")
                    if "seq" in message and message["type"] != "ready":
                        self.take(message)
            self.resumes += 1
            await asyncio.sleep(0.02)

    async def messages(self) -> AsyncIterator[str | bytes]:
        target = f"{self.server.ws_url}/?token={self.token}&since={self.cursor}"
        async with connect(target, proxy=None, max_size=None, close_timeout=1, open_timeout=30) as ws:
            async for text in ws:
                yield text


async def head_of(server: Server, token: str) -> int:
    """The seq of the last change, from `ready`."""
    async with connect(f"{server.ws_url}/?token={token}&since=now", proxy=None, close_timeout=1) as ws:
        return int(json.loads(await ws.recv())["seq"])


async def until(condition: Callable[[], bool], seconds: float, what: str) -> None:
    for _ in range(int(seconds / 0.05)):
        if condition():
            return
        await asyncio.sleep(0.05)
    raise PROMISE(f"{what}: not within {seconds} s")


def memory(pid: int) -> int:
    """Resident bytes of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise ProcessLookupError(pid)


def files(pid: int) -> int:
    """The number of a process's open files and sockets."""
    return len(os.listdir(f"/proc/{pid}/fd"))


class Footprint:
    """A server's open files and resident memory now, for a later check that it has returned to them."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.files = files(server.pid)
        self.memory = memory(server.pid)

    async def is_back(self, more: int) -> int:
        """Files are closed, at most so many bytes are kept, and the server exits with 0; returns the bytes
        kept."""
        await until(lambda: files(self.server.pid) <= self.files + 1, 30, "the files are closed")
        kept = memory(self.server.pid) - self.memory
        if kept > more:
            raise PROMISE(f"{kept:,} bytes were not given back")
        if await asyncio.to_thread(self.server.stop) != 0 or "Traceback" in self.server.stderr:
            raise PROMISE(self.server.stderr)
        return kept


async def normal(server: Server, delays: list[float], stop: asyncio.Event) -> None:
    """Send requests, each over its own connection, until told to stop."""
    async with httpx.AsyncClient(
        timeout=10, verify=server.context or NO_TLS, headers={"Connection": "close"}
    ) as client:
        while not stop.is_set():
            began = time.perf_counter()
            answer = await client.get(f"{server.url}/healthz")
            delays.append(time.perf_counter() - began)
            if answer.status_code != 200:
                raise PROMISE(f"a normal client got {answer.status_code}")
            await asyncio.sleep(0.03)
