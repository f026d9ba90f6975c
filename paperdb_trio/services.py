"""The objects that the parts of a running server share. Only `server` creates a `Services`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from time import time

import trio

from paperdb_trio.auth.accounts import Accounts
from paperdb_trio.config import Settings
from paperdb_trio.delivery.hub import Hub
from paperdb_trio.delivery.subscriber import Subscriber
from paperdb_trio.exchanges import Exchanges
from paperdb_trio.limits import Limits
from paperdb_trio.loop.delay import LoopDelay
from paperdb_trio.loop.turn import OnePerTurn
from paperdb_trio.request_counts import RequestCounts
from paperdb_trio.store.cache import DocumentCache
from paperdb_trio.store.protocol import Store
from paperdb_trio.web.assets import Asset


@dataclass(slots=True)
class Services:
    """`draining`: SIGTERM was received; nothing new starts. `look_at_accounts`: take note of changed keys,
    plans and tokens now."""

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
    open_connections: Callable[[], int] = lambda: 0
    look_at_accounts: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint
    live_connections: Callable[[], int] = lambda: 0
    subscribers: Callable[[], Sequence[Subscriber]] = lambda: ()
    requests: RequestCounts = field(default_factory=RequestCounts)
    loop_delay: LoopDelay = field(default_factory=LoopDelay)
