"""The parent of workers: it forks the process that writes and the workers, and starts what dies again.

Law: no event loop and no thread, so that it can fork at any time; it opens no database. A child ends when its
parent does, however that happens, so that nothing is ever left running. When the process that writes dies, all
start anew; only a start that fails of itself, rather than by a signal or a lack of memory or files, ends the
server.
"""

from __future__ import annotations

import ctypes
import logging
import math
import os
import select
import signal
import socket
import ssl
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Final

import trio

from paperdb_trio.client.groups import leaves
from paperdb_trio.config import Settings
from paperdb_trio.doors.listener import listen
from paperdb_trio.errors import StartupError
from paperdb_trio.files import EXIT_FAILED
from paperdb_trio.limits import Limits
from paperdb_trio.net.tls import tls_context
from paperdb_trio.server.board import Board
from paperdb_trio.server.remote import StartAgainError
from paperdb_trio.server.serving import finish, raise_file_limit, serve, serve_as_worker, url_of
from paperdb_trio.server.share import Passage, share
from paperdb_trio.server.writing import write

log = logging.getLogger("paperdb")

GRACE: Final = 2.0
"""Seconds beyond the drain time within which a child must end."""
FIRST_PAUSE: Final = 0.1
LAST_PAUSE: Final = 5.0
"""Seconds before a child that died is started again: the first time, and when it keeps dying."""
CALM: Final = 30.0
"""Seconds after which a child counts as healthy."""
KEYS: Final = 10_000
"""Keys whose requests are counted for all workers."""
_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_NAME: Final = 15


_Main = Callable[[Callable[[], object]], None]
"""What a child runs. It calls its argument when it is ready."""


@dataclass(eq=False)
class _Child:
    """`pipe`: says that it is ready, and ends when it does. `tls`: what it began with."""

    name: str
    pid: int
    pipe: int
    tls: ssl.SSLContext | None
    started: float = field(default_factory=time.monotonic)
    ready: bool = False


class _Stopped(Exception):
    """A signal asks the server to stop."""


def run(settings: Settings, file: Path, announce: Callable[[str], None]) -> None:
    """Serve the database in `file` until SIGTERM or SIGINT, by as many processes as the settings say."""
    if settings.worker_count > 1:
        supervise(settings, file, announce)
    else:
        trio.run(serve, settings, file, announce)


def supervise(settings: Settings, file: Path, announce: Callable[[str], None]) -> None:
    """Serve the database in `file` by several processes until SIGTERM or SIGINT, and drain.

    `announce(url)` is called once connections are accepted. Raises `StartupError` and `SystemExit` before that.
    """
    raise_file_limit(settings)
    Limits(settings)
    tls = tls_context(settings)
    with ExitStack() as stack:
        listen(settings.host, settings.port).close()  # a shared one would not notice another server
        listeners: list[socket.socket] = []
        for _ in range(settings.worker_count):
            port = listeners[0].getsockname()[1] if listeners else settings.port
            listeners.append(listen(settings.host, port, shared=True))
            stack.callback(listeners[-1].close)
        supervisor = _Supervisor(settings, file, listeners, tls)
        stack.callback(lambda: finish(file, supervisor.ends_at - time.monotonic()))
        stack.enter_context(_waking(supervisor.signals))
        supervisor.run(lambda: announce(url_of(listeners[0], settings)))
    log.info("stopped")


class _waking:
    """Signals arrive as bytes at a socket."""

    def __init__(self, signals: socket.socket) -> None:
        self._signals = signals

    def __enter__(self) -> None:
        self._handlers = {number: signal.signal(number, lambda *_: None) for number in _SIGNALS}
        self._before = signal.set_wakeup_fd(self._signals.fileno(), warn_on_full_buffer=False)

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(self._before)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)


