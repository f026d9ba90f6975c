"""WebSocket frames as bytes (RFC 6455, section 5).

Law: no I/O; the server's side only. Our frames are whole, unmasked, with FIN. A client's frames are decoded
strictly, and refused as early as possible: a frame that is too large by its header alone.
"""

from __future__ import annotations

import codecs
from enum import IntEnum
from typing import Final, NamedTuple


class Opcode(IntEnum):
    CONTINUATION = 0
    TEXT = 1
    BINARY = 2
    CLOSE = 8
    PING = 9
    PONG = 10


_FIN: Final = 0x80


def _header(size: int, opcode: int = Opcode.TEXT) -> bytes:
    if size < 126:
        return bytes((_FIN | opcode, size))
    if size < 65536:
        return bytes((_FIN | opcode, 126)) + size.to_bytes(2, "big")
    return bytes((_FIN | opcode, 127)) + size.to_bytes(8, "big")


# Looking a header up is 3 times as fast as building it; it makes no difference for events beyond 4 KiB.
_HEADERS: Final = [_header(size) for size in range(4096)]


def text_frame(payload: bytes) -> bytes:
    size = len(payload)
    return (_HEADERS[size] if size < 4096 else _header(size)) + payload


def text_frames(payloads: list[bytes]) -> bytes:
    """One frame for each payload, in one buffer."""
    parts: list[bytes] = []
    for payload in payloads:
        size = len(payload)
        parts.append(_HEADERS[size] if size < 4096 else _header(size))
        parts.append(payload)
    return b"".join(parts)


def ping_frame() -> bytes:
    return _header(0, Opcode.PING)


def pong_frame(payload: bytes) -> bytes:
    return _header(len(payload), Opcode.PONG) + payload


def close_frame(code: int, reason: str = "") -> bytes:
    """`code` 1005 (none was given) gives an empty close frame. A reason is cut at 123 bytes."""
    payload = b"" if code == 1005 else code.to_bytes(2, "big") + _cut(reason)
    return _header(len(payload), Opcode.CLOSE) + payload


def _cut(reason: str) -> bytes:
    """As much as fits into a close frame, cut between characters, because half of one is not UTF-8."""
    return reason.encode()[:123].decode("utf-8", "ignore").encode()


# --- what clients send -----------------------------------------------------------------------------


class Frame(NamedTuple):
    """A whole text message (unfragmented, `payload` valid UTF-8), or a control frame."""

    opcode: Opcode
    payload: bytes

    def close_code(self) -> int:
        """The code of a close frame; 1005 for none."""
        return int.from_bytes(self.payload[:2], "big") if self.payload else 1005


class ProtocolError(Exception):
    """A client broke the protocol; close the connection with `code`."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


class FrameDecoder:
    """Decodes a client's frames incrementally; buffers at most one message of the largest size."""

    __slots__ = ("_begun", "_buffer", "_max_bytes")

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._buffer = bytearray()  # less than a frame
        self._begun: tuple[bytearray, codecs.IncrementalDecoder] | None = None
        """A fragmented message: what has come, and the check of its UTF-8."""

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that `data` completes. Raises `ProtocolError` after the frames before it were returned."""
        buffer = self._buffer
        buffer += data
        frames: list[Frame] = []
        at = 0
        try:
            while len(buffer) - at >= 2:
                size = self._frame_size(at)
                if size is None or len(buffer) - at < size:
                    break
                frame = self._take(bytes(buffer[at : at + size]))
                at += size
                if frame is not None:
                    frames.append(frame)
        except ProtocolError:
            if not frames:  # else the next bytes, or `feed(b"")`, raise it again
                raise
        finally:
            del buffer[:at]
        return frames

    def _frame_size(self, start: int) -> int | None:
        """The size of the frame that begins at `start` in the buffer, or None if it is not known yet."""
        first, second = self._buffer[start], self._buffer[start + 1]
        opcode, length, at = first & 0x0F, second & 0x7F, 2
        if first & 0x70:
            raise ProtocolError(1002, "reserved bits are set, but no extension was negotiated")
        if opcode not in _OPCODES:
            raise ProtocolError(1002, f"unknown opcode {opcode}")
        if not second & 0x80:
            raise ProtocolError(1002, "a client's frames must be masked")
        if opcode >= Opcode.CLOSE and (length > 125 or not first & _FIN):
            raise ProtocolError(1002, "a control frame must not be fragmented or exceed 125 bytes")
        if opcode == Opcode.BINARY:
            raise ProtocolError(1003, "send JSON text, not binary")
        if opcode == Opcode.CONTINUATION and self._begun is None:
            raise ProtocolError(1002, "a continuation without a message")
        if opcode == Opcode.TEXT and self._begun is not None:
            raise ProtocolError(1002, "a message begins inside another")
        if length >= 126:
            at = 4 if length == 126 else 10
            if len(self._buffer) < start + at:
                return None
            least = 126 if length == 126 else 65536
            length = int.from_bytes(self._buffer[start + 2 : start + at], "big")
            if length < least or length >= 1 << 63:
                raise ProtocolError(1002, "a length is not in its shortest form")
        before = 0 if self._begun is None or opcode >= Opcode.CLOSE else len(self._begun[0])
        if before + length > self._max_bytes and opcode < Opcode.CLOSE:
            raise ProtocolError(1009, f"a message may have at most {self._max_bytes} bytes")
        return at + 4 + length

    def _take(self, raw: bytes) -> Frame | None:
        """The frame in `raw`, or None for a part of a message that is not complete yet."""
        opcode, length = Opcode(raw[0] & 0x0F), raw[1] & 0x7F
        at = 2 if length < 126 else 4 if length == 126 else 10
        payload = _unmask(raw[at + 4 :], raw[at : at + 4])
        if opcode == Opcode.CLOSE:
            _check_close(payload)
        if opcode >= Opcode.CLOSE:
            return Frame(opcode, payload)
        if raw[0] & _FIN and self._begun is None:
            _check_utf8(payload)
            return Frame(Opcode.TEXT, payload)
        return self._join(payload, last=bool(raw[0] & _FIN))

    def _join(self, fragment: bytes, *, last: bool) -> Frame | None:
        """The message, if `fragment` is its last one. UTF-8 is checked fragment by fragment."""
        message, utf8 = self._begun or (bytearray(), _Utf8())
        try:
            utf8.decode(fragment, last)
        except UnicodeDecodeError:
            raise _not_utf8() from None
        message += fragment  # in place: a copy for each of many empty fragments would be costly
        self._begun = None if last else (message, utf8)
        return Frame(Opcode.TEXT, bytes(message)) if last else None


_OPCODES: Final = frozenset(Opcode)
_Utf8: Final = codecs.getincrementaldecoder("utf-8")


def _unmask(payload: bytes, mask: bytes) -> bytes:
    size = len(payload)
    key = int.from_bytes((mask * (size // 4 + 1))[:size], "little")
    return (int.from_bytes(payload, "little") ^ key).to_bytes(size, "little")


def _check_utf8(payload: bytes) -> None:
    try:
        payload.decode()
    except UnicodeDecodeError:
        raise _not_utf8() from None


def _not_utf8() -> ProtocolError:
    return ProtocolError(1007, "text that is not UTF-8")


def _check_close(payload: bytes) -> None:
    if not payload:
        return
    code = int.from_bytes(payload[:2], "big")
    if len(payload) == 1 or not (1000 <= code <= 1014 or 3000 <= code < 5000) or code in (1004, 1005, 1006):
        raise ProtocolError(1002, "an invalid close code")
    _check_utf8(payload[2:])
