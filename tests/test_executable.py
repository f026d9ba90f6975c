"""The launcher of dist/paperdb, which unpacks it once. Collected only when the tests run dist/paperdb."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import COMMAND, ENVIRONMENT, fill, wait_until

pytestmark = pytest.mark.executable


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """The fallback folder, used if it cannot unpack in the preferred one."""
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


def start(cache: Path, home: Path) -> subprocess.Popen[str]:
    places = {"XDG_CACHE_HOME": str(cache), "HOME": str(home)}
    environment = {name: value for name, value in ENVIRONMENT.items() if name != "CACHE_DIRECTORY"}
    return subprocess.Popen(
        [*COMMAND, "--version"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment | places,
    )


def works(process: subprocess.Popen[str]) -> bool:
    output, error = process.communicate(timeout=60)
    return (process.returncode, output[:8], error) == (0, "paperdb ", "")


def test_first_starts_may_race(tmp_path: Path, home: Path) -> None:
    starts = [start(tmp_path / "cache", home) for _ in range(4)]  # 0.8 s of CPU each
    for process in starts:
        assert works(process)
    (folder,) = (tmp_path / "cache").iterdir()
    assert folder.stat().st_mode & 0o077 == 0
    assert list(home.iterdir()) == []
    unpacked = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    assert works(start(tmp_path / "cache", home))
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()} == unpacked


@pytest.mark.parametrize("mode", [0o777, 0o710])
def test_shared_folder_is_skipped(tmp_path: Path, home: Path, mode: int) -> None:
    assert works(start(tmp_path / "cache", home))
    (folder,) = (tmp_path / "cache").iterdir()
    (folder / "paperdb").write_text("#!/bin/sh\necho gotcha\n")
    folder.chmod(mode)
    assert works(start(tmp_path / "cache", home))
    assert [path.name for path in (home / ".cache").iterdir()] == [folder.name]


def test_full_disk_is_skipped_and_nothing_is_left_there(small_disk: Path, home: Path) -> None:
    fill(small_disk / "filler")
    os.truncate(small_disk / "filler", 4 << 20)  # room for part of it
    assert works(start(small_disk / "cache", home))
    assert list((small_disk / "cache").iterdir()) == []
    assert len(list((home / ".cache").iterdir())) == 1


def test_next_start_removes_leftovers_of_a_killed_first_start(tmp_path: Path, home: Path) -> None:
    cache = tmp_path / "cache"

    def unpacking() -> bool:
        return cache.exists() and any(path.name.startswith(".paperdb-new-") for path in cache.iterdir())

    for _ in range(50):
        shutil.rmtree(cache, ignore_errors=True)
        process = start(cache, home)
        wait_until(lambda: unpacking() or process.poll() is not None)  # noqa: B023 - called at once
        process.kill()
        process.communicate()
        if unpacking():
            break
    assert unpacking()
    starts = [start(cache, home) for _ in range(4)]
    for process in starts:
        assert works(process)
    assert len(list(cache.iterdir())) == 1
    assert list(home.iterdir()) == []
