"""Live queries of a token with rules: they show its view only, and begin anew when the rule changes."""

from __future__ import annotations

from typing import Any

import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from tests.conftest import Server, receive
from tests.realtime.live import ask, delete, listening, put, rest_of_snapshot, shape, snapshot

RULE = {"filter": {"user": "alice"}, "select": ["status", "total"]}


def test_token_with_a_rule_follows_only_its_view(server: Server, collection: str) -> None:
    put(server, collection, "a1", user="alice", status="open", total=1, margin=7)
    put(server, collection, "b1", user="bob", status="open", total=2)
    with listening(server, collection, RULE, collection) as ws:
        put(server, collection, "b1", user="bob", status="paid", total=2)
        put(server, collection, "a1", user="alice", status="open", total=1, margin=8)  # nothing visible changed
        put(server, collection, "b1", user="alice", status="paid", total=2, margin=1)
        put(server, collection, "a1", user="bob", status="secret", total=999)
        events = [receive(ws), receive(ws)]
        assert [(event["type"], event["data"]) for event in events] == [
            ("insert", {"_id": "b1", "status": "paid", "total": 2}),
            ("delete", {"_id": "a1", "status": "open", "total": 1}),
        ]
        _, documents = snapshot(ws, collection=collection, filter={"status": "paid"})
        assert documents == [{"_id": "b1", "status": "paid", "total": 2}]
        for members in ({"filter": {"margin": 1}}, {"filter": {"user": "bob"}}, {"select": ["margin"]}):
            reply = ask(ws, collection=collection, **members)
            assert reply["code"] == "FIELD_NOT_IN_TOKEN", members
        assert ask(ws, collection="other")["code"] == "NOT_IN_TOKEN"


def mint(server: Server, collections: Any, **more: Any) -> str:
    response = server.request("POST", "/realtime/token", json={"collections": collections, **more})
    assert response.status_code == 200, response.text
    return str(response.json()["token"])


def test_another_rule_resets_and_shows_the_new_view(server: Server, collection: str) -> None:
    put(server, collection, "a1", user="alice", n=1)
    put(server, collection, "b1", user="bob", n=1)
    with listening(server, collection, {"filter": {"user": "alice"}}) as ws:
        reply, documents = snapshot(ws, collection=collection, filter={"n": 1})
        assert [document["_id"] for document in documents] == ["a1"]
        bare = ask(ws, collection=collection, filter={"n": 2})["query"]
        assert ask(ws, "auth", token=mint(server, {collection: {"filter": {"user": "bob"}}}))["type"] == (
            "authenticated"
        )
        first = receive(ws)
        assert (first["type"], first["query"], first["reason"]) == ("reset", reply["query"], "rule")
        assert first["becomes"] not in (reply["query"], bare)
        assert [document["_id"] for document in rest_of_snapshot(ws, first["becomes"])] == ["b1"]
        second = receive(ws)
        assert (second["type"], second["query"], second["reason"]) == ("reset", bare, "rule")
        put(server, collection, "a1", user="alice", n=2)  # no longer allowed
        put(server, collection, "b1", user="bob", n=2)
        events = [receive(ws), receive(ws)]
        assert {(event["query"], event["type"], event["data"]["_id"]) for event in events} == {
            (first["becomes"], "delete", "b1"),
            (second["becomes"], "insert", "b1"),
        }
        # The same rule again: nothing to tell.
        assert ask(ws, "auth", token=mint(server, {collection: {"filter": {"user": "bob"}}}))["type"] == (
            "authenticated"
        )
        assert ask(ws, "ping")["type"] == "pong"
        assert ask(ws, "auth", token=mint(server, ["other"]))["code"] == "NOT_IN_TOKEN"


def test_queries_that_a_rule_makes_the_same_each_get_a_snapshot(server: Server, collection: str) -> None:
    put(server, collection, "a1", user="alice", n=1)
    with listening(server, collection) as ws:
        wide, _ = snapshot(ws, collection=collection, filter={"n": {"gte": 1}})
        narrow, _ = snapshot(ws, collection=collection, filter={"n": {"gte": 1}, "user": "alice"})
        rule = {"filter": {"user": "alice"}}
        assert ask(ws, "auth", token=mint(server, {collection: rule}))["type"] == "authenticated"
        reset = receive(ws)
        assert (reset["type"], reset["query"], reset["becomes"]) == ("reset", wide["query"], narrow["query"])
        assert [document["_id"] for document in rest_of_snapshot(ws, narrow["query"])] == ["a1"]
        put(server, collection, "a1", user="alice", n=2)
        assert shape(receive(ws)) == ("update", "update", "a1")
        assert ask(ws, "ping")["type"] == "pong"


def test_rule_that_comes_to_a_whole_collection_resets_it(server: Server, collection: str) -> None:
    with listening(server, collection, query=collection) as ws:
        assert ask(ws, "auth", token=mint(server, {collection: RULE}))["type"] == "authenticated"
        reset = receive(ws)
        assert (reset["type"], reset["collection"], reset["reason"]) == ("reset", collection, "rule")
        put(server, collection, "b1", user="bob", status="x")
        put(server, collection, "a1", user="alice", status="x", margin=1)
        event = receive(ws)
        assert (event["query"], event["data"]) == (reset["becomes"], {"_id": "a1", "status": "x"})


def test_rules_and_every_collection_do_not_mix(server: Server, collection: str) -> None:
    token = mint(server, {"*": {}, collection: RULE})
    with pytest.raises(InvalidStatus) as refused:
        connect(f"{server.ws_url}/?token={token}", proxy=None)
    assert refused.value.response.status_code == 403
    with connect(f"{server.ws_url}/?token={token}&collections={collection},other", proxy=None) as ws:
        put(server, collection, "a1", user="bob")
        put(server, "other", collection, n=1)
        assert receive(ws)["collection"] == "other"
        delete(server, "other", collection)
