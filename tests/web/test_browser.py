"""The SDK in a browser: the page's snippet through an import map, and the chat in `examples/`."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ENVIRONMENT, Server, StartServer, wait_until
from tests.docs import blocks
from tests.web.browser import Browser, Page
from tests.web.conftest import StartBrowser
from tests.web.test_page import subscribe_snippet, token_snippet
from tests.web.test_tokens import BackEnd
from tests.web.tools import Answer, Proxy, http_server, page_server

CHAT = Path(__file__).parents[2] / "examples/chat/app.py"


def test_the_pages_snippets_through_an_import_map(browser: Browser, server: Server) -> None:
    subscribe, stop = subscribe_snippet(server)
    html = f"""<!doctype html><body>
        <script type="importmap">{json.dumps({"imports": {"paperdb": f"{server.url}/sdk/paperdb.js"}})}</script>
        <script>
          const lines = [];
          console.log = (...what) => lines.push(what);
          console.error = console.log;
          const process = {{ env: {{ PAPERDB_API_KEY: {json.dumps(server.key)} }} }};
        </script>
        <script type="module">
          {subscribe}
          db.realtime.onStatus(({{ state }}) => lines.push(["status", state]));
          await new Promise((resolve) => (window.goOn = resolve));
          {stop}
          {token_snippet(server)}
          ws.onopen = () => db.notifications.insert({{ text: "plain" }});
          ws.onmessage = ({{ data }}) => lines.push(["plain", JSON.parse(data)]);
        </script>"""
    with page_server(html) as url, browser.page(url) as page:
        page.wait('lines.some(([what, state]) => what === "status" && state === "live")')
        made = server.insert("messages", {"text": "hello"})
        page.wait('lines.some(([what]) => what === "New message:")')
        server.request("DELETE", f"/messages/docs/{made['_id']}")
        page.wait('lines.some(([what]) => what === "Message deleted:")')
        shown = page.run('lines.filter(([what]) => what.endsWith(":"))')
        assert shown == [["New message:", made], ["Message deleted:", made]]
        page.run("goOn()")
        page.wait('lines.some(([what]) => what === "plain")')
        lines = page.run("lines")
    event = next(line[1] for line in lines if line[0] == "plain")
    assert sorted(event) == ["collection", "data", "type"]
    assert [line[1] for line in lines if line[0] == "status"] == ["connecting", "live", "closed"]


def test_a_handshake_refused_for_good_is_reported_and_not_tried_again(
    browser: Browser, start_server: StartServer
) -> None:
    """A browser does not show the status of a handshake; the close code says it."""
    server = start_server("--max-subscriptions", "10")
    with browser.page(f"{server.url}/healthz") as page:
        page.run(f"""
            import("/sdk/paperdb.js").then(({{ createClient }}) => {{
              window.errors = [];
              window.sockets = 0;
              class Counted extends WebSocket {{ constructor(...args) {{ super(...args); sockets += 1; }} }}
              const apiKey = {json.dumps(server.key)};
              window.db = createClient({{ apiKey, baseUrl: "/", WebSocket: Counted }});
              const onError = ({{ code }}) => errors.push(code);
              for (let n = 0; n < 11; n += 1) db.realtime.subscribe(`c${{n}}`, () => {{}}, {{ onError }});
            }})""")
        page.wait("window.errors?.length === 11")
        assert page.run("[...new Set(errors)]") == ["TOO_MANY_SUBSCRIPTIONS"]
        assert page.run("db.realtime.status.code") == "TOO_MANY_SUBSCRIPTIONS"
        assert page.run("sockets") == 1


REDIRECT = """
    const { createClient } = await import("/sdk/paperdb.js");
    const db = createClient({ apiKey: "pdb_sk_x", baseUrl: "/moved" });
    return db.a.insert({}).catch(({ code, status }) => [code, status]);
