"""What the tests of the dashboard do with a page of it.

Rules: a person's way where there is one (clicks, keys); what a person sees is waited for, never a time.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.conftest import Server, wait_until
from tests.web.browser import Page
from tests.web.npm import AXE
from tests.web.tools import node_tool

LIVE = "document.querySelector('.status')?.textContent === 'Live'"
ROWS = "[...document.querySelectorAll('.grid tbody tr')].map((tr) => tr.innerText.replace(/\\s+/g, ' ').trim())"
DIALOG = "[...document.querySelectorAll('dialog')].at(-1)"
"""The dialog in front."""
BUSIEST, SLOWEST = (
    f"[...document.querySelectorAll('.list')].find((one) => one.caption.textContent.startsWith('{caption}'))"
    for caption in ("Busiest collections", "Slow queries")
)
"""Tables of Health. A server of several processes has one more."""
BOTH_LISTED = f"{BUSIEST} !== undefined && {SLOWEST} !== undefined"

LABEL = """(one.getAttribute("aria-label") ?? one.labels[0]?.innerText ?? "").trim()"""
SCOPE = f"{DIALOG} ? {{ include: [{DIALOG}, document.getElementById('toasts')] }} : document"
"""What somebody can use now: a dialog, or the page."""
VIOLATIONS = """
    axe.run(%s, { resultTypes: ["violations"], ...%s }).then(({ violations }) => violations
      .filter(({ impact }) => impact === "serious" || impact === "critical")
      .map(({ id, nodes }) => [id, nodes.slice(0, 3).map((node) => node.html + node.failureSummary)]))"""


def admin_key(server: Server, label: str = "") -> str:
    """A new admin key that the server already knows."""
    created = json.loads(server.cli("keys", "create", "--admin", "--label", label, "--json"))
    wait_until(lambda: server.request("GET", "/admin.v1/me", key=created["key"]).status_code == 200)
    return str(created["key"])


def sign_in(page: Page, key: str) -> None:
    page.run(f"""
        document.getElementById("key").value = {json.dumps(key)};
        document.getElementById("sign-in").requestSubmit();""")
    page.wait("document.querySelector('nav') !== null")


def visit(page: Page, address: str, until: str = LIVE) -> None:
    """A part or a collection, by its address behind the `#`."""
    page.run(f"location.hash = {json.dumps('#/' + address)}")
    page.wait(until)


def click(page: Page, label: str, within: str = "document") -> None:
    """The button, tab or link with this text, once there is one."""
    found = f"""[...{within}.querySelectorAll("button, a, [role=tab]")].find(
        (one) => one.checkVisibility() && (one.innerText.trim() || one.title) === {json.dumps(label)})"""
    page.wait(f"!{found}.disabled")
    page.run(f"{found}.click()")


def fill(page: Page, label: str, value: str, within: str = "document") -> None:
    """The control with this label, as if a person had typed into it."""
    control = f"""[...{within}.querySelectorAll("input, select, textarea")].find(
        (one) => one.checkVisibility() && {LABEL}.startsWith({json.dumps(label)}))"""
    page.wait(f"{control} !== undefined")
    page.run(f"""(() => {{
        const control = {control};
        control.focus();
        control.value = {json.dumps(value)};
        for (const type of ["input", "change"]) control.dispatchEvent(new Event(type, {{ bubbles: true }}));
    }})()""")


def barriers(page: Page) -> list[Any]:
    """What axe-core finds serious or critical on the page as it is; in dark only of contrast: the rest is the
    same."""
    if not page.run("'axe' in window"):
        page.run((node_tool(AXE) / "axe.min.js").read_text("utf-8") + "; 1")
    found = []
    for is_dark, rules in ((False, "{}"), (True, '{ runOnly: ["color-contrast"] }')):
        page.dark(is_dark)
        found += page.run(VIOLATIONS % (SCOPE, rules))
    return found


def fits_a_phone(page: Page) -> bool:
    """Whether nothing needs horizontal scrolling on a narrow screen."""
    page.resize((360, 740), mobile=True)
    width = page.run("document.documentElement.scrollWidth")
    page.resize(None)
    return bool(width <= 360)


def upload(page: Page, file: Path) -> None:
    click(page, "Import")
    page.wait(f"{DIALOG}?.querySelector('[type=file]') !== null")
    page.choose("[type=file]", file)
    click(page, "Import", DIALOG)
