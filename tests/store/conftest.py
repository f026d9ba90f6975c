"""Database files without a server."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.store.tools import new_file


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A new, set-up database file."""
    return new_file(tmp_path)


@pytest.fixture(scope="session")
def shared_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set-up database file for `scratch`: nothing is committed to it."""
    return new_file(tmp_path_factory.mktemp("store"))
