"""What SQLite sorts: never texts, and no more than fits into the cache."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from paperdb_trio.store.document_schema import parse_schema
from paperdb_trio.store.query import ask
from paperdb_trio.store.rowkeys import span
from paperdb_trio.store.sqlite.file import connect
from paperdb_trio.store.sqlite.find import find, shelf
from tests.store.tools import DATABASE, insert, scratch


def peak() -> int:
    """The most bytes of this process that were resident since the last call."""
    text = Path("/proc/self/status").read_text()
    Path("/proc/self/clear_refs").write_text("5")
    return int(text.partition("VmHWM:")[2].split()[0]) * 1024


def test_large_sort_takes_no_more_memory_than_the_cache(file: Path) -> None:
    low, _ = span(1)
    writer = connect(file)
    writer.execute("BEGIN")
    rows = ((low | n, 1, str(n), n, json.dumps({"n": -n, "pad": "x" * 5000})) for n in range(12_000))
    writer.executemany("INSERT INTO documents VALUES (?,?,?,?,?)", rows)
    writer.execute("COMMIT")
    writer.close()
    reader = connect(file, read_only=True)
    try:
        peak()
        before = peak()
        # With this offset, SQLite must sort all rows.
        reader.execute(
            "SELECT data FROM documents ORDER BY json_extract(data,'$.n'), data LIMIT 1 OFFSET ?", (2**53,)
        ).fetchall()
        assert peak() - before < 50 * 2**20  # sorting in memory: 120
    finally:
        reader.close()


@pytest.mark.parametrize(
    ("filter", "sort"),
    [("{}", ""), ("{}", "-"), ('{"a": 1}', ""), ('{"a": {"gte": 0}}', "a"), ('{"a": 1}', "-b"), ("{}", "c")],
)
def test_texts_are_not_sorted(shared_file: Path, filter: str, sort: str) -> None:
    """Whether a page is read by one statement or by two: the one that reads the texts sorts nothing."""
    plans: list[str] = []

    def explain(_: Any, statement: str, bindings: Any) -> bool:
        if "json(data)" in statement:
            plans.append(str(explaining.execute(f"EXPLAIN QUERY PLAN {statement}", bindings).fetchall()))
        return True

    with scratch(shared_file) as tx:
        schema = parse_schema({"properties": {}, "indexes": [["a"], ["a", "-b"]]})
        tx.set_schema(DATABASE, "c", schema, first=True)
        for n in range(20):
            insert(tx, {"a": n % 2, "b": n, "c": -n})
        tx.flush()
        of = shelf(tx.connection, DATABASE, "c")
        assert of is not None
        explaining = connect(shared_file, read_only=True)
        tx.connection.exec_trace = explain
        assert len(find(tx.connection, ask(filter, sort), of, None, 5, 0).documents) == 5
        tx.connection.exec_trace = None
        explaining.close()
    assert len(plans) == 1
    assert "TEMP B-TREE" not in plans[0]
