"""Readers that read slowly, or never, beside fast ones: their cost for the server and for the fast ones.

No reader may be disconnected for being slow, or cost over 1 MiB. A stuck one that starts to read gets
everything, once and in order. Every second stuck reader follows a live query.

    python -m tests.stress.slow --stuck 1000 --seconds 20
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import socket
import statistics
import sys
import time
from base64 import b64encode
from typing import Any
from urllib.parse import quote

import httpx
from websockets.asyncio.client import connect

from tests.conftest import NO_TLS, Server
from tests.stress.harness import PROMISE, memory, new_server, report

COLLECTION = "slow"
TEXT = "x" * 1000


LIVE = f"&collections={COLLECTION}&filter=" + quote(json.dumps({COLLECTION: {"text": {"startsWith": "x"}}}))
"""Follow a query that every document matches."""


def stuck_socket(server: Server, token: str, receive_buffer: int = 4096, query: str = "") -> socket.socket:
    """A WebSocket in cursor mode whose client has read only the response to its handshake."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    sock.connect(("127.0.0.1", server.port))
    key = b64encode(os.urandom(16)).decode()
    sock.sendall(
        f"GET /?token={token}&since=now{query} HTTP/1.1\r\nHost: x\r\n"
        "Upgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
    )
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += sock.recv(1)
    if b" 101 " not in head:
        raise PROMISE(head)
    sock.setblocking(False)
    return sock


class FrameReader:
    """Parses server frames incrementally; never responds to pings."""

    def __init__(self) -> None:
        self.buffer = b""

    def feed(self, data: bytes) -> list[dict[str, Any]]:
        self.buffer += data
        messages = []
        while len(self.buffer) >= 2:
            size, at = self.buffer[1], 2
            if size == 126:
                size, at = int.from_bytes(self.buffer[2:4], "big"), 4
            elif size == 127:
                size, at = int.from_bytes(self.buffer[2:10], "big"), 10
            if len(self.buffer) < at + size:
                break
            if self.buffer[0] == 0x81:
                messages.append(json.loads(self.buffer[at : at + size]))
            elif self.buffer[0] == 0x88:
                code = int.from_bytes(self.buffer[at : at + 2], "big")
                raise PROMISE(f"a slow reader was closed with {code}")
            self.buffer = self.buffer[at + size :]
        return messages


async def trickle(sock: socket.socket, rate: int, reader: FrameReader, seqs: list[int]) -> None:
    """Read `rate` bytes per second."""
    loop = asyncio.get_running_loop()
    while True:
        data = await loop.sock_recv(sock, max(1, rate // 10))
        if not data:
            raise PROMISE("a slow reader was disconnected")
        seqs += [m["seq"] for m in reader.feed(data) if m["type"] != "ready"]
        await asyncio.sleep(0.1)


async def write(server: Server, seconds: float, rate: int) -> int:
    headers = {"Authorization": f"Bearer {server.key}"}
    written, due = 0, time.monotonic()
    end = due + seconds
    async with httpx.AsyncClient(base_url=server.url, headers=headers, timeout=30, verify=NO_TLS) as client:
        while time.monotonic() < end:
            response = await client.post(f"/{COLLECTION}/docs", json={"at": time.monotonic(), "text": TEXT})
            if response.status_code != 201:
                raise PROMISE(response.text)
            written += 1
            due += 1 / rate
            await asyncio.sleep(max(0.0, due - time.monotonic()))
    return written


async def fast_reader(server: Server, token: str, delays: list[float]) -> None:
    async with connect(f"{server.ws_url}/?token={token}", proxy=None, max_size=None) as ws:
        async for text in ws:
            delays.append(time.monotonic() - json.loads(text)["data"]["at"])


async def measure(server: Server, token: str, seconds: float, rate: int) -> tuple[int, list[float]]:
    """Write for a while beside ten fast readers; returns the writes and the readers' delays."""
    delays: list[float] = []
    readers = [asyncio.create_task(fast_reader(server, token, delays)) for _ in range(10)]
    await asyncio.sleep(0.5)
    written = await write(server, seconds, rate)
    await asyncio.sleep(0.5)
    for reader in readers:
        reader.cancel()
    await asyncio.gather(*readers, return_exceptions=True)
    if len(delays) != written * 10:
        raise PROMISE(f"fast readers got {len(delays)} of {written * 10} events")
    return written, delays


async def slow(stuck: int, seconds: float, rate: int) -> dict[str, Any]:
    """Returns the figures. Raises AssertionError for a broken promise."""
    server = new_server("--ping-interval", "5", "--ping-timeout", "5")
    token = server.token(COLLECTION, expiresIn=86_400)
    sockets = []
    try:
        _, alone = await measure(server, token, seconds / 2, rate)
        for number in range(stuck):
            sockets.append(stuck_socket(server, token, query=LIVE if number % 2 else ""))
        before = memory(server.pid)
        kept: dict[int, list[int]] = {}
        tricklers = []
        for speed in (1_000, 10_000):
            sock = stuck_socket(server, token)
            sockets.append(sock)
            kept[speed] = []
            tricklers.append(asyncio.create_task(trickle(sock, speed, FrameReader(), kept[speed])))
        written, beside = await measure(server, token, seconds, rate)
        after = memory(server.pid)
        for trickler in tricklers:
            if trickler.done():
                trickler.result()
            trickler.cancel()
        await asyncio.gather(*tricklers, return_exceptions=True)
        # Two that never read start to: everything is there.
        for sock in sockets[:2] if stuck > 1 else ():
            seqs: list[int] = []
            reader, deadline = FrameReader(), time.monotonic() + 60
            while len(seqs) < written and time.monotonic() < deadline:
                try:
                    messages = reader.feed(sock.recv(65536))
                    seqs += [m["seq"] for m in messages if m["type"] not in ("ready", "progress")]
                except BlockingIOError:
                    await asyncio.sleep(0.001)
            if len(seqs) < written or seqs != list(range(seqs[0], seqs[0] + len(seqs))):
                raise PROMISE(f"a stuck reader got {len(seqs)} of {written} changes, or not in order")
        for speed, got in kept.items():
            if got and got != list(range(got[0], got[0] + len(got))):
                raise PROMISE(f"the reader at {speed} B/s missed or repeated something")
        per_reader = (after - before) / max(1, stuck)
        if stuck >= 100 and per_reader > 2**20:
            raise PROMISE(f"a reader that does not read costs {per_reader:,.0f} bytes")
    finally:
        for sock in sockets:
            sock.close()
        server.stop()
    return {
        "readers that never read": stuck,
        "writes beside them": written,
        "memory before, MiB": before // 2**20,
        "memory after, MiB": after // 2**20,
        "bytes per stuck reader": int(per_reader),
        "events at 1 KB/s": len(kept[1_000]),
        "events at 10 KB/s": len(kept[10_000]),
        "fast p50 alone, ms": f"{statistics.median(alone) * 1e3:.2f}",
        "fast p50 beside them, ms": f"{statistics.median(beside) * 1e3:.2f}",
        "fast p99 alone, ms": f"{statistics.quantiles(alone, n=100)[98] * 1e3:.2f}",
        "fast p99 beside them, ms": f"{statistics.quantiles(beside, n=100)[98] * 1e3:.2f}",
        "disconnected for being slow": 0,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stuck", type=int, default=1000, help="readers that never read")
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--rate", type=int, default=200, help="inserts of 1 KB a second")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    o = parser.parse_args()
    return report(slow(o.stuck, o.seconds, o.rate), o.seed)


if __name__ == "__main__":
    sys.exit(main())
