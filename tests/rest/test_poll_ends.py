"""A long poll whose key is revoked gets a 401, whatever it is doing at that moment. No client gets a change
that was written after the revocation.

Rules: no socket and no file of documents; the test decides when a page has been read, and turns the clock.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, cast

import msgspec
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from paperdb_trio.config import Settings
from paperdb_trio.delivery.hub import Hub
from paperdb_trio.exchanges import Exchanges
from paperdb_trio.limits import Limits
from paperdb_trio.net.messages import Request, Response
from paperdb_trio.rest.dispatch import respond
from paperdb_trio.services import Services
from paperdb_trio.store.administration import RevokeKey
from paperdb_trio.store.protocol import Page
from paperdb_trio.store.sqlite import admin
from tests.auth.test_tokens import World, own_world, token
from tests.delivery.fakes import DATABASE, change

__all__ = ["own_world"]  # the fixture


class Log:
    """Reads of the change log: each page has the events that are there once `meanwhile` has returned."""

    def __init__(self) -> None:
        self.events: list[bytes] = []
        self.meanwhile: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint

    async def current(self, database_id: int) -> None:
        await trio.lowlevel.checkpoint()

    async def page(self, *_: Any) -> Page:
        await self.meanwhile()
        return Page(self.events, len(self.events), True, len(self.events), 0)


class Poll:
    def __init__(self, world: World, nursery: trio.Nursery) -> None:
        self.world = world
        self.log = Log()
        self.hub = Hub()
        settings = Settings()
        limits = Limits(settings)
        unused = cast(Any, None)
        self._services = Services(
            settings=settings,
            limits=limits,
            accounts=world.accounts,
            store=cast(Any, self.log),
            cache=unused,
            hub=self.hub,
            assets={},
            exchanges=Exchanges(settings, limits),
        )
        self._nursery = nursery
        self._nursery.start_soon(self.hub.run)

    async def ask(self, seconds: int) -> trio.MemoryReceiveChannel[Response]:
        """Begin a poll that waits for so long; returns where its response comes."""
        send, receive = trio.open_memory_channel[Response](1)

        async def run() -> None:
            headers = {"authorization": f"Bearer {token()}"}
            request = Request("GET", "/a/changes", f"since=0&wait={seconds}", headers, cast(Any, None))
            await send.send(await respond(self._services, request))

        self._nursery.start_soon(run)
        await wait_all_tasks_blocked()
        return receive

    def write(self) -> None:
        self.log.events.append(b'{"seq":1}')
        self.hub.on_commit([change(1, database=DATABASE)])

    async def revoke(self) -> None:
        admin.apply(self.world.file, RevokeKey("test", "k1"))
        await self.world.refresh()

    async def revoke_then_write(self) -> None:
        await self.revoke()
        self.write()


@pytest.fixture
def poll(own_world: World, nursery: trio.Nursery) -> Poll:
    return Poll(own_world, nursery)


def outcome(response: Response) -> tuple[int, object]:
    body = msgspec.json.decode(response.body)
    return response.status, body.get("code", body.get("changes"))


REVOKED = (401, "KEY_REVOKED")


async def test_a_poll_gets_a_change_and_an_empty_page_when_its_time_is_over(
    poll: Poll, mock_clock: MockClock
) -> None:
    response = await poll.ask(1)
    mock_clock.jump(1.1)
    assert outcome(await response.receive()) == (200, [])
    response = await poll.ask(20)
    poll.write()
    assert outcome(await response.receive()) == (200, [{"seq": 1}])


async def test_revoked_while_the_first_page_is_read(poll: Poll, mock_clock: MockClock) -> None:
    poll.log.meanwhile = poll.revoke_then_write
    assert outcome(await (await poll.ask(20)).receive()) == REVOKED


async def test_revoked_while_the_page_is_read_for_which_a_change_has_woken_it(
    poll: Poll, mock_clock: MockClock
) -> None:
    response = await poll.ask(20)
    poll.log.meanwhile = poll.revoke_then_write
    poll.write()
    assert outcome(await response.receive()) == REVOKED


async def test_revoked_within_its_last_second(poll: Poll, mock_clock: MockClock) -> None:
    response = await poll.ask(1)
    await poll.revoke()
    mock_clock.jump(1.1)
    assert outcome(await response.receive()) == REVOKED
