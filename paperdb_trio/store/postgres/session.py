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

from paperdb_trio.store.postgres.connecting import SETTINGS, connect
from paperdb_trio.store.postgres.wire import ConnectionLost, Parameter, Row, ServerError, Statement, Wire

INTERRUPT_SECONDS: Final = 0.1


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
        try:
            self.run(SETTINGS)
        except BaseException:
            self.close()
            raise

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

    def notification(self, seconds: float) -> bool:
        """Whether one comes in that time."""
        deadline = time.monotonic() + seconds
        while not (found := self._wire.notifications()) and time.monotonic() < deadline:
            self._wait(deadline)
        return bool(found)

    def rollback(self) -> None:
        """End the transaction, if there is one. Raises `ConnectionLost`."""
        self._added.clear()
        while self._sent:
            with suppress(ServerError):
                self.receive()
        if self._wire.in_transaction:
            self.run([("ROLLBACK", ())])
