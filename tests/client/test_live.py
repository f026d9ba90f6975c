"""Live lists: they are what `find` would return, whatever happens. The whole file takes some 6 s of CPU."""

from __future__ import annotations

import random
from typing import Any

import pytest
import trio

from paperdb_trio import ConnectionState, PaperDBError, create_client
from tests.client.harness import SECONDS, eventually, insert, proxied
from tests.conftest import Server


async def until(live: Any, wanted: list[Any], field: str = "n") -> None:
    """Read lists until one is as wanted."""
    with trio.fail_after(SECONDS):
        async for documents in live:
            if [document.get(field) for document in documents] == wanted:
                return


async def test_a_list_follows_what_enters_changes_and_leaves(server: Server, collection: str) -> None:
    async with create_client(base_url=server.url, api_key=server.key) as db:
        documents = db.collection(collection)
        await documents.insert_bulk([{"_id": str(n), "n": n, "room": n % 2} for n in range(4)])
        async with documents.live({"room": 1}, sort="-n") as live:
            assert [d["n"] for d in live.documents] == [3, 1]
            assert live.status.state is ConnectionState.LIVE
            await documents.update("0", {"room": 1})
            await until(live, [3, 1, 0])
            await documents.update("1", {"n": 9})
            await until(live, [9, 3, 0])
            await documents.delete("3")
            await documents.update("1", {"room": 2})
            await until(live, [0])
            assert live.documents == [await documents.get("0")]
            assert not live.has_more


async def same_as_find(live: Any, find: Any) -> None:
    """Wait until the list is what `find` returns. Nothing may be written meanwhile."""
    found = list(await find())
    await eventually(lambda: live.documents == found)


def chosen(chance: random.Random) -> dict[str, Any]:
    """Few values of all types, so that there are many equal ones."""
    values = (None, False, True, 0, 1, 1.5, -2, 2**63, "", "a", "aa", "é", "😀", [1], {"b": 1})
    document: dict[str, Any] = {"n": chance.choice(values), "room": chance.randrange(2)}
    if chance.random() < 0.2:
        del document["n"]
    return document


SORTS = (None, "-", "n", "-n", "n,-", "-n,-", "-createdAt", "updatedAt,n", "room,-n", "-missing.path,-")


@pytest.mark.parametrize("seed", range(3))
async def test_lists_converge_to_what_find_returns(server: Server, collection: str, seed: int) -> None:
    chance = random.Random(seed)
    async with (
        create_client(base_url=server.url, api_key=server.key) as db,
        create_client(base_url=server.url, api_key=server.key) as other,
    ):
        documents = db.collection(collection)
        await documents.insert_bulk([{"_id": str(n), **chosen(chance)} for n in range(20)])
        views: list[tuple[Any, Any]] = []

        async def write(writer: Any, chance: random.Random) -> None:
            for _ in range(40):
                id = str(chance.randrange(40))
                step = chance.random()
                try:
                    if step < 0.25:
                        await writer.insert({"_id": id, **chosen(chance)})
                    elif step < 0.65:
                        await writer.update(id, chosen(chance))
                    elif step < 0.75:
                        await writer.replace(id, chosen(chance))
                    elif step < 0.8:
                        await writer.insert_bulk([chosen(chance) for _ in range(3)])
                    else:
                        await writer.delete(id)
                except PaperDBError as error:
                    assert error.status in (404, 409), error

        async with trio.open_nursery() as nursery:
            for client in (db, other):
                for _ in range(4):
                    filter = chance.choice((None, {"room": 1}))
                    sort, limit = chance.choice(SORTS), chance.choice((None, 1, 3, 12))

                    async def hold(
                        live: Any, task_status: trio.TaskStatus[Any] = trio.TASK_STATUS_IGNORED
                    ) -> None:
                        async with live:
                            task_status.started()
                            await trio.sleep_forever()

                    live = client.collection(collection).live(filter, sort=sort, limit=limit)
                    await nursery.start(hold, live)
                    views.append((live, (filter, sort, limit)))
            async with trio.open_nursery() as writing:
                writing.start_soon(write, documents, random.Random(seed + 100))
                writing.start_soon(write, other.collection(collection), random.Random(seed + 200))
            for live, (filter, sort, limit) in views:

                async def find(filter: Any = filter, sort: Any = sort, limit: Any = limit) -> Any:
                    return await documents.find(filter, sort=sort, limit=limit or 1000)

                try:
                    await same_as_find(live, find)
                except trio.TooSlowError:
                    found = await find()
                    raise AssertionError((filter, sort, limit, live.documents, found)) from None
            nursery.cancel_scope.cancel()


async def test_a_window_asks_behind_its_edge_when_it_runs_short(server: Server, collection: str) -> None:
    async with create_client(base_url=server.url, api_key=server.key) as db:
        documents = db.collection(collection)
        await documents.insert_bulk([{"_id": str(n), "n": n} for n in range(60)])
        async with documents.live(sort="n", limit=5) as live:
            assert live.has_more
            for n in range(40):
                await documents.delete(str(n))
            await until(live, [40, 41, 42, 43, 44])
            await live.more()
            assert [d["n"] for d in live.documents] == list(range(40, 50))
            await live.more(100)
            assert [d["n"] for d in live.documents] == list(range(40, 60))
            assert not live.has_more
            for n in range(-200, 0):  # more than it keeps
                await documents.insert({"_id": str(n), "n": n})
            await until(live, list(range(-200, -90)))
            await documents.insert_bulk([{"_id": f"x{n}", "n": 0} for n in range(1)])
            for n in range(-200, 0):
                await documents.delete(str(n))
            await until(live, [0, *range(40, 60)])


async def test_kill_9_and_cuts_leave_no_gap(server: Server, collection: str) -> None:
    """Also amid a snapshot: some connections are cut after a few bytes."""
    chance = random.Random(7)
    async with (
        proxied(server) as proxy,
        create_client(base_url=server.url, realtime_url=proxy.url, api_key=server.key) as db,
    ):
        documents = db.collection(collection)
        await documents.insert_bulk([{"n": n, "text": "x" * 1000} for n in range(300)])
        budgets = iter([5_000, 70_000, 200_000])
        proxy.budget = lambda: next(budgets, float("inf"))
        async with documents.live({"n": {"gte": 0}}) as every, documents.live(sort="-n", limit=5) as top:
            assert proxy.cuts == 3
            assert len(every.documents) == 300
            for round in range(6):
                ids = [document["_id"] for document in chance.sample(every.documents, 5)]
                for id in ids:
                    await documents.update(id, {"n": chance.randrange(-100, 1000)})
                if round % 2:
                    proxy.cut()
                await documents.delete(ids[0])
                await insert(server, collection, {"n": 5000 + round})
            await same_as_find(every, lambda: documents.find({"n": {"gte": 0}}, limit=1000))
            await same_as_find(top, lambda: documents.find(sort="-n", limit=5))
