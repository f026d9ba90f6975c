"""Several nodes over one PostgreSQL database, and connections to it that break.

A `Cutter` is between a store and PostgreSQL: it passes bytes on until a test says where to cut.
"""

from __future__ import annotations

import json
import select
import socket
import struct
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

import pytest
import trio

from paperdb_trio.config import Settings
from paperdb_trio.errors import ApiError
from paperdb_trio.model import Change, timestamp
from paperdb_trio.store.document_schema import parse_schema
from paperdb_trio.store.housekeeping import Trim, until_indexed
from paperdb_trio.store.operations import Batch, Draft, InsertBulk, Patch, Replace, SetSchema
from paperdb_trio.store.postgres.engine import PostgresStore
from paperdb_trio.store.postgres.session import Session
from paperdb_trio.store.transfer import Imported, ImportLines, Line
from tests.postgres import Postgres, postgres_server
from tests.store.tools import DATABASE, MAX_BYTES, inserting, new_database

Node = tuple[PostgresStore, list[Change]]


@asynccontextmanager
async def node(
    url: str,
    on_trimmed: Callable[[int, int], None] = lambda *_: None,
    on_break: Callable[[int, int, int], None] = lambda *_: None,
) -> AsyncIterator[Node]:
    """A store, and the changes that it was told of."""
    changes: list[Change] = []
    store = PostgresStore(url, Settings(), changes.extend, on_trimmed, on_break)
    try:
        store.bounds()
        async with trio.open_nursery() as nursery:
            await nursery.start(store.run)
            yield store, changes
            store.stop()
    finally:
        store.close()


async def until(condition: Callable[[], Any], seconds: float = 20) -> None:
    with trio.fail_after(seconds):
        while not condition():
            await trio.sleep(0.01)


def put(id: str, **fields: Any) -> Replace:
    return Replace(DATABASE, "c", id, fields, None, MAX_BYTES)


def patch(id: str, **fields: Any) -> Patch:
    return Patch(DATABASE, "c", id, fields, None, MAX_BYTES)


async def refused(store: PostgresStore, operation: Any) -> str:
    with pytest.raises(ApiError) as refusal:
        await store.submit(operation)
    assert refusal.value.status == 409 or refusal.value.headers == {"Retry-After": "1"}
    return refusal.value.code


# --- several nodes -------------------------------------------------------------------------------


async def test_each_node_tells_all_commits_once_and_in_order(postgres_url: str) -> None:
    async with node(postgres_url) as (one, by_one), node(postgres_url) as (other, by_other):

        async def write(store: PostgresStore, changes: list[Change], n: int) -> None:
            for round in range(10):
                operation = inserting({"n": n}) if round % 2 else put(f"d{n}", round=round)
                written: Any = await store.submit(operation)
                assert changes[written.seq - 1].seq == written.seq  # told before its writer

        async with trio.open_nursery() as nursery:
            for n in range(8):
                nursery.start_soon(write, *((one, by_one) if n % 2 else (other, by_other)), n)
        await until(lambda: len(by_one) == len(by_other) == 80)
        assert [change.seq for change in by_one] == list(range(1, 81))
        assert by_one == by_other


async def test_a_node_reads_what_another_has_acknowledged(postgres_url: str) -> None:
    async with node(postgres_url) as (one, _), node(postgres_url) as (other, changes):
        for n in range(20):
            written = await one.submit(put("a", n=n))
            assert await other.get(DATABASE, "c", "a") == (written.data, written.seq)
            await other.current(DATABASE)
            assert changes[-1].seq == written.seq


