"""Attacks on who uses the dashboard, in a browser: by what others store, by links, by tokens.

What would run calls `bad()`, which is a complaint of the page. So is whatever its policy has to stop: no text
gets that far.
"""

from __future__ import annotations

import base64
import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import quote

import pytest
from websockets.sync.client import connect

from tests.conftest import Server, StartServer, receive
from tests.hooks.receiver import receiving
from tests.store.tools import LONG_TO_SEARCH
from tests.web.browser import Browser, Page
from tests.web.dashboard import BOTH_LISTED, DIALOG, LIVE, ROWS, admin_key, click, fill, sign_in, upload, visit

EVIL = """'"><img src=x onerror=bad()><svg onload=bad()><iframe srcdoc='<script>bad()</script>'>"""
FIELD = "<img src=x onerror=bad()>"
"""Names of fields that can be asked for have no quotes."""
IN_URL = "<img/src=x/onerror=bad()>"
PLANTED = "document.querySelectorAll('img, iframe, script:not([src]), [onload], [onerror]').length"
SHOWN = "document.body.innerText.includes('onerror=bad()')"


@pytest.fixture
def page(browser: Browser, server: Server) -> Iterator[Page]:
    """The page of the server, where nobody has signed in."""
    with browser.page(server.url, "window.bad = () => console.error('it ran')") as page:
        page.listen()
        yield page
        assert page.complaints == []
        assert page.run(PLANTED) == 0


def harmless(page: Page, seen: str = SHOWN) -> None:
    """The text is shown, and only a text."""
    page.wait(seen)
    assert page.run(PLANTED) == 0
    assert page.complaints == []


@pytest.mark.sqlite
def test_what_others_store_stays_text_for_an_operator(
    browser: Browser, start_server: StartServer, tmp_path: Path
) -> None:
    server = start_server("--slow-query-ms", "1", "--index-after", "0")
    key = admin_key(server, EVIL)
    server.request("POST", "/c/bulk", json=[{FIELD: LONG_TO_SEARCH, EVIL: EVIL} for _ in range(120)])
    filter = json.dumps({FIELD: {"contains": "none"}})
    server.request("GET", "/c/docs", params={"filter": filter, "sort": f"-{FIELD}"})
    schema = {"properties": {FIELD: {"default": EVIL}}}
    assert server.request("PUT", "/c/schema", json=schema).status_code == 200
    entry = {"action": "documents.import", "database": "default", "collection": "c", "note": EVIL}
    assert server.request("POST", "/admin.v1/audit", json=entry, key=key).status_code == 201
    rule = {"c": {"filter": {FIELD: EVIL}, "select": [FIELD]}}
    body = {"collections": rule, "subject": EVIL}
    token = server.request("POST", "/realtime/token", json=body).json()["token"]
    with ExitStack() as stack:
        receiver = stack.enter_context(receiving())
        receiver.responds = 500
        hook = {
            "database": "default",
            "url": f"{receiver.url}/?{IN_URL}",
            "collection": "c",
            "filter": {FIELD: EVIL},
        }
        assert server.request("POST", "/admin.v1/webhooks", json=hook, key=key).status_code == 201
        headers = {"User-Agent": IN_URL, "X-Forwarded-For": IN_URL}
        ws = connect(f"{server.ws_url}/?since=now&token={token}", proxy=None, additional_headers=headers)
        assert receive(stack.enter_context(ws))["type"] == "ready"
        server.insert("c", {"_id": "one", FIELD: EVIL})
        page = stack.enter_context(browser.page(server.url, "window.bad = () => console.error('it ran')"))
        page.listen()
        sign_in(page, key)
        for tab in ("keys", "webhooks", "audit"):
            visit(page, f"access/{tab}", "document.querySelector('.list tbody tr') !== null")
            harmless(page)
        page.wait("document.body.innerText.includes('documents.import')")
        visit(page, "access/webhooks", "document.body.innerText.includes('expected 2xx')")
        click(page, "Test")
        click(page, "Remove")
        harmless(page, f"{DIALOG}?.innerText.includes('onerror=bad()')")
        click(page, "Cancel", DIALOG)
        click(page, "Databases")
        click(page, "New database")
        fill(page, "Name", EVIL, DIALOG)
        click(page, "Create", DIALOG)
        harmless(page, "document.getElementById('toasts').innerText.includes('Invalid body')")
        click(page, "Cancel", DIALOG)
        visit(page, "inspector", "document.querySelector('.list tbody tr') !== null")
        harmless(page)
        click(page, "Look")
        fill(page, "Collection", "c", DIALOG)
        fill(page, "Document", "one", DIALOG)
        click(page, "Why?", DIALOG)
        harmless(page, f"{DIALOG}.querySelector('fieldset .badge')?.innerText === 'sent'")
        click(page, f"Revoke all of {EVIL}", DIALOG)
        harmless(page, f"{DIALOG}.innerText.includes('Revoke all tokens of')")
        click(page, "Cancel", DIALOG)
        click(page, "Close", DIALOG)
        visit(page, "health", BOTH_LISTED)
        harmless(page)
        fill(page, "Database", "default")
        visit(page, "documents/c?sort=-createdAt", f"{LIVE} && {ROWS}.length === 100")
        harmless(page)
        click(page, "Schema")
        page.wait(f"{DIALOG}.querySelector('textarea')?.value.includes('onerror=bad()')")
        page.press("Escape")
        visit(page, f"documents/c?sort={quote(FIELD)}", "document.querySelector('.documents') !== null")
        click(page, "Plan")
        harmless(page, f"{DIALOG}?.innerText.includes('onerror=bad()')")
        page.press("Escape")
        refused = tmp_path / "<img src=x onerror=bad()>.csv"
        refused.write_text(f'_id,"{EVIL.replace(chr(34), chr(34) * 2)}"\n"{IN_URL}",1\n{IN_URL},2\n', "utf-8")
        upload(page, refused)
        harmless(page, f"{DIALOG}.innerText.includes('2 refused')")


