"""The store as a worker sees it: it reads the file itself, and sends its writes to the process that writes.

Law: a commit is applied here before its writer is told the result, and after that of the commit before it. A
worker that was told only of heads reads the changes from the log.
"""

from __future__ import annotations

import logging
import math
import pickle
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
import outcome
import trio

from paperdb_trio.config import Settings
from paperdb_trio.errors import ApiError
from paperdb_trio.logs import SparingLog
from paperdb_trio.loop.tick import tick
from paperdb_trio.measures import Family
from paperdb_trio.model import Change
from paperdb_trio.server.board import MARKS, Board, WorkerGate
from paperdb_trio.server.link import (
    REPORT_SECONDS,
    Kind,
    Link,
    Questions,
    Reports,
    receive_first,
    report_of,
)
from paperdb_trio.store.operations import Operation
from paperdb_trio.store.protocol import Fault
from paperdb_trio.store.refusals import database_gone, shutting_down, storage_hangs, storage_unknown
from paperdb_trio.store.sqlite.engine import SqliteReads
from paperdb_trio.store.sqlite.place import Place

log = logging.getLogger("paperdb.worker")
sparing_log = SparingLog(log)

Result = TypeVar("Result")

HELLO_SECONDS: Final = 30.0
ROWS: Final = 2000
"""Changes that are read from the log at once."""
LOOK_SECONDS: Final = 0.5
LOOKS: Final = 10
"""After so many looks without a sign of life, the process that writes hangs. It shows one four times a second.
Looks are counted, not seconds, because this process may have been stopped, too."""

decode_changes = msgspec.msgpack.Decoder(tuple[dict[int, int], list[Change]]).decode
decode_operations = msgspec.msgpack.Decoder(list[tuple[int, bytes]]).decode
encode_message = msgspec.msgpack.Encoder().encode


class StartAgainError(Exception):
    """Only a new start of this worker helps."""