async def test_a_value_is_taken_once_however_many_nodes_write(postgres_url: str) -> None:
    schema = parse_schema({"properties": {"e": {"unique": True}}})
    async with node(postgres_url) as (one, _), node(postgres_url) as (other, _):
        await one.submit(inserting({"e": "first"}))
        await other.submit(inserting({"e": "second"}))  # it knows a collection without a schema
        assert await until_indexed(one, SetSchema(DATABASE, "c", schema))
        assert await refused(other, inserting({"e": "first"})) == "CONFLICT"
        taken = []

        async def insert(store: PostgresStore, n: int) -> None:
            with suppress(ApiError):
                await store.submit(inserting({"e": f"v{n // 4}"}))
                taken.append(f"v{n // 4}")

        async with trio.open_nursery() as nursery:
            for n in range(20):
                nursery.start_soon(insert, one if n % 2 else other, n)
        assert sorted(taken) == ["v0", "v1", "v2", "v3", "v4"]


async def test_a_trim_is_told_to_all_nodes(postgres_url: str) -> None:
    trimmed: list[tuple[int, int]] = []
    async with node(postgres_url) as (one, _), node(postgres_url, lambda *t: trimmed.append(t)) as (other, _):
        for n in range(5):
            await one.submit(put("a", n=n))
        await other.current(DATABASE)
        await one.submit(Trim(DATABASE, 0, 2))
        await until(lambda: trimmed == [(DATABASE, 3)])


async def test_a_batch_of_another_node_is_told_whole(postgres_url: str) -> None:
    async with node(postgres_url) as (one, _), node(postgres_url) as (_, changes):
        batch = Batch([put(f"d{n}") for n in range(1500)], 10 * MAX_BYTES)
        assert await until_indexed(one, batch) is not None
        await until(lambda: changes)
        assert len(changes) == 1500
        assert {change.txn for change in changes} == {1}


async def test_a_failed_batch_leaves_nothing(postgres_url: str) -> None:
    """Also a collection and an index that it made, which are rows at once."""
    async with node(postgres_url) as (store, changes):
        drafts = [Draft.parse({"e": 1, "unique": ["e"]}), Draft.parse({"e": 1, "unique": ["e"]})]
        bulk = InsertBulk(DATABASE, "new", [*drafts], MAX_BYTES, MAX_BYTES, atomic=True)
        with pytest.raises(ApiError) as refusal:
            await until_indexed(store, bulk)
        assert (refusal.value.code, refusal.value.extra) == ("CONFLICT", {"index": 1})
        assert await store.collections(DATABASE) == b"[]"
        assert (await store.submit(inserting({"n": 1}))).seq == 1
        assert len(changes) == 1


async def test_a_cancelled_read_is_stopped_in_postgresql(postgres: Postgres, postgres_url: str) -> None:
    running = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%'"
    async with node(postgres_url) as (store, _):
        with postgres.connect() as connection:

            def asleep() -> int:
                row = connection.execute(f"{running} AND state='active'").fetchone()
                return 0 if row is None else int(row[0])

            async def sleep() -> None:
                async with store._pool.lease("find") as leased:
                    await leased.query("SELECT pg_sleep(100)")

            async with trio.open_nursery() as nursery:
                for _ in range(8):
                    nursery.start_soon(sleep)
                await until(lambda: asleep() == 8)
                nursery.cancel_scope.cancel()
            await until(lambda: asleep() == 0)
            assert await store.count(DATABASE, "c", None) == 0


async def test_the_clock_of_a_node_harms_nothing(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now - 30 * 86_400)
    async with node(postgres_url) as (store, _):
        written = await store.submit(put("a"))
        assert json.loads(written.data)["createdAt"] >= timestamp(now - 60)


# --- broken connections --------------------------------------------------------------------------


