"""Writing with a token that has a rule: the rule holds before and after, hidden fields are neither written nor
lost, and no refusal tells what is hidden. Attacks are made as in `test_rules`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.conftest import Server
from tests.rest.rules import Holder, holders, told
from tests.rest.tools import refusal

FILTER = {"userId": "alice", "total": {"lt": 100}}
OWN = {"_id": "a1", "userId": "alice", "total": 5, "secret": "s", "address": {"city": "Rome", "zip": "1"}}
FOREIGN = {"_id": "b1", "userId": "bob", "total": 7, "secret": "t"}
RULE = (403, "RULE")
WRITE = ["read", "write"]


@pytest.fixture
def holder(server: Server) -> Iterator[Holder]:
    with holders(server) as holder:
        yield holder


@pytest.fixture
def orders(api: httpx.Client, collection: str) -> str:
    assert api.post(f"/{collection}/bulk", json=[OWN, FOREIGN]).json()["failed"] == 0
    return collection


@pytest.fixture
def alice(holder: Holder, orders: str) -> httpx.Client:
    """She writes whole documents of her own."""
    return holder({orders: {"filter": FILTER, "permissions": WRITE}})


@pytest.fixture
def clerk(holder: Holder, orders: str) -> httpx.Client:
    """He writes some fields of her documents."""
    select = ["userId", "total", "tags", "email", "address.city"]
    return holder({orders: {"filter": FILTER, "select": select, "permissions": WRITE}})


def stored(api: httpx.Client, orders: str, id: str) -> dict[str, Any] | None:
    response = api.get(f"/{orders}/docs/{id}")
    document: dict[str, Any] = response.json()
    return document if response.status_code == 200 else None


# --- documents -----------------------------------------------------------------------------------


def test_writes_within_the_rule_are_done(api: httpx.Client, alice: httpx.Client, orders: str) -> None:
    docs = f"/{orders}/docs"
    made = alice.post(docs, json={"userId": "alice", "total": 1, "key": "a2"})
    assert (made.status_code, stored(api, orders, "a2")) == (201, made.json())
    assert made.headers["etag"] == api.get(f"{docs}/a2").headers["etag"]
    assert alice.patch(f"{docs}/a2", json={"total": {"increment": 1}}).json()["total"] == 2
    assert alice.put(f"{docs}/a2", json={"userId": "alice", "total": 3}).status_code == 200
    assert alice.put(f"{docs}/a3", json={"userId": "alice", "total": 3}).status_code == 201
    assert alice.delete(f"{docs}/a2").json() == {"deleted": True, "_id": "a2"}
    assert stored(api, orders, "a2") is None


@pytest.mark.parametrize(
    "fields", [{"userId": "bob"}, {"total": 100}, {"userId": {"unset": True}}, {"total": "5"}]
)
def test_no_document_is_written_out_of_the_rule(
    api: httpx.Client, alice: httpx.Client, orders: str, fields: dict[str, Any]
) -> None:
    own = stored(api, orders, "a1")
    whole = {name: value for name, value in {**OWN, **fields}.items() if name != "_id"}
    assert refusal(alice.patch(f"/{orders}/docs/a1", json=fields)) == RULE
    assert refusal(alice.put(f"/{orders}/docs/a1", json=whole)) == RULE
    assert refusal(alice.put(f"/{orders}/docs/new", json=whole)) == RULE
    assert refusal(alice.post(f"/{orders}/docs", json=whole)) == RULE
    assert (
        refusal(alice.post(f"/{orders}/bulk?atomic=true", json=[{"userId": "alice", "total": 1}, whole]))
        == RULE
    )
    batch = [
        {"op": "insert", "collection": orders, "document": {"userId": "alice", "total": 1}},
        {"op": "update", "collection": orders, "id": "a1", "fields": fields},
    ]
    response = alice.post("/batch", json={"operations": batch})
    assert (refusal(response), response.json()["index"]) == (RULE, 1)
    assert stored(api, orders, "a1") == own
    assert api.get(f"/{orders}/count").json() == {"count": 2}


def test_a_document_outside_the_rule_is_missing_for_writes(
    api: httpx.Client, alice: httpx.Client, orders: str
) -> None:
    foreign = stored(api, orders, "b1")
    for headers in ({}, {"If-Match": "*"}, {"If-Match": '"1"'}, {"If-None-Match": "*"}):
        for where in ("", '?where={"total":7}'):
            outside, missing = (
                [
                    told(alice.patch(f"/{orders}/docs/{id}{where}", json={"total": 8}, headers=headers)),
                    told(alice.delete(f"/{orders}/docs/{id}{where}", headers=headers)),
                ]
                for id in ("b1", "no")
            )
            assert outside == missing
            assert {status for status, *_ in outside} == {404}
    batch = [{"op": "delete", "collection": orders, "id": "b1"}]
    assert refusal(alice.post("/batch", json={"operations": batch})) == (404, "NOT_FOUND")
    assert stored(api, orders, "b1") == foreign


def test_a_foreign_document_cannot_be_taken_over(api: httpx.Client, alice: httpx.Client, orders: str) -> None:
    """What remains to be learned is that the id is taken."""
    foreign = stored(api, orders, "b1")
    mine = {"userId": "alice", "total": 1}
    for headers in ({}, {"If-None-Match": "*"}):
        assert refusal(alice.put(f"/{orders}/docs/b1", json=mine, headers=headers)) == RULE
    # These conditions hold for no document that she cannot see.
    for headers in ({"If-Match": "*"}, {"If-Match": '"1","2","3"'}):
        outside, missing = (
            alice.put(f"/{orders}/docs/{id}", json=mine, headers=headers) for id in ("b1", "no")
        )
        assert told(outside) == told(missing)
        assert outside.status_code == 412
    outside, missing = (alice.put(f'/{orders}/docs/{id}?where={{"total":7}}', json=mine) for id in ("b1", "no"))
    assert told(outside) == told(missing)
    taken = alice.post(f"/{orders}/docs", json={**mine, "key": "b1"})
    own = alice.post(f"/{orders}/docs", json={**mine, "key": "a1"})
    assert told(taken) == told(own)
    assert refusal(taken) == (409, "CONFLICT")
    assert stored(api, orders, "b1") == foreign


def test_an_insert_out_of_the_rule_does_not_tell_whether_the_id_is_taken(
    alice: httpx.Client, orders: str
) -> None:
    taken, free = (alice.post(f"/{orders}/docs", json={"userId": "bob", "key": id}) for id in ("b1", "free"))
    assert told(taken) == told(free)
    taken, free = (alice.put(f"/{orders}/docs/{id}", json={"userId": "bob"}) for id in ("b1", "free"))
    assert told(taken) == told(free)


def test_a_bulk_writes_what_is_within_the_rule(api: httpx.Client, alice: httpx.Client, orders: str) -> None:
    documents = [
        {"userId": "alice", "total": 1, "key": "a2"},
        {"userId": "bob", "total": 1, "key": "b2"},
        {"userId": "alice", "total": 1, "key": "b1"},
    ]
    done = alice.post(f"/{orders}/bulk", json=documents).json()
    assert [(e["index"], e["code"]) for e in done["errors"]] == [(1, "RULE"), (2, "CONFLICT")]
    assert [document["_id"] for document in done["documents"]] == ["a2"]
    assert stored(api, orders, "b2") is None


@pytest.mark.parametrize("rule", [{}, {"filter": FILTER}])
def test_a_token_that_only_reads_writes_nothing(
    api: httpx.Client, holder: Holder, orders: str, rule: dict[str, Any]
) -> None:
    for client in (
        holder({orders: rule}),
        holder({orders: {**rule, "permissions": ["read"]}}, permissions=WRITE),
    ):
        for method, path in (("POST", ""), ("PATCH", "/a1"), ("PUT", "/a1"), ("DELETE", "/a1")):
            response = client.request(method, f"/{orders}/docs{path}", json={"userId": "alice", "total": 1})
            assert refusal(response) == (403, "READ_ONLY_TOKEN")
        assert refusal(client.post(f"/{orders}/bulk", json=[{}])) == (403, "READ_ONLY_TOKEN")
        batch = {"operations": [{"op": "delete", "collection": orders, "id": "a1"}]}
        assert refusal(client.post("/batch", json=batch)) == (403, "READ_ONLY_TOKEN")
    assert api.get(f"/{orders}/count").json() == {"count": 2}


def test_a_token_without_a_rule_writes_as_its_key_does(holder: Holder, orders: str) -> None:
    client = holder([orders], permissions=WRITE)
    assert client.patch(f"/{orders}/docs/b1", json={"total": 8}).json()["total"] == 8
    document = {"total": 1, "unique": ["total"]}
    assert client.post(f"/{orders}/docs", json=document).status_code == 201
    response = client.post(f"/{orders}/docs", json=document)
    assert (refusal(response), "'total'" in response.text) == ((409, "CONFLICT"), True)
    assert refusal(client.post("/other/docs", json={})) == (403, "NOT_IN_TOKEN")
    batch = {"operations": [{"op": "insert", "collection": "other", "document": {}}]}
    assert refusal(client.post("/batch", json=batch)) == (403, "NOT_IN_TOKEN")


# --- fields --------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["secret", "no-such-field", "address", "address.city", "createdby"])
@pytest.mark.parametrize("value", [1, None, {"increment": 1}, {"push": 1}, {"pull": "s"}, {"unset": True}])
def test_a_hidden_field_cannot_be_written(
    api: httpx.Client, clerk: httpx.Client, orders: str, field: str, value: object
) -> None:
    """`address.city` is visible, but a part of an object cannot be written. The refusal is the same for each
    document, for none, and for each field."""
    own = stored(api, orders, "a1")
    fields = {"total": 1, field: value}
    responses = [
        *(clerk.patch(f"/{orders}/docs/{id}", json=fields) for id in ("a1", "b1", "no")),
        *(clerk.put(f"/{orders}/docs/{id}", json=fields) for id in ("a1", "b1", "no")),
        clerk.post(f"/{orders}/docs", json={"userId": "alice", **fields}),
    ]
    assert {refusal(response) for response in responses} == {RULE}
    assert len({told(response)[2] for response in responses}) == 1
    bulk = clerk.post(f"/{orders}/bulk", json=[{"userId": "alice", **fields}]).json()
    assert [error["code"] for error in bulk["errors"]] == ["RULE"]
    assert stored(api, orders, "a1") == own


def test_a_put_through_a_select_keeps_what_it_does_not_show(
    api: httpx.Client, clerk: httpx.Client, orders: str
) -> None:
    response = clerk.put(f"/{orders}/docs/a1", json={"userId": "alice", "total": 6, "tags": {"push": 1}})
    assert response.json() == {
        "_id": "a1",
        "userId": "alice",
        "total": 6,
        "tags": {"push": 1},
        "address": {"city": "Rome"},
    }
    document = stored(api, orders, "a1")
    assert document is not None
    assert (document["secret"], document["address"], document["tags"]) == ("s", OWN["address"], {"push": 1})
    assert clerk.put(f"/{orders}/docs/a1", json={"userId": "alice", "total": 6}).status_code == 200
    assert "tags" not in (stored(api, orders, "a1") or {})


def test_responses_to_writes_show_the_view(clerk: httpx.Client, orders: str) -> None:
    own = {"userId": "alice", "total": 1}
    made = clerk.post(f"/{orders}/docs", json={**own, "key": "a2"})
    assert made.json() == {"_id": "a2", **own}
    assert clerk.get(f"/{orders}/docs/a2").headers["etag"] == made.headers["etag"]
    patched = clerk.patch(f"/{orders}/docs/a1", json={"total": 6})
    assert patched.json() == {"_id": "a1", "userId": "alice", "total": 6, "address": {"city": "Rome"}}
    assert clerk.post(f"/{orders}/bulk", json=[{**own, "key": "a3"}]).json()["documents"] == [
        {"_id": "a3", **own}
    ]
    batch = [
        {"op": "update", "collection": orders, "id": "a1", "fields": {"total": 7}},
        {"op": "delete", "collection": orders, "id": "a3"},
    ]
    assert clerk.post("/batch", json={"operations": batch}).json()["results"] == [
        {"_id": "a1", "userId": "alice", "total": 7, "address": {"city": "Rome"}},
        {"deleted": True, "_id": "a3"},
    ]
    assert "etag" not in clerk.delete(f"/{orders}/docs/a2").headers


def test_conditions_see_only_what_is_visible(api: httpx.Client, clerk: httpx.Client, orders: str) -> None:
    path = f"/{orders}/docs/a1"
    tag = clerk.get(path).headers["etag"]
    api.patch(path, json={"secret": "changed"})
    assert clerk.patch(path, json={"total": 6}, headers={"If-Match": tag}).status_code == 200
    for headers in ({"If-Match": tag}, {"If-Match": api.get(path).headers["etag"]}):
        assert refusal(clerk.patch(path, json={"total": 7}, headers=headers)) == (412, "PRECONDITION_FAILED")
        assert refusal(clerk.delete(path, headers=headers)) == (412, "PRECONDITION_FAILED")
    for method in ("PATCH", "PUT", "DELETE"):
        responses = set()
        for name in ("secret", "no-such-field", "address.zip"):
            for id in ("a1", "b1", "no"):
                where = {"where": json.dumps({name: "changed"})}
                response = clerk.request(method, f"/{orders}/docs/{id}", json={"total": 1}, params=where)
                responses.add(response.text.replace(name, "FIELD"))
        assert len(responses) == 1
        assert "FIELD_NOT_IN_TOKEN" in responses.pop()
    batch = [{"op": "delete", "collection": orders, "id": "a1", "where": {"secret": "changed"}}]
    assert refusal(clerk.post("/batch", json={"operations": batch})) == (400, "FIELD_NOT_IN_TOKEN")
    tag = clerk.get(path).headers["etag"]
    batch = [{"op": "update", "collection": orders, "id": "a1", "fields": {"total": 8}, "ifMatch": tag}]
    assert clerk.post("/batch", json={"operations": batch}).status_code == 200


# --- errors --------------------------------------------------------------------------------------


def test_unique_in_a_document_tells_nothing(alice: httpx.Client, orders: str) -> None:
    documents = [{"userId": "alice", "total": 1, "secret": s, "unique": ["secret"]} for s in ("t", "free")]
    taken, free = (alice.post(f"/{orders}/docs", json=document) for document in documents)
    assert told(taken) == told(free)
    assert refusal(taken) == RULE


def test_a_conflict_names_nothing_and_comes_after_the_rule(
    api: httpx.Client, alice: httpx.Client, orders: str
) -> None:
    """A value that the schema wants to be unique must be refused: that it is taken remains to be learned."""
    schema = {"properties": {"email": {"type": "string", "unique": True}, "userId": {"unique": True}}}
    assert api.patch(f"/{orders}/docs/b1", json={"email": "b@x"}).status_code == 200
    assert api.put(f"/{orders}/schema", json=schema).status_code == 200
    by_value = alice.patch(f"/{orders}/docs/a1", json={"email": "b@x"})
    by_id = alice.post(f"/{orders}/docs", json={"userId": "alice", "total": 1, "key": "b1"})
    assert told(by_value) == told(by_id)
    assert refusal(by_value) == (409, "CONFLICT")
    for user in ("bob", "nobody"):
        assert refusal(alice.patch(f"/{orders}/docs/a1", json={"userId": user})) == RULE


def test_a_schemas_error_says_nothing_of_hidden_fields(
    api: httpx.Client, clerk: httpx.Client, orders: str
) -> None:
    schema = {"properties": {"secret": {"type": "number"}, "hidden": {"required": True, "type": "string"}}}
    assert api.put(f"/{orders}/schema", json=schema).status_code == 200
    for response in (
        clerk.patch(f"/{orders}/docs/a1", json={"total": 6}),
        clerk.post(f"/{orders}/docs", json={"userId": "alice", "total": 1}),
    ):
        assert refusal(response) == (400, "VALIDATION_FAILED")
        assert "secret" not in response.text
        assert "hidden" not in response.text


def test_a_document_too_large_does_not_say_how_large(
    api: httpx.Client, clerk: httpx.Client, orders: str
) -> None:
    api.patch(f"/{orders}/docs/a1", json={"secret": "x" * 1_000_000})
    response = clerk.patch(f"/{orders}/docs/a1", json={"tags": "x" * 50_000})
    assert refusal(response) == (413, "DOCUMENT_TOO_LARGE")
    assert "1,0" not in response.text


# --- requests that are remembered ----------------------------------------------------------------


def test_an_idempotency_key_is_its_subjects(holder: Holder, orders: str) -> None:
    """All tokens come from one API key: by guessing another's key, one must not read the response."""
    rule = {orders: {"permissions": WRITE}}
    clients = [holder(rule, subject="alice"), holder(rule, subject="bob"), holder(rule), holder(rule)]
    headers = {"Idempotency-Key": f"key-{orders}"}
    made = [client.post(f"/{orders}/docs", json={}, headers=headers) for client in clients]
    assert len({response.json()["_id"] for response in made}) == 4
    renewed = holder(rule, subject="alice")
    assert renewed.post(f"/{orders}/docs", json={}, headers=headers).json() == made[0].json()
    narrowed = holder({orders: {"select": [], "permissions": WRITE}}, subject="alice")
    response = narrowed.post(f"/{orders}/docs", json={}, headers=headers)
    assert refusal(response) == (422, "IDEMPOTENCY_KEY_REUSED")
