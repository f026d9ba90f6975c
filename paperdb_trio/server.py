"""The nursery tree: what runs while `paperdb serve` does, in which order it starts, and how it ends.

Law: every task has its nursery here or below. A failure of the writer, the hub or the keeper ends the
process; a failure of a connection ends that connection.
"""

from __future__ import annotations

import gc
import logging
import resource
import signal
import sqlite3
import time
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import trio

from paperdb_trio import demo, intake
from paperdb_trio.auth.directory import Directory
from paperdb_trio.config import Settings
from paperdb_trio.errors import ApiError, StartupError
from paperdb_trio.limits import Limits
from paperdb_trio.model import Change
from paperdb_trio.net.door import Door, listen
from paperdb_trio.net.hypercorn import HypercornConnections
from paperdb_trio.net.tls import tls_context
from paperdb_trio.realtime.gateway import Gateway
from paperdb_trio.realtime.hub import Hub
from paperdb_trio.services import Services
from paperdb_trio.store.cache import DocumentCache
from paperdb_trio.store.log import ChangeLog
from paperdb_trio.store.operations import Trim
from paperdb_trio.store.reader import Reader
from paperdb_trio.store.schema import checkpoint
from paperdb_trio.store.writer import Writer
from paperdb_trio.web.assets import load as load_assets
from paperdb_trio.wheel import Wheel

log = logging.getLogger("paperdb")

READER_THREADS: Final = 4
DIRECTORY_SECONDS: Final = 0.25
"""Between two looks at what the command line may have changed."""
TRIM_SECONDS: Final = 1.0
TRIM_PAUSE: Final = 0.002
"""Between two steps of a trim, each of 250 changes in about 1 ms: writers get in between."""


async def serve(settings: Settings, file: Path, announce: Callable[[str], None]) -> None:
    """Serve the database in `file` until SIGTERM or SIGINT, and drain.

    `announce(url)` is called once connections are accepted. Raises `StartupError` before that; after it,
    whatever the writer, the hub or the keeper failed with.
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
        stack.callback(_checkpoint, file)
        # One of its own for keys and plans: whoever keeps the others busy must not put off the end of his key.
        reader, watcher = (
            Reader(
                file,
                threads=threads,
                timeout=settings.query_timeout,
                max_result_bytes=settings.max_result_bytes,
            )
            for threads in (READER_THREADS, 1)
        )
        stack.callback(reader.close)
        stack.callback(watcher.close)
        change_log = ChangeLog(
            file,
            timeout=max(30.0, settings.query_timeout),
            max_document_bytes=settings.max_document_bytes,
        )
        stack.callback(change_log.close)
        hub = Hub()
        for database_id, (head, trimmed) in change_log.bounds().items():
            hub.set_bounds(database_id, head, trimmed)
        directory = Directory()
        await directory.refresh(watcher)
        cache = DocumentCache(settings.cache_bytes)

        def on_commit(changes: list[Change]) -> None:
            cache.apply(changes)
            hub.on_commit(changes)

        writer = Writer(file, on_commit)
        services = Services(settings, limits, directory, writer, reader, cache, change_log, hub, load_assets())
        wheel = Wheel()
        gateway = Gateway(services, wheel)
        hypercorn = HypercornConnections(services, wheel)
        if settings.http == "quart" and (failure := await hypercorn.load()):
            raise StartupError(failure)
        door = Door(listener, services, gateway, hypercorn, wheel, tls)
        services.open_connections = lambda: door.open
        services.live_connections = lambda: len(gateway.connections)
        imports = stack.enter_context(intake.listening(file.parent))

        # What is alive now stays alive: the collector need not look at it again. With the usual thresholds
        # it takes a third of the time of accepting connections.
        gc.collect()
        gc.freeze()
        gc.set_threshold(20_000, 10, 10)

        async with trio.open_nursery() as core:
            await core.start(writer.run)
            await core.start(hub.run)
            core.start_soon(_watch_directory, services, gateway, watcher)
            core.start_soon(_trim, services)
            core.start_soon(wheel.run)
            if imports is not None:
                core.start_soon(intake.run, services, imports)
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
                    await _drain(services, accepting, gateway, door)
                finally:
                    door.abort()
                    connections.cancel_scope.cancel()
            writer.close()
            await writer.closed.wait()
            core.cancel_scope.cancel()
    log.info("stopped")


def _checkpoint(file: Path) -> None:
    try:
        checkpoint(file)
    except sqlite3.Error as error:
        log.warning("the write-ahead log stays: %s", error)


async def _accept(scope: trio.CancelScope, door: Door, connections: trio.Nursery) -> None:
    with scope:
        await door.run(connections)


async def _end_signal(signals: AsyncIterator[int], settings: Settings, door: Door) -> str:
    """The name of the signal that ends the server; meanwhile SIGHUP makes it read its certificate again."""
    async for number in signals:
        if number != signal.SIGHUP:
            return signal.Signals(number).name
        try:
            door.tls = tls_context(settings)
            log.info("SIGHUP: new connections get the certificate as it is now")
        except StartupError as error:
            log.error("SIGHUP: the certificate stays as it was: %s", error)  # noqa: TRY400 - no traceback
    raise AssertionError("the signal receiver ended")


async def _drain(
    services: Services,
    accepting: trio.CancelScope,
    gateway: Gateway,
    door: Door,
) -> None:
    """Accept no more, let requests finish and close sockets with 1012, for `drain_timeout` at most."""
    services.draining = True
    services.hub.stop_waiting()
    accepting.cancel()
    seconds = services.settings.drain_timeout
    await door.drain()
    await gateway.drain(seconds)
    with trio.move_on_after(seconds):
        while door.open:
            await trio.sleep(0.01)


async def _watch_directory(services: Services, gateway: Gateway, reader: Reader) -> None:
    """See what the command line does to databases, keys and plans."""
    while True:
        await trio.sleep(DIRECTORY_SECONDS)
        try:
            if await services.directory.refresh(reader):
                gateway.enforce()
        except ApiError as error:  # it took too long: look again soon
            log.warning("could not look for changes of keys and plans: %s", error)


async def _trim(services: Services) -> None:
    """Keep the change logs within their age and count, in steps that writers hardly notice."""
    settings = services.settings
    while True:
        await trio.sleep(TRIM_SECONDS)
        for database_id in services.directory.database_ids():
            removed = services.hub.committed(database_id) - services.hub.trimmed(database_id)
            try:
                while removed:
                    trimmed, removed = await services.writer.submit(
                        Trim(database_id, time.time() - settings.retention_age, settings.retention_count)
                    )
                    services.hub.set_trimmed(database_id, trimmed)
                    await trio.sleep(TRIM_PAUSE)
            except ApiError as error:
                log.warning("could not trim the change log: %s", error)


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
