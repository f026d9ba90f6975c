"""The dashboard in Chromium, over real data: documents, live, tokens.

Each test ends with what `page.complaints` must be: no error of a script, none of the policy.
"""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from paperdb_trio.rest.pages import PAGE_HEADERS
from paperdb_trio.web import assets
from tests.conftest import ENVIRONMENT, Server, StartServer, need, wait_until
from tests.web.cdp import Browser, Page, chromium
from tests.web.dashboard import DIALOG, LIVE, ROWS, barriers, click, fill, fits_a_phone, sign_in, visit
from tests.web.tools import Script

MAX_WEIGHT = 300_000
"""Bytes of the page with all that it loads, compressed."""
EVIL = """<img src=x onerror="bad()">'"><script>bad()</script>${bad()}{{bad()}}"""
CONTROL = 2
"""The modifier of a key."""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("chromium"), "--window-size=1200,900") as browser:
        yield browser


@pytest.fixture
def page(browser: Browser, server: Server) -> Iterator[Page]:
    """The dashboard, with a secret key."""
    with browser.page(server.url, "window.bad = () => console.error('it ran')") as page:
        page.listen()
        sign_in(page, server.key)
        yield page
        assert page.complaints == []


def test_the_page_is_light_and_its_policy_holds(browser: Browser, server: Server) -> None:
    found = server.request("GET", "/")
    assert {name: found.headers[name] for name in PAGE_HEADERS} == PAGE_HEADERS
    with browser.page(server.url) as page:
        page.wait("document.querySelector('.theme') !== null")
        loaded = page.run("performance.getEntriesByType('resource').map(({ name }) => name)")
        assert f"{server.url}/sdk/realtime.js" in loaded
        paths = {"/", *(url.removeprefix(server.url) for url in loaded)}
        bodies = [asset.body for path, asset in assets.load().items() if path in paths]
        assert len(bodies) == len(paths)
        assert sum(len(gzip.compress(body)) for body in bodies) <= MAX_WEIGHT
        tries = """
            const tried = (run) => { try { run(); return "done"; } catch (error) { return error.name; } };
            [tried(() => { document.body.innerHTML = "<b>x</b>"; }),
             tried(() => { document.createElement("script").textContent = "bad()"; }),
             tried(() => { document.body.setAttribute("onclick", "bad()"); })]"""
        assert page.run(tries) == ["TypeError", "TypeError", "TypeError"]
        assert page.run("fetch('http://127.0.0.1:1/').then(() => 1, () => 0)") == 0


def test_from_signing_in_to_a_change_by_keyboard_alone(
    browser: Browser, server: Server, collection: str
) -> None:
    server.insert(collection, {"_id": "one", "n": 1})
    server.insert(collection, {"_id": "two", "n": 2})
    with browser.page(f"{server.url}/#/documents/{collection}") as page:
        page.listen()
        page.press("Tab", "Tab")
        page.type("pdb_sk_wrong")
        page.press("Enter")
        page.wait("document.getElementById('refused').innerText.includes('UNAUTHORIZED')")
        page.run("document.activeElement.select()")
        page.type(server.key)
        page.press("Enter")
        page.wait(f"{LIVE} && {ROWS}.length === 2")
        for _ in range(60):
            page.press("Tab")
            if page.run("document.activeElement.closest('.grid tbody') !== null"):
                break
        page.press("ArrowDown", "ArrowRight", "Enter")
        page.wait(f"{DIALOG}?.innerText.includes('/ one')")
        page.run("document.activeElement.select()")
        page.type('{"n": 12345678901234567890123, "a": "b"}')
        page.press("s", modifiers=CONTROL)
        page.wait("document.querySelector('dialog') === null")
        page.wait(f"{ROWS}[1].includes('b')")
        assert page.run("document.activeElement.innerText") == "one"
        assert "12345678901234567890123" in server.request("GET", f"/{collection}/docs/one").text
        assert page.complaints == []


