"""What tests see of a browser: cdp.py drives Chromium, bidi.py Firefox (`pytest --browser firefox`).

Rules: a WebSocket client that we did not write; one browser for all tests, one page (or two) for each, closed
with it; every wait has a limit. What only Chromium can do is used by tests that are marked `chromium`.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

from tests.conftest import ENVIRONMENT, wait_until

SECONDS = 15
PROCESS_SECONDS = 100
"""For a browser to start, or to end. Firefox took 66 on two cores at a load of 53."""
WINDOW = (1200, 900)


class Browser(ABC):
    """`complaints`: those of each page that listens (`Page.listen`)."""

    def __init__(self, ws: ClientConnection) -> None:
        self._ws = ws
        self._numbers = itertools.count(1)
        self.complaints: dict[str, list[str]] = {}

    @abstractmethod
    def page(self, url: str, first: str = "") -> AbstractContextManager[Page]:
        """A tab, in front of the others, that has loaded `url`; a script of ours runs `first` in it."""

    @abstractmethod
    def complaint(self, event: dict[str, Any]) -> tuple[str, str] | None:
        """Which page complains in this event, and of what: errors, also of its policy.

        What a server refuses is not one, nor a message to a socket that it has just closed.
        """

    def ask(self, command: dict[str, Any], seconds: float = SECONDS) -> dict[str, Any]:
        """Send a command and wait for its response. Complaints that come before it are kept."""
        id = next(self._numbers)
        self._ws.send(json.dumps({"id": id, **command}))
        while True:
            response: dict[str, Any] = json.loads(self._ws.recv(timeout=seconds))
            if response.get("id") == id:
                return response
            if (said := self.complaint(response)) is not None:
                self.complaints.setdefault(said[0], []).append(said[1])


class Page(ABC):
    """One tab. Its `complaints` are kept under its `id`."""

    def __init__(self, complaints: dict[str, list[str]], id: str) -> None:
        self._complaints = complaints
        self._id = id

    @abstractmethod
    def run(self, expression: str) -> Any:
        """The value of a JavaScript expression; of its promise, if it is one."""

    def wait(self, condition: str, seconds: float = SECONDS) -> None:
        """Until it is true. One that throws is not: what it looks into is not there yet."""
        tried = f"(() => {{ try {{ return ({condition}); }} catch {{ return false; }} }})()"
        try:
            wait_until(lambda: self.run(tried) is True, seconds)
        except AssertionError:
            raise AssertionError(
                f"never: {condition}; the page says {self.run('document.body.innerText')[:3000]!r}"
            ) from None

    @abstractmethod
    def listen(self) -> None:
        """From now on `complaints` are kept; those of before it come, too."""

    @property
    def complaints(self) -> list[str]:
        self.run("1")  # what was sent before the response has come with it
        return self._complaints.get(self._id, [])

    @abstractmethod
    def press(self, *keys: str, holding: str = "") -> None:
        """Keys, by their names (`Tab`, `Enter`, `a`), while `Control` or `Shift` is held."""

    @abstractmethod
    def type(self, text: str) -> None:
        """Into what has the focus."""

    @abstractmethod
    def choose(self, selector: str, file: Path) -> None:
        """A file, for an input of files."""

    @abstractmethod
    def save_into(self, folder: Path) -> None:
        """Where downloads go."""

    @abstractmethod
    def show(self) -> None:
        """Bring to front: the others become hidden."""

    @abstractmethod
    def resize(self, size: tuple[int, int] | None, *, mobile: bool = False) -> None:
        """None: the size of its window. `mobile`: a page lays itself out as on a phone, in Chromium."""

    @abstractmethod
    def dark(self, is_dark: bool) -> None:
        """The theme of the system, where motion is reduced: a colour on its way is none to measure."""

    @abstractmethod
    def offline(self, offline: bool) -> None: ...

    def freeze(self, frozen: bool) -> None:
        """What a browser does to a tab that has been in the background for long. Only Chromium does so."""
        raise NotImplementedError

    @abstractmethod
    def screenshot(self, file: Path) -> None: ...


@contextlib.contextmanager
def connected(
    command: list[str], profile: Path, says: str, path: str = "", **env: str
) -> Iterator[ClientConnection]:
    """A browser that has been told to end when the block does, by the address that it `says` on stderr."""
    log = profile.with_suffix(".log")
    with log.open("w") as stderr:
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=stderr, env={**ENVIRONMENT, **env}
        )

    def said() -> re.Match[str] | None:
        assert process.poll() is None, f"{command[0]} ended: {log.read_text()}"
        return re.search(rf"{says} (ws://\S+)\n", log.read_text())

    try:
        wait_until(lambda: said() is not None, PROCESS_SECONDS)
        found = said()
        assert found is not None
        with connect(found[1] + path, max_size=None, proxy=None, open_timeout=PROCESS_SECONDS) as ws:
            yield ws
        process.wait(PROCESS_SECONDS)
    finally:
        process.kill()
        process.wait()
