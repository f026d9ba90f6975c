"""Documents through both clients: what is returned, what is raised, what is sent how often."""

from __future__ import annotations

import logging
import time

import pytest
import trio

from paperdb_trio import Document, Documents, PaperDBError, create_client, create_sync_client
from paperdb_trio.client.token import ends_at
from tests.client.conftest import Recorder
from tests.client.harness import eventually, proxied, short_token
from tests.conftest import Server


async def test_the_life_of_a_document(server: Server, collection: str) -> None:
    async with create_client(base_url=server.url, api_key=server.key) as db:
        documents = db.collection(collection)
        inserted = await documents.insert({"key": "ä %?1", "n": 1, "tags": ["x"]})
        assert inserted["_id"] == "ä %?1"
        assert isinstance(inserted, Document)
        assert inserted.seq is not None
        updated = await documents.update("ä %?1", {"n": {"increment": 2}}, if_match=inserted.seq)
        assert updated == {**inserted, "n": 3, "updatedAt": updated["updatedAt"]}
        assert await documents.get("ä %?1", select=["n"]) == {"_id": "ä %?1", "n": 3}
        with pytest.raises(PaperDBError) as caught:
            await documents.replace("ä %?1", {"n": 9}, if_match=inserted.seq)
        assert (caught.value.status, caught.value.code) == (412, "PRECONDITION_FAILED")
        replaced = await documents.replace("ä %?1", {"m": 1})
        assert "n" not in replaced
        assert await documents.count() == 1
        await documents.delete("ä %?1", if_match=replaced.seq)
        with pytest.raises(PaperDBError, match="Document not found") as caught:
            await documents.get("ä %?1")
        assert (caught.value.status, caught.value.code, caught.value.extra) == (404, "NOT_FOUND", {})


@pytest.mark.smoke
def test_the_life_of_a_document_blocking(server: Server, collection: str) -> None:
    with create_sync_client(base_url=server.url, api_key=server.key) as db:
        documents = getattr(db, collection)
        inserted = documents.insert({"n": 1})
        assert documents.get(inserted["_id"]) == inserted
        assert documents.update(inserted["_id"], {"m": 2}, if_match=inserted.seq)["m"] == 2
        assert documents.replace("other", {"n": 5})["_id"] == "other"
        assert documents.find({"n": 5}) == [documents.get("other")]
        assert documents.insert_bulk([{"n": 6}, {"key": "other"}]).failed == 1
        documents.delete("other")
        assert documents.count({"n": {"gte": 1}}) == 2
        assert len(db.realtime.generate_token([collection])) > 100
        token = db.realtime.generate_token({collection: {"select": ["n"]}}, subject=f"sync {collection}")
        with create_sync_client(base_url=server.url, api_key=token) as front_end:
            assert front_end.collection(collection).get(inserted["_id"], select="n").keys() == {"_id", "n"}
            db.realtime.revoke(f"sync {collection}")
            with pytest.raises(PaperDBError, match="TOKEN_REVOKED"):
                front_end.collection(collection).count()


async def test_find_says_whether_there_is_more(server: Server, collection: str) -> None:
    async with create_client(base_url=server.url + "/", api_key=server.key) as db:
        documents = db.collection(collection)
        await documents.insert_bulk([{"n": n, "odd": n % 2 == 1} for n in range(10)])
        found = await documents.find({"odd": True}, sort="-n", limit=2, offset=1, select="n", count=True)
        assert isinstance(found, list)
        assert isinstance(found, Documents)
        assert [document["n"] for document in found] == [7, 5]
        assert (found.has_more, found.total, found.limit, found.offset) == (True, 5, 2, 1)
        assert "odd" not in found[0]
        everything = await documents.find(sort=["odd", "-n"])
        assert (len(everything), everything.has_more, everything.total) == (10, False, None)


