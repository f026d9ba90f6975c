"""The opening handshake of a WebSocket (RFC 6455, section 4.2), from a parsed head.

Law: no I/O; a refusal or the response's bytes come out.
"""

from __future__ import annotations

from binascii import a2b_base64, b2a_base64
from hashlib import sha1
from typing import Final

from paperdb_trio.errors import ApiError, bad_request
from paperdb_trio.net.head import Head

_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


def check_handshake(head: Head) -> None:
    """Raises a 400 or 426 if this is not a handshake of version 13."""
    if head.version != "1.1":
        raise bad_request("A WebSocket needs HTTP/1.1")
    if head.headers.get("sec-websocket-version") != "13":
        raise ApiError(
            426,
            "UPGRADE_REQUIRED",
            "This server speaks WebSocket version 13",
            headers={"Sec-WebSocket-Version": "13", "Upgrade": "websocket"},
        )
    if head.content_length or head.chunked:
        raise bad_request("A WebSocket handshake has no body")
    try:
        key = a2b_base64(head.headers.get("sec-websocket-key", ""), strict_mode=True)
    except ValueError:
        key = b""
    if len(key) != 16:
        raise bad_request("The Sec-WebSocket-Key header is missing or malformed")


def handshake_response(head: Head, subprotocol: str | None, request_id: str) -> bytes:
    """The 101 for a checked handshake."""
    key = head.headers["sec-websocket-key"].encode("ascii")
    accept = b2a_base64(sha1(key + _GUID).digest(), newline=False)
    protocol = b"" if subprotocol is None else b"Sec-WebSocket-Protocol: %b\r\n" % subprotocol.encode("latin-1")
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: %b\r\nX-Request-Id: %b\r\n%b\r\n" % (accept, request_id.encode(), protocol)
    )
