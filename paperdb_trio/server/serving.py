"""The nursery tree of `paperdb serve`: what runs, the order of its start, and how it stops.

Law: every task has its nursery here or below. A failure of the writer, the hub or the keeper ends the
process; a failure of a connection ends that connection only.
"""

from __future__ import annotations

import gc
import logging
import math
import resource
import signal
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import trio

from paperdb_trio import import_socket
from paperdb_trio.auth.accounts import Accounts
from paperdb_trio.config import Settings
from paperdb_trio.delivery.hub import Hub
from paperdb_trio.doors.hypercorn import HypercornConnections
from paperdb_trio.doors.listener import Door, Listener, listen
from paperdb_trio.errors import ApiError, StartupError
from paperdb_trio.exchanges import Exchanges
from paperdb_trio.limits import Limits
from paperdb_trio.logs import SparingLog
from paperdb_trio.loop.tick import tick
from paperdb_trio.loop.wheel import Wheel
from paperdb_trio.match.matcher import MatcherLimits
from paperdb_trio.model import Change
from paperdb_trio.net.tls import tls_context
from paperdb_trio.realtime.gateway import Gateway
from paperdb_trio.realtime.inspector import Inspector
from paperdb_trio.rest.admin_health import report as health_report
from paperdb_trio.rest.metrics import families
from paperdb_trio.server.board import Board, WorkerCounts
from paperdb_trio.server.chores import Chores
from paperdb_trio.server.remote import WorkerStore
from paperdb_trio.server.starting import started
from paperdb_trio.services import Services
from paperdb_trio.store.cache import DocumentCache
from paperdb_trio.store.housekeeping import KeepUsedKeys
from paperdb_trio.store.protocol import Store
from paperdb_trio.store.sqlite import library as sqlite
from paperdb_trio.store.sqlite.durability import recover, settle
from paperdb_trio.store.sqlite.engine import SqliteStore
from paperdb_trio.store.sqlite.file import BUSY_SECONDS, checkpoint
from paperdb_trio.web.assets import load as load_assets

log = logging.getLogger("paperdb")
sparing_log = SparingLog(log)

USED_SECONDS: Final = 60.0
"""Between two notes in the file of when keys were used."""
LAST_WORDS: Final = 0.5
"""The end of the drain time, when requests that still wait for the disk are refused, to send the refusal."""
MIN_FILES: Final = 64
"""Open files: a server without connections has some 30."""
MIN_CHECKPOINT_SECONDS: Final = 0.25
"""For the final checkpoint of the write-ahead log, even when the drain time is over."""


async def serve(settings: Settings, file: Path, announce: Callable[[str], None]) -> None:
    """Serve the database in `file`, as the only process, until SIGTERM or SIGINT, and drain.

    `announce(url)` is called once connections are accepted. Raises `StartupError` before that, and later the
    failure of the writer or the hub.
    """
    raise_file_limit(settings)
    limits = Limits(settings)
    listener = listen(settings.host, settings.port)
    with ExitStack() as stack:
        stack.callback(listener.close)
        ends = Ends()
        stack.callback(lambda: finish(file, ends.at - trio.current_time()))
        recover(file)
        imports = stack.enter_context(import_socket.listening(file.parent))

        make_store, beside = _with_chores(
            settings,
            file,
            lambda committed, hub: SqliteStore(file, settings, committed, hub.set_trimmed),
            imports,
        )
        tls, ready = tls_context(settings), partial(announce, url_of(listener, settings))
        await _serve(settings, tls, [listener], limits, make_store, ready, ends, beside)


def _with_chores(
    settings: Settings,
    file: Path | None,
    make: MakeStore,
    imports: socket.socket | None = None,
) -> tuple[MakeStore, Callable[[Services], Awaitable[None]]]:
    """How to make the store, and what to run beside the server, of a process that does all."""
    made: list[Chores] = []

    def make_store(on_commit: OnCommit, hub: Hub) -> Store:
        def committed(changes: list[Change]) -> None:
            on_commit(changes)
            chores.committed(changes)

        store = make(committed, hub)
        chores = Chores(settings, file, store)
        made.append(chores)
        return store

    async def beside(services: Services) -> None:
        (chores,) = made
        services.reports |= chores.reports
        services.more_measures = chores.measures
        await chores.run(imports)

    return make_store, beside