"""


def test_no_redirect_is_followed_and_no_address_guessed(browser: Browser, server: Server) -> None:
    seen: list[str] = []

    def answer(method: str, path: str, headers: dict[str, str]) -> Answer:
        seen.append(f"{method} {path}")
        if path.startswith("/moved"):
            return 302, "text/plain", b"", {"Location": "/elsewhere"}
        if path.startswith("/sdk/"):
            return 200, "text/javascript", server.request("GET", path).content
        return 200, "text/html", b"<!doctype html><body>"

    with http_server(answer) as url, browser.page(url) as page:
        assert page.run(f"(async () => {{ {REDIRECT} }})()") == ["REDIRECTED", 0]
        for base in ("undefined", "null", '""', '"db.example.com"', '"db.example.com:8000"'):
            made = f'import("/sdk/paperdb.js").then((p) => p.createClient({{ apiKey: "k", baseUrl: {base} }}))'
            assert page.run(f"{made}.catch(({{ code }}) => code)") == "INVALID_URL", base
    assert "POST /moved/a/docs" in seen
    assert not any("elsewhere" in line for line in seen)


def test_over_tls_documents_go_by_http_2_and_events_by_websocket(
    start_browser: StartBrowser, start_server: StartServer
) -> None:
    """A browser opens a WebSocket within the HTTP/2 connection that it has, if the server says that it may."""
    server = start_server("--tls-self-signed")
    with start_browser(trusting=True) as browser, browser.page(f"{server.url}/healthz") as page:
        assert page.run("performance.getEntriesByType('navigation')[0].nextHopProtocol") == "h2"
        page.run(f"""
            import("/sdk/paperdb.js").then(({{ createClient }}) => {{
              window.db = createClient({{ apiKey: {json.dumps(server.key)}, baseUrl: location.origin }});
              window.events = [];
              db.realtime.subscribe("messages", (event) => events.push(event));
              db.realtime.onStatus(({{ state }}) => (window.state = state));
            }})""")
        page.wait('window.state === "live"')
        page.run('db.collection("messages").insert({ text: "x".repeat(100000) }).then(() => 1)')
        page.wait("events.length === 1")
        assert page.run("events[0].data.text.length") == 100_000


def test_an_event_source_that_is_cut_off_before_its_first_event_misses_nothing(
    browser: Browser, server: Server, collection: str
) -> None:
    token = server.token(collection)
    with Proxy(server.port) as proxy, browser.page(f"{proxy.url}/healthz") as page:
        page.run(f"""
            window.events = [];
            window.source = new EventSource("/{collection}/changes?token={token}");
            source.onmessage = ({{ data }}) => events.push(JSON.parse(data));
            source.addEventListener("progress", ({{ lastEventId }}) => (window.position = lastEventId));""")
        page.wait("window.position !== undefined")
        proxy.refusing = True
        proxy.cut()
        missed = server.insert(collection, {"n": 1})
        proxy.refusing = False
        page.wait("events.length === 1", 30)
        assert page.run("events[0].data") == missed
        assert page.run("source.readyState") == 1


def test_the_documented_event_source_continues_when_its_token_ends(
    browser: Browser, server: Server, collection: str
) -> None:
    (snippet,) = (block.source for block in blocks("docs/realtime.md", "js"))
    snippet = snippet.replace("http://127.0.0.1:8000/messages", f"{server.url}/{collection}")
    snippet = snippet.replace("console.log(JSON.parse(data))", "lines.push(JSON.parse(data).data.n)")
    back_end = BackEnd(server, 2)
    with http_server(back_end) as token_url, browser.page(f"{server.url}/healthz") as page:
        page.run(f"""
            window.lines = [];
            window.newToken = async () => (await fetch("{token_url}/?collections={collection}")).text();""")
        page.run(f"{snippet}; void listen();")
        page.wait('since !== "now"')
        for n in range(1, 3):
            server.insert(collection, {"n": n})
            wait_until(lambda n=n: len(back_end.asked) > n, 20)  # type: ignore[misc]
        page.wait("lines.length === 2")
        assert page.run("lines") == [1, 2]


# --- the chat ------------------------------------------------------------------------------------

TEXTS = "[...document.querySelectorAll('#messages li')].map((item) => item.lastChild.textContent)"


class Chat:
    """The example's back end, and what can be done in its page."""

    def __init__(self, server: Server, url: str) -> None:
        self.server = server
        self.url = url
        self.sent: list[str] = []

    def post(self, *texts: str) -> None:
        """Somebody else says something."""
        for text in texts:
            self.server.insert("chat", {"room": "lobby", "author": "Bob", "text": text})
            self.sent.append(text)

    def say(self, page: Page, text: str) -> None:
        """By the form."""
        page.run(f"""
            document.getElementById("author").value = "Ada";
            document.getElementById("text").value = {json.dumps(text)};
            document.getElementById("form").requestSubmit();""")
        self.sent.append(text)
        page.wait('document.getElementById("text").value === ""')

    def wait_shown(self, *pages: Page) -> None:
        """All that was said, once, in order."""
        for page in pages:
            wait_until(lambda page=page: page.run(TEXTS) == self.sent, 15)  # type: ignore[misc]

    @staticmethod
    def wait_state(page: Page, state: str) -> None:
        page.wait(f'document.getElementById("status").textContent === {json.dumps(state)}')


@pytest.fixture
def chat(start_server: StartServer) -> Iterator[Chat]:
    server = start_server()
    process = subprocess.Popen(
        [sys.executable, str(CHAT), "--paperdb", server.url, "--port", "0"],
        stdout=subprocess.PIPE,
        text=True,
        env={**ENVIRONMENT, "PAPERDB_API_KEY": server.key},
    )
    assert process.stdout is not None
    try:
        yield Chat(server, process.stdout.readline().rpartition(" ")[2].strip())
    finally:
        process.terminate()
        process.communicate(timeout=10)


