"""Live lists: they are what `find` would return, whatever happens. The whole file takes some 6 s of CPU."""

from __future__ import annotations

import random
from contextlib import suppress
from typing import Any

import pytest
import trio

from paperdb_trio import ConnectionState, GapError, PaperDBError, create_client
from tests.client.harness import SECONDS, eventually, insert, proxied, renew_soon, take
from tests.conftest import Server, StartServer, wait_until


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
                with suppress(PaperDBError):  # the id is taken, or there is none
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


async def test_a_window_forgets_what_lies_far_beyond_its_limit(server: Server, collection: str) -> None:
    async with create_client(base_url=server.url, api_key=server.key) as db:
        documents = db.collection(collection)
        await documents.insert_bulk([{"_id": str(n), "n": n} for n in range(30)])
        async with documents.live(sort="n", limit=3) as live:
            most = 0
            for n in range(-1, -61, -1):
                await documents.insert({"_id": str(n), "n": n})
                most = max(most, len(live._window))
            await until(live, [-60, -59, -58])
            assert most < 50
            for n in range(-60, 0):
                await documents.delete(str(n))
            await until(live, [0, 1, 2])


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


async def test_kill_9_of_the_server(start_server: StartServer) -> None:
    server = start_server()
    async with create_client(base_url=server.url, api_key=server.key) as db:
        await db.things.insert_bulk([{"_id": str(n), "n": n} for n in range(30)])
        async with db.things.live({"n": {"gte": 10}}) as every, db.things.live(sort="-n", limit=5) as top:
            for round in range(3):
                await trio.to_thread.run_sync(server.kill)
                await eventually(lambda: every.status.state is not ConnectionState.LIVE)
                await trio.to_thread.run_sync(server.start)
                await db.things.update(str(round), {"n": 100 + round})
                await db.things.delete(str(29 - round))
            await same_as_find(every, lambda: db.things.find({"n": {"gte": 10}}))
            await same_as_find(top, lambda: db.things.find(sort="-n", limit=5))
            assert every.status.state is ConnectionState.LIVE


async def test_a_gap_is_fetched_again(start_server: StartServer) -> None:
    """The log keeps a few changes only, and the lists are away for more of them."""
    server = start_server("--retention-count", "5")
    async with (
        proxied(server) as proxy,
        create_client(base_url=server.url, realtime_url=proxy.url, api_key=server.key) as db,
    ):
        await db.things.insert_bulk([{"_id": str(n), "n": n} for n in range(30)])
        async with db.things.live({"n": {"gte": 0}}) as every, db.things.live(sort="-n", limit=5) as top:
            proxy.accepting = False
            proxy.cut()
            await eventually(lambda: top.status.state is ConnectionState.OFFLINE)
            for n in range(29):
                await db.things.delete(str(n))
            await trio.to_thread.run_sync(_trimmed, server)
            proxy.accepting = True
            await until(every, [29])
            await until(top, [29])
            await db.things.insert({"n": 50})
            await until(every, [29, 50])
            await until(top, [50, 29])


def _trimmed(server: Server) -> None:
    def gone() -> bool:
        return server.request("GET", "/things/changes?since=31").status_code == 410

    wait_until(gone, 30)


@pytest.mark.parametrize("limit", [None, 3])
@pytest.mark.parametrize("at", ["renewal", "reconnect"])
async def test_another_rule_is_another_list(
    server: Server, collection: str, monkeypatch: pytest.MonkeyPatch, limit: int | None, at: str
) -> None:
    rule: dict[str, Any] = {"filter": {"owner": "ada"}}
    if at == "renewal":
        renew_soon(monkeypatch)
    async with create_client(base_url=server.url, api_key=server.key) as back, proxied(server) as proxy:
        documents = back.collection(collection)
        await documents.insert_bulk([{"n": n, "owner": "ada" if n % 2 else "bob"} for n in range(6)])

        async def get_token() -> str:
            return await back.realtime.generate_token({collection: rule}, subject=collection)

        async with (
            create_client(base_url=proxy.url, get_token=get_token) as front,
            front.collection(collection).live(sort="n", limit=limit) as live,
        ):
            assert [d["n"] for d in live.documents] == [1, 3, 5]
            rule["filter"] = {"owner": "bob"}
            if at == "reconnect":
                front._links.running[0]._tokens._last = None
                proxy.cut()
            await until(live, [0, 2, 4])
            await documents.insert({"n": -2, "owner": "ada"})
            await documents.insert({"n": -1, "owner": "bob"})
            await until(live, [-1, 0, 2, 4][: limit or 4])


