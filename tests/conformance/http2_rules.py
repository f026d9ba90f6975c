"""The rules of RFC 9113 that a client can break: what comes of it, and by section the frames that do.

Law: bytes only. Frames that are right come first where a rule cannot be broken without them.
"""

from __future__ import annotations

import struct
from typing import Final

import hpack

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(
    10
)
END_STREAM, ACK, END_HEADERS, PADDED = 1, 1, 4, 8

Fields = list[tuple[str, str]]
_TO: Final[Fields] = [(":scheme", "https"), (":authority", "x"), (":path", "/healthz")]
GET: Final[Fields] = [(":method", "GET"), *_TO]
POST: Final[Fields] = [(":method", "POST"), *_TO]


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def _block(fields: Fields) -> bytes:
    return bytes(hpack.Encoder().encode(fields, huffman=False))


def ask(fields: Fields, stream: int = 1, *, end: bool = True) -> bytes:
    return frame(HEADERS, END_HEADERS | (END_STREAM if end else 0), stream, _block(fields))


def _setting(identifier: int, value: int) -> bytes:
    return frame(SETTINGS, payload=struct.pack(">HI", identifier, value))


def _window(increment: int, stream: int = 0) -> bytes:
    return frame(WINDOW_UPDATE, 0, stream, struct.pack(">I", increment))


def _without(name: str) -> Fields:
    return [field for field in GET if field[0] != name]


def _of_length(length: int) -> bytes:
    return ask([*POST, ("content-length", str(length))], end=False)


_EIGHT: Final = bytes(8)
_BEGUN: Final = ask(POST, end=False)
"""A request whose body is to come."""
_HALF: Final = frame(HEADERS, END_STREAM, 1, _block(GET))
"""A request whose headers continue in another frame."""

