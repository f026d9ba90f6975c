"""The change log, page by page: together, the pages hold each change of interest once, in seq order."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paperdb_trio.delivery.encodings import CURSOR
from paperdb_trio.delivery.views import page_text
from paperdb_trio.match.query import query
from paperdb_trio.store.administration import CreateDatabase
from paperdb_trio.store.housekeeping import Trim
from paperdb_trio.store.operations import Draft, Insert, Replace
from paperdb_trio.store.protocol import PAGE_BYTES, EventText, Interest
from paperdb_trio.store.sqlite import admin
from paperdb_trio.store.sqlite import change_log as log_module
from paperdb_trio.store.sqlite import library as sqlite
from paperdb_trio.store.sqlite.change_log import ChangeLog, _read_page
from paperdb_trio.store.sqlite.file import connect
from tests.store.tools import DATABASE, MAX_BYTES, apply_all, insert, inserting, rows, scratch


def opened(file: Path) -> ChangeLog:
    return ChangeLog(file, timeout=30, max_document_bytes=MAX_BYTES)


async def pages(file: Path, interest: Interest, after: int = 0, n: int = 100) -> list[list[dict[str, Any]]]:
    log = opened(file)
    found = []
    try:
        while True:
            page = await log.page(DATABASE, after, interest, EventText.CURSOR, n)
            assert not page.expired
            assert page.position > after or page.reached_end
            after = page.position
            found.append([json.loads(event) for event in page.events])
            if page.reached_end:
                assert page.position == page.head
                return found
    finally:
        log.close()


@settings(max_examples=150)
@given(
    writes=st.lists(st.sampled_from("abc"), max_size=20),
    interest=st.dictionaries(st.none() | st.sampled_from("abcd"), st.integers(0, 20), max_size=3),
    after=st.integers(0, 20),
    size=st.integers(1, 8),
)
def test_pages_hold_each_change_of_interest_once(
    shared_file: Path, writes: list[str], interest: Interest, after: int, size: int
) -> None:
    after = min(after, len(writes))
    expected = [
        seq
        for seq, name in enumerate(writes, 1)
        if seq > after and seq > min(interest.get(name, len(writes)), interest.get(None, len(writes)))
    ]
    found: list[int] = []
    with scratch(shared_file) as tx:
        for name in writes:
            insert(tx, {}, name)
        tx.flush()
        while True:
            page = _read_page(tx.connection, DATABASE, after, interest, EventText.CURSOR, size)
            assert len(page.events) <= size
            found += [json.loads(event)["seq"] for event in page.events]
            assert page.position > after or page.reached_end
            after = page.position
            if page.reached_end:
                break
    assert found == expected
    assert after == len(writes)


@pytest.mark.parametrize("sizes", [[1_000_000] * 3, [10, 1_000_000, 10], [100_000] * 12, [900_000, 300_000]])
async def test_large_changes_take_more_pages_and_none_is_lost(file: Path, sizes: list[int]) -> None:
    apply_all(file, *(inserting({"pad": "x" * size}) for size in sizes))
    found = await pages(file, {None: 0})
    events = [event for page in found for event in page]
    assert [event["seq"] for event in events] == list(range(1, len(sizes) + 1))
    assert [len(event["data"]["pad"]) for event in events] == sizes
    for page in found:
        total = sum(len(event["data"]["pad"]) for event in page)
        assert len(page) <= 1 or total <= 5 * PAGE_BYTES + max(sizes)


@pytest.mark.interpreted
@pytest.mark.parametrize("quiet", [9, 10, 11, 25])
async def test_rare_collection_is_found_behind_many_changes(
    file: Path, monkeypatch: pytest.MonkeyPatch, quiet: int
) -> None:
    """A page without events has reached the end, even though each read scans only a part of the log."""
    monkeypatch.setattr(log_module, "SCANNED", 5)
    apply_all(
        file, *(inserting({}, "busy") for _ in range(quiet)), inserting({}, "rare"), inserting({}, "busy")
    )
    log = opened(file)
    try:
        page = await log.page(DATABASE, 0, {"rare": 0}, EventText.CURSOR)
        assert [json.loads(event)["seq"] for event in page.events] == [quiet + 1]
        last = await log.page(DATABASE, page.position, {"rare": 0}, EventText.CURSOR)
        assert (last.events, last.reached_end) == ([], True)
        none = await log.page(DATABASE, 0, {"other": 0}, EventText.CURSOR)
        assert (none.events, none.position, none.reached_end) == ([], quiet + 2, True)
    finally:
        log.close()


async def test_change_beyond_the_current_size_limit_is_readable(file: Path) -> None:
    large = Insert(DATABASE, "c", Draft.parse({"pad": "x" * (10 * MAX_BYTES)}), 20 * MAX_BYTES)
    apply_all(file, inserting({}), large, inserting({}))
    found = await pages(file, {None: 0})
    assert [event["seq"] for page in found for event in page] == [1, 2, 3]


async def test_position_outside_the_log_is_expired(file: Path) -> None:
    apply_all(file, *(inserting({}) for _ in range(10)))
    apply_all(file, Trim(DATABASE, 0, 4))
    log = opened(file)
    try:
        for after, expired in ((0, True), (5, True), (6, False), (10, False), (11, True)):
            page = await log.page(DATABASE, after, {None: 0}, EventText.PLAIN)
            assert page.expired is expired
            assert (page.head, page.trimmed) == (10, 6)
            assert len(page.events) == (0 if expired else 10 - after)
        assert log.bounds() == {DATABASE: (10, 6)}
    finally:
        log.close()


async def test_page_holds_the_event_texts_of_one_database(file: Path) -> None:
    admin.apply(file, CreateDatabase("test", "other", "pro"))
    awkward = {"key": "a", "text": 'line\nbreak "\\ \u2028', "n": [1.5, None]}
    (written, _) = apply_all(file, inserting(awkward), Replace(2, "c", "b", {}, None, MAX_BYTES))
    log = opened(file)
    try:
        for text, head in ((EventText.PLAIN, b"{"), (EventText.CURSOR, b'{"seq":1,')):
            page = await log.page(DATABASE, 0, {None: 0}, text)
            assert page.events == [head + b'"type":"insert","collection":"c","data":' + written.data + b"}"]
    finally:
        log.close()


@pytest.mark.parametrize("read_only", [True, False])
def test_failed_connect_closes_the_file(tmp_path: Path, read_only: bool) -> None:
    """Python 3.13 warns about an unclosed connection when it is collected."""
    file = tmp_path / "rubbish"
    file.write_bytes(b"\xa5" * 10_000)
    with pytest.raises(sqlite.Error) as caught:
        connect(file, read_only=read_only)
    assert "not a database" in str(caught.value)  # `caught` keeps the frames and their connection alive
    open_files = [os.readlink(link) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    assert str(file) not in open_files


def test_read_only_connection_sees_the_commits_of_a_writer(file: Path) -> None:
    apply_all(file, inserting({}))
    connection = connect(file, read_only=True)
    try:
        assert connection.execute("SELECT count(*) FROM changes").fetchone() == (1,)
        apply_all(file, inserting({}))
        assert connection.execute("SELECT count(*) FROM changes").fetchone() == (2,)
    finally:
        connection.close()
    assert rows(file, "PRAGMA journal_mode") == [("wal",)]


@pytest.mark.parametrize(
    "interest",
    [
        dict.fromkeys((f"c{n}" for n in range(1500)), 0),
        {query("a", {"n": {"gte": -n}}): n % 3 for n in range(1500)},
        {
            query(
                "a",
                {"n": {"nin": [f"{q}-{n}" for n in range(2000)]}, "m": {"nin": []}}
                | {f"f{n}": {"ne": q} for n in range(190)},
            ): 0
            for q in range(16)
        },
    ],
    ids=["collections", "queries", "values"],
)
def test_interest_may_be_larger_than_an_expression_of_sqlite(shared_file: Path, interest: Interest) -> None:
    with scratch(shared_file) as tx:
        insert(tx, {"n": 1}, "a")
        insert(tx, {"n": 1}, "c1")
        tx.flush()
        page = _read_page(tx.connection, DATABASE, 0, interest, page_text(CURSOR, interest), 10)
    expected = 0
    for topic, since in interest.items():
        assert topic is not None
        seq = {"a": 1, "c1": 2}.get(topic if isinstance(topic, str) else topic.collection, 0)
        expected += seq > since
    assert len(page.events) == expected


def test_page_for_many_queries_of_the_same_documents_is_bounded(shared_file: Path) -> None:
    interest: Interest = {query("a", {"n": {"gte": -n}}): 0 for n in range(20)}
    with scratch(shared_file) as tx:
        for n in range(100):
            insert(tx, {"n": n, "text": "x" * 5000}, "a")
        tx.flush()
        page = _read_page(tx.connection, DATABASE, 0, interest, page_text(CURSOR, interest), 100)
    assert sum(map(len, page.events)) < PAGE_BYTES + 20 * 6000
    assert not page.reached_end
    assert len(page.events) == 20 * page.position
