# ruff: noqa
"""Misuse: mypy --strict refuses each line that says what code it expects, and no other."""

from __future__ import annotations

from typing import TypedDict

from paperdb_trio import create_client, create_sync_client
from paperdb_trio import nonsense  # E: attr-defined


class Message(TypedDict):
    text: str


def not_async() -> str:
    return "token"


create_client(api_key="k")  # E: call-arg
create_client("http://a", api_key="k")  # E: call-arg
create_client(base_url="http://a", get_token=not_async)  # E: arg-type
create_client(base_url="http://a", api_key="k", schema={"users": 5})  # E: dict-item
create_sync_client(base_url="http://a")  # E: call-arg


async def main() -> None:
    with create_client(base_url="http://a", api_key="k"):  # E: attr-defined
        pass
    async with create_client(base_url="http://a", api_key="k") as db:
        db.messages.insert({})  # E: unused-coroutine
        await db.messages.insert("text")  # E: arg-type
        await db.messages.insert()  # E: call-arg
        await db.messages.find(limit="5")  # E: call-overload
        await db.messages.find(order="n")  # E: call-overload
        await db.messages.upsert({})  # E: attr-defined
        (await db.messages.count()).total  # E: attr-defined
        (await db.messages.find()).hasMore  # E: attr-defined
        await db.messages.update("id", {}, if_match="5")  # E: arg-type
        await db.messages.update("id", {}, where="n")  # E: arg-type
        await db.batch([{"op": "insert", "collection": "a"}])  # E: list-item
        await db.batch([{"op": "upsert", "collection": "a", "document": {}}])  # E: typeddict-item
        await db.batch([{"op": "delete", "collection": "a", "id": 5}])  # E: typeddict-item
        await db.realtime.generate_token(["a"], ["admin"])  # E: list-item
        db.realtime.subscribe("a", on_gap="ignore")  # E: arg-type
        db.realtime.subscribe(5)  # E: arg-type
        db.realtime.subscribe("a", filter="n")  # E: arg-type
        typed = db.collection("a", Message)
        (await typed.get("id"))["title"]  # E: typeddict-item
        await typed.insert("text")  # E: arg-type
        typed.live(limit="5")  # E: call-overload
        with typed.live():  # E: attr-defined
            pass
        async with typed.live() as live:
            live.documents[0]["text"] = 5  # E: typeddict-item
            live.status.state == "live"  # E: comparison-overlap
        async with db.realtime.subscribe("a") as events:
            for event in events:  # E: attr-defined
                pass
            async for event in events:
                if event.type == "created":  # E: comparison-overlap
                    pass
                event.seq = 1  # E: misc
                event.document  # E: attr-defined
            events.status().current.state == "live"  # E: comparison-overlap
    with create_sync_client(base_url="http://a", api_key="k") as sync:
        await sync.messages.insert({})  # E: misc
        sync.realtime.subscribe("a")  # E: attr-defined
