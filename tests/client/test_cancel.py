"""Cancellation, at every step and at random ones: nothing is left running, nothing is lost, and what comes next
works."""

from __future__ import annotations

import gc
import random

import pytest
import trio

from paperdb_trio import create_client
from paperdb_trio.client.groups import leaves
from tests.client.harness import SECONDS, numbers, proxied, renew_soon, take, write
from tests.conftest import Server

pytestmark = pytest.mark.sqlite


class CancelAt(trio.abc.Instrument):
    """Cancels `scope` before the given step of any task."""

    def __init__(self, step: int, scope: trio.CancelScope) -> None:
        self.left = step
        self._scope = scope

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.left -= 1
        if self.left == 0:
            self._scope.cancel()


async def session(server: Server, collection: str) -> None:
    """A bit of everything."""
    async with (
        create_client(base_url=server.url, api_key=server.key) as db,
        db.realtime.subscribe(collection, max_events=1) as events,
    ):
        await db.collection(collection).insert_bulk([{"n": n} for n in range(3)])
        await take(events, 2)
        async with db.realtime.subscribe(collection + "_other", since=0) as others:
            await db.collection(collection + "_other").insert({"n": 9})
            await take(others, 1)
        await take(events, 1)
        async with db.collection(collection).live(sort="n", limit=1) as live:
            await db.collection(collection).insert({"n": -1})
            async for documents in live:
                if documents[0]["n"] == -1:
                    break
            await live.more()
        async with db.collection(collection).live({"n": 1}) as live:
            assert live.documents


async def test_cancelling_at_every_step_leaves_nothing_running(server: Server, collection: str) -> None:
    finished = False
    step = 0
    while not finished:
        step += 1 if step < 40 else random.Random(step).randrange(1, 6)
        with trio.CancelScope() as scope:
            instrument = CancelAt(step, scope)
            trio.lowlevel.add_instrument(instrument)
            try:
                with trio.fail_after(SECONDS):
                    await session(server, collection)
            finally:
                trio.lowlevel.remove_instrument(instrument)
        finished = instrument.left > 0
        if not finished:
            assert trio.lowlevel.current_statistics().tasks_living < 12
    assert step > 100
    gc.collect()


async def test_an_iterator_that_is_cancelled_loses_and_repeats_nothing(server: Server, collection: str) -> None:
    chance = random.Random(5)
    taken: list[int] = []
    async with (
        create_client(base_url=server.url, api_key=server.key) as db,
        trio.open_nursery() as nursery,
        db.realtime.subscribe(collection, max_events=50) as events,
    ):

        async def pour() -> None:
            for first in range(0, 400, 10):
                await db.collection(collection).insert_bulk([{"n": first + n} for n in range(10)])

        nursery.start_soon(pour)
        with trio.fail_after(SECONDS):
            while len(taken) < 400:
                with trio.move_on_after(chance.choice((0, 0, 0.0005, 0.002))):
                    while len(taken) < 400:
                        event = await anext(events)
                        taken.append(event.data["n"])
    assert taken == list(range(400))


async def test_entering_is_cancelled_while_offline_and_others_go_on(server: Server, collection: str) -> None:
    async with proxied(server) as proxy:
        client = create_client(base_url=server.url, realtime_url=proxy.url, api_key=server.key)
        async with client as db, db.realtime.subscribe(collection) as events:
            for n in range(8):
                with trio.move_on_after(n * 0.004):
                    async with db.realtime.subscribe(f"{collection}_{n}"):
                        pass
                if n == 4:
                    proxy.cut()
            await write(server, collection, range(3))
            assert numbers(await take(events, 3)) == [0, 1, 2]


async def test_a_cancelled_client_ends_at_once(server: Server, collection: str) -> None:
    with pytest.raises(trio.TooSlowError):  # noqa: PT012
        with trio.fail_after(0.3):
            async with (
                create_client(base_url=server.url, api_key=server.key) as db,
                db.realtime.subscribe(collection) as events,
            ):
                async for _ in events:
                    pass
    async with create_client(base_url=server.url, api_key=server.key) as db:
        await db.realtime.subscribe(collection).__aenter__()
        start = trio.current_time()
    assert trio.current_time() - start < 1


class CtrlC(BaseException):
    """Stands for KeyboardInterrupt, which would end pytest."""


async def test_a_ctrl_c_in_a_background_task_is_all_that_comes_out(
    server: Server, collection: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It can come anywhere. Here: while the token is renewed, and the consumer waits for events."""
    renew_soon(monkeypatch)
    tokens = iter([server.token(collection, expiresIn=30)])

    async def get_token() -> str:
        for text in tokens:
            return text
        raise CtrlC

    with pytest.raises(BaseExceptionGroup) as caught:  # noqa: PT012
        async with (
            create_client(base_url=server.url, get_token=get_token) as db,
            db.realtime.subscribe(collection) as events,
        ):
            async for _ in events:
                pass
    assert [type(error) for error in leaves(caught.value)] == [CtrlC]
