"""A headless Chromium, driven over the DevTools protocol."""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.conftest import need
from tests.web import browser
from tests.web.browser import WINDOW, connected

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-port=0",
    f"--window-size={WINDOW[0]},{WINDOW[1]}",
)
KEYS = {
    "Tab": ("Tab", 9),
    "Enter": ("Enter", 13),
    "Escape": ("Escape", 27),
    " ": ("Space", 32),
    "ArrowDown": ("ArrowDown", 40),
    "ArrowUp": ("ArrowUp", 38),
    "ArrowRight": ("ArrowRight", 39),
}
"""Of keys that are not letters: their code and their number."""
MODIFIERS = {"": 0, "Control": 2, "Shift": 8}


class Browser(browser.Browser):
    def call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        command = {"method": method, "params": parameters}
        response = self.ask(command if session is None else {**command, "sessionId": session})
        assert "error" not in response, (method, response)
        result = response["result"]
        assert isinstance(result, dict)
        return result

    def complaint(self, event: dict[str, Any]) -> tuple[str, str] | None:
        what = event.get("params", {})
        match event.get("method"):
            case "Runtime.exceptionThrown":
                text = json.dumps(what["exceptionDetails"])
            case "Runtime.consoleAPICalled" if what["type"] in ("error", "warning", "assert"):
                text = json.dumps(what["args"])
            case "Log.entryAdded" if what["entry"]["level"] == "error" and what["entry"]["source"] != "network":
                text = str(what["entry"]["text"])
            case _:
                return None
        if text == "WebSocket is already in CLOSING or CLOSED state.":
            return None
        return event.get("sessionId", ""), text

    @contextlib.contextmanager
    def page(self, url: str, first: str = "") -> Iterator[Page]:
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(self, target, session)
        try:
            page.show()
            page.call("Page.enable")
            page.call("Page.addScriptToEvaluateOnNewDocument", source=first)
            page.call("Page.navigate", url=url)
            page.wait("document.readyState === 'complete'")
            yield page
        finally:
            self.call("Target.closeTarget", targetId=target)


class Page(browser.Page):
    def __init__(self, browser: Browser, target: str, session: str) -> None:
        super().__init__(browser.complaints, session)
        self._browser = browser
        self._target = target

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self._browser.call(method, self._id, **parameters)

    def run(self, expression: str) -> Any:
        response = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in response, response
        return response["result"].get("value")

    def listen(self) -> None:
        self.call("Log.enable")
        self.call("Runtime.enable")

    def press(self, *keys: str, holding: str = "") -> None:
        for key in keys:
            about = {
                "key": key,
                "code": KEYS.get(key, ("", 0))[0],
                "windowsVirtualKeyCode": KEYS.get(key, ("", 0))[1],
                "modifiers": MODIFIERS[holding],
            }
            text = {"Enter": "\r", " ": " "}.get(key, key if len(key) == 1 else "")
            down = "keyDown" if text else "rawKeyDown"
            self.call("Input.dispatchKeyEvent", type=down, text=text, **about)
            self.call("Input.dispatchKeyEvent", type="keyUp", **about)

    def type(self, text: str) -> None:
        self.call("Input.insertText", text=text)

    def choose(self, selector: str, file: Path) -> None:
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", files=[str(file)], nodeId=node)

    def save_into(self, folder: Path) -> None:
        self.call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(folder))

    def show(self) -> None:
        self._browser.call("Target.activateTarget", targetId=self._target)

    def resize(self, size: tuple[int, int] | None, *, mobile: bool = False) -> None:
        if size is None:
            self.call("Emulation.clearDeviceMetricsOverride")
            return
        about = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": mobile}
        self.call("Emulation.setDeviceMetricsOverride", **about)

    def dark(self, is_dark: bool) -> None:
        scheme = {"name": "prefers-color-scheme", "value": "dark" if is_dark else "light"}
        still = {"name": "prefers-reduced-motion", "value": "reduce"}
        self.call("Emulation.setEmulatedMedia", features=[scheme, still])

    def offline(self, offline: bool) -> None:
        self.call("Network.enable")
        self.call(
            "Network.emulateNetworkConditions",
            offline=offline,
            latency=0,
            downloadThroughput=-1,
            uploadThroughput=-1,
        )

    def freeze(self, frozen: bool) -> None:
        self.call("Page.setWebLifecycleState", state="frozen" if frozen else "active")

    def screenshot(self, file: Path) -> None:
        file.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))


@contextlib.contextmanager
def chromium(profile: Path, *flags: str, host: str = "", trusting: bool = False) -> Iterator[Browser]:
    """A browser with an empty profile of its own, to which `host` is 127.0.0.1; `trusting`: any certificate."""
    more = [*flags, f"--user-data-dir={profile}"]
    if host:
        more.append(f"--host-resolver-rules=MAP {host} 127.0.0.1")
    if trusting:
        more.append("--ignore-certificate-errors")
    command = [need("chromium"), *FLAGS, *more, "about:blank"]
    with connected(command, profile, "DevTools listening on") as ws:
        browser = Browser(ws)
        yield browser
        browser.call("Browser.close")
