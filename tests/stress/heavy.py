"""Bodies that are slow for their size, and floods of small frames, one after another, beside a normal client.

Millions of arrays, numbers near the limits of a double, thousands of digits, keys, escapes, whitespace;
thousands of HTTP/2 and WebSocket frames from many connections at once. Each gets the right response, no other
client waits long (the longest wait is printed for each), and memory returns.

    python -m tests.stress.heavy --mebibytes 16 --connections 50
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

from paperdb_trio.json_input import MAX_CONTAINERS
from tests.conftest import Server
from tests.stress.harness import PROMISE, Footprint, new_server, normal, report

MEBIBYTE = 2**20
JSON = {"Content-Type": "application/json"}
KEPT = 2**27
"""Bytes that may stay resident: SQLite's page caches, and what malloc keeps of the largest body. It is the same
after the second and the tenth run."""


def repeated(unit: bytes, size: int, around: bytes = b"[%b]") -> bytes:
    """An array of units, `size` bytes long."""
    return around % b",".join([unit] * (size // (len(unit) + 1)))


def bodies(size: int, document: int) -> Iterator[tuple[str, str, bytes, int]]:
    """Name, route, body and expected status; `size` is the largest body, `document` the largest document."""
    for name, unit in {
        "empty arrays": b"[]",
        "empty objects": b"{}",
        "nested arrays": b"[" * 60 + b"]" * 60,
        "zeros": b"0",
        "1e308": b"1e308",
        "smallest double": b"5e-324",
        "308 digits": b"1" * 308,
        "pairs": b'{"a":[0]}',
        "escapes": b'"\\n\\u00e9"',
    }.items():
        fits = document * 9 // 20
        if containers := unit.count(b"[") + unit.count(b"{"):
            fits = min(fits, (MAX_CONTAINERS // containers - 2) * (len(unit) + 1))
            if document * 9 // 10 // (len(unit) + 1) * containers > MAX_CONTAINERS:
                yield f"{name}, too many", "docs", repeated(unit, document * 9 // 10, b'{"a":[%b]}'), 400
        one = repeated(unit, fits, b'{"a":[%b]}')
        yield f"{name}, a document", "docs", one, 201
        yield f"{name}, a bulk of documents", "bulk", repeated(one, size), 200
        yield f"{name}, too large a document", "docs", repeated(unit, size, b'{"a":[%b]}'), 413
        if len(unit) < 10:
            yield f"{name}, too many in a bulk", "bulk", repeated(unit, size), 413
    keys = b"{%b}" % b",".join(b'"%07d":0' % n for n in range(document // 13))
    yield "keys, a document", "docs", keys, 201
    yield "keys, a bulk of documents", "bulk", repeated(keys, size), 200
    yield "unique names", "docs", repeated(b'"a"', document // 2, b'{"unique":[%b]}'), 400
    yield "an escaped NUL and arrays", "docs", repeated(b"[]", document // 10, b'{"a":["\\\\u0000",%b]}'), 201
    yield "a number too large, behind zeros", "docs", repeated(b"0", document // 2, b'{"a":[%b,1e309]}'), 400
    yield "broken escapes", "bulk", b"[" + b"\\u" * (size // 2 - 1), 400
    yield "whitespace", "docs", b" " * (size - 2) + b"{}", 201
    yield "brackets", "bulk", b"[" * size, 400
    tricky = b'{"s":"%b","a":%b}' % (b"\\\\u" * (size // 6), repeated(b"[[[[]]]]", size * 2 // 5))
    yield "escaped backslashes before a u", "docs", tricky, 413
    again = b"{%b}" % b",".join([b'"documents":[]'] * (size // 16))
    yield "one name repeated", "bulk", again, 200


def floods(token: str) -> Iterator[tuple[str, bytes, bytes]]:
    """Name, the first bytes of a connection, and frames."""
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

    def http2(kind: int, stream: int, payload: bytes = b"") -> bytes:
        return len(payload).to_bytes(3) + bytes((kind, 0)) + stream.to_bytes(4) + payload

    settings = http2(4, 0)
    yield "HTTP/2 settings", preface + settings, settings
    yield "unknown HTTP/2 frames", preface + settings, http2(99, 0)
    streams = b"".join(http2(2, 2 * n + 1, bytes(5)) for n in range(990))
    yield "HTTP/2 priorities", preface + settings + streams, streams
    yield "HTTP/2 windows", preface + settings, http2(8, 0, (1).to_bytes(4))
    upgrade = (
        f"GET /?token={token} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    ).encode()
    yield "WebSocket pings", upgrade, b"\x89\x80masK"
    yield "WebSocket pongs", upgrade, b"\x8a\x80masK"
    yield "WebSocket continuations", upgrade + b"\x01\x80masK", b"\x00\x80masK"


async def flood(server: Server, hello: bytes, frames: bytes) -> None:
    """Send 64 KiB of such frames. The server may close the connection at any point."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    with suppress(OSError, TimeoutError):
        writer.write(hello)
        await asyncio.wait_for(reader.read(1), 20)
        writer.write(frames * (65_536 // len(frames)))
        writer.write_eof()
        await asyncio.wait_for(reader.read(), 20)
    writer.close()


@asynccontextmanager
async def beside(server: Server, delays: list[float]) -> AsyncIterator[None]:
    """A normal client meanwhile."""
    stop = asyncio.Event()
    other = asyncio.create_task(normal(server, delays, stop))
    yield
    stop.set()
    await other


async def heavy(mebibytes: float, connections: int) -> dict[str, Any]:
    """Returns the longest waits. Raises AssertionError for a broken promise."""
    size = int(mebibytes * MEBIBYTE)
    document = min(MEBIBYTE, size // 8)
    limits = {"--max-body-bytes": size, "--max-document-bytes": document, "--cache-bytes": 0}
    server = new_server(*(str(word) for option in limits.items() for word in option))
    waits: dict[str, Any] = {}
    try:
        await asyncio.to_thread(server.insert, "heavy", {})
        before = Footprint(server)
        for name, route, body, status in bodies(size, document):
            delays: list[float] = []
            async with beside(server, delays):
                post = partial(server.request, "POST", f"/heavy/{route}", headers=JSON, content=body)
                response = await asyncio.to_thread(post)
            if response.status_code != status:
                raise PROMISE(f"{name}: {response.status_code} instead of {status}: {response.text[:200]}")
            if route == "bulk" and status == 200 and response.json()["failed"]:
                raise PROMISE(f"{name}: {response.json()['errors'][0]}")
            waits[name] = f"{max(delays) * 1e3:.0f} ms"
        token = server.token("heavy")
        for name, hello, frames in floods(token):
            delays = []
            async with beside(server, delays):
                await asyncio.gather(*(flood(server, hello, frames) for _ in range(connections)))
            waits[f"{connections} x 64 KiB: {name}"] = f"{max(delays) * 1e3:.0f} ms"
        kept = await before.is_back(KEPT)
    finally:
        server.kill()
    return {**waits, "memory kept, KiB": kept // 1024}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mebibytes", type=int, default=16)
    parser.add_argument("--connections", type=int, default=50)
    o = parser.parse_args()
    return report(heavy(o.mebibytes, o.connections), 0)


if __name__ == "__main__":
    sys.exit(main())
