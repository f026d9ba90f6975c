"""A headless Firefox, driven over WebDriver BiDi. Firefox 153 cannot freeze a tab."""

from __future__ import annotations

import base64
import contextlib
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.conftest import need
from tests.web import browser
from tests.web.browser import PROCESS_SECONDS, WINDOW, connected

FLAGS = (
    "--headless",
    "--remote-debugging-port=0",
    "--remote-allow-system-access",  # for `Page.dark`
    f"--width={WINDOW[0]}",
    f"--height={WINDOW[1]}",
)
SETTINGS = {
    "devtools.jsonview.enabled": False,  # tests run scripts in pages of JSON
    "ui.prefersReducedMotion": 1,
}
KEYS = {
    "Shift": "\ue008",
    "Control": "\ue009",
    "Tab": "\ue004",
    "Enter": "\ue007",
    "Escape": "\ue00c",
    "ArrowUp": "\ue013",
    "ArrowRight": "\ue014",
    "ArrowDown": "\ue015",
}
"""WebDriver's characters for keys that are not letters."""


OF_A_SOCKET = re.compile(
    r"Firefox can’t establish a connection to the server at wss?://\S+\."
    r"|The connection to wss?://\S+ was interrupted while the page was loading\."
)
"""What Firefox logs of a WebSocket that was refused, cut off, or open when its page was left."""


def plain(value: dict[str, Any]) -> Any:
    """A value of JavaScript, as BiDi writes it. None for what JSON does not have."""
    match value["type"]:
        case "string" | "boolean":
            return value["value"]
        case "number":
            return float(value["value"]) if isinstance(value["value"], str) else value["value"]
        case "array":
            return [plain(each) for each in value["value"]]
        case "object":
            return {name: plain(each) for name, each in value["value"]}
    return None


class Browser(browser.Browser):
    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        response = self.ask({"method": method, "params": parameters})
        assert response["type"] == "success", (method, response)
        result = response["result"]
        assert isinstance(result, dict)
        return result

    def complaint(self, event: dict[str, Any]) -> tuple[str, str] | None:
        what = event.get("params", {})
        if event.get("method") != "log.entryAdded" or what["level"] not in ("error", "warn"):
            return None
        if OF_A_SOCKET.fullmatch(what["text"]):
            return None
        return what["source"]["context"], what["text"]

    @contextlib.contextmanager
    def page(self, url: str, first: str = "") -> Iterator[Page]:
        context = self.call("browsingContext.create", type="tab")["context"]
        page = Page(self, context)
        try:
            page.show()
            script = f"() => {{ {first} }}"
            self.call("script.addPreloadScript", functionDeclaration=script, contexts=[context])
            page.call("browsingContext.navigate", url=url, wait="complete")
            yield page
        finally:
            page.call("browsingContext.close")


class Page(browser.Page):
    def __init__(self, browser: Browser, context: str) -> None:
        super().__init__(browser.complaints, context)
        self._browser = browser

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self._browser.call(method, context=self._id, **parameters)

    def _evaluate(self, expression: str, context: str) -> dict[str, Any]:
        target = {"context": context}
        response = self._browser.call(
            "script.evaluate", expression=expression, target=target, awaitPromise=True
        )
        assert response["type"] == "success", response
        result = response["result"]
        assert isinstance(result, dict)
        return result

    def run(self, expression: str) -> Any:
        return plain(self._evaluate(expression, self._id))

    def listen(self) -> None:
        self._browser.call("session.subscribe", events=["log.entryAdded"], contexts=[self._id])

    def _strike(self, keys: str, held: str = "") -> None:
        each = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        down, up = ([{"type": kind, "value": key} for key in held] for kind in ("keyDown", "keyUp"))
        actions = {"type": "key", "id": "keyboard", "actions": [*down, *each, *up]}
        self.call("input.performActions", actions=[actions])

    def press(self, *keys: str, holding: str = "") -> None:
        for key in keys:
            self._strike(KEYS.get(key, key), KEYS.get(holding, ""))

    def type(self, text: str) -> None:
        self._strike(text)

    def choose(self, selector: str, file: Path) -> None:
        found = self._evaluate(f"document.querySelector({json.dumps(selector)})", self._id)
        self.call("input.setFiles", element={"sharedId": found["sharedId"]}, files=[str(file)])

    def save_into(self, folder: Path) -> None:
        behavior = {"type": "allowed", "destinationFolder": str(folder)}
        self._browser.call("browser.setDownloadBehavior", downloadBehavior=behavior)

    def show(self) -> None:
        self.call("browsingContext.activate")

    def resize(self, size: tuple[int, int] | None, *, mobile: bool = False) -> None:
        viewport = None if size is None else {"width": size[0], "height": size[1]}
        self.call("browsingContext.setViewport", viewport=viewport)

    def dark(self, is_dark: bool) -> None:
        """Firefox 153 has no command for it, but a setting, which later pages have, too."""
        (window,) = self._browser.call("browsingContext.getTree", **{"moz:scope": "chrome"})["contexts"]
        name = "layout.css.prefers-color-scheme.content-override"
        self._evaluate(f"Services.prefs.setIntPref('{name}', {0 if is_dark else 1})", window["context"])

    def offline(self, offline: bool) -> None:
        conditions = {"type": "offline"} if offline else None
        self._browser.call("emulation.setNetworkConditions", networkConditions=conditions, contexts=[self._id])

    def screenshot(self, file: Path) -> None:
        file.write_bytes(base64.b64decode(self.call("browsingContext.captureScreenshot")["data"]))


@contextlib.contextmanager
def firefox(profile: Path, *, host: str = "", trusting: bool = False) -> Iterator[Browser]:
    """A browser with an empty profile of its own, to which `host` is 127.0.0.1; `trusting`: any certificate."""
    program = need("firefox-esr" if shutil.which("firefox-esr") else "firefox")
    profile.mkdir(exist_ok=True)
    settings = {**SETTINGS, "network.dns.localDomains": host}
    lines = [f"user_pref({json.dumps(name)}, {json.dumps(value)});\n" for name, value in settings.items()]
    (profile / "user.js").write_text("".join(lines))
    command = [program, *FLAGS, "--profile", str(profile), "about:blank"]
    with connected(command, profile, "WebDriver BiDi listening on", "/session", HOME=str(profile)) as ws:
        browser = Browser(ws)
        begin = {"capabilities": {"alwaysMatch": {"acceptInsecureCerts": trusting}}}
        # It responds once there is a window.
        begun = browser.ask({"method": "session.new", "params": begin}, PROCESS_SECONDS)
        assert begun["type"] == "success", begun
        yield browser
        browser.call("browser.close")
