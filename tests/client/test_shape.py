"""Collections whose documents have a type: what comes back, and what does not fit. Some 1 s of CPU."""

from __future__ import annotations

from datetime import datetime
from typing import Any, NotRequired, TypedDict

import msgspec
import pytest
import trio

from paperdb_trio import Document, PaperDBError, create_client
from tests.client.harness import SECONDS
from tests.conftest import Server

pytestmark = pytest.mark.sqlite


class Message(TypedDict):
    _id: str
    text: str
    likes: NotRequired[int]


class Note(msgspec.Struct):
    text: str
    id: str | msgspec.UnsetType = msgspec.field(name="_id", default=msgspec.UNSET)
    created: datetime | msgspec.UnsetType = msgspec.field(name="createdAt", default=msgspec.UNSET)


async def test_a_typed_dict(server: Server, collection: str) -> None:
    async with create_client(base_url=server.url, api_key=server.key) as db:
        messages = db.collection(collection, Message)
        first = await messages.insert({"_id": "a", "text": "hello", "other": 1})
        assert isinstance(first, Document)
        assert first.seq is not None
        assert first == {**first, "text": "hello", "other": 1}
        found = await messages.find()
        assert found == [first]
        assert found.seq == first.seq
        assert await messages.get("a") == first
        assert await messages.get("a", select="other") == {"_id": "a", "other": 1}
        await db.collection(collection).update("a", {"text": 5})
        with pytest.raises(PaperDBError, match=rf"'a' of '{collection}' is not a Message: .*\$.text") as caught:
            await messages.get("a")
        assert not caught.value.transient


async def test_a_struct(server: Server, collection: str) -> None:
    async with create_client(base_url=server.url, api_key=server.key) as db:
        notes = db.collection(collection, Note)
        note = await notes.insert(Note("hello"))
        assert isinstance(note.id, str)
        assert isinstance(note.created, datetime)
        note.text = "bye"
        assert (await notes.replace(note.id, note)).text == "bye"
        assert (await notes.update(note.id, {"n": 1})).id == note.id
        await notes.insert_bulk([Note("b"), {"text": "c"}])
        async with notes.live(sort="text") as live:
            assert [one.text for one in live.documents] == ["b", "bye", "c"]
            await db.collection(collection).insert({"text": None})
            with pytest.raises(PaperDBError, match="WRONG_TYPE"), trio.fail_after(SECONDS):
                async for _ in live:
                    pass


async def test_other_types_are_refused(server: Server, collection: str) -> None:
    async with create_client(base_url=server.url, api_key=server.key) as db:
        wrong: Any
        for wrong in (dict, int, "Message"):
            with pytest.raises(TypeError, match="neither a TypedDict nor"):
                db.collection(collection, wrong)
        with pytest.raises(TypeError, match="a mapping or a msgspec Struct, not list"):
            await db.collection(collection).insert([])  # type: ignore[arg-type]
