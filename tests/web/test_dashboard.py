"""The dashboard in a browser, over real data: its page and its documents; test_dashboard_live.py has the rest.

Each test with the fixture `page` ends with a look at `page.complaints`: errors of scripts and of the policy.
"""

from __future__ import annotations

import json
from pathlib import Path

from paperdb_trio.rest.pages import PAGE_HEADERS
from tests.conftest import Server, StartServer, wait_until
from tests.web.browser import Browser, Page
from tests.web.dashboard import DIALOG, LIVE, ROWS, barriers, click, fill, sign_in, upload, visit

MAX_WEIGHT = 150_000
"""Bytes of the page with all that it loads, as they are sent: compressed."""


def test_the_page_is_light_and_its_policy_holds(browser: Browser, server: Server) -> None:
    found = server.request("GET", "/")
    assert {name: found.headers[name] for name in PAGE_HEADERS} == PAGE_HEADERS
    with browser.page(server.url) as page:
        page.wait("document.querySelector('.theme') !== null")
        entries = "['navigation', 'resource'].flatMap((type) => performance.getEntriesByType(type))"
        loaded = dict(page.run(f"{entries}.map(({{ name, encodedBodySize }}) => [name, encodedBodySize])"))
        assert f"{server.url}/sdk/realtime.js" in loaded
        assert len(loaded) > 30
        assert 90_000 < sum(loaded.values()) <= MAX_WEIGHT
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
    server.insert(f"{collection}-2", {})
    focused = "document.activeElement"
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
        page.run("document.querySelector('.skip').focus()")
        page.press("Enter")
        page.wait(f"{focused}.getAttribute('aria-label') === 'Collection {collection}'")
        page.press("Tab", holding="Shift")  # back to the collections, which are one step however many there are
        assert page.run(f"{focused}.firstChild.innerText") == collection
        for key, name in (("ArrowDown", f"{collection}-2"), ("ArrowUp", collection)):
            page.press(key)
            assert page.run(f"{focused}.firstChild.innerText") == name
        for _ in range(25):
            page.press("Tab")
            if page.run(f"{focused}.closest('.grid tbody') !== null"):
                break
        else:
            raise AssertionError("no row within 25 steps")
        page.press("ArrowDown", "ArrowRight", "Enter")
        page.wait(f"{DIALOG}?.innerText.includes('/ one')")
        page.run("document.activeElement.select()")
        page.type('{"n": 12345678901234567890123, "a": "b"}')
        page.press("s", holding="Control")
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
    page.run("window.next = document.querySelector('[aria-label=Pages] button'); 1")
    server.insert(collection, {"_id": "first", "n": -1})
    page.wait(f"{ROWS}[0].startsWith('first')")
    assert page.run("document.activeElement.innerText") == "d000"
    server.request("PATCH", f"/{collection}/docs/d000", json={"n": 0.5})
    page.wait(f"{ROWS}[1].includes('0.5')")
    assert page.run("next.isConnected")  # somebody may be about to press it
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


def unfinished(folder: Path) -> list[Path]:
    """What Chromium or Firefox is still saving."""
    return [*folder.glob("*.crdownload"), *folder.glob("*.part")]


def download(page: Page, folder: Path, label: str, name: str) -> bytes:
    page.save_into(folder)
    click(page, "Export")
    fill(page, "Format", label, DIALOG)
    click(page, "Export", DIALOG)
    page.wait(f"{DIALOG}?.innerText.includes(' are in {name}')")
    click(page, "Close", DIALOG)
    file = folder / name
    wait_until(lambda: file.exists() and file.stat().st_size > 0 and not unfinished(folder))
    return file.read_bytes()


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
    recorded = server.rows(f"SELECT action FROM audit WHERE target='{collection}' ORDER BY id")
    imported, deleted, dropped = "documents.import", "documents.delete", "collection.drop"
    assert [action for (action,) in recorded] == [imported, deleted, imported, dropped]


def test_large_documents_come_in_smaller_pages(browser: Browser, start_server: StartServer) -> None:
    server = start_server("--max-result-bytes", "1048576")
    server.request("POST", "/big/bulk", json=[{"text": "x" * 64_000} for _ in range(30)])
    with browser.page(server.url) as page:
        sign_in(page, server.key)
        visit(page, "documents/big", f"{LIVE} && {ROWS}.length === 4")
        click(page, "Next")
        page.wait(f"{LIVE} && document.querySelector('[aria-label=Pages]').innerText.includes('5 to 8')")