async def serve_node(settings: Settings, announce: Callable[[str], None]) -> None:
    """Serve the PostgreSQL database `settings.store`, which other nodes may serve, too. Otherwise as
    `serve`."""
    from paperdb_trio.store.postgres.engine import PostgresStore  # it needs an extra

    raise_file_limit(settings)
    settings = replace(settings, cache_bytes=0)  # another node may have changed what was read
    limits = Limits(settings)
    listener = listen(settings.host, settings.port)

    make_store, beside = _with_chores(
        settings,
        None,
        lambda committed, hub: PostgresStore(
            settings.store, settings, committed, hub.set_trimmed, hub.on_break
        ),
    )
    with listener:
        tls, ready = tls_context(settings), partial(announce, url_of(listener, settings))
        await _serve(settings, tls, [listener], limits, make_store, ready, Ends(), beside)


async def serve_as_worker(
    settings: Settings,
    tls: ssl.SSLContext | None,
    file: Path,
    board: Board,
    worker: int,
    listeners: Sequence[Listener],
    link: socket.socket,
    ready: Callable[[], object],
) -> None:
    """Serve as one of several processes, over the `link` to the one that writes. Otherwise as `serve`.

    `tls`: that of all of them, so that a client resumes its TLS session at any.
    """
    limits = Limits(settings, WorkerCounts(board, worker))
    if worker:  # the first one tells of changed databases, keys and plans
        logging.getLogger("paperdb.accounts").setLevel(logging.WARNING)

    def make_store(on_commit: OnCommit, hub: Hub) -> WorkerStore:
        return WorkerStore(file, settings, board, worker, link, on_commit, hub.set_trimmed)

    async def beside(services: Services) -> None:
        store = services.store
        assert isinstance(store, WorkerStore)
        store.reports = services.reports
        services.gather = store.gather

    await _serve(settings, tls, listeners, limits, make_store, ready, Ends(), beside)


OnCommit = Callable[[list[Change]], None]
MakeStore = Callable[[OnCommit, Hub], Store]


@dataclass
class Ends:
    """`at`: when draining must be over, in trio's time."""

    at: float = math.inf


async def _serve(
    settings: Settings,
    tls: ssl.SSLContext | None,
    listeners: Sequence[Listener],
    limits: Limits,
    make_store: MakeStore,
    ready: Callable[[], object],
    ends: Ends,
    beside: Callable[[Services], Awaitable[None]],
) -> None:
    """`ready()` is called once connections are accepted. `beside` runs beside the server, until it is
    cancelled."""
    with (
        ExitStack() as stack,
        trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals,
    ):
        hub = Hub(MatcherLimits(settings.max_residual_queries, settings.max_query_values))
        cache = DocumentCache(settings.cache_bytes)

        def on_commit(changes: list[Change]) -> None:
            cache.apply(changes)
            hub.on_commit(changes)

        store = make_store(on_commit, hub)
        stack.callback(store.close)
        for database_id, (head, trimmed) in store.bounds().items():
            hub.set_bounds(database_id, head, trimmed)
        accounts = Accounts()
        await accounts.refresh(store)
        exchanges = Exchanges(settings, limits)
        services = Services(settings, limits, accounts, store, cache, hub, load_assets(), exchanges)
        wheel = Wheel()
        gateway = Gateway(services, wheel)
        hypercorn = HypercornConnections(services, wheel)
        if settings.http == "quart" and (failure := await hypercorn.load()):
            raise StartupError(failure)
        door = Door(services, gateway, hypercorn, wheel, tls)
        services.open_connections = lambda: door.open
        services.live_connections = lambda: len(gateway.connections) + len(services.readers.open)
        look = partial(_look_at_accounts, accounts, gateway, store)
        services.reports["look"] = look
        services.reports["used_keys"] = accounts.used_lately
        services.reports |= Inspector(services, gateway).reports
        services.reports["health"] = partial(health_report, services)
        services.reports["metrics"] = partial(families, services)
        services.subscribers = lambda: [*gateway.subscribers(), *services.readers.open]

        # Objects that are alive now stay alive, so the collector need not visit them again. With the usual
        # thresholds it takes a third of the time of accepting connections.
        gc.collect()
        gc.freeze()
        gc.set_threshold(20_000, 10, 10)

        async with trio.open_nursery() as core:
            if not await started(core, store, signals):
                log.info("stopped while removing a collection: the next start continues")
                return
            await core.start(hub.run)
            core.start_soon(_watch_accounts, look)
            core.start_soon(_keep_used_keys, services)
            core.start_soon(wheel.run)
            core.start_soon(services.loop_delay.run)
            core.start_soon(beside, services)
            async with trio.open_nursery() as connections:
                accepting = trio.CancelScope()
                connections.start_soon(_accept, accepting, door, listeners, connections)
                ready()
                try:
                    name = await _end_signal(signals, settings, door)
                    log.info("%s: draining for at most %g s", name, settings.drain_timeout)
                    ends.at = trio.current_time() + settings.drain_timeout
                    await _drain(services, accepting, gateway, door, ends.at)
                finally:
                    store.stop()
                    door.abort()
                    connections.cancel_scope.cancel()
            await store.closed.wait()
            core.cancel_scope.cancel()
    log.info("stopped")


