"""An HTTP/2 client that can misbehave: h2's state machine on a blocking socket."""

from __future__ import annotations

import socket
from typing import Any

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    ResponseReceived,
    SettingsAcknowledged,
    StreamEnded,
    StreamReset,
)
from h2.settings import SettingCodes

from tests.conftest import Server


def begin(window: int | None = None) -> H2Connection:
    """The client's side, without checks of its output. `window`: bytes of a response that it accepts."""
    h2 = H2Connection(H2Configuration(validate_outbound_headers=False, normalize_outbound_headers=False))
    h2.initiate_connection()
    if window is not None:
        h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: window})
    return h2


def ask(
    h2: H2Connection,
    path: str | bytes,
    method: str = "GET",
    *,
    key: str | None = None,
    end: bool = True,
    **headers: str,
) -> int:
    """Send the head of a request; returns its stream."""
    stream = h2.get_next_available_stream_id()
    pseudo = {":method": method, ":scheme": "http", ":authority": "x", ":path": path}
    fields: list[tuple[Any, Any]] = [*pseudo.items(), *headers.items()]
    if key is not None:
        fields.append(("authorization", f"Bearer {key}"))
    h2.send_headers(stream, fields, end_stream=end)
    return stream


class Http2:
    """One connection without TLS. `window`: bytes of each response that it accepts by default."""

    def __init__(self, server: Server, *, window: int | None = None) -> None:
        self.server = server
        self.socket = socket.create_connection(("127.0.0.1", server.port), timeout=20)
        self.h2 = begin(window)
        self.responses: dict[int, tuple[int, bytes]] = {}
        self.headers: dict[int, dict[str, str]] = {}
        self.open: set[int] = set()
        self.acknowledged = False
        self.went_away: ErrorCodes | int | None = None
        self.flush()

    def __enter__(self) -> Http2:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def flush(self) -> None:
        self.socket.sendall(self.h2.data_to_send())

    def ask(
        self,
        path: str | bytes,
        method: str = "GET",
        body: bytes | None = None,
        *,
        end: bool = True,
        key: bool = True,
        **headers: str,
    ) -> int:
        """Start a request; returns its stream. `flush` sends it."""
        credential = self.server.key if key else None
        stream = ask(self.h2, path, method, key=credential, end=end and body is None, **headers)
        if body is not None:
            self.h2.send_data(stream, body, end_stream=end)
        self.open.add(stream)
        return stream

    def fill(self) -> bool:
        """Receive and process more input; False at the end of the connection."""
        try:
            data = self.socket.recv(65_536)
        except ConnectionError:
            return False
        for event in self.h2.receive_data(data) if data else ():
            if isinstance(event, SettingsAcknowledged):
                self.acknowledged = True
            elif isinstance(event, ConnectionTerminated):
                self.went_away = event.error_code
            elif isinstance(event, ResponseReceived):
                headers = {name.decode(): value.decode() for name, value in event.headers}
                self.headers[event.stream_id] = headers
                self.responses[event.stream_id] = int(headers[":status"]), b""
            elif isinstance(event, DataReceived):
                status, body = self.responses[event.stream_id]
                self.responses[event.stream_id] = status, body + event.data
                self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, StreamEnded | StreamReset):
                self.open.discard(event.stream_id)
        try:
            self.flush()
        except OSError:
            return False
        return bool(data)

    def response(self, stream: int) -> tuple[int, bytes]:
        """Status and body of a complete response. Raises EOFError."""
        while stream in self.open:
            if not self.fill():
                raise EOFError
        return self.responses[stream]

    def drain(self) -> None:
        """Read to the end of the connection."""
        while self.fill():
            pass