class WorkerStore(SqliteReads):
    """A `Store`. `reports` are what other processes may ask this one for."""

    def __init__(
        self,
        file: Path,
        settings: Settings,
        board: Board,
        worker: int,
        sock: socket.socket,
        on_commit: Callable[[list[Change]], None],
        on_trimmed: Callable[[int, int], None],
    ) -> None:
        try:
            kind, payload = receive_first(sock, HELLO_SECONDS)
        except OSError:
            raise StartAgainError("the process that writes did not respond") from None
        assert kind is Kind.HELLO
        super().__init__(file, settings, WorkerGate(board, worker))
        # Read after the greeting, so that each commit is in the file by now, or will be told.
        self._marks: dict[int, int] = pickle.loads(payload)
        self._heads = {database_id: head for database_id, (head, _) in self.bounds().items()}
        self._board = board
        self._name = f"worker-{worker + 1}"
        self._place = Place(file)
        self._on_commit = on_commit
        self._on_trimmed = on_trimmed
        self._link = Link(sock, self._handle)
        self._questions = Questions(self._link)
        self._sending: list[tuple[int, bytes]] = []
        self._parked: trio.lowlevel.Task | None = None
        self._waiting: dict[int, trio.lowlevel.Task] = {}
        self._number = 0
        self._moved = trio.Event()
        self._stopped = False
        self._hangs = False
        self._nursery: trio.Nursery | None = None
        self.reports: Reports = {}
        self.closed = trio.Event()

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._send_operations)
            nursery.start_soon(self.advise, self)
            nursery.start_soon(self._ended_by_writer)
            nursery.start_soon(self._watch_writer)
            task_status.started()
            await self.closed.wait()
            nursery.cancel_scope.cancel()

    async def sizes(self) -> list[Family]:
        """The process that writes tells them."""
        return []

    async def _ended_by_writer(self) -> None:
        await self._link.run()
        if not self._stopped:
            self.stop()
            raise StartAgainError("the process that writes has ended")

    async def _watch_writer(self) -> None:
        """Let no write wait for a process that hangs."""
        seen, looks = self._board.beats, 0
        while True:
            await tick(LOOK_SECONDS)
            beats = self._board.beats
            looks = looks + 1 if beats == seen else 0
            seen = beats
            if self._hangs != (looks >= LOOKS):
                self._hangs = looks >= LOOKS
                if self._hangs:
                    log.error("the process that writes has not responded for %g s", LOOKS * LOOK_SECONDS)
                    self._refuse(storage_hangs())
                else:
                    log.info("the process that writes responds again")

    def stop(self) -> None:
        self._stopped = True
        self._refuse(shutting_down())
        self.closed.set()

    def _refuse(self, error: ApiError) -> None:
        """Let no write wait any more. `error` is for those that have not been sent."""
        unsent = {number for number, _ in self._sending}
        self._sending.clear()
        waiting, self._waiting = self._waiting, {}
        for number, task in waiting.items():
            refusal = error if number in unsent else storage_unknown()
            trio.lowlevel.reschedule(task, outcome.Error(refusal))

    # --- writes ----------------------------------------------------------------------------------

    async def submit(self, operation: Operation[Result]) -> Result:
        if self._stopped:
            raise shutting_down()
        if self._hangs:
            raise storage_hangs()
        self._number += 1
        number = self._number
        self._sending.append((number, pickle.dumps(operation, pickle.HIGHEST_PROTOCOL)))
        self._waiting[number] = trio.lowlevel.current_task()
        if self._parked is not None:
            task, self._parked = self._parked, None
            trio.lowlevel.reschedule(task)

        def abandon(_: Any) -> trio.lowlevel.Abort:
            self._waiting.pop(number, None)
            return trio.lowlevel.Abort.SUCCEEDED

        result: Result = await trio.lowlevel.wait_task_rescheduled(abandon)
        return result

    async def _send_operations(self) -> None:
        """Send what was submitted during one turn of the event loop in one message."""

        def unpark(_: Any) -> trio.lowlevel.Abort:
            self._parked = None
            return trio.lowlevel.Abort.SUCCEEDED

        while True:
            if self._sending:
                sending, self._sending = self._sending, []
                self._link.send(Kind.OPERATIONS, encode_message(sending))
            self._parked = trio.lowlevel.current_task()
            await trio.lowlevel.wait_task_rescheduled(unpark)

    # --- what the writer tells -------------------------------------------------------------------

    async def _handle(self, kind: Kind, payload: bytes) -> None:
        if kind is Kind.CHANGES:
            marks, changes = decode_changes(payload)
            await self._apply(changes)
            self._move(marks)
        elif kind is Kind.RESULTS:
            for number, good, value in pickle.loads(payload):
                task = self._waiting.pop(number, None)
                if task is not None:
                    trio.lowlevel.reschedule(task, outcome.Value(value) if good else outcome.Error(value))
        elif kind is Kind.HEADS:
            marks, heads = pickle.loads(payload)
            for database_id, head in heads.items():
                await self._read_up_to(database_id, head)
            self._move(marks)
        elif kind is Kind.TRIMMED:
            self._on_trimmed(*pickle.loads(payload))
        elif kind is Kind.ASK:
            assert self._nursery is not None
            self._nursery.start_soon(self._report, *pickle.loads(payload))
        elif kind is Kind.REPLY:
            self._questions.replied(*pickle.loads(payload))

    async def _apply(self, changes: list[Change]) -> None:
        heads, new = self._heads, changes
        for index, change in enumerate(changes):
            head = heads.get(change.database_id, 0)
            if change.seq == head + 1:
                heads[change.database_id] = change.seq
                if new is not changes:
                    new.append(change)
                continue
            if new is changes:
                new = changes[:index]
            if change.seq > head:
                if new:
                    self._on_commit(new)
                new = []
                await self._read_up_to(change.database_id, change.seq)
        if new:
            self._on_commit(new)

    async def _read_up_to(self, database_id: int, head: int) -> None:
        """Publish changes from the log, up to that seq."""
        rows = ROWS
        while (position := self._heads.get(database_id, 0)) < head:
            found: list[Change] = []

            def keep(change: Change, found: list[Change] = found) -> list[bytes]:
                found.append(change)
                return [change.data]

            try:
                page = await self.page(database_id, position, {None: 0}, keep, rows)
            except ApiError as error:
                if error.code == database_gone().code:
                    return  # deleted since: its subscribers end when this process looks at the accounts
                if error.code != "QUERY_TIMEOUT":
                    raise
                rows = max(1, rows // 2)
                sparing_log.warning("reading the change log took too long; trying again with %d changes", rows)
                continue
            if page.expired:
                raise StartAgainError("too slow for the change log: clients resume, or get a gap")
            found = [change for change in found if change.seq <= page.position]
            self._heads[database_id] = page.position
            self._on_commit(found)

    def _move(self, marks: dict[int, int]) -> None:
        self._marks.update(marks)
        moved, self._moved = self._moved, trio.Event()
        moved.set()

    def is_current(self, database_id: int) -> bool:
        cell = database_id % MARKS
        return self._marks.get(cell, 0) == self._board.mark(cell)

    async def current(self, database_id: int) -> None:
        cell = database_id % MARKS
        wanted = self._board.mark(cell)
        while self._marks.get(cell, 0) < wanted:
            await self._moved.wait()

    # --- the rest --------------------------------------------------------------------------------

    async def gather(self, name: str, argument: Any = None) -> list[tuple[str, Any]]:
        """The reports of all processes, each with its name. Those that do not respond in time are left out: all
        but this one, if the process that writes hangs. Raises the `ApiError` of one that could not report."""
        found: list[tuple[str, Any]] = []
        seconds = 2 * REPORT_SECONDS if name in self.reports else math.inf  # else only the writer can report
        with trio.move_on_after(seconds) as scope:
            found = await self._questions.ask(name, argument)
        if scope.cancelled_caught:
            found = [(self._name, await report_of(self.reports, name, argument))]
        for _, report in found:
            if isinstance(report, ApiError):
                raise report
        return found

    async def _report(self, number: int, name: str, argument: Any) -> None:
        self._link.send_object(Kind.REPLY, (number, await report_of(self.reports, name, argument)))

    @property
    def commits(self) -> int:
        return self._board.commits

    @property
    def operations(self) -> int:
        return self._board.operations

    @property
    def full(self) -> bool:
        return self._board.full

    def fault(self) -> Fault | None:
        if self._hangs:
            return "hangs"
        return "gone" if self._board.gone else self._place.fault()

    @property
    def drops_left(self) -> bool:
        """The process that writes knows."""
        return False

    @drops_left.setter
    def drops_left(self, left: bool) -> None:
        if left:
            self._link.send(Kind.DROPS_LEFT, b"")
