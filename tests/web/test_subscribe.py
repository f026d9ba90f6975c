"""Subscriptions of the SDK while all is well: events, handlers, tokens, and what keeps Node alive."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import Server, StartServer, wait_until
from tests.web.conftest import MakeClient
from tests.web.tools import EITHER_WEBSOCKET, Proxy, Script


def test_every_change_is_one_event_of_the_documented_shape(
    client: MakeClient, server: Server, collection: str
) -> None:
    node = client()
    node.subscribe(collection, "a")
    made = server.insert(collection, {"text": "hello"})
    path = f"/{collection}/docs/{made['_id']}"
    patched = server.request("PATCH", path, json={"n": 1}).json()
    server.request("DELETE", path)
    events = node.wait_events("a", 3)
    assert [sorted(event) for event in events] == [["collection", "data", "seq", "type"]] * 3
    assert [(event["type"], event["data"]) for event in events] == [
        ("insert", made),
        ("update", patched),
        ("delete", patched),
    ]
    assert [status["state"] for status in node.statuses] == ["connecting", "live"]


@EITHER_WEBSOCKET
def test_collections_come_and_go_on_one_socket(
    client: MakeClient, server: Server, proxy: Proxy, collection: str, ws: bool
) -> None:
    first, second = f"{collection}-1", f"{collection}-2"
    node = client(proxy.url, ws=ws)
    node.subscribe(first, "a")
    node.subscribe(second, "b")
    node.subscribe(first, "again")
    for name in (first, second):
        server.insert(name, {})
    for to in ("a", "b", "again"):
        node.wait_events(to, 1)
    node.run("state.offs.b(); state.offs.again(); state.offs.again()")
    for name in (first, second):
        server.insert(name, {})
    node.wait_events("a", 2)
    node.subscribe(second, "b2")
    for name in (first, second):
        server.insert(name, {})
    node.wait_events("a", 3)
    node.wait_events("b2", 1)
    assert (len(node.events["b"]), len(node.events["again"])) == (1, 1)
    assert len(proxy.sockets) == 1
    assert len(proxy.mints) == 2  # one for the first, one for both
    node.run("for (const off of Object.values(state.offs)) off()")
    assert node.wait_state("closed")["reason"] == "nothing is subscribed"


def test_no_key_and_no_token_in_a_url(
    client: MakeClient, server: Server, proxy: Proxy, collection: str
) -> None:
    node = client(proxy.url)
    node.subscribe(collection)
    lines = [head.partition("\r\n")[0] for head in proxy.heads]
    assert len(lines) == 2
    assert all(server.key not in line and "eyJ" not in line for line in lines)


def test_unsubscribing_takes_effect_at_once_even_within_a_handler(
    client: MakeClient, server: Server, collection: str
) -> None:
    node = client()
    node.subscribe(collection, "other")
    node.run(f"""
        const handler = () => {{ off(); state.offs.victim(); state.calls += 1; }};
        const off = db.realtime.subscribe("{collection}", handler);
        state.calls = 0;
        subscribe("{collection}", "victim");""")
    node.subscribe(collection, "last")
    server.insert(collection, {})
    server.insert(collection, {})
    node.wait_events("other", 2)
    node.wait_events("last", 2)
    assert "victim" not in node.events
    assert node.run("return state.calls") == 1


def test_a_handler_that_fails_affects_no_other(client: MakeClient, server: Server, collection: str) -> None:
    node = client()
    node.run(f"""
        state.errors = [];
        const onError = (error) => {{ state.errors.push(error.message); throw new Error("onError fails"); }};
        const name = "{collection}";
        const keep = (error) => state.errors.push(error.message);
        db.realtime.subscribe(name, () => {{ throw new Error("thrown") }}, {{ onError: keep }});
        db.realtime.subscribe(name, async () => {{ throw new Error("rejected") }}, {{ onError }});
        db.realtime.subscribe(name, (event) => {{ event.data.text = "changed"; throw new Error("unheard") }});
        db.realtime.onStatus(() => {{ throw new Error("in a status listener") }});
    """)
    node.subscribe(collection, "a")
    server.insert(collection, {"text": "first"})
    server.insert(collection, {"text": "second"})
    assert [event["data"]["text"] for event in node.wait_events("a", 2)] == ["first", "second"]
    # Both events may come in one read: then both are handled before a promise is rejected.
    assert sorted(node.run("return state.errors")) == ["rejected", "rejected", "thrown", "thrown"]
    wait_until(lambda: node.stderr.count("Error: unheard") == 2)
    assert "Error: onError fails" in node.stderr
    assert "Error: in a status listener" in node.stderr
    assert server.key not in node.stderr


def test_misuse_is_refused_at_once(client: MakeClient) -> None:
    node = client()
    assert node.error('db.realtime.subscribe("my collection", () => {})')["code"] == "INVALID_COLLECTION"
    assert node.error('db.realtime.subscribe("messages")')["name"] == "TypeError"
    many = "for (let n = 0; n < 101; n += 1) db.realtime.subscribe(`c${n}`, () => {})"
    assert node.error(many)["code"] == "TOO_MANY_SUBSCRIPTIONS"
    node.wait_state("live")
    node.run("db.close()")
    assert node.wait_state("closed")["reason"] == "the client was closed"
    assert node.error('db.realtime.subscribe("messages", () => {})')["code"] == "CLOSED"


# --- refusals ------------------------------------------------------------------------------------


def test_plan_free_closes_with_the_reason(client: MakeClient, server: Server) -> None:
    server.cli("databases", "create", "poor", "--plan", "free")
    node = client(key=server.new_key("poor")["key"])
    node.subscribe("messages", ready=False)
    status = node.wait_state("closed")
    message = "Realtime is only available on Pro and Team plans"
    assert (status["reason"], status["code"]) == (message, "PLAN_REQUIRED")
    node._wait(lambda: bool(node.said))
    assert node.said == [
        {
            "to": "messages",
            "failed": {
                "name": "PaperDBError",
                "status": 403,
                "code": "PLAN_REQUIRED",
                "plan": "free",
                "message": message,
            },
        }
    ]
    assert node.error('await db.realtime.generateToken({collections: ["messages"]})')["status"] == 403


def test_a_revoked_key_closes_and_a_new_subscription_tries_again(
    client: MakeClient, server: Server, collection: str
) -> None:
    key = server.new_key()
    node = client(key=key["key"])
    node.subscribe(collection, "a")
    server.cli("keys", "revoke", key["id"])
    assert node.wait_state("closed")["reason"] == "API key revoked"
    node._wait(lambda: [said["failed"]["code"] for said in node.said if "failed" in said] == ["ACCESS_LOST"])
    node.subscribe(collection, "b", ready=False)
    wait_until(lambda: [status["state"] for status in node.statuses][-2:] == ["connecting", "closed"])
    assert node.statuses[-1]["code"] == "UNAUTHORIZED"


def test_a_server_that_is_not_there_at_first(
    client: MakeClient, start_server: StartServer, collection: str
) -> None:
    late = start_server()
    late.kill()
    node = client(late.url, key=late.key)
    node.subscribe(collection, "a", ready=False)
    assert node.wait_state("offline")["reason"].startswith("No response from the server")
    late.start()
    node.wait_state("live")
    late.insert(collection, {})
    node.wait_events("a", 1)


# --- the Node process ----------------------------------------------------------------------------

CLIENT = """
import { createClient } from "paperdb";
const db = createClient({ apiKey: process.env.KEY, baseUrl: process.env.URL });
"""
ENDS = {
    "unsubscribed at once": 'db.realtime.subscribe("m", () => {})();',
    "unsubscribed while connecting": 'const off = db.realtime.subscribe("m", () => {}); setTimeout(off, 5);',
    "unsubscribed when live": 'const off = db.realtime.subscribe("m", () => {}, { onReady: () => off() });',
    "closed by a listener": 'db.realtime.onStatus(() => db.close()); db.realtime.subscribe("m", () => {});',
    "a request only": "await db.m.count();",
}


@pytest.mark.parametrize("how", ENDS)
def test_node_ends_when_nothing_is_subscribed(package: Path, server: Server, how: str) -> None:
    env = {"KEY": server.key, "URL": server.url}
    with Script(package, CLIENT + ENDS[how], env=env) as script:
        assert script.end(15) == ""


def test_node_ends_although_a_token_never_comes(package: Path, server: Server, proxy: Proxy) -> None:
    proxy.frozen = True
    source = 'const off = db.realtime.subscribe("m", () => {}); setTimeout(off, 200);'
    with Script(package, CLIENT + source, env={"KEY": server.key, "URL": proxy.url}) as script:
        assert script.end(15) == ""


def test_node_stays_alive_while_something_is_subscribed(
    package: Path, start_server: StartServer, collection: str
) -> None:
    server = start_server()
    env = {"KEY": server.key, "URL": server.url}
    source = f"""{CLIENT}
        Math.random = () => 0.05; // no long pauses, however long the server takes to start
        const off = db.realtime.subscribe("{collection}", (event) => {{ console.log(event.type); off(); }});
        db.realtime.onStatus(({{ state }}) => console.log(state));"""
    with Script(package, source, env=env) as script:
        script.wait_for("live")
        server.kill()
        script.wait_for("offline")
        server.start()
        wait_until(lambda: script.lines.count("live") == 2)
        server.stop()
        wait_until(lambda: script.output.rpartition("live")[2].count("offline") > 1)
        server.start()
        wait_until(lambda: script.lines.count("live") == 3, 10)
        server.insert(collection, {})
        assert json.dumps(script.end(15).split("\n")[-2:]) == '["insert", "closed"]'
