"""The dashboard in Chromium, over real data: live, tokens, what users write, who can use it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.conftest import ENVIRONMENT, Server, need, wait_until
from tests.web.browser import Browser, Page
from tests.web.dashboard import DIALOG, LIVE, ROWS, barriers, click, fill, fits_a_phone, sign_in, visit
from tests.web.tools import Script

EVIL = """<img src=x onerror="bad()">'"><script>bad()</script>${bad()}{{bad()}}"""


def test_live_shows_what_each_change_changed_and_a_way_back(
    page: Page, server: Server, collection: str
) -> None:
    first = server.insert(collection, {"_id": "one", "room": "r1", "n": 1})
    server.request("PATCH", f"/{collection}/docs/one", json={"n": 2})
    server.insert(collection, {"_id": "two", "room": "r2"})
    begin = server.request("GET", f"/{collection}/docs/one/history").json()["versions"][-1]["seq"]
    events = "[...document.querySelectorAll('.feed > li')].filter((li) => li.checkVisibility())"
    visit(page, "live")
    fill(page, "Collection", collection)
    fill(page, "From seq", str(begin))
    fill(page, "Filter", '{"room": "r1"}')
    click(page, "Start")
    page.wait(f"{events}.length === 1")
    page.run(f"{events}[0].querySelector('button').click()")
    page.wait(
        f"{events}[0].innerText.includes('added: + \"n\": 2') || {events}[0].innerText.includes('+   \"n\": 2')"
    )
    assert '-   "n": 1' in page.run(f"{events}[0].innerText")
    assert barriers(page) == []

    visit(page, f"live?since={begin - 1}", f"{LIVE} && {events}.length >= 3")
    click(page, "Pause")
    server.request("DELETE", f"/{collection}/docs/two")
    page.wait("document.querySelector('.head').innerText.includes('1 held back')")
    click(page, "Go on")
    page.wait(f"{events}[0].innerText.includes('delete')")
    page.run(f"{events}[0].querySelector('button').click()")
    click(page, "Bring it back")
    click(page, "Save", DIALOG)
    page.wait("document.querySelector('dialog') === null")
    assert server.request("GET", f"/{collection}/docs/two").json()["room"] == "r2"
    fill(page, "Show only", "r2")
    page.wait(f"{events}.length === 3")
    assert fits_a_phone(page)

    visit(page, f"documents/{collection}", f"{LIVE} && {ROWS}.length === 2")
    click(page, "one")
    click(page, "History", DIALOG)
    click(page, f"Back to seq {begin}", DIALOG)
    click(page, "What changes", DIALOG)
    page.wait(f"{DIALOG}.innerText.includes('+   \"n\": 1')")
    click(page, "Save", DIALOG)
    page.wait("document.querySelector('dialog') === null")
    assert server.request("GET", f"/{collection}/docs/one").json()["n"] == first["n"]
    recorded = server.rows(f"SELECT action, details FROM audit WHERE target='{collection}' ORDER BY id")
    assert [action for action, _ in recorded] == ["document.restore"] * 2
    assert f"one, back to seq {begin}" in recorded[1][1]


def printed(command: list[str], server: Server) -> str:
    """What a command prints that finds the key in its environment."""
    env = {**ENVIRONMENT, "PAPERDB_API_KEY": server.key}
    return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True, env=env).stdout


def test_a_token_is_composed_tried_and_taken_along(
    page: Page, server: Server, collection: str, package: Path, tmp_path: Path
) -> None:
    for name, room in (("a", "r1"), ("b", "r2")):
        server.insert(collection, {"_id": name, "room": room, "secret": "hidden", "it's": 'a "quote"'})
    visit(page, "tokens", "document.querySelector('fieldset') !== null")
    rule = "document.querySelector('fieldset')"
    fill(page, "Collection", collection, rule)
    click(page, "Condition", rule)
    fill(page, "Field", "room", rule)
    fill(page, "Value", "r1", rule)
    click(page, "Apply", rule)
    fill(page, "Visible fields", "room, it's", rule)
    fill(page, "Subject", "o'hara $HOME")
    snippet = "document.querySelector('[aria-label=Code]').textContent"
    body = json.loads(printed([need("bash"), "-c", page.run(snippet)], server))
    assert body["collections"] == {collection: {"filter": {"room": "r1"}, "select": ["room", "it's"]}}
    assert body["subject"] == "o'hara $HOME"
    click(page, "Python")
    source = page.run(snippet).replace("from paperdb import", "from paperdb_trio import")
    assert f"{server.url}/sdk/paperdb.zip" in source
    shown = {"_id": "a", "room": "r1", "it's": 'a "quote"'}
    assert printed([sys.executable, "-c", source], server).strip() == str(shown)
    click(page, "JavaScript")
    script = page.run(snippet) + '\nlive.subscribe(({ status }) => status === "live" && process.exit());'
    with Script(package, script, env={"PAPERDB_API_KEY": server.key}) as node:
        assert "it's" in node.end(15)

    click(page, "Mint")
    click(page, "See the data as this token")
    page.wait("document.querySelector('.banner')?.innerText.includes(\"the token of o'hara\")")
    visit(page, f"documents/{collection}", f"{LIVE} && {ROWS}.length === 1")
    assert "hidden" not in page.run("document.body.innerText")
    assert barriers(page) == []
    click(page, "Back to my key")
    page.wait("document.querySelector('.banner') === null && document.querySelector('fieldset') !== null")


