"""`paperdb`, but its WebSockets send every text message back, which is what Autobahn's cases ask of a server.

Law: one method is replaced. Door, handshake, frames, queue and stream are the product's.
"""

from __future__ import annotations

from paperdb_trio.cli import main
from paperdb_trio.realtime.websocket import WebSocket


async def _echo(self: WebSocket, message: bytes) -> None:
    await self._post(message)


WebSocket._respond = _echo  # type: ignore[method-assign]

if __name__ == "__main__":
    main()
