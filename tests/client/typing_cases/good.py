"""Good usage: mypy --strict has nothing to say. Every name is the type that it looks like."""

from __future__ import annotations

from typing import TypedDict, assert_type

import msgspec
import trio

from paperdb_trio import (
    BatchResult,
    BulkResult,
    Client,
    ConnectionState,
    Document,
    Documents,
    Event,
    GapError,
    Live,
    Operation,
    PaperDBError,
    Version,
    create_client,
    create_sync_client,
)


class Message(TypedDict):
    _id: str
    text: str


class Note(msgspec.Struct):
    text: str


async def typed(db: Client) -> None:
    messages = db.collection("messages", Message)
    assert_type(await messages.insert({"_id": "a", "text": "b"}), Message)
    assert_type((await messages.find({"text": "b"}))[0], Message)
    assert_type((await messages.find(select="text"))[0], Document)
    assert_type(await messages.get("a", select=["text"]), Document)
    async with messages.live({"text": "b"}, sort="-createdAt", limit=50) as live:
        assert_type(live, Live[Message])
        async for documents in live:
            assert_type(documents[0]["text"], str)
        await live.more()
        assert_type(live.status.state, ConnectionState)
    notes = db.collection("notes", Note)
    assert_type(await notes.replace("a", Note("b")), Note)
    async with notes.live(select="text") as partial:
        assert_type(partial.documents, list[Document])
    async with db.messages.live() as plain:
        assert_type(plain.documents[0], Document)
    async with db.realtime.subscribe("messages", filter={"text": "b"}, select="text") as events:
        async for event in events:
            print(event.cause, event.txn)


async def token_of_my_back_end() -> str:
    return "…"


async def main() -> None:
    schema = {"users": {"properties": {"email": {"type": "string", "unique": True}}}}
    async with create_client(base_url="http://a", api_key="k", schema=schema) as db:
        inserted = await db.messages.insert({"text": "hello"})
        assert_type(inserted, Document)
        assert_type(inserted.seq, int | None)
        assert_type(await db.messages.insert_bulk([{"n": 1}], atomic=True), BulkResult)
        found = await db.collection("messages").find({"n": {"gte": 1}}, sort="-n", limit=5, count=True)
        assert_type(found, Documents)
        assert_type(found.total, int | None)
        assert_type(found.seq, int | None)
        names: list[str] = [document["name"] for document in found]
        assert_type(await db.messages.get("id", select=names), Document)
        assert_type(await db.messages.update("id", {"n": {"increment": 1}}, if_match=inserted.seq), Document)
        assert_type(await db.messages.replace("id", {}), Document)
        await db.messages.delete("id", where={"n": {"lt": 5}}, idempotency_key="once")
        assert_type(await db.messages.history("id", limit=5), list[Version])
        operations: list[Operation] = [{"op": "insert", "collection": "messages", "document": {"n": 1}}]
        operations.append({"op": "update", "collection": "a", "id": "b", "fields": {}, "ifMatch": 5})
        done = await db.batch(operations)
        assert_type(done, BatchResult)
        assert_type(done.results, list[Document])
        assert_type(await db.messages.count(), int)
        assert_type(await db.realtime.generate_token(["messages"], ["read", "write"], expires_in=60), str)
        rules = {"orders": {"filter": {"userId": "alice"}, "select": ["status"]}, "news": {}}
        assert_type(await db.realtime.generate_token(rules, subject="alice"), str)
        await db.realtime.revoke("alice")
        try:
            async with db.realtime.subscribe("messages", "users", since=5, on_gap="raise") as events:
                async for event in events:
                    assert_type(event, Event)
                    assert_type(event.seq, int)
                    if event.type == "insert":
                        print(event.data["text"])
                    elif event.type == "update" or event.type == "delete":
                        print(event.collection)
                async for status in events.status():
                    assert_type(status.state, ConnectionState)
        except GapError as gap:
            assert_type(gap.oldest, int)
        except PaperDBError as error:
            assert_type(error.status, int)
            assert_type(error.code, str)
        print(db.realtime.status().current.reason)
    async with create_client(base_url="http://a", get_token=token_of_my_back_end, realtime_url="ws://b"):
        pass


def script() -> None:
    with create_sync_client(base_url="http://a", api_key="k") as db:
        assert_type(db.messages.insert({"text": "hello"}), Document)
        assert_type(db.messages.find(), Documents)
        assert_type(db.batch([{"op": "delete", "collection": "a", "id": "b"}]).txn, int)
        assert_type(db.messages.count({"n": 1}), int)
        assert_type(db.realtime.generate_token(["a"]), str)


trio.run(main)
