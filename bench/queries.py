"""Live queries in bulk: few connections that follow many queries each, and subscribers of one."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any
from urllib.parse import quote

from bench.clients import receive
from bench.readers import websocket

PER_CONNECTION = 1000
MAX_SUBSCRIPTIONS = ("--max-subscriptions", str(PER_CONNECTION))

Filter = dict[str, Any]


def frame(action: dict[str, Any]) -> bytes:
    """A client's text frame; its mask is zero."""
    text = json.dumps(action).encode()
    size = len(text)
    head = bytes([0x80 | size]) if size < 126 else b"\xfe" + size.to_bytes(2, "big")
    return b"\x81" + head + bytes(4) + text


def subscriber(port: int, token: str, collection: str, filter: Filter | None = None) -> socket.socket:
    """In plain mode, in which an event of a query has the same bytes as any other."""
    chosen = "" if filter is None else f"&filter={quote(json.dumps({collection: filter}))}"
    return websocket(port, token, f"&collections={collection}{chosen}")


def empty(port: int, token: str) -> socket.socket:
    """A connection in cursor mode that follows nothing yet."""
    return websocket(port, token, "&since=now&collections=")


def subscribe(sock: socket.socket, collection: str, filters: Iterable[Filter], **more: Any) -> None:
    """Follow these queries, too. Raises RuntimeError for a refusal."""
    actions = [{"action": "subscribe", "collection": collection, "filter": each, **more} for each in filters]
    sock.sendall(b"".join(map(frame, actions)))
    until(sock, b'"type":"subscribed"', len(actions))


def until(sock: socket.socket, text: bytes, times: int = 1) -> bytes:
    """Read until `text` has come so many times. Raises RuntimeError for an error."""
    data = bytearray()
    while data.count(text) < times:
        data += receive(sock)
        if b'"type":"error"' in data:
            raise RuntimeError(bytes(data).decode(errors="replace"))
    return bytes(data)


def portions(filters: Iterable[Any], size: int = PER_CONNECTION) -> Iterator[list[Any]]:
    rest = iter(filters)
    while portion := list(islice(rest, size)):
        yield portion


def beside(port: int, token: str, collection: str, filters: Iterable[Filter]) -> list[socket.socket]:
    """Connections that follow all of these queries."""
    socks = []
    for portion in portions(filters):
        sock = empty(port, token)
        # Small steps: the socket's buffers hold the replies to those that are under way.
        for step in portions(portion, 100):
            subscribe(sock, collection, step)
        socks.append(sock)
    return socks