class Cutter:
    """Listens on `port`, and connects each client to PostgreSQL's socket.

    `lose_request`: cut the connection when these bytes are to go to PostgreSQL. `lose_responses`: when it
    responds with the second bytes to the first, one pair after the other; `last_words` are passed on in their
    place. `hang_after`: say nothing any more once these bytes are there.
    """

    def __init__(self, postgres: Postgres) -> None:
        self._path = f"{postgres.home}/.s.PGSQL.{postgres.port}"
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.lose_request = b""
        self.lose_responses: list[tuple[bytes, bytes]] = []
        self.last_words = b""
        self.hang_after = b""
        self.cuts = 0
        self._connections = self._hanging = 0
        self._let_go = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def url(self, postgres_url: str) -> str:
        return f"{postgres_url.partition('?')[0]}?host=127.0.0.1&port={self.port}"

    def close(self) -> None:
        self._listener.close()
        self._let_go.set()

    def hang(self) -> None:
        """Pass nothing on any more for those that are connected now."""
        self._hanging = self._connections

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.socket(socket.AF_UNIX)
                try:
                    server.connect(self._path)
                except OSError:
                    client.close()
                    continue
                threading.Thread(target=self._pass_on, args=(client, server), daemon=True).start()

    def _pass_on(self, client: socket.socket, server: socket.socket) -> None:
        self._connections = number = self._connections + 1
        with client, server, suppress(OSError):
            last = b""
            while True:
                for source in select.select([client, server], [], [])[0]:
                    data = source.recv(65536)
                    if not data:
                        return
                    if number <= self._hanging:
                        self._let_go.wait()
                        return
                    if source is client and self.lose_responses and self.lose_responses[0][0] in data:
                        last = self.lose_responses[0][1]
                    if source is client and self.lose_request and self.lose_request in data:
                        self.lose_request = b""
                        self.cuts += 1
                        return
                    if source is server and last and last in data:
                        del self.lose_responses[0]
                        self.cuts += 1
                        if self.last_words:
                            client.sendall(data[: data.index(last) + len(last)] + self.last_words)
                        return
                    (server if source is client else client).sendall(data)
                    if source is client and self.hang_after and self.hang_after in data:
                        self._let_go.wait()
                        return


@pytest.fixture
def cutter(postgres: Postgres) -> Iterator[Cutter]:
    cutter = Cutter(postgres)
    yield cutter
    cutter.close()


COMMITTED: Final = (b"is committed", b"COMMIT\0")
ENDED: Final = b"SFATAL\0C57P01\0Mterminating connection due to administrator command\0\0"


@pytest.mark.parametrize(
    ("losses", "last_words"),
    [
        ([COMMITTED], b""),
        ([COMMITTED], b"E" + struct.pack(">i", len(ENDED) + 4) + ENDED),
        ([COMMITTED, (b"UPDATE writers SET id", b"SELECT 1\0")], b""),  # the response of the look, too
    ],
    ids=["cut", "ended by PostgreSQL", "cut twice"],
)
async def test_a_commit_without_a_response_is_looked_up(
    postgres_url: str, cutter: Cutter, losses: list[tuple[bytes, bytes]], last_words: bytes
) -> None:
    async with node(cutter.url(postgres_url)) as (store, changes):
        await store.submit(put("a", n=0))
        cutter.lose_responses, cutter.last_words = losses.copy(), last_words
        written = await store.submit(patch("a", n={"increment": 1}, text="is committed"))
        assert cutter.cuts == len(losses)
        assert json.loads(written.data)["n"] == 1
        assert await store.get(DATABASE, "c", "a") == (written.data, written.seq)
        assert (await store.submit(patch("a", n={"increment": 1}))).seq == 3
        assert [change.seq for change in changes] == [1, 2, 3]


async def test_a_commit_that_never_came_is_refused_and_not_done(postgres_url: str, cutter: Cutter) -> None:
    async with node(cutter.url(postgres_url)) as (store, changes):
        await store.submit(put("a", n=0))
        cutter.lose_request = b"never comes"
        operation = patch("a", n={"increment": 1}, text="never comes")
        assert await refused(store, operation) == "STORAGE_ERROR"
        assert cutter.cuts == 1
        await until(lambda: store.fault() is None)
        assert (await store.submit(patch("a", n={"increment": 1}))).seq == 2
        assert json.loads((await store.get(DATABASE, "c", "a")).data)["n"] == 1
        assert [change.seq for change in changes] == [1, 2]


