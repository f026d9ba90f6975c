"""Fixtures of the tests of the JavaScript SDK: the package as a user has it, and clients in Node."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Server
from tests.web.tools import Client, Proxy, new_package

MakeClient = Callable[..., Client]


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory, server: Server) -> Path:
    """A folder that was empty before `npm install` from the running server."""
    return new_package(tmp_path_factory.mktemp("npm"), server.url)


@pytest.fixture
def client(package: Path, server: Server) -> Iterator[MakeClient]:
    """`client(url=…, key=…, ws=…, first=…, **options of createClient)`: a client in Node."""
    with contextlib.ExitStack() as stack:

        def make(
            url: str | None = None,
            *,
            key: str | None = "",
            ws: bool = False,
            first: str = "",
            **options: Any,
        ) -> Client:
            options = {"baseUrl": url or server.url, **options}
            if key is not None:
                options["apiKey"] = key or server.key
            return stack.enter_context(Client(package, options, ws=ws, first=first))

        yield make


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    """A proxy in front of the shared server."""
    with Proxy(server.port) as proxy:
        yield proxy