RULES: Final = {
    "no error": {
        "4.1 an undefined flag": frame(PING, 0x80, payload=_EIGHT),
        "4.1 the reserved bit": frame(PING, 0, 1 << 31, _EIGHT),
        "5.5 a frame of an unknown type": frame(0x16, payload=_EIGHT),
        "6.3 a priority": frame(PRIORITY, 0, 1, bytes(5)),
        "6.5.2 an unknown setting": _setting(0xFF, 1),
        "6.9 a larger window": _window(1),
    },
    "GOAWAY PROTOCOL_ERROR": {
        "4.3 PING between HEADERS and CONTINUATION": _HALF + frame(PING, payload=_EIGHT),
        "4.3 another stream's HEADERS before CONTINUATION": _HALF + ask(GET, 3),
        "5.1 DATA before HEADERS": frame(DATA, END_STREAM, 1, b"x"),
        "5.1 RST_STREAM before HEADERS": frame(RST_STREAM, 0, 1, bytes(4)),
        "5.1 WINDOW_UPDATE before HEADERS": _window(1, 1),
        "5.1 CONTINUATION before HEADERS": frame(CONTINUATION, END_HEADERS, 1, _block(GET)),
        "5.1.1 an even stream": ask(GET, 2),
        "5.1.1 a lower stream than before": ask(GET, 5) + ask(GET, 3),
        "6.1 DATA on stream 0": frame(DATA, END_STREAM, 0, b"x"),
        "6.1 DATA with more padding than payload": _BEGUN + frame(DATA, PADDED, 1, b"\x05abcd"),
        "6.2 HEADERS on stream 0": ask(GET, 0),
        "6.2 HEADERS with more padding than payload": frame(HEADERS, PADDED | 5, 1, b"\xff" + _block(GET)),
        "6.3 PRIORITY on stream 0": frame(PRIORITY, 0, 0, bytes(5)),
        "6.4 RST_STREAM on stream 0": frame(RST_STREAM, 0, 0, bytes(4)),
        "6.5 SETTINGS on a stream": frame(SETTINGS, 0, 1),
        "6.5.2 ENABLE_PUSH of 2": _setting(2, 2),
        "6.5.2 MAX_FRAME_SIZE of 16,383": _setting(5, 16_383),
        "6.5.2 MAX_FRAME_SIZE of 2**24": _setting(5, 1 << 24),
        "6.6 PUSH_PROMISE": _BEGUN + frame(PUSH_PROMISE, END_HEADERS, 1, b"\0\0\0\2" + _block(GET)),
        "6.7 PING on a stream": frame(PING, 0, 1, _EIGHT),
        "6.8 GOAWAY on a stream": frame(GOAWAY, 0, 1, _EIGHT),
        "6.9 a window larger by 0": _window(0),
        "6.9 a stream's window larger by 0": _BEGUN + _window(0, 1),
        "6.10 CONTINUATION after END_HEADERS": _BEGUN
        + frame(CONTINUATION, END_HEADERS, 1, _block([("a", "b")])),
        "6.10 CONTINUATION on stream 0": _HALF + frame(CONTINUATION, END_HEADERS),
        "8.1 trailers without an end": _BEGUN + ask([("a", "b")], end=False),
        "8.1.1 less than Content-Length": _of_length(2) + frame(DATA, END_STREAM, 1, b"x"),
        "8.1.1 more than Content-Length": _of_length(2) + frame(DATA, END_STREAM, 1, b"xxx"),
        "8.2.1 a name in upper case": ask([*GET, ("X-Up", "1")]),
        "8.2.2 Connection": ask([*GET, ("connection", "keep-alive")]),
        "8.2.2 TE other than trailers": ask([*GET, ("te", "gzip")]),
        "8.3 an unknown pseudo-header": ask([*GET, (":x", "1")]),
        "8.3 a response's pseudo-header": ask([*GET, (":status", "200")]),
        "8.3 a pseudo-header after others": ask([("a", "b"), *GET]),
        "8.3 a pseudo-header in trailers": _BEGUN + ask([(":method", "GET")]),
        "8.3.1 no :method": ask(_without(":method")),
        "8.3.1 no :scheme": ask(_without(":scheme")),
        "8.3.1 no :path": ask(_without(":path")),
        "8.3.1 an empty :path": ask([*_without(":path"), (":path", "")]),
        "8.3.1 two of :path": ask([*GET, (":path", "/")]),
        # For these two the RFC names COMPRESSION_ERROR and FRAME_SIZE_ERROR. h2 says no more than this.
        "4.3 a header block that cannot be decoded": frame(HEADERS, 5, 1, b"\xff" * 5),
        "6.5 an ACK with a payload": frame(SETTINGS, ACK, 0, bytes(6)),
    },
    "GOAWAY FRAME_SIZE_ERROR": {
        "4.2 DATA of 16,385 bytes": _BEGUN + frame(DATA, 0, 1, bytes(16_385)),
        "6.3 PRIORITY of 4 bytes": _BEGUN + frame(PRIORITY, 0, 1, bytes(4)),
        "6.4 RST_STREAM of 3 bytes": _BEGUN + frame(RST_STREAM, 0, 1, bytes(3)),
        "6.5 SETTINGS of 3 bytes": frame(SETTINGS, payload=bytes(3)),
        "6.7 PING of 7 bytes": frame(PING, payload=bytes(7)),
        "6.9 WINDOW_UPDATE of 3 bytes": frame(WINDOW_UPDATE, payload=bytes(3)),
    },
    "GOAWAY FLOW_CONTROL_ERROR": {
        "6.5.2 INITIAL_WINDOW_SIZE of 2**31": _setting(4, 1 << 31),
        "6.9.1 a window of more than 2**31 - 1": _window(2**31 - 1),
    },
    "RST_STREAM FLOW_CONTROL_ERROR": {
        "6.9.1 a stream's window of more than 2**31 - 1": _BEGUN + _window(2**31 - 1, 1),
    },
    "RST_STREAM STREAM_CLOSED": {
        "5.1 DATA after the end": ask(GET) + frame(DATA, END_STREAM, 1, b"x"),
        "5.1 HEADERS after the end": ask(GET) + ask(GET),
        "5.1 DATA after a reset": _BEGUN + frame(RST_STREAM, 0, 1, bytes(4)) + frame(DATA, END_STREAM, 1, b"x"),
    },
}
