"""Bad frames: each closes only its own connection, with the close code of RFC 6455 and the documentation. The
server still responds after each, and logs no traceback (the `server` fixture checks that)."""

from __future__ import annotations

import os
import random
import socket
import struct
import threading

import pytest

from tests.conftest import Server, StartServer, receive
from tests.realtime.raw import (
    BINARY,
    CLOSE,
    PING,
    PONG,
    TEXT,
    Raw,
    frame,
    handshake,
    open_raw,
    say,
)

pytestmark = pytest.mark.sqlite

BAD = {
    "binary": (1003, frame(BINARY, b"x")),
    "empty binary": (1003, frame(BINARY)),
    "binary in fragments": (1003, frame(BINARY, b"x", fin=False) + frame(0, b"y")),
    "invalid UTF-8": (1007, frame(TEXT, b"\xff\xfe")),
    "overlong UTF-8": (1007, frame(TEXT, b"\xc0\xaf")),
    "a surrogate in UTF-8": (1007, frame(TEXT, b"\xed\xa0\x80")),
    "UTF-8 cut at the end": (1007, frame(TEXT, b"\xc3")),
    "invalid UTF-8 in the first fragment": (1007, frame(TEXT, b"\xff", fin=False)),
    "invalid UTF-8 in a fragment": (1007, frame(TEXT, b"{", fin=False) + frame(0, b"\xff", fin=False)),
    "UTF-8 cut at the end of the last fragment": (1007, frame(TEXT, b"{", fin=False) + frame(0, b"\xc3")),
    "too big by one": (1009, frame(TEXT, b"x" * 65_537)),
    "too big": (1009, frame(TEXT, b"x" * 1_000_000)),
    "too big in fragments": (1009, frame(TEXT, b"x" * 40_000, fin=False) + frame(0, b"x" * 40_000)),
    "not masked": (1002, frame(TEXT, b"{}", masked=False)),
    "a ping that is not masked": (1002, frame(PING, b"", masked=False)),
    "a fragmented ping": (1002, frame(PING, b"x", fin=False)),
    "a ping of 126 bytes": (1002, frame(PING, b"x" * 126)),
    "RSV1": (1002, frame(TEXT, b"{}", rsv=4)),
    "RSV2": (1002, frame(TEXT, b"{}", rsv=2)),
    "RSV3": (1002, frame(PING, b"", rsv=1)),
    "opcode 3": (1002, frame(3, b"x")),
    "opcode 7": (1002, frame(7, b"x")),
    "opcode 11": (1002, frame(11, b"x")),
    "opcode 15": (1002, frame(15, b"x")),
    "a continuation without a message": (1002, frame(0, b"x")),
    "a text inside another text": (1002, frame(TEXT, b"{", fin=False) + frame(TEXT, b"}")),
    "a length not in its shortest form": (1002, b"\x81\xfe\0\x05\0\0\0\0hello"),
    "a length beyond 2**63": (1002, b"\x81\xff" + struct.pack(">Q", 1 << 63) + b"\0\0\0\0"),
    "a close of one byte": (1002, frame(CLOSE, b"x")),
    "a close with a reserved code": (1002, frame(CLOSE, struct.pack(">H", 1006))),
    "a close with code 0": (1002, frame(CLOSE, struct.pack(">H", 0))),
    "a close with a reason that is not UTF-8": (1007, frame(CLOSE, struct.pack(">H", 1000) + b"\xff")),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_frame_closes_only_its_own_connection(server: Server, collection: str, kind: str) -> None:
    with open_raw(server, collection) as bad, open_raw(server, collection) as good:
        bad.send(BAD[kind][1])
        bad.close_code()
        document = server.insert(collection, {})
        assert good.message()["data"] == document


@pytest.mark.parametrize("kind", BAD)
def test_bad_frame_gets_its_close_code(server: Server, kind: str) -> None:
    code, data = BAD[kind]
    with open_raw(server, "x") as raw:
        raw.send(data)
        assert raw.close_code() == code


def test_message_of_the_largest_size_is_accepted(server: Server, collection: str) -> None:
    text = say(action="ping", ref=1)[6:].ljust(65_536)
    with open_raw(server, collection) as raw:
        raw.send(frame(TEXT, text))
        assert raw.message() == {"type": "pong", "ref": 1}


@pytest.mark.executable
def test_fragments_with_pings_between_make_one_message(server: Server, collection: str) -> None:
    text = '{"action": "ping", "ref": "é😀"}'.encode()
    with open_raw(server, collection) as raw:
        raw.send(frame(TEXT, b"", fin=False))
        for index in range(len(text)):  # each UTF-8 character is cut
            raw.send(frame(0, text[index : index + 1], fin=False) + frame(PING, bytes([index])))
        raw.send(frame(0))
        pongs = [raw.frame() for _ in text]
        assert pongs == [(PONG, bytes([index])) for index in range(len(text))]
        assert raw.message() == {"type": "pong", "ref": "é😀"}


def test_frame_of_100_mb_is_refused_while_it_streams(server: Server, collection: str) -> None:
    with open_raw(server, collection) as raw:
        size = 100 << 20
        raw.send(b"\x81\xff" + struct.pack(">Q", size) + b"\0\0\0\0")
        sent = 0

        def stream() -> None:
            nonlocal sent
            try:
                for _ in range(size >> 20):
                    raw.send(b"x" * (1 << 20))
                    sent += 1
            except OSError:
                pass  # refused half-way, as it should be

        thread = threading.Thread(target=stream)
        thread.start()
        assert raw.close_code() == 1009
        raw.drop()
        thread.join(10)
        assert not thread.is_alive()
    with server.connect(collection) as ws:
        document = server.insert(collection, {})
        assert receive(ws)["data"] == document


# --- around the handshake ------------------------------------------------------------------------


@pytest.mark.parametrize("query", ["", "&since=0"], ids=["plain", "cursor"])
def test_frame_in_the_handshakes_segment_is_not_lost(server: Server, collection: str, query: str) -> None:
    with Raw(server) as raw:
        raw.send(
            handshake(server, f"/?token={server.token(collection)}{query}") + say(action="ping", ref="early")
        )
        assert raw.head()[0] == 101
        if query:
            assert raw.message()["type"] in ("ready", "gap")
        pong = raw.message()
        assert (pong["type"], pong["ref"]) == ("pong", "early")
        document = server.insert(collection, {})
        assert raw.message()["data"] == document


def test_ping_in_the_handshakes_segment_does_not_displace_ready(server: Server, collection: str) -> None:
    """The pong is written during the set-up; `ready` must still come, and come first."""
    for _ in range(20):
        with Raw(server) as raw:
            target = f"/?token={server.token(collection)}&since=now"
            raw.send(handshake(server, target) + frame(PING, b"early") * 3)
            assert raw.head()[0] == 101
            seen = [raw.frame() for _ in range(4)]
            texts = [payload for opcode, payload in seen if opcode == TEXT]
            assert len(texts) == 1
            assert texts[0].startswith(b'{"type":"ready"')
            assert [payload for opcode, payload in seen if opcode == PONG] == [b"early"] * 3


def test_bad_frame_in_the_handshakes_segment_is_refused(server: Server, collection: str) -> None:
    with Raw(server) as raw:
        raw.send(handshake(server, f"/?token={server.token(collection)}") + frame(3, b"x"))
        assert raw.head()[0] == 101
        assert raw.close_code() == 1002


def test_handshake_sent_byte_by_byte_is_accepted(server: Server, collection: str) -> None:
    with Raw(server) as raw:
        raw.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in handshake(server, f"/?token={server.token(collection)}"):
            raw.send(bytes([byte]))
        assert raw.head()[0] == 101
        for byte in say(action="ping"):
            raw.send(bytes([byte]))
        assert raw.message() == {"type": "pong"}


@pytest.mark.parametrize("way", ["close or half-close", "reset"])
def test_leaving_right_after_the_handshake_is_not_a_server_failure(start_server: StartServer, way: str) -> None:
    server = start_server()
    request = handshake(server, f"/?token={server.token('x')}&since=0")
    for number in range(60):
        raw = Raw(server)
        raw.send(request)
        if way == "reset":
            raw.drop()
        elif number % 2:
            raw.socket.shutdown(socket.SHUT_WR)
            raw.drain()
        raw.socket.close()
    with server.connect("x") as ws:
        document = server.insert("x", {})
        assert receive(ws)["data"] == document
    assert server.stop() == 0
    assert "Traceback" not in server.stderr


# --- after the server's close frame --------------------------------------------------------------


@pytest.mark.parametrize(
    "partings",
    [
        pytest.param([frame(PING, b"x")], id="ping"),
        pytest.param([frame(TEXT, b"x" * 70_000)], id="too big"),
        pytest.param([frame(TEXT, b"{}"), frame(3, b"x"), frame(CLOSE, b"x")], id="text, protocol errors"),
    ],
)
def test_input_after_the_servers_close_frame_is_not_a_server_failure(
    start_server: StartServer, partings: list[bytes]
) -> None:
    """A client does not know yet that the server is closing; its keepalive may cross the close frame."""
    server = start_server()
    for parting in partings:
        with open_raw(server, "x") as raw:
            raw.send(frame(BINARY, b"x"))
            opcode, payload = raw.frame()
            assert (opcode, payload[:2]) == (CLOSE, (1003).to_bytes(2, "big"))
            raw.send(parting)
            assert raw.close_code() is None
    assert server.stop() == 0
    assert "Traceback" not in server.stderr


def test_last_frame_and_a_reset_are_not_a_server_failure(start_server: StartServer) -> None:
    server = start_server()
    token = server.token("x")
    for last in (frame(3, b"x"), frame(BINARY), frame(TEXT, b"x" * 70_000), frame(PING), say(a=1)):
        for count in range(1, 20):
            raw = Raw(server)
            raw.send(handshake(server, f"/?token={token}"))
            assert raw.head()[0] == 101
            raw.send(last * count)
            raw.drop()
    with server.connect("x") as ws:
        assert ws.ping().wait(5)
    assert server.stop() == 0
    assert "Traceback" not in server.stderr


def test_random_frames_close_only_their_own_connections(server: Server, collection: str) -> None:
    seed = int.from_bytes(os.urandom(4), "big")
    chance = random.Random(seed)
    with server.connect(collection) as ws:
        for _ in range(30):
            with open_raw(server, collection) as raw:
                kind = chance.choice((b"\x81", b"\x88", b"\x89", b"\x01", b"\x00", b""))
                raw.send(kind + chance.randbytes(chance.choice((1, 7, 64, 2000))))
                raw.socket.shutdown(socket.SHUT_WR)
                code = raw.close_code()
                assert code in (None, 1000, 1002, 1003, 1005, 1007, 1009) or 3000 <= code < 5000, f"seed {seed}"
        document = server.insert(collection, {})
        assert receive(ws)["data"] == document
