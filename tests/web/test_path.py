"""Under a path of a proxy: nginx with `location /db/`, by the snippet of docs/operations.md but for that and
TLS; the SDK in Node, the dashboard and the chat in a browser."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.conftest import ENVIRONMENT, Server
from tests.nginx import free_port, nginx
from tests.web.browser import Browser
from tests.web.conftest import MakeClient
from tests.web.dashboard import sign_in
from tests.web.test_browser import CHAT, TEXTS


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory, server: Server) -> Iterator[str]:
    """The proxy's URL. PaperDB is at `/db/`, the chat, which knows it by that address, at `/chat/`."""
    home, port = tmp_path_factory.mktemp("nginx"), free_port()
    url = f"http://127.0.0.1:{port}"
    chat = subprocess.Popen(
        [sys.executable, str(CHAT), "--paperdb", f"{url}/db", "--port", "0"],
        stdout=subprocess.PIPE,
        text=True,
        env={**ENVIRONMENT, "PAPERDB_API_KEY": server.key},
    )
    assert chat.stdout is not None
    chat_url = chat.stdout.readline().rpartition(" ")[2].strip()
    changes = {
        "listen 443 ssl;": f"listen 127.0.0.1:{port};",
        "ssl_certificate     /etc/ssl/certs/db.example.com.pem;": "",
        "ssl_certificate_key /etc/ssl/private/db.example.com.key;": "",
        "127.0.0.1:8000": f"127.0.0.1:{server.port}",
        "location / {": f"location /chat/ {{ proxy_pass {chat_url}/; }}\n    location /db/ {{",
        "proxy_pass http://paperdb;": "proxy_pass http://paperdb/;",
    }
    try:
        with nginx(home, port, changes):
            yield url
    finally:
        chat.terminate()
        chat.communicate(timeout=10)


@pytest.mark.parametrize(
    ("base", "realtime", "ws"),
    [
        ("/db", None, False),
        ("/db", None, True),
        ("/db/", None, False),
        ("/db", "/db", False),
        ("/db", "/db/", False),
        ("/db", "/db/realtime", False),
    ],
)
def test_documents_and_changes(
    client: MakeClient, proxy: str, collection: str, ws: bool, base: str, realtime: str | None
) -> None:
    more = {} if realtime is None else {"realtimeUrl": proxy.replace("http", "ws") + realtime}
    node = client(proxy + base, ws=ws, **more)
    node.subscribe(collection, "a")
    made = node.run(f"return db.{collection}.insert({{n: 1}})")
    assert [event["data"] for event in node.wait_events("a", 1)] == [made]
    node.run(f"await db.{collection}.delete({json.dumps(made['_id'])})")
    assert node.run(f"return db.{collection}.find()") == []


def test_names_of_full_length_fit_into_the_proxys_lines(client: MakeClient, proxy: str) -> None:
    node = client(f"{proxy}/db")
    node.run("for (let n = 0; n < 64; n += 1) subscribe(`n${n}_`.padEnd(64, 'x'), `n${n}`)")
    node.wait_state("live")


def test_the_dashboard(browser: Browser, proxy: str, server: Server, collection: str) -> None:
    server.insert(collection, {"text": "hello"})
    with browser.page(f"{proxy}/db/") as page:
        sign_in(page, server.key)
        page.run(f"location.hash = '#/documents/{collection}'")
        page.wait("document.querySelector('.status')?.textContent === 'Live'")
        assert "hello" in page.run("document.querySelector('.grid').innerText")
        page.run(f"location.hash = '#/live?collection={collection}&since=0'")
        page.wait("document.querySelector('.event')?.innerText.includes('hello')")


def test_the_chat(browser: Browser, proxy: str, server: Server) -> None:
    with browser.page(f"{proxy}/chat/") as page:
        page.wait('document.getElementById("status").textContent === "live"')
        page.run("""
            document.getElementById("author").value = "Ada";
            document.getElementById("text").value = "under a path";
            document.getElementById("form").requestSubmit();""")
        page.wait(f"{TEXTS}.includes('under a path')")
