"""Subscriptions while the network works: which changes come, over how many sockets, and where errors come
out."""

from __future__ import annotations

import pytest
import trio

from paperdb_trio import ConnectionState, Event, PaperDBError, create_client
from tests.client.harness import SECONDS, insert, nothing_more, numbers, proxied, take, write
from tests.conftest import Server


async def test_every_change_is_one_event(server: Server, collection: str) -> None:
    async with create_client(base_url=server.url, api_key=server.key) as db:
        documents = db.collection(collection)
        async with db.realtime.subscribe(collection) as events:
            inserted = await documents.insert({"text": "hello"})
            updated = await documents.update(inserted["_id"], {"n": 1})
            await documents.delete(inserted["_id"])
            first, second, third = await take(events, 3)
    assert first == Event("insert", collection, dict(inserted), first.seq)
    assert second == Event("update", collection, dict(updated), second.seq)
    assert third == Event("delete", collection, dict(updated), third.seq)
    assert first.seq == inserted.seq
    assert second.seq == updated.seq
    with pytest.raises(AttributeError):
        first.seq = 1  # type: ignore[misc]


async def test_one_socket_for_all_and_each_gets_its_own(server: Server, collection: str) -> None:
    names = [f"{collection}_{n}" for n in range(3)]
    async with proxied(server) as proxy, create_client(base_url=proxy.url, api_key=server.key) as db:
        async with (
            db.realtime.subscribe(*names) as all_events,
            db.realtime.subscribe(names[1]) as some,
            db.realtime.subscribe(names[1]) as same,
        ):
            for n in range(9):
                await insert(server, names[n % 3], {"n": n})
            assert numbers(await take(all_events, 9)) == list(range(9))
            assert numbers(await take(some, 3)) == [1, 4, 7]
            mine = await take(same, 3)
            mine[0].data["n"] = "changed"
            assert numbers(mine) == ["changed", 4, 7]
            assert len(proxy._open) - len(_idle(db)) <= 1
        await nothing_left(db)


def _idle(db: object) -> list[object]:
    """The HTTP pool's connections, which are open as well."""
    return list(db._transport._client._transport._pool.connections)  # type: ignore[attr-defined]


async def nothing_left(db: object) -> None:
    with trio.fail_after(SECONDS):
        while db._links.running:  # type: ignore[attr-defined]
            await trio.sleep(0.01)


async def test_a_subscription_begins_when_it_is_entered(server: Server, collection: str) -> None:
    other = collection + "_other"
    async with create_client(base_url=server.url, api_key=server.key) as db:
        await write(server, collection, range(3))
        async with db.realtime.subscribe(other) as others:
            await write(server, collection, range(3, 6))
            await write(server, other, range(6, 8))
            async with db.realtime.subscribe(collection, other) as events:
                await write(server, collection, range(8, 10))
                await write(server, other, range(10, 12))
                assert numbers(await take(events, 4)) == [8, 9, 10, 11]
            assert numbers(await take(others, 4)) == [6, 7, 10, 11]
            async with db.realtime.subscribe(collection) as events:
                await write(server, collection, range(12, 14))
                assert numbers(await take(events, 2)) == [12, 13]
            await nothing_more(others, other, server)


async def test_since_sends_the_changes_after_it_first(server: Server, collection: str) -> None:
    async with create_client(base_url=server.url, api_key=server.key) as db:
        seqs = [(await db.collection(collection).insert({"n": n})).seq for n in range(5)]
        async with db.realtime.subscribe(collection, since=seqs[1]) as events:
            await write(server, collection, range(5, 7))
            taken = await take(events, 5)
            assert numbers(taken) == [2, 3, 4, 5, 6]
            assert taken[0].seq == seqs[2]
            await nothing_more(events, collection, server)


async def test_a_subscription_continues_from_the_seq_of_a_find(server: Server, collection: str) -> None:
    async with create_client(base_url=server.url, api_key=server.key) as db:
        await write(server, collection, range(3))
        found = await db.collection(collection).find()
        await write(server, collection, range(3, 5))
        async with db.realtime.subscribe(collection, since=found.seq) as events:
            assert len(found) == 3
            assert numbers(await take(events, 2)) == [3, 4]
            await nothing_more(events, collection, server)


