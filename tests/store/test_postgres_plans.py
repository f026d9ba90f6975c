"""How many rows PostgreSQL looks at for what the store asks: few, however many there are.

Rules: the server itself tells (auto_explain), of each statement that the store really sends. 6,000 documents
stand for millions: a statement that looks at all of them fails, and no clock decides.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest

from paperdb_trio.store.document_schema import parse_schema
from paperdb_trio.store.housekeeping import Trim, until_indexed
from paperdb_trio.store.operations import Batch, Delete, Draft, InsertBulk, Patch, SetSchema
from paperdb_trio.store.protocol import EventText
from tests.postgres import Postgres
from tests.store.test_conformance import find, put
from tests.store.test_conformance import postgres as opened
from tests.store.tools import DATABASE, MAX_BYTES, inserting

MOST = 400
"""Rows that a node of a plan may look at: pages have 50 documents, batches 100."""
TOLD = {
    "session_preload_libraries": "auto_explain",
    "auto_explain.log_min_duration": "0",
    "auto_explain.log_analyze": "on",
    "auto_explain.log_timing": "off",
    "auto_explain.log_format": "json",
    "auto_explain.log_nested_statements": "on",
}


def plans(log: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each statement with the root of its plan."""
    for text in re.findall(r"  plan:\n((?:\t.*\n)+)", log):
        told = json.loads(text.replace("\n\t", "\n"))
        yield told["Query Text"], told["Plan"]


def looked_at(node: dict[str, Any]) -> Iterator[tuple[int, str]]:
    rows = node["Actual Rows"] + sum(
        node.get(f"Rows Removed by {what}", 0) for what in ("Filter", "Index Recheck", "Join Filter")
    )
    yield rows * node["Actual Loops"], f"{node['Node Type']} {node.get('Relation Name', '')}"
    for inner in node.get("Plans", []):
        yield from looked_at(inner)


@pytest.mark.parametrize("analysed", [False, True])
async def test_each_statement_looks_at_few_rows(postgres_url: str, postgres: Postgres, analysed: bool) -> None:
    options = quote(" ".join(f"-c {name}={value}" for name, value in TOLD.items()))
    schema = parse_schema({"properties": {"e": {"type": "string", "unique": True}}, "indexes": [["a", "-b"]]})
    async with opened(f"{postgres_url}&options={options}") as (store, _):
        assert await until_indexed(store, SetSchema(DATABASE, "c", schema))
        for start in range(0, 6000, 100):  # those of one moment are sorted together
            drafts: list[Any] = [
                Draft.parse({"key": f"d{n}", "a": n % 100, "b": n, "e": f"e{n}"})
                for n in range(start, start + 100)
            ]
            assert await until_indexed(store, InsertBulk(DATABASE, "c", drafts, MAX_BYTES, 2**24, False))
        if analysed:
            with postgres.connect(postgres_url.partition("?")[0].rpartition("/")[2]) as connection:
                connection.execute("ANALYZE")
        before = len(postgres.log)
        await store.submit(inserting({"_id": "one", "a": 7, "b": 1, "e": "one"}))
        await store.submit(put("d17", a=8, b=2, e="other"))
        await store.submit(Patch(DATABASE, "c", "d18", {"a": {"increment": 1}}, None, MAX_BYTES))
        await store.submit(Delete(DATABASE, "c", "d19", None))
        many = [put(f"d{n}", a=1, b=n, e=f"f{n}") for n in range(100, 200)]
        await until_indexed(store, Batch(many, 2**24))
        await store.get(DATABASE, "c", "d20")
        for filter, sort in (
            *((None, None), (None, "-"), (None, "-createdAt"), ({"a": 7}, "-b"), ({"a": 7}, "b")),
            *(({"e": "e21"}, None), ({"a": {"in": [1, 2]}}, None), ({"a": 7, "b": {"gte": 5000}}, "b")),
        ):
            page = await find(store, filter, sort=sort, limit=50)
            assert page.documents
            if page.next is not None:
                assert (await find(store, filter, sort=sort, limit=50, after=page.next)).documents
        assert await store.count(DATABASE, "c", '{"e": "e22"}') == 1
        await store.collections(DATABASE)
        assert (await store.page(DATABASE, 3000, {"c": 0}, EventText.CURSOR, 100)).events
        await store.submit(Trim(DATABASE, 0, 6100))
    told = list(plans(postgres.log[before:]))
    assert len(told) > 40
    for text, root in told:
        for rows, node in looked_at(root):
            assert rows <= MOST, f"{node} looked at {rows} rows: {text}\n{json.dumps(root)[:6000]}"
