"""The writer stops at once, and bounds the write-ahead log although reads never pause."""

from __future__ import annotations

import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from paperdb_trio.errors import ApiError
from paperdb_trio.store.housekeeping import DropSome, finish_drops
from paperdb_trio.store.sqlite import library as sqlite
from paperdb_trio.store.sqlite.file import checkpoint, connect
from paperdb_trio.store.sqlite.gate import ReadGate
from paperdb_trio.store.sqlite.reader import Reader
from paperdb_trio.store.sqlite.writer import LOOK_SECONDS, Writer
from tests.store.test_reader import ENDLESS
from tests.store.test_writer import held, ids, running, submit_into
from tests.store.tools import DATABASE, apply_all, inserting, rows

MEBI = 1024 * 1024


class Endless:
    """A statement that runs until it is interrupted."""

    def __init__(self) -> None:
        self.running = threading.Event()

    def apply(self, tx: Any) -> None:
        self.running.set()
        tx.connection.execute("INSERT INTO meta VALUES ('half', 1)")
        tx.connection.execute(ENDLESS).fetchone()


async def test_stop_interrupts_a_long_statement(file: Path) -> None:
    endless, results = Endless(), dict[int, Any]()
    async with running(file) as (writer, _), trio.open_nursery() as nursery:
        nursery.start_soon(submit_into, writer, endless, results, 0)
        assert await trio.to_thread.run_sync(endless.running.wait, 10)
        nursery.start_soon(submit_into, writer, inserting({"key": "behind"}), results, 1)
        await trio.testing.wait_all_tasks_blocked()
        writer.stop()
    assert [result.code for result in results.values()] == ["SHUTTING_DOWN"] * 2
    assert ids(file) == set()
    assert rows(file, "SELECT * FROM meta WHERE name='half'") == []


async def test_stop_refuses_waiting_operations(file: Path) -> None:
    results: dict[int, Any] = {}
    async with running(file) as (writer, published), trio.open_nursery() as nursery, held(nursery, writer):
        for n in range(300):  # more than one batch
            nursery.start_soon(submit_into, writer, inserting({"key": str(n)}), results, n)
        await trio.testing.wait_all_tasks_blocked()
        writer.stop()
    assert {result.code for result in results.values()} == {"SHUTTING_DOWN"}
    assert len(results) == 300
    assert (ids(file), published.seqs) == (set(), [])


# --- interrupted drops ---------------------------------------------------------------------------


async def test_resumed_drop_spares_documents_inserted_since(file: Path) -> None:
    apply_all(file, *(inserting({"key": str(n)}) for n in range(25)), inserting({}, "other"))
    apply_all(file, DropSome(DATABASE, "c", None, limit=10))
    apply_all(file, inserting({"key": "since"}), inserting({"key": "3"}))  # 3 was dropped already
    async with running(file) as (writer, published):
        await finish_drops(writer)
        assert await writer.submit(inserting({"key": "4"}))
    assert len(published.seqs) == 15 + 1
    assert rows(file, "SELECT name, documents FROM collections") == [("c", 3), ("other", 1)]
    assert rows(file, "SELECT id FROM documents WHERE collection_id=1 ORDER BY rowkey") == [
        *(("since",), ("3",), ("4",))
    ]
    assert rows(file, "SELECT * FROM drops") == []
    assert rows(file, "SELECT count(*) FROM changes WHERE type='delete'") == [(25,)]


def test_drop_does_not_continue_with_a_new_collection_of_that_name(file: Path) -> None:
    apply_all(file, *(inserting({}) for _ in range(20)))
    ((_, until, _),) = apply_all(file, DropSome(DATABASE, "c", None, limit=10))
    ((_, _, done),) = apply_all(file, DropSome(DATABASE, "c", None))  # a second request finishes the drop
    assert done
    apply_all(file, inserting({"key": "new"}))
    assert apply_all(file, DropSome(DATABASE, "c", until))[0][::2] == (0, True)
    assert ids(file) == {"new"}


def test_drop_of_one_step_leaves_no_record(file: Path) -> None:
    apply_all(file, inserting({}), DropSome(DATABASE, "c", None))
    assert rows(file, "SELECT * FROM drops") == []


# --- the write-ahead log -------------------------------------------------------------------------


def wal_bytes(file: Path) -> int:
    return Path(f"{file}-wal").stat().st_size


