"""Clients that request a large document thousands of times and never read: pipelined, or in HTTP/2 with a
window of 0, where the socket itself never blocks.

The server's memory stays bounded, `write_timeout` closes their connections and frees their memory, and other
clients are served meanwhile.

    python -m tests.stress.deaf --requests 5000 --clients 20
"""

from __future__ import annotations

import argparse
import asyncio
import random
import socket
import sys
import time
from typing import Any

from tests.conftest import Server
from tests.net.http2 import ask, begin
from tests.stress.harness import PROMISE, Footprint, files, memory, new_server, normal, report

DOCUMENT_BYTES = 500_000
MORE_MEMORY = 2**23
"""Beside what is counted for each client."""
REQUESTS_BYTES = 2**17
"""Bytes per HTTP/1.1 connection for the requests read; the document itself belongs to the cache."""
STREAMS = 90
"""Per connection; Hypercorn accepts 100 at once."""
STREAM_BYTES = 80 * 1024
"""Two pieces of the response, and the tasks of an HTTP/2 stream."""
LOADED = 2**25
"""Quart and Hypercorn, and garbage that is not collected yet."""


def deaf_socket(server: Server) -> socket.socket:
    """A connection whose client has little room for responses."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.connect(("127.0.0.1", server.port))
    sock.setblocking(False)
    return sock


async def pour(sock: socket.socket, data: bytes) -> None:
    """Send until the server closes the connection; `asyncio.timeout` bounds it."""
    try:
        await asyncio.get_running_loop().sock_sendall(sock, data)
    except ConnectionError:
        pass


def asks_without_window(server: Server, path: str, streams: int) -> bytes:
    """An HTTP/2 connection that requests responses and reads none."""
    h2 = begin(window=0)
    for _ in range(streams):
        ask(h2, path, key=server.key)
    return h2.data_to_send()


async def deaf(clients: int, requests: int, write_timeout: float, *, http2: bool = False) -> dict[str, Any]:
    """Returns the figures. Raises AssertionError for a broken promise."""
    server = new_server("--write-timeout", str(write_timeout), "--keep-alive-timeout", str(write_timeout))
    sockets: list[socket.socket] = []
    delays: list[float] = []
    stop = asyncio.Event()
    try:
        document = await asyncio.to_thread(server.insert, "deaf", {"text": "x" * DOCUMENT_BYTES})
        path = f"/deaf/docs/{document['_id']}"
        get = f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {server.key}\r\n\r\n".encode()
        if http2:
            requests = min(requests, STREAMS)
        asking = asks_without_window(server, path, requests) if http2 else get * requests
        await asyncio.to_thread(server.request, "GET", path)
        before = Footprint(server)
        client = asyncio.create_task(normal(server, delays, stop))
        began = time.monotonic()
        sockets = [deaf_socket(server) for _ in range(clients)]
        pouring = [asyncio.create_task(pour(sock, asking)) for sock in sockets]
        most = 0
        await asyncio.sleep(0.2)
        while files(server.pid) > before.files + 1 and time.monotonic() < began + write_timeout * 2 + 15:
            most = max(most, memory(server.pid) - before.memory)
            await asyncio.sleep(0.05)
        took = time.monotonic() - began
        stop.set()
        await client
        for task in pouring:
            task.cancel()
        await asyncio.gather(*pouring, return_exceptions=True)
        if took < write_timeout * 0.9:
            raise PROMISE(f"they were ended after {took:.1f} s already")
        bound = LOADED + clients * STREAMS * STREAM_BYTES if http2 else clients * REQUESTS_BYTES
        if most > MORE_MEMORY + bound:
            raise PROMISE(f"{most:,} bytes more were resident")
        # HTTP/2's memory is free afterwards, but malloc keeps 32 KiB here and there. The next connections reuse
        # it.
        kept = await before.is_back(MORE_MEMORY + (bound if http2 else 0))
    finally:
        for sock in sockets:
            sock.close()
        server.kill()
    what = "HTTP/2" if http2 else "HTTP/1.1"
    return {
        f"{what} clients that do not read": clients,
        f"{what} requests of each": requests,
        f"{what} seconds until all ended": f"{took:.1f}",
        f"{what} memory at most, KiB": most // 1024,
        f"{what} memory kept, KiB": kept // 1024,
        f"{what} normal requests": len(delays),
        f"{what} normal max, ms": f"{max(delays) * 1e3:.2f}",
    }


async def both(clients: int, requests: int, write_timeout: float) -> dict[str, Any]:
    return {
        **await deaf(clients, requests, write_timeout),
        **await deaf(clients, requests, write_timeout, http2=True),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--requests", type=int, default=5000)
    parser.add_argument("--write-timeout", type=float, default=5)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    o = parser.parse_args()
    return report(both(o.clients, o.requests, o.write_timeout), o.seed)


if __name__ == "__main__":
    sys.exit(main())
