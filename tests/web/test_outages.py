"""A handler sees every change once and in order, whatever becomes of the connection in between.

Rules: the server's own change log says what was to be seen; randomness has a seed, which a failure shows.
"""

from __future__ import annotations

import random
import threading
from typing import Any

from tests.conftest import Server, StartServer, wait_until
from tests.web.conftest import MakeClient
from tests.web.tools import EITHER_WEBSOCKET, Client, Proxy

SOON = "Math.random = () => 0.05;"
"""Reconnect early in the span of time that the jitter chooses from."""


def logged(server: Server, collection: str) -> list[dict[str, Any]]:
    """What the server's change log says of a collection."""
    changes: list[dict[str, Any]] = []
    more = True
    while more:
        since = changes[-1]["seq"] if changes else 0
        page = server.request("GET", f"/{collection}/changes?since={since}&limit=1000").json()
        changes += page["changes"]
        more = page["hasMore"]
    return changes


def check(node: Client, to: str, expected: list[dict[str, Any]], seconds: float = 20) -> None:
    """The handler has seen exactly these changes, in this order."""
    events = node.wait_events(to, len(expected), seconds)
    assert [event["seq"] for event in events] == [change["seq"] for change in expected]
    assert events == expected


@EITHER_WEBSOCKET
def test_a_server_that_is_killed_and_comes_back(
    client: MakeClient, start_server: StartServer, collection: str, ws: bool
) -> None:
    server = start_server()
    with Proxy(server.port) as proxy:
        node = client(proxy.url, key=server.key, ws=ws, first=SOON)
        node.subscribe(collection, "a")
        server.insert(collection, {"n": 0})
        node.wait_events("a", 1)
        for _ in range(2):
            server.kill()
            proxy.refusing = True
            node.wait_state("offline")
            server.start()
            for n in range(60):
                server.request("POST", f"/{collection}/bulk", json=[{"n": n}])
            proxy.refusing = False
            node.wait_state("live")
        server.insert(collection, {"n": -1})
        check(node, "a", logged(server, collection))
    states = [status["state"] for status in node.statuses]
    assert "catching up" in states
    assert "gap" not in states


@EITHER_WEBSOCKET
def test_a_network_that_cuts_in_the_middle_of_frames_and_a_server_that_is_killed(
    client: MakeClient, start_server: StartServer, collection: str, ws: bool
) -> None:
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    chance = random.Random(seed)
    server = start_server()
    first, second = f"{collection}-1", f"{collection}-2"
    with Proxy(server.port) as proxy:
        node = client(proxy.url, key=server.key, ws=ws, first=SOON)
        node.subscribe(first, "a")
        node.subscribe(second, "b")
        proxy.cut_after = lambda: chance.choice([None, chance.randrange(1, 500), chance.randrange(500, 40_000)])
        stop = threading.Event()

        def harm() -> None:
            while not stop.wait(chance.uniform(0.05, 0.3)):
                if chance.random() < 0.5:
                    proxy.cut()
                proxy.frozen = True
                stop.wait(chance.uniform(0, 0.1))
                proxy.frozen = False

        harming = threading.Thread(target=harm)
        harming.start()
        try:
            for round in range(2):
                for n in range(5000):
                    if n >= 100 and len(proxy.sockets) > 3 * (round + 1):  # cut off often enough
                        break
                    name = chance.choice([first, second])
                    made = server.insert(name, {"n": n, "text": "ü" * chance.randrange(1, 400)})
                    if n % 5 == 0:
                        server.request("PATCH", f"/{name}/docs/{made['_id']}", json={"round": round})
                if round == 0:
                    server.kill()
                    server.start()
        finally:
            stop.set()
            harming.join()
        proxy.cut_after = lambda: None
        proxy.cut()
        check(node, "a", logged(server, first))
        check(node, "b", logged(server, second))
        assert len(proxy.sockets) > 6
    assert "gap" not in [status["state"] for status in node.statuses]
    assert node.stderr == "" or "ExperimentalWarning" in node.stderr


def test_a_subscription_made_offline_begins_when_the_server_gets_it(
    client: MakeClient, server: Server, proxy: Proxy, collection: str
) -> None:
    first, second = f"{collection}-1", f"{collection}-2"
    node = client(proxy.url)
    node.subscribe(first, "a")
    proxy.refusing = True
    proxy.cut()
    node.wait_state("offline")
    server.insert(first, {"when": "before"})
    server.insert(second, {"when": "before"})
    node.subscribe(first, "a2", ready=False)
    node.subscribe(second, "b", ready=False)
    proxy.refusing = False
    wait_until(lambda: [said["to"] for said in node.said] == ["a", "a2", "b"], 15)
    node.wait_events("a", 1)
    proxy.cut()  # the cursor is older than where a2 and b began
    server.insert(first, {"when": "after"})
    server.insert(second, {"when": "after"})
    check(node, "a", logged(server, first))
    check(node, "a2", logged(server, first)[1:])
    check(node, "b", logged(server, second)[1:])


def test_unsubscribing_while_offline_and_subscribing_again_begins_anew(
    client: MakeClient, server: Server, proxy: Proxy, collection: str
) -> None:
    node = client(proxy.url)
    node.subscribe(collection, "a")
    proxy.refusing = True
    proxy.cut()
    node.wait_state("offline")
    server.insert(collection, {})
    node.run("state.offs.a()")
    node.subscribe(collection, "b", ready=False)
    proxy.refusing = False
    wait_until(lambda: {"ready": True, "to": "b"} in node.said, 15)
    server.insert(collection, {})
    check(node, "b", logged(server, collection)[1:])
    assert "a" not in node.events


def test_a_gap_is_reported_and_changes_continue_after_it(
    client: MakeClient, start_server: StartServer, collection: str
) -> None:
    server = start_server("--retention-count", "5")
    with Proxy(server.port) as proxy:
        node = client(proxy.url, key=server.key)
        node.subscribe(collection, "a")
        node.subscribe(f"{collection}-quiet", "b")
        server.insert(collection, {})
        node.wait_events("a", 1)
        proxy.refusing = True
        proxy.cut()
        node.subscribe(collection, "new", ready=False)
        server.request("POST", f"/{collection}/bulk", json=[{}] * 50)
        url = f"/{collection}/changes?since=1"
        wait_until(lambda: server.request("GET", url).status_code == 410)
        proxy.refusing = False
        node._wait(lambda: len([said for said in node.said if "gap" in said]) == 2, 15)
        gaps = [said for said in node.said if "gap" in said]
        assert {said["to"] for said in gaps} == {"a", "b"}  # `new` has missed nothing
        assert all(said["gap"] == {"since": 1, "oldest": 47} for said in gaps)
        node.wait_state("live")
        assert {"state": "gap", "since": 1, "oldest": 47} in node.statuses
        server.insert(collection, {"after": "the gap"})
        assert [event["seq"] for event in node.wait_events("a", 2)] == [1, 52]
        assert [event["seq"] for event in node.wait_events("new", 1)] == [52]


def test_a_connection_that_died_silently_is_noticed_after_waking(
    client: MakeClient, server: Server, proxy: Proxy, collection: str
) -> None:
    """The clock jumps, as after a laptop's sleep; no event said that the network was gone meanwhile."""
    node = client(proxy.url)
    node.subscribe(collection, "a")
    proxy.frozen = True
    server.insert(collection, {})
    node.run("const { now } = Date; Date.now = () => now() + 3_600_000;")
    node._wait(lambda: node.state == "connecting", 15)
    proxy.frozen = False
    check(node, "a", logged(server, collection))
