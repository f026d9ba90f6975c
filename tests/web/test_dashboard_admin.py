"""The dashboard's parts for operators, in Chromium: inspector, health, access."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from websockets.sync.client import connect

from tests.conftest import Server, StartServer, receive, wait_until
from tests.hooks.receiver import receiving
from tests.realtime.raw import end_of
from tests.store.tools import LONG_TO_SEARCH
from tests.web.browser import Browser, Page
from tests.web.dashboard import (
    BOTH_LISTED,
    BUSIEST,
    DIALOG,
    LIVE,
    ROWS,
    admin_key,
    barriers,
    click,
    fill,
    fits_a_phone,
    sign_in,
    visit,
)

EVIL = "<img src=x onerror=bad()>"
TABLE = (
    "[...document.querySelectorAll('.list tbody tr')].map((tr) => tr.innerText.replace(/\\s+/g, ' ').trim())"
)
CHOSEN_TAB = "document.querySelector('[aria-selected=true]')?.innerText"
TOASTS = "document.getElementById('toasts').innerText"


@pytest.fixture(scope="module")
def admin(server: Server) -> str:
    """An admin key."""
    return admin_key(server, "boss")


@pytest.fixture
def page(browser: Browser, server: Server, admin: str) -> Iterator[Page]:
    """The dashboard, with an admin key."""
    with browser.page(server.url, "window.bad = () => console.error('it ran')") as page:
        page.listen()
        sign_in(page, admin)
        yield page
        assert page.complaints == []


def within(text: str) -> str:
    """The row of a table with this text."""
    rows = "[...document.querySelectorAll('.list tbody tr')]"
    return f"{rows}.find((tr) => tr.innerText.includes({json.dumps(text)}))"


def test_databases_and_keys_come_and_go(browser: Browser, page: Page, server: Server, collection: str) -> None:
    visit(page, "access", f"{within('default')} !== undefined")
    click(page, "New database")
    fill(page, "Name", collection, DIALOG)
    fill(page, "Plan", "free", DIALOG)
    click(page, "Create", DIALOG)
    page.wait(f"{within(collection)}.innerText.includes('free')")
    click(page, "Change", within(collection))
    fill(page, "Name", f"{collection}-2", DIALOG)
    fill(page, "Plan", "team", DIALOG)
    assert barriers(page) == []
    click(page, "Save", DIALOG)
    page.wait(f"{within(collection + '-2')}.innerText.includes('team')")

    click(page, "Keys")
    click(page, "New key")
    fill(page, "Database", f"{collection}-2", DIALOG)
    fill(page, "Label", EVIL, DIALOG)
    fill(page, "Expires", "30", DIALOG)
    click(page, "Create", DIALOG)
    page.wait(f"{DIALOG}.innerText.includes('only time')")
    key = page.run(f"{DIALOG}.querySelector('input').value")
    assert key.startswith("pdb_sk_")
    click(page, "Close", DIALOG)
    page.wait(f"{within(EVIL)} !== undefined")
    assert key not in page.run("document.documentElement.outerHTML")
    server.insert("things", {"_id": "one"}, key=key)
    assert barriers(page) == []
    assert fits_a_phone(page)
    click(page, "Revoke", within(EVIL))
    click(page, "Revoke it", DIALOG)
    page.wait(f"{within(EVIL)}.innerText.includes('revoked')")
    assert server.request("GET", "/collections", key=key).status_code == 401

    click(page, "Signing secrets")
    click(page, "Rotate")
    click(page, "Rotate", DIALOG)
    page.wait(f"{TABLE}.length >= 2")
    click(page, "Databases")
    click(page, "Delete", within(f"{collection}-2"))
    fill(page, "Type", f"{collection}-2", DIALOG)
    click(page, "Delete it", DIALOG)
    page.wait(f"{within('default')} && {within(collection)} === undefined")
    click(page, "Record")
    page.wait(f"{TABLE}[0].includes('(boss)') && {TABLE}.some((row) => row.includes({json.dumps(EVIL)}))")
    assert barriers(page) == []


def test_an_admin_sees_the_documents_of_a_database_that_is_chosen(
    page: Page, server: Server, collection: str
) -> None:
    server.insert(collection, {"_id": "one", "n": 1})
    assert "Documents" not in page.run("document.querySelector('nav').innerText")
    fill(page, "Database", "default")
    page.wait("location.hash === '#/documents'")
    visit(page, f"documents/{collection}", f"{LIVE} && {ROWS}.length === 1")
    click(page, "one")
    fill(page, "Document as JSON", '{"n": 2}', DIALOG)
    click(page, "Save", DIALOG)
    page.wait(f"{ROWS}[0].startsWith('one 2')")
    visit(page, f"live?collection={collection}&since=0", "document.querySelectorAll('.event').length === 2")


def test_who_is_connected_and_why_somebody_did_not_get_a_change(
    page: Page, server: Server, collection: str
) -> None:
    rule = {collection: {"filter": {"room": "r1"}}}
    body = {"collections": rule, "subject": EVIL}
    token = server.request("POST", "/realtime/token", json=body).json()["token"]
    with connect(f"{server.ws_url}/?since=now&token={token}", proxy=None) as ws:
        assert receive(ws)["type"] == "ready"
        server.insert(collection, {"_id": "seen", "room": "r1"})
        assert receive(ws)["data"]["_id"] == "seen"
        server.insert(collection, {"_id": "other", "room": "r2"})
        visit(page, "inspector", f"{within(EVIL)} !== undefined")
        assert barriers(page) == []
        assert fits_a_phone(page)
        fill(page, "Find", collection)
        page.wait(f"{TABLE}.length === 1")
        click(page, "Look", within(EVIL))
        page.wait(f'{DIALOG}.innerText.includes(\'"room":"r1"\')')
        for id, outcome in (("seen", "sent"), ("other", "rule")):
            fill(page, "Collection", collection, DIALOG)
            fill(page, "Document", id, DIALOG)
            click(page, "Why?", DIALOG)
            page.wait(f"{DIALOG}.querySelector('fieldset .badge')?.innerText === {json.dumps(outcome)}")
            said = page.run(f"{DIALOG}.innerText")
            assert f"insert of {collection} / {id}" in said
            assert ("it is an event there (insert)" if id == "seen" else "it is no event there") in said
            assert not {"NaN", "undefined"} & {*said.replace(":", " ").split()}
        assert barriers(page) == []
        assert fits_a_phone(page)
        click(page, f"Revoke all of {EVIL}", DIALOG)
        click(page, "Yes, end it", DIALOG)
        assert end_of(ws) == 4403
    page.wait(f"{within(EVIL)} === undefined")


@pytest.mark.sqlite
def test_a_webhook_that_fails_is_seen_and_goes_on(page: Page, server: Server, collection: str) -> None:
    with receiving() as receiver:
        receiver.responds = 500
        url = f"{receiver.url}/{collection}?{EVIL.replace(' ', '+')}"
        visit(page, "access/webhooks", f"{CHOSEN_TAB} === 'Webhooks'")
        click(page, "New webhook")
        fill(page, "URL", url, DIALOG)
        fill(page, "Collection", collection, DIALOG)
        fill(page, "Filter", '{"room": ', DIALOG)
        click(page, "Add", DIALOG)
        page.wait(f"{TOASTS}.includes('The filter is not JSON')")
        fill(page, "Filter", json.dumps({"room": {"in": [EVIL]}}), DIALOG)
        assert barriers(page) == []
        click(page, "Add", DIALOG)
        page.wait(f"{DIALOG}?.innerText.includes('only now')")
        assert page.run(f"{DIALOG}.querySelector('input').value").startswith("whsec_")
        click(page, "Close", DIALOG)
        row = within(collection)
        page.wait(f"{row}?.innerText.includes('live')")
        server.insert(collection, {"room": EVIL})
        page.wait(f"{row}.innerText.includes('expected 2xx') && {row}.innerText.includes('next try at')")
        assert "1 change" in page.run(f"{row}.innerText")
        assert barriers(page) == []
        assert fits_a_phone(page)
        click(page, "Test", row)
        page.wait(f"{TOASTS}.includes('The test did not arrive: the response is 500')")
        receiver.responds = 200
        click(page, "Try again", row)
        page.wait(f"{row}.innerText.includes('live') && !{row}.innerText.includes('none yet')")
        assert receiver.await_events(1)[0]["data"]["room"] == EVIL
        click(page, "Pause", row)
        page.wait(f"{row}.innerText.includes('paused')")
        click(page, "Resume", row)
        page.wait(f"{row}.innerText.includes('live')")
        click(page, "Remove", row)
        click(page, "Remove it", DIALOG)
        page.wait(f"{row} === undefined")
        click(page, "Record")
        page.wait(f"{TABLE}[0].includes('webhook.remove')")


def test_health_moves_and_says_what_is_slow(
    browser: Browser, start_server: StartServer, collection: str
) -> None:
    server = start_server("--slow-query-ms", "1")
    server.request("POST", f"/{collection}/bulk", json=[{"n": n, EVIL: LONG_TO_SEARCH} for n in range(100)])
    filter = json.dumps({EVIL: {"contains": "x"}})

    def two_are_slow() -> bool:
        server.request("GET", f"/{collection}/docs", params={"filter": filter, "sort": "n"})
        return len(server.request("GET", "/admin.v1/health").json()["slowQueries"]) == 2

    wait_until(two_are_slow)
    for key in (admin_key(server), server.key):
        with browser.page(server.url, "window.bad = () => console.error('it ran')") as page:
            page.listen()
            sign_in(page, key)
            visit(page, "health", "document.querySelector('.card .line-0')?.getAttribute('d')?.includes('L')")
            writes = "document.querySelector('[aria-label=\"Writes per second\"] .value').innerText"
            server.insert(collection, {"n": 1})
            page.wait(f"Number({writes}) > 0")
            page.wait(BOTH_LISTED)
            assert page.run(f"{BUSIEST}.innerText").count(collection) == 1
            (query,) = page.run(f"{TABLE}.filter((row) => row.includes('no index'))")  # one row for both
            assert query.startswith(f'default / {collection} {{"{EVIL}":{{"contains":"?"}}}} n no index 2 ')
            if key != server.key:  # which sees the same with fewer cards
                assert barriers(page) == []
                assert fits_a_phone(page)
            assert page.complaints == []
