"""The decoder of clients' frames: wsproto's frames come out unchanged, however they are cut. A frame that
breaks RFC 6455 is refused with its code, after the frames before it, and by its header if possible."""

from __future__ import annotations

import tracemalloc
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wsproto.connection import Connection, ConnectionType
from wsproto.events import CloseConnection, Ping, Pong, TextMessage

from paperdb_trio.net.frames import (
    Frame,
    FrameDecoder,
    Opcode,
    ProtocolError,
    close_frame,
    pong_frame,
)
from tests.realtime.raw import BINARY, CLOSE, PING, PONG, TEXT, frame
from tests.realtime.test_bad_frames import BAD

pytestmark = pytest.mark.sqlite

MAX = 65_536


def decode(decoder: FrameDecoder, data: bytes, cuts: list[int]) -> tuple[list[Frame], int | None]:
    """Feed `data` cut at these places, as the connection does; returns the frames and the final error's
    code."""
    places = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
    frames: list[Frame] = []
    for start, end in pairwise(places):
        part = data[start:end]
        while True:
            try:
                found = decoder.feed(part)
            except ProtocolError as error:
                return frames, error.code
            if not found:
                break
            frames += found
            part = b""
    return frames, None


messages = st.one_of(
    st.tuples(st.just("text"), st.lists(st.text(max_size=200), min_size=1, max_size=5)),
    st.tuples(st.just("text"), st.sampled_from([["x" * n] for n in (125, 126, 65_535, 65_536)])),
    st.tuples(st.just("ping"), st.binary(max_size=125)),
    st.tuples(st.just("pong"), st.binary(max_size=125)),
)
cuts = st.lists(st.integers(0, 3000), max_size=20)


@given(st.lists(messages, max_size=6), st.none() | st.sampled_from([1000, 1001, 3000, 4999]), cuts)
def test_wsprotos_frames_are_decoded_however_they_are_cut(
    sent: list[tuple[str, list[str] | bytes]], close: int | None, cuts: list[int]
) -> None:
    client = Connection(ConnectionType.CLIENT)
    data = b""
    expected = []
    for kind, value in sent:
        if kind == "text":
            assert isinstance(value, list)
            for index, part in enumerate(value):
                data += client.send(TextMessage(part, message_finished=index == len(value) - 1))
                if index < len(value) - 1:  # control frames may come in between
                    data += client.send(Ping(b"between"))
                    expected.append(Frame(Opcode.PING, b"between"))
            expected.append(Frame(Opcode.TEXT, "".join(value).encode()))
        else:
            assert isinstance(value, bytes)
            data += client.send(Ping(value) if kind == "ping" else Pong(value))
            expected.append(Frame(Opcode.PING if kind == "ping" else Opcode.PONG, value))
    if close is not None:
        data += client.send(CloseConnection(close, "bye"))
        expected.append(Frame(Opcode.CLOSE, close.to_bytes(2, "big") + b"bye"))
    assert decode(FrameDecoder(MAX), data, cuts) == (expected, None)


@pytest.mark.parametrize("kind", BAD)
@given(cuts=st.lists(st.integers(0, 30), max_size=8))
@settings(max_examples=10)
def test_bad_frame_is_refused_with_its_code_after_the_frames_before(kind: str, cuts: list[int]) -> None:
    code, bad = BAD[kind]
    before = frame(TEXT, b"{}") + frame(PING, b"x")
    frames, error = decode(FrameDecoder(MAX), before + bad, cuts)
    assert frames == [Frame(Opcode.TEXT, b"{}"), Frame(Opcode.PING, b"x")]
    assert error == code


@pytest.mark.parametrize("length", [MAX + 1, 1 << 20, (1 << 63) - 1])
def test_large_frame_is_refused_by_its_header_alone(length: int) -> None:
    header = b"\x81\xff" + length.to_bytes(8, "big")
    assert decode(FrameDecoder(MAX), header, []) == ([], 1009)


