"""Frames: ours follow RFC 6455 at every boundary of the length encoding."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wsproto.connection import Connection, ConnectionType
from wsproto.events import Ping, TextMessage

from paperdb_trio.delivery.encodings import (
    CURSOR,
    PLAIN,
    SSE,
    Encoding,
    cursor_event,
    plain_event,
    sse_messages,
)
from paperdb_trio.model import Change
from paperdb_trio.net.frames import ping_frame, text_frame, text_frames

SIZES = [0, 1, 125, 126, 127, 4095, 4096, 4097, 65_535, 65_536, 65_537, 1_000_000]


def texts(data: bytes) -> list[str]:
    """The messages that an independent client (wsproto) reads, each whole and in one frame."""
    client = Connection(ConnectionType.CLIENT)
    client.receive_data(data)
    found = []
    parts = ""
    for event in client.events():
        assert isinstance(event, TextMessage)
        parts += event.data
        if event.message_finished:
            found.append(parts)
            parts = ""
    assert parts == ""
    return found


@pytest.mark.parametrize("size", SIZES)
def test_wsproto_reads_frames_of_any_size(size: int) -> None:
    payload = b"x" * size
    assert texts(text_frame(payload)) == ["x" * size]
    head = {True: 2, False: 4 if size < 65_536 else 10}[size < 126]
    assert len(text_frame(payload)) == size + head


def test_joined_frames_equal_single_frames() -> None:
    payloads = [b"x" * size for size in SIZES]
    assert text_frames(payloads) == b"".join(map(text_frame, payloads))
    assert texts(text_frames(payloads)) == ["x" * size for size in SIZES]
    assert text_frames([]) == b""


@given(st.lists(st.text(max_size=300), max_size=10))
def test_any_text_passes(values: list[str]) -> None:
    assert texts(text_frames([value.encode() for value in values])) == values


def test_ping_frame_is_a_ping() -> None:
    client = Connection(ConnectionType.CLIENT)
    client.receive_data(ping_frame())
    assert list(client.events()) == [Ping(payload=b"")]


CHANGE = Change(1, 42, "update", "messages", "a", '{"text":"é 😀"}'.encode())


def test_events_have_the_documented_fields_in_both_modes() -> None:
    assert plain_event(CHANGE).decode() == '{"type":"update","collection":"messages","data":{"text":"é 😀"}}'
    assert cursor_event(CHANGE).decode() == (
        '{"seq":42,"type":"update","collection":"messages","data":{"text":"é 😀"}}'
    )


@pytest.mark.parametrize("encoding", [PLAIN, CURSOR], ids=["plain", "cursor"])
def test_encoding_turns_events_into_frames(encoding: Encoding) -> None:
    event = encoding.event(CHANGE)
    assert texts(encoding.join([event, event])) == [event.decode()] * 2


def test_server_sent_events_carry_their_seq_as_id() -> None:
    event = SSE.event(CHANGE)
    assert sse_messages([event]) == b"id: 42\ndata: " + event + b"\n\n"
    assert SSE.join([event, event]).count(b"\n\n") == 2