def test_links_neither_run_nor_take_the_key_elsewhere(page: Page, server: Server, collection: str) -> None:
    server.insert(collection, {"_id": "one"})
    sign_in(page, server.key)
    evil = quote(EVIL, safe="")
    for address in (
        *(
            f"{part}/{evil}?{evil}={evil}"
            for part in ("documents", "live", "tokens", "inspector", "health", "access")
        ),
        f"{evil}/{evil}",
        f"documents/{collection}?filter={evil}&sort={evil}",
        f"documents/{collection}/{evil}",
        f"live?collection={evil}&since={evil}&filter={evil}",
        f"inspector?database={evil}",
        "documents/http%3A%2F%2Fe.example",
        "documents/%2F%5Ce.example",
        "documents/..%2F..%2Fadmin.v1%2Fkeys",
    ):
        page.run(f"location.hash = {json.dumps('#/' + address)}")
        page.wait("document.querySelector('main').children.length > 0")
        assert page.run(PLANTED) == 0, address
    page.run("location.hash = 'javascript:bad()'")
    visit(page, f"documents/{collection}", f"{LIVE} && {ROWS}.length === 1")


@pytest.mark.parametrize("where", ["http://127.0.0.1:{port}", "/\\127.0.0.1:{port}", "/127.0.0.1:{port}"])
def test_a_token_that_somebody_hands_out_reaches_only_this_server(page: Page, where: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as elsewhere:
        elsewhere.settimeout(0.5)
        name = where.format(port=elsewhere.getsockname()[1])
        claims = {"collections": [name, EVIL], "subject": EVIL, "exp": 4e9}
        parts = [
            base64.urlsafe_b64encode(json.dumps(of).encode()).decode().rstrip("=") for of in ({}, claims, {})
        ]
        page.run(f"""
            document.getElementById("key").value = {json.dumps(".".join(parts))};
            document.getElementById("sign-in").requestSubmit();""")
        page.wait("document.getElementById('refused').innerText !== ''")
        with pytest.raises(TimeoutError):
            elsewhere.accept()
