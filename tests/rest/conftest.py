"""Every test here runs against both ways of answering HTTP/1.1: our own loop, and Quart on Hypercorn.

A client that keeps its connection: a test of hundreds of requests need not open hundreds.
"""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from tests.conftest import Server, shared_server


@pytest.fixture(scope="session", params=["raw", "quart"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    yield from shared_server(tmp_path_factory, "--http", request.param)


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
