"""The owner's card built to the letter, beside which `bench card` measures PaperDB.

python -m bench.card DATA    serve until SIGTERM; prints the ports of REST and of WebSockets, and an API key

Quart-Trio on Hypercorn serves the REST and token routes. A trio-websocket nursery manages one task per
connection. Each subscription is a bounded memory channel and a task that sends what comes through it.

Law: what the card does not name is PaperDB's own (accounts, tokens, writer, reader, cache, change log) and is
used as PaperDB's server uses it. The rest is written as the documentation of the two libraries shows it.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import trio
from hypercorn.config import Config
from hypercorn.trio import serve as serve_http
from quart import Response, request
from quart_trio import QuartTrio
from trio_websocket import ConnectionClosed, WebSocketConnection, WebSocketRequest, serve_websocket

from bench.machine import raise_file_limit
from paperdb_trio.auth import tokens
from paperdb_trio.auth.accounts import Accounts, Identity
from paperdb_trio.auth.keys import hash_key, new_key
from paperdb_trio.config import Settings
from paperdb_trio.delivery.encodings import plain_event
from paperdb_trio.errors import ApiError
from paperdb_trio.model import Change, check_collection, check_id, new_id
from paperdb_trio.store.administration import SetUp
from paperdb_trio.store.cache import DocumentCache
from paperdb_trio.store.operations import Draft, Insert
from paperdb_trio.store.protocol import EventText
from paperdb_trio.store.records import NewKey
from paperdb_trio.store.sqlite import admin
from paperdb_trio.store.sqlite.change_log import ChangeLog
from paperdb_trio.store.sqlite.file import prepare, serving_lock
from paperdb_trio.store.sqlite.gate import ReadGate
from paperdb_trio.store.sqlite.reader import Reader
from paperdb_trio.store.sqlite.writer import Writer

HOST = "127.0.0.1"
READER_THREADS = 4
"""As in paperdb_trio/server/serving.py."""
SETTINGS = Settings()

Event = tuple[int, str]
"""A change's seq, and its message."""
Topic = tuple[int, str]
"""A database's id, and a collection."""


class Subscriptions:
    """The queues of all subscriptions, and what their tasks do."""

    def __init__(self, log: ChangeLog) -> None:
        self._log = log
        self._heads = {database_id: head for database_id, (head, _) in log.bounds().items()}
        self._queues: dict[Topic, set[trio.MemorySendChannel[Event]]] = {}

    def publish(self, changes: list[Change]) -> None:
        for change in changes:
            self._heads[change.database_id] = change.seq
            queues = self._queues.get((change.database_id, change.collection))
            if not queues:
                continue
            event = change.seq, plain_event(change).decode()
            for queue in tuple(queues):
                try:
                    queue.send_nowait(event)
                except trio.WouldBlock:  # too slow: its task finds the end of its queue, and reads the log
                    queues.remove(queue)
                    queue.close()

    @contextmanager
    def _queue(self, topic: Topic) -> Iterator[trio.MemoryReceiveChannel[Event]]:
        """What is committed from now on. It ends when it has been full."""
        send, receive = trio.open_memory_channel[Event](SETTINGS.queue_events)
        queues = self._queues.setdefault(topic, set())
        queues.add(send)
        try:
            yield receive
        finally:
            queues.discard(send)
            send.close()
            receive.close()

    async def send_events(self, websocket: WebSocketConnection, topic: Topic) -> None:
        """One subscription: from its queue, and from the change log after the queue was full."""
        database_id, collection = topic
        position = self._heads[database_id]
        try:
            while True:
                with self._queue(topic) as events:
                    async for position, event in events:  # noqa: B007 - used after the loop
                        await websocket.send_message(event)
                while position < self._heads[database_id]:  # nothing trims the log here
                    page = await self._log.page(database_id, position, {collection: 0}, EventText.PLAIN)
                    for text in page.events:
                        await websocket.send_message(text.decode())
                    position = page.position
        except ConnectionClosed:
            pass


