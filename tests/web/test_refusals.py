"""What the server refuses for good ends with the reason, and is not tried again; against the real server."""

from __future__ import annotations

import pytest

from tests.conftest import Server, StartServer, wait_until
from tests.web.conftest import MakeClient
from tests.web.tools import EITHER_WEBSOCKET, Answer, Proxy, http_server

ELEVEN = "for (let n = 0; n < 11; n += 1) subscribe(`c${n}`)"


@EITHER_WEBSOCKET
def test_more_collections_than_the_server_allows(
    client: MakeClient, start_server: StartServer, ws: bool
) -> None:
    server = start_server("--max-subscriptions", "10")
    with Proxy(server.port) as proxy:
        node = client(proxy.url, key=server.key, ws=ws)
        node.run(ELEVEN)
        status = node.wait_state("closed")
        assert (status["code"], "10" in status["reason"]) == ("TOO_MANY_SUBSCRIPTIONS", True)
        node._wait(lambda: len(node.said) == 11)
        assert {said["failed"]["code"] for said in node.said} == {"TOO_MANY_SUBSCRIPTIONS"}
        assert {said["failed"]["status"] for said in node.said} == {400}
        assert len(proxy.sockets) == 1
        node.run("for (const off of Object.values(state.offs)) off()")
        for n in range(10):
            node.subscribe(f"c{n}", f"d{n}")
        node.subscribe("c10", "d10", ready=False)  # one too many for the connection: only that one is told
        node._wait(lambda: node.said[-1].get("failed", {}).get("code") == "TOO_MANY_SUBSCRIPTIONS")
        assert node.said[-1]["to"] == "d10"
        server.insert("c0", {})
        node.wait_events("d0", 1)


@EITHER_WEBSOCKET
def test_a_handshake_refused_with_an_http_status_is_tried_again(
    client: MakeClient, server: Server, collection: str, ws: bool
) -> None:
    """By a proxy, say. Only `ws` tells the status."""
    tried: list[str] = []

    def answer(method: str, path: str, headers: dict[str, str]) -> Answer:
        tried.append(path)
        return 502, "text/html", b"<h1>Bad Gateway</h1>"

    with http_server(answer) as url:
        token = server.token(collection)
        node = client(url, key=None, ws=ws, first=f"options.getToken = async () => {token!r}")
        node.subscribe(collection, "a", ready=False)
        reason = node.wait_state("offline")["reason"]
        node._wait(lambda: len(tried) > 1)
    assert tried[0] == "/?since=now&errors=close"
    assert reason == "closed with 1006" + (" Unexpected server response: 502" if ws else "")


def test_tokens_that_no_server_accepts_are_reported_once_and_requested_ever_less_often(
    client: MakeClient, server: Server, collection: str
) -> None:
    asked: list[str] = []

    def answer(method: str, path: str, headers: dict[str, str]) -> Answer:
        asked.append(path)
        return 200, "text/plain", b"e30.e30.x"

    with http_server(answer) as url:
        node = client(key=None, tokenUrl=url, first="Math.random = () => 0.2;")
        node.subscribe(collection, "a", ready=False)
        node._wait(lambda: len(asked) > 4)
    assert [said["failed"]["status"] for said in node.said] == [401]
    offline = [status for status in node.statuses if status["state"] == "offline"]
    assert all("4401" in status["reason"] for status in offline[:4])
    waits = [status["retryIn"] for status in offline[:4]]
    assert waits == sorted(waits)
    assert waits[-1] > waits[0]


def test_an_untrusted_certificate_is_reported_at_once(
    client: MakeClient, start_server: StartServer, collection: str
) -> None:
    server = start_server("--tls-self-signed")
    node = client(server.url, key=server.key)
    error = node.error(f"await db.{collection}.count()")
    assert (error["code"], error["status"]) == ("CERTIFICATE", 0)
    assert "certificate" in error["message"]
    node.subscribe(collection, "a", ready=False)
    assert node.wait_state("closed")["code"] == "CERTIFICATE"
    # With a token from elsewhere it is the socket that finds out; only `ws` says why.
    token = server.token(collection)
    other = client(server.url, key=None, ws=True, first=f"options.getToken = async () => {token!r}")
    other.subscribe(collection, "a", ready=False)
    assert other.wait_state("closed")["code"] == "CERTIFICATE"


@pytest.mark.parametrize("count", [100, 64])
def test_names_that_one_token_may_have_fit_into_a_handshake(
    client: MakeClient, server: Server, proxy: Proxy, count: int
) -> None:
    length = 4096 // count
    node = client(proxy.url)
    node.run(f"for (let n = 0; n < {count}; n += 1) subscribe(`n${{n}}_`.padEnd({length}, 'x'), `n${{n}}`)")
    node.wait_state("live")
    assert all(len(line) < 8000 for head in proxy.sockets for line in head.split("\r\n"))
    server.insert("n7_".ljust(length, "x"), {})
    node.wait_events("n7", 1)
    error = node.error("subscribe('y'.repeat(64))")
    assert error["code"] == "TOO_MANY_SUBSCRIPTIONS"


def test_a_cursor_of_a_quiet_collection_stays_young(
    client: MakeClient, start_server: StartServer, collection: str
) -> None:
    server = start_server("--retention-count", "5")
    listen = "globalThis.addEventListener = (name, listener) => (listeners[name] = listener);"
    first = f"globalThis.listeners = {{}}; {listen}"
    with Proxy(server.port) as proxy:
        node = client(proxy.url, key=server.key, first=first)
        node.subscribe(collection, "a")
        for _ in range(4):
            server.request("POST", "/busy/bulk", json=[{}] * 10)
            node.run("listeners.pageshow()")  # as after a while of silence: it asks
            node.subscribe(collection, "b")  # whose answer comes behind that to the question
            node.run("state.offs.b()")
        head = int(server.request("GET", f"/{collection}/changes").json()["seq"])
        wait_until(lambda: server.request("GET", f"/{collection}/changes?since=1").status_code == 410)
        proxy.cut()
        wait_until(lambda: len(proxy.sockets) == 2)
        assert f"since={head}&" in proxy.sockets[1]
        node.wait_state("live")
        server.insert(collection, {})
        assert [event["seq"] for event in node.wait_events("a", 1)] == [head + 1]
    assert "gap" not in [status["state"] for status in node.statuses]


def test_changes_from_before_a_subscription_do_not_come_after_a_cut(
    client: MakeClient, server: Server, proxy: Proxy, collection: str
) -> None:
    first, second = f"{collection}-1", f"{collection}-2"
    node = client(proxy.url)
    node.subscribe(first, "a")
    for _ in range(5):
        server.insert(second, {"when": "before"})
    node.subscribe(second, "b")
    node.subscribe(second, "b2")
    proxy.cut()
    wait_until(lambda: len(proxy.sockets) == 2)
    server.insert(second, {"when": "after"})
    for to in ("b", "b2"):
        assert [event["data"]["when"] for event in node.wait_events(to, 1)] == ["after"]
