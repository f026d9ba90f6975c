"""What every engine must do, through `Store` alone: a further one joins by a line in `opened`.

Rules: these tests know no SQL, no file and no thread. What is found is held against the plain predicate of
`match.predicate`.
"""

from __future__ import annotations

import json
import random
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from paperdb_trio.config import Settings
from paperdb_trio.errors import ApiError
from paperdb_trio.match.query import query
from paperdb_trio.model import Change
from paperdb_trio.store import administration
from paperdb_trio.store.administration import (
    AddIndex,
    AddKey,
    ChangeDatabase,
    ChangeKey,
    CreateDatabase,
    DeleteDatabase,
    DropIndex,
    Noted,
    RevokeKey,
    RotateSigning,
)
from paperdb_trio.store.document_schema import parse_schema
from paperdb_trio.store.housekeeping import DropSome, KeepUsedKeys, RemoveDeleted, Trim, until_indexed
from paperdb_trio.store.operations import (
    Batch,
    BatchResult,
    BulkFailure,
    Condition,
    Delete,
    Draft,
    Insert,
    InsertBulk,
    Patch,
    Replace,
    SetSchema,
    Written,
)
from paperdb_trio.store.postgres.engine import PostgresStore
from paperdb_trio.store.predicate import predicate
from paperdb_trio.store.protocol import EventText, Found, Store
from paperdb_trio.store.query import ask
from paperdb_trio.store.records import NewKey
from paperdb_trio.store.requests import Kept, Once, RequestKey
from paperdb_trio.store.sqlite.engine import SqliteStore
from paperdb_trio.store.view import View
from paperdb_trio.store.webhook_changes import (
    AddWebhook,
    BeginWebhooks,
    KeepProgress,
    PauseWebhook,
    RemoveWebhook,
    ResumeWebhook,
)
from paperdb_trio.store.webhooks import Progress, Webhook
from tests.store.tools import DATABASE, MAX_BYTES, inserting, new_file

DEFAULTS = Settings()
Opened = tuple[Store, list[Change]]


@asynccontextmanager
async def sqlite(directory: Path, settings: Settings = DEFAULTS) -> AsyncIterator[Opened]:
    file = directory / "paperdb.sqlite"
    if not file.exists():
        new_file(directory)
    changes: list[Change] = []
    store = SqliteStore(file, settings, changes.extend, lambda *_: None)
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(store.run)
            yield store, changes
            store.stop()
    finally:
        store.close()


@asynccontextmanager
async def postgres(url: str, settings: Settings = DEFAULTS) -> AsyncIterator[Opened]:
    changes: list[Change] = []
    store = PostgresStore(url, settings, changes.extend, lambda *_: None)
    try:
        store.bounds()
        async with trio.open_nursery() as nursery:
            await nursery.start(store.run)
            yield store, changes
            store.stop()
    finally:
        store.close()


