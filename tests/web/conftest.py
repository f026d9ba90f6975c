"""Fixtures of the tests of the JavaScript SDK, such as the package as a user has it, and of the dashboard."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Server
from tests.web.bidi import firefox
from tests.web.browser import Browser, Page
from tests.web.cdp import chromium
from tests.web.dashboard import sign_in
from tests.web.tools import Client, Proxy, new_package

MakeClient = Callable[..., Client]
StartBrowser = Callable[..., contextlib.AbstractContextManager[Browser]]


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


@pytest.fixture(scope="session")
def start_browser(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> StartBrowser:
    """`start_browser(host=…, trusting=…)`: what `--browser` names."""
    start: StartBrowser = firefox if pytestconfig.getoption("--browser") == "firefox" else chromium
    return lambda **options: start(tmp_path_factory.mktemp("browser") / "profile", **options)


@pytest.fixture(scope="session")
def browser(start_browser: StartBrowser) -> Iterator[Browser]:
    with start_browser() as browser:
        yield browser


@pytest.fixture
def page(browser: Browser, server: Server) -> Iterator[Page]:
    """The dashboard, with a secret key. `bad()` is what no text may run."""
    with browser.page(server.url, "window.bad = () => console.error('it ran')") as page:
        page.listen()
        sign_in(page, server.key)
        yield page
        assert page.complaints == []
