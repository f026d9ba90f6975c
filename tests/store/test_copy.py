"""`paperdb copy`: from a data directory to PostgreSQL and back, nothing is lost, and cursors stay good."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from paperdb_trio.config import Settings
from paperdb_trio.errors import ApiError
from paperdb_trio.store.copying import META, TABLES, columns
from paperdb_trio.store.document_schema import parse_schema
from paperdb_trio.store.housekeeping import IndexWork, KeepTime, Trim
from paperdb_trio.store.operations import Batch, Delete, Patch, Replace, SetSchema
from paperdb_trio.store.postgres.prepare import prepare
from paperdb_trio.store.protocol import EventText
from paperdb_trio.store.requests import Kept, Once, RequestKey
from paperdb_trio.store.revocations import Revocation
from paperdb_trio.store.sqlite.clock import continued
from paperdb_trio.store.webhook_changes import AddWebhook, KeepProgress
from paperdb_trio.store.webhooks import Progress
from tests.auth.commands import fails_here, run_here
from tests.postgres import Postgres
from tests.store.test_nodes import node
from tests.store.tools import DATABASE, MAX_BYTES, apply_all, committed, inserting, new_file, rows

LONG = "x" * 3000
"""Longer than a key may be in PostgreSQL."""


def table(file: Path, name: str) -> list[object]:
    selected = ["json(data)" if (name, c) == ("documents", "data") else c for c, _ in columns(name)]
    source = META if name == "meta" else name
    return rows(file, f"SELECT {','.join(selected)} FROM {source} ORDER BY 1")


def once(digest: bytes = b"digest") -> Once[object]:
    return Once(RequestKey(DATABASE, "key", "k", digest), inserting({"n": 1}), lambda _: Kept(201, {}, b"{}"))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    directory = tmp_path / "source"
    directory.mkdir()
    file = new_file(directory)
    schema = parse_schema({"properties": {"e": {"unique": True}}, "indexes": [["n", "-e"]]})
    with committed(file) as tx:
        KeepTime(continued(tx.connection)).apply(tx)
    apply_all(
        file,
        *(inserting({"_id": f"d{n}", "n": n, "é": [1.5, None, True]}) for n in range(2500)),
        SetSchema(DATABASE, "c", schema),
    )
    while not apply_all(file, IndexWork(), SetSchema(DATABASE, "c", schema))[1]:
        pass
    apply_all(file, *(inserting({"n": n}, "half") for n in range(1000)))
    apply_all(
        file,
        Replace(DATABASE, "c", "long", {"e": LONG}, None, MAX_BYTES),
        Patch(DATABASE, "c", "d0", {"n": {"increment": 7}}, None, MAX_BYTES),
        Delete(DATABASE, "c", "d1", None),
        Batch([inserting({"_id": f"b{n}"}, "other") for n in range(3)], MAX_BYTES),
        SetSchema(DATABASE, "half", parse_schema({"properties": {"n": {"index": True}}})),
        once(),
        Revocation(DATABASE, "jti", "j", 5, 4 * 10**12),
        AddWebhook("me", "default", "w1", "http://x", "c", {"n": 1}, "whsec_x"),
        KeepProgress("w1", 0, Progress(3, 4, 5, "é", 6, 7, 8)),
        Trim(DATABASE, 0, 1000),
    )
    return directory


async def test_to_postgresql_and_back(source: Path, tmp_path: Path, postgres: Postgres) -> None:
    url, back = postgres.url(postgres.new()), tmp_path / "back"
    done = run_here("copy", "--from", source, "--to", url)
    assert done.stdout.startswith("Copied 1 databases with 3,504 documents and "), done
    old = source / "paperdb.sqlite"
    done = run_here("copy", "--from", url, "--to", back)
    assert done.exit_code == 0, done
    new = back / "paperdb.sqlite"
    for name in TABLES.keys() - {"audit"}:
        assert table(new, name) == table(old, name)
    record = table(old, "audit")
    assert table(new, "audit")[: len(record)] == record
    assert rows(new, "SELECT action, target FROM audit ORDER BY id")[len(record) :] == [
        ("store.copy", str(source)),
        ("store.copy", url.replace("postgres@", "").partition("?")[0]),
    ]
    entries = "SELECT * FROM entries WHERE index_id NOT IN (SELECT id FROM index_builds)"
    assert rows(new, entries) == rows(old, entries)
    assert "All is well" in run_here("check", "--data", back).stdout
    ((head, trimmed),) = rows(old, "SELECT head, trimmed FROM databases")
    async with node(url) as (store, changes):
        assert store.bounds() == {DATABASE: (head, trimmed)}
        page = await store.page(DATABASE, head - 5, {None: 0}, EventText.CURSOR)
        assert [json.loads(event)["seq"] for event in page.events] == list(range(head - 4, head + 1))
        found = await store.find(
            DATABASE,
            "c",
            filter='{"n": 7}',
            sort=None,
            limit=9,
            offset=0,
            select=None,
            count=True,
            explain=True,
        )
        assert found.total == 2
        directory = await store.directory(0, 0)
        assert directory is not None
        assert [key.id for key in directory.keys] == ["key-id"]
        assert [revoked.name for revoked in directory.revocations] == ["j"]
        assert (await store.submit(inserting({"n": 1}, "other"))).seq == head + 1 == changes[0].seq
        with pytest.raises(ApiError, match="e"):
            await store.submit(inserting({"e": LONG}))
        assert await store.submit(once()) == Kept(201, {}, b"{}", again=True)


def test_a_target_that_is_not_empty_or_a_source_that_is(
    source: Path, tmp_path: Path, postgres: Postgres
) -> None:
    empty = postgres.url(postgres.new())
    prepare(empty, create=True).close()
    fails_here(run_here("copy", "--from", empty, "--to", tmp_path / "x"), 1, "The source is empty")
    fails_here(run_here("copy", "--from", source, "--to", source), 1, "The target is not empty")
    fails_here(run_here("copy", "--from", tmp_path / "none", "--to", empty), 1, "There is no PaperDB")
    assert Settings().store == ""