async def test_subscriptions_come_and_go_while_others_listen(server: Server, collection: str) -> None:
    async with (
        create_client(base_url=server.url, api_key=server.key) as db,
        db.realtime.subscribe(collection) as steady,
    ):

        async def come_and_go(number: int) -> None:
            name = f"{collection}_{number}"
            for round in range(5):
                async with db.realtime.subscribe(name) as events:
                    await db.collection(name).insert({"n": round})
                    assert numbers(await take(events, 1)) == [round]

        async def pour() -> None:
            for n in range(40):
                await db.collection(collection).insert({"n": n})

        async with trio.open_nursery() as nursery:
            nursery.start_soon(pour)
            for number in range(4):
                nursery.start_soon(come_and_go, number)
        assert numbers(await take(steady, 40)) == list(range(40))


async def test_an_error_in_one_consumer_does_not_affect_others(server: Server, collection: str) -> None:
    async with (
        create_client(base_url=server.url, api_key=server.key) as db,
        db.realtime.subscribe(collection) as events,
    ):
        with pytest.raises(ZeroDivisionError):  # noqa: PT012
            async with db.realtime.subscribe(collection) as failing:
                await write(server, collection, range(2))
                async for _ in failing:
                    1 / 0  # noqa: B018
        await write(server, collection, range(2, 4))
        assert numbers(await take(events, 4)) == [0, 1, 2, 3]
        with pytest.raises(trio.ClosedResourceError):
            await anext(failing)


async def test_errors_in_the_body_come_out_as_they_are(server: Server, collection: str) -> None:
    with pytest.raises(KeyError):
        async with (
            create_client(base_url=server.url, api_key=server.key) as db,
            db.realtime.subscribe(collection),
        ):
            raise KeyError("mine")
    with pytest.raises(ExceptionGroup) as caught:
        async with create_client(base_url=server.url, api_key=server.key), trio.open_nursery():
            raise KeyError("mine")
    assert isinstance(caught.value.exceptions[0], KeyError)


async def test_leaving_the_client_ends_iterators_elsewhere(server: Server, collection: str) -> None:
    async with trio.open_nursery() as nursery:
        async with create_client(base_url=server.url, api_key=server.key) as db:
            subscription = db.realtime.subscribe(collection)
            entered = trio.Event()

            async def consume() -> None:
                with pytest.raises(trio.ClosedResourceError):  # noqa: PT012
                    async with subscription as events:
                        entered.set()
                        async for _ in events:
                            pass

            nursery.start_soon(consume)
            await entered.wait()
        assert subscription.status().current.state is ConnectionState.CLOSED
        assert db.realtime.status().current.reason == "the client has been closed"
    with pytest.raises(RuntimeError, match="not open"):
        async with db.realtime.subscribe(collection):
            pass
    with pytest.raises(RuntimeError, match="entered only once"):
        async with subscription:
            pass


async def test_the_states_of_a_connection(server: Server, collection: str) -> None:
    states: list[ConnectionState] = []

    async def watch() -> None:
        async for status in subscription.status():
            states.append(status.state)

    async with create_client(base_url=server.url, api_key=server.key) as db:
        subscription = db.realtime.subscribe(collection)
        async with trio.open_nursery() as nursery:
            assert db.realtime.status().current.state is ConnectionState.CLOSED
            nursery.start_soon(watch)
            async with subscription:
                assert db.realtime.status().current.state is ConnectionState.LIVE
                await trio.testing.wait_all_tasks_blocked()
    assert states == [ConnectionState.CONNECTING, ConnectionState.LIVE, ConnectionState.CLOSED]


async def test_invalid_arguments_are_refused(server: Server, collection: str) -> None:
    async with create_client(base_url=server.url, api_key=server.key) as db:
        with pytest.raises(TypeError):
            db.realtime.subscribe()
        with pytest.raises(ValueError, match="on_gap"):
            db.realtime.subscribe(collection, on_gap="ignore")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="since"):
            db.realtime.subscribe(collection, since=-1)
        with pytest.raises(PaperDBError, match="Invalid collection name"):
            db.realtime.subscribe(collection, "no good")
        with pytest.raises(TypeError):
            await db.realtime.generate_token(collection)


async def test_more_collections_than_a_token_covers_get_a_second_socket(
    server: Server, collection: str
) -> None:
    async with create_client(base_url=server.url, api_key=server.key) as db:
        async with trio.open_nursery() as nursery:
            heard: set[int] = set()

            async def listen(number: int, task_status: trio.TaskStatus[None]) -> None:
                async with db.realtime.subscribe(*(f"{collection}_{number}_{n}" for n in range(30))) as events:
                    task_status.started()
                    heard.update(numbers(await take(events, 1)))

            for number in range(7):
                await nursery.start(listen, number)
            assert len(db._links.running) == 3
            for number in range(7):
                await insert(server, f"{collection}_{number}_29", {"n": number})
        assert heard == set(range(7))
