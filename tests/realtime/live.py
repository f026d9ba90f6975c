"""A client of live queries: it asks over a WebSocket in cursor mode, and reads snapshots and events."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from websockets.sync.client import ClientConnection, connect

from tests.conftest import Server, receive


@contextmanager
def listening(server: Server, collection: str, rule: Any = None, query: str = "") -> Iterator[ClientConnection]:
    """A connection in cursor mode that follows nothing yet."""
    body = {"collections": {collection: rule} if rule is not None else [collection]}
    token = server.request("POST", "/realtime/token", json=body).json()["token"]
    target = f"{server.ws_url}/?token={token}&since=now&collections={query}"
    with connect(target, ssl=server.context, proxy=None, max_size=None, close_timeout=2) as ws:
        assert receive(ws)["type"] == "ready"
        yield ws


def ask(ws: ClientConnection, action: str = "subscribe", **members: Any) -> dict[str, Any]:
    """Send an action and return its reply."""
    ws.send(json.dumps({"action": action, "ref": "r", **members}))
    while (reply := receive(ws)).get("ref") != "r":
        pass
    return reply


def snapshot(ws: ClientConnection, **members: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    reply = ask(ws, snapshot=True, **members)
    assert reply["type"] == "subscribed", reply
    return reply, rest_of_snapshot(ws, reply["query"])


def rest_of_snapshot(ws: ClientConnection, query: str) -> list[dict[str, Any]]:
    documents: list[dict[str, Any]] = []
    while True:
        piece = receive(ws)
        assert (piece["type"], piece["query"]) == ("snapshot", query)
        documents += piece["documents"]
        if piece["last"]:
            return documents


def put(server: Server, collection: str, id: str, **fields: Any) -> dict[str, Any]:
    response = server.request("PUT", f"/{collection}/docs/{id}", json=fields)
    assert response.status_code in (200, 201), response.text
    document: dict[str, Any] = response.json()
    return document


def delete(server: Server, collection: str, id: str) -> None:
    assert server.request("DELETE", f"/{collection}/docs/{id}").status_code == 200


def shape(event: dict[str, Any]) -> tuple[str, str, str]:
    return event["type"], event["cause"], event["data"]["_id"]
