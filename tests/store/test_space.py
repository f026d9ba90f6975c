"""Unused space is returned to the disk, and is not in backups."""

from __future__ import annotations

import os
import shutil
from contextlib import closing
from pathlib import Path

import pytest

from paperdb_trio.store.housekeeping import DropSome, Trim
from paperdb_trio.store.sqlite.check import check
from paperdb_trio.store.sqlite.file import connect, database_file, prepare, serving_lock
from paperdb_trio.store.sqlite.space import FreePages
from tests.auth.commands import fails_here, run_here
from tests.conftest import StartServer, fill, wait_until
from tests.store.tools import DATABASE, apply_all, inserting, new_file, rows

MEBI = 2**20


@pytest.fixture(scope="module")
def emptied_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that was filled with documents and changes, and then lost almost all of them."""
    file = new_file(tmp_path_factory.mktemp("emptied"))
    for _ in range(40):
        apply_all(file, *(inserting({"pad": "x" * 5000}) for _ in range(50)))
    done, until = False, None
    while not done:
        ((_, until, done),) = apply_all(file, DropSome(DATABASE, "c", until))
    removed = 1
    while removed:
        ((_, removed),) = apply_all(file, Trim(DATABASE, 1e18, 0))
    apply_all(file, inserting({"left": True}))
    with closing(connect(file)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return file


@pytest.fixture
def emptied(emptied_once: Path, tmp_path: Path) -> Path:
    (tmp_path / "emptied").mkdir()
    return Path(shutil.copy(emptied_once, tmp_path / "emptied"))


def test_emptied_file_shrinks_in_steps(emptied: Path) -> None:
    file = emptied
    assert file.stat().st_size > 15 * MEBI
    steps = 0
    while apply_all(file, FreePages())[0]:
        steps += 1
    with closing(connect(file)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert steps > 10
    assert file.stat().st_size < 6 * MEBI
    assert check(file).faults == []


def test_server_returns_space_to_the_disk(start_server: StartServer) -> None:
    server = start_server("--retention-count", "0", "--max-wal-bytes", str(MEBI))
    file = server.data / "paperdb.sqlite"
    for _ in range(20):
        body = [{"pad": "x" * 10_000} for _ in range(100)]
        assert server.request("POST", "/c/bulk", json=body).status_code == 200
    assert file.stat().st_size > 15 * MEBI
    assert server.request("DELETE", "/c?confirm=c").status_code == 200

    def is_short() -> bool:
        server.insert("other", {})
        return file.stat().st_size < 8 * MEBI

    wait_until(is_short, 60)


def test_compact_rewrites_the_file(emptied: Path) -> None:
    file = emptied
    before = rows(file, "SELECT * FROM documents")
    done = run_here("compact", "--data", file.parent)
    assert done.exit_code == 0
    assert file.stat().st_size < MEBI
    assert f"{file.stat().st_size:,} after" in done.stdout
    assert rows(file, "SELECT action FROM audit ORDER BY id")[-1] == ("store.compact",)
    assert rows(file, "SELECT * FROM documents") == before
    assert check(file).faults == []


def test_compacted_old_file_can_return_space(tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(Path(__file__).parent / "formats" / "m001", data)
    prepare(data, create=False)
    assert rows(database_file(data), "PRAGMA auto_vacuum") == [(0,)]
    assert apply_all(database_file(data), FreePages()) == [False]
    assert run_here("compact", "--data", data).exit_code == 0
    assert rows(database_file(data), "PRAGMA auto_vacuum") == [(2,)]
    assert check(database_file(data)).faults == []


def test_compact_refuses_a_file_in_use(file: Path) -> None:
    with serving_lock(file.parent):
        fails_here(run_here("compact", "--data", file.parent), 5, "served by another process")


def test_compact_without_room_for_a_second_file_changes_nothing(small_disk: Path) -> None:
    file = prepare(small_disk, create=True)
    apply_all_into(file)
    filler = small_disk / "filler"
    fill(filler)
    os.truncate(filler, max(filler.stat().st_size - 300_000, 0))
    before = rows(file, "SELECT * FROM documents")
    fails_here(run_here("compact", "--data", small_disk), 6, "full")
    assert rows(file, "SELECT * FROM documents") == before
    assert check(file).faults == []


def apply_all_into(file: Path) -> None:
    with closing(connect(file)) as connection:
        connection.execute("INSERT INTO databases (name, plan, created_at) VALUES ('default', 'team', '')")
    for _ in range(10):
        apply_all(file, *(inserting({"pad": "x" * 5000}) for _ in range(20)))


def test_backup_contains_no_unused_space(emptied: Path, tmp_path: Path) -> None:
    file = emptied
    assert run_here("backup", tmp_path / "copy.db", "--data", file.parent).exit_code == 0
    assert (tmp_path / "copy.db").stat().st_size < MEBI
    assert run_here("restore", tmp_path / "copy.db", "--data", tmp_path / "new").exit_code == 0
    assert rows(database_file(tmp_path / "new"), "PRAGMA auto_vacuum") == [(2,)]


@pytest.mark.parametrize("pages", [1, 1000])
def test_step_frees_at_most_its_pages(emptied: Path, pages: int) -> None:
    file = emptied
    ((free,),) = rows(file, "PRAGMA freelist_count")
    assert apply_all(file, FreePages(pages)) == [True]
    assert rows(file, "PRAGMA freelist_count") == [(max(free - pages, 1024),)]
