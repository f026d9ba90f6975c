"""The reply that says from where on something is followed comes before its first event, however full a slow
reader's queue is. Clients drop events of what they do not follow yet."""

from __future__ import annotations

import json
import math
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from paperdb_trio.auth.accounts import Database
from paperdb_trio.auth.tokens import Grant
from paperdb_trio.config import Settings
from paperdb_trio.delivery.topics import Asked
from paperdb_trio.exchanges import Exchanges
from paperdb_trio.limits import Limits
from paperdb_trio.loop.wheel import Wheel
from paperdb_trio.match.query import query
from paperdb_trio.realtime.websocket import WebSocket
from paperdb_trio.services import Services
from tests.delivery.fakes import DATABASE, FakeSink, World, payloads

Act = Callable[[WebSocket], Awaitable[None]]


def asking(**members: Any) -> Act:
    return lambda ws: ws._respond(json.dumps({"action": "subscribe", "collection": "b", **members}).encode())


async def another_rule(ws: WebSocket) -> None:
    """As an `auth` does, once the query of the old rule has ended."""
    await ws._change_rule(query("b", None, ["n"]), Asked("b"), "b")


def connection(world: World, sink: FakeSink) -> WebSocket:
    """One that follows "a", and of whose queue one batch of events is all."""
    settings = Settings(queue_events=1)
    limits = Limits(settings)
    unused = cast(Any, None)
    services = Services(
        settings=settings,
        limits=limits,
        accounts=unused,
        store=cast(Any, SimpleNamespace(page=world.log.page, is_current=lambda _: True)),
        cache=unused,
        hub=world.hub,
        assets={},
        exchanges=Exchanges(settings, limits),
    )
    grant = Grant(Database(DATABASE, "default", "team"), "k1", frozenset("ab"), math.inf)
    stream = cast(Any, sink)
    stream.peer = "test"
    ws = WebSocket(services, Wheel(), stream, grant, {"a": Asked("a")}, cursor_mode=True)
    ws._nursery = world.nursery
    ws.subscriber.start(0)
    return ws


@pytest.mark.interpreted  # the stream is a fake
@pytest.mark.parametrize(
    "act",
    [asking(), asking(since=0), asking(since=99), another_rule],
    ids=["now", "since", "gap", "rule"],
)
async def test_a_reply_comes_before_the_events_of_what_it_begins(nursery: trio.Nursery, act: Act) -> None:
    """When the queue gets room, a commit and the action that waits for room come in any order."""
    for _ in range(20):
        world, sink = World(nursery), FakeSink()
        ws = connection(world, sink)
        nursery.start_soon(world.hub.run)
        sink.block()
        await world.commit_each(2, "a")  # one is being sent, and one fills the queue
        nursery.start_soon(act, ws)
        await wait_all_tasks_blocked()
        sink.when_sent = lambda world=world: world.commit("b")
        sink.unblock()
        await wait_all_tasks_blocked()
        world.commit("b")
        await wait_all_tasks_blocked()
        told = [json.loads(text) for text in payloads(sink.data)]
        first, *rest = [one for one in told if one["collection"] == "b"]
        assert first["type"] in ("subscribed", "reset")
        events = [one["seq"] for one in rest if one["type"] == "insert"]
        assert events == [seq for seq in (3, 4) if seq > first["seq"]]