async def write(writer: Writer, megabytes: int) -> None:
    for _ in range(megabytes):
        await writer.submit(inserting({"key": "a", "pad": "x" * 500_000}))
        await writer.submit(DropSome(DATABASE, "c", None))


async def test_log_restarts_although_reads_never_pause(file: Path) -> None:
    gate = ReadGate()
    writer = Writer(file, lambda changes: None, gate=gate, max_wal_bytes=8 * MEBI)
    reader = Reader(file, threads=2, timeout=20, max_result_bytes=MEBI, gate=gate)
    turns, begun = threading.Condition(), [0, 0]
    sizes = []

    async def overlap(me: int) -> None:
        """Read until the other one has begun, too: a read is always running, unless they wait."""

        def query(connection: sqlite.Connection) -> None:
            connection.execute("SELECT count(*) FROM documents").fetchone()
            with turns:
                begun[me] += 1
                turns.notify_all()
                others = begun[1 - me]
                turns.wait_for(lambda: begun[1 - me] > others, 0.1)

        while True:
            await reader.run(query)

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            await nursery.start(writer.run)
            async with trio.open_nursery() as readers:
                for me in range(2):
                    readers.start_soon(overlap, me)
                for _ in range(20):
                    await write(writer, 1)
                    sizes.append(wal_bytes(file))
                while wal_bytes(file) > 5 * MEBI:
                    await write(writer, 1)
                    await trio.sleep(0.05)
                readers.cancel_scope.cancel()
            writer.close()
    reader.close()
    assert max(sizes) > 7 * MEBI


async def test_long_reads_delay_others_only_briefly(file: Path) -> None:
    """During a long query of this or another process, writes and reads go on. Then the log shrinks."""
    gate = ReadGate()
    writer = Writer(file, lambda changes: None, gate=gate, max_wal_bytes=MEBI)
    reader = Reader(file, threads=2, timeout=60, max_result_bytes=MEBI, gate=gate)
    release, reading = threading.Event(), threading.Event()

    def stay(connection: sqlite.Connection) -> None:
        connection.execute("SELECT count(*) FROM documents").fetchone()
        reading.set()
        release.wait(30)

    async def shorten() -> None:
        while wal_bytes(file) > MEBI:
            await write(writer, 1)
            await trio.sleep(0.05)

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            await nursery.start(writer.run)
            nursery.start_soon(reader.run, stay)
            assert await trio.to_thread.run_sync(reading.wait, 10)
            await write(writer, 3)
            assert wal_bytes(file) > MEBI
            assert await reader.count(DATABASE, "c", None) == 0
            release.set()
            await shorten()
            with closing(connect(file, read_only=True)) as stranger:
                stranger.execute("BEGIN")
                stranger.execute("SELECT count(*) FROM documents").fetchone()
                await write(writer, 3)
                assert wal_bytes(file) > MEBI
                assert await reader.count(DATABASE, "c", None) == 0
            await shorten()
            writer.close()
    reader.close()


def test_checkpoint_has_a_time_limit(file: Path) -> None:
    apply_all(file, inserting({}))
    with closing(connect(file, read_only=True)) as stranger:
        stranger.execute("BEGIN")
        stranger.execute("SELECT count(*) FROM documents").fetchone()
        with closing(connect(file)) as another:
            another.execute("UPDATE meta SET value=value+1")
        with pytest.raises(sqlite.Error, match=r"another process|interrupt"):
            checkpoint(file, 0.1)
    checkpoint(file, 10)
    assert not Path(f"{file}-wal").exists()
    assert ids(file)


async def test_writer_acknowledges_nothing_after_its_file_is_gone(file: Path) -> None:
    async with running(file) as (writer, published):
        await writer.submit(inserting({"key": "a"}))
        assert writer.fault() is None
        file.rename(file.with_name("elsewhere"))
        assert writer.fault() == "gone"
        await trio.sleep(2 * LOOK_SECONDS)  # the writer's next commit looks again
        for key in "bc":
            with pytest.raises(ApiError) as refused:
                await writer.submit(inserting({"key": key}))
            assert (refused.value.status, refused.value.code) == (503, "STORAGE_GONE")
        file.with_name("elsewhere").rename(file)
        with pytest.raises(ApiError):  # another process may have written to it meanwhile
            await writer.submit(inserting({"key": "d"}))
    assert published.seqs == [1]
