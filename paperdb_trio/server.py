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
import time
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Final

import trio

from paperdb_trio import demo, import_socket
from paperdb_trio.auth.accounts import Accounts
from paperdb_trio.config import Settings
from paperdb_trio.delivery.hub import Hub
from paperdb_trio.doors.hypercorn import HypercornConnections
from paperdb_trio.doors.listener import Door, listen
from paperdb_trio.errors import ApiError, StartupError
from paperdb_trio.exchanges import Exchanges
from paperdb_trio.limits import Limits
from paperdb_trio.logs import SparingLog
from paperdb_trio.loop.wheel import Wheel
from paperdb_trio.match.matcher import MatcherLimits
from paperdb_trio.model import Change
from paperdb_trio.net.tls import tls_context
from paperdb_trio.realtime.gateway import Gateway
from paperdb_trio.services import Services
from paperdb_trio.store.cache import DocumentCache
from paperdb_trio.store.housekeeping import FreePages, KeepTime, Trim, finish_drops
from paperdb_trio.store.protocol import Store
from paperdb_trio.store.requests import ForgetRequests
from paperdb_trio.store.revocations import ForgetRevocations
from paperdb_trio.store.sqlite import library as sqlite
from paperdb_trio.store.sqlite.durability import recover, settle
from paperdb_trio.store.sqlite.engine import SqliteStore
from paperdb_trio.store.sqlite.file import BUSY_SECONDS, checkpoint
from paperdb_trio.store.sqlite.writer import Writer, keep_indexes
from paperdb_trio.web.assets import load as load_assets

log = logging.getLogger("paperdb")
sparing_log = SparingLog(log)

ACCOUNTS_SECONDS: Final = 0.25
"""Between two checks for changes by the command line."""
TRIM_SECONDS: Final = 1.0
DROP_SECONDS: Final = 1.0
"""Between two checks for an interrupted removal of a collection."""
KEEP_TIME_SECONDS: Final = 3600.0
"""Between two writes of the log's clock into the file; see `LogClock.keep`."""
LAST_WORDS: Final = 0.5
"""The end of the drain time, when requests that still wait for the disk are refused, to send the refusal."""
MIN_CHECKPOINT_SECONDS: Final = 0.25
"""For the final checkpoint of the write-ahead log, even when the drain time is over."""
TRIM_AGAIN_SECONDS: Final = 60.0
"""After a failure, unless the disk is full: then trims are what frees it."""
TRIM_PAUSE: Final = 0.002
"""Between two steps of a trim (250 changes, about 1 ms each), so that writers get in between."""


async def serve(settings: Settings, file: Path, announce: Callable[[str], None]) -> None:
    """Serve the database in `file` until SIGTERM or SIGINT, and drain.

    `announce(url)` is called once connections are accepted. Raises `StartupError` before that, and later the
    failure of the writer, the hub or the keeper.
    """
    _raise_file_limit(settings)
    limits = Limits(settings)
    tls = tls_context(settings)
    listener = listen(settings.host, settings.port)
    with (
        ExitStack() as stack,
        trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals,
    ):
        stack.callback(listener.close)
        ends_at = math.inf  # from SIGTERM on
        stack.callback(lambda: _checkpoint(file, ends_at - trio.current_time()))
        recover(file)
        hub = Hub(MatcherLimits(settings.max_residual_queries, settings.max_query_values))
        cache = DocumentCache(settings.cache_bytes)

        def on_commit(changes: list[Change]) -> None:
            cache.apply(changes)
            hub.on_commit(changes)

        store = SqliteStore(file, settings, on_commit)
        stack.callback(store.close)
        for database_id, (head, trimmed) in store.bounds().items():
            hub.set_bounds(database_id, head, trimmed)
        accounts = Accounts()
        await accounts.refresh(store)
        writer = store.writer
        exchanges = Exchanges(settings, limits)
        services = Services(settings, limits, accounts, store, cache, hub, load_assets(), exchanges)
        wheel = Wheel()
        gateway = Gateway(services, wheel)
        hypercorn = HypercornConnections(services, wheel)
        if settings.http == "quart" and (failure := await hypercorn.load()):
            raise StartupError(failure)
        door = Door(listener, services, gateway, hypercorn, wheel, tls)
        services.open_connections = lambda: door.open
        services.look_at_accounts = partial(_look_at_accounts, accounts, gateway, store)
        services.live_connections = lambda: len(gateway.connections)
        imports = stack.enter_context(import_socket.listening(file.parent))

        # Objects that are alive now stay alive, so the collector need not visit them again. With the usual
        # thresholds it takes a third of the time of accepting connections.
        gc.collect()
        gc.freeze()
        gc.set_threshold(20_000, 10, 10)

        async with trio.open_nursery() as core:
            await core.start(writer.run)
            await core.start(hub.run)
            if not await _drops_finished(services, signals):
                log.info("stopped while removing a collection: the next start continues")
                writer.stop()
                await writer.closed.wait()
                core.cancel_scope.cancel()
                return
            core.start_soon(_watch_accounts, services)
            core.start_soon(_trim, services, writer)
            core.start_soon(_finish_drops, services)
            core.start_soon(_keep_indexes, services, writer)
            core.start_soon(store.advisor.run, writer)
            core.start_soon(wheel.run)
            if imports is not None:
                core.start_soon(import_socket.run, services, imports)
            if settings.demo:
                core.start_soon(demo.run, services)
            async with trio.open_nursery() as connections:
                accepting = trio.CancelScope()
                connections.start_soon(_accept, accepting, door, connections)
                host, port = listener.getsockname()[:2]
                scheme = "http" if tls is None else "https"
                announce(f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}")
                try:
                    name = await _end_signal(signals, settings, door)
                    log.info("%s: draining for at most %g s", name, settings.drain_timeout)
                    ends_at = trio.current_time() + settings.drain_timeout
                    await _drain(services, writer, accepting, gateway, door, ends_at)
                finally:
                    writer.stop()
                    door.abort()
                    connections.cancel_scope.cancel()
            await writer.closed.wait()
            core.cancel_scope.cancel()
    log.info("stopped")