def test_a_grid_changes_as_one_watches(page: Page, server: Server, collection: str) -> None:
    documents = [{"_id": f"d{n:03}", "n": n, "even": n % 2 == 0} for n in range(250)]
    server.request("POST", f"/{collection}/bulk", json=documents)
    visit(page, f"documents/{collection}?sort=n", f"{LIVE} && {ROWS}.length === 100")
    page.run("document.querySelector('.grid tbody button').focus()")
    server.insert(collection, {"_id": "first", "n": -1})
    page.wait(f"{ROWS}[0].startsWith('first')")
    assert page.run("document.activeElement.innerText") == "d000"
    server.request("PATCH", f"/{collection}/docs/d000", json={"n": 0.5})
    page.wait(f"{ROWS}[1].includes('0.5')")
    assert page.run("document.activeElement.innerText") == "d000"
    server.request("DELETE", f"/{collection}/docs/first")
    page.wait(f"{ROWS}[0].startsWith('d000')")
    page.wait("document.querySelector('.head').innerText.includes('250 documents')")

    click(page, "Next")
    page.wait(f"{LIVE} && {ROWS}[0].startsWith('d100') && {ROWS}.length === 100")
    server.request("PATCH", f"/{collection}/docs/d150", json={"text": "here"})
    server.request("DELETE", f"/{collection}/docs/d151")
    page.wait(f"{ROWS}[50].includes('here')")
    page.wait("document.querySelector('tr.gone')?.innerText.includes('d151')")
    click(page, "Next")
    page.wait(f"{ROWS}[0].startsWith('d200') && {ROWS}.length === 50")
    assert page.run("document.querySelector('[aria-label=Pages]').innerText.includes('Next')") is False
    click(page, "First")
    page.wait(f"{LIVE} && {ROWS}[0].startsWith('d000')")

    click(page, "Condition")
    fill(page, "Field", "even")
    fill(page, "Value", "true")
    click(page, "Condition")
    fill(page, "Field", "n", "document.querySelectorAll('.condition')[1]")
    fill(page, "Operator", "gte", "document.querySelectorAll('.condition')[1]")
    fill(page, "Value", "240", "document.querySelectorAll('.condition')[1]")
    click(page, "Apply")
    page.wait(f"{LIVE} && {ROWS}.length === 5")
    page.wait("document.querySelector('.head').innerText.includes('5 match of')")
    assert json.loads(page.run("new URLSearchParams(location.hash.split('?')[1]).get('filter')")) == {
        "even": True,
        "n": {"gte": 240},
    }
    page.run("document.querySelector('[title=\"Sort by n\"]').click()")
    page.wait(f"{LIVE} && {ROWS}[0].startsWith('d248')")
    assert page.run("document.querySelector('[aria-sort]').getAttribute('aria-sort')") == "descending"
    click(page, "As JSON")
    fill(page, "Filter as JSON", '{"n": {"near": 3}}')
    click(page, "Apply")
    page.wait("document.querySelector('.filter').innerText.includes('UNKNOWN_OPERATOR')")


def test_a_plan_is_shown_and_its_index_made(page: Page, server: Server, collection: str) -> None:
    server.request("POST", f"/{collection}/bulk", json=[{"n": n, "m": n % 7} for n in range(900)])
    visit(page, f"documents/{collection}?sort=m&filter=%7B%22n%22%3A5%7D", f"{LIVE} && {ROWS}.length === 1")
    click(page, "Plan")
    click(page, "Make the index n, m", DIALOG)
    page.wait(f"{DIALOG}?.querySelector('dd')?.innerText === 'n, m'")
    assert server.request("GET", f"/{collection}/schema").json()["indexes"] == [["n", "m"]]


def test_two_admins_edit_one_document(browser: Browser, page: Page, server: Server, collection: str) -> None:
    server.insert(collection, {"_id": "one", "title": "old", "n": 1})
    with browser.page(server.url) as other:
        sign_in(other, server.key)
        for each in (page, other):
            visit(each, f"documents/{collection}", f"{LIVE} && {ROWS}.length === 1")
            click(each, "one")
        fill(page, "Document as JSON", '{"title": "old", "n": 2}', DIALOG)
        fill(other, "Document as JSON", '{"title": "new", "n": 1}', DIALOG)
        click(other, "Save", DIALOG)
        other.wait("document.querySelector('dialog') === null")
        page.show()
        page.wait(f"{DIALOG}?.innerText.includes('Somebody changed this document')")
        click(page, "Save", DIALOG)
        page.wait(f"{DIALOG}?.innerText.includes('Nothing was overwritten')")
        assert server.request("GET", f"/{collection}/docs/one").json()["title"] == "new"
        assert barriers(page) == []
        said = page.run(f"{DIALOG}?.innerText")
        assert 'removed: - "title": "old"' in " ".join(said.split())
        click(page, "Take theirs", DIALOG)
        fill(page, "Document as JSON", '{"title": "new", "n": 2}', DIALOG)
        click(page, "Save", DIALOG)
        page.wait("document.querySelector('dialog') === null")
        document = server.request("GET", f"/{collection}/docs/one").json()
        assert (document["title"], document["n"]) == ("new", 2)
    click(page, "one")
    fill(page, "Document as JSON", '{"title": "mine"}', DIALOG)
    server.request("DELETE", f"/{collection}/docs/one")
    click(page, "Save", DIALOG)
    click(page, "Insert it again", DIALOG)
    page.wait("document.querySelector('dialog') === null")
    assert server.request("GET", f"/{collection}/docs/one").json()["title"] == "mine"


