"""A client that pipelines thousands of GETs of a large document and never reads.

The server's memory stays bounded, `write_timeout` ends the connection, and others are served meanwhile.

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
from tests.stress.harness import PROMISE, memory, new_server, report, until
from tests.stress.loris import files, normal

DOCUMENT_BYTES = 500_000
MORE_MEMORY = 2**23
"""Above one document, its answer and the requests that were read, for each client."""


def deaf_socket(server: Server) -> socket.socket:
    """A connection whose client has little room for answers."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.connect(("127.0.0.1", server.port))
    sock.setblocking(False)
    return sock


async def pour(sock: socket.socket, data: bytes) -> None:
    """Send until the server ends the connection; `asyncio.timeout` bounds it."""
    try:
        await asyncio.get_running_loop().sock_sendall(sock, data)
    except ConnectionError:
        pass


async def deaf(clients: int, requests: int, write_timeout: float) -> dict[str, Any]:
    """Run it; returns the figures. Raises AssertionError for a broken promise."""
    server = new_server("--write-timeout", str(write_timeout))
    sockets: list[socket.socket] = []
    delays: list[float] = []
    stop = asyncio.Event()
    try:
        document = await asyncio.to_thread(server.insert, "deaf", {"text": "x" * DOCUMENT_BYTES})
        path = f"/deaf/docs/{document['_id']}"
        get = f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {server.key}\r\n\r\n".encode()
        await asyncio.to_thread(server.request, "GET", path)
        files_before, before = files(server), memory(server.pid)
        client = asyncio.create_task(normal(server, delays, stop))
        began = time.monotonic()
        sockets = [deaf_socket(server) for _ in range(clients)]
        pouring = [asyncio.create_task(pour(sock, get * requests)) for sock in sockets]
        most = 0
        await asyncio.sleep(0.2)
        while files(server) > files_before + 1 and time.monotonic() < began + write_timeout * 2 + 15:
            most = max(most, memory(server.pid) - before)
            await asyncio.sleep(0.05)
        took = time.monotonic() - began
        stop.set()
        await client
        for task in pouring:
            task.cancel()
        await asyncio.gather(*pouring, return_exceptions=True)
        await until(lambda: files(server) <= files_before + 1, 1, "write_timeout has ended the deaf ones")
        if took < write_timeout * 0.9:
            raise PROMISE(f"they were ended after {took:.1f} s already")
        if most > MORE_MEMORY + clients * 3 * DOCUMENT_BYTES:
            raise PROMISE(f"{most:,} bytes more were resident")
        if server.stop() != 0 or "Traceback" in server.stderr:
            raise PROMISE(server.stderr)
    finally:
        for sock in sockets:
            sock.close()
        server.kill()
    return {
        "clients that do not read": clients,
        "requests of each": requests,
        "seconds until all ended": f"{took:.1f}",
        "memory more at most, KiB": most // 1024,
        "normal requests": len(delays),
        "normal max, ms": f"{max(delays) * 1e3:.2f}",
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--requests", type=int, default=5000)
    parser.add_argument("--write-timeout", type=float, default=5)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    o = parser.parse_args()
    return report(deaf(o.clients, o.requests, o.write_timeout), o.seed)


if __name__ == "__main__":
    sys.exit(main())
