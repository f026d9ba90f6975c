"""Some of these modules depend on what a request looks like: their tests run over HTTP/1.1, and over HTTP/2
with TLS, where Quart on Hypercorn responds. The others depend only on what it means, and run once. So do all
over PostgreSQL, which no protocol knows.

`--http quart` lets Quart respond over HTTP/1.1, too. One module checks that it responds as our own code does;
tests/doors has more.

Clients keep their connection: a test of hundreds of requests need not open hundreds.
"""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from tests.conftest import Server, shared_server
from tests.rest.documented import check_documented
from tests.rest.tools import client_of

OPTIONS: dict[str, tuple[str, ...]] = {
    "http1": (),
    "http2": ("--tls-self-signed",),
    "quart": ("--http", "quart"),
}
WAYS: dict[str, tuple[str, ...]] = {
    "test_access": ("http1", "http2"),
    "test_changes": ("http1", "http2"),
    "test_documents": ("http1", "http2"),
    "test_etags": ("http1", "http2", "quart"),
    "test_hostile": ("http1", "http2"),
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "server" not in metafunc.fixturenames:
        return
    ways = WAYS.get(metafunc.module.__name__.rpartition(".")[2], ("http1",))
    if metafunc.definition.get_closest_marker("http1") or Server.stores is not None:
        ways = ("http1",)
    metafunc.parametrize("server", ways, indirect=True, scope="session")


@pytest.fixture(scope="session")
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    for server in shared_server(tmp_path_factory, *OPTIONS[request.param]):
        server.http2 = request.param == "http2"
        yield server


@pytest.fixture(scope="session")
def api(server: Server) -> Iterator[httpx.Client]:
    """A client with the first secret key of the shared server. Responses must be in the OpenAPI document."""
    with client_of(server) as client:
        client.headers["Authorization"] = f"Bearer {server.key}"
        client.event_hooks = {"response": [check_documented]}
        yield client


@pytest.fixture
def docs(collection: str) -> str:
    """The path of the documents of a collection of the test's own."""
    return f"/{collection}/docs"
