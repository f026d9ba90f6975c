"""Followers of live queries over any number of lost connections, and what each must have seen.

What is expected comes from the unfiltered log and the plain predicate. Neither SQL nor the matcher's index has
a part in it.
"""

from __future__ import annotations

import asyncio
import json
import random
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import zip_longest
from operator import itemgetter
from typing import Any

import httpx
from websockets.asyncio.client import ClientConnection, connect

from paperdb_trio.store.predicate import predicate
from tests.conftest import NO_TLS, Server
from tests.stress.harness import OFFLINE, PROMISE, Follower, until

Document = dict[str, Any]
Seen = tuple[int, str, str, int | None, Document]
"""`seq`, `type`, `cause`, `txn` and `data` of an event."""


@dataclass
class Asked:
    """A query, within the rule of the token that asks it. An empty filter asks for no query."""

    collection: str
    filter: Document
    select: tuple[str, ...] | None = None
    rule: Document = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._holds = predicate({"and": [self.rule, self.filter]})

    def view(self, document: Document | None) -> Document | None:
        if document is None or not self._holds(document):
            return None
        if self.select is None:
            return document
        return {name: document[name] for name in ("_id", *self.select) if name in document}


class Recorder(Follower):
    """Follows everything, unfiltered, and keeps the events."""

    def __init__(self, server: Server, token: str, name: str) -> None:
        super().__init__(server, token, name)
        self.log: list[dict[str, Any]] = []

    def take(self, event: dict[str, Any]) -> None:
        super().take(event)
        self.log.append(event)


@dataclass
class Segment:
    """What came from one beginning on: the view at seq `start`, and the events after it."""

    start: int
    documents: dict[str, Document]
    events: list[Seen] = field(default_factory=list)


class View:
    """One follower's record of one query. A new snapshot begins a new segment."""

    def __init__(self, name: str, asked: Asked) -> None:
        self.name, self.asked = name, asked
        self.segments: list[Segment] = []
        self.documents: dict[str, Document] = {}
        self.cursor = 0

    def begin(self, seq: int, documents: list[Document]) -> None:
        self.documents = {document["_id"]: document for document in documents}
        self.segments.append(Segment(seq, dict(self.documents)))
        self.cursor = seq

    def take(self, event: dict[str, Any]) -> None:
        seq, kind, data = event["seq"], event["type"], event["data"]
        if seq <= self.cursor:
            raise PROMISE(f"{self.name}: got seq {seq} after {self.cursor}: repeated or out of order")
        if (data["_id"] in self.documents) is (kind == "insert"):
            known = "is" if kind == "insert" else "is not"
            raise PROMISE(f"{self.name}: {kind} of a document that {known} in view: {event}")
        self.cursor = seq
        self.segments[-1].events.append((seq, kind, event.get("cause", kind), event.get("txn"), data))
        if kind == "delete":
            if self.documents.pop(data["_id"]) != data:
                raise PROMISE(f"{self.name}: a delete shows another document than the last in view: {event}")
        else:
            self.documents[data["_id"]] = data

    def check(self, log: list[dict[str, Any]]) -> None:
        """Every snapshot is the view at its seq; the events are those of the log, and lead to its end."""
        begun: dict[int, list[Segment]] = {}
        for segment in self.segments:
            begun.setdefault(segment.start, []).append(segment)
        expected: list[Seen] = []
        view: dict[str, Document] = {}
        for event in _replayed(self.asked, log):
            seq, kind, *_, data = event
            if data is not None:
                expected.append(event)
                if kind == "delete":
                    del view[data["_id"]]
                else:
                    view[data["_id"]] = data
            for segment in begun.get(seq, ()):
                if segment.documents != view:
                    raise PROMISE(f"{self.name}: the snapshot at {seq} is not the view at {seq}")
        for segment in self.segments:
            due = expected[bisect_right(expected, segment.start, key=itemgetter(0)) :]
            if segment is not self.segments[-1]:
                del due[len(segment.events) :]
            if segment.events != due:
                wrong = next((pair for pair in zip_longest(segment.events, due) if pair[0] != pair[1]), None)
                raise PROMISE(f"{self.name} after {segment.start}: got and expected: {wrong}")
        if self.documents != view:
            raise PROMISE(f"{self.name}: its events do not add up to the documents that match")


def _replayed(asked: Asked, log: list[dict[str, Any]]) -> Iterator[Any]:
    """What each change of the log is to a query; with None as its data, if the view does not show it."""
    documents: dict[str, Document] = {}
    for change in log:
        data = change["data"]
        old = new = None
        if change["collection"] == asked.collection:
            old = asked.view(documents.pop(data["_id"], None))
            if change["type"] != "delete":
                documents[data["_id"]] = data
                new = asked.view(data)
        kind = "insert" if old is None else "delete" if new is None else "update"
        shown = None if old == new else old if new is None else new
        yield change["seq"], kind, change["type"], change.get("txn"), shown


