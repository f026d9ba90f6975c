"""Upgrades of files of older versions. `formats` holds a file of each format, and its export."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from paperdb_trio.errors import ApiError, StartupError
from paperdb_trio.store.housekeeping import IndexWork, KeepTime, finish_drops
from paperdb_trio.store.indexes import stored_indexes
from paperdb_trio.store.sqlite import migrations
from paperdb_trio.store.sqlite.check import check
from paperdb_trio.store.sqlite.file import connect, database_file, prepare, serving_lock
from paperdb_trio.store.sqlite.transfer import export
from tests.auth.commands import fails_here, run_here
from tests.conftest import fill
from tests.store.test_writer import ids, running
from tests.store.tools import apply_all, inserting, rows

FORMATS = sorted(path.name for path in (Path(__file__).parent / "formats").iterdir())


def copy_of(format: str, data: Path) -> Path:
    shutil.copytree(Path(__file__).parent / "formats" / format, data)
    return data


@pytest.fixture(params=FORMATS)
def old(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A data directory of an older version."""
    return copy_of(request.param, tmp_path / "data")


@pytest.fixture
def oldest(tmp_path: Path) -> Path:
    """One whose upgrade takes many steps."""
    return copy_of("m001", tmp_path / "data")


def exported(file: Path) -> list[bytes]:
    return list(export(file, (), ()))


def expected(data: Path) -> list[bytes]:
    return (data / "export.ndjson").read_bytes().splitlines()


def test_upgrade_keeps_documents_byte_for_byte(old: Path) -> None:
    file = prepare(old, create=False)
    assert exported(file) == expected(old)
    assert rows(file, "SELECT DISTINCT typeof(data) FROM documents") == [("blob",)]
    assert run_here("check", "--data", old).exit_code == 0
    assert len(rows(file, "SELECT 1 FROM _sqlite_migrations")) == len(migrations.MIGRATIONS)


def test_upgrade_rebuilds_indexes(old: Path) -> None:
    file = prepare(old, create=False)
    while apply_all(file, IndexWork(rows=7))[0]:
        pass
    texts = [text for (text,) in rows(file, "SELECT indexes FROM collections WHERE indexes IS NOT NULL")]
    indexes = [index for text in texts for index in stored_indexes(text).all]
    assert indexes
    assert all(index.built for index in indexes)
    assert check(file).faults == []


def test_upgrade_keeps_a_copy_of_the_old_file(old: Path) -> None:
    before = rows(database_file(old), "SELECT * FROM documents")
    file = prepare(old, create=False)
    (copy,) = old.glob("paperdb.sqlite.before-*")
    assert rows(copy, "SELECT * FROM documents") == before
    copy.unlink()
    assert prepare(old, create=False) == file
    assert not copy.exists()


def test_restored_old_backup_is_upgraded_without_a_copy(old: Path, tmp_path: Path) -> None:
    assert run_here("restore", database_file(old), "--data", tmp_path / "new").exit_code == 0
    assert exported(database_file(tmp_path / "new")) == expected(old)
    assert not list((tmp_path / "new").glob("*.before-*"))


def test_upgrade_keeps_unique_fields_unique(old: Path) -> None:
    file = prepare(old, create=False)
    for document, collection in (
        ({"email": "a@x"}, "people"),
        ({"name": "x", "unique": ["name"]}, "named"),
    ):
        with pytest.raises(ApiError) as refused:
            apply_all(file, inserting(document, collection))
        assert refused.value.status == 409


async def test_drop_begun_by_an_older_version_is_finished(old: Path) -> None:
    file = prepare(old, create=False)
    assert any(id.startswith("g") for id in ids(file))
    async with running(file) as (writer, _):
        await writer.submit(KeepTime(writer.clock))
        await finish_drops(writer)
    assert not any(id.startswith("g") for id in ids(file))


KILLED = """
import os, signal, sys
from pathlib import Path
from paperdb_trio.store.sqlite import file, migrations
migrations.STEP_ROWS = 7
connection = file.connect(Path(sys.argv[1]))
commits = []
def hook():
    commits.append(1)
    if len(commits) == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    return False
connection.set_commit_hook(hook)
migrations.migrate(connection, Path(sys.argv[1]))
"""


@pytest.mark.parametrize("commits", [1, 2, 3, 8])
def test_killed_upgrade_continues(oldest: Path, commits: int) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, database_file(oldest), str(commits)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert exported(prepare(oldest, create=False)) == expected(oldest)
    assert run_here("check", "--data", oldest).exit_code == 0


def test_file_in_use_by_an_older_server_is_not_upgraded(old: Path) -> None:
    with serving_lock(old):
        fails_here(run_here("keys", "list", "--data", old), 5, "served by another process")
        assert not list(old.glob("*.before-*"))


def test_upgrade_without_room_for_the_copy_changes_nothing(small_disk: Path) -> None:
    data = copy_of("m001", small_disk / "data")
    before = rows(database_file(data), "SELECT * FROM documents")
    filler = small_disk / "filler"
    fill(filler)
    os.truncate(filler, filler.stat().st_size - 200_000)
    with pytest.raises(StartupError, match="MB must be free"):
        prepare(data, create=True)
    assert rows(database_file(data), "SELECT * FROM documents") == before


def test_damaged_document_stops_the_upgrade(oldest: Path) -> None:
    with closing(connect(database_file(oldest))) as connection:
        connection.execute("DROP INDEX schema_unique_1_656d61696c")
        connection.execute("DROP INDEX schema_index_1_656d61696c")
        connection.execute("DROP INDEX schema_index_1_6e")
        connection.execute("UPDATE documents SET data='{' WHERE id='odd'")
    with pytest.raises(
        StartupError,
        match=r"damaged: malformed JSON. paperdb.sqlite.before-m002_jsonb is a copy from before the upgrade",
    ):
        prepare(oldest, create=False)