def url_of(listener: socket.socket, settings: Settings) -> str:
    host, port = listener.getsockname()[:2]
    with_tls = settings.tls_cert or settings.tls_self_signed
    return f"{'https' if with_tls else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"


def finish(file: Path, seconds: float) -> None:
    """Move the write-ahead log into the file, in that time."""
    try:
        checkpoint(file, min(max(seconds, MIN_CHECKPOINT_SECONDS), BUSY_SECONDS))
        settle(file)
    except sqlite.Error as error:
        log.warning("could not clear the write-ahead log: %s", error)


async def _accept(
    scope: trio.CancelScope, door: Door, listeners: Sequence[Listener], connections: trio.Nursery
) -> None:
    with scope:
        async with trio.open_nursery() as nursery:
            for listener in listeners:
                nursery.start_soon(door.run, listener, connections)


async def _end_signal(signals: AsyncIterator[int], settings: Settings, door: Door) -> str:
    """The name of the signal that stops the server. Until then SIGHUP makes it reload its certificate."""
    async for number in signals:
        if number != signal.SIGHUP:
            return signal.Signals(number).name
        try:
            door.tls = tls_context(settings)
            log.info("SIGHUP: reloaded the certificate; new connections use it")
        except StartupError as error:
            log.error("SIGHUP: kept the old certificate: %s", error)  # noqa: TRY400 - no traceback
    raise AssertionError("the signal receiver ended")


async def _drain(
    services: Services,
    accepting: trio.CancelScope,
    gateway: Gateway,
    door: Door,
    ends_at: float,
) -> None:
    """Stop accepting, let requests finish and close sockets with 1012, until `ends_at`. Requests that still
    wait for a write shortly before that are refused."""
    services.draining = True
    services.hub.stop_waiting()
    accepting.cancel()
    seconds = services.settings.drain_timeout
    with trio.move_on_at(ends_at):
        await door.drain()
        await gateway.drain(seconds)
        with trio.move_on_after(seconds - min(LAST_WORDS, seconds / 4)):
            await _until_empty(door)
        services.store.stop()
        await _until_empty(door)


async def _until_empty(door: Door) -> None:
    while door.open:
        await trio.sleep(0.01)


async def _look_at_accounts(accounts: Accounts, gateway: Gateway, store: Store, _: Any = None) -> bool:
    try:
        if await accounts.refresh(store):
            gateway.enforce()
    except ApiError as error:  # it took too long: the next look is soon
        sparing_log.warning("could not check for changes of keys and plans: %s", error)
    return True


async def _watch_accounts(look: Callable[[], Awaitable[bool]]) -> None:
    """Watch for changes of databases, keys and plans by the command line, and of tokens by other processes."""
    while True:
        await tick()
        await look()


async def _keep_used_keys(services: Services) -> None:
    """Note in the file when keys were last used: a key at most once in each interval."""
    while True:
        await trio.sleep(USED_SECONDS)
        used = services.accounts.used_at(time.time())
        try:
            if used:
                await services.store.submit(KeepUsedKeys(used))
        except ApiError as error:
            sparing_log.warning("could not note which keys were used: %s", error)


def raise_file_limit(settings: Settings) -> None:
    """Raises `StartupError` if it is too low to serve anyone."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard < MIN_FILES:
        raise StartupError(f"The limit of open files is {hard} (ulimit -Hn); expected at least {MIN_FILES}")
    if hard != resource.RLIM_INFINITY and hard < settings.max_connections + 100:
        log.warning(
            "the limit of open files is %d: fewer than %d connections fit (ulimit -Hn)",
            hard,
            settings.max_connections,
        )