def download(page: Page, folder: Path, label: str, name: str) -> bytes:
    page.call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(folder))
    click(page, "Export")
    fill(page, "Format", label, DIALOG)
    click(page, "Export", DIALOG)
    page.wait(f"{DIALOG}?.innerText.includes(' are in {name}')")
    click(page, "Close", DIALOG)
    file = folder / name
    wait_until(lambda: file.exists() and not list(folder.glob("*.crdownload")))
    return file.read_bytes()


def upload(page: Page, file: Path) -> None:
    click(page, "Import")
    page.wait(f"{DIALOG}?.querySelector('[type=file]') !== null")
    root = page.call("DOM.getDocument")["root"]["nodeId"]
    node = page.call("DOM.querySelector", nodeId=root, selector="[type=file]")["nodeId"]
    page.call("DOM.setFileInputFiles", files=[str(file)], nodeId=node)
    click(page, "Import", DIALOG)


def test_what_is_exported_can_be_imported_and_deleted(
    page: Page, server: Server, collection: str, tmp_path: Path
) -> None:
    lines = [
        '{"_id": "a", "n": 123456789012345678901, "text": "one, \\"two\\"\\nthree"}',
        '{"_id": "b", "n": 1.5, "list": [1, {"x": null}], "text": "12"}',
        '{"_id": "a"}',
        '{"_id": "c", "yes": true',
    ]
    (tmp_path / "in.ndjson").write_text("\n".join(lines))
    visit(page, f"documents/{collection}")
    upload(page, tmp_path / "in.ndjson")
    page.wait(f"{DIALOG}?.innerText.includes('2 inserted, 2 refused')")
    assert "Line 4" in page.run(f"{DIALOG}?.innerText")
    click(page, "Close", DIALOG)
    page.wait(f"{LIVE} && {ROWS}.length === 2")

    own = ("createdAt", "updatedAt")
    exported = download(page, tmp_path, "ndjson", f"{collection}.ndjson").decode()
    assert "123456789012345678901" in exported
    found = [json.loads(line) for line in exported.splitlines()]
    assert [{k: v for k, v in one.items() if k not in own} for one in found] == [
        json.loads(x) for x in lines[:2]
    ]
    csv = download(page, tmp_path, "csv", f"{collection}.csv")
    assert csv.decode().startswith("_id,n,text,createdAt,updatedAt,list\r\n")

    page.run("document.querySelector('thead input').click()")
    click(page, "Delete 2…")
    page.wait(f"{DIALOG}?.innerText.includes('2 selected documents')")
    assert page.run(f"{DIALOG}?.querySelector('.danger').disabled") is True
    fill(page, "Type", collection, DIALOG)
    click(page, "Delete 2", DIALOG)
    page.wait(f"{ROWS}.length === 0")
    upload(page, tmp_path / f"{collection}.csv")
    page.wait(f"{DIALOG}?.innerText.includes('2 inserted, 0 refused')")
    again = server.request("GET", f"/{collection}/docs/a").json()
    assert (again["n"], again["text"]) == (123456789012345678901, 'one, "two"\nthree')
    assert server.request("GET", f"/{collection}/docs/b").json()["list"] == [1, {"x": None}]
    click(page, "Close", DIALOG)
    click(page, "Delete…")
    fill(page, "Type", collection, DIALOG)
    click(page, "Delete 2 documents", DIALOG)
    page.wait("location.hash === '#/documents'")
    assert server.request("GET", f"/{collection}/count").json() == {"count": 0}


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


def test_large_documents_come_in_smaller_pages(browser: Browser, start_server: StartServer) -> None:
    server = start_server("--max-result-bytes", "1048576")
    server.request("POST", "/big/bulk", json=[{"text": "x" * 64_000} for _ in range(30)])
    with browser.page(server.url) as page:
        sign_in(page, server.key)
        visit(page, "documents/big", f"{LIVE} && {ROWS}.length === 4")
        click(page, "Next")
        page.wait(f"{LIVE} && document.querySelector('[aria-label=Pages]').innerText.includes('5 to 8')")


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
