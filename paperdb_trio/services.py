"""The objects that the parts of a running server share. Only `server` creates a `Services`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

import trio

from paperdb_trio.auth.accounts import Accounts
from paperdb_trio.config import Settings
from paperdb_trio.delivery.hub import Hub
from paperdb_trio.limits import Limits
from paperdb_trio.loop.turn import OnePerTurn
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
    turns: OnePerTurn = field(default_factory=OnePerTurn)
    draining: bool = False
    open_connections: Callable[[], int] = lambda: 0
    look_at_accounts: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint
    live_connections: Callable[[], int] = lambda: 0
