"""One WebSocket to the server: handshake, JSON messages, close codes.

Law: one connection, once; the caller decides what comes after. The token goes into a header. trio-websocket
speaks the protocol over a stream of ours, so that a peer that goes away during the handshake, or never responds
to a close, ends the connection instead of hanging it.
"""

from __future__ import annotations

import math
import ssl
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlencode

import httpx
import msgspec
import trio
from trio_websocket import ConnectionClosed, ConnectionRejected, WebSocketConnection, wrap_client_stream

from .errors import PaperDBError
from .groups import leaves
from .requests import RestResponse, network, refusal

SUBPROTOCOL = "paperdb.v1"
CONNECT_SECONDS = 10.0
"""For the connection with TLS, and again for the handshake."""
CLOSE_SECONDS = 1.0
MAX_MESSAGE_BYTES = 64 * 1024 * 1024
"""An event is its document and some 100 bytes. By the server's defaults, a document has 1 MiB at most, and a
request's body 16 MiB."""
RECEIVE_BYTES = 64 * 1024
MAX_RETRY_AFTER = 60.0


class Message(msgspec.Struct):
    """Any message of the server; which fields are set depends on `type`."""

    type: str
    seq: int | None = None
    collection: str = ""
    data: msgspec.Raw = msgspec.Raw(b"null")
    cause: str = ""
    txn: int | None = None
    query: str = ""
    documents: msgspec.Raw = msgspec.Raw(b"[]")
    last: bool = False
    reason: str = ""
    since: int = 0
    oldest: int = 0
    ref: int | str | None = None
    code: str = ""
    message: str = ""


_decode = msgspec.json.Decoder(Message).decode


class Lost(Exception):
    """The connection ended or could not be made. Another may work, but not before `retry_after` seconds."""

    def __init__(self, reason: str, *, retry_after: float = 0.0) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


class TokenRefused(Exception):
    """The token is no longer valid. `error` is the server's response to a handshake, if that refused it."""

    def __init__(self, error: PaperDBError | None) -> None:
        super().__init__(str(error or "token expired"))
        self.error = error


class Stop(Exception):
    """Connecting again is useless. `error` is for the user."""

    def __init__(self, error: PaperDBError) -> None:
        super().__init__(str(error))
        self.error = error


Policy = Literal["reconnect", "new token", "stop"]
CLOSE_CODES: Mapping[int, Policy] = {
    1002: "stop",
    1003: "stop",
    1007: "stop",
    1009: "stop",
    4401: "new token",
    4408: "reconnect",
    # The next connection asks for the same cursor, and the server tells it the bounds of the gap.
    4410: "reconnect",
    **{code: "stop" for code in range(4400, 4500) if code not in (4401, 4408, 4410)},
}
"""What to do after each close code of the server; after all others: reconnect."""


def closed(code: int, reason: str) -> Exception:
    """The exception for a close code."""
    text = f"closed with {code} {reason}".strip()
    policy = CLOSE_CODES.get(code, "reconnect")
    if policy == "new token":
        return TokenRefused(None)
    if policy == "reconnect":
        return Lost(text)
    status, name = (403, "ACCESS_LOST") if code == 4403 else (400, "CLOSED")
    what = "The server ended the subscription"
    if code == 1009:  # ours; the server cannot mean us, whose messages are small
        what = f"An event is larger than the {MAX_MESSAGE_BYTES >> 20} MiB that this client takes"
    return Stop(PaperDBError(status, name, f"{what}: {text}", {"close_code": code}))


def refused(status: int, body: bytes, headers: Mapping[str, str]) -> Exception:
    """The exception for an HTTP response instead of the handshake."""
    error = refusal(RestResponse(status, body, headers))
    if status == 401:
        return TokenRefused(error)
    if status < 300:
        message = f"HTTP {status} instead of a WebSocket; does a proxy drop the Upgrade header?"
        return Stop(PaperDBError(status, "BAD_ANSWER", message))
    return unobtained(error)


def unobtained(error: PaperDBError) -> Lost | Stop:
    """The exception for a connection if something that it needs failed with `error`."""
    if not error.transient:
        return Stop(error)
    return Lost(str(error), retry_after=retry_after(error))


def retry_after(error: PaperDBError) -> float:
    """Seconds that the server asks to wait, within reason."""
    seconds = error.extra.get("retry_after")
    return min(max(seconds, 0.0), MAX_RETRY_AFTER) if isinstance(seconds, int | float) else 0.0


@dataclass(frozen=True, slots=True)
class Address:
    """Where to connect: a ws(s) or http(s) URL, taken apart. `context` is for TLS.

    The path is the one under which a proxy serves PaperDB, as for REST. It ends with a slash, as in a proxy's
    `location /db/`, unless it is the server's own path for the socket.
    """

    host: str
    port: int
    path: str
    context: ssl.SSLContext | None

    @classmethod
    def parse(cls, url: str, context: ssl.SSLContext | None) -> Address:
        parts = httpx.URL(url)  # encodes host and path as REST's are
        tls = parts.scheme in ("https", "wss")
        path = parts.raw_path.decode()
        return cls(
            parts.raw_host.decode(),
            parts.port or (443 if tls else 80),
            path if path.endswith("/realtime") else path.rstrip("/") + "/",
            (context or ssl.create_default_context()) if tls else None,
        )

    @property
    def authority(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.context else 80) else f"{host}:{self.port}"

    async def connect(self) -> trio.SocketStream | trio.SSLStream[trio.SocketStream]:
        """Raises OSError, or BrokenResourceError for a failure of TLS."""
        plain = await trio.open_tcp_stream(self.host, self.port)
        if self.context is None:
            return plain
        stream = trio.SSLStream(plain, self.context, server_hostname=self.host, https_compatible=True)
        try:
            await stream.do_handshake()
        except BaseException:
            await trio.aclose_forcefully(stream)
            raise
        return stream