async def test_a_list_goes_on_with_a_token_that_has_a_rule_which_its_socket_does_not_know_yet(
    server: Server, collection: str
) -> None:
    """The cursor of the last page is not one for such a token."""
    rule: dict[str, Any] = {}
    async with create_client(base_url=server.url, api_key=server.key) as back:
        await back.collection(collection).insert_bulk([{"n": n} for n in range(50)])

        async def get_token() -> str:
            return await back.realtime.generate_token({collection: rule})

        async with (
            create_client(base_url=server.url, get_token=get_token) as front,
            front.collection(collection).live(sort="n", limit=3) as live,
        ):
            rule["filter"] = {"n": {"lt": 40}}
            front._links.running[0]._tokens._last = None
            await live.more(30)
            assert [d["n"] for d in live.documents] == [*range(33)]


async def test_a_revoked_token_ends_a_list_for_good(server: Server, collection: str) -> None:
    async with create_client(base_url=server.url, api_key=server.key) as back:
        token = await back.realtime.generate_token({collection: {}}, subject=collection)

        async def get_token() -> str:
            return token

        async with (
            create_client(base_url=server.url, get_token=get_token) as front,
            front.collection(collection).live() as live,
        ):
            await back.realtime.revoke(collection)
            with pytest.raises(PaperDBError, match="ACCESS_LOST"), trio.fail_after(SECONDS):
                async for _ in live:
                    pass
            assert live.status.state is ConnectionState.CLOSED
            assert live.documents == []
    with pytest.raises(trio.ClosedResourceError):
        await anext(aiter(live))


async def test_a_slow_reader_gets_the_newest_list(server: Server, collection: str) -> None:
    async with create_client(base_url=server.url, api_key=server.key) as db:
        async with db.collection(collection).live() as live, db.collection(collection).live() as other:
            lists = aiter(live)
            assert await anext(lists) == []
            for n in range(50):
                await db.collection(collection).insert({"n": n})
            await until(other, list(range(50)))
            await eventually(lambda: len(live.documents) == 50)
            assert len(await anext(lists)) == 50
            with trio.move_on_after(0.01) as scope:
                await anext(lists)
            assert scope.cancelled_caught
        with pytest.raises(trio.ClosedResourceError):
            await anext(lists)


async def test_a_select_shows_its_fields_and_those_of_the_sort(server: Server, collection: str) -> None:
    async with create_client(base_url=server.url, api_key=server.key) as db:
        documents = db.collection(collection)
        await documents.insert({"_id": "a", "n": 1, "text": "x", "secret": 1})
        for limit in (None, 5):
            async with documents.live(sort="-n", select="text", limit=limit) as live:
                assert live.documents == [{"_id": "a", "n": 1, "text": "x"}]


async def test_errors_come_out_of_entering(start_server: StartServer) -> None:
    server = start_server("--max-result-bytes", "1048576")
    async with create_client(base_url=server.url, api_key=server.key) as db:
        await db.things.insert_bulk([{"text": "x" * 10_000} for _ in range(200)])
        for arguments, code in (
            ({}, "RESULT_TOO_LARGE"),
            ({"filter": {"n": {"near": 1}}}, "UNKNOWN_OPERATOR"),
            ({"filter": {"n": {"near": 1}}, "limit": 5}, "UNKNOWN_OPERATOR"),
            ({"sort": "a,b,c,d,e,f,g,h,i", "limit": 5}, "INVALID_SORT"),
        ):
            live = db.things.live(**arguments)
            with pytest.raises(PaperDBError, match=code):
                await live.__aenter__()
        for limit in (0, True, "5"):
            with pytest.raises(ValueError, match="limit"):
                db.things.live(limit=limit)  # type: ignore[arg-type]
        await eventually(lambda: not db._links.running)


