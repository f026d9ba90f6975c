"""The tutorial's application, as the page shows it: its commands, its two files, and its nginx with TLS."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import ENVIRONMENT, Server, need, wait_until
from tests.docs import Block, blocks
from tests.nginx import free_port, nginx
from tests.realtime.raw import running
from tests.web.browser import Browser, Page
from tests.web.conftest import StartBrowser

TUTORIAL = "docs/tutorial.md"
NAME = "tasks.example.com"
TEXTS = "[...document.querySelectorAll('#tasks label')].map((label) => label.textContent)"
DONE = "[...document.querySelectorAll('#tasks input')].map((box) => box.checked)"


def only(language: str) -> Block:
    (block,) = blocks(TUTORIAL, language)
    return block


@dataclass
class Application:
    server: Server
    key: str
    public: str
    """nginx's address."""


@pytest.fixture(scope="module")
def application(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Application]:
    home, port = tmp_path_factory.mktemp("tutorial"), free_port()
    public = f"https://{NAME}:{port}"
    with ExitStack() as stack:
        server = stack.enter_context(running(home / "paperdb-data", "--allowed-origins", public))
        key = database(home)
        here = stack.enter_context(
            back_end(home, PAPERDB_API_KEY=key, PAPERDB=server.url, PUBLIC_PAPERDB="/db", PORT="0")
        )
        changes = {
            "listen 443 ssl": f"listen 127.0.0.1:{port} ssl",
            "127.0.0.1:8000": f"127.0.0.1:{server.port}",
            "http://127.0.0.1:8080": here.rstrip("/"),
            f"/etc/ssl/certs/{NAME}.pem": str(home / "certificate"),
            f"/etc/ssl/private/{NAME}.key": str(home / "key"),
        }
        certificate(home)
        stack.enter_context(nginx(home, port, changes, TUTORIAL))
        yield Application(server, key, public)


@contextmanager
def back_end(home: Path, **settings: str) -> Iterator[str]:
    """Its own address."""
    (home / "back_end.py").write_text(only("python").source, "utf-8")
    (home / "index.html").write_text(only("html").source, "utf-8")
    process = subprocess.Popen(
        [sys.executable, str(home / "back_end.py")],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**ENVIRONMENT, **settings},
    )
    assert process.stdout is not None
    try:
        yield process.stdout.readline().rpartition(" ")[2].strip()
    finally:
        process.terminate()
        process.communicate(timeout=10)


def database(home: Path) -> str:
    """The page's commands; the key that they show."""
    need("bash")
    (home / ".venv/bin").mkdir(parents=True)
    (home / ".venv/bin/activate").write_text(f'PATH="{Path(sys.executable).parent}:$PATH"\n')
    commands = ["bash", "-euo", "pipefail", "-c", only("sh").source]
    done = subprocess.run(
        commands, cwd=home, env=ENVIRONMENT, capture_output=True, text=True, timeout=30, check=True
    )
    found = re.search(r"pdb_sk_[\w-]{43}", done.stdout)
    assert found is not None, done.stdout
    return found[0]


def certificate(home: Path) -> None:
    files = ["-keyout", str(home / "key"), "-out", str(home / "certificate")]
    subprocess.run(
        [
            need("openssl"),
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-days",
            "2",
            "-subj",
            f"/CN={NAME}",
            *files,
        ],
        check=True,
        capture_output=True,
    )


@pytest.fixture(scope="module")
def browser(start_browser: StartBrowser) -> Iterator[Browser]:
    with start_browser(host=NAME, trusting=True) as browser:
        yield browser


def wait_live(*pages: Page) -> None:
    for page in pages:
        page.wait("document.getElementById('status').textContent === 'live'")


def add(page: Page, text: str) -> None:
    page.run(f"""
        document.getElementById("text").value = {json.dumps(text)};
        document.getElementById("form").requestSubmit();""")


def wait_shown(texts: list[str], *pages: Page) -> None:
    for page in pages:
        wait_until(lambda page=page: page.run(TEXTS) == texts)  # type: ignore[misc]


def test_it_works_at_once_without_a_proxy(browser: Browser, server: Server, tmp_path: Path) -> None:
    with (
        back_end(tmp_path, PAPERDB_API_KEY=server.key, PAPERDB=server.url, PORT="0") as here,
        browser.page(here) as page,
    ):
        wait_live(page)
        add(page, "Milk")
        wait_shown(["Milk"], page)


def test_two_tabs_share_a_list_and_a_third_has_another(browser: Browser, application: Application) -> None:
    with browser.page(f"{application.public}/") as first:
        link = first.run("location.href")
        assert re.fullmatch(rf"{application.public}/lists/[\w-]{{22}}/", link)
        with browser.page(link) as second, browser.page(f"{application.public}/") as other:
            wait_live(first, second, other)
            add(first, "Milk <b>not bold</b>")
            wait_shown(["Milk <b>not bold</b>"], first, second)
            add(second, "Bread")
            wait_shown(["Milk <b>not bold</b>", "Bread"], first, second)
            second.run("document.querySelector('#tasks input').click()")
            first.wait(f"{DONE}.join() === 'true,false'")
            first.run("document.querySelector('#tasks button').click()")
            wait_shown(["Bread"], first, second)
            assert other.run(TEXTS) == []
            assert application.key not in first.run("document.documentElement.outerHTML")


def test_nothing_is_missing_after_a_restart(browser: Browser, application: Application) -> None:
    with browser.page(f"{application.public}/") as page:
        wait_live(page)
        add(page, "before")
        wait_shown(["before"], page)
        application.server.kill()
        page.wait("document.getElementById('status').textContent !== 'live'")
        application.server.start()
        wait_live(page)
        add(page, "after")
        wait_shown(["before", "after"], page)


def test_a_browser_reaches_the_socket_the_sdk_and_the_tasks_and_nothing_else(
    browser: Browser, application: Application
) -> None:
    with browser.page(f"{application.public}/") as page:
        wait_live(page)
        statuses = "Promise.all(%s.map((path) => fetch(path).then(({ status }) => status)))"
        paths = ["/db/sdk/paperdb.js", "/db/tasks/count", "/db/collections", "/db/metrics", "/lists/short/"]
        assert page.run(statuses % json.dumps(paths)) == [200, 401, 404, 404, 404]


def test_a_page_cannot_see_another_list(browser: Browser, application: Application) -> None:
    with browser.page(f"{application.public}/") as first, browser.page(f"{application.public}/") as second:
        wait_live(first, second)
        add(first, "secret")
        wait_shown(["secret"], first)
        ask = """(async () => {
            const { token } = await (await fetch("token", { method: "POST",
                headers: { "Content-Type": "application/json" } })).json();
            const found = await fetch("/db/tasks/docs", { headers: { Authorization: `Bearer ${token}` } });
            return (await found.json()).documents.map(({ text }) => text);
        })()"""
        assert second.run(ask) == []
        assert first.run(ask) == ["secret"]
