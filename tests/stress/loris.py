"""Clients that send a byte per second, stop in the middle of a handshake, or are too many, beside a normal one.

The normal client is served all the time. A head that does not arrive in time gets a 408 and a close.
Connections beyond the limit get 503 with Retry-After, and are accepted once others have left. Files and memory
return.

    python -m tests.stress.loris --connections 5000
"""

from __future__ import annotations

import argparse
import asyncio
import random
import socket
import ssl
import statistics
import struct
import sys
import time
from contextlib import suppress
from typing import Any

from tests.conftest import Server
from tests.stress.harness import PROMISE, Footprint, files, new_server, normal, report, until

HEAD = b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Slow: " + b"x" * 1000
REQUEST = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
PER_CONNECTION = 32 * 1024
"""Bytes that one unfinished connection may keep in use after its end, in Python's free lists."""


async def trickle(server: Server) -> str:
    """Send a head, one byte per second; returns the response's status line, empty without one."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    response = asyncio.create_task(reader.readline())
    try:
        for byte in HEAD:
            writer.write(bytes((byte,)))
            done, _ = await asyncio.wait((response,), timeout=1)
            if done:
                return response.result().decode()
        return (await asyncio.wait_for(response, 10)).decode()
    except ConnectionError:
        return ""
    finally:
        response.cancel()
        writer.close()


async def loris(connections: int, head_timeout: float) -> dict[str, Any]:
    """Heads that trickle in. Raises AssertionError for a broken promise."""
    server = new_server("--head-timeout", str(head_timeout), "--max-connections-per-address", "0")
    delays: list[float] = []
    stop = asyncio.Event()
    try:
        await asyncio.to_thread(server.request, "GET", "/healthz")
        before = Footprint(server)
        client = asyncio.create_task(normal(server, delays, stop))
        began = time.monotonic()
        async with asyncio.timeout(head_timeout * 3 + 60):
            responses = await asyncio.gather(*(trickle(server) for _ in range(connections)))
        took = time.monotonic() - began
        stop.set()
        await client
        refused = sum(response.startswith("HTTP/1.1 408 ") for response in responses)
        if refused != connections:
            raise PROMISE(f"only {refused} of {connections} got a 408: {set(responses)}")
        kept = await before.is_back(connections * PER_CONNECTION + 2**23)
    finally:
        server.kill()
    return {
        "heads of a byte a second": connections,
        "ended with 408": refused,
        "seconds until all ended": f"{took:.1f}",
        "normal requests": len(delays),
        "normal p50, ms": f"{statistics.median(delays) * 1e3:.2f}",
        "normal p99, ms": f"{statistics.quantiles(delays, n=100)[98] * 1e3:.2f}",
        "normal max, ms": f"{max(delays) * 1e3:.2f}",
        "memory kept, KiB": kept // 1024,
    }


async def crowd(limit: int, more: int) -> dict[str, Any]:
    """More connections than the limit. Raises AssertionError for a broken promise."""
    server = new_server("--max-connections", str(limit), "--max-connections-per-address", "0")
    try:
        before = Footprint(server)
        held = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(limit)]
        for sock in held:  # all are accepted once each got a response
            sock.sendall(REQUEST.replace(b"Connection: close\r\n", b""))
        for sock in held:
            sock.settimeout(10)
            if not sock.recv(65_536).startswith(b"HTTP/1.1 200 "):
                raise PROMISE("a connection within the limit was refused")
        refused = 0
        for _ in range(more):
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            with suppress(ConnectionError):
                writer.write(REQUEST)
            response = await asyncio.wait_for(reader.read(), 10)
            refused += response.startswith(b"HTTP/1.1 503 ") and b"\r\nRetry-After: " in response
            writer.close()
        if refused != more:
            raise PROMISE(f"only {refused} of {more} got a 503 with Retry-After")
        for sock in held:
            sock.close()
        await until(lambda: files(server.pid) <= before.files + limit // 2, 10, "room again")
        if (await asyncio.to_thread(server.request, "GET", "/healthz")).status_code != 200:
            raise PROMISE("it did not recover")
        await before.is_back(2**23)
    finally:
        server.kill()
    return {"connections beyond the limit": more, "refused with 503": refused}


def hello() -> bytes:
    """A TLS client's first record."""
    context = ssl.create_default_context()
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with suppress(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing, server_hostname="localhost").do_handshake()
    return outgoing.read()


async def stop_half_way(server: Server, chance: random.Random, data: bytes) -> None:
    """Start a TLS handshake and stop: silently, with a close, or with a reset."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    sock = writer.get_extra_info("socket")
    with suppress(ConnectionError):
        writer.write(data[: chance.randrange(len(data) + 1)] if chance.random() < 0.7 else data)
        way = chance.randrange(3)
        if way == 0:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        else:
            if way == 1:
                writer.write_eof()
            await asyncio.wait_for(reader.read(), 20)
    writer.close()


async def handshakes(connections: int, head_timeout: float, seed: int) -> dict[str, Any]:
    """TLS handshakes that stop half-way. Raises AssertionError for a broken promise."""
    server = new_server("--tls-self-signed", "--head-timeout", str(head_timeout))
    chance, data = random.Random(seed), hello()
    delays: list[float] = []
    stop = asyncio.Event()
    try:
        await asyncio.to_thread(server.request, "GET", "/healthz")
        before = Footprint(server)
        client = asyncio.create_task(normal(server, delays, stop))
        for begun in range(0, connections, 200):
            count = min(200, connections - begun)
            await asyncio.gather(*(stop_half_way(server, chance, data) for _ in range(count)))
        stop.set()
        await client
        kept = await before.is_back(200 * 2**17 + 2**23)  # OpenSSL's for 200 at once
    finally:
        server.kill()
    return {
        "broken handshakes": connections,
        "normal handshakes beside them": len(delays),
        "normal TLS max, ms": f"{max(delays) * 1e3:.2f}",
        "memory kept with TLS, KiB": kept // 1024,
    }


async def all_of_them(connections: int, head_timeout: float, seed: int) -> dict[str, Any]:
    return {
        **await loris(connections, head_timeout),
        **await crowd(limit=100, more=200),
        **await handshakes(connections, 1, seed),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--connections", type=int, default=5000)
    parser.add_argument("--head-timeout", type=float, default=10)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    o = parser.parse_args()
    return report(all_of_them(o.connections, o.head_timeout, o.seed), o.seed)


if __name__ == "__main__":
    sys.exit(main())