@pytest.fixture(params=["sqlite", "postgres"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Reopen:
    """Opens the store with these settings; again, with what it had before."""
    if request.param == "sqlite":
        return partial(sqlite, tmp_path)
    return partial(postgres, request.getfixturevalue("postgres_url"))


Reopen = Callable[..., AbstractAsyncContextManager[Opened]]


async def find(store: Store, filter: Any = None, **more: Any) -> Found:
    options: dict[str, Any] = {"sort": None, "limit": 1000, "offset": 0, "select": None, "count": False, **more}
    text = None if filter is None else json.dumps(filter)
    return await store.find(DATABASE, "c", filter=text, **options)


def ids(found: Found) -> list[str]:
    return [json.loads(document)["_id"] for document in found.documents]


async def refused(store: Store, operation: Any) -> tuple[int, str]:
    with pytest.raises(ApiError) as refusal:
        await store.submit(operation)
    return refusal.value.status, refusal.value.code


def put(id: str, condition: Condition | None = None, **fields: Any) -> Replace:
    return Replace(DATABASE, "c", id, fields, condition, MAX_BYTES)


async def test_each_kind_of_write_is_read_by_all_reads(opened: Reopen) -> None:
    async with opened() as (store, changes):
        written = await store.submit(inserting({"_id": "a", "n": 1}))
        assert await store.get(DATABASE, "c", "a") == (written.data, written.seq)
        patched = await store.submit(Patch(DATABASE, "c", "a", {"n": {"increment": 2}}, None, MAX_BYTES))
        assert json.loads(patched.data)["n"] == 3
        replaced = await store.submit(put("a", m=4))
        assert json.loads(replaced.data).keys() == {"_id", "m", "createdAt", "updatedAt"}
        created = await store.submit(put("b", m=5))
        assert created.created
        bulk = InsertBulk(DATABASE, "c", [Draft.parse({"m": n}) for n in range(3)], MAX_BYTES, MAX_BYTES, False)
        documents, failures = await until_indexed(store, bulk)
        assert (len(documents), failures) == (3, [])
        await store.submit(Delete(DATABASE, "c", "b", None))
        assert await refused(store, Delete(DATABASE, "c", "b", None)) == (404, "NOT_FOUND")
        assert await store.count(DATABASE, "c", None) == 4
        assert await store.count(DATABASE, "c", '{"m": {"gte": 1}}') == 3
        (listed,) = json.loads(await store.collections(DATABASE))
        assert listed == {"name": "c", "count": 4, "schema": None}
        found = await find(store)
        assert found.seq == changes[-1].seq == 8
        versions = [json.loads(version) for version in await store.history(DATABASE, "c", "a", 2)]
        assert [(version["seq"], version["type"]) for version in versions] == [(3, "update"), (2, "update")]
        assert [(change.seq, change.type, change.id) for change in changes[:4]] == [
            (1, "insert", "a"),
            (2, "update", "a"),
            (3, "update", "a"),
            (4, "insert", "b"),
        ]
        assert (store.operations, store.fault(), store.full) == (7, None, False)


async def test_the_time_for_queries_is_for_clients_alone(opened: Reopen) -> None:
    """A server that could not read its keys within that time did not start."""
    settings = Settings()
    object.__setattr__(settings, "query_timeout", 1e-9)  # shorter than may be set: every find takes longer
    async with opened(settings) as (store, _):
        with pytest.raises(ApiError, match="was stopped"):
            await find(store)
        directory = await store.directory(0, 0)
        assert directory is not None
        assert await store.directory(directory.version, 0) is None
        assert await store.webhooks(-1) is not None
        await store.current(DATABASE)


async def test_conditions_are_checked_in_the_commit(opened: Reopen) -> None:
    async with opened() as (store, _):
        seq = (await store.submit(put("a", stock=1))).seq
        where = Condition(where=ask('{"stock": {"gt": 0}}'))
        buy = Patch(DATABASE, "c", "a", {"stock": {"decrement": 1}}, where, MAX_BYTES)
        await store.submit(buy)
        assert await refused(store, buy) == (412, "CONDITION_FAILED")
        assert await refused(store, put("a", Condition(match=frozenset({seq})))) == (412, "PRECONDITION_FAILED")
        assert await refused(store, inserting({"_id": "a"})) == (409, "CONFLICT")


async def test_batch_is_one_transaction_or_nothing(opened: Reopen) -> None:
    async with opened() as (store, changes):
        await store.submit(put("a", n=1))
        failing = Batch([put("b", n=2), Delete(DATABASE, "c", "no", None)], MAX_BYTES)
        with pytest.raises(ApiError) as refusal:
            await until_indexed(store, failing)
        assert (refusal.value.code, refusal.value.extra) == ("NOT_FOUND", {"index": 1})
        assert len(changes) == 1
        done = await until_indexed(store, Batch([put("b", n=2), Delete(DATABASE, "c", "a", None)], MAX_BYTES))
        assert isinstance(done, BatchResult)
        assert [(change.seq, change.txn) for change in changes[1:]] == [(2, 2), (3, 2)]
        assert ids(await find(store)) == ["b"]


async def test_an_idempotent_request_writes_once(opened: Reopen) -> None:
    once: Once[Written] = Once(
        RequestKey(DATABASE, "key", "k", b"digest"), inserting({"n": 1}), lambda outcome: Kept(201, {}, b"{}")
    )
    async with opened() as (store, changes):
        assert await until_indexed(store, once) == Kept(201, {}, b"{}")
    async with opened() as (store, changes):
        assert await until_indexed(store, once) == Kept(201, {}, b"{}", again=True)
        assert changes == []
        other = Once(RequestKey(DATABASE, "key", "k", b"other"), once.operation, once.respond)
        assert await refused(store, other) == (422, "IDEMPOTENCY_KEY_REUSED")


@pytest.mark.parametrize("documents", [0, 3000])
async def test_unique_holds_under_30_writers(opened: Reopen, documents: int) -> None:
    """Also while the index of a large collection is being built."""
    async with opened() as (store, _):
        for start in range(0, documents, 1000):
            drafts: list[Draft | ApiError] = [Draft.parse({"e": f"old{n}"}) for n in range(start, start + 1000)]
            await until_indexed(store, InsertBulk(DATABASE, "c", drafts, MAX_BYTES, MAX_BYTES, False))
        taken: list[str] = []

        async def insert(n: int) -> None:
            value = f"old{n}" if documents and n % 3 == 0 else f"new{n // 10}"
            bulk = InsertBulk(
                DATABASE, "c", [Draft.parse({"e": value, "unique": ["e"]})], MAX_BYTES, MAX_BYTES, False
            )
            done, failures = await until_indexed(store, bulk)
            assert len(done) + len(failures) == 1
            assert all(isinstance(f, BulkFailure) and f.error.code == "CONFLICT" for f in failures)
            taken.extend(value for _ in done)

        async with trio.open_nursery() as nursery:
            for n in range(30):
                nursery.start_soon(insert, n)
        assert sorted(taken) == ["new0", "new1", "new2"]
        schema = parse_schema({"properties": {"e": {"unique": True, "required": True}}})
        assert await until_indexed(store, SetSchema(DATABASE, "c", schema))
        assert await refused(store, inserting({"e": "new0"})) == (409, "CONFLICT")
        assert await refused(store, inserting({})) == (400, "VALIDATION_FAILED")
        assert json.loads(await store.schema(DATABASE, "c") or "") == json.loads(schema.text)


VALUES: list[Any] = [None, True, False, 0, 1, 1.5, -2, "", "a", "ab", "b", "é", ["a", 1], [], {"x": 1}, {}]
FILTERS: list[Any] = [
    {"a": 1},
    {"a": None},
    {"a": {"ne": "a"}},
    {"a": {"gte": 0}},
    {"a": {"gt": "a"}, "b": {"lte": 1}},
    {"a": {"in": [1, "b", None]}},
    {"a": {"nin": [True, "a"]}},
    {"a": {"contains": "a"}},
    {"a": {"startsWith": "a"}},
    {"a.x": {"exists": True}},
    {"or": [{"a": 1}, {"b": {"lt": 0}}]},
    {"not": {"a": {"exists": False}}},
    {"and": [{"a": {"gte": 0}}, {"not": {"a": 1}}]},
]


def rank(value: Any) -> tuple[int, Any]:
    """Where a value sorts: null and missing, numbers and booleans, texts; arrays and objects as their JSON."""
    if value is None:
        return 0, 0
    if isinstance(value, int | float):
        return 1, value
    return 2, value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


@pytest.mark.parametrize("indexes", [[], [["a"]], [["a", "-b"], ["b"]]])
async def test_finds_agree_with_the_plain_predicate(opened: Reopen, indexes: list[list[str]]) -> None:
    rng = random.Random(5)
    documents = [
        {"_id": str(n), **{name: rng.choice(VALUES) for name in "ab" if rng.random() < 0.9}} for n in range(150)
    ]
    async with opened() as (store, _):
        if indexes:
            schema = parse_schema({"properties": {}, "indexes": indexes})
            assert await until_indexed(store, SetSchema(DATABASE, "c", schema))
        for document in documents:
            await store.submit(inserting(document))
        for filter in FILTERS:
            expected = [document["_id"] for document in documents if predicate(filter)(document)]
            assert ids(await find(store, filter)) == expected, filter
            found = await find(store, filter, sort="-a,b", count=True, limit=7)
            assert found.total == len(expected)
            paged = ids(found)
            while found.next is not None:
                found = await find(store, filter, sort="-a,b", limit=7, after=found.next)
                paged += ids(found)
            matching = [document for document in documents if document["_id"] in set(expected)]
            matching.sort(key=lambda document: rank(document.get("b")))
            matching.sort(key=lambda document: rank(document.get("a")), reverse=True)
            assert paged == [document["_id"] for document in matching], filter
            assert paged == ids(await find(store, filter, sort="-a,b"))
        view = View(ask('{"a": {"gte": 0}}'), ("_id", "b"))
        seen = await find(store, {"b": {"exists": True}}, view=view)
        expected = [d["_id"] for d in documents if predicate({"a": {"gte": 0}, "b": {"exists": True}})(d)]
        assert ids(seen) == expected
        assert all(json.loads(document).keys() <= {"_id", "b"} for document in seen.documents)


async def test_pages_are_stable_while_documents_are_written(opened: Reopen) -> None:
    async with opened() as (store, _):
        for n in range(20):
            await store.submit(put(f"d{n:02}", n=n))
        first = await find(store, sort="n", limit=10)
        await store.submit(put("early", n=-1))
        await store.submit(Delete(DATABASE, "c", "d03", None))
        await store.submit(put("late", n=99))
        second = await find(store, sort="n", limit=20, after=first.next)
        assert ids(first) + ids(second) == [*(f"d{n:02}" for n in range(20)), "late"]


async def test_the_log_is_read_page_by_page_whole_and_filtered(opened: Reopen) -> None:
    part = query("c", {"n": {"gte": 2}})
    async with opened() as (store, _):
        for n in (0, 1, 2, 3, 0):
            await store.submit(put("a", n=n))
        await store.submit(Insert(DATABASE, "other", Draft.parse({"_id": "x"}), MAX_BYTES))
        events: list[bytes] = []
        position, reached_end = 0, False
        while not reached_end:
            page = await store.page(DATABASE, position, {None: 0}, EventText.CURSOR, 4)
            events += page.events
            position, reached_end = page.position, page.reached_end
        assert [json.loads(event)["seq"] for event in events] == [1, 2, 3, 4, 5, 6]
        own = await store.page(DATABASE, 0, {"c": 0, "other": 6}, EventText.PLAIN)
        assert [json.loads(event).keys() for event in own.events] == [{"type", "collection", "data"}] * 5
        looked_at: list[tuple[int, bytes | None]] = []

        def render(change: Change) -> list[bytes]:
            looked_at.append((change.seq, change.before))
            return [b"%d" % change.seq]

        page = await store.page(DATABASE, 0, {part: 0}, render)
        assert {3, 4, 5} <= {seq for seq, _ in looked_at} <= {1, 2, 3, 4, 5}
        assert all(before is not None for seq, before in looked_at if seq > 1)
        assert (page.position, page.reached_end, page.head) == (6, True, 6)
        trimmed, removed = await store.submit(Trim(DATABASE, 0, 2))
        assert (trimmed, removed) == (4, 4)
        assert store.bounds() == {DATABASE: (6, 4)}
        assert (await store.page(DATABASE, 3, {None: 0}, EventText.CURSOR)).expired
        assert (await store.page(DATABASE, 7, {None: 0}, EventText.CURSOR)).expired
        assert not (await store.page(DATABASE, 4, {None: 0}, EventText.CURSOR)).expired


async def test_seqs_go_on_after_everything_was_removed(opened: Reopen) -> None:
    async with opened() as (store, _):
        for n in range(5):
            await store.submit(put(f"d{n}"))
        assert (await store.submit(DropSome(DATABASE, "c", None)))[2]
        await store.submit(Trim(DATABASE, 0, 0))
    async with opened() as (store, changes):
        assert store.bounds() == {DATABASE: (10, 10)}
        assert await store.collections(DATABASE) == b"[]"
        assert (await store.submit(put("a"))).seq == 11
        assert [change.seq for change in changes] == [11]


async def test_commits_are_told_in_order_and_once_while_many_write(opened: Reopen) -> None:
    async with opened() as (store, changes):

        async def write(n: int) -> None:
            for round in range(10):
                written = await store.submit(put(f"d{n}", round=round))
                assert changes[written.seq - 1].seq == written.seq  # told before its writer

        async with trio.open_nursery() as nursery:
            for n in range(20):
                nursery.start_soon(write, n)
        assert [change.seq for change in changes] == list(range(1, 201))


async def test_cancelling_stops_the_waiting_not_the_write(opened: Reopen) -> None:
    async with opened() as (store, changes):
        with trio.CancelScope() as scope:
            scope.cancel()
            await store.submit(put("a"))
        assert scope.cancelled_caught
        await store.submit(put("b"))
        assert [change.id for change in changes] == ["a", "b"]


async def test_directory_tells_only_what_is_new(opened: Reopen) -> None:
    async with opened() as (store, _):
        directory = await store.directory(0, 0)
        assert directory is not None
        assert [name for _, name, _ in directory.databases] == ["default"]
        assert [key.kind for key in directory.keys] == ["secret"]
        assert [key.revoked is False for key in directory.keys] == [True]  # compiled code takes no 0 for it
        assert len(directory.secrets) == 1
        assert await store.directory(directory.version, 0) is None


# --- administration ------------------------------------------------------------------------------


async def test_databases_and_keys_change_as_the_directory_says(opened: Reopen) -> None:
    async with opened() as (store, _):
        submit = store.submit
        assert (await submit(CreateDatabase("me", "shop", "pro"))).documents == 0
        assert await refused(store, CreateDatabase("me", "shop", "free")) == (409, "CONFLICT")
        assert (await submit(ChangeDatabase("me", "shop", "store", "free"))).plan == "free"
        assert await refused(store, ChangeDatabase("me", "shop")) == (404, "NOT_FOUND")
        made = await submit(AddKey("me", "store", NewKey("k1", "public", "a label", b"h1", 5_000)))
        assert (made.database, made.expires_at) == ("store", "1970-01-01T00:00:05.000Z")
        assert (await submit(AddKey("me", None, NewKey("k2", "admin", "", b"h2")))).database is None
        assert (await submit(ChangeKey("me", "k1", "another", expire=True))).expires_at is None
        await submit(KeepUsedKeys({"k1": 2_000, "gone": 1}))
        await submit(KeepUsedKeys({"k1": 1_000}))
        revoked = await submit(RevokeKey("me", "k1"))
        assert revoked.last_used_at == "1970-01-01T00:00:02.000Z"
        assert revoked.revoked_at is not None
        await submit(RotateSigning("me", "kid-2", b"t" * 32))
        directory = await store.directory(0, 0)
        assert directory is not None
        assert [name for _, name, _ in directory.databases] == ["default", "store"]
        assert {(key.id, key.kind, key.revoked) for key in directory.keys} == {
            *(("key-id", "secret", False), ("k1", "public", True), ("k2", "admin", False)),
        }
        assert [retired is None for _, _, retired in sorted(directory.secrets)] == [False, True]
        # What is listed is the same, page by page.
        assert [row.name for row in await store.databases(None, "", 9)] == ["default", "store"]
        assert [row.name for row in await store.databases(None, "default", 9)] == ["store"]
        assert [row.name for row in await store.databases("store", "", 9)] == ["store"]
        every = await store.keys(None, None, 9)
        assert {row.id for row in every} == {"key-id", "k1", "k2"}
        assert await store.keys(None, every[0].id, 1) == every[1:2]
        assert [row.id for row in await store.keys("store", None, 9)] == ["k1"]
        current = {row.id: row.retired_at is None for row in await store.secrets()}
        assert current == {"kid": False, "kid-2": True}
        record = await store.audit(None, 100)
        assert [row.action for row in record[:3]] == ["secret.rotate", "key.revoke", "key.expire"]
        assert await store.audit(record[0].id, 1) == record[1:2]


async def test_the_record_is_bounded(opened: Reopen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(administration, "MAX_AUDIT", 3)
    async with opened() as (store, _):
        for n in range(6):
            await store.submit(Noted("me", f"n{n}", None, None, {"n": n}))
        record = await store.audit(None, 100)
        assert [(row.action, row.details) for row in record] == [(f"n{n}", {"n": n}) for n in (5, 4, 3)]


async def test_a_deleted_database_goes_in_steps_and_takes_no_write(opened: Reopen) -> None:
    async with opened() as (store, _):
        await store.submit(CreateDatabase("me", "doomed", "pro"))
        directory = await store.directory(0, 0)
        assert directory is not None
        ((id, _, _),) = [row for row in directory.databases if row[1] == "doomed"]
        drafts: list[Draft | ApiError] = [Draft.parse({"_id": str(n), "n": n}) for n in range(30)]
        for collection in ("a", "b"):
            bulk = InsertBulk(id, collection, drafts, MAX_BYTES, 10**9, atomic=True)
            await until_indexed(store, bulk)
        await store.submit(AddIndex("me", id, "doomed", "a", ("n",)))
        assert (await store.indexes(id, "a") or [])[0].fields == ["n"]
        await store.submit(put("kept"))
        assert await store.submit(DeleteDatabase("me", "doomed")) == 60
        with trio.fail_after(20):
            while await store.submit(RemoveDeleted(limit=7)):  # the keeper does the same meanwhile
                pass
        assert await refused(store, Insert(id, "a", Draft.parse({}), MAX_BYTES)) == (401, "KEY_REVOKED")
        assert await refused(store, SetSchema(id, "c", SCHEMA)) == (401, "KEY_REVOKED")
        assert await store.indexes(id, "a") is None
        assert ids(await find(store)) == ["kept"]
    async with opened() as (store, _):
        assert [*store.bounds()] == [DATABASE]


SCHEMA = parse_schema({"properties": {}})


async def test_an_index_is_made_listed_and_dropped(opened: Reopen) -> None:
    async with opened() as (store, _):
        assert await refused(store, AddIndex("me", DATABASE, "default", "c", ("n",))) == (404, "NOT_FOUND")
        for n in range(3):
            await store.submit(put(str(n), n=n))
        made = await store.submit(AddIndex("me", DATABASE, "default", "c", ("n", "-m")))
        assert (made.fields, made.automatic, made.unique) == (["n", "-m"], True, False)
        again = AddIndex("me", DATABASE, "default", "c", ("n", "-m"))
        assert await refused(store, again) == (409, "CONFLICT")
        (info,) = await store.indexes(DATABASE, "c") or []
        assert (info.state, info.built, info.documents) == ("ready", 3, 3)
        assert await refused(store, DropIndex("me", DATABASE, "default", "c", 99)) == (404, "NOT_FOUND")
        await store.submit(DropIndex("me", DATABASE, "default", "c", info.id))
        assert await store.indexes(DATABASE, "c") == []


async def test_a_webhook_that_began_anew_keeps_no_progress_of_before(opened: Reopen) -> None:
    async with opened() as (store, _):
        await store.submit(put("a"))
        for id in ("b", "a"):
            await store.submit(AddWebhook("me", "default", id, "http://x", "c", {"n": 1}, "whsec_x"))
        found = await store.webhooks(-1)
        assert found is not None
        version, (webhook, _) = found
        assert webhook.id == "b" or webhook.created_at == found[1][1].created_at  # the oldest first
        assert (webhook.collection, webhook.filter, webhook.secret) == ("c", '{"n":1}', "whsec_x")
        assert (webhook.generation, webhook.progress) == (0, Progress(cursor=1))
        progress = Progress(1, 7, 2, "é", 3, 4, 5)
        await store.submit(KeepProgress(webhook.id, 0, progress))
        assert await store.webhooks(version) is None
        assert (await store.webhook_infos())[0].state == "dead"
        for begin, state in (
            (PauseWebhook("me", webhook.id), "paused"),
            (ResumeWebhook("me", webhook.id), "live"),
            (BeginWebhooks(), "live"),
        ):
            before = await kept(store, webhook.id)
            await store.submit(begin)
            keep = KeepProgress(webhook.id, before.generation, Progress(cursor=9))
            assert (await refused(store, keep))[1] == "CONFLICT"
            now = await kept(store, webhook.id)
            assert now.generation == before.generation + 1
            assert (now.progress.until, now.progress.state) == (7, state)
            assert (await store.webhook_infos())[0].state == state
        assert now.progress == Progress(1, 7, delivered_at=4)
        infos = await store.webhook_infos()
        assert [(info.state, info.lag_changes) for info in infos] == [("live", 0)] * 2
        assert {"a", "b"} == {info.id for info in infos}
        await store.submit(RemoveWebhook("me", webhook.id))
        assert (await refused(store, KeepProgress(webhook.id, 2, progress)))[1] == "CONFLICT"
        assert (await refused(store, RemoveWebhook("me", webhook.id)))[1] == "NOT_FOUND"
        assert len(await store.webhook_infos()) == 1


async def kept(store: Store, id: str) -> Webhook:
    found = await store.webhooks(-1)
    assert found is not None
    return next(webhook for webhook in found[1] if webhook.id == id)
