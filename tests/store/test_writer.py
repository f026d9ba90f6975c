"""The writer: operations that wait together are committed together, and a failure affects no other operation.

An operation that blocks on an event holds the writer's thread, so that operations submitted meanwhile are one
batch. The event is always set at the end, whether or not the test fails.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
import trio.testing

from paperdb_trio.errors import ApiError
from paperdb_trio.model import Change
from paperdb_trio.store import group_commit
from paperdb_trio.store.group_commit import ENOUGH_BYTES, ENOUGH_SECONDS, MAX_BATCH
from paperdb_trio.store.operations import Draft, Insert, InsertBulk
from paperdb_trio.store.sqlite import library as sqlite
from paperdb_trio.store.sqlite.transaction import Transaction
from paperdb_trio.store.sqlite.writer import Writer
from tests.conftest import Server
from tests.store.tools import DATABASE, MAX_BYTES, insert, inserting, rows


@dataclass
class Block:
    """An operation that holds the writer's thread until `release`."""

    running: threading.Event = field(default_factory=threading.Event)
    release: threading.Event = field(default_factory=threading.Event)

    def apply(self, tx: Any) -> str:
        self.running.set()
        assert self.release.wait(20)
        return "released"


@dataclass
class Explode:
    """Writes a document, then fails like a bug. `tries` counts how often it was applied."""

    bug: Callable[[Transaction], object]
    tries: int = 0

    def apply(self, tx: Any) -> None:
        self.tries += 1
        insert(tx, {"key": "half-done"})
        self.bug(tx)


@dataclass
class Published:
    """Records the seqs that `on_commit` gets, and checks that they are in the file by then."""

    file: Path
    seqs: list[int] = field(default_factory=list)

    def __call__(self, changes: list[Change]) -> None:
        ((head,),) = rows(self.file, "SELECT head FROM databases WHERE id=?", DATABASE)
        assert head >= changes[-1].seq  # an event never runs ahead of its commit
        self.seqs += [change.seq for change in changes]


@asynccontextmanager
async def running(file: Path, **options: Any) -> AsyncIterator[tuple[Writer, Published]]:
    published = Published(file)
    writer = Writer(file, published, **options)
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            await nursery.start(writer.run)
            yield writer, published
            writer.close()


@asynccontextmanager
async def held(nursery: trio.Nursery, writer: Writer) -> AsyncIterator[None]:
    """Keeps the writer's thread busy: operations submitted inside are one batch."""
    block = Block()
    nursery.start_soon(writer.submit, block)
    try:
        assert await trio.to_thread.run_sync(block.running.wait, 10)
        yield
    finally:
        block.release.set()


async def submit_into(writer: Writer, operation: Any, results: dict[int, Any], n: int) -> None:
    try:
        results[n] = await writer.submit(operation)
    except ApiError as error:
        results[n] = error


def ids(file: Path) -> set[str]:
    return {id for (id,) in rows(file, "SELECT id FROM documents")}


async def test_waiting_operations_share_one_commit(file: Path) -> None:
    results: dict[int, Any] = {}
    async with running(file) as (writer, published):
        async with trio.open_nursery() as nursery, held(nursery, writer):
            for n in range(200):
                nursery.start_soon(submit_into, writer, inserting({"key": str(n)}), results, n)
            await trio.testing.wait_all_tasks_blocked()
        assert writer.commits == 2  # the blocking operation, and all that waited behind it
        assert writer.operations == 201
    assert sorted(result.seq for result in results.values()) == list(range(1, 201))
    assert published.seqs == list(range(1, 201))
    assert rows(file, "SELECT id, seq FROM documents ORDER BY id") == sorted(
        (result.id, result.seq) for result in results.values()
    )


@dataclass
class Pragmas:
    """An operation that returns settings of the writer's connection."""

    def apply(self, tx: Any) -> list[Any]:
        names = ("synchronous", "journal_mode")
        return [tx.connection.execute(f"PRAGMA {name}").fetchone()[0] for name in names]


async def test_every_commit_is_synced_to_the_disk(file: Path) -> None:
    """A test cannot cut the power. FULL (2) syncs the log at each commit, NORMAL (1) does not
    (sqlite.org/pragma.html)."""
    async with running(file) as (writer, _):
        assert await writer.submit(Pragmas()) == [2, "wal"]


