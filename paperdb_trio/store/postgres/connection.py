"""Connections that a Trio task waits for, and a pool of them: all reads.

Law: event loop only. A read that is cancelled, or takes too long, is cancelled in PostgreSQL, too, and its
connection is used again only when that is done.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Final

import trio
from psycopg.pq import abc

from paperdb_trio.errors import ApiError
from paperdb_trio.logs import SparingLog
from paperdb_trio.measures import Histogram
from paperdb_trio.store.postgres.connecting import SETTINGS, cancel, connect
from paperdb_trio.store.postgres.wire import ConnectionLost, Parameter, Row, ServerError, Statement, Wire
from paperdb_trio.store.refusals import storage_away, storage_failed

log = logging.getLogger("paperdb.store")

GONE_MILLISECONDS: Final = 2000
"""How often PostgreSQL checks that the node is still there while it runs a statement. Otherwise the heavy reads
of a killed node would run to their end. Not for writes: a commit that waits for a standby must go on."""


class Connection:
    """Raises `ServerError` for a statement that was refused, and `ConnectionLost`."""

    def __init__(self, connection: abc.PGconn) -> None:
        self._connection = connection
        self._wire = Wire(connection)
        self.busy = False
        """Whether the results of something that was sent are still to come."""

    @classmethod
    async def open(cls, url: str) -> Connection:
        connection = cls(await trio.to_thread.run_sync(connect, url))
        try:
            await connection.queries(SETTINGS)
            with suppress(ServerError):  # some systems that PostgreSQL runs on cannot tell
                await connection.query(f"SET client_connection_check_interval={GONE_MILLISECONDS}")
        except BaseException:
            connection.close()
            raise
        return connection

    @property
    def backend(self) -> int:
        return self._connection.backend_pid

    @property
    def in_transaction(self) -> bool:
        return self._wire.in_transaction

    def close(self) -> None:
        with suppress(ConnectionLost):
            trio.lowlevel.notify_closing(self._wire.socket)
        self._wire.close()

    async def query(self, sql: str, *parameters: Parameter) -> list[Row]:
        return (await self.queries([(sql, parameters)]))[0]

    async def queries(self, statements: Sequence[Statement]) -> list[list[Row]]:
        """The rows of each, in one round trip."""
        self._wire.send(statements)
        self.busy = True
        return await self.results()

    async def results(self) -> list[list[Row]]:
        """The rest of `queries` that was cancelled."""
        wire = self._wire
        try:
            while (results := wire.step()) is None:
                if wire.unsent:
                    await self._readable_or_writable()
                    wire.flush()
                else:
                    await trio.lowlevel.wait_readable(wire.socket)
                    wire.read()
        except trio.Cancelled:
            raise
        except BaseException:
            self.busy = False
            raise
        self.busy = False
        return results

    async def _readable_or_writable(self) -> None:
        async with trio.open_nursery() as nursery:

            async def first(wait: object) -> None:
                await wait(self._wire.socket)  # type: ignore[operator]
                nursery.cancel_scope.cancel()

            nursery.start_soon(first, trio.lowlevel.wait_readable)
            nursery.start_soon(first, trio.lowlevel.wait_writable)
        self._wire.read()

    async def notifications(self) -> list[str]:
        """The payloads that have come; waits for the first."""
        while not (found := self._wire.notifications()):
            await trio.lowlevel.wait_readable(self._wire.socket)
            self._wire.read()
        return found

    async def stop(self) -> None:
        """Have PostgreSQL stop what it does, and wait until it has."""
        await trio.to_thread.run_sync(cancel, self._connection)
        await self.results()


class Pool:
    """At most `most` connections. Run `run()` in a nursery. A connection is opened when it is needed."""

    def __init__(self, url: str, most: int, timeout: float) -> None:
        self._url = url
        self._timeout = timeout
        self._limiter = trio.CapacityLimiter(most)
        self._idle: list[Connection] = []
        self._stopping: list[Connection] = []
        self._to_stop = trio.Event()
        self._sparing_log = SparingLog(log)
        self.seconds: dict[str, Histogram] = {}
        """By kind, how long reads took, with the wait for a connection."""

    async def run(self) -> None:
        """Stops what was cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                await self._to_stop.wait()
                self._to_stop = trio.Event()
                while self._stopping:
                    nursery.start_soon(self._stop, self._stopping.pop())

    async def _stop(self, connection: Connection) -> None:
        with trio.move_on_after(5) as scope:
            try:
                await connection.stop()
            except ConnectionLost:
                scope.cancel()
            except Exception:  # its query was stopped
                pass
        await self._give_back(connection, usable=not connection.busy and not scope.cancel_called)

    async def _give_back(self, connection: Connection, *, usable: bool) -> None:
        if usable and connection.in_transaction:
            try:
                await connection.query("ROLLBACK")
            except Exception:
                usable = False
        if usable:
            self._idle.append(connection)
        else:
            connection.close()

    def close(self) -> None:
        while self._idle:
            self._idle.pop().close()

    @asynccontextmanager
    async def lease(self, kind: str, timeout: float | None = None) -> AsyncIterator[Connection]:
        """For a read of a kind. Raises a 503 `QUERY_TIMEOUT` or `STORAGE_ERROR`."""
        seconds = self._timeout if timeout is None else timeout
        began = time.perf_counter()
        try:
            with trio.move_on_after(seconds) as scope:
                async with self._limiter, self._lent() as connection:
                    yield connection
        except ConnectionLost:
            raise storage_away("read") from None
        except ServerError as error:
            self._sparing_log.error("a read failed: %s", error)
            raise storage_failed("read") from None
        finally:
            self.seconds.setdefault(kind, Histogram()).observe(time.perf_counter() - began)
        if scope.cancelled_caught:
            raise ApiError(
                503,
                "QUERY_TIMEOUT",
                f"The query took longer than {seconds:g} s and was stopped. Narrow the filter, or page.",
                headers={"Retry-After": "1"},
            )

    @asynccontextmanager
    async def _lent(self) -> AsyncIterator[Connection]:
        connection = self._idle.pop() if self._idle else await Connection.open(self._url)
        lost = False
        try:
            yield connection
        except ConnectionLost:
            lost = True
            raise
        finally:
            if lost:
                connection.close()
                self.close()  # the others are lost, too, or soon will be
            elif connection.busy:
                self._stopping.append(connection)
                self._to_stop.set()
            else:
                with trio.CancelScope(shield=True), trio.move_on_after(1):
                    await self._give_back(connection, usable=True)