def _checkpoint(file: Path, seconds: float) -> None:
    try:
        checkpoint(file, min(max(seconds, MIN_CHECKPOINT_SECONDS), BUSY_SECONDS))
        settle(file)
    except sqlite.Error as error:
        log.warning("could not clear the write-ahead log: %s", error)


async def _accept(scope: trio.CancelScope, door: Door, connections: trio.Nursery) -> None:
    with scope:
        await door.run(connections)


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
    writer: Writer,
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
        writer.stop()
        await _until_empty(door)


async def _until_empty(door: Door) -> None:
    while door.open:
        await trio.sleep(0.01)


async def _look_at_accounts(accounts: Accounts, gateway: Gateway, store: Store) -> None:
    if await accounts.refresh(store):
        gateway.enforce()


async def _watch_accounts(services: Services) -> None:
    """Watch for changes of databases, keys and plans by the command line, and of tokens by other processes."""
    while True:
        await trio.sleep(ACCOUNTS_SECONDS)
        try:
            await services.look_at_accounts()
        except ApiError as error:  # it took too long: try again soon
            sparing_log.warning("could not check for changes of keys and plans: %s", error)


async def _trim(services: Services, writer: Writer) -> None:
    """Keep the change logs within their age and count, in steps that writers hardly notice."""
    settings, hub = services.settings, services.hub
    kept = -math.inf
    while not services.draining:
        await trio.sleep(TRIM_SECONDS)
        try:
            if trio.current_time() >= kept + KEEP_TIME_SECONDS:
                await writer.submit(KeepTime(writer.clock))
                while await writer.submit(ForgetRevocations(int(time.time() * 1000))):
                    await trio.sleep(TRIM_PAUSE)
                kept = trio.current_time()
            for database_id in services.accounts.database_ids():
                removed = hub.committed(database_id) - hub.trimmed(database_id)
                # On a full disk, deleting a document would otherwise only move it into the log.
                until = hub.trimmed(database_id) + writer.owed.pop(database_id, 0)
                while removed:
                    cutoff = writer.clock.now() - settings.retention_age
                    trim = Trim(database_id, cutoff, settings.retention_count, until=until)
                    trimmed, removed = await writer.submit(trim)
                    hub.set_trimmed(database_id, trimmed)
                    await trio.sleep(TRIM_PAUSE)
            while await writer.submit(ForgetRequests()):
                await trio.sleep(TRIM_PAUSE)
            while await writer.submit(FreePages(spare=0) if writer.full else FreePages()):
                await trio.sleep(TRIM_PAUSE)
        except ApiError as error:
            if not services.draining:
                sparing_log.warning("could not trim the change log: %s", error)
                again = trio.current_time() + TRIM_AGAIN_SECONDS
                while trio.current_time() < again and not writer.full:
                    await trio.sleep(TRIM_SECONDS)


async def _drops_finished(services: Services, signals: AsyncIterator[int]) -> bool:
    """Finish the removals that an earlier server started, before a client can write to those collections,
    because its writes would be removed as well. False: a signal stops the server."""
    ended = False

    async def watch() -> None:
        nonlocal ended
        async for number in signals:
            if number != signal.SIGHUP:
                ended = True
                break
        nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        try:
            await finish_drops(services.store)
        except ApiError as error:
            log.warning("could not remove a collection: %s", error)
            services.drops_left = True
        nursery.cancel_scope.cancel()
    return not ended


async def _finish_drops(services: Services) -> None:
    """Finish removals that a failed request started."""
    while not services.draining:
        await trio.sleep(DROP_SECONDS)
        if services.drops_left:
            services.drops_left = False
            try:
                await finish_drops(services.store, TRIM_PAUSE)
            except ApiError as error:
                services.drops_left = True
                if not services.draining:
                    sparing_log.warning("could not remove a collection: %s", error)


async def _keep_indexes(services: Services, writer: Writer) -> None:
    """Build and remove indexes. What is left at the end, the next start goes on with."""
    while not services.draining:
        try:
            await keep_indexes(writer)
        except ApiError as error:
            if not services.draining:
                sparing_log.warning("could not build an index: %s", error)
            await trio.sleep(DROP_SECONDS)


def _raise_file_limit(settings: Settings) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard != resource.RLIM_INFINITY and hard < settings.max_connections + 100:
        log.warning(
            "the limit of open files is %d: fewer than %d connections fit (ulimit -Hn)",
            hard,
            settings.max_connections,
        )
