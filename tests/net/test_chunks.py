"""Chunked bodies: the same body however it is cut, strict framing, and no quadratic work."""

from __future__ import annotations

import random
from typing import Any

import pytest

from paperdb_trio.errors import ApiError
from paperdb_trio.net.chunked import ChunkedDecoder


def decode(*pieces: bytes) -> tuple[bytes, bytes, bool]:
    decoder = ChunkedDecoder()
    rest = b""
    for piece in pieces:
        if decoder.done:
            rest += piece
        else:
            decoder.feed(piece)
    return bytes(decoder.body), decoder.rest + rest, decoder.done


def chunked(body: bytes, dice: random.Random) -> bytes:
    out, at = b"", 0
    while at < len(body):
        size = dice.randrange(1, 40)
        part = body[at : at + size]
        extension = dice.choice([b"", b"", b";x=y", b';"quoted"'])
        out += (b"%x" if dice.random() < 0.5 else b"%X") % len(part) + extension + b"\r\n" + part + b"\r\n"
        at += size
    return out + b"0\r\n" + dice.choice([b"", b"A: b\r\n", b"A:\r\nx-y: \xff\tz\r\n"]) + b"\r\n"


@pytest.mark.parametrize("seed", range(20))
def test_body_is_the_same_however_it_is_cut(seed: int) -> None:
    dice = random.Random(seed)
    body = dice.randbytes(dice.randrange(300)).replace(b"\0", b"\r\n")
    wire = chunked(body, dice) + b"GET /next"
    assert decode(wire) == (body, b"GET /next", True)
    assert decode(*(bytes([byte]) for byte in wire)) == (body, b"GET /next", True)
    cut = sorted(dice.randrange(len(wire)) for _ in range(3))
    assert decode(wire[: cut[0]], wire[cut[0] : cut[1]], wire[cut[1] : cut[2]], wire[cut[2] :])[0] == body


@pytest.mark.parametrize(
    ("wire", "why"),
    [
        (b"5\r\nhelloX\r\n", "longer than its size"),
        (b"4\r\nhello\r\n", "longer than its size"),
        (b"5\nhello\r\n0\r\n\r\n", "invalid chunk size"),
        (b"+5\r\nhello\r\n", "invalid chunk size"),
        (b" 5\r\nhello\r\n", "invalid chunk size"),
        (b"0x5\r\nhello\r\n", "invalid chunk size"),
        (b"\r\nhello\r\n", "invalid chunk size"),
        (b"-1\r\n", "invalid chunk size"),
        (b"123456789\r\n", "invalid chunk size"),
        (b"5;" + b"x" * 5000, "size line is too long"),
        (b"5;" + b"x" * 4095 + b"\r\nhello", "size line is too long"),
        (b"5;\x00\r\nhello\r\n", "invalid chunk size"),
        (b"5;\r\rhello\r\n", "invalid chunk size"),
        (b"5;\nhello\r\n", "invalid chunk size"),
        (b"000000005\r\nhello\r\n", "invalid chunk size"),
        (b"0\r\nnonsense\r\n\r\n", "invalid trailers"),
        (b"0\r\nA : b\r\n\r\n", "invalid trailers"),
        (b"0\r\nA: b\r\n c\r\n\r\n", "invalid trailers"),
        (b"0\r\nA: b\nC: d\r\n\r\n", "invalid trailers"),
        (b"0\r\nA: " + b"x" * 5000 + b"\r\n\r\n", "trailers are too long"),
    ],
)
def test_bad_framing_is_refused(wire: bytes, why: str) -> None:
    for pieces in ([wire], [bytes([byte]) for byte in wire]):
        with pytest.raises(ApiError, match=why) as caught:
            decode(*pieces)
        assert caught.value.status == 400


def test_small_chunks_in_a_large_read_are_not_copied_repeatedly() -> None:
    """With 64 KiB of one-byte chunks, copying the rest for each chunk copied 1.4 GB. Counted, not timed."""
    copied = 0

    class Counted(bytes):
        def __getitem__(self, key: Any) -> Any:
            nonlocal copied
            part = super().__getitem__(key)
            copied += len(part) if isinstance(key, slice) else 1
            return part

        def __radd__(self, other: bytes) -> Counted:
            return Counted(other + bytes(self))

    decoder = ChunkedDecoder()
    wire = b"1\r\nx\r\n" * 10_000 + b"0\r\n\r\n"
    decoder.feed(Counted(wire))
    assert bytes(decoder.body) == b"x" * 10_000
    assert 0 < copied < 5 * len(wire)
