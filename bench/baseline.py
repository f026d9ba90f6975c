"""The baselines: bare loops of system calls, and bare SQLite. Run as a program, it is one of the loops.

python -m bench.baseline fanout CONNECTIONS [CERTIFICATE KEY]   only writes: one os.write per socket
python -m bench.baseline accept CONNECTIONS   only accepts, reads a head, sends a 101
"""

from __future__ import annotations

import os
import select
import socket
import ssl
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final

from bench.clients import receive
from bench.machine import CLIENT_CORE, pin, raise_file_limit
from bench.readers import Readers, client_tls
from bench.server import Process, started
from paperdb_trio.store.sqlite import library as sqlite

NOT_SENT_BYTES = 128 * 1024
"""As in paperdb_trio/net/stream.py, so that the sockets are of the same kind."""


def write_loop(connections: int, tls: ssl.SSLContext | None) -> None:
    """Serve `BareLoop`: a line `data HEX` sets what is written; `write BATCHES` writes it to each socket, with
    `tls` encrypted for each.

    The readers are in a child process on the clients' core, so that the bench's limit of open files suffices
    for 10,000 more. Only the loop of writes is timed, by this process's CPU clock: no server could do less.
    (A server that also reads has its sockets in an epoll set. Measured: the writes cost the same.)
    """
    listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
    orders_out, orders_in = os.pipe()
    done_out, done_in = os.pipe()
    if os.fork() == 0:
        os.close(orders_in)
        _read_for(orders_out, done_in, int(listener.getsockname()[1]), connections, tls is not None)
        os._exit(0)
    os.close(orders_out)
    socks = [listener.accept()[0] for _ in range(connections)]
    for sock in socks:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, NOT_SENT_BYTES)
    records = ssl.MemoryBIO()  # shared, as in paperdb_trio/net/tls.py
    writes: list[Callable[[bytes], int]] = [
        partial(os.write, sock.fileno()) if tls is None else _encrypting(sock, tls, records) for sock in socks
    ]
    clock = time.process_time
    data, total = b"", 0
    print("ready", flush=True)
    for line in sys.stdin:
        order, argument = line.split()
        if order == "data":
            data = bytes.fromhex(argument)
            continue
        took, step = 0.0, len(writes) // int(argument)
        size = len(data) if tls is None else len(data) + TLS_RECORD_MORE * -(-len(data) // TLS_RECORD_BYTES)
        for start in range(0, len(writes), step):
            batch = writes[start : start + step]
            total += size * len(batch)
            os.write(orders_in, struct.pack("q", total))
            begun = clock()
            for write in batch:
                write(data)
            took += clock() - begun
            if not os.read(done_out, 1):
                raise RuntimeError("the readers are gone")
        print(took, flush=True)


TLS_RECORD_BYTES: Final = 16_384
TLS_RECORD_MORE: Final = 22
"""Bytes of a record of TLS 1.3 beside its data: header, type and tag."""


def _encrypting(sock: socket.socket, context: ssl.SSLContext, records: ssl.MemoryBIO) -> Callable[[bytes], int]:
    """Shake hands. Returns what encrypts and writes."""
    incoming = ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, records, server_side=True)
    done = False
    while not done:
        try:
            tls.do_handshake()
            done = True
        except ssl.SSLWantReadError:
            pass
        sock.setblocking(True)
        sock.sendall(records.read())
        if not done:
            incoming.write(receive(sock))
        sock.setblocking(False)
    fd, write, encrypt, encrypted = sock.fileno(), os.write, tls.write, records.read

    def write_encrypted(data: bytes) -> int:
        encrypt(data)
        return write(fd, encrypted())

    return write_encrypted


def _read_for(orders: int, done: int, port: int, connections: int, with_tls: bool) -> None:
    """The child: for each order, read until that many bytes have come and report it, until the parent ends. It
    decrypts nothing."""
    pin(CLIENT_CORE)
    socks = [socket.create_connection(("127.0.0.1", port)) for _ in range(connections)]
    if with_tls:
        context = client_tls()
        socks = [socket.socket(fileno=context.wrap_socket(sock).detach()) for sock in socks]
    readers = Readers(socks)
    while order := os.read(orders, 8):
        readers.until(struct.unpack("q", order)[0])
        os.write(done, b".")