async def test_pages_follow_each_other(server: Server, collection: str) -> None:
    async with create_client(base_url=server.url, api_key=server.key) as db:
        documents = db.collection(collection)
        await documents.insert_bulk([{"key": str(n), "n": n} for n in range(10)])
        page = await documents.find(sort="-n", limit=4)
        seen = [document["n"] for document in page]
        while page.next is not None:
            page = await documents.find(sort="-n", limit=4, after=page.next)
            seen += [document["n"] for document in page]
        assert seen == list(range(9, -1, -1))


async def test_a_filter_longer_than_a_url_is_sent_as_a_body(server: Server, collection: str) -> None:
    async with create_client(base_url=server.url, api_key=server.key) as db:
        documents = db.collection(collection)
        await documents.insert_bulk([{"key": f"document {n}", "n": n} for n in range(10)])
        wanted = [f"document {n}" for n in range(5, 2000)]
        found = await documents.find({"_id": {"in": wanted}}, sort=["-n"], select=["n"], count=True)
        assert ([document["n"] for document in found], found.total) == ([9, 8, 7, 6, 5], 5)


async def test_bulk_says_which_failed_and_atomic_raises(server: Server, collection: str) -> None:
    async with create_client(base_url=server.url, api_key=server.key) as db:
        documents = db.collection(collection)
        result = await documents.insert_bulk({"key": key} for key in ("a", "b", "a"))
        assert (result.inserted, result.failed) == (2, 1)
        assert [document["_id"] for document in result.documents] == ["a", "b"]
        assert [(error.index, error.code) for error in result.errors] == [(2, "CONFLICT")]
        with pytest.raises(PaperDBError) as caught:
            await documents.insert_bulk([{"key": "c"}, {"key": "b"}], atomic=True)
        assert (caught.value.status, caught.value.extra["index"]) == (409, 1)
        assert await documents.count() == 2


async def test_a_refusal_is_raised_with_the_server_s_message(server: Server, collection: str) -> None:
    public = server.new_key(public=True)["key"]
    async with create_client(base_url=server.url, api_key=public) as db:
        with pytest.raises(PaperDBError) as caught:
            await db.collection(collection).insert({})
        assert (caught.value.status, caught.value.code) == (403, "READ_ONLY_KEY")
    async with create_client(base_url=server.url, api_key="pdb_sk_wrong") as db:
        with pytest.raises(PaperDBError, match="Missing or invalid Authorization header") as caught:
            await db.collection(collection).count()
        assert str(caught.value).endswith("(401 UNAUTHORIZED)")
        with pytest.raises(PaperDBError, match="Invalid collection name: 'my collection'"):
            db.collection("my collection")
        with pytest.raises(PaperDBError, match="Invalid document id"):
            await db.collection(collection).get("..")


def test_a_client_may_be_made_before_trio_runs(server: Server, collection: str) -> None:
    client = create_client(base_url=server.url, api_key=server.key)

    async def main() -> int:
        async with client as db, db.realtime.subscribe(collection):
            return await db.collection(collection).count()

    assert trio.run(main) == 0


async def test_a_client_with_get_token_alone_reads_within_its_rule(server: Server, collection: str) -> None:
    rules = {collection: {"filter": {"room": 1}}}
    with create_sync_client(base_url=server.url, api_key=server.key) as back:
        for n in range(4):
            back.collection(collection).insert({"_id": str(n), "room": n % 2})

        async def get_token() -> str:
            return back.realtime.generate_token(rules, subject=collection)

        async with create_client(base_url=server.url, get_token=get_token) as db:
            documents = db.collection(collection)
            assert [document["_id"] for document in await documents.find()] == ["1", "3"]
            assert await documents.count({"_id": {"ne": "1"}}) == 1
            assert (await documents.get("1"))["room"] == 1
            with pytest.raises(PaperDBError, match="NOT_FOUND"):
                await documents.get("0")
            back.realtime.revoke(collection)
            assert await documents.count() == 2  # with another token
            with pytest.raises(PaperDBError, match="NOT_IN_TOKEN"):
                await db.collection(collection + "_other").find()
            with pytest.raises(PaperDBError, match="no api_key"):
                await documents.insert({"room": 1})


