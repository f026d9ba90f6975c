"""What measures every fan-out: a service that delivers, and subscribers that count bytes.

Law: a round is one publish and all of its deliveries. Its cost is the CPU time of all the service's processes,
from before the publish until they have come to rest. Services that are compared take turns, so that whatever
else the machine does affects all alike.
"""

from __future__ import annotations

import json
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench.baseline import bare_loop
from bench.clients import Http, receive, request_bytes
from bench.machine import CLIENT_CORE, SERVER_CORE
from bench.readers import Readers, client_tls, token, websocket
from bench.server import Process, paperdb

FRAME_HEADER_BYTES = 4
TEXT = "x" * 100
"""With id and times, a document of about 200 bytes and an event of about 250."""


@dataclass
class Service:
    """Delivers what is published.

    `subscribe(n)` opens the n-th subscriber. `publish(k)` publishes k events to each, at once, and returns
    when they are acknowledged, if the service does that.
    """

    process: Process
    subscribe: Callable[[int], socket.socket]
    publish: Callable[[int], None]
    settles: float = 0.0
    """Seconds after which a new subscriber gets nothing but events."""


class Audience:
    """The subscribers of one service."""

    def __init__(self, service: Service, connections: int) -> None:
        self.connections = connections
        self._service = service
        self._readers = Readers([service.subscribe(n) for n in range(connections)])
        self._readers.for_seconds(service.settles)
        self._readers.until_quiet()
        before = self._readers.received
        service.publish(1)
        self._size = self._readers.each_since(before)

    def round(self, events: int = 1) -> float:
        """Seconds of CPU for `events` events to every subscriber."""
        return sum(self.spent(events))

    def spent(self, events: int = 1) -> list[float]:
        """The same, of each process."""
        process = self._service.process
        target = self._readers.received + self._size * self.connections * events
        process.settled_cpu()
        before = process.cpus()
        self._service.publish(events)
        self._readers.until(target)
        process.settled_cpu()
        return [after - at for after, at in zip(process.cpus(), before, strict=True)]

    def close(self) -> None:
        self._readers.close()


def names(collections: int) -> list[str]:
    return [f"bench{n:03}" for n in range(collections)]


class PaperDb:
    """PaperDB, or a server with the same routes. Its subscribers are spread evenly over some collections, and a
    publish inserts into each of them."""

    def __init__(self, server: Process, text: str, collections: int, tls: ssl.SSLContext | None) -> None:
        self.service = Service(server, self._subscribe, self._publish)
        self._server, self._document, self._collections, self._tls = server, {"text": text}, collections, tls
        self._http = TlsHttp(server.port, server.key, tls) if tls else Http(server.port, server.key)
        self._tokens = [token(self._http, name) for name in names(collections)]

    def alone(self, events: int) -> float:
        """Seconds of CPU for as many inserts into other collections, which have no subscribers."""
        before = self._server.settled_cpu()
        self._insert("other_", events)
        return self._server.settled_cpu() - before

    def frame(self) -> bytes:
        """An event's frame, exactly as subscribers get it."""
        sock = websocket(self._server.websocket_port, self._tokens[0], tls=self._tls)
        document = self._http.request("POST", f"/{names(1)[0]}/docs", self._document)
        event = {"type": "insert", "collection": names(1)[0], "data": document}
        size = len(json.dumps(event, separators=(",", ":"))) + FRAME_HEADER_BYTES
        frame = b""
        while len(frame) < size:
            frame += receive(sock)
        sock.close()
        if len(frame) != size:
            raise RuntimeError(f"a frame of {len(frame)} bytes; expected {size}: {frame!r}")
        return frame

    def close(self) -> None:
        self._http.close()

    def _subscribe(self, n: int) -> socket.socket:
        return websocket(self._server.websocket_port, self._tokens[n % self._collections], tls=self._tls)

    def _publish(self, events: int) -> None:
        self._insert("", events)

    def _insert(self, prefix: str, events: int) -> None:
        """One insert, or one bulk, into each collection."""
        way, value = ("docs", self._document) if events == 1 else ("bulk", [self._document] * events)
        for name in names(self._collections):
            self._http.exchange(request_bytes("POST", f"/{prefix}{name}/{way}", self._server.key, value))


@contextmanager
def paperdb_service(
    text: str = TEXT, collections: int = 1, tls: tuple[Path, Path] | None = None, workers: int = 1
) -> Iterator[PaperDb]:
    """A server of its own, with TLS if `tls` names a certificate and a key. Several workers run on the clients'
    core, too. Raises NotSupported."""
    options = ["--tls-cert", str(tls[0]), "--tls-key", str(tls[1])] if tls else []
    if workers > 1:
        options += ["--workers", str(workers)]
    with paperdb(*options, cores=(SERVER_CORE,) if workers == 1 else (SERVER_CORE, CLIENT_CORE)) as server:
        running = PaperDb(server, text, collections, client_tls() if tls else None)
        yield running
        running.close()


class TlsHttp(Http):
    """`Http` over TLS."""

    def __init__(self, port: int, key: str, tls: ssl.SSLContext) -> None:
        super().__init__(port, key)
        self.sock = tls.wrap_socket(self.sock, server_hostname="localhost")


@dataclass
class Deliveries:
    """µs of CPU per delivery, round by round."""

    bare: list[float] = field(default_factory=list)
    """The bare loop of os.write: the same bytes to as many sockets."""
    insert: list[float] = field(default_factory=list)
    """The same inserts without subscribers: µs in all, not per delivery."""
    whole: list[float] = field(default_factory=list)
    """The insert and its deliveries."""
    net: list[float] = field(default_factory=list)
    """The same, without the cost of that round's insert."""
    busiest: list[float] = field(default_factory=list)
    """With two workers, the insert and its deliveries: of the process that had most to do."""


def measure(
    connections: int,
    events: int,
    rounds: int,
    *,
    text: str = TEXT,
    collections: int = 1,
    workers: bool = False,
) -> Deliveries:
    """PaperDB, the same inserts without subscribers, the bare loop (which writes one event), and, if asked for,
    PaperDB with two workers, in turn."""
    found = Deliveries()
    with ExitStack() as stack:
        bare = stack.enter_context(bare_loop(connections))
        ours = stack.enter_context(paperdb_service(text, collections))
        frame = ours.frame()
        audience = Audience(ours.service, connections)
        stack.callback(audience.close)
        beside = None
        if workers:
            service = stack.enter_context(paperdb_service(text, collections, workers=2)).service
            beside = Audience(service, connections)
            stack.callback(beside.close)
        deliveries = connections * events
        for turn in range(rounds + 1):
            insert = ours.alone(events) * 1e6
            whole = audience.round(events) * 1e6
            busiest = max(beside.spent(events)) * 1e6 if beside else 0.0
            loop = bare.round(frame, collections) * 1e6
            if turn == 0:
                continue  # the first round warms up
            found.insert.append(insert)
            found.whole.append(whole / deliveries)
            found.net.append((whole - insert) / deliveries)
            found.bare.append(loop)
            if beside:
                found.busiest.append(busiest / deliveries)
    return found
