"""The objects that the parts of a running server share. Only `server` creates a `Services`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from time import time
from typing import Any

from paperdb_trio.auth.accounts import Accounts
from paperdb_trio.config import Settings
from paperdb_trio.delivery.hub import Hub
from paperdb_trio.delivery.readers import Reader, Readers
from paperdb_trio.delivery.subscriber import Subscriber
from paperdb_trio.exchanges import Exchanges
from paperdb_trio.limits import Limits
from paperdb_trio.loop.delay import LoopDelay
from paperdb_trio.loop.turn import OnePerTurn
from paperdb_trio.measures import Family
from paperdb_trio.store.cache import DocumentCache
from paperdb_trio.store.protocol import Store
from paperdb_trio.web.assets import Asset


@dataclass(slots=True)
class Services:
    """`draining`: SIGTERM was received; nothing new starts. `reports`: what this process says of itself when it
    is asked, as plain data. `gather(name, argument)`: the reports of all processes of the server, each with the
    name of its process. `more_measures`: figures of what runs beside."""

    settings: Settings
    limits: Limits
    accounts: Accounts
    store: Store
    cache: DocumentCache
    hub: Hub
    assets: Mapping[str, Asset]
    exchanges: Exchanges
    turns: OnePerTurn = field(default_factory=OnePerTurn)
    draining: bool = False
    started: float = field(default_factory=time)
    readers: Readers = field(default_factory=Readers)
    open_connections: Callable[[], int] = lambda: 0
    reports: dict[str, Callable[[Any], Awaitable[Any]]] = field(default_factory=dict)
    gather: Callable[..., Awaitable[list[tuple[str, Any]]]] = field(init=False)
    live_connections: Callable[[], int] = lambda: 0
    subscribers: Callable[[], Sequence[Subscriber | Reader]] = lambda: ()
    loop_delay: LoopDelay = field(default_factory=LoopDelay)
    more_measures: Callable[[], list[Family]] = list

    def __post_init__(self) -> None:
        self.gather = self._only_own

    async def _only_own(self, name: str, argument: Any = None) -> list[tuple[str, Any]]:
        return [("", await self.reports[name](argument))]

    async def look_at_accounts(self) -> None:
        """Let all processes take note of changed keys, plans and tokens now."""
        await self.gather("look")