async def test_a_token_that_ends_while_a_request_is_repeated_is_replaced(
    server: Server, collection: str
) -> None:
    tokens = [short_token(server, collection, seconds=seconds) for seconds in (60, 1)]
    ends = ends_at(tokens[1])

    async def get_token() -> str:
        return tokens.pop()

    async with (
        proxied(server) as proxy,
        create_client(base_url=proxy.url, get_token=get_token) as db,
        trio.open_nursery() as nursery,
    ):
        proxy.accepting = False

        async def accept() -> None:
            await eventually(lambda: time.time() > ends)
            proxy.accepting = True

        nursery.start_soon(accept)
        assert await db.collection(collection).count() == 0
    assert not tokens


def test_the_key_is_shown_nowhere(server: Server, collection: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with create_sync_client(base_url=server.url, api_key=server.key) as db:
        with pytest.raises(PaperDBError) as caught:
            db.collection(collection).get("none")
        shown = [repr(db), repr(db.collection(collection)), repr(caught.value), str(vars(db)), caplog.text]
    assert caplog.text
    assert not any(server.key in text for text in shown)


SCHEMA = {
    "users": {
        "properties": {
            "email": {"type": "string", "required": True, "unique": True},
            "roles": {"type": "array", "default": []},
        }
    }
}


def test_a_schema_registers_once_before_the_first_write(recorder: Recorder) -> None:
    with create_sync_client(base_url=recorder.url, api_key="pdb_sk_1", schema=SCHEMA) as db:
        db.others.insert({})
        given = {"email": "a@b"}
        db.users.insert(given)
        db.users.insert({"email": "c@d", "roles": ["x"]})
    assert given == {"email": "a@b"}
    assert recorder.requests == [
        ("POST", "/others/docs"),
        ("PUT", "/users/schema"),
        ("POST", "/users/docs"),
        ("POST", "/users/docs"),
    ]
    assert recorder.bodies[0] == b"{}"
    assert b'"unique":["email"]' in recorder.bodies[2]
    assert b'"roles":[]' in recorder.bodies[2]
    assert b'"roles":["x"]' in recorder.bodies[3]


@pytest.mark.parametrize("status", [404, 405])
async def test_a_server_without_schemas_is_enough(recorder: Recorder, status: int) -> None:
    recorder.responses["PUT", "/users/schema"] = (status, b'{"error": "no", "code": "NOT_FOUND"}')
    async with create_client(base_url=recorder.url, api_key="pdb_sk_1", schema=SCHEMA) as db:
        await db.users.insert({})
        await db.users.insert({})
    assert [method for method, _ in recorder.requests] == ["PUT", "POST", "POST"]


async def test_a_schema_that_is_refused_is_tried_again(recorder: Recorder) -> None:
    recorder.responses["PUT", "/users/schema"] = (409, b'{"error": "taken", "code": "CONFLICT"}')
    async with create_client(base_url=recorder.url, api_key="pdb_sk_1", schema=SCHEMA) as db:
        with pytest.raises(PaperDBError, match="taken"):
            await db.users.insert({})
        del recorder.responses["PUT", "/users/schema"]
        await db.users.insert({})
    assert [method for method, _ in recorder.requests] == ["PUT", "PUT", "POST"]


def test_a_public_key_registers_nothing(recorder: Recorder) -> None:
    with create_sync_client(base_url=recorder.url, api_key="pdb_pk_1", schema=SCHEMA) as db:
        db.users.insert({})
    assert recorder.requests == [("POST", "/users/docs")]


async def test_a_schema_is_enforced(server: Server, collection: str) -> None:
    schema = {collection: SCHEMA["users"]}
    async with create_client(base_url=server.url, api_key=server.key, schema=schema) as db:
        users = db.collection(collection)
        assert (await users.insert({"email": "a@b"}))["roles"] == []
        with pytest.raises(PaperDBError, match="'email' already exists") as caught:
            await users.insert({"email": "a@b"})
        assert caught.value.code == "CONFLICT"
        with pytest.raises(PaperDBError, match="Field 'email' is required"):
            await users.insert({})
