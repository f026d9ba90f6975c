"""What tests of webhooks share."""

from __future__ import annotations

import json
import re
from typing import Any

import httpx

from tests.conftest import Server, wait_until
from tests.hooks.receiver import Receiver


class Admin:
    """The admin API of a server. `key`: of one that serves the same store."""

    def __init__(self, server: Server, key: str | None = None) -> None:
        self.server = server
        self.key = key or json.loads(server.cli("keys", "create", "--admin", "--json"))["key"]
        # Each request may reach another worker.
        wait_until(lambda: all(self.ask("GET", "me").status_code == 200 for _ in range(8)))

    def ask(self, method: str, path: str, **more: Any) -> httpx.Response:
        return self.server.request(method, f"/admin.v1/{path}", key=self.key, **more)

    def add(self, url: str, **more: Any) -> dict[str, Any]:
        made = self.ask("POST", "webhooks", json={"database": "default", "url": url, **more})
        assert made.status_code == 201, made.text
        found: dict[str, Any] = made.json()
        return found

    def state(self, id: str) -> dict[str, Any]:
        (row,) = (row for row in self.ask("GET", "webhooks").json()["webhooks"] if row["id"] == id)
        assert isinstance(row, dict)
        return row

    def metrics(self, name: str) -> dict[str, float]:
        """The samples of a family, by their labels."""
        text = self.server.request("GET", "/metrics", key=self.key).text
        text = re.sub(',?worker="writer"', "", text).replace("{} ", " ")
        return {of[0]: float(of[1]) for of in re.findall(rf"^{name}(?:{{(.*)}})? (\S+)$", text, re.MULTILINE)}


def deliveries(receiver: Receiver, secret: str) -> int:
    """How many it got, each of which is signed, and always the same."""
    bodies: dict[str, bytes] = {}
    for received in receiver.received:
        received.check(secret)
        assert bodies.setdefault(received.delivery, received.body) == received.body
    return len(bodies)