@dataclass
class Card:
    """The two servers over one store."""

    accounts: Accounts
    writer: Writer
    reader: Reader
    cache: DocumentCache
    subscriptions: Subscriptions

    # --- REST ------------------------------------------------------------------------------------

    def app(self) -> QuartTrio:
        app = QuartTrio(__name__)

        @app.post("/<collection>/docs")
        async def insert(collection: str) -> Response:
            database_id = self._identity().database.id
            draft = Draft.parse(await request.get_json())
            written = await self.writer.submit(
                Insert(database_id, check_collection(collection), draft, SETTINGS.max_document_bytes)
            )
            return _document(201, written.data, written.seq)

        @app.get("/<collection>/docs/<id>")
        async def get(collection: str, id: str) -> Response:
            key = self._identity().database.id, check_collection(collection), check_id(id)
            found = self.cache.get(key)
            if found is None:
                mark = self.cache.begin_reading(key)
                try:
                    found = await self.reader.get(*key)
                finally:
                    self.cache.end_reading(key, mark, found)
            return _document(200, found.data, found.seq)

        @app.post("/realtime/token")
        async def token() -> dict[str, object]:
            return tokens.mint(self.accounts, self._identity(), await request.get_json())

        @app.errorhandler(ApiError)
        async def refused(error: ApiError) -> tuple[dict[str, object], int]:
            return error.body(), error.status

        return app

    def _identity(self) -> Identity:
        return self.accounts.identify(request.headers.get("Authorization", "").removeprefix("Bearer "))

    # --- WebSockets ------------------------------------------------------------------------------

    async def connection(self, request: WebSocketRequest) -> None:
        """One connection, with a subscription to each collection that its token names."""
        query = parse_qs(urlsplit(request.path).query)
        try:
            grant = tokens.verify(self.accounts, query.get("token", [""])[0])
        except ApiError as error:
            await request.reject(error.status, body=error.message.encode())
            return
        websocket = await request.accept()
        async with trio.open_nursery() as nursery:
            for collection in grant.collections or ():
                nursery.start_soon(self.subscriptions.send_events, websocket, (grant.database.id, collection))
            try:
                while True:
                    await websocket.get_message()
            except ConnectionClosed:
                nursery.cancel_scope.cancel()


def _document(status: int, data: bytes, seq: int) -> Response:
    return Response(data, status, {"ETag": f'"{seq}"'}, content_type="application/json")


async def serve(file: Path, key: str) -> None:
    gate = ReadGate()
    reader = Reader(
        file,
        threads=READER_THREADS,
        timeout=SETTINGS.query_timeout,
        max_result_bytes=SETTINGS.max_result_bytes,
        gate=gate,
    )
    log = ChangeLog(file, timeout=30, max_document_bytes=SETTINGS.max_document_bytes, gate=gate)
    accounts, cache = Accounts(), DocumentCache(SETTINGS.cache_bytes)
    await accounts.refresh(reader)
    subscriptions = Subscriptions(log)

    def on_commit(changes: list[Change]) -> None:
        cache.apply(changes)
        subscriptions.publish(changes)

    writer = Writer(file, on_commit, gate=gate, max_wal_bytes=SETTINGS.max_wal_bytes)
    card = Card(accounts, writer, reader, cache, subscriptions)
    config = Config()
    config.bind = [f"{HOST}:0"]
    config.keep_alive_timeout = SETTINGS.keep_alive_timeout
    config.keep_alive_max_requests = sys.maxsize
    # As PaperDB's server does.
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 10, 10)
    async with trio.open_nursery() as nursery:
        await nursery.start(writer.run)
        (url,) = await nursery.start(serve_http, card.app(), config)
        websockets = await nursery.start(serve_websocket, card.connection, HOST, 0, None)
        print(urlsplit(url).port, websockets.port, key, flush=True)


def main(data: str) -> None:
    raise_file_limit()
    key = new_key("secret")
    with serving_lock(data):
        file = prepare(data, create=True)
        first = NewKey(new_id(), "secret", "bench", hash_key(key))
        admin.apply(file, SetUp("bench", first, *tokens.new_signing_secret()))
        trio.run(serve, file, key)


if __name__ == "__main__":
    main(sys.argv[1])
