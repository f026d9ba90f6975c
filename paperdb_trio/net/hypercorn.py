"""The rest of HTTP: Quart on Hypercorn's connection class, fed with the door's streams.

Law: Hypercorn's own accept loop is never used (one upgrade request with trailing bytes ends that whole
server: hypercorn #225). What is used is internal to Hypercorn 0.18; tests/net/test_hypercorn.py holds it.
Both are loaded by the first connection that needs them: most servers never see one, and they are half of
the time of a start and a third of the memory.
"""

from __future__ import annotations

import gc
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import trio

from paperdb_trio.config import Settings
from paperdb_trio.net.stream import ByteStream
from paperdb_trio.services import Services


class HypercornConnections:
    """Serves streams that the door hands over, each until its peer or the server has had enough."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._loading = trio.Lock()
        self._loaded: _Loaded | None = None
        self._draining = False

    async def serve(self, stream: ByteStream, *, is_http2: bool) -> None:
        """Serve one connection to its end; what has been read of it must be unread before."""
        async with self._loading:
            if self._loaded is None:
                # On a thread: the event loop gets its turns between the pieces of half a second's imports.
                self._loaded = await trio.to_thread.run_sync(_load, self._services)
                if self._draining:
                    await self.drain()
        await self._loaded.serve(stream, is_http2)

    async def drain(self) -> None:
        """Close idle connections now, and the others after the answer that they are waiting for."""
        self._draining = True
        if self._loaded is not None:
            await self._loaded.context.terminated.set()


class _Loaded(NamedTuple):
    serve: Callable[[ByteStream, bool], Awaitable[None]]
    context: Any


def _load(services: Services) -> _Loaded:
    from hypercorn.app_wrappers import ASGIWrapper
    from hypercorn.config import Config
    from hypercorn.trio.tcp_server import TCPServer
    from hypercorn.trio.worker_context import WorkerContext

    from paperdb_trio.rest.app import create_app

    app: Any = ASGIWrapper(create_app(services))
    http1, http2 = (_configured(Config(), services.settings) for _ in range(2))
    if services.settings.http == "raw":
        # One request: h11 reads on more leniently than we (bare LF, folded lines, two lengths), and a proxy in
        # front may have read something else.
        http1.keep_alive_max_requests = 1
    context = WorkerContext(None)
    gc.freeze()  # like what was loaded at the start

    async def serve(stream: ByteStream, is_http2: bool) -> None:
        # Hypercorn decides by AttributeError whether a stream is TLS; ours has no `do_handshake`.
        await TCPServer(app, http2 if is_http2 else http1, context, {}, stream)  # type: ignore[arg-type]

    return _Loaded(serve, context)


def _configured(config: Any, settings: Settings) -> Any:
    config.keep_alive_timeout = settings.keep_alive_timeout
    config.keep_alive_max_requests = 100_000  # its default of 1,000 ends a busy client's connection each second
    config.h11_max_incomplete_size = settings.max_head_bytes
    config.include_server_header = False
    config.accesslog = None
    config.errorlog = None
    return config
