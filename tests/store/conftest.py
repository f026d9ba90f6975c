"""Database files, and the parts of engines, without a server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.store.engines import Engine, InPostgres, InSqlite
from tests.store.tools import new_file


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A new, set-up database file."""
    return new_file(tmp_path)


@pytest.fixture(scope="session")
def shared_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set-up database file for `scratch`: nothing is committed to it."""
    return new_file(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="session", params=["sqlite", "postgres"])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """Each engine in turn."""
    if request.param == "sqlite":
        yield InSqlite(request.getfixturevalue("shared_file"))
    else:
        postgres = InPostgres(request.getfixturevalue("postgres"))
        yield postgres
        postgres.close()
