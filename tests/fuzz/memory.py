"""Our parsers against mutated inputs, in memory, and against independent parsers.

Law: a parser raises only its own error, and gives the same result however its bytes are cut. We refuse every
framing that h11 refuses, except `LENIENT`. Everything that wsproto sends arrives.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Final

import h11
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, Message, Ping, TextMessage

from paperdb_trio.errors import ApiError
from paperdb_trio.json_input import parse_json
from paperdb_trio.model import encode
from paperdb_trio.net.chunked import ChunkedDecoder
from paperdb_trio.net.frames import FrameDecoder, Opcode, ProtocolError
from paperdb_trio.net.head import Head, parse_head
from paperdb_trio.realtime.handshake import check_handshake
from paperdb_trio.realtime.protocol import BadMessage, parse_action
from paperdb_trio.store.query import ask
from paperdb_trio.store.sqlite import library as sqlite
from paperdb_trio.store.sqlite.question import condition
from tests.fuzz.corpus import ACTIONS, CHUNKED, FILTERS, FRAMES, HEADS, JSON, mutate, pieces

MAX_MESSAGE: Final = 1024

Check = Callable[[random.Random], str]
"""Makes one input and checks it; returns the outcome. Raises AssertionError, or an error that escaped."""


def _refused(error: ApiError) -> str:
    assert error.status in (400, 417, 501), error
    return "refused"


# --- heads ---------------------------------------------------------------------------------------


def _is_handshake(head: Head) -> bool:
    try:
        check_handshake(head)
    except ApiError:
        return False
    return True


LENIENT: Final[dict[str, Callable[[bytes, Head], bool]]] = {
    # RFC 9112, section 2.2: a server should skip a blank line before a request.
    "a blank line first": lambda data, head: data.startswith(b"\r\n"),
    "a handshake that is refused": lambda data, head: head.is_websocket and not _is_handshake(head),
}
"""Heads that h11 refuses and we accept, and why two readers of the same bytes still agree."""


def check_head(chance: random.Random) -> str:
    data = (mutate(chance, HEADS) + b"\r\n\r\n").partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
    try:
        head = parse_head(data)
    except ApiError as error:
        return _refused(error)
    assert head.method, head
    assert head.target, head
    assert not (head.chunked and head.content_length is not None), head
    theirs = h11.Connection(h11.SERVER)
    theirs.receive_data(data)
    try:
        event = theirs.next_event()
    except h11.RemoteProtocolError as error:
        for why, excuse in LENIENT.items():
            if excuse(data, head):
                return f"taken, not by h11: {why}"
        raise AssertionError(f"h11 refuses ({error}) what we read as {head}") from None
    assert isinstance(event, h11.Request), event
    target = event.target.decode()
    absolute = target.lower().startswith("http") and target.endswith(head.target.removeprefix("/"))
    assert absolute or target == head.target, (event, head)
    assert event.method.decode() == head.method, (event, head)
    framing = [
        (name, value) for name, value in event.headers if name in (b"content-length", b"transfer-encoding")
    ]
    if head.content_length is not None:
        assert [(name, int(value)) for name, value in framing] == [(b"content-length", head.content_length)], (
            head
        )
    else:
        assert head.chunked == bool(framing), (framing, head)
    tokens = b",".join(value for name, value in event.headers if name == b"connection").lower().split(b",")
    assert head.keep_alive == (head.version == "1.1" and b"close" not in map(bytes.strip, tokens)), head
    return "taken"


# --- bodies --------------------------------------------------------------------------------------


def _decode(parts: list[bytes]) -> tuple[bytes, bool, bytes] | str:
    decoder = ChunkedDecoder()
    rest = b""
    try:
        for part in parts:
            if decoder.done:
                rest += part
            else:
                decoder.feed(part)
    except ApiError:
        return "refused"
    return bytes(decoder.body), decoder.done, decoder.rest + rest


def _decode_by_h11(data: bytes) -> tuple[bytes, bool] | str:
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + data)
    body = b""
    try:
        while True:
            event = connection.next_event()
            if isinstance(event, h11.Data):
                body += event.data
            elif event is h11.NEED_DATA or isinstance(event, h11.EndOfMessage):
                return body, event is not h11.NEED_DATA
    except h11.RemoteProtocolError:
        return "refused"


def check_chunked(chance: random.Random) -> str:
    data = mutate(chance, CHUNKED)
    ours = _decode([data])
    cut = _decode(pieces(chance, data))
    assert ours == cut, (data, ours, cut)
    if isinstance(ours, str):
        return ours
    if ours[1]:
        theirs = _decode_by_h11(data)
        if theirs == "refused" and re.search(rb"\r\n(transfer-encoding|content-length|host):", data.lower()):
            return "taken, not by h11: trailers that frame nothing"
        assert theirs == ours[:2], (data, ours, theirs)
        return "taken"
    return "not whole"


# --- frames --------------------------------------------------------------------------------------


def _frames(parts: list[bytes]) -> tuple[list[tuple[int, bytes]], int]:
    """The frames, and the code of the final error, or 0."""
    decoder, frames = FrameDecoder(MAX_MESSAGE), []
    try:
        for part in parts:
            got = decoder.feed(part)
            while got:
                frames += [(int(frame.opcode), frame.payload) for frame in got]
                got = decoder.feed(b"")
    except ProtocolError as error:
        return frames, error.code
    return frames, 0


def check_frames(chance: random.Random) -> str:
    data = mutate(chance, FRAMES)
    ours, code = _frames([data])
    assert (ours, code) == _frames(pieces(chance, data)), data
    for opcode, payload in ours:
        assert opcode != Opcode.TEXT or len(payload) <= MAX_MESSAGE
        if opcode == Opcode.TEXT:
            payload.decode()
    return f"closed with {code}" if code else "taken"


def check_round_trip(chance: random.Random) -> str:
    """We read what wsproto's client sends, however fragmented and with pings between."""
    text = "".join(chance.choice("aé€\U0001f600\0") for _ in range(chance.choice((0, 1, 30, 125, 126, 200))))
    client = Connection(ConnectionType.CLIENT)
    cuts = sorted(chance.randrange(len(text) + 1) for _ in range(chance.randrange(4)))
    parts = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    data, pings = b"", 0
    for n, part in enumerate(parts):
        data += client.send(TextMessage(part, message_finished=n == len(parts) - 1))
        if chance.random() < 0.3:
            data += client.send(Ping(b"p"))
            pings += 1
    frames, code = _frames(pieces(chance, data))
    assert code == 0, (code, data)
    assert [payload.decode() for opcode, payload in frames if opcode == Opcode.TEXT] == [text]
    assert len(frames) == 1 + pings
    return "arrived"


