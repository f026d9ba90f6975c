"""Database files, and the parts of engines, without a server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.postgres import Postgres
from tests.store.engines import Both, Engine, InPostgres, InSqlite
from tests.store.tools import new_database, new_file


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A new, set-up database file."""
    return new_file(tmp_path)


@pytest.fixture(scope="session")
def shared_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set-up database file for `scratch`: nothing is committed to it."""
    return new_file(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="session")
def template(postgres: Postgres) -> str:
    """A PostgreSQL database that is set up, to be copied."""
    name = postgres.new()
    new_database(postgres.url(name))
    return name


@pytest.fixture
def postgres_url(postgres: Postgres, template: str) -> Iterator[str]:
    """A new, set-up PostgreSQL database."""
    with postgres.copied(template) as url:
        yield url


@pytest.fixture(scope="session")
def engine(shared_file: Path, postgres: Postgres) -> Iterator[Engine]:
    """Both engines at once."""
    of_postgres = InPostgres(postgres)
    yield Both(InSqlite(shared_file), of_postgres)
    of_postgres.close()
