"""The inspector with thousands of connections: `just dashboard-crowd`. Not for CI.

Prints the seconds until the page answers what operators ask: who is connected, why somebody did not get a
change, which collection is busiest, why it is slow.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import os
import resource
import socket
import tempfile
from pathlib import Path
from time import perf_counter

from tests.conftest import Server
from tests.web.browser import Page
from tests.web.cdp import chromium
from tests.web.dashboard import BOTH_LISTED, DIALOG, admin_key, click, fill, sign_in, visit

LIMIT = 10.0
"""Seconds for each question."""
PEOPLE = 500
ROWS = "document.querySelectorAll('.list tbody tr').length"


def connected(server: Server, token: str) -> socket.socket:
    """A WebSocket that reads nothing more once it is open."""
    key = base64.b64encode(os.urandom(16)).decode()
    peer = socket.create_connection(("127.0.0.1", server.port), 10)
    lines = (
        f"GET /?since=now&token={token} HTTP/1.1",
        f"Host: 127.0.0.1:{server.port}",
        *("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13"),
        f"Sec-WebSocket-Key: {key}",
    )
    peer.sendall("\r\n".join((*lines, "", "")).encode())
    assert peer.recv(12).endswith(b"101")
    return peer


def tokens(server: Server) -> list[str]:
    made = []
    for number in range(PEOPLE):
        rules = {"orders": {"filter": {"customer": f"c{number}"}}}
        body = {"collections": rules, "subject": f"person {number}", "expiresIn": 3600}
        made.append(server.request("POST", "/realtime/token", json=body).json()["token"])
    return made


def measure(what: str, began: float) -> None:
    seconds = perf_counter() - began
    print(f"{what:<52} {seconds:6.2f} s", flush=True)
    assert seconds < LIMIT, what


def ask(page: Page, key: str, server: Server, count: int) -> None:
    began = perf_counter()
    sign_in(page, key)
    visit(page, "inspector", f"{ROWS} === 100")
    page.wait(f"document.querySelector('.head').innerText.includes('{count:,} connections')")
    measure("sign in: who is connected", began)
    began = perf_counter()
    fill(page, "Find", "person 321")
    page.wait(f"{ROWS} === {count // PEOPLE}", LIMIT)
    measure("find a person's connections", began)
    began = perf_counter()
    page.run("document.querySelector('.list td.do button').click()")
    fill(page, "Collection", "orders", DIALOG)
    fill(page, "Document", "one", DIALOG)
    click(page, "Why?", DIALOG)
    page.wait(f"{DIALOG}.querySelector('fieldset .badge')?.innerText === 'rule'", LIMIT)
    measure("why it did not get a change", began)
    click(page, "Close", DIALOG)
    orders = [{"customer": f"c{number}", "total": number} for number in range(1000)]
    for _ in range(20):
        server.request("POST", "/orders/bulk", json=orders)
    server.request("GET", "/orders/docs", params={"filter": '{"total": {"gt": 5}}', "sort": "-total"})
    began = perf_counter()
    visit(page, "health", BOTH_LISTED)
    assert "default / orders" in page.run("document.querySelector('.list').innerText")
    measure("which collection is busiest", began)
    page.wait("document.querySelectorAll('.list')[1].innerText.includes('Make the index')", LIMIT)
    measure("why it is slow: the query, and the index that helps", began)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--connections", type=int, default=5000)
    count = parser.parse_args().connections
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        server = Server(Path(name) / "data", ("--slow-query-ms", "1"))
        stack.callback(server.stop)
        key = admin_key(server)
        minted = tokens(server)
        for number in range(count):
            stack.enter_context(connected(server, minted[number % PEOPLE]))
        print(f"{count:,} connections, each with a rule of its own", flush=True)
        server.insert("orders", {"_id": "one", "customer": "somebody else"})
        browser = stack.enter_context(chromium(Path(name) / "chromium"))
        with browser.page(server.url) as page:
            ask(page, key, server, count)


if __name__ == "__main__":
    main()