def check_wsproto_agrees(chance: random.Random) -> str:
    """If we and wsproto's server side both accept a text, it is the same text."""
    data = mutate(chance, FRAMES)
    ours, code = _frames([data])
    if code or any(opcode == Opcode.CLOSE for opcode, _ in ours):
        return "not taken"
    server = Connection(ConnectionType.SERVER)
    server.receive_data(data)
    texts, parts = [], ""
    for event in server.events():
        assert not isinstance(event, BytesMessage), (data, event)
        if isinstance(event, Message):
            parts += event.data
            if event.message_finished:
                texts.append(parts)
                parts = ""
    assert texts == [payload.decode() for opcode, payload in ours if opcode == Opcode.TEXT], data
    return "the same"


# --- JSON ----------------------------------------------------------------------------------------


def check_json(chance: random.Random) -> str:
    data = mutate(chance, JSON)
    try:
        value = parse_json(data)
    except ApiError as error:
        return _refused(error)
    assert parse_json(encode(value)) == value, data
    return "taken"


_SQLITE: Final = sqlite.create(Path(":memory:"))
_SQLITE.execute("CREATE TABLE documents (id TEXT, data TEXT)")


def check_filter(chance: random.Random) -> str:
    text = mutate(chance, FILTERS).decode("utf-8", "surrogateescape")
    try:
        question = ask(text)
    except ApiError as error:
        return _refused(error)
    sql = f"EXPLAIN SELECT id FROM documents WHERE {condition(question)[0]}"
    _SQLITE.execute(sql, condition(question)[1]).fetchall()
    return "taken"


def check_action(chance: random.Random) -> str:
    data = mutate(chance, ACTIONS)
    try:
        action = parse_action(data)
    except BadMessage as bad:
        encode(bad.ref)
        return "refused"
    encode(action.ref)
    return str(action.name)


CHECKS: Final[dict[str, Check]] = {
    "head": check_head,
    "chunked": check_chunked,
    "frames": check_frames,
    "round trip": check_round_trip,
    "wsproto": check_wsproto_agrees,
    "json": check_json,
    "filter": check_filter,
    "action": check_action,
}


def fuzz(inputs: int, seed: int) -> Counter[str]:
    """Check this many inputs, each from its own generator: `one(name, seed, n)` repeats it."""
    counts: Counter[str] = Counter()
    names = list(CHECKS)
    for n in range(inputs):
        name = names[n % len(names)]
        counts[f"{name}: {one(name, seed, n)}"] += 1
    return counts


def one(name: str, seed: int, n: int) -> str:
    try:
        return CHECKS[name](random.Random(f"{seed}/{n}"))
    except Exception as error:
        raise AssertionError(f"{name!r}, seed {seed}, input {n}: {error!r}") from error
