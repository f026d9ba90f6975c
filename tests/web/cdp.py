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


class Browser:
    """`call` sends a command and waits for its answer; events are not looked at."""

    def __init__(self, ws: ClientConnection) -> None:
        self._ws = ws
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
        try:
            wait_until(lambda: self.run(condition) is True, seconds)
        except AssertionError:
            raise AssertionError(
                f"never: {condition}; the page says {self.run('document.body.innerText')!r}"
            ) from None

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
