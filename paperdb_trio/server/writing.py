"""The process that writes for all workers: the writer, the background work, and its chores.

Law: it serves no client. It tells every worker of a commit before any of them can acknowledge it.
"""

from __future__ import annotations

import errno
import logging
import os
import pickle
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any, Final

import outcome
import trio

from paperdb_trio import import_socket
from paperdb_trio.config import Settings
from paperdb_trio.loop.delay import LoopDelay
from paperdb_trio.loop.tick import tick
from paperdb_trio.measures import Family
from paperdb_trio.model import Change
from paperdb_trio.rest.metrics import of_process
from paperdb_trio.server.board import HOLD_STEP, Board, WriterGate
from paperdb_trio.server.chores import Chores
from paperdb_trio.server.link import REPORT_SECONDS, Kind, Link, Questions, Reports, report_of
from paperdb_trio.server.remote import decode_operations, encode_message
from paperdb_trio.store.refusals import internal
from paperdb_trio.store.sqlite.durability import recover
from paperdb_trio.store.sqlite.engine import SqliteStore
from paperdb_trio.store.sqlite.file import prepare

log = logging.getLogger("paperdb.writer")

MAX_UNSENT: Final = 8 * 1024 * 1024
"""Bytes that wait for one worker. Beyond this, it is told heads, and reads the changes from the log."""

NAME: Final = "writer"


class _Worker:
    """The writer's end of one link."""

    def __init__(self, name: str, sock: socket.socket, writing: Writing) -> None:
        self.name = name
        self.link = Link(sock, self._handle)
        self.link.on_drained = self._tell_heads
        self.questions = Questions(self.link)
        self._writing = writing
        self._results: list[tuple[int, bool, Any]] = []
        self._behind: set[int] = set()
        self._nursery: trio.Nursery | None = None

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            await self.link.run()
            nursery.cancel_scope.cancel()

    def tell(self, heads: dict[int, int], message: bytes) -> None:
        unsent = self.link.unsent_bytes
        if not self._behind and unsent <= MAX_UNSENT:
            self.link.hold(Kind.CHANGES, message)  # until its results
            return
        self._behind.update(heads)
        if unsent < MAX_UNSENT // 4:
            self._tell_heads()

    def _tell_heads(self) -> None:
        if self._behind:
            behind, self._behind = self._behind, set()
            heads = {database_id: self._writing.heads[database_id] for database_id in behind}
            self.link.send_object(Kind.HEADS, (self._writing.board.marks(), heads))

    async def _handle(self, kind: Kind, payload: bytes) -> None:
        if kind is Kind.OPERATIONS:
            for number, text in decode_operations(payload):
                self._post(number, text)
            self.send_results()  # of those that were refused at once
        elif kind is Kind.DROPS_LEFT:
            self._writing.store.drops_left = True
        elif kind is Kind.ASK:
            assert self._nursery is not None
            self._nursery.start_soon(self._gather, *pickle.loads(payload))
        elif kind is Kind.REPLY:
            self.questions.replied(*pickle.loads(payload))

    def _post(self, number: int, text: bytes) -> None:
        try:
            operation = pickle.loads(text)
        except Exception:
            log.exception("an operation cannot be read")
            self._done(number, outcome.Error(internal()))
            self.send_results()
        else:
            self._writing.store.writer.post(operation, partial(self._done, number))

    def _done(self, number: int, result: Any) -> None:
        """The results of one commit go in one message, after its changes."""
        good = isinstance(result, outcome.Value)
        self._results.append((number, good, result.value if good else result.error))

    def send_results(self) -> None:
        if self._results:
            results, self._results = self._results, []
            self._writing.tell_full()
            self.link.send_object(Kind.RESULTS, results)
        else:
            self.link.release()

    async def _gather(self, number: int, name: str, argument: Any) -> None:
        self.link.send_object(Kind.REPLY, (number, await self._writing.gather(name, argument)))


