"""The pictures of the dashboard in README and docs: `python -m tests.web.pictures` makes them anew.

A server with the data of a small shop; Chromium at a fixed size. Each picture has less than `MAX_BYTES`.
"""

from __future__ import annotations

import contextlib
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
from websockets.sync.client import connect

from tests.conftest import Server
from tests.docs import ROOT
from tests.hooks.receiver import receiving
from tests.web.browser import Page
from tests.web.cdp import chromium
from tests.web.dashboard import LIVE, ROWS, admin_key, click, fill, sign_in, visit

MAX_BYTES = 150_000
WIDTH, HEIGHT = 1160, 660
ITEMS = ("Fountain pen", "Ink, blue-black", "Notebook A5", "Pencil 2B", "Eraser", "Ruler")
POINTS = 25
"""In a chart, before its picture is taken: two seconds each."""
PEOPLE = ("ada", "blaise", "dorothy", "emmy", "fritz")


def fill_shop(server: Server) -> None:
    chance = random.Random(1)
    orders = [
        {
            "customer": chance.choice(PEOPLE),
            "item": chance.choice(ITEMS),
            "amount": chance.randint(1, 12),
            "status": chance.choice(("open", "paid", "sent")),
            "total": round(chance.uniform(2, 90), 2),
        }
        for _ in range(400)
    ]
    server.request("POST", "/orders/bulk", json=orders)
    server.request("POST", "/customers/bulk", json=[{"_id": name, "since": 2024} for name in PEOPLE])
    server.request("PUT", "/stock/docs/ink", json={"item": ITEMS[1], "left": 14, "shelf": {"row": 3}})


def save(page: Page, name: str) -> None:
    file = ROOT / "docs" / f"dashboard-{name}.png"
    page.run("document.activeElement.blur()")
    page.screenshot(file)
    print(f"{file.relative_to(ROOT)}: {file.stat().st_size:,} bytes")
    assert file.stat().st_size < MAX_BYTES


def documents(page: Page) -> None:
    page.dark(False)
    visit(page, "documents/orders", f"{LIVE} && {ROWS}.length === 100")
    click(page, "Condition")
    fill(page, "Field", "status")
    fill(page, "Value", "open")
    click(page, "Apply")
    page.wait(f"{LIVE} && document.querySelector('.head').innerText.includes('match')")
    save(page, "documents")


def live(page: Page, server: Server) -> None:
    page.dark(True)
    visit(page, "live")
    order = server.insert("orders", {"customer": "ada", "item": ITEMS[2], "amount": 1, "status": "open"})
    server.request("PATCH", "/stock/docs/ink", json={"left": 13})
    server.request("PATCH", f"/orders/docs/{order['_id']}", json={"status": "paid"})
    server.request("DELETE", "/customers/docs/fritz")
    page.wait("document.querySelectorAll('.event').length === 4")
    page.run("document.querySelectorAll('.event')[1].click()")
    page.wait("document.querySelector('.diff') !== null")
    save(page, "live")


def tokens(page: Page) -> None:
    page.dark(False)
    visit(page, "tokens", "document.querySelector('fieldset') !== null")
    rule = "document.querySelector('fieldset')"
    fill(page, "Collection", "orders", rule)
    click(page, "Condition", rule)
    fill(page, "Field", "customer", rule)
    fill(page, "Value", "ada", rule)
    click(page, "Apply", rule)
    fill(page, "Visible fields", "item, amount, status", rule)
    fill(page, "Subject", "ada")
    click(page, "Python")
    save(page, "tokens")


@contextlib.contextmanager
def listening(server: Server) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for number, name in enumerate(PEOPLE):
            rule = {"filter": {"customer": name}, "select": ["item", "status"]}
            collections = {"orders": rule} if number % 2 else {"orders": {}, "stock": {}}
            body = {"collections": collections, "subject": name}
            token = server.request("POST", "/realtime/token", json=body).json()["token"]
            if number:
                url = f"{server.ws_url}/?since=now&token={token}"
                stack.enter_context(connect(url, proxy=None, max_queue=None))
                continue
            client = stack.enter_context(httpx.Client(http1=False, http2=True))
            headers = {"Authorization": f"Bearer {token}", "Accept": "text/event-stream"}
            stack.enter_context(client.stream("GET", f"{server.url}/orders/changes", headers=headers))
        yield


def inspector(page: Page) -> None:
    page.dark(False)
    visit(page, "inspector", "document.querySelectorAll('.list tbody tr').length >= 5")
    page.wait("document.querySelector('.list').innerText.includes('first')")
    save(page, "inspector")


def health(page: Page, server: Server) -> None:
    page.dark(True)
    visit(page, "health", "document.querySelector('.card .line-0')?.getAttribute('d')?.includes('L')")
    chance = random.Random(2)
    points = "document.querySelector('.card .line-0').getAttribute('d').split('L').length"
    while page.run(points) < POINTS:
        for _ in range(chance.randint(1, 60)):
            server.request("PATCH", "/stock/docs/ink", json={"left": chance.randint(0, 20)})
    page.run("document.querySelector('main').scrollIntoView()")
    save(page, "health")


def access(page: Page, server: Server, key: str) -> None:
    page.dark(False)
    with receiving() as receiver:
        for collection, status, shown in (("stock", 200, "live"), ("orders", 503, "expected 2xx")):
            receiver.responds = status
            body = {"database": "default", "url": f"{receiver.url}/{collection}", "collection": collection}
            assert server.request("POST", "/admin.v1/webhooks", json=body, key=key).status_code == 201
            visit(page, "access/webhooks", f"document.body.innerText.includes('/{collection}')")
            server.insert(collection, {"item": ITEMS[0]})
            page.wait(f"document.querySelector('.list').innerText.includes('{shown}')")
        save(page, "access")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder) / "data")
        try:
            fill_shop(server)
            profile = Path(folder) / "chromium"
            with chromium(profile, "--hide-scrollbars") as browser, browser.page(server.url) as page:
                page.resize((WIDTH, HEIGHT))
                sign_in(page, server.key)
                documents(page)
                live(page, server)
                tokens(page)
                click(page, "Sign out")
                key = admin_key(server)
                sign_in(page, key)
                with listening(server):
                    inspector(page)
                    health(page, server)
                access(page, server, key)
        finally:
            server.stop()


if __name__ == "__main__":
    main()