class _Supervisor:
    """`tls`: for the workers. A certificate that cannot be used when they start again is of no consequence."""

    def __init__(
        self, settings: Settings, file: Path, listeners: list[socket.socket], tls: ssl.SSLContext | None
    ) -> None:
        self._settings = replace(settings, cache_bytes=settings.cache_bytes // len(listeners))
        self._file = file
        self._listeners = listeners
        self._tls = tls
        self._children: dict[int, _Child] = {}  # by pipe
        self._board: Board  # anew at each start of all
        self._passages: list[Passage] = []  # as well
        self._control: socket.socket | None = None
        self._wakened, self.signals = socket.socketpair()
        self._wakened.setblocking(False)
        self.signals.setblocking(False)
        self._due: dict[int, float] = {}  # workers that wait for their next start
        self._pauses: dict[str, float] = {}
        self.ends_at = float("inf")

    def run(self, announce: Callable[[], None]) -> None:
        announced = False
        try:
            while True:
                try:
                    self._start_all()
                except (OSError, SystemExit) as error:
                    if (cause := _passing(error)) is None:
                        raise
                    if not announced:
                        raise StartupError(f"Cannot start a process: {cause}", EXIT_FAILED) from None
                    log.error("cannot start all processes anew: %s", cause)  # noqa: TRY400 - no traceback
                    self._kill_all()
                else:
                    if not announced:
                        announced = True
                        announce()
                    self._watch()
                _readable([self._wakened.fileno()], self._pause("writer"))  # a signal ends it
        except _Stopped:
            self._drain()
        finally:
            self._kill_all()

    # --- start -----------------------------------------------------------------------------------

    def _start_all(self) -> None:
        """Start the process that writes, then all workers; returns when they are ready."""
        if self._control is not None:
            self._control.close()
        for passage in self._passages:
            passage.close()
        self._passages = [Passage() for _ in self._listeners]
        self._board = Board(len(self._listeners), 4 * self._settings.max_connections + KEYS)
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            writing = partial(write, self._settings, self._file, self._board, theirs)
            self._fork("writer", lambda ready: trio.run(writing, ready))
        self._until_ready()
        for worker in range(len(self._listeners)):
            self._start_worker(worker)
        self._until_ready()

    def _start_worker(self, worker: int) -> None:
        assert self._control is not None
        if self._due.pop(worker, None) is not None:  # it died; a new board takes no memory until it is written
            self._board.forget(worker)
        ours, theirs = socket.socketpair()
        with ours, theirs:
            name = f"worker-{worker + 1}"
            listeners = share(self._listeners[worker], self._board, worker, self._passages)
            given = self._file, self._board, worker, listeners, theirs
            serve = partial(serve_as_worker, self._settings, self._tls, *given)

            def main(ready: Callable[[], object]) -> None:
                ours.close()  # so that the link ends when the writer does
                trio.run(serve, ready)

            self._fork(name, main)
            with suppress(OSError):  # it has died: so this worker will
                socket.send_fds(self._control, [name.encode()], [ours.fileno()])

    def _fork(self, name: str, main: _Main) -> None:
        """Start a child that runs `main(ready)`. Raises OSError."""
        ours, theirs = os.pipe2(os.O_CLOEXEC)
        sys.stdout.flush()
        sys.stderr.flush()
        parent = os.getpid()
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)  # until a child has handlers of its own
        pid = -1
        try:
            pid = os.fork()
        finally:
            if pid:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
                os.close(theirs)
            if pid < 0:
                os.close(ours)
        if pid:
            self._children[ours] = _Child(name, pid, ours, self._tls)
            return
        status = EXIT_FAILED
        try:
            self._become_child(name, parent, ours)
            status = _status(main, lambda: os.write(theirs, b"r"))
        finally:
            logging.shutdown()
            with suppress(OSError):
                sys.stdout.flush()
            os._exit(status)

    def _become_child(self, name: str, parent: int, pipe: int) -> None:
        signal.set_wakeup_fd(-1)
        for number in _SIGNALS:
            ignored = name == "writer" or number != signal.SIGTERM
            signal.signal(number, signal.SIG_IGN if ignored else signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        prctl = ctypes.CDLL(None).prctl
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        prctl(_PR_SET_NAME, f"paperdb-{name.removeprefix('worker-')}".encode())
        if os.getppid() != parent:
            os._exit(EXIT_FAILED)
        os.close(pipe)
        for child in self._children.values():
            os.close(child.pipe)
        for listener in self._listeners:
            if f"worker-{self._listeners.index(listener) + 1}" != name:
                listener.close()
        self._wakened.close()
        self.signals.close()
        if self._control is not None:
            self._control.close()

    # --- watch -----------------------------------------------------------------------------------

    def _until_ready(self) -> None:
        """Raises `SystemExit` with a child's status if it ends before; a killed worker is started again."""
        while not all(child.ready for child in self._children.values()):
            for child, status in self._wait(None):
                if child.name == "writer" or not (child.ready or status < 0):
                    raise SystemExit(status or EXIT_FAILED)
                self._start_again(child, status)

    def _watch(self) -> None:
        """Start workers that die again. Returns, with all children dead, when the process that writes dies."""
        while True:
            due = min(self._due.values(), default=None)
            for child, status in self._wait(None if due is None else max(due - time.monotonic(), 0.0)):
                if child.name == "writer":
                    log.error("writer died (%s)", _cause(status))
                    self._kill_all()
                    return
                self._start_again(child, status)
            for worker in [worker for worker, at in self._due.items() if at <= time.monotonic()]:
                try:
                    self._start_worker(worker)
                except OSError as error:  # there is no memory, say: the others serve on
                    log.error("cannot start worker-%d: %s", worker + 1, error.strerror)  # noqa: TRY400
                    self._due[worker] = time.monotonic() + self._pause(f"worker-{worker + 1}")

    def _start_again(self, child: _Child, status: int) -> None:
        """Start a worker that died again, after a pause."""
        log.error("%s died (%s)", child.name, _cause(status))
        self._due[int(child.name.partition("-")[2]) - 1] = time.monotonic() + self._pause(child.name)

    def _pause(self, name: str) -> float:
        """Seconds until the next start of a child that died: longer each time, unless it had lived for long."""
        pause = self._pauses.get(name, FIRST_PAUSE)
        self._pauses[name] = min(2 * pause, LAST_PAUSE)
        return pause

    def _wait(self, seconds: float | None, *, signals: bool = True) -> list[tuple[_Child, int]]:
        """The children that ended, with their status, after some time. With `signals`, raises `_Stopped`."""
        wakened = self._wakened.fileno()
        ended = []
        for pipe in _readable([*([wakened] if signals else []), *self._children], seconds):
            if pipe == wakened:
                self._take_signals()
                continue
            child = self._children[pipe]
            if os.read(pipe, 1):
                child.ready = True
                if child.tls is not self._tls:
                    os.kill(child.pid, signal.SIGHUP)
                continue
            del self._children[pipe]
            os.close(pipe)
            ended.append((child, os.waitstatus_to_exitcode(os.waitpid(child.pid, 0)[1])))
            if time.monotonic() - child.started > CALM:
                self._pauses.pop(child.name, None)
        return ended

    def _take_signals(self) -> None:
        numbers = self._wakened.recv(1024)
        if signal.SIGTERM in numbers or signal.SIGINT in numbers:
            raise _Stopped
        try:
            self._tls = tls_context(self._settings)
        except StartupError as error:
            log.error("SIGHUP: kept the old certificate: %s", error)  # noqa: TRY400 - no traceback
            return
        for child in self._children.values():
            if child.ready and child.name != "writer":
                os.kill(child.pid, signal.SIGHUP)

    # --- stop ------------------------------------------------------------------------------------

    def _drain(self) -> None:
        """Let the workers finish, then the process that writes."""
        self.ends_at = time.monotonic() + self._settings.drain_timeout
        for listener in self._listeners:
            listener.close()
        for child in self._children.values():
            if child.name != "writer":
                os.kill(child.pid, signal.SIGTERM)
        self._wait_for("worker")
        if self._control is not None:
            self._control.close()
        self._wait_for("writer")

    def _wait_for(self, group: str) -> None:
        while any(child.name.startswith(group) for child in self._children.values()):
            left = self.ends_at + GRACE - time.monotonic()
            if left <= 0:
                log.error("processes that did not end in time are killed")
                break
            for child, status in self._wait(left, signals=False):
                if status:
                    log.error("%s died (%s)", child.name, _cause(status))

    def _kill_all(self) -> None:
        for child in self._children.values():
            os.kill(child.pid, signal.SIGKILL)
        while self._children:
            self._wait(None, signals=False)  # a stop is for what comes next
        self._due.clear()


def _readable(files: Iterable[int], seconds: float | None) -> list[int]:
    """Those that can be read, at the latest after some time. `select.select` refuses numbers from 1,024."""
    poll = select.poll()
    for file in files:
        poll.register(file, select.POLLIN)
    return [file for file, _ in poll.poll(None if seconds is None else math.ceil(1000 * seconds))]


def _status(main: _Main, ready: Callable[[], object]) -> int:
    """Run a child; returns its exit status."""
    status = 0
    try:
        main(ready)
    except* StartupError as group:
        error = next(leaves(group))
        assert isinstance(error, StartupError)
        print(f"paperdb: {error}", file=sys.stderr, flush=True)
        status = error.exit_code
    except* KeyboardInterrupt:
        pass
    except* StartAgainError as group:
        log.error("%s", next(leaves(group)))  # noqa: TRY400 - no traceback
        status = EXIT_FAILED
    except* Exception as group:
        log.critical("the process failed", exc_info=group)
        status = EXIT_FAILED
    return status


def _passing(error: OSError | SystemExit) -> str | None:
    """Why a start failed, if the next one may succeed: a lack of memory or files, or a signal."""
    if isinstance(error, OSError):
        return error.strerror
    return f"it died ({_cause(error.code)})" if isinstance(error.code, int) and error.code < 0 else None


def _cause(status: int) -> str:
    return f"signal {-status}" if status < 0 else f"exit code {status}"
