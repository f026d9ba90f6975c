"""The end of a grant on a live connection: each kind has its close code, comes within about a second, and only
a valid renewal prevents it."""

from __future__ import annotations

import json
import time
from contextlib import ExitStack

import jwt
import pytest
from websockets.sync.client import ClientConnection, connect

from tests.conftest import Server, receive
from tests.realtime.raw import Raw, end_of, forge, handshake, open_raw, say

SLACK = 2.5
"""Seconds beyond the promised second, for a busy machine. `tests/loop/test_wheel.py` tests the clocks
themselves, in mock time."""


def test_expired_token_closes_its_connections_with_4401(server: Server, collection: str) -> None:
    """In each mode: events continue until then, and a refused renewal does not extend it."""
    token = forge(server, collection, lifetime=4)
    ends = time.monotonic() + jwt.decode(token, options={"verify_signature": False})["exp"] - time.time()
    sockets: list[ClientConnection] = []
    with ExitStack() as stack:
        for query in ("", "&since=now", "&since=now"):
            url = f"{server.ws_url}/?token={token}{query}"
            sockets.append(stack.enter_context(connect(url, proxy=None)))
        sockets[2].send(json.dumps({"action": "auth", "token": forge(server, collection, secret=b"x" * 32)}))
        document = server.insert(collection, {})
        assert receive(sockets[0])["data"] == document
        assert [receive(sockets[1])["type"] for _ in range(2)] == ["ready", "insert"]
        assert {receive(sockets[2])["type"] for _ in range(3)} == {"ready", "insert", "error"}
        for ws in sockets:
            assert end_of(ws) == 4401
            assert -0.2 <= time.monotonic() - ends < 1 + SLACK


def test_renewal_in_time_keeps_the_connection_and_its_events(server: Server, collection: str) -> None:
    token = forge(server, collection, lifetime=3)
    with (
        connect(f"{server.ws_url}/?token={token}", proxy=None) as ws,
        connect(f"{server.ws_url}/?token={token}", proxy=None) as not_renewed,
    ):
        ws.send(json.dumps({"action": "auth", "token": forge(server, collection, lifetime=6)}))
        assert receive(ws)["type"] == "authenticated"
        assert end_of(not_renewed) == 4401  # the first token has ended by now
        document = server.insert(collection, {})
        assert receive(ws)["data"] == document
        assert end_of(ws) == 4401  # later the second one ends, too


def test_shorter_token_shortens_the_connection(server: Server, collection: str) -> None:
    with server.connect(collection) as ws:
        ws.send(json.dumps({"action": "auth", "token": forge(server, collection, lifetime=3)}))
        assert receive(ws)["type"] == "authenticated"
        assert end_of(ws) == 4401


@pytest.mark.executable
def test_revoked_key_closes_only_its_connections_with_4403(server: Server, collection: str) -> None:
    created = server.new_key()
    url = f"{server.ws_url}/?token={server.token(collection, key=created['key'])}"
    with connect(url, proxy=None) as ws, server.connect(collection) as other:
        server.cli("keys", "revoke", created["id"])
        revoked = time.monotonic()
        assert end_of(ws) == 4403
        assert time.monotonic() - revoked < 1 + SLACK
        document = server.insert(collection, {})
        assert receive(other)["data"] == document


def test_connection_depends_on_the_key_of_its_latest_token(server: Server, collection: str) -> None:
    old, new = server.new_key(), server.new_key()
    url = f"{server.ws_url}/?token={server.token(collection, key=old['key'])}"
    with connect(url, proxy=None) as ws:
        ws.send(json.dumps({"action": "auth", "token": server.token(collection, key=new["key"])}))
        assert receive(ws)["type"] == "authenticated"
        with connect(url, proxy=None) as still_old:
            server.cli("keys", "revoke", old["id"])
            assert end_of(still_old) == 4403
        document = server.insert(collection, {})
        assert receive(ws)["data"] == document
        server.cli("keys", "revoke", new["id"])
        assert end_of(ws) == 4403


def test_lost_plan_closes_the_databases_connections_with_4403(server: Server, collection: str) -> None:
    server.cli("databases", "create", collection, "--plan", "team")
    key = server.new_key(collection)["key"]
    url = f"{server.ws_url}/?token={server.token(collection, key=key)}"
    with connect(url, proxy=None) as ws, server.connect(collection) as other:
        server.cli("databases", "set-plan", collection, "pro")
        document = server.insert(collection, {}, key=key)
        assert receive(ws)["data"] == document  # pro has realtime as well
        server.cli("databases", "set-plan", collection, "free")
        changed = time.monotonic()
        assert end_of(ws) == 4403
        assert time.monotonic() - changed < 1 + SLACK
        document = server.insert(collection, {})
        assert receive(other)["data"] == document


@pytest.mark.executable
def test_clients_own_close_gets_its_code_back(server: Server, collection: str) -> None:
    with open_raw(server, collection) as raw:
        raw.send(b"\x88\x82\0\0\0\0" + (3000).to_bytes(2, "big"))
        assert raw.close_code() == 3000


def test_slow_readers_expiry_does_not_wait_for_it(server: Server, collection: str) -> None:
    """The connection is freed although the peer never reads the close frame."""
    token = forge(server, collection, lifetime=3)
    with Raw(server, receive_buffer=4096) as raw:
        raw.send(handshake(server, f"/?token={token}"))
        assert raw.head()[0] == 101
        for _ in range(4):
            server.request("POST", f"/{collection}/bulk", json=[{"pad": "x" * 20_000}] * 50)
        raw.socket.settimeout(0.25)
        deadline = time.monotonic() + 15
        while time.monotonic() < deadline:  # a reset in response to a send shows that the server has closed
            try:
                raw.send(say(action="ping"))
            except ConnectionError:
                return
            except TimeoutError:
                continue
            time.sleep(0.05)
        raise AssertionError("the server still reads from a connection whose token expired long ago")