def server_tls(certificate: str, key: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.num_tickets = 0  # the readers count nothing but data
    context.load_cert_chain(certificate, key)
    return context


class BareLoop:
    """A server that only writes, and its own readers, as many as `connections`."""

    def __init__(self, process: subprocess.Popen[str], connections: int) -> None:
        self.connections = connections
        self._process = process
        self._reply()

    def round(self, data: bytes, batches: int = 1) -> float:
        """Write `data` to each, in `batches` with a pause between them. Returns seconds of CPU per write."""
        self._order(f"data {data.hex()}")
        self._order(f"write {batches}")
        return float(self._reply()) / self.connections

    def _order(self, text: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{text}\n")
        self._process.stdin.flush()

    def _reply(self) -> str:
        assert self._process.stdout is not None
        reply = self._process.stdout.readline()
        if not reply:
            raise RuntimeError("the bare loop ended")
        return reply


@contextmanager
def bare_loop(connections: int, tls: tuple[Path, Path] | None = None) -> Iterator[BareLoop]:
    """`tls`: a certificate and its key."""
    command = [sys.executable, "-m", "bench.baseline", "fanout", str(connections), *map(str, tls or ())]
    with started(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        yield BareLoop(process, connections)


def accept_loop(connections: int) -> None:
    """Accept `connections`, read each head, send a 101, and keep them in an epoll set until stdin ends."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
    print(listener.getsockname()[1], flush=True)
    response = b"HTTP/1.1 101 Switching Protocols\r\n" + b"x: " + b"y" * 120 + b"\r\n\r\n"
    epoll, kept = select.epoll(), []
    for _ in range(connections):
        sock = listener.accept()[0]
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += receive(sock)
        sock.send(response)
        epoll.register(sock, select.EPOLLIN | select.EPOLLONESHOT)
        kept.append(sock)
    sys.stdin.read()


@contextmanager
def bare_accept(connections: int) -> Iterator[Process]:
    command = [sys.executable, "-m", "bench.baseline", "accept", str(connections)]
    with started(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        yield Process(process, int(process.stdout.readline()))


class BareSqlite:
    """The same tables, indices and pragmas as the server's, filled by `executemany`: document and change."""

    PRAGMAS = ("journal_mode=WAL", "synchronous=FULL", "secure_delete=OFF", "cache_size=-16000")

    def __init__(self, file: str) -> None:
        self._rowkey = 0
        self._connection = sqlite.create(Path(file))
        for pragma in self.PRAGMAS:
            self._connection.execute(f"PRAGMA {pragma}")
        self._connection.execute(
            "CREATE TABLE documents (rowkey INTEGER PRIMARY KEY, collection_id INTEGER NOT NULL, "
            "id TEXT NOT NULL, seq INTEGER NOT NULL, data BLOB NOT NULL)"
        )
        self._connection.execute("CREATE UNIQUE INDEX documents_id ON documents (collection_id, id)")
        self._connection.execute(
            "CREATE TABLE changes (rowkey INTEGER PRIMARY KEY, at INTEGER NOT NULL, size INTEGER NOT NULL, "
            "type TEXT NOT NULL, collection TEXT NOT NULL, data TEXT NOT NULL, id TEXT, before TEXT, "
            "txn INTEGER)"
        )

    def insert(self, rows: list[tuple[str, str]]) -> float:
        """Insert rows (id, JSON text) in one commit. Returns seconds."""
        first = self._rowkey
        self._rowkey += len(rows)
        begun = time.perf_counter()
        self._connection.execute("BEGIN IMMEDIATE")
        self._connection.executemany(
            "INSERT INTO documents VALUES (?,1,?,?,jsonb(?))",
            [(n, id, n, text) for n, (id, text) in enumerate(rows, first)],
        )
        self._connection.executemany(
            "INSERT INTO changes VALUES (?,0,?,'insert','bench',?,?,NULL,NULL)",
            [(n, len(text), text, id) for n, (id, text) in enumerate(rows, first)],
        )
        self._connection.execute("COMMIT")
        return time.perf_counter() - begun

    def close(self) -> None:
        self._connection.close()


if __name__ == "__main__":
    raise_file_limit()
    if sys.argv[1] == "fanout":
        write_loop(int(sys.argv[2]), server_tls(*sys.argv[3:]) if sys.argv[3:] else None)
    else:
        accept_loop(int(sys.argv[2]))
