"""The baselines: a bare loop of system calls, and bare SQLite. Run as a program, it is the first.

python -m bench.baseline fanout CONNECTIONS   a server that only writes: one os.write per socket
"""

from __future__ import annotations

import os
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from bench.machine import SERVER_CORE, pin
from bench.server import Process


def bare_fanout(connections: int) -> None:
    """Accept connections; then, for each line `LENGTH` on stdin, write that many bytes to each of them."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
    print(listener.getsockname()[1], flush=True)
    socks = [listener.accept()[0] for _ in range(connections)]
    for sock in socks:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    fds = [sock.fileno() for sock in socks]
    write = os.write
    for line in sys.stdin:
        data = b"x" * int(line)
        for fd in fds:
            write(fd, data)
        print("done", flush=True)


@contextmanager
def bare_fanout_server(connections: int) -> Iterator[Process]:
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.baseline", "fanout", str(connections)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: pin(SERVER_CORE),
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield Process(process, int(process.stdout.readline()))
    finally:
        process.stdin.close()
        process.wait(10)
        process.stdout.close()


SQLITE_PRAGMAS = ("journal_mode=WAL", "synchronous=FULL", "secure_delete=OFF", "cache_size=-16000")


def bare_sqlite(file: str, rows: list[tuple[str, str]], batch: int) -> float:
    """Rows (id, JSON text) into the same tables, document and change, by `executemany`; seconds."""
    connection = sqlite3.connect(file, isolation_level=None)
    for pragma in SQLITE_PRAGMAS:
        connection.execute(f"PRAGMA {pragma}")
    connection.execute(
        "CREATE TABLE documents (position INTEGER PRIMARY KEY, collection_id INTEGER NOT NULL, "
        "id TEXT NOT NULL, seq INTEGER NOT NULL, data TEXT NOT NULL)"
    )
    connection.execute("CREATE UNIQUE INDEX documents_id ON documents (collection_id, id)")
    connection.execute(
        "CREATE TABLE changes (position INTEGER PRIMARY KEY, at INTEGER NOT NULL, size INTEGER NOT NULL, "
        "type TEXT NOT NULL, collection TEXT NOT NULL, data TEXT NOT NULL)"
    )
    begun = time.perf_counter()
    for start in range(0, len(rows), batch):
        part = rows[start : start + batch]
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany(
            "INSERT INTO documents VALUES (?,1,?,?,?)",
            [(start + n, id, start + n, text) for n, (id, text) in enumerate(part)],
        )
        connection.executemany(
            "INSERT INTO changes VALUES (?,0,?,'insert','bench',?)",
            [(start + n, len(text), text) for n, (_, text) in enumerate(part)],
        )
        connection.execute("COMMIT")
    took = time.perf_counter() - begun
    connection.close()
    return took


if __name__ == "__main__":
    bare_fanout(int(sys.argv[2]))