def test_large_fragmented_message_is_refused_by_the_last_header() -> None:
    decoder = FrameDecoder(MAX)
    assert decode(decoder, frame(TEXT, b"x" * 60_000, fin=False), []) == ([], None)
    assert decode(decoder, frame(PING, b"x" * 125), []) == ([Frame(Opcode.PING, b"x" * 125)], None)
    assert decode(decoder, b"\x80\xfe" + (5_537).to_bytes(2, "big"), []) == ([], 1009)


@pytest.mark.parametrize("mask", [b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x01\x02\x03\x04", b"\0\0\0\x80"])
@pytest.mark.parametrize("size", [0, 1, 3, 4, 5, 125, 126, 1001])
def test_any_mask_is_undone(mask: bytes, size: int) -> None:
    payload = bytes(33 + n % 90 for n in range(size))
    masked = bytes(byte ^ mask[n % 4] for n, byte in enumerate(payload))
    header = frame(TEXT, payload)[: -len(payload) - 4 if payload else -4]
    assert decode(FrameDecoder(MAX), header + mask + masked, []) == ([Frame(Opcode.TEXT, payload)], None)


@given(st.binary(max_size=300), cuts)
def test_no_input_raises_other_errors(data: bytes, cuts: list[int]) -> None:
    frames, error = decode(FrameDecoder(100), data, cuts)
    assert all(len(found.payload) <= 125 for found in frames)
    assert error in (None, 1002, 1003, 1007, 1009)
    whole = decode(FrameDecoder(100), data, [])
    assert whole == (frames, error)  # where it is cut makes no difference


@pytest.mark.parametrize("code", [1000, 1003, 1007, 1011, 1014, 3000, 4999])
def test_close_code_is_read(code: int) -> None:
    (found,), error = decode(FrameDecoder(MAX), frame(CLOSE, code.to_bytes(2, "big")), [])
    assert (found.close_code(), error) == (code, None)


@pytest.mark.parametrize("code", [0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65_535])
def test_close_with_a_forbidden_code_is_refused(code: int) -> None:
    assert decode(FrameDecoder(MAX), frame(CLOSE, code.to_bytes(2, "big")), []) == ([], 1002)


def test_close_without_a_code_is_1005_and_gets_an_empty_close() -> None:
    (found,), _ = decode(FrameDecoder(MAX), frame(CLOSE), [])
    assert found.close_code() == 1005
    assert close_frame(1005) == b"\x88\x00"


def test_wsproto_reads_our_pongs_and_closes() -> None:
    client = Connection(ConnectionType.CLIENT)
    client.receive_data(pong_frame(b"x" * 125) + close_frame(4401, "token expired"))
    assert list(client.events()) == [
        Pong(payload=b"x" * 125),
        CloseConnection(code=4401, reason="token expired"),
    ]


def test_binary_is_refused_at_once() -> None:
    assert decode(FrameDecoder(MAX), frame(BINARY, b"x" * 100_000)[:2], []) == ([], 1003)
    assert decode(FrameDecoder(MAX), frame(PONG) + frame(BINARY, fin=False), [])[1] == 1003


def test_fragments_and_pieces_do_not_copy_earlier_input() -> None:
    """The buffer holds a megabyte of a message or of a frame. This counts the memory for a little more
    input."""
    begun = FrameDecoder(1 << 24)
    begun.feed(frame(TEXT, b"x" * 1_000_000, fin=False))
    half = FrameDecoder(1 << 24)
    half.feed(frame(TEXT, b"x" * 2_000_000)[:1_000_000])
    for decoder, piece in ((begun, frame(0, b"y", fin=False)), (half, b"x")):
        decoder.feed(piece)  # the buffer may reserve room ahead
        tracemalloc.start()
        try:
            for _ in range(10):
                decoder.feed(piece)
            assert tracemalloc.get_traced_memory()[1] < 500_000
        finally:
            tracemalloc.stop()
