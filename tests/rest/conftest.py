"""What a request looks like matters to some of these modules: their tests run against both ways of answering
HTTP/1.1, our own loop and Quart on Hypercorn. What it means does not depend on that: the others run once.

A client that keeps its connection: a test of hundreds of requests need not open hundreds.
"""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from tests.conftest import Server, shared_server
from tests.rest.documented import check_documented

OF_REQUESTS = ("test_access", "test_changes", "test_documents", "test_etags", "test_hostile")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "server" in metafunc.fixturenames:
        both = metafunc.module.__name__.rpartition(".")[2] in OF_REQUESTS
        metafunc.parametrize("server", ["raw", "quart"] if both else ["raw"], indirect=True, scope="session")


@pytest.fixture(scope="session")
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    yield from shared_server(tmp_path_factory, "--http", request.param)


@pytest.fixture(scope="session")
def api(server: Server) -> Iterator[httpx.Client]:
    """The shared server, asked with its first secret key. What it responds is in the OpenAPI document."""
    headers = {"Authorization": f"Bearer {server.key}"}
    with httpx.Client(base_url=server.url, headers=headers, timeout=20, trust_env=False) as client:
        client.event_hooks = {"response": [check_documented]}
        yield client


@pytest.fixture
def docs(collection: str) -> str:
    """The path of the documents of a collection of the test's own."""
    return f"/{collection}/docs"