class Writing:
    """`reports`: what this process says of itself."""

    def __init__(self, settings: Settings, file: Path, board: Board) -> None:
        gate = WriterGate(board)
        self.board = board
        self.store = SqliteStore(file, settings, self._on_commit, self._on_trimmed, gate)
        self.store.writer.on_delivered = self._send_results
        self.chores = Chores(settings, file, self.store)
        self.heads = {database_id: head for database_id, (head, _) in self.store.bounds().items()}
        self.reports: Reports = {"metrics": self._measures, **self.chores.reports}
        self._started = time.time()
        self._delay = LoopDelay()
        self._workers: set[_Worker] = set()
        self._gate = gate
        self._closed = trio.Event()
        self._gone = False

    async def run(self, control: socket.socket) -> None:
        """Serve the workers whose sockets arrive at `control`, until its other end closes."""
        token = trio.lowlevel.current_trio_token()
        self._gate.on_closed = lambda: token.run_sync_soon(lambda: self._closed.set())
        control.setblocking(False)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch_gate)
            nursery.start_soon(self._delay.run)
            while True:
                await trio.lowlevel.wait_readable(control)
                name, files, _, _ = socket.recv_fds(control, 64, 1)
                if not name:
                    self.store.stop()
                    return
                if not files:  # the worker finds its link closed, and is started again
                    log.error("cannot serve %s: %s", name.decode(), os.strerror(errno.EMFILE))
                    continue
                nursery.start_soon(self._serve, name.decode(), socket.socket(fileno=files[0]))

    async def _serve(self, name: str, sock: socket.socket) -> None:
        with sock:
            worker = _Worker(name, sock, self)
            # Nothing else runs between these: each commit is in the greeting, or will be told.
            worker.link.send_object(Kind.HELLO, self.board.marks())
            self._workers.add(worker)
            try:
                await worker.run()
            finally:
                self._workers.discard(worker)

    def _on_commit(self, changes: list[Change]) -> None:
        heads = {change.database_id: change.seq for change in changes}
        self.heads.update(heads)
        self.chores.committed(changes)
        self.board.tell_counts(self.store.commits, self.store.operations)
        marks = self.board.commit(heads)
        if self._workers:
            message = encode_message((marks, changes))
            for worker in self._workers:
                worker.tell(heads, message)

    def _send_results(self) -> None:
        for worker in self._workers:
            worker.send_results()

    def _on_trimmed(self, database_id: int, trimmed: int) -> None:
        for worker in self._workers:
            worker.link.send_object(Kind.TRIMMED, (database_id, trimmed))

    async def _watch_gate(self) -> None:
        while True:
            await self._closed.wait()
            self._closed = trio.Event()
            while self._gate.look():
                await trio.sleep(HOLD_STEP)

    def tell_full(self) -> None:
        """Tell workers whether the disk is full, before a write that found out is answered."""
        self.board.tell_state(full=self.store.full, gone=self._gone)

    async def tell_state(self) -> None:
        """Tell workers how the store is. Not before it runs: it would be said to be gone."""
        while True:
            self._gone = self.store.fault() == "gone"
            self.tell_full()
            self.board.beat()
            await tick()

    async def _measures(self, of_each: bool) -> list[Family]:
        found = [*of_process(self._started, self._delay), *self.store.measures(), *self.chores.measures()]
        return [*found, *await self.store.sizes()] if of_each else found

    async def gather(self, name: str, argument: Any) -> list[tuple[str, Any]]:
        """The reports of all processes that respond in time."""
        found: list[tuple[str, Any]] = []

        async def of(worker: _Worker) -> None:
            with trio.move_on_after(REPORT_SECONDS):
                found.append((worker.name, await worker.questions.ask(name, argument)))

        async with trio.open_nursery() as nursery:
            found.append((NAME, await report_of(self.reports, name, argument)))
            for worker in tuple(self._workers):
                nursery.start_soon(of, worker)
        return sorted(((name, said) for name, said in found if said is not None), key=itemgetter(0))


async def write(
    settings: Settings, file: Path, board: Board, control: socket.socket, ready: Callable[[], None]
) -> None:
    """Write for workers until the other end of `control` closes. `ready()` is called when they may start.

    Signals do not end it: a service manager sends them to all processes at once, and workers still drain.
    """
    prepare(file.parent, create=False, verify=False, urgent=True)  # much may have happened since the last start
    recover(file)
    with ExitStack() as stack:
        writing = Writing(settings, file, board)
        store = writing.store
        stack.callback(store.close)
        imports = stack.enter_context(import_socket.listening(file.parent))
        async with trio.open_nursery() as core:
            core.start_soon(writing.run, control)
            await core.start(store.run)
            core.start_soon(writing.tell_state)
            core.start_soon(writing.chores.run, imports)
            ready()
            await store.closed.wait()
            core.cancel_scope.cancel()
