"""A headless Chromium, driven over the DevTools protocol by a WebSocket client that we did not write.

Rules: one browser for all tests, one page (or two) for each, closed with it; every wait has a limit.
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

from tests.conftest import ENVIRONMENT, need, wait_until

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
    "--window-size=760,620",
)
SECONDS = 15
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


def complaint(event: dict[str, Any]) -> str | None:
    """What a page complains of in this event: errors, also of its policy.

    What a server refuses is not one, nor a message to a socket that it has just closed.
    """
    what = event.get("params", {})
    match event.get("method"):
        case "Runtime.exceptionThrown":
            return json.dumps(what["exceptionDetails"])
        case "Runtime.consoleAPICalled" if what["type"] in ("error", "warning", "assert"):
            return json.dumps(what["args"])
        case "Log.entryAdded" if what["entry"]["level"] == "error" and what["entry"]["source"] != "network":
            text = str(what["entry"]["text"])
            return None if text == "WebSocket is already in CLOSING or CLOSED state." else text
    return None


class Browser:
    """`call` sends a command and waits for its response. `complaints`: of each page (`Page.listen`)."""

    def __init__(self, ws: ClientConnection) -> None:
        self._ws = ws
        self.complaints: dict[str, list[str]] = {}
        self._numbers = itertools.count(1)

    def call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        id = next(self._numbers)
        command = {"id": id, "method": method, "params": parameters}
        self._ws.send(json.dumps(command if session is None else {**command, "sessionId": session}))
        while True:
            answer = json.loads(self._ws.recv(timeout=SECONDS))
            if answer.get("id") == id:
                assert "error" not in answer, (method, answer)
                result = answer["result"]
                assert isinstance(result, dict)
                return result
            if (said := complaint(answer)) is not None:
                self.complaints.setdefault(answer.get("sessionId", ""), []).append(said)

    @contextlib.contextmanager
    def page(self, url: str, first: str = "") -> Iterator[Page]:
        """A tab, in front of the others, that has loaded `url`; a script of ours runs `first` in it."""
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


class Page:
    """One tab."""

    def __init__(self, browser: Browser, target: str, session: str) -> None:
        self._browser = browser
        self._target = target
        self._session = session

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self._browser.call(method, self._session, **parameters)

    def run(self, expression: str) -> Any:
        """The value of a JavaScript expression; of its promise, if it is one."""
        answer = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait(self, condition: str, seconds: float = SECONDS) -> None:
        """Until it is true. One that throws is not: what it looks into is not there yet."""
        tried = f"(() => {{ try {{ return ({condition}); }} catch {{ return false; }} }})()"
        try:
            wait_until(lambda: self.run(tried) is True, seconds)
        except AssertionError:
            raise AssertionError(
                f"never: {condition}; the page says {self.run('document.body.innerText')[:3000]!r}"
            ) from None

    def listen(self) -> None:
        """From now on `complaints` are kept; those of before it come, too."""
        self.call("Log.enable")
        self.call("Runtime.enable")

    @property
    def complaints(self) -> list[str]:
        self.run("1")  # what was sent before the response has come with it
        return self._browser.complaints.get(self._session, [])

    def press(self, *keys: str, modifiers: int = 0) -> None:
        """Keys, by their names (`Tab`, `Enter`, `a`)."""
        for key in keys:
            about = {
                "key": key,
                "code": KEYS.get(key, ("", 0))[0],
                "windowsVirtualKeyCode": KEYS.get(key, ("", 0))[1],
            }
            text = {"Enter": "\r", " ": " "}.get(key, key if len(key) == 1 else "")
            down = "keyDown" if text else "rawKeyDown"
            self.call("Input.dispatchKeyEvent", type=down, text=text, modifiers=modifiers, **about)
            self.call("Input.dispatchKeyEvent", type="keyUp", modifiers=modifiers, **about)

    def type(self, text: str) -> None:
        """Into what has the focus."""
        self.call("Input.insertText", text=text)

    def show(self) -> None:
        """Bring to front: the others become hidden."""
        self._browser.call("Target.activateTarget", targetId=self._target)

    def offline(self, offline: bool) -> None:
        self.call(
            "Network.emulateNetworkConditions",
            offline=offline,
            latency=0,
            downloadThroughput=-1,
            uploadThroughput=-1,
        )

    def freeze(self, frozen: bool) -> None:
        """What a browser does to a tab that has been in the background for long."""
        self.call("Page.setWebLifecycleState", state="frozen" if frozen else "active")

    def screenshot(self, file: Path) -> None:
        file.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))


@contextlib.contextmanager
def chromium(profile: Path, *flags: str) -> Iterator[Browser]:
    """A browser with an empty profile of its own."""
    process = subprocess.Popen(
        [need("chromium"), *FLAGS, *flags, f"--user-data-dir={profile}", "about:blank"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )
    assert process.stderr is not None
    try:
        found = None
        while found is None and (line := process.stderr.readline()):
            found = re.search(r"DevTools listening on (ws://\S+)", line)
        assert found is not None, "chromium did not start"
        with connect(found[1], max_size=None, proxy=None) as ws:
            browser = Browser(ws)
            yield browser
            browser.call("Browser.close")
        process.communicate(timeout=10)
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
        process.stderr.close()