class LiveFollower:
    """One WebSocket with several queries, each with a cursor of its own.

    It begins with snapshots or, without, at the log's beginning. After a lost connection it goes on from its
    cursors; with snapshots it sometimes begins anew.
    """

    def __init__(
        self, server: Server, token: str, name: str, queries: list[Asked], *, snapshots: bool, seed: int = 0
    ) -> None:
        self.server, self.token, self.name, self.snapshots = server, token, name, snapshots
        self.views = [View(f"{name}, {asked}", asked) for asked in queries]
        if not snapshots:
            for view in self.views:
                view.begin(0, [])
        self.resumes = 0
        self._ws: ClientConnection | None = None
        self._reached = 0
        self._dice = random.Random(f"{seed}/{name}")

    async def run(self) -> None:
        """Follow forever, across any number of disconnections."""
        while True:
            with suppress(*OFFLINE):
                target = f"{self.server.ws_url}/?token={self.token}&since=now&collections="
                async with connect(
                    target, proxy=None, max_size=None, close_timeout=1, open_timeout=30
                ) as self._ws:
                    await self._follow(self._ws)
            self.resumes += 1
            await asyncio.sleep(0.02)

    async def _follow(self, ws: ClientConnection) -> None:
        fresh = self.snapshots and self._dice.random() < 0.2
        rest = iter(enumerate(self.views))
        live: dict[str, View] = {}
        pieces: dict[str, tuple[View, list[Document]]] = {}
        async for text in ws:
            # One by one, so that some queries are live or catch up already when another begins.
            for number, view in rest:
                await ws.send(json.dumps(self._subscription(number, view, fresh=fresh)))
                break
            message = json.loads(text)
            kind, query = message["type"], message.get("query", "")
            if kind == "subscribed":
                view = self.views[message["ref"]]
                if view.segments and not fresh:
                    if message["seq"] != view.cursor:
                        raise PROMISE(f"{view.name}: resumed at {message['seq']}, not at {view.cursor}")
                    live[query] = view
                else:
                    pieces[query] = view, []
            elif kind == "snapshot":
                view, documents = pieces[query]
                documents += message["documents"]
                if message["last"]:
                    del pieces[query]
                    view.begin(message["seq"], documents)
                    live[query] = view
            elif kind in ("insert", "update", "delete"):
                live[query].take(message)
            elif kind in ("progress", "pong"):  # it speaks for every query that has begun
                if len(live) == len(self.views):
                    self._reached = message["seq"]
                for view in live.values():
                    view.cursor = max(view.cursor, message["seq"])
            elif kind != "ready":
                raise PROMISE(f"{self.name}: unexpected {message}")

    def _subscription(self, number: int, view: View, *, fresh: bool) -> dict[str, Any]:
        asked = view.asked
        message = {"action": "subscribe", "ref": number, "collection": asked.collection, "filter": asked.filter}
        if asked.select is not None and not asked.rule:
            message["select"] = asked.select
        begun = view.segments and not fresh
        return message | ({"since": view.cursor} if begun else {"snapshot": True})

    async def reach(self, seq: int, seconds: float = 30) -> None:
        """Return when all of its queries have everything up to there; only a `pong` tells."""
        async with asyncio.timeout(seconds):
            while self._reached < seq:
                with suppress(*OFFLINE):
                    assert self._ws is not None
                    await self._ws.send('{"action":"ping"}')
                await asyncio.sleep(0.05)


class LiveEventSource:
    """The same over server-sent events: one query, from the log's beginning. The ids are its cursor."""

    def __init__(self, server: Server, token: str, name: str, asked: Asked) -> None:
        self.server, self.token = server, token
        self.views = [View(f"{name}, {asked}", asked)]
        self.views[0].begin(0, [])
        self.cursor = self.resumes = 0

    async def run(self) -> None:
        (view,) = self.views
        asked = view.asked
        params = {"token": self.token}
        if asked.filter:
            params["filter"] = json.dumps(asked.filter)
        if asked.select is not None and not asked.rule:
            params["select"] = ",".join(asked.select)
        target = f"{self.server.url}/{asked.collection}/changes"
        while True:
            headers = {"Accept": "text/event-stream", "Last-Event-ID": str(self.cursor)}
            with suppress(*OFFLINE):
                async with (
                    httpx.AsyncClient(timeout=httpx.Timeout(5, read=None), verify=NO_TLS) as client,
                    client.stream("GET", target, params=params, headers=headers) as answer,
                ):
                    if answer.status_code != 200:
                        raise PROMISE(f"{view.name}: HTTP {answer.status_code}")
                    await self._read(answer, view)
            self.resumes += 1
            await asyncio.sleep(0.02)

    async def reach(self, seq: int, seconds: float = 30) -> None:
        await until(lambda: self.cursor >= seq, seconds, f"{self.views[0].name} at {seq}")

    async def _read(self, answer: httpx.Response, view: View) -> None:
        id, data = 0, ""
        async for line in answer.aiter_lines():
            name, _, value = line.partition(": ")
            if name == "id":
                id = int(value)
            elif name == "data":
                data = value
            elif not line:  # the event is whole
                if data:
                    view.take(json.loads(data))
                self.cursor = view.cursor = max(view.cursor, id)
                data = ""
