"""A client that keeps its connection: a test of hundreds of requests need not open hundreds."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from tests.conftest import Server


@pytest.fixture(scope="session")
def api(server: Server) -> Iterator[httpx.Client]:
    """The shared server, asked with its first secret key."""
    headers = {"Authorization": f"Bearer {server.key}"}
    with httpx.Client(base_url=server.url, headers=headers, timeout=20, trust_env=False) as client:
        yield client


@pytest.fixture
def docs(collection: str) -> str:
    """The path of the documents of a collection of the test's own."""
    return f"/{collection}/docs"
