"""What an administrator may ask about live connections: who they are, how far they are, and why one did or did
not get a change.

Law: each question is a report of this process (`Services.reports`). Its argument and its response are plain
data, so that any process of the server can ask it. Nothing here is counted on the path of an event: it is read
when somebody asks.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Final

from paperdb_trio.auth.tokens import Grant
from paperdb_trio.delivery.explaining import Place, explain, followed
from paperdb_trio.delivery.readers import Reader
from paperdb_trio.delivery.states import SubscriberState
from paperdb_trio.loop.turn import TimeSlice
from paperdb_trio.model import timestamp
from paperdb_trio.realtime.connection import Live
from paperdb_trio.realtime.gateway import Gateway
from paperdb_trio.realtime.protocol import CloseCode
from paperdb_trio.services import Services

Report = dict[str, Any]
Connection = Live | Reader

ENDED: Final = "closed by an administrator"


class Inspector:
    """`reports`: by name, what can be asked. A connection's id names its process, too."""

    def __init__(self, services: Services, gateway: Gateway) -> None:
        self._services = services
        self._gateway = gateway
        self._prefix = os.urandom(4).hex()
        self.reports: dict[str, Callable[[Any], Awaitable[Any]]] = {
            "connections": self.connections,
            "audience": self.audience,
            "why": self.why,
            "end": self.end,
        }

    def _of(self, database_id: int | None) -> Iterator[Connection]:
        everyone: list[Connection] = [*self._gateway.connections, *self._services.readers.open]
        for connection in everyone:
            if database_id is None or connection.grant.database.id == database_id:
                yield connection

    def _find(self, id: str, database_id: int | None) -> Connection | None:
        prefix, _, number = id.rpartition("-")
        if prefix != self._prefix:
            return None
        return next((one for one in self._of(database_id) if str(one.number) == number), None)

    async def connections(self, argument: tuple[int | None, tuple[str, int], int]) -> Report:
        """`(database id or None, place, limit)`: those beyond a place (a prefix and a number), in order of
        their places. `total`: all of them, whatever the place."""
        database_id, after, limit = argument
        found = sorted(self._of(database_id), key=lambda one: one.number)
        later = [one for one in found if (self._prefix, one.number) > after][:limit]
        turn, rows = TimeSlice(), []
        for connection in later:
            rows.append(self._described(connection))
            if turn.is_over():
                await turn.pass_on()
        return {"total": len(found), "connections": rows}

    async def audience(self, database_id: int | None) -> Report:
        """How many there are, and how far the last one is behind."""
        turn = TimeSlice()
        states, transports, databases = Counter[str](), Counter[str](), Counter[str]()
        lag = 0
        for connection in self._of(database_id):
            subscriber = connection.subscriber
            states[subscriber.state.value] += 1
            transports[connection.transport] += 1
            databases[self._name(connection.grant)] += 1
            lag = max(lag, self._head(connection) - subscriber.reached)
            if turn.is_over():
                await turn.pass_on()
        return {
            "live": states[SubscriberState.LIVE.value],
            "catchingUp": states[SubscriberState.CATCHING_UP.value],
            "byTransport": dict(transports),
            "byDatabase": dict(databases),
            "maxLagChanges": lag,
        }

    async def why(self, argument: tuple[str, int | None, int]) -> Report | None:
        """`(connection, database id or None, seq)`: why it did or did not get the change. None: it is not
        here."""
        id, database_id, seq = argument
        connection = self._find(id, database_id)
        if connection is None:
            return None
        subscriber = connection.subscriber
        place = Place(
            self._head(connection),
            self._services.hub.trimmed(connection.grant.database.id),
            subscriber.origin,
            subscriber.reached,
            subscriber.state.value,
            connection.progress()[1],
        )
        return await explain(self._services.store, connection.grant, subscriber.interest, place, seq)

    async def end(self, argument: tuple[str, int | None, bool]) -> Report | None:
        """`(connection, database id or None, whether to close it)`: whose it is. None: it is not here."""
        id, database_id, close = argument
        connection = self._find(id, database_id)
        if connection is None:
            return None
        if close:
            connection.close(CloseCode.RESTARTING, ENDED)
        grant = connection.grant
        return {
            "database": self._name(grant),
            "databaseId": grant.database.id,
            "jti": grant.jti,
            "subject": grant.subject,
        }

    # --- plain data ------------------------------------------------------------------------------

    def _head(self, connection: Connection) -> int:
        return self._services.hub.committed(connection.grant.database.id)

    def _name(self, grant: Grant) -> str:
        """The database's name now: it may have another one since the token was verified."""
        database = self._services.accounts.database(grant.database.id)
        return grant.database.name if database is None else database.name

    def _described(self, connection: Connection) -> Report:
        grant, subscriber = connection.grant, connection.subscriber
        head, reached = self._head(connection), subscriber.reached
        sent, unsent = connection.progress()
        return {
            "id": f"{self._prefix}-{connection.number}",
            "database": self._name(grant),
            "transport": connection.transport,
            "mode": connection.mode,
            "address": connection.address,
            "key": grant.key_id,
            "subject": grant.subject,
            "jti": grant.jti,
            "permissions": ["read", "write"] if any(r.write for r in grant.rules.values()) else ["read"],
            "collections": None if grant.collections is None else sorted(grant.collections),
            "rules": {
                name: {"filter": rule.filter, "select": None if rule.select is None else list(rule.select)}
                for name, rule in grant.rules.items()
                if rule.filter is not None or rule.select is not None
            },
            "expiresAt": None if grant.expires == math.inf else timestamp(grant.expires),
            "follows": [followed(topic) for topic in subscriber.interest],
            "state": subscriber.state.value,
            "since": timestamp(connection.since),
            "seq": reached,
            "head": head,
            "lagChanges": max(0, head - reached),
            "unsentBytes": unsent,
            "sentBytes": sent,
        }