async def test_while_postgresql_is_away_all_is_refused_and_then_goes_on() -> None:
    with postgres_server() as server:
        url = server.url(server.new())
        new_database(url)
        async with node(url) as (store, changes), node(url) as (_, by_other):
            await store.submit(put("a", n=0))
            server.stop()
            assert await refused(store, put("b")) == "STORAGE_ERROR"
            assert store.fault() == "away"
            assert await refused(store, put("b")) == "STORAGE_ERROR"
            for read in (store.get(DATABASE, "c", "a"), store.count(DATABASE, "c", None)):
                with pytest.raises(ApiError) as refusal:
                    await read
                assert (refusal.value.status, refusal.value.code) == (503, "STORAGE_ERROR")
                assert "nothing was read" in refusal.value.message
            server.start()
            with trio.fail_after(20):
                while True:
                    with suppress(ApiError):
                        await store.submit(put("c", n=1))
                        break
                    await trio.sleep(0.05)
            assert json.loads((await store.get(DATABASE, "c", "a")).data)["n"] == 0
            await until(lambda: len(by_other) == 2)
            assert by_other == changes
            assert [change.id for change in changes] == ["a", "c"]


async def test_stopping_while_postgresql_is_away_does_not_wait_for_it() -> None:
    with postgres_server() as server:
        url = server.url(server.new())
        new_database(url)
        with trio.fail_after(20):
            async with node(url) as (store, _):
                await store.submit(put("a"))
                server.stop()
                await refused(store, put("b"))


# --- trips ---------------------------------------------------------------------------------------


async def test_unique_values_are_looked_up_together(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    trips = 0
    receive = Session.receive

    def counted(session: Session) -> Any:
        nonlocal trips
        trips += 1
        return receive(session)

    schema = parse_schema({"properties": {"e": {"unique": True}}})

    async def bulk(store: PostgresStore, numbers: range) -> Any:
        drafts = [Draft.parse({"_id": f"d{n}", "e": n}) for n in numbers]
        return await store.submit(InsertBulk(DATABASE, "c", [*drafts], MAX_BYTES, 10 * MAX_BYTES, atomic=False))

    async with node(postgres_url) as (store, _):
        await bulk(store, range(1000))
        monkeypatch.setattr(Session, "receive", counted)
        assert await until_indexed(store, SetSchema(DATABASE, "c", schema))
        assert trips < 250
        trips = 0
        await bulk(store, range(1000, 2000))
        assert trips < 100
        assert await store.count(DATABASE, "c", None) == 2000
        lines = [Line(n, "default", "c", Imported(f"d{n}", {"e": n}, None, None)) for n in range(1900, 2150)]
        trips = 0
        tally = await store.submit(ImportLines(lines, replace=False, max_bytes=MAX_BYTES))
        assert tally is not None
        assert (tally.unchanged, tally.inserted, tally.refused) == (100, 150, 0)
        assert trips < 100
        assert await refused(store, inserting({"e": 2149})) == "CONFLICT"
        monkeypatch.undo()


@pytest.mark.parametrize("rounds", [1, 40])
async def test_an_index_that_cannot_be_unique_says_so(postgres_url: str, rounds: int) -> None:
    """However far apart the two documents are."""
    schema = parse_schema({"properties": {"e": {"unique": True}}})
    async with node(postgres_url) as (store, _):
        for round in range(rounds):
            drafts = [Draft.parse({"e": n}) for n in range(round * 20, round * 20 + 20)]
            await store.submit(InsertBulk(DATABASE, "c", [*drafts], MAX_BYTES, MAX_BYTES, atomic=False))
        await store.submit(inserting({"e": 3}))
        with pytest.raises(ApiError, match="e"):
            await until_indexed(store, SetSchema(DATABASE, "c", schema))
