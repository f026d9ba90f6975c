"""Batches, conditions and history through both clients, against the real server."""

from __future__ import annotations

import pytest

from paperdb_trio import PaperDBError, create_client, create_sync_client
from paperdb_trio.client.types import Operation
from tests.client.conftest import Recorder
from tests.client.test_rest import SCHEMA
from tests.conftest import Server


def buy(collection: str) -> Operation:
    return {
        "op": "update",
        "collection": collection,
        "id": "pen",
        "fields": {"stock": {"decrement": 1}},
        "where": {"stock": {"gt": 0}},
    }


async def test_a_batch_writes_all_or_nothing(server: Server, collection: str) -> None:
    orders = f"{collection}_orders"
    order: Operation = {"op": "insert", "collection": orders, "document": {"item": "pen"}, "id": "o1"}
    other: Operation = {"op": "insert", "collection": orders, "document": {"_id": "o2"}}
    async with create_client(base_url=server.url, api_key=server.key) as db:
        shop = db.collection(collection)
        await shop.insert({"_id": "pen", "stock": 1})
        done = await db.batch([buy(collection), order])
        assert [result["_id"] for result in done.results] == ["pen", "o1"]
        assert [result.seq for result in done.results] == [done.txn, done.txn + 1]
        assert await db.collection(orders).get("o1") == done.results[1]
        with pytest.raises(PaperDBError, match="does not satisfy 'where'") as caught:
            await db.batch([other, buy(collection)])
        assert (caught.value.status, caught.value.code) == (412, "CONDITION_FAILED")
        assert caught.value.extra["index"] == 1
        assert await db.collection(orders).count() == 1
        pen = done.results[0]
        assert pen.seq is not None
        gone = await db.batch([{"op": "delete", "collection": collection, "id": "pen", "ifMatch": pen.seq}])
        assert gone.results == [{"deleted": True, "_id": "pen"}]


def test_a_batch_blocking(server: Server, collection: str) -> None:
    with create_sync_client(base_url=server.url, api_key=server.key) as db:
        insert: Operation = {"op": "insert", "collection": collection, "document": {"n": 1}}
        replace: Operation = {"op": "replace", "collection": collection, "id": "b", "document": {"n": 2}}
        done = db.batch(iter([insert, replace]), idempotency_key=f"{collection}-1")
        again = db.batch([insert, replace], idempotency_key=f"{collection}-1")
        assert (again.results, again.txn) == (done.results, done.txn)
        assert db.collection(collection).count() == 2


async def test_a_condition_guards_each_kind_of_write(server: Server, collection: str) -> None:
    async with create_client(base_url=server.url, api_key=server.key) as db:
        documents = db.collection(collection)
        await documents.insert({"_id": "a", "n": 1})
        for write in (
            lambda where: documents.update("a", {"n": {"increment": 1}}, where=where),
            lambda where: documents.replace("a", {"n": 3}, where=where),
            lambda where: documents.delete("a", where=where),
        ):
            with pytest.raises(PaperDBError) as caught:
                await write({"n": {"gt": 5}})
            assert (caught.value.status, caught.value.code) == (412, "CONDITION_FAILED")
            await write({"n": {"lte": 5}})
        versions = await documents.history("a")
        shown = [(version.type, version.data.get("n")) for version in versions]
        assert shown == [("delete", 3), ("update", 3), ("update", 2), ("insert", 1)]
        assert [version.seq for version in await documents.history("a", limit=1)] == [versions[0].seq]
    with create_sync_client(base_url=server.url, api_key=server.key) as blocking:
        assert blocking.collection(collection).history("a") == versions


def test_a_batch_registers_schemas_and_applies_defaults(recorder: Recorder) -> None:
    recorder.responses["POST", "/batch"] = (200, b'{"results": [{"_id": "x"}], "txn": 1}')
    given = {"email": "a@b"}
    with create_sync_client(base_url=recorder.url, api_key="pdb_sk_1", schema=SCHEMA) as db:
        db.batch(
            [
                {"op": "delete", "collection": "others", "id": "a"},
                {"op": "insert", "collection": "users", "document": given},
            ]
        )
        db.batch([{"op": "update", "collection": "users", "id": "a", "fields": {}}])
    assert given == {"email": "a@b"}
    assert recorder.requests == [("PUT", "/users/schema"), ("POST", "/batch"), ("POST", "/batch")]
    assert b'"roles":[]' in recorder.bodies[1]
    assert b'"unique":["email"]' in recorder.bodies[1]
    assert b"roles" not in recorder.bodies[2]
