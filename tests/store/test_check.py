"""`paperdb check` finds and names every kind of damage, and never calls a sound file damaged."""

from __future__ import annotations

import re
from contextlib import closing
from pathlib import Path

import pytest

from paperdb_trio.store.document_schema import parse_schema
from paperdb_trio.store.housekeeping import Trim
from paperdb_trio.store.operations import Delete, Patch, SetSchema
from paperdb_trio.store.sqlite.file import connect
from tests.auth.commands import fails_here, run_here
from tests.conftest import Server
from tests.realtime.raw import Writers
from tests.store.tools import DATABASE, MAX_BYTES, apply_all, inserting, new_file


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Ten documents, of which some were changed or deleted. The first three changes are trimmed."""
    file = new_file(tmp_path)
    schema = parse_schema({"properties": {"n": {"type": "number", "unique": True}}})
    apply_all(file, SetSchema(DATABASE, "c", schema), *(inserting({"_id": str(n), "n": n}) for n in range(10)))
    apply_all(file, Patch(DATABASE, "c", "1", {"n": 100}, None, MAX_BYTES), Delete(DATABASE, "c", "2", None))
    apply_all(file, Trim(DATABASE, 0, 9))
    return tmp_path


def test_check_summarizes_a_sound_directory(data: Path) -> None:
    done = run_here("check", "--data", data)
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout == "default: 9 documents, 9 changes in the log, seq 12\nAll is well.\n"


def test_check_works_while_writes_go_on(server: Server, collection: str) -> None:
    with Writers(server, collection) as writers:
        for _ in range(3):
            assert "All is well" in server.cli("check")
    assert writers.acknowledged
    assert not writers.failures


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        ("UPDATE collections SET documents=8", "default/c: 9 documents, counted as 8"),
        ("DELETE FROM documents WHERE id='9'", "default/c: 8 documents, counted as 9"),
        ("UPDATE documents SET data=x'ff' WHERE id='9'", "default/c/9: is not its document's JSON"),
        ("UPDATE documents SET data=json(data) WHERE id='9'", "default/c/9: is not its document's JSON"),
        ("UPDATE collections SET newest='2001'", "9 documents are not in order of createdAt"),
        ("DELETE FROM entries WHERE rowkey=(1<<40)+10", "default/c: index n lacks 1 of 9 documents"),
        (
            "UPDATE entries SET rowkey=77 WHERE rowkey=(1<<40)+10",
            "default/c: index n has 1 entries without a document",
        ),
        ("UPDATE entries SET index_id=77 WHERE rowkey=(1<<40)+10", "1 entries without an index"),
        (
            "DELETE FROM index_builds; UPDATE collections SET indexes=replace(indexes,',\"built\":true','')",
            "is not being built",
        ),
        ("UPDATE documents SET id='nine' WHERE id='9'", "default/c/nine: is not its document's JSON"),
        ("UPDATE documents SET seq=99 WHERE id='0'", "default/c/0: is at seq 99, beyond 12"),
        (
            "UPDATE documents SET data=jsonb_set(data,'$.n',5.5) WHERE id='9'",
            "default/c/9: differs from its change 10",
        ),
        ("UPDATE databases SET head=11", "the log of 4 to 11 has 1 changes outside"),
        ("UPDATE databases SET head=14", "the log of 4 to 14 lacks 2 changes"),
        ("UPDATE databases SET trimmed=5", "the log of 6 to 12 has 2 changes outside"),
        ("DELETE FROM changes WHERE rowkey=(1<<40)+8", "the log of 4 to 12 lacks 1 changes"),
        ("UPDATE changes SET data='x' WHERE rowkey=(1<<40)+12", "default: change 12 is malformed"),
        ("UPDATE changes SET type='upsert' WHERE rowkey=(1<<40)+12", "default: change 12 is malformed"),
        ("UPDATE changes SET size=size+1 WHERE rowkey=(1<<40)+12", "default: change 12 is malformed"),
        ("UPDATE changes SET rowkey=rowkey+(7<<40) WHERE rowkey=(1<<40)+12", "1 changes without a database"),
        ("UPDATE documents SET collection_id=77 WHERE id='9'", "1 documents without a collection"),
        ("UPDATE keys SET database_id=77", "1 keys without a database"),
        ("UPDATE collections SET database_id=77", "1 collections without a database"),
    ],
)
def test_check_names_the_damage(data: Path, damage: str, fault: str) -> None:
    with closing(connect(data / "paperdb.sqlite")) as connection:
        connection.execute(damage)
    done = run_here("check", "--data", data)
    assert done.exit_code == 3
    assert fault in done.stdout
    assert "All is well" not in done.stdout
    assert re.fullmatch(r"paperdb: [^\n]+ is damaged: \d faults?, listed above\n", done.stderr)


@pytest.mark.smoke
@pytest.mark.executable
def test_check_finds_an_index_that_lacks_a_row(data: Path) -> None:
    """SQLite 3.40 finds this only in its full check, 3.46 also in the quick check at a start."""
    with closing(connect(data / "paperdb.sqlite")) as connection:
        (sql,) = connection.execute("SELECT sql FROM sqlite_master WHERE name='documents_id'").fetchone()
        connection.execute("PRAGMA writable_schema=ON")
        connection.execute(
            "UPDATE sqlite_master SET sql=? WHERE name='documents_id'", (f"{sql} WHERE id<>'9'",)
        )
    with closing(connect(data / "paperdb.sqlite")) as connection:
        connection.execute("REINDEX documents_id")
        connection.execute("PRAGMA writable_schema=ON")
        connection.execute("UPDATE sqlite_master SET sql=? WHERE name='documents_id'", (sql,))
    done = run_here("check", "--data", data)
    assert (done.exit_code, "documents_id" in done.stdout) == (3, True)


@pytest.mark.executable
def test_check_lists_every_fault_that_stops_a_start(data: Path) -> None:
    """A start stops at the first fault, but `check` goes on."""
    with closing(connect(data / "paperdb.sqlite")) as connection:
        (sql,) = connection.execute("SELECT sql FROM sqlite_master WHERE name='keys'").fetchone()
        connection.execute("PRAGMA writable_schema=ON")
        changed = "UPDATE sqlite_master SET sql=? WHERE name='keys'"
        connection.execute(changed, (sql.replace("label TEXT NOT NULL", "label TEXT"),))
    with closing(connect(data / "paperdb.sqlite")) as connection:
        connection.execute(
            "INSERT INTO keys SELECT 'b', database_id, kind, label, x'00', created_at, NULL, NULL, NULL "
            "FROM keys"
        )
        connection.execute("UPDATE keys SET label=NULL")
        connection.execute("PRAGMA writable_schema=ON")
        connection.execute(changed, (sql,))
    fails_here(run_here("keys", "list", "--data", data), 3, "NULL value in keys.label")
    done = run_here("check", "--data", data)
    assert (done.exit_code, done.stdout.count("damaged: NULL value in keys.label")) == (3, 2)


def test_check_of_a_file_that_is_not_a_database_is_one_line(data: Path) -> None:
    (data / "paperdb.sqlite").write_bytes(b"\xa5" * 10_000)
    fails_here(run_here("check", "--data", data), 3, "damaged")