# --- subscriptions with a filter -----------------------------------------------------------------


async def test_a_subscription_with_a_filter_gets_its_view_over_cuts(server: Server, collection: str) -> None:
    async with (
        proxied(server) as proxy,
        create_client(base_url=server.url, realtime_url=proxy.url, api_key=server.key) as db,
        db.realtime.subscribe(collection, filter={"n": {"gte": 5}}, select=["n"]) as events,
    ):
        documents = db.collection(collection)
        await documents.insert({"_id": "a", "n": 1})
        await documents.update("a", {"n": 6, "text": "x"})
        (entered,) = await take(events, 1)
        assert (entered.type, entered.cause, entered.data) == ("insert", "update", {"_id": "a", "n": 6})
        await documents.update("a", {"text": "y"})  # not visible
        proxy.cut()
        await documents.update("a", {"n": 7})
        await documents.update("a", {"n": 0})
        assert [(e.type, e.data["n"]) for e in await take(events, 2)] == [("update", 7), ("delete", 7)]
        batch = [{"op": "insert", "collection": collection, "document": {"n": n}} for n in (9, 1, 8)]
        done = await db.batch(batch)  # type: ignore[arg-type]
        assert [(e.data["n"], e.txn) for e in await take(events, 2)] == [(9, done.txn), (8, done.txn)]
        async with db.realtime.subscribe(collection, filter={"n": 7}, since=entered.seq) as past:
            assert [e.type for e in await take(past, 2)] == ["insert", "delete"]
        with pytest.raises(TypeError, match="one collection"):
            db.realtime.subscribe(collection, "b", filter={})
        with pytest.raises(PaperDBError, match="UNKNOWN_OPERATOR"):
            await db.realtime.subscribe(collection, filter={"n": {"near": 1}}).__aenter__()


@pytest.mark.parametrize("at", ["renewal", "reconnect"])
async def test_another_rule_is_a_gap_in_a_subscription(
    server: Server, collection: str, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    if at == "renewal":
        renew_soon(monkeypatch)
    rule: dict[str, Any] = {"filter": {"owner": "ada"}}
    other = f"{collection}-other"
    async with create_client(base_url=server.url, api_key=server.key) as back, proxied(server) as proxy:

        async def get_token() -> str:
            return await back.realtime.generate_token({collection: rule, other: {"filter": {"n": 1}}})

        async with (
            create_client(base_url=proxy.url, get_token=get_token) as front,
            front.realtime.subscribe(collection, filter={"n": 1}) as narrow,
            front.realtime.subscribe(collection) as wide,
            front.realtime.subscribe(other) as same,
            front.realtime.subscribe(collection, filter={"n": 2}, on_gap="continue") as patient,
            front.realtime.subscribe(collection, on_gap="continue") as plain,
        ):
            states = [aiter(events.status()) for events in (patient, plain)]
            rule["filter"] = {"owner": "bob"}
            if at == "reconnect":
                front._links.running[0]._tokens._last = None
                proxy.cut()
            for events in (narrow, wide):
                with pytest.raises(GapError) as caught, trio.fail_after(SECONDS):
                    await anext(events)
                assert caught.value.reason == "rule"
            for statuses in states:
                with trio.fail_after(SECONDS):
                    async for status in statuses:
                        if status.state is ConnectionState.GAP:
                            break
            for events in (patient, plain):
                await eventually(lambda of=events: of.status().current.state is ConnectionState.LIVE)  # type: ignore[misc]
            await back.collection(collection).insert({"n": 2, "owner": "bob"})
            for events in (patient, plain):
                assert (await take(events, 1))[0].data["owner"] == "bob"
            await back.collection(other).insert({"n": 1})
            assert (await take(same, 1))[0].data["n"] == 1