def test_what_users_write_stays_text(page: Page, server: Server) -> None:
    """Wherever they can write: ids, fields, values, filters, subjects, names of collections."""
    document = {"_id": EVIL.replace("/", "-"), EVIL: EVIL, "deep": {EVIL: [EVIL]}, "__proto__": EVIL}
    filter = json.dumps(json.dumps({EVIL: EVIL}))
    for name in ("__proto__", "constructor"):
        server.insert(name, document)
        visit(page, f"documents/{name}", f"{LIVE} && {ROWS}.length === 1")
        assert page.run(f"{ROWS}[0]").count("<img src=x") == 5
        page.run("document.querySelector('.grid tbody button').click()")
        page.wait(f"{DIALOG} !== undefined")
        click(page, "History", DIALOG)
        page.wait(f"{DIALOG}.querySelector('.diff') !== null")
        click(page, "Close", DIALOG)
        page.run(f"location.hash = '#/documents/{name}?sort=n&filter=' + encodeURIComponent({filter})")
        page.wait("document.querySelector('.filter').innerText.includes('INVALID_FIELD')")
        page.run(f"location.hash = '#/documents/{name}/' + encodeURIComponent({json.dumps(EVIL)})")
        page.wait(LIVE)
        visit(page, f"live?collection={name}&since=0", "document.querySelector('.event') !== null")
        page.run("document.querySelector('.event').click()")
        page.wait("document.querySelector('.diff') !== null")
    page.run(f"location.hash = '#/documents/' + encodeURIComponent({json.dumps(EVIL)})")
    page.wait("document.body.innerText.includes('<img src=x')")
    visit(page, "tokens", "document.querySelector('fieldset') !== null")
    fill(page, "Subject", EVIL)
    click(page, "Mint")
    page.wait("document.body.innerText.includes('Revoke all of <img')")
    assert page.run("document.querySelectorAll('img, script:not([src])').length") == 0


def test_everyone_can_use_it(page: Page, server: Server, collection: str) -> None:
    """What axe-core knows of WCAG, in light and dark; and the width of a phone."""
    server.request(
        "POST", f"/{collection}/bulk", json=[{"n": n, "text": "x" * 300, "on": None} for n in range(5)]
    )
    server.insert("0" * 64, {})  # a long name in each list of collections
    steps = {
        f"documents/{collection}?filter=%7B%22n%22%3A%7B%22lt%22%3A4%7D%7D": f"{LIVE} && {ROWS}.length === 4",
        "tokens": "document.querySelector('fieldset') !== null",
    }
    for address, until in steps.items():
        visit(page, address, until)
        assert barriers(page) == [], address
        assert fits_a_phone(page), address
    visit(page, f"documents/{collection}")
    for label in ("Insert", "Import", "Export", "Schema", "Delete…"):
        click(page, label)
        page.wait(f"{DIALOG}?.open")
        assert barriers(page) == [], label
        assert fits_a_phone(page), label
        page.press("Escape")
        page.wait("document.querySelector('dialog') === null")
    click(page, "Sign out")
    page.wait("document.querySelector('#sign-in') !== null")
    assert page.run("sessionStorage.length") == 0
    assert barriers(page) == []
    assert fits_a_phone(page)


def test_a_public_key_reads_until_it_is_revoked(browser: Browser, server: Server, collection: str) -> None:
    server.insert(collection, {"_id": "one"})
    public = server.new_key(public=True)
    with browser.page(server.url) as page:
        page.listen()
        sign_in(page, public["key"])
        visit(page, f"documents/{collection}", f"{LIVE} && {ROWS}.length === 1")
        click(page, "one")
        page.wait(f"{DIALOG}.querySelector('textarea').readOnly")
        shown = page.run("[...document.querySelectorAll('button')].map((one) => one.innerText)")
        assert not {"Insert", "Import", "Delete…", "Save", "Delete"} & set(shown)
        server.cli("keys", "revoke", public["id"])
        wait_until(lambda: server.request("GET", "/collections", key=public["key"]).status_code == 401)
        visit(page, f"documents/{collection}?sort=n", "document.querySelector('#sign-in') !== null")
        assert "UNAUTHORIZED" in page.run("document.getElementById('refused').innerText")
        assert page.complaints == []
