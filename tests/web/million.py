"""The dashboard over a million documents: `just dashboard-million`. Not for CI: the import alone takes minutes.

Prints the seconds until the first row, and until the page is live, of several queries. Fails if one that
needs no index, or has one, takes longer than `LIMIT`.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from urllib.parse import quote

from tests.conftest import COMMAND, Server
from tests.web.browser import Page
from tests.web.cdp import chromium
from tests.web.dashboard import DIALOG, LIVE, ROWS, click, sign_in, visit

LIMIT = 2.0
"""Seconds. Without an index a query looks at a million documents, and takes what it takes."""
FULL = f"{LIVE} && {ROWS}.length === 100"
PAGER = "document.querySelector('[aria-label=Pages]')"
WATCH = """
    window.firstRow = null;
    new MutationObserver(() => {
      if (firstRow === null && document.querySelector(".grid tbody tr")) firstRow = performance.now();
    }).observe(document, { childList: true, subtree: true });"""


def write(file: Path, count: int) -> None:
    chance = random.Random(1)
    with file.open("w") as lines:
        for n in range(count):
            document = {
                "_id": f"d{n:07}",
                "n": n,
                "room": f"r{chance.randrange(1000)}",
                "text": f"The message number {n} of a conversation that is long",
                "likes": chance.randrange(100),
            }
            line = {"database": "default", "collection": "big", "document": document}
            lines.write(json.dumps(line) + "\n")


def measure(page: Page, what: str, run: Callable[[], None], limit: float | None = LIMIT) -> None:
    page.run("window.firstRow = null; window.began = performance.now()")
    began = perf_counter()
    run()
    whole = perf_counter() - began
    first = page.run("firstRow === null ? null : (firstRow - began) / 1000")
    print(f"{what:<52} first row {first:6.2f} s   live {whole:6.2f} s", flush=True)
    assert limit is None or whole < limit, what


def address(**query: str) -> str:
    return "documents/big?" + "&".join(f"{name}={quote(value)}" for name, value in query.items())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--documents", type=int, default=1_000_000)
    count = parser.parse_args().documents
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        server = Server(folder / "data")
        try:
            write(folder / "big.ndjson", count)
            began = perf_counter()
            command = [*COMMAND, "import", str(folder / "big.ndjson"), "--data", str(server.data)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            print(f"{count:,} documents imported in {perf_counter() - began:.0f} s", flush=True)
            with chromium(folder / "chromium") as browser, browser.page(server.url, WATCH) as page:
                walk(page, server)
        finally:
            server.stop()


def walk(page: Page, server: Server) -> None:
    def from_the_start() -> None:
        sign_in(page, server.key)
        visit(page, "documents/big", FULL)

    def pages() -> None:
        for number in range(2, 12):
            click(page, "Next")
            page.wait(f"{FULL} && {PAGER}.innerText.includes('{number * 100:,}')")

    measure(page, "sign in, then the newest documents", from_the_start)
    measure(page, "ten pages on", pages, 10 * LIMIT)
    measure(page, "the oldest documents", lambda: visit(page, address(sort="createdAt"), FULL))
    ask = address(filter='{"room": "r7"}', sort="likes")
    measure(page, "a filter and a sort without an index", lambda: visit(page, ask, FULL), None)
    click(page, "Plan")
    click(page, "Make the index room, likes", DIALOG)
    page.wait(f"{DIALOG}.querySelector('dd').innerText === 'room, likes'", 120)
    click(page, "Close", DIALOG)
    visit(page, "documents/big", FULL)
    measure(page, "the same, with the index of the plan", lambda: visit(page, ask, FULL))


if __name__ == "__main__":
    main()