class _Watched(trio.abc.Stream):
    """The stream under trio-websocket. It notes when bytes come, and calls `on_end` when no more will."""

    def __init__(self, stream: trio.abc.Stream, on_end: Callable[[], None]) -> None:
        self._stream = stream
        self._on_end = on_end
        self.heard = trio.current_time()
        self.why = ""
        self.on_sent: Callable[[], None] = lambda: None

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        try:
            data = await self._stream.receive_some(max_bytes)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            self._end(error)
            raise
        if data:
            self.heard = trio.current_time()
        else:
            self._end(None)
        return bytes(data)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        try:
            await self._stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            self._end(error)
            raise
        self.on_sent()

    def _end(self, error: Exception | None) -> None:
        if error is not None and not self.why:
            self.why = f": {error.__cause__ or error}"
        self._on_end()

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        await self._stream.aclose()


class Wire:
    """An open connection. `send` and `receive` raise the exception of `closed` when it has ended."""

    def __init__(self, ws: WebSocketConnection, stream: _Watched) -> None:
        self._ws = ws
        self._stream = stream

    @property
    def heard(self) -> float:
        """When the last bytes came (pings too), on Trio's clock."""
        return self._stream.heard

    async def send(self, action: Mapping[str, Any]) -> None:
        text = msgspec.json.encode(action).decode()
        try:
            await self._ws.send_message(text)
        except ConnectionClosed as error:
            raise _end(error) from None

    async def receive(self) -> Message:
        try:
            text = await self._ws.get_message()
        except ConnectionClosed as error:
            raise _end(error) from None
        try:
            return _decode(text)
        except msgspec.MsgspecError as error:
            raise Lost(f"the server sent what is not a message of PaperDB: {error}") from None


def _end(error: ConnectionClosed) -> Exception:
    reason = error.reason
    if reason is None or reason.code == 1006:
        return Lost("connection lost")
    return closed(reason.code, reason.reason or "")


async def converse(
    address: Address, token: str, query: Mapping[str, str], talk: Callable[[Wire], Awaitable[None]]
) -> None:
    """Connect, run `talk`, close. Raises `Lost`, `TokenRefused`, `Stop`, and what `talk` raises."""
    try:
        with trio.fail_after(CONNECT_SECONDS):
            stream = await address.connect()
    except trio.TooSlowError:
        raise Lost(f"no connection within {CONNECT_SECONDS:g} s") from None
    except (OSError, trio.BrokenResourceError) as error:
        raise unobtained(network(error)) from None
    failure: Exception | None = None
    try:
        async with trio.open_nursery() as nursery:
            try:
                await _converse(nursery, stream, address, token, query, talk)
            except Exception as error:  # not through the nursery, which would wrap it
                failure = error
            nursery.cancel_scope.cancel()
    except* ConnectionRejected as group:
        rejection = next(leaves(group))
        assert isinstance(rejection, ConnectionRejected)
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in rejection.headers}
        failure = refused(rejection.status_code, rejection.body or b"", headers)
    except* Exception as group:  # trio-websocket's reader: nothing of ours runs in it
        failure = failure or Lost(f"connection lost: {next(leaves(group))!r}")
    finally:
        await trio.aclose_forcefully(stream)
    if failure is not None:
        raise failure


async def _converse(
    nursery: trio.Nursery,
    stream: trio.SocketStream | trio.SSLStream[trio.SocketStream],
    address: Address,
    token: str,
    query: Mapping[str, str],
    talk: Callable[[Wire], Awaitable[None]],
) -> None:
    ws = None
    # The scope is left when the handshake is done: a later end of the stream cancels nothing.
    with trio.move_on_after(CONNECT_SECONDS) as scope:
        watched = _Watched(stream, scope.cancel)
        ws = await wrap_client_stream(
            nursery,
            watched,  # type: ignore[arg-type]  # it uses what every stream has
            address.authority,
            f"{address.path}?{urlencode(query)}",
            subprotocols=[SUBPROTOCOL],
            extra_headers=[(b"Authorization", b"Bearer " + token.encode())],
            max_message_size=MAX_MESSAGE_BYTES,
            receive_buffer_size=RECEIVE_BYTES,
        )
    if ws is None:
        raise Lost(f"connection lost during the handshake{watched.why}")
    try:
        if ws.subprotocol != SUBPROTOCOL:
            raise Stop(PaperDBError(0, "BAD_ANSWER", f"The server does not speak {SUBPROTOCOL}"))
        await talk(Wire(ws, watched))
    finally:
        cancelled = trio.current_effective_deadline() == -math.inf
        with trio.move_on_after(CLOSE_SECONDS, shield=True) as scope:
            if cancelled:  # then so is trio-websocket's reader, and nothing reads the server's close
                watched.on_sent = scope.cancel
            await ws.aclose()
