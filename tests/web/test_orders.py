"""The order desk in `examples/orders`: own rows, a desk that sees all, and a worker that is killed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ENVIRONMENT, Server, StartServer, wait_until
from tests.web.browser import Browser, Page

HERE = Path(__file__).parents[2] / "examples/orders"
ROWS = """[...document.querySelectorAll("#orders tr")].map(
    (row) => [...row.cells].slice(0, 4).map((cell) => cell.textContent))"""
FORGE = """(async () => {
    const { createClient } = await import("paperdb");
    const headers = { "Content-Type": "application/json" };
    const request = { method: "POST", headers, body: '{"name": "bob"}' };
    const getToken = async () => (await (await fetch("token", request)).json()).token;
    const db = createClient({ baseUrl: SERVER, getToken });
    const forged = await db.results.insert({ userId: "bob", status: "accepted" }).catch(({ code }) => code);
    const foreign = { userId: "alice", item: "pen", amount: 1 };
    const others = await db.orders.insert(foreign).catch(({ code }) => code);
    return [forged, others, (await db.orders.find({ filter: {} })).map(({ userId }) => userId)];
})()"""


class Worker:
    """`worker.py`, which can be killed and started again."""

    def __init__(self, server: Server, cursor: Path) -> None:
        self._command = [str(HERE / "worker.py"), "--paperdb", server.url, "--cursor", str(cursor)]
        self._env = {**ENVIRONMENT, "PAPERDB_API_KEY": server.key}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, *self._command], stdout=subprocess.DEVNULL, env=self._env
        )

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process = None


@pytest.fixture
def worker(start_server: StartServer, tmp_path: Path) -> Iterator[tuple[Server, Worker]]:
    server = start_server()
    worker = Worker(server, tmp_path / "cursor.txt")
    try:
        yield server, worker
    finally:
        worker.kill()


@pytest.fixture
def desk(worker: tuple[Server, Worker]) -> Iterator[str]:
    """The address of its page."""
    server, _ = worker
    process = subprocess.Popen(
        [sys.executable, str(HERE / "app.py"), "--paperdb", server.url, "--port", "0"],
        stdout=subprocess.PIPE,
        text=True,
        env={**ENVIRONMENT, "PAPERDB_API_KEY": server.key},
    )
    assert process.stdout is not None
    try:
        yield process.stdout.readline().rpartition(" ")[2].strip()
    finally:
        process.terminate()
        process.communicate(timeout=10)


def order(page: Page, item: str, amount: int) -> None:
    page.wait(f"document.querySelector('#item option[value={item}]') !== null")
    page.run(f"""
        document.getElementById("item").value = {json.dumps(item)};
        document.getElementById("amount").value = {amount};
        document.getElementById("form").requestSubmit();""")


def wait_rows(page: Page, rows: list[list[str]]) -> None:
    wait_until(lambda: bool(page.run(ROWS) == rows), 20)


def test_customers_see_their_own_orders_and_the_desk_all(
    browser: Browser, worker: tuple[Server, Worker], desk: str
) -> None:
    server, running = worker
    running.start()
    with ExitStack() as stack:
        alice, bob, all = (
            stack.enter_context(browser.page(f"{desk}/?name={name}")) for name in ("alice", "bob", "desk")
        )
        for page in (alice, bob, all):
            page.wait("document.getElementById('status').textContent === 'live'")
        order(alice, "book", 2)
        wait_rows(alice, [["alice", "book", "2", "accepted"]])
        order(bob, "book", 1)
        wait_rows(bob, [["bob", "book", "1", "refused"]])
        wait_rows(all, [["bob", "book", "1", "refused"], ["alice", "book", "2", "accepted"]])
        assert alice.run(ROWS) == [["alice", "book", "2", "accepted"]]
        alice.wait("document.getElementById('stock').textContent.includes('book 0')")
        # Whatever a page asks for, the rule decides.
        told = bob.run(FORGE.replace("SERVER", json.dumps(server.url)))
        assert told == ["READ_ONLY_TOKEN", "RULE", ["bob"]]


def test_a_worker_that_is_killed_takes_each_order_once(worker: tuple[Server, Worker], desk: str) -> None:
    server, running = worker

    def find(collection: str) -> list[dict[str, Any]]:
        response = server.request("GET", f"/{collection}/docs?limit=1000")
        documents: list[dict[str, Any]] = response.json()["documents"]
        return documents

    server.request("PUT", "/stock/docs/pen", json={"left": 15})
    for _ in range(3):
        orders = [{"userId": "eve", "item": "pen", "amount": n % 3} for n in range(8)]
        assert server.request("POST", "/orders/bulk", json=orders).json()["inserted"] == 8
        running.start()
        before = len(find("results"))
        wait_until(lambda before=before: len(find("results")) > before + 2, 20)  # type: ignore[misc]
        running.kill()
    running.start()
    wait_until(lambda: len(find("results")) == 24, 30)
    accepted = [result for result in find("results") if result["status"] == "accepted"]
    assert {result["_id"] for result in find("results")} == {order["_id"] for order in find("orders")}
    (left,) = (item["left"] for item in find("stock") if item["_id"] == "pen")
    assert left == 15 - sum(result["amount"] for result in accepted) >= 0
    assert left < 2
    assert all(result["amount"] > 0 for result in accepted)
