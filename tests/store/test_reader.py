"""Reads are limited in time and size, and a stopped thread works again."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from paperdb_trio.errors import ApiError
from paperdb_trio.store.operations import Draft, Insert
from paperdb_trio.store.sqlite import library as sqlite
from paperdb_trio.store.sqlite.reader import Reader
from tests.store.tools import DATABASE, apply_all, inserting

ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n) SELECT count(*) FROM n"


@pytest.fixture
def reader(file: Path) -> Iterator[Reader]:
    """One thread: the next query fails if a query does not return it."""
    reader = Reader(file, threads=1, timeout=60, max_result_bytes=1024 * 1024)
    yield reader
    reader.close()


async def one(reader: Reader) -> int:
    """A query that succeeds only if the thread and its connection are free."""
    with trio.fail_after(10):
        while True:
            try:
                return await reader.run(lambda connection: int(connection.execute("SELECT 1").fetchone()[0]))
            except ApiError as error:  # on a busy machine even this query may be too slow
                if error.code != "QUERY_TIMEOUT":
                    raise


async def test_query_stops_at_its_deadline_and_frees_its_thread(file: Path) -> None:
    reader = Reader(file, threads=1, timeout=0.2, max_result_bytes=1024)
    with pytest.raises(ApiError) as refused:
        await reader.run(lambda connection: connection.execute(ENDLESS).fetchone())
    assert (refused.value.status, refused.value.code) == (503, "QUERY_TIMEOUT")
    assert refused.value.headers["Retry-After"]
    assert await one(reader) == 1
    reader.close()


async def test_cancelled_query_is_stopped(file: Path) -> None:
    reader = Reader(file, threads=1, timeout=60, max_result_bytes=1024)
    started = threading.Event()
    stopped = threading.Event()

    def query(connection: sqlite.Connection) -> None:
        connection.create_scalar_function("started", lambda *_: started.set(), 0)
        try:
            connection.execute(f"SELECT started(), ({ENDLESS})").fetchone()
        finally:
            stopped.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(reader.run, query)
        assert await trio.to_thread.run_sync(started.wait, 10)
        nursery.cancel_scope.cancel()
    assert await trio.to_thread.run_sync(stopped.wait, 10)
    assert await one(reader) == 1
    reader.close()


async def test_deadline_between_two_statements_stops_the_second(file: Path) -> None:
    """SQLite forgets an interrupt that comes while no statement is running, but the deadline still holds."""
    reader = Reader(file, threads=1, timeout=0.1, max_result_bytes=1024)
    passed, ended = threading.Event(), threading.Event()
    outcome: list[str] = []

    def query(connection: sqlite.Connection) -> None:
        assert passed.wait(10)
        try:
            connection.execute(ENDLESS.replace("FROM n)", "FROM n LIMIT 500000)")).fetchone()
            outcome.append("ran to its end")
        except sqlite.Error:
            outcome.append("stopped")
        finally:
            ended.set()

    with pytest.raises(ApiError):
        await reader.run(query)
    passed.set()
    assert await trio.to_thread.run_sync(ended.wait, 10)
    assert await one(reader) == 1
    reader.close()
    assert outcome == ["stopped"]


async def test_too_large_result_is_a_400_and_frees_the_thread(reader: Reader, file: Path) -> None:
    apply_all(file, *(inserting({"pad": "x" * 300_000}) for _ in range(5)))

    async def find(limit: int) -> Any:
        more: dict[str, Any] = {"filter": None, "sort": None, "offset": 0, "select": None, "count": False}
        return await reader.find(DATABASE, "c", limit=limit, **more)

    with pytest.raises(ApiError) as refused:
        await find(5)
    assert (refused.value.status, refused.value.code) == (400, "RESULT_TOO_LARGE")
    found = await find(2)
    assert (len(found.documents), found.has_more, found.seq) == (2, True, 5)
    assert await one(reader) == 1


@pytest.mark.parametrize("sort", [None, "-createdAt", "pad"])
async def test_find_counts_only_the_returned_documents_against_the_limit(
    reader: Reader, file: Path, sort: str | None
) -> None:
    """The extra document that shows whether there are more does not count."""
    apply_all(file, *(inserting({"key": f"{n}", "pad": "x" * 700_000}) for n in range(3)))
    more: dict[str, Any] = {"filter": None, "sort": sort, "select": None, "count": True}
    for offset in range(3):
        found = await reader.find(DATABASE, "c", limit=1, offset=offset, **more)
        assert (len(found.documents), found.has_more, found.total) == (1, offset < 2, 3)
    with pytest.raises(ApiError) as refused:
        await reader.find(DATABASE, "c", limit=2, offset=0, **more)
    assert refused.value.code == "RESULT_TOO_LARGE"


async def test_document_beyond_the_current_size_limit_is_readable(reader: Reader, file: Path) -> None:
    draft = Draft.parse({"key": "large", "pad": "x" * 3_000_000})
    apply_all(file, Insert(DATABASE, "c", draft, 4_000_000), inserting({"key": "small"}))
    stored = await reader.get(DATABASE, "c", "large")
    assert len(stored.data) > 3_000_000
    more: dict[str, Any] = {"filter": None, "sort": None, "select": None, "count": False}
    found = await reader.find(DATABASE, "c", limit=1, offset=0, **more)
    assert (found.documents, found.has_more) == ([stored.data], True)
    with pytest.raises(ApiError):
        await reader.find(DATABASE, "c", limit=2, offset=0, **more)


async def test_query_error_is_raised_and_frees_the_thread(reader: Reader) -> None:
    with pytest.raises(ZeroDivisionError):
        await reader.run(lambda connection: 1 // 0)
    with pytest.raises(sqlite.Error, match="no such table"):
        await reader.run(lambda connection: connection.execute("SELECT * FROM nowhere"))
    assert await one(reader) == 1


async def test_reader_cannot_write(reader: Reader) -> None:
    with pytest.raises(sqlite.Error, match="readonly"):
        await reader.run(lambda connection: connection.execute("DELETE FROM keys"))


async def test_query_sees_one_moment(reader: Reader, file: Path) -> None:
    def query(connection: sqlite.Connection) -> list[int]:
        count = "SELECT count(*) FROM documents"
        before = connection.execute(count).fetchone()[0]
        apply_all(file, inserting({}))
        return [before, connection.execute(count).fetchone()[0]]

    long = Reader(file, threads=1, timeout=30, max_result_bytes=1024)
    assert await long.run(query) == [0, 0]
    assert await long.run(query) == [1, 1]
    long.close()
