"""Every command against a PostgreSQL database: it works, or it says why not."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from paperdb_trio.cli import main
from paperdb_trio.store.document_schema import parse_schema
from paperdb_trio.store.housekeeping import IndexWork, Trim
from paperdb_trio.store.operations import Delete, Draft, InsertBulk, Operation, Patch, SetSchema
from paperdb_trio.store.postgres.prepare import prepare
from paperdb_trio.store.protocol import EventText
from paperdb_trio.store.rowkeys import JUMP
from tests.auth.commands import Done, fails_here, run_here
from tests.postgres import Postgres
from tests.store.test_nodes import node, until
from tests.store.tools import DATABASE, MAX_BYTES, inserting, new_database, rows

SCHEMA = {"properties": {"n": {"type": "number", "unique": True}}, "indexes": [["n", "-t"]]}
LONG = "x" * 3000
"""Longer than a key may be in PostgreSQL."""


async def apply_all(url: str, operations: list[Operation[Any]]) -> None:
    """Through a node."""
    async with node(url) as (store, _):
        for operation in operations:
            await store.submit(operation)
        while await store.submit(IndexWork()):
            pass


@pytest.fixture(scope="module")
def filled(postgres: Postgres, template: str) -> str:
    """Ten documents, of which some were changed or deleted. The first three changes are trimmed."""
    operations: list[Operation[Any]] = [
        SetSchema(DATABASE, "c", parse_schema(SCHEMA)),
        *(inserting({"_id": str(n), "n": n, "t": LONG}) for n in range(10)),
        Patch(DATABASE, "c", "1", {"n": 100}, None, MAX_BYTES),
        Delete(DATABASE, "c", "2", None),
        Trim(DATABASE, 0, 9),
    ]
    name = postgres.new(template)
    trio.run(apply_all, postgres.url(name), operations)
    return name


@pytest.fixture
def url(postgres: Postgres, filled: str) -> Iterator[str]:
    """A copy of it."""
    with postgres.copied(filled) as url:
        yield url


@pytest.fixture
def other(postgres: Postgres) -> Iterator[str]:
    """A database without tables."""
    name = postgres.new()
    yield postgres.url(name)
    postgres.drop(name)


def lines(done: Done) -> list[dict[str, Any]]:
    assert (done.exit_code, done.stderr) == (0, ""), done
    return [json.loads(text) for text in done.stdout.split("\n") if text]


def is_sound(*place: str | Path) -> bool:
    return run_here("check", *place).stdout.endswith("All is well.\n")


# --- all of them ---------------------------------------------------------------------------------

WITHOUT = {
    "config": "prints settings only",
    "connections": "asks a running server",
    "copy": "takes stores as --from and --to",
    "listen": "asks a running server",
    "types": "asks a running server",
}


def test_every_command_takes_a_store_or_needs_none(url: str, tmp_path: Path) -> None:
    assert WITHOUT.keys() < main.commands.keys()
    tried = {
        "audit": (0, "database"),
        "backup": (0, "Backed up the PostgreSQL database to "),
        "check": (0, "All is well."),
        "compact": (2, "PostgreSQL frees space itself (autovacuum)"),
        "databases list": (0, "default"),
        "export": (0, '"document"'),
        "import": (0, "0 documents inserted"),
        "keys list": (0, "key-id"),
        "restore": (1, "There is no backup"),
        "webhooks list": (0, ""),
    }
    missing = main.commands.keys() - WITHOUT.keys() - {name.partition(" ")[0] for name in tried}
    assert missing == {"serve"}  # all other tests do that
    files = {"backup": [tmp_path / "made"], "restore": [tmp_path / "none"]}
    for name, (code, said) in tried.items():
        done = run_here(*name.split(), *files.get(name, []), "--store", url, input=b"")
        assert done.exit_code == code, done
        assert said in done.stdout + done.stderr
        without = run_here(*name.split(), *files.get(name, []), env={"PAPERDB_STORE": "postgresql://x:1/y"})
        assert without.exit_code == {"compact": 2, "backup": 9, "restore": 1}.get(name, 69), without


# --- export and import -----------------------------------------------------------------------------


def test_import_restores_an_export_exactly(url: str, other: str, data: Path, tmp_path: Path) -> None:
    before = lines(run_here("export", "--store", url))
    assert [line.get("document", {}).get("n") for line in before] == [0, 100, *range(3, 10), None]
    assert before[-1] == {"database": "default", "collection": "c", "schema": SCHEMA}
    new_database(other)
    out = tmp_path / "out"
    assert run_here("export", "--output", out, "--store", url).exit_code == 0
    for place in (("--store", other), ("--data", data)):
        done = run_here("import", out, *place)
        assert done.stdout.startswith("9 documents inserted, 0 replaced, 0 unchanged, 1 schemas"), done
        assert lines(run_here("export", *place)) == before
        done = run_here("import", out, *place)
        assert done.stdout.startswith("0 documents inserted, 0 replaced, 9 unchanged, 1 schemas"), done
        assert is_sound(*place)
    assert lines(run_here("export", "--store", url, "--collection", "c", "--database", "default")) == before
    fails_here(run_here("export", "--store", url, "--collection", "x"), 1, "There is no collection 'x'")


async def test_nodes_tell_of_an_import(url: str) -> None:
    async with node(url) as (store, changes):
        text = b"".join(
            b'{"collection":"%b","document":{"_id":"%d","n":%d}}\n' % (collection, n, n)
            for n in range(300)
            for collection in (b"c", b"d")
        )
        done = await trio.to_thread.run_sync(lambda: run_here("import", "--store", url, input=text))
        assert done.exit_code == 10
        # 0 to 9 are there but for 2, and not the same; n is unique, and 1 has 100.
        assert done.stdout.startswith("590 documents inserted, 0 replaced, 0 unchanged"), done
        assert "line 1: Another document with the id '0' exists in 'c'" in done.stdout
        assert "line 201: " in done.stdout
        await until(lambda: len(changes) == 590)
        assert [change.seq for change in changes] == list(range(13, 603))
        done = await trio.to_thread.run_sync(
            lambda: run_here("import", "--replace", "--store", url, input=text)
        )
        assert done.stdout.startswith("1 documents inserted, 9 replaced, 590 unchanged"), done
        assert await store.count(DATABASE, "c", None) == 300


# --- backup and restore ----------------------------------------------------------------------------


async def test_a_backup_is_one_moment_while_nodes_write(url: str, tmp_path: Path) -> None:
    """A writer inserts 0, 1, 2, … without pause. Each backup has all documents up to some number."""
    async with node(url) as (store, changes), trio.open_nursery() as nursery:

        async def write() -> None:
            n = 0
            while True:
                await store.submit(inserting({"n": n}, "d"))
                n += 1

        nursery.start_soon(write)
        for number in range(3):
            before = len(changes)
            while len(changes) <= before + 20:
                await trio.sleep(0.01)
            file = tmp_path / str(number) / "paperdb.sqlite"
            file.parent.mkdir()
            done = await trio.to_thread.run_sync(run_here, "backup", file, "--store", url)
            assert done.exit_code == 0, done
            assert re.fullmatch(r"Backed up the PostgreSQL database to \S+ \([\d,]+ bytes\)\.\n", done.stdout)
            assert is_sound("--data", file.parent)
            found = [
                n
                for (n,) in rows(file, "SELECT data->>'n' FROM documents WHERE collection_id=2 ORDER BY rowkey")
            ]
            assert found == list(range(len(found)))
            assert len(found) > before
        nursery.cancel_scope.cancel()
    fails_here(run_here("backup", file, "--store", url), 9, "already exists")
    assert list(tmp_path.rglob(".*")) == []


async def test_a_backup_is_restored_into_a_new_database_or_a_directory(
    url: str, other: str, tmp_path: Path
) -> None:
    file, directory = tmp_path / "file", tmp_path / "directory"
    assert run_here("backup", file, "--store", url).exit_code == 0
    documents = lines(run_here("export", "--store", url))
    done = run_here("restore", file, "--store", other)
    assert done.stdout == f"Restored the PostgreSQL database from {file}.\n", done
    assert run_here("restore", file, "--data", directory).exit_code == 0
    for place in (("--store", other), ("--data", directory)):
        assert lines(run_here("export", *place)) == documents
        assert is_sound(*place)
        (entry,) = json.loads(run_here("audit", "--limit", "1", "--json", *place).stdout)
        assert (entry["action"], entry["target"]) == ("store.restore", str(file))
    async with node(other) as (store, _):
        ((head, trimmed),) = store.bounds().values()
        assert head == trimmed > JUMP
        for cursor in (5, 12, 1000):  # of the lost history
            page = await store.page(DATABASE, cursor, {None: 0}, EventText.CURSOR)
            assert (page.expired, page.trimmed) == (True, head)
        assert (await store.submit(inserting({"n": 2}))).seq == head + 1
    fails_here(run_here("restore", file, "--store", url), 1, "The target is not empty")
    fails_here(run_here("restore", tmp_path / "x", "--store", other), 1, "There is no backup")


def test_a_store_that_cannot_be_used_is_refused(other: str, tmp_path: Path) -> None:
    for command in (["check"], ["export"], ["import"], ["backup", tmp_path / "file"]):
        done = run_here(*command, "--store", other, input=b"")
        fails_here(done, 1, "There is no PaperDB in this PostgreSQL database")
    assert list(tmp_path.iterdir()) == []
    prepare(other, create=True).close()
    fails_here(run_here("backup", tmp_path / "file", "--store", other), 1, "The source is empty")


# --- check -----------------------------------------------------------------------------------------


def test_check_summarizes_sound_tables(url: str) -> None:
    done = run_here("check", "--store", url)
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout == "default: 9 documents, 9 changes in the log, seq 12\nAll is well.\n"


async def test_check_works_while_nodes_write(url: str) -> None:
    async with node(url) as (store, _), trio.open_nursery() as nursery:

        async def write() -> None:
            for n in range(1_000_000):
                drafts = [Draft.parse({"_id": f"d{n % 50}-{of}", "n": n * 10 + of + 1000}) for of in range(5)]
                await store.submit(InsertBulk(DATABASE, "c", [*drafts], MAX_BYTES, MAX_BYTES, atomic=False))
                await store.submit(Patch(DATABASE, "c", "1", {"n": -1 - n}, None, MAX_BYTES))

        nursery.start_soon(write)
        for _ in range(3):
            done = await trio.to_thread.run_sync(run_here, "check", "--store", url)
            assert "All is well" in done.stdout, done
        nursery.cancel_scope.cancel()


NINE = (1 << 40) + 10
"""The row key of the document 9."""


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        ("UPDATE counts SET documents=8", "default/c: 9 documents, counted as 8"),
        ("DELETE FROM documents WHERE id='9'", "default/c: 8 documents, counted as 9"),
        ("UPDATE documents SET data='{}' WHERE id='9'", "default/c/9: is not its document's JSON"),
        ("UPDATE documents SET seq=99 WHERE id='9'", "default/c/9: is at seq 99, beyond 12"),
        ("UPDATE counts SET newest='2001'", "9 documents are not in order of createdAt"),
        (f"DELETE FROM entries WHERE rowkey={NINE}", "default/c: index n lacks 1 of 9 documents"),
        (
            f"UPDATE entries SET rowkey=77 WHERE rowkey={NINE}",
            "default/c: index n, -t has 1 entries without a document",
        ),
        (f"UPDATE entries SET index_id=77 WHERE rowkey={NINE} AND index_id=1", "1 entries without an index"),
        (
            "UPDATE collections SET indexes=replace(indexes, '\"built\":true', '\"built\":false')",
            "default/c: index n is not being built",
        ),
        ("DELETE FROM changes WHERE seq=9", "default: the log of 4 to 12 lacks 1 changes"),
        ("UPDATE heads SET trimmed=5", "default: the log of 6 to 12 has 2 changes outside this range"),
        ("UPDATE changes SET data='{}' WHERE seq=10", "default/c/9: differs from its change 10"),
        ("UPDATE changes SET size=size+1 WHERE seq=12", "default: change 12 is malformed"),
        ("UPDATE changes SET type='x' WHERE seq=12", "default: change 12 is malformed"),
        ("UPDATE changes SET before='{', size=size+1 WHERE seq=10", "default: a change is malformed: invalid"),
        ("UPDATE changes SET database_id=7 WHERE seq=12", "1 changes without a database"),
        ("UPDATE documents SET collection_id=77 WHERE id='9'", "1 documents without a collection"),
        (
            "UPDATE documents SET rowkey=rowkey+(5::bigint<<40) WHERE id='9'",
            "1 documents at another collection's rowkey",
        ),
        ("UPDATE keys SET database_id=77", "1 keys without a database"),
        ("UPDATE collections SET database_id=77", "1 collections without a database"),
        ("DELETE FROM counts", "1 collections without a count"),
        ("UPDATE heads SET database_id=77", "1 databases without a head"),
    ],
)
def test_check_names_the_damage(url: str, damage: str, fault: str) -> None:
    session = prepare(url)
    session.query(damage)
    session.close()
    done = run_here("check", "--store", url)
    assert done.exit_code == 3, done
    assert fault in done.stdout
    assert "All is well" not in done.stdout
    assert re.fullmatch(r"paperdb: [^\n]+ is damaged: \d faults?, listed above\n", done.stderr)
