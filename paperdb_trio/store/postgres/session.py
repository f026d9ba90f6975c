"""A connection that waits on its thread: for the writer, the command line and the start.

Law: statements are collected (`add`) and sent with the next one whose rows are needed (`query`), in one round
trip. After an error the session is in a failed transaction until `rollback`.
"""

from __future__ import annotations

import math
import select
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

from psycopg import pq
from psycopg.pq import abc

from paperdb_trio.store.postgres import find as finding
from paperdb_trio.store.postgres.wire import ConnectionLost, Parameter, Row, ServerError, Statement, Wire

OPTIONS: Final = (
    "connect_timeout=3&client_encoding=utf8&fallback_application_name=paperdb&target_session_attrs=read-write"
    "&keepalives_idle=10&keepalives_interval=5&keepalives_count=3&tcp_user_timeout=20000"
)
"""A server that is gone without a word is noticed after 20 s."""
INTERRUPT_SECONDS: Final = 0.1

_SETTINGS: Final = {
    **finding.SESSION,
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "max_parallel_workers_per_gather": "0",
    "client_min_messages": "warning",
    "search_path": "paperdb",
}
"""Each statement has one good plan, whatever was measured of its tables: rows by key, one after the other. With
statistics of an empty table, PostgreSQL would choose scans and hashes: 5,400 documents/s instead of 30,000."""


def connect(url: str) -> abc.PGconn:
    """Blocks. Raises `ConnectionLost`."""
    connection = pq.PGconn.connect(f"{url}{'&' if '?' in url else '?'}{OPTIONS}".encode())
    if connection.status != pq.ConnStatus.OK:
        message = connection.get_error_message()
        connection.finish()
        raise ConnectionLost(message)
    settings = "; ".join([f"SET {name}={value}" for name, value in _SETTINGS.items()])
    result = connection.exec_(settings.encode())
    if result.status != pq.ExecStatus.COMMAND_OK:
        message = result.get_error_message()
        connection.finish()
        raise ConnectionLost(message)
    return connection


class Session:
    """Raises `ServerError` for a statement that was refused, and `ConnectionLost`."""

    def __init__(
        self, url: str, interrupted: Callable[[], bool] = lambda: False, patience: float = math.inf
    ) -> None:
        """Waiting ends with `ConnectionLost` while `interrupted()` is true, and after `patience` seconds: the
        kernel of a server that hangs keeps the connection alive."""
        self._interrupted = interrupted
        self._patience = patience
        self._connection = connect(url)
        self._wire = Wire(self._connection)
        self._poll = select.poll()
        self._added: list[Statement] = []
        self._sent = 0  # groups of statements whose rows have not been received

    @property
    def backend(self) -> int:
        return self._connection.backend_pid

    def close(self) -> None:
        self._wire.close()

    def add(self, sql: str, *parameters: Parameter) -> None:
        """A statement whose rows nobody needs."""
        self._added.append((sql, parameters))

    def query(self, sql: str, *parameters: Parameter) -> list[Row]:
        """The rows of a statement, behind those that were added."""
        return self.run([(sql, parameters)])[0]

    def take(self) -> list[Statement]:
        """What was added, to be sent by `send`."""
        added, self._added = self._added, []
        return added

    def run(self, statements: Sequence[Statement] = ()) -> list[list[Row]]:
        """The rows of these statements, behind those that were added."""
        added = self.take()
        self.send([*added, *statements])
        return self.receive()[len(added) :]

    def send(self, statements: Sequence[Statement]) -> None:
        self._wire.send(statements)
        self._sent += 1

    def receive(self) -> list[list[Row]]:
        """The rows of the oldest statements that were sent."""
        wire = self._wire
        self._sent -= 1
        end = time.monotonic() + self._patience
        while (results := wire.step()) is None:
            self._wait(end)
        return results

    def _wait(self, end: float) -> None:
        wire = self._wire
        self._poll.register(wire.socket, select.POLLIN | (select.POLLOUT if wire.unsent else 0))
        ready = self._poll.poll(INTERRUPT_SECONDS * 1000)
        if not ready and self._interrupted():
            raise ConnectionLost("interrupted")
        if not ready and time.monotonic() > end:
            raise ConnectionLost(f"no response for {self._patience:g} s")
        events = ready[0][1] if ready else 0
        if events & ~select.POLLOUT:
            wire.read()
        if wire.unsent:
            wire.flush()

    def rollback(self) -> None:
        """End the transaction, if there is one. Raises `ConnectionLost`."""
        self._added.clear()
        while self._sent:
            with suppress(ServerError):
                self.receive()
        if self._wire.in_transaction:
            self.run([("ROLLBACK", ())])
