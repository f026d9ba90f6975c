"""What live queries cost, beside unfiltered subscriptions and finds, and beside PocketBase's."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from bench import match, peers, queries
from bench.audience import TEXT, Audience, Service
from bench.clients import Http, request_bytes
from bench.match import FEW
from bench.queries import Filter
from bench.readers import Readers, token
from bench.rows import Row, Scale, ratio
from bench.server import Process, paperdb

COLLECTION, OTHER = "bench", "other"
SAME: Filter = {"room": "room-0"}
PB_SAME = "text = 'room-0'"


@dataclass(frozen=True)
class Kind:
    """The n-th query of a kind, here and in PocketBase, which has a text and a number; and the bound of the
    ratio. The first query is the only one that the document matches."""

    budget: str
    filter: Callable[[int], Filter]
    pocketbase: Callable[[int], str]


def _residual(n: int) -> Filter:
    return {"owner": {"ne": f"u-{n}"}, "tenant": {"nin": ["t", f"t-{n}"]}} if n else SAME


KINDS = {
    "equality": Kind("≤ 1.5", match.KINDS["eq"][1], lambda n: f"text = 'room-{n}'"),
    "range": Kind("≤ 2", match.KINDS["range of numbers"][1], lambda n: f"group >= {n} && group < {n + 1}"),
    "in, of three": Kind(
        "≤ 2",
        match.KINDS["in, of three"][1],
        lambda n: " || ".join(f"text = '{x}-{n}'" for x in ("room", "a", "b")),
    ),
    "prefix": Kind("≤ 2", lambda n: {"room": {"startsWith": f"room-{n}"}}, lambda n: f"text ~ 'room-{n}%'"),
    "residual": Kind("", _residual, lambda n: f"text !~ 'room-{n}' && group > {n}" if n else PB_SAME),
}


def live(scale: Scale) -> Iterator[Row]:
    """Live queries: a change beside 10 and 10,000 of them; memory; fan-out; snapshot; beside PocketBase."""
    pocketbase = not peers.POCKETBASE.missing()
    if not pocketbase:
        yield Row("PocketBase", [], "", note=peers.POCKETBASE.missing())
    for name in scale(tuple(KINDS), tuple(KINDS), ("residual",)):
        kind = KINDS[name]
        most = scale(10_000, 10_000, 30) if kind.budget else scale(1000, 1000, 30)
        yield from changes(name, kind, most, scale(15, 5, 2))
        if pocketbase:
            yield from pocketbase_changes(name, kind, most, scale(5, 2, 1))
    yield from memory(scale)
    yield from fanout(scale, pocketbase=pocketbase)
    yield from snapshot(scale)


# --- one change, and the queries beside ------------------------------------------------------------


@dataclass
class Beside:
    """A server with one subscriber whose query a change concerns, and with others that it does not."""

    service: Service
    alone: Callable[[], None]
    """The same change in a collection that is not followed."""
    audience: Audience = field(init=False)
    whole: list[float] = field(default_factory=list)
    net: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.audience = Audience(self.service, 1)

    def round(self, changes: int) -> None:
        """Keep the µs of CPU for a change, with and without the cost of its write."""
        process = self.service.process
        before = process.settled_cpu()
        for _ in range(changes):
            self.alone()
        write = process.settled_cpu() - before
        whole = self.audience.round(changes)
        self.whole.append(whole / changes * 1e6)
        self.net.append((whole - write) / changes * 1e6)


def changes(name: str, kind: Kind, most: int, rounds: int) -> Iterator[Row]:
    with ExitStack() as stack:
        few, many = (_ours(stack, kind, count) for count in (FEW, most))
        yield from _compare(f"{name}:", few, many, most, rounds, 20, kind.budget)


def _ours(stack: ExitStack, kind: Kind, count: int) -> Beside:
    options = (*queries.MAX_SUBSCRIPTIONS, "--max-residual-queries", str(count))
    server = stack.enter_context(paperdb(*options))
    http = Http(server.port, server.key)
    stack.callback(http.close)
    secret = token(http, COLLECTION)
    patches = {}
    for name in (COLLECTION, OTHER):
        document = match.document(0, TEXT) | {"count": 1_000_000}  # it keeps its length
        http.request("PUT", f"/{name}/docs/a", {k: v for k, v in document.items() if k not in _GIVEN})
        patches[name] = request_bytes("PATCH", f"/{name}/docs/a", server.key, {"count": {"increment": 1}})
    for sock in queries.beside(server.port, secret, COLLECTION, map(kind.filter, range(1, count))):
        stack.callback(sock.close)

    def publish(events: int) -> None:
        for _ in range(events):
            http.exchange(patches[COLLECTION])

    def follow(_: int) -> socket.socket:
        return queries.subscriber(server.port, secret, COLLECTION, kind.filter(0))

    beside = Beside(Service(server, follow, publish), lambda: _drop(http.exchange(patches[OTHER])))
    stack.callback(beside.audience.close)
    return beside


_GIVEN = ("_id", "createdAt", "updatedAt")


def _drop(_: bytes) -> None: ...


def pocketbase_changes(name: str, kind: Kind, most: int, rounds: int) -> Iterator[Row]:
    with ExitStack() as stack:
        few, many = (_theirs(stack, kind, count) for count in (FEW, most))
        yield from _compare(f"PocketBase, {name}:", few, many, most, rounds, 2)


def _theirs(stack: ExitStack, kind: Kind, count: int) -> Beside:
    running = stack.enter_context(peers.pocketbase())
    document = {"text": "room-0", "group": 0}
    paths = {
        name: f"/api/collections/{name}/records/{running.fill(name, [document])}"
        for name in (COLLECTION, OTHER)
    }
    patches = {name: request_bytes("PATCH", path, "", document) for name, path in paths.items()}
    for portion in queries.portions(map(kind.pocketbase, range(1, count))):
        stack.callback(running.subscribe(COLLECTION, portion).close)

    def publish(events: int) -> None:
        for _ in range(events):
            running.exchange(patches[COLLECTION])

    service = Service(running.process, lambda _: running.subscribe(COLLECTION, [kind.pocketbase(0)]), publish)
    beside = Beside(service, lambda: _drop(running.exchange(patches[OTHER])))
    stack.callback(beside.audience.close)
    return beside


def _compare(
    name: str, few: Beside, many: Beside, most: int, rounds: int, changes: int, budget: str = ""
) -> Iterator[Row]:
    for turn in range(rounds + 1):
        for each in (few, many):
            each.round(changes)
            if turn == 0:  # the first round warms up
                each.whole.clear()
                each.net.clear()
    base = f"{name} a change beside {FEW} queries"
    yield Row(base, few.whole, "µs/change")
    against = ratio(many.whole, few.whole)
    yield Row(f"{name} beside {most:,}", many.whole, "µs/change", base, against, budget)
    yield Row(f"{name} beside {FEW}, without the write", few.net, "µs/change")
    yield Row(f"{name} beside {most:,}, without the write", many.net, "µs/change")


# --- memory ----------------------------------------------------------------------------------------


def memory(scale: Scale) -> Iterator[Row]:
    """Half of the connections follow a query; then each of these must get its event, and no other a byte."""
    connections = scale(10_000, 2000, 20)
    half = connections // 2
    own, same = match.KINDS["eq"][1], lambda _: SAME
    for name, filter in (("each its own", own), ("all the same", same)):
        with paperdb() as server:
            http = Http(server.port, server.key)
            secret = token(http, COLLECTION)
            warm = half // 10  # the first ones fill what is shared
            socks = [queries.empty(server.port, secret) for _ in range(warm)]
            time.sleep(0.3)
            empty = server.memory
            socks += [queries.empty(server.port, secret) for _ in range(connections - warm)]
            time.sleep(0.3)
            connection = (server.memory - empty) / (connections - warm) / 1024
            for n in range(warm):
                queries.subscribe(socks[n], COLLECTION, [filter(n)])
            time.sleep(0.3)
            before = server.memory
            for n in range(warm, half):
                queries.subscribe(socks[n], COLLECTION, [filter(n)])
            time.sleep(0.3)
            each = (server.memory - before) / (half - warm) / 1024
            others = Readers(socks[half:])
            others.until_quiet()  # each was told where it begins
            told = others.received
            documents = [filter(n) for n in range(half if filter is own else 1)]
            for portion in queries.portions(documents):
                http.request("POST", f"/{COLLECTION}/bulk", portion)
            right = sum(queries.until(sock, b'"type":"insert"').count(b'"seq"') == 1 for sock in socks[:half])
            others.until_quiet()
            strays = others.received - told
            others.close()
            for sock in socks[:half]:
                sock.close()
            http.close()
        if filter is own:
            yield Row(f"per idle connection, of {connections:,}", [connection], "KiB", budget="≤ 20")
        note = "each got its one event, the others none"
        if right < half or strays:
            note = f"NOT SO: {right} of {half} have their event, {strays} bytes came to others"
        text = f"a live query beside its connection, {half:,}, {name}"
        yield Row(text, [each], "KiB", budget="≤ 4", note=note)


# --- fan-out ---------------------------------------------------------------------------------------


def fanout(scale: Scale, *, pocketbase: bool) -> Iterator[Row]:
    connections, rounds = scale(1000, 1000, 5), scale(60, 15, 2)
    with ExitStack() as stack:
        server = stack.enter_context(paperdb())
        http = Http(server.port, server.key)
        stack.callback(http.close)
        ours = [
            _audience(stack, server, http, collection, filter, connections)
            for collection, filter in ((OTHER, None), (COLLECTION, SAME))
        ]
        yield from _fan(f"one change to {connections:,}", ours, connections, rounds, "≤ 1.1")
    if pocketbase:
        with ExitStack() as stack:
            running = stack.enter_context(peers.pocketbase())
            theirs = [
                _pocketbase_audience(stack, running, collection, filters, connections)
                for collection, filters in ((OTHER, ()), (COLLECTION, (PB_SAME,)))
            ]
            name = f"PocketBase, one change to {connections:,}"
            yield from _fan(name, theirs, connections, max(rounds // 6, 1), "")


def _audience(
    stack: ExitStack, server: Process, http: Http, collection: str, filter: Filter | None, connections: int
) -> Audience:
    secret = token(http, collection)
    insert = request_bytes("POST", f"/{collection}/docs", server.key, {"text": TEXT, **SAME})

    def follow(_: int) -> socket.socket:
        return queries.subscriber(server.port, secret, collection, filter)

    audience = Audience(Service(server, follow, lambda _: _drop(http.exchange(insert))), connections)
    stack.callback(audience.close)
    return audience


def _pocketbase_audience(
    stack: ExitStack, running: peers.PocketBase, collection: str, filters: tuple[str, ...], connections: int
) -> Audience:
    running.create_collection(collection)
    insert = request_bytes("POST", f"/api/collections/{collection}/records", "", {"text": "room-0", "group": 1})
    service = Service(
        running.process,
        lambda _: running.subscribe(collection, filters),
        lambda _: _drop(running.exchange(insert)),
    )
    audience = Audience(service, connections)
    stack.callback(audience.close)
    return audience


def _fan(name: str, audiences: list[Audience], connections: int, rounds: int, budget: str) -> Iterator[Row]:
    samples: tuple[list[float], list[float]] = ([], [])
    for turn in range(rounds + 1):
        for audience, costs in zip(audiences, samples, strict=True):
            cost = audience.round() / connections * 1e6
            if turn > 0:
                costs.append(cost)
    base = f"{name} unfiltered subscribers"
    yield Row(base, samples[0], "µs/delivery")
    against = ratio(samples[1], samples[0])
    yield Row(f"{name} of the same query", samples[1], "µs/delivery", base, against, budget)


# --- snapshot --------------------------------------------------------------------------------------


def snapshot(scale: Scale) -> Iterator[Row]:
    count, rounds = scale(1000, 1000, 50), scale(40, 15, 2)
    finds: list[float] = []
    snapshots: list[float] = []
    with paperdb() as server:
        http = Http(server.port, server.key)
        for group in (0, 1):
            http.request("POST", f"/{COLLECTION}/bulk", [{"text": TEXT, "group": group}] * count)
        wanted: dict[str, Any] = {"group": 1}
        path = f"/{COLLECTION}/docs?limit={count}&filter={quote(json.dumps(wanted))}"
        find = request_bytes("GET", path, server.key)
        sock = queries.empty(server.port, token(http, COLLECTION))
        action = {"action": "subscribe", "collection": COLLECTION, "filter": wanted, "snapshot": True}
        ask = queries.frame(action)
        for turn in range(rounds + 1):
            before = server.settled_cpu()
            found = http.exchange(find).count(b'"_id"')
            between = server.settled_cpu()
            sock.sendall(ask)
            shown = queries.until(sock, b'"last":true').count(b'"_id"')
            after = server.settled_cpu()
            if (found, shown) != (count, count):
                raise RuntimeError(f"{found} and {shown} documents came; expected {count}")
            if turn > 0:
                finds.append((between - before) * 1e3)
                snapshots.append((after - between) * 1e3)
        http.request("POST", f"/{COLLECTION}/docs", {"text": TEXT, "group": 1})
        queries.until(sock, b'"type":"insert"')  # it is live
        sock.close()
        http.close()
    base = f"a find of {count:,} documents"
    yield Row(base, finds, "ms")
    yield Row(f"a snapshot of {count:,}, then live", snapshots, "ms", base, ratio(snapshots, finds), "≤ 1.2")
