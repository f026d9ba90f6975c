"""Under a path of a proxy: nginx with `location /db/`, by the README's snippet but for that and TLS; the SDK in
Node, the live page and the chat in Chromium."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.conftest import ENVIRONMENT, Server, need, wait_until
from tests.net.test_nginx import README, answers, free_port
from tests.web.cdp import Browser, chromium
from tests.web.conftest import MakeClient
from tests.web.test_browser import CHAT, TEXTS
from tests.web.tools import EITHER_WEBSOCKET


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory, server: Server) -> Iterator[str]:
    """The proxy's URL. PaperDB is at `/db/`, the chat, which knows it by that address, at `/chat/`."""
    home = tmp_path_factory.mktemp("nginx")
    (snippet,) = re.findall(r"```nginx\n(.*?)```", README, re.DOTALL)
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    chat = subprocess.Popen(
        [sys.executable, str(CHAT), "--paperdb", f"{url}/db", "--port", "0"],
        stdout=subprocess.PIPE,
        text=True,
        env={**ENVIRONMENT, "PAPERDB_API_KEY": server.key},
    )
    assert chat.stdout is not None
    chat_url = chat.stdout.readline().rpartition(" ")[2].strip()
    snippet = re.sub(r"\n *ssl_certificate.*", "", snippet)
    for documented, here in {
        "listen 443 ssl": f"listen 127.0.0.1:{port}",
        "127.0.0.1:8000": f"127.0.0.1:{server.port}",
        "location / {": f"location /chat/ {{ proxy_pass {chat_url}/; }}\n    location /db/ {{",
        "proxy_pass http://paperdb;": "proxy_pass http://paperdb/;",
    }.items():
        assert documented in snippet
        snippet = snippet.replace(documented, here)
    folders = "".join(
        f"{kind}_temp_path {home}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (home / "nginx.conf").write_text(
        f"pid {home}/pid;\nerror_log {home}/error.log;\nworker_processes 1;\nuser root;\n"
        f"events {{}}\nhttp {{\n{folders}{snippet}}}\n"
    )
    nginx = subprocess.Popen(
        [need("nginx"), "-c", home / "nginx.conf", "-p", home, "-g", "daemon off;"],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_until(lambda: answers(port) or nginx.poll() is not None, 10)
        assert nginx.poll() is None, nginx.communicate()[1]
        yield url
    finally:
        for process in (nginx, chat):
            process.terminate()
            process.communicate(timeout=10)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("chromium")) as browser:
        yield browser


@EITHER_WEBSOCKET
@pytest.mark.parametrize("slash", ["", "/"])
def test_documents_and_changes(
    client: MakeClient, proxy: str, collection: str, flags: tuple[str, ...], slash: str
) -> None:
    realtime = {"realtimeUrl": proxy.replace("http", "ws") + "/db" + slash} if slash else {}
    node = client(f"{proxy}/db{slash}", flags=flags, **realtime)
    node.subscribe(collection, "a")
    made = node.run(f"return db.{collection}.insert({{n: 1}})")
    assert [event["data"] for event in node.wait_events("a", 1)] == [made]
    node.run(f"await db.{collection}.delete({json.dumps(made['_id'])})")
    assert node.run(f"return db.{collection}.find()") == []


def test_names_of_full_length_fit_into_the_proxys_lines(client: MakeClient, proxy: str) -> None:
    node = client(f"{proxy}/db")
    node.run("for (let n = 0; n < 64; n += 1) subscribe(`n${n}_`.padEnd(64, 'x'), `n${n}`)")
    node.wait_state("live")


def test_the_live_page(browser: Browser, proxy: str, server: Server, collection: str) -> None:
    with browser.page(f"{proxy}/db/") as page:
        page.run(f"""
            document.getElementById("key").value = {json.dumps(server.key)};
            document.getElementById("collection").value = {json.dumps(collection)};
            document.getElementById("listen").requestSubmit();""")
        page.wait('document.getElementById("status").textContent === "live"')
        page.run("""
            document.getElementById("text").value = "hello";
            document.getElementById("insert").requestSubmit();""")
        page.wait('document.querySelector("#events li")?.textContent.includes("hello")')


def test_the_chat(browser: Browser, proxy: str, server: Server) -> None:
    with browser.page(f"{proxy}/chat/") as page:
        page.wait('document.getElementById("status").textContent === "live"')
        page.run("""
            document.getElementById("author").value = "Ada";
            document.getElementById("text").value = "under a path";
            document.getElementById("form").requestSubmit();""")
        page.wait(f"{TEXTS}.includes('under a path')")
