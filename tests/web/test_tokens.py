"""Tokens of subscriptions: minted, asked of a back end, renewed in place, expired, too narrow.

Rules: the server's own tokens live 30 s at least; shorter ones are signed here with its secret.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from urllib.parse import parse_qs, urlsplit

import jwt

from tests.conftest import Server, wait_until
from tests.web.conftest import MakeClient
from tests.web.tools import Answer, Proxy, http_server


def short_token(server: Server, collections: list[str], seconds: float) -> str:
    """A token of the first key of a server, good for so long."""
    ((kid, secret),) = server.rows("SELECT kid, secret FROM signing_secrets WHERE retired_at IS NULL")
    claims = jwt.decode(server.token(*collections), options={"verify_signature": False})
    claims["exp"] = int(claims["iat"] + seconds)
    return jwt.encode(claims, secret, "HS256", headers={"kid": kid})


class BackEnd:
    """The application's: hands out tokens for what it is asked, or what `covers` makes of it."""

    def __init__(self, server: Server, seconds: float) -> None:
        self.server = server
        self.seconds = seconds
        self.covers: Callable[[list[str]], list[str]] = lambda asked: asked
        self.status = 200
        self.asked: list[list[str]] = []

    def __call__(self, method: str, path: str, headers: dict[str, str]) -> Answer:
        collections = parse_qs(urlsplit(path).query)["collections"][0].split(",")
        self.asked.append(collections)
        token = short_token(self.server, self.covers(collections), self.seconds) if self.status == 200 else ""
        return self.status, "text/plain", token.encode()


def test_a_token_is_renewed_in_place_before_it_ends(
    client: MakeClient, server: Server, proxy: Proxy, collection: str
) -> None:
    back_end = BackEnd(server, 4)
    with http_server(back_end) as url:
        node = client(proxy.url, key=None, tokenUrl=url)
        node.subscribe(collection, "a")
        for count in range(1, 4):
            wait_until(lambda count=count: len(back_end.asked) > count)  # type: ignore[misc]
            server.insert(collection, {})
            node.wait_events("a", count)
    assert len(proxy.sockets) == 1
    assert "offline" not in [status["state"] for status in node.statuses]


def test_the_margin_is_an_option_and_so_is_the_lifetime(
    client: MakeClient, server: Server, proxy: Proxy, collection: str
) -> None:
    node = client(proxy.url, tokenExpiresIn=30, tokenMarginSeconds=24)  # every 5 s at the soonest
    node.subscribe(collection, "a")
    wait_until(lambda: len(proxy.mints) >= 3)
    assert all('"expiresIn":30' in mint for mint in proxy.mints)
    server.insert(collection, {})
    node.wait_events("a", 1)
    assert len(proxy.sockets) == 1


def test_a_token_that_expires_while_the_back_end_is_down_costs_no_change(
    client: MakeClient, server: Server, proxy: Proxy, collection: str
) -> None:
    back_end = BackEnd(server, 3)
    with http_server(back_end) as url:
        node = client(proxy.url, key=None, tokenUrl=url)
        node.subscribe(collection, "a")
        back_end.status = 503
        server.insert(collection, {"n": 1})
        node._wait(lambda: node.state == "offline")
        server.insert(collection, {"n": 2})
        reasons = [status.get("reason", "") for status in node.statuses]
        assert "closed with 4401 token expired" in reasons
        back_end.status = 200
        node.wait_state("live")
        server.insert(collection, {"n": 3})
        assert [event["data"]["n"] for event in node.wait_events("a", 3)] == [1, 2, 3]


def test_a_back_end_that_refuses_ends_it(client: MakeClient, server: Server, collection: str) -> None:
    back_end = BackEnd(server, 60)
    back_end.status = 401
    with http_server(back_end) as url:
        node = client(key=None, tokenUrl=url)
        node.subscribe(collection, "a", ready=False)
        assert "the back end refused" in node.wait_state("closed")["reason"]
        error = node.error(f"await db.{collection}.find()")  # which needs a token, too
        assert (error["status"], error["message"]) == (401, "getToken failed: the back end refused")
    assert len(back_end.asked) == 2


def test_a_back_end_is_asked_for_every_subscribed_collection_and_may_refuse(
    client: MakeClient, server: Server, proxy: Proxy, collection: str
) -> None:
    back_end = BackEnd(server, 60)
    good, more, bad = (f"{collection}-{name}" for name in ("good", "more", "bad"))
    back_end.covers = lambda asked: [name for name in asked if name != bad] or [good]
    with http_server(back_end) as url:
        node = client(proxy.url, key=None, tokenUrl=url)
        node.subscribe(good, "good")
        node.subscribe(bad, "bad", ready=False)
        wait_until(lambda: any(said.get("failed", {}).get("code") == "NOT_IN_TOKEN" for said in node.said))
        node.subscribe(more, "more")
        for name in (good, bad, more):
            server.insert(name, {})
        node.wait_events("good", 1)
        node.wait_events("more", 1)
        assert [sorted(asked) for asked in back_end.asked] == [[good], [bad, good], sorted([bad, good, more])]
        assert next(said["failed"]["status"] for said in node.said if "failed" in said) == 403
        assert "bad" not in node.events
        back_end.covers = lambda asked: asked
        node.subscribe(bad, "bad2")
        server.insert(bad, {})
        node.wait_events("bad2", 1)
        node.wait_events("bad", 1)
    assert len(proxy.sockets) == 1


def test_a_token_that_covers_nothing_of_what_is_subscribed_ends_it(
    client: MakeClient, server: Server, collection: str
) -> None:
    back_end = BackEnd(server, 60)
    back_end.covers = lambda asked: ["other"]
    with http_server(back_end) as url:
        node = client(key=None, tokenUrl=url)
        node.subscribe(collection, "a", ready=False)
        assert node.wait_state("closed")["code"] == "NOT_IN_TOKEN"


def test_a_wrong_clock_changes_nothing(
    client: MakeClient, server: Server, proxy: Proxy, collection: str
) -> None:
    back_end = BackEnd(server, 4)
    with http_server(back_end) as url:
        for offset in (-86_400_000, 86_400_000):
            back_end.asked.clear()
            fake = f"const {{ now }} = Date; Date.now = () => now() + {offset};"
            began = time.monotonic()
            node = client(proxy.url, key=None, tokenUrl=url, first=fake)
            node.subscribe(collection, "a")
            wait_until(lambda: len(back_end.asked) >= 2)
            assert time.monotonic() - began > 1
            node.wait_state("live")


def test_generate_token_gives_the_raw_token(client: MakeClient, server: Server) -> None:
    node = client()
    token = node.run("""return db.realtime.generateToken({
        collections: ["messages", "notifications"], permissions: ["read"], expiresIn: 60 })""")
    claims = jwt.decode(token, options={"verify_signature": False})
    assert claims["collections"] == ["messages", "notifications"]
    assert claims["exp"] - claims["iat"] == 60
    error = node.error("await db.realtime.generateToken({ collections: [] })")
    assert (error["status"], error["code"]) == (400, "INVALID_REQUEST")
