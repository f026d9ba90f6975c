"""Live queries in frameworks: one page each, built by vite, in two tabs of a browser.

One build for all of them, of packages that are installed once (tools.py).
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from tests.conftest import Server
from tests.web.browser import Browser, Page
from tests.web.npm import CACHE, FRAMEWORKS
from tests.web.tools import HERE, current_node, http_server, node_tool

TYPES = {".js": "text/javascript", ".html": "text/html; charset=utf-8"}
TEXTS = "[...document.querySelectorAll('li')].map((item) => item.textContent)"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, package: Path) -> dict[str, bytes]:
    """The built pages' files by their paths."""
    folder = tmp_path_factory.mktemp("frameworks")
    shutil.copytree(HERE / "frameworks", folder, dirs_exist_ok=True)
    for name in FRAMEWORKS:
        node_tool(name)
    modules = folder / "node_modules"
    modules.mkdir()
    for module in (CACHE / "node_modules").iterdir():
        (modules / module.name).symlink_to(module)
    (modules / "paperdb").symlink_to(package / "node_modules/paperdb")
    vite = modules / "vite/bin/vite.js"
    done = subprocess.run(
        [current_node(), str(vite), "build"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    dist = folder / "dist"
    return {f"/{path.relative_to(dist)}": path.read_bytes() for path in dist.rglob("*") if path.is_file()}


class Application:
    """The pages, and the back end that mints their tokens with `rule`."""

    def __init__(self, server: Server, built: dict[str, bytes], collection: str) -> None:
        self.server = server
        self.built = built
        self.collection = collection
        self.rule: dict[str, Any] = {"filter": {"hidden": {"ne": True}}, "permissions": ["read", "write"]}
        self.url = ""

    def answer(self, method: str, path: str, headers: dict[str, str]) -> tuple[int, str, bytes]:
        path = path.partition("?")[0]
        if path == "/token":
            body = {"collections": {self.collection: self.rule}, "expiresIn": 30}
            token = self.server.request("POST", "/realtime/token", json=body).json()["token"]
            return 200, "text/plain", token.encode()
        path = "/index.html" if path == "/" else path
        if path not in self.built:
            return 404, "text/plain", b""
        return 200, TYPES[Path(path).suffix], self.built[path]

    @contextlib.contextmanager
    def page(self, browser: Browser, framework: str) -> Iterator[Page]:
        about = {"framework": framework, "server": self.server.url, "tokens": f"{self.url}/token"}
        with browser.page(f"{self.url}/?{urlencode({**about, 'collection': self.collection})}") as page:
            page.wait("window.mounted === true")
            yield page

    def note(self, text: str, room: str = "a", **fields: Any) -> str:
        return str(self.server.insert(self.collection, {"text": text, "room": room, **fields})["_id"])


@pytest.fixture
def application(server: Server, built: dict[str, bytes], collection: str) -> Iterator[Application]:
    application = Application(server, built, collection)
    with http_server(application.answer) as application.url:
        yield application


def wait_shown(page: Page, *texts: str, seconds: float = 20) -> None:
    page.wait(f"JSON.stringify({TEXTS}) === {json.dumps(json.dumps(texts, separators=(',', ':')))}", seconds)


@pytest.mark.parametrize("framework", ["react", "vue", "svelte", "tanstack"])
def test_a_page_in_two_tabs(browser: Browser, application: Application, framework: str) -> None:
    application.note("1")
    hidden = application.note("2", hidden=True)
    application.note("other", room="b")
    with application.page(browser, framework) as one, application.page(browser, framework) as two:
        for page in (one, two):
            wait_shown(page, "1")
            # Strict mode mounts twice: it is one query all the same, and nothing was shown that was not so.
            asked = page.run("asked.filter((action) => action.endsWith('subscribe'))")
            assert asked == ["subscribe"]
            assert set(page.run("rendered")) <= {"", "1"}
        # A write is shown before there is a response.
        one.run("""(() => {
            const real = fetch;
            window.fetch = (...all) => new Promise((go) => {
              window.release = () => (window.fetch = real, go(real(...all)));
            });
            window.added = add({ text: "3", room: "a" });
        })()""")
        wait_shown(one, "1", "3")
        one.wait("window.release !== undefined")
        one.run("void release()")
        assert one.run("added.then(() => true)")
        wait_shown(two, "1", "3")
        wait_shown(one, "1", "3")
        assert one.run("rendered.slice(rendered.indexOf('1,3')).every((shown) => shown === '1,3')")
        # Offline, and online again.
        two.offline(True)
        two.wait("db.realtime.status.state === 'offline'")
        if framework != "tanstack":  # whose collections have no such state
            two.wait("document.getElementById('status').textContent === 'stale'")
        application.note("4")
        wait_shown(one, "1", "3", "4")
        two.offline(False)
        wait_shown(two, "1", "3", "4")
        # Another query, and back.
        two.run("void setRoom('b')")
        wait_shown(two, "other")
        two.run("void setRoom('a')")
        wait_shown(two, "1", "3", "4")
        # Another rule: what it hides goes, what it shows comes.
        application.rule["filter"] = {"text": {"ne": "1"}}
        for page in (one, two):
            wait_shown(page, "2", "3", "4", seconds=40)
        application.server.request("DELETE", f"/{application.collection}/docs/{hidden}")
        for page in (one, two):
            wait_shown(page, "3", "4")
            page.run("void unmount()")
            page.wait("db.realtime.status.state === 'closed'")