@pytest.fixture
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine a commit may take longer than `ENOUGH_SECONDS`, and then it takes no more."""
    monkeypatch.setattr(group_commit, "ENOUGH_SECONDS", 60)


async def test_large_waiting_operations_take_several_commits(file: Path, unhurried: None) -> None:
    results: dict[int, Any] = {}
    size = ENOUGH_BYTES // 4
    async with running(file) as (writer, published):
        async with trio.open_nursery() as nursery, held(nursery, writer):
            for n in range(9):
                operation = Insert(DATABASE, "c", Draft.parse({"pad": "x" * size}), 2 * size)
                nursery.start_soon(submit_into, writer, operation, results, n)
            await trio.testing.wait_all_tasks_blocked()
        assert (writer.commits, writer.operations) == (4, 10)  # the blocking one, then 4, 4 and 1
    assert sorted(result.seq for result in results.values()) == list(range(1, 10))
    assert published.seqs == list(range(1, 10))


async def test_slow_operation_is_the_last_of_its_commit(file: Path) -> None:
    class Slow:
        def apply(self, tx: Any) -> None:
            insert(tx, {})
            time.sleep(ENOUGH_SECONDS * 1.5)

    results: dict[int, Any] = {}
    async with running(file) as (writer, _):
        async with trio.open_nursery() as nursery, held(nursery, writer):
            for n in range(3):
                nursery.start_soon(submit_into, writer, Slow(), results, n)
            await trio.testing.wait_all_tasks_blocked()
        assert writer.commits == 4
    assert len(ids(file)) == 3


async def test_more_than_a_batch_takes_several_commits(file: Path, unhurried: None) -> None:
    results: dict[int, Any] = {}
    count = 2 * MAX_BATCH + 10
    async with running(file) as (writer, published):
        async with trio.open_nursery() as nursery, held(nursery, writer):
            for n in range(count):
                nursery.start_soon(submit_into, writer, inserting({}), results, n)
            await trio.testing.wait_all_tasks_blocked()
        assert writer.commits == 4
    assert sorted(result.seq for result in results.values()) == published.seqs == list(range(1, count + 1))


async def test_cancelled_submit_is_still_committed(file: Path) -> None:
    async with running(file) as (writer, published):
        async with trio.open_nursery() as nursery, held(nursery, writer):
            with trio.CancelScope() as scope:
                nursery.start_soon(trio.testing.wait_all_tasks_blocked)
                scope.cancel()
                await writer.submit(inserting({"key": "cancelled"}))
            assert scope.cancelled_caught
        await writer.submit(inserting({"key": "later"}))
    assert ids(file) == {"cancelled", "later"}
    assert published.seqs == [1, 2]


@pytest.mark.parametrize(
    ("bug", "status"),
    [
        (lambda tx: 1 // 0, 500),
        (lambda tx: tx.connection.execute("SELECT * FROM nowhere"), 503),
        (lambda tx: tx.connection.execute("SELECT ?", (object(),)), 500),
    ],
    ids=["Python", "SQL", "binding"],
)
async def test_broken_operation_fails_alone(
    file: Path, caplog: pytest.LogCaptureFixture, bug: Callable[[Transaction], object], status: int
) -> None:
    caplog.set_level(logging.ERROR)
    results: dict[int, Any] = {}
    broken = Explode(bug)
    async with running(file) as (writer, published):
        async with trio.open_nursery() as nursery, held(nursery, writer):
            for n in range(10):
                operation = broken if n == 5 else inserting({"key": str(n)})
                nursery.start_soon(submit_into, writer, operation, results, n)
            await trio.testing.wait_all_tasks_blocked()
        after = await writer.submit(inserting({"key": "after"}))
    failed = results.pop(5)
    assert isinstance(failed, ApiError)
    assert failed.status == status
    assert "failed" in caplog.text
    assert broken.tries == 2
    assert ids(file) == {*(str(n) for n in range(10) if n != 5), "after"}
    assert (
        sorted([*(result.seq for result in results.values()), after.seq])
        == published.seqs
        == list(range(1, 11))
    )


async def test_refusal_does_not_affect_the_rest_of_its_batch(file: Path) -> None:
    results: dict[int, Any] = {}
    drafts: list[Draft | ApiError] = [Draft.parse({"key": "x"}), Draft.parse({"key": "x"})]
    atomic = InsertBulk(DATABASE, "b", drafts, MAX_BYTES, 10 * MAX_BYTES, True)
    operations = [inserting({"key": "a"}), inserting({"key": "a"}), atomic, inserting({"key": "b"})]
    async with running(file) as (writer, published):
        async with trio.open_nursery() as nursery, held(nursery, writer):
            for n, operation in enumerate(operations):
                nursery.start_soon(submit_into, writer, operation, results, n)
            await trio.testing.wait_all_tasks_blocked()
        assert writer.commits == 2
    refused = [result.status for result in results.values() if isinstance(result, ApiError)]
    assert refused == [409, 409]
    assert ids(file) == {"a", "b"}
    assert published.seqs == [1, 2]
    assert rows(file, "SELECT name, documents FROM collections") == [("c", 2)]


@pytest.mark.parametrize("end", ["close", "cancel"])
async def test_waiting_operations_are_committed_at_the_end(file: Path, end: str) -> None:
    writer = Writer(file, Published(file))
    results: dict[int, Any] = {}
    with trio.fail_after(30):
        async with trio.open_nursery() as submitters, trio.open_nursery() as nursery:
            await nursery.start(writer.run)
            async with held(submitters, writer):
                for n in range(20):
                    submitters.start_soon(submit_into, writer, inserting({"key": str(n)}), results, n)
                await trio.testing.wait_all_tasks_blocked()
                if end == "close":
                    writer.close()
                else:
                    nursery.cancel_scope.cancel()
                with trio.CancelScope(shield=True):
                    await trio.testing.wait_all_tasks_blocked()
    assert len(results) == 20
    assert ids(file) == {str(n) for n in range(20)}
    with pytest.raises(ApiError) as refused:
        await writer.submit(inserting({}))
    assert (refused.value.status, refused.value.code) == (503, "SHUTTING_DOWN")
    assert refused.value.headers["Retry-After"]


async def test_nothing_is_published_for_a_commit_without_changes(file: Path) -> None:
    async with running(file) as (writer, published):
        for document in ({"key": "a"}, {"key": "a"}):
            await submit_into(writer, inserting(document), {}, 0)
        assert writer.commits == 2
    assert published.seqs == [1]


async def test_bug_in_publishing_ends_the_writer(file: Path) -> None:
    def fail(changes: list[Change]) -> None:
        raise ZeroDivisionError

    writer = Writer(file, fail)

    async def use() -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(writer.run)
            await writer.submit(inserting({"key": "a"}))
            await writer.closed.wait()

    with trio.fail_after(30), pytest.RaisesGroup(ZeroDivisionError):
        await use()
    assert ids(file) == {"a"}


async def test_writer_has_not_started_before_its_file_is_open(tmp_path: Path) -> None:
    started = False

    async def use() -> None:
        nonlocal started
        async with trio.open_nursery() as nursery:
            await nursery.start(Writer(tmp_path / "missing.sqlite", lambda changes: None).run)
            started = True

    with trio.fail_after(30), pytest.RaisesGroup(sqlite.Error, flatten_subgroups=True):
        await use()
    assert not started


async def test_damaged_file_refuses_operations_and_ends_the_writer(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)

    class Damaged:
        def apply(self, tx: Any) -> None:
            tx.connection.execute("PRAGMA writable_schema=ON")
            tx.connection.execute("UPDATE sqlite_master SET rootpage=99999 WHERE name='documents'")
            tx.connection.execute("PRAGMA schema_version=99999")
            tx.connection.execute("SELECT data FROM documents").fetchall()

    writer = Writer(file, Published(file))

    async def use() -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(writer.run)
            with pytest.raises(ApiError) as refused:
                await writer.submit(Damaged())
            assert refused.value.status == 503
            await writer.closed.wait()

    with trio.fail_after(30), pytest.RaisesGroup(sqlite.Error):
        await use()


def test_concurrent_inserts_over_http_get_consecutive_seqs(server: Server) -> None:
    server.cli("databases", "create", "test_writer", "--plan", "free")
    key = server.new_key("test_writer")["key"]

    headers = {"Authorization": f"Bearer {key}"}
    client = httpx.Client(base_url=server.url, headers=headers, timeout=20, trust_env=False)

    def insert_some(writer: int) -> list[int]:
        seqs = []
        for n in range(15):
            answer = client.post("/c/docs", json={"writer": writer, "n": n})
            assert answer.status_code == 201
            seqs.append(int(answer.headers["etag"].strip('"')))
        return seqs

    with client, ThreadPoolExecutor(12) as pool:
        answered = list(pool.map(insert_some, range(12)))
        listed = client.get("/c/docs", params={"limit": 1000}).json()["documents"]
    assert all(seqs == sorted(seqs) for seqs in answered)
    assert sorted(seq for seqs in answered for seq in seqs) == list(range(1, 181))
    in_order = sorted((seq, writer, n) for writer, seqs in enumerate(answered) for n, seq in enumerate(seqs))
    assert [(document["writer"], document["n"]) for document in listed] == [
        (writer, n) for _, writer, n in in_order
    ]
