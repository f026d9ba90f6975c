"""The rest of HTTP: Quart on Hypercorn's connection class, fed with the door's streams.

Law: Hypercorn's own accept loop is never used (one upgrade request with trailing bytes ends that whole
server: hypercorn #225). What is used is internal to Hypercorn 0.18; tests/net/test_hypercorn.py holds it.
"""

from __future__ import annotations

from typing import Any

from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from quart_trio import QuartTrio

from paperdb_trio.config import Settings
from paperdb_trio.net.stream import ByteStream


class HypercornConnections:
    """Serves streams that the door hands over, each until its peer or the server has had enough."""

    def __init__(self, app: QuartTrio, settings: Settings) -> None:
        self._config = Config()
        self._config.keep_alive_timeout = settings.keep_alive_timeout
        self._config.h11_max_incomplete_size = settings.max_head_bytes
        self._config.keep_alive_max_requests = 1_000_000  # its default of 1,000 is for HTTP/2 floods
        self._config.include_server_header = False
        self._config.accesslog = None
        self._config.errorlog = None
        self._wrapped: Any = ASGIWrapper(app)
        self._context = WorkerContext(None)

    async def serve(self, stream: ByteStream) -> None:
        """Serve one connection to its end; what has been read of it must be unread before."""
        # Hypercorn decides by AttributeError whether a stream is TLS; ours has no `do_handshake`.
        await TCPServer(self._wrapped, self._config, self._context, {}, stream)  # type: ignore[arg-type]

    async def drain(self) -> None:
        """Close idle connections now, and the others after the answer that they are waiting for."""
        await self._context.terminated.set()
