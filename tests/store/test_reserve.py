"""The reserve on a real disk of 16 MiB."""

from __future__ import annotations

import os
from pathlib import Path

from paperdb_trio.store.sqlite import library as sqlite
from paperdb_trio.store.sqlite.reserve import MARGIN, NAME, PORTION, Reserve, is_full, make_room
from tests.conftest import fill

SIZE = 4 * 2**20


def reserve(disk: Path) -> Reserve:
    made = Reserve(disk / "paperdb.sqlite", SIZE)
    made.open()
    return made


def free(disk: Path) -> int:
    room = os.statvfs(disk)
    return room.f_bfree * room.f_frsize


def test_it_holds_real_blocks(small_disk: Path) -> None:
    before = free(small_disk)
    assert not reserve(small_disk).spent
    assert before - free(small_disk) >= SIZE
    copy = (small_disk / NAME).open("r+b")
    with copy:  # as a copy of the directory may be: the right length, but no blocks
        copy.truncate(0)
        copy.truncate(SIZE)
    reserve(small_disk)
    assert before - free(small_disk) >= SIZE


def test_a_write_that_frees_gets_portions_until_none_is_left(small_disk: Path) -> None:
    it = reserve(small_disk)
    fill(small_disk / "filler")
    it.touch()
    assert it.spent
    assert free(small_disk) < PORTION // 4
    for _ in range(SIZE // PORTION):
        assert it.spend()
        assert free(small_disk) > PORTION // 2
        fill(small_disk / f"filler{free(small_disk)}")
    assert not it.spend()


def test_it_is_whole_again_only_with_a_margin(small_disk: Path) -> None:
    it = reserve(small_disk)
    fill(small_disk / "filler")
    it.touch()
    os.truncate(small_disk / "filler", (small_disk / "filler").stat().st_size - MARGIN // 2)
    assert not it.restore()
    assert free(small_disk) >= MARGIN // 2  # a failed attempt keeps nothing
    os.truncate(small_disk / "filler", (small_disk / "filler").stat().st_size - MARGIN)
    assert it.restore()
    assert not it.spent
    assert (small_disk / NAME).stat().st_size == SIZE


def test_a_short_file_says_at_the_next_start_that_the_disk_is_full(small_disk: Path) -> None:
    reserve(small_disk).touch()
    assert not reserve(small_disk).spent  # there is room: whole again
    reserve(small_disk).touch()
    fill(small_disk / "filler")
    assert reserve(small_disk).spent


def test_without_room_there_is_none_until_there_is(small_disk: Path) -> None:
    fill(small_disk / "filler")
    it = reserve(small_disk)
    it.touch()
    assert not it.spent
    assert not it.spend()
    assert not (small_disk / NAME).exists()
    (small_disk / "filler").unlink()
    it.look()
    assert (small_disk / NAME).stat().st_size == SIZE


def test_another_process_takes_a_portion_which_the_server_notices(small_disk: Path) -> None:
    it = reserve(small_disk)
    make_room(small_disk)
    assert (small_disk / NAME).stat().st_size == SIZE  # there is room without it
    fill(small_disk / "filler")
    make_room(small_disk)
    assert free(small_disk) >= PORTION
    it.look()
    assert it.spent
    (small_disk / "filler").unlink()
    it.look()
    assert it.restore()


def test_size_0_removes_it(small_disk: Path) -> None:
    reserve(small_disk)
    none = Reserve(small_disk / "paperdb.sqlite", 0)
    none.open()
    none.look()
    none.touch()
    assert not none.spend()
    assert not none.spent
    assert not (small_disk / NAME).exists()


def test_sqlite_does_not_always_say_that_the_disk_is_full(small_disk: Path) -> None:
    vague = sqlite.UNAVAILABLE[3]("disk I/O error")
    assert not is_full(vague, small_disk)
    fill(small_disk / "filler")
    assert is_full(vague, small_disk)
    assert not is_full(sqlite.ConstraintError("constraint failed"), small_disk)
