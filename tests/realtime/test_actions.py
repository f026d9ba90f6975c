"""Actions: each gets exactly one reply, which echoes `ref`. A bad one gets an error and changes nothing. Too
many bad messages close the connection."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from websockets.sync.client import ClientConnection

from tests.conftest import Server, receive
from tests.realtime.raw import end_of, forge


def ask(ws: ClientConnection, message: Any) -> dict[str, Any]:
    """Send an action (text as it is) and return the next message."""
    ws.send(message if isinstance(message, str) else json.dumps(message))
    return receive(ws)


@pytest.mark.parametrize("ref", [None, "r-1", "", 7, 0, 1.5])
@pytest.mark.parametrize("query", ["", "since=now"])
def test_each_action_gets_one_reply_that_echoes_ref(
    server: Server, collection: str, query: str, ref: str | float | None
) -> None:
    echo = {} if ref is None else {"ref": ref}
    with server.connect(collection, f"{collection}_b", query=query) as ws:
        seq = {}  # in cursor mode: up to where everything has been sent
        if query:
            seq = {"seq": receive(ws)["seq"]}
        assert ask(ws, {"action": "ping", **echo}) == {"type": "pong", **seq, **echo}
        gone = ask(ws, {"action": "unsubscribe", "collection": collection, **echo})
        assert gone == {"type": "unsubscribed", "collection": collection, **echo}
        back = ask(ws, {"action": "subscribe", "collection": collection, **echo})
        assert back == {"type": "subscribed", "collection": collection, **seq, **echo}
        renewed = ask(ws, {"action": "auth", "token": server.token(collection, f"{collection}_b"), **echo})
        assert 890 <= renewed.pop("expiresIn", 900) <= 900
        assert renewed == {"type": "authenticated", **echo}
        error = ask(ws, {"action": "dance", **echo})
        assert isinstance(error.pop("message"), str)
        assert error == {"type": "error", "code": "UNKNOWN_ACTION", **echo}


@pytest.mark.executable
def test_unsubscribe_stops_and_subscribe_resumes_the_events_of_a_collection(
    server: Server, collection: str
) -> None:
    a, b = f"{collection}_a", f"{collection}_b"
    with server.connect(a, b, query=f"collections={a}") as ws:
        server.insert(b, {"missed": 1})
        assert ask(ws, {"action": "subscribe", "collection": b})["type"] == "subscribed"
        first = server.insert(b, {"seen": 1})
        assert receive(ws)["data"] == first
        assert ask(ws, {"action": "unsubscribe", "collection": a})["type"] == "unsubscribed"
        server.insert(a, {"missed": 2})
        second = server.insert(b, {"seen": 2})
        assert receive(ws)["data"] == second
        assert ask(ws, {"action": "subscribe", "collection": a})["type"] == "subscribed"
        third = server.insert(a, {"seen": 3})
        assert receive(ws)["data"] == third


def test_subscribing_twice_gives_each_event_once(server: Server, collection: str) -> None:
    with server.connect(collection) as ws:
        for _ in range(2):
            assert ask(ws, {"action": "subscribe", "collection": collection})["type"] == "subscribed"
        documents = [server.insert(collection, {}) for _ in range(2)]
        assert [receive(ws)["data"] for _ in range(2)] == documents


def test_wildcard_connection_cannot_unsubscribe(server: Server, collection: str) -> None:
    with server.connect("*") as ws:
        assert ask(ws, {"action": "subscribe", "collection": collection})["type"] == "subscribed"
        error = ask(ws, {"action": "unsubscribe", "collection": collection, "ref": 1})
        assert (error["type"], error["code"], error["ref"]) == ("error", "SUBSCRIBED_TO_ALL", 1)
        document = server.insert(collection, {})
        assert receive(ws)["data"] == document


def test_wildcard_token_can_subscribe_to_anything_later(server: Server, collection: str) -> None:
    with server.connect("*", query=f"collections={collection}_a") as ws:
        server.insert(collection, {})
        assert ask(ws, {"action": "subscribe", "collection": collection})["type"] == "subscribed"
        document = server.insert(collection, {})
        assert receive(ws)["data"] == document


BAD_MESSAGES = {
    "no JSON": "hello",
    "empty": "",
    "cut JSON": '{"action": "ping"',
    "an array": '["ping"]',
    "a string": '"ping"',
    "a number": "1",
    "null": "null",
    "no action": "{}",
    "another action": '{"action": "dance"}',
    "an action that is not a string": '{"action": ["ping"]}',
    "subscribe without a collection": '{"action": "subscribe"}',
    "subscribe to a number": '{"action": "subscribe", "collection": 5}',
    "unsubscribe without a collection": '{"action": "unsubscribe"}',
    "auth without a token": '{"action": "auth"}',
    "a ref that is an object": '{"action": "ping", "ref": {}}',
    "a ref that is long": json.dumps({"action": "ping", "ref": "x" * 129}),
    "a lone surrogate": '{"action": "ping", "ref": "\\ud800"}',
    "deep nesting": "[" * 30_000,
    "a number out of range": '{"action": "ping", "ref": 1e999}',
    "an integer out of range": '{"action": "ping", "ref": 1' + "0" * 400 + "}",
}


@pytest.mark.parametrize("text", BAD_MESSAGES.values(), ids=BAD_MESSAGES.keys())
def test_bad_message_gets_an_error_and_the_connection_stays_open(
    server: Server, collection: str, text: str
) -> None:
    with server.connect(collection) as ws:
        error = ask(ws, text)
        assert error["type"] == "error"
        assert error["code"].isupper()
        assert error["message"]
        assert error.keys() <= {"type", "code", "message", "ref"}
        assert ask(ws, {"action": "ping"}) == {"type": "pong"}


def test_large_integer_ref_is_echoed_exactly(server: Server, collection: str) -> None:
    with server.connect(collection) as ws:
        assert ask(ws, {"action": "ping", "ref": 10**30}) == {"type": "pong", "ref": 10**30}


def test_ten_bad_messages_get_replies_and_the_eleventh_closes(server: Server, collection: str) -> None:
    with server.connect(collection) as ws:
        for _ in range(10):
            assert ask(ws, "bad")["type"] == "error"
        assert ask(ws, {"action": "ping"}) == {"type": "pong"}
        ws.send("bad")
        assert end_of(ws) == 4400


def test_well_formed_refusal_does_not_count_as_bad_message(server: Server, collection: str) -> None:
    """An application that requests more than its token allows is not broken; it gets an error each time."""
    with server.connect(collection) as ws:
        for _ in range(15):
            error = ask(ws, {"action": "subscribe", "collection": "elsewhere", "ref": 1})
            assert (error["type"], error["code"], error["ref"]) == ("error", "NOT_IN_TOKEN", 1)


@pytest.mark.parametrize(
    ("action", "name", "code"),
    [
        ("subscribe", "elsewhere", "NOT_IN_TOKEN"),
        ("subscribe", "my collection", "INVALID_COLLECTION"),
        ("subscribe", "", "INVALID_COLLECTION"),
        ("subscribe", "*", "INVALID_COLLECTION"),
        ("unsubscribe", "elsewhere", "NOT_SUBSCRIBED"),
        ("unsubscribe", "x" * 65, "INVALID_COLLECTION"),
    ],
)
def test_collection_outside_the_token_is_an_error(
    server: Server, collection: str, action: str, name: str, code: str
) -> None:
    with server.connect(collection) as ws:
        error = ask(ws, {"action": action, "collection": name, "ref": "r"})
        assert (error["type"], error["code"], error["ref"]) == ("error", code, "r")
        document = server.insert(collection, {})
        assert receive(ws)["data"] == document


def test_one_connection_holds_at_most_100_collections(server: Server, collection: str) -> None:
    names = [f"{collection}_{n}" for n in range(101)]
    with server.connect("*", query=f"collections={','.join(names[:100])}") as ws:
        assert ask(ws, {"action": "subscribe", "collection": names[100]})["type"] == "error"
        ask(ws, {"action": "unsubscribe", "collection": names[0]})
        assert ask(ws, {"action": "subscribe", "collection": names[100]})["type"] == "subscribed"
        document = server.insert(names[100], {})
        assert receive(ws)["data"] == document


# --- auth ----------------------------------------------------------------------------------------


@pytest.mark.executable
def test_auth_refuses_bad_tokens_and_keeps_the_old_grant(server: Server, collection: str) -> None:
    server.cli("databases", "create", collection, "--plan", "team")
    other_database = server.token(collection, key=server.new_key(collection)["key"])
    tokens = {
        "no token": "INVALID_TOKEN",
        server.token(collection)[:-4]: "INVALID_TOKEN",
        forge(server, collection, secret=b"x" * 32): "INVALID_TOKEN",
        forge(server, collection, lifetime=-1): "TOKEN_EXPIRED",
        other_database: "OTHER_DATABASE",
        server.token("elsewhere"): "NOT_IN_TOKEN",
    }
    with server.connect(collection) as ws:
        for token, code in tokens.items():
            error = ask(ws, {"action": "auth", "token": token, "ref": code})
            assert (error["type"], error["code"], error["ref"]) == ("error", code, code)
        document = server.insert(collection, {})
        assert receive(ws)["data"] == document


def test_fresh_token_brings_its_own_collections_and_expiry(server: Server, collection: str) -> None:
    other = f"{collection}_b"
    with server.connect(collection) as ws:
        assert ask(ws, {"action": "subscribe", "collection": other})["code"] == "NOT_IN_TOKEN"
        renewed = ask(ws, {"action": "auth", "token": server.token(collection, other, expiresIn=60)})
        assert renewed["type"] == "authenticated"
        assert 50 <= renewed["expiresIn"] <= 60
        assert ask(ws, {"action": "subscribe", "collection": other})["type"] == "subscribed"
        document = server.insert(other, {})
        assert receive(ws)["data"] == document


def test_replies_and_events_come_in_causal_order(server: Server, collection: str) -> None:
    """After `unsubscribed` no event of that collection comes, however many were queued."""
    with server.connect(collection, f"{collection}_b", max_queue=None) as ws:
        server.request("POST", f"/{collection}/bulk", json=[{"pad": "x" * 5000}] * 300)
        ws.send(json.dumps({"action": "unsubscribe", "collection": collection}))
        server.request("POST", f"/{collection}/bulk", json=[{}] * 50)
        end = server.insert(f"{collection}_b", {})
        kinds = []
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            message = receive(ws)
            if message.get("data") == end:
                break
            kinds.append(message["type"])
        after = kinds[kinds.index("unsubscribed") + 1 :]
        assert after == []