def test_two_tabs_talk(browser: Browser, chat: Chat, tmp_path: Path) -> None:
    chat.post("Before anybody was here")
    with browser.page(chat.url) as first, browser.page(chat.url) as second:
        for page in (first, second):
            chat.wait_state(page, "live")
        chat.wait_shown(first, second)
        chat.say(first, "Hello, is anybody there? <b>not bold</b>")
        chat.say(second, "I am. Every tab sees every message, once.")
        chat.wait_shown(first, second)
        assert second.run("document.title") == "Chat"
        first.show()
        first.screenshot(tmp_path / "chat.png")
        key = first.run("document.documentElement.outerHTML + JSON.stringify(localStorage)")
        assert chat.server.key not in key


HOLD_LISTS = """
    const answered = fetch;
    window.held = [];
    window.fetch = async (url, request) => {
      const response = await answered(url, request);
      const isWrite = ["POST", "PATCH", "DELETE"].includes(request?.method);
      const isList = /\\/chat\\/(docs|query)/.test(url) && !isWrite;
      if (isList) await new Promise((resolve) => held.push(resolve));
      return response;
    };
"""


def test_changes_while_the_list_is_loading_are_not_lost(browser: Browser, chat: Chat) -> None:
    texts = ("deleted", "edited", "stays", "edited, then deleted", "last")
    message = {"room": "lobby", "author": "Bob"}
    ids = [chat.server.insert("chat", {**message, "text": text})["_id"] for text in texts]
    with browser.page(chat.url, HOLD_LISTS) as page:
        page.wait("held.length === 1")  # the server has answered; the page has not been told
        chat.server.request("DELETE", f"/chat/docs/{ids[0]}")
        for id in (ids[1], ids[3]):
            chat.server.request("PATCH", f"/chat/docs/{id}", json={"text": "after"})
        chat.server.request("DELETE", f"/chat/docs/{ids[3]}")
        made = chat.server.insert("chat", {**message, "text": "new"})
        page.run("held[0]()")
        page.wait(f"{TEXTS}.includes('new')")
        assert page.run(TEXTS) == ["after", "stays", "last", "new"]
        chat.server.request("DELETE", f"/chat/docs/{made['_id']}")
        page.wait(f"!{TEXTS}.includes('new')")


def test_rooms_know_nothing_of_each_other(browser: Browser, chat: Chat) -> None:
    with browser.page(f"{chat.url}/#other") as other, browser.page(chat.url) as lobby:
        for page in (other, lobby):
            chat.wait_state(page, "live")
        chat.say(lobby, "in the lobby")
        chat.wait_shown(lobby)
        assert other.run(TEXTS) == []
        other.run("location.hash = 'lobby'")
        chat.wait_shown(other)


@pytest.mark.chromium
def test_after_a_gap_the_page_shows_the_current_documents(browser: Browser, chat: Chat) -> None:
    chat.server.options = ("--retention-count", "5")
    chat.server.stop()
    chat.server.start()
    old = chat.server.insert("chat", {"room": "lobby", "author": "Bob", "text": "deleted in the gap"})
    chat.post("stays")
    with browser.page(chat.url) as first, browser.page(chat.url) as second:
        for page in (first, second):
            chat.wait_state(page, "live")
            page.wait(f"{TEXTS}.length === 2")
        first.freeze(True)
        chat.server.kill()
        chat.server.start()
        chat.server.request("DELETE", f"/chat/docs/{old['_id']}")
        chat.server.request("POST", "/other/bulk", json=[{}] * 50)
        wait_until(lambda: chat.server.request("GET", "/chat/changes?since=2").status_code == 410)
        first.show()
        first.freeze(False)
        chat.wait_shown(first)


def test_offline_and_online_again(browser: Browser, chat: Chat) -> None:
    with browser.page(chat.url) as first, browser.page(chat.url) as second:
        for page in (first, second):
            chat.wait_state(page, "live")
        chat.post("one")
        chat.wait_shown(first, second)
        second.run("""
            window.states = [];
            new MutationObserver(() => states.push(document.getElementById("status").textContent))
                .observe(document.getElementById("status"), { childList: true });""")
        second.offline(True)
        second.wait('states.includes("offline")')
        chat.post("two", "three")
        chat.wait_shown(first)
        second.offline(False)
        chat.wait_shown(second)
        chat.server.kill()
        chat.wait_state(second, "offline")
        chat.server.start()
        chat.post("four")
        for page in (first, second):
            chat.wait_state(page, "live")
        chat.wait_shown(first, second)


@pytest.mark.chromium
def test_a_hidden_tab_and_a_frozen_one(browser: Browser, chat: Chat) -> None:
    with browser.page(chat.url) as first, browser.page(chat.url) as second:
        for page in (first, second):
            chat.wait_state(page, "live")
        assert first.run("document.visibilityState") == "hidden"
        chat.post("one", "two")
        chat.wait_shown(first, second)
        assert first.run("document.title") == "(2) Chat"
        first.freeze(True)
        chat.post("three")
        chat.wait_shown(second)
        chat.server.kill()  # a frozen tab hears nothing of it
        chat.server.start()
        chat.post("four")
        first.show()
        first.freeze(False)
        chat.wait_shown(first, second)
        chat.wait_state(first, "live")
        assert first.run("document.title") == "Chat"
