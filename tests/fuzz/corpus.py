"""The corpus: valid and odd inputs of every kind, and the bytes that are inserted into them.

Law: data and `mutate`, whose only source of randomness is its generator argument.
"""

from __future__ import annotations

import random
from typing import Final

from tests.realtime.raw import BINARY, CLOSE, PING, PONG, TEXT, frame, say

_POST: Final = b"POST /x/docs HTTP/1.1\r\nHost: x\r\n"

HEADS: Final = [
    b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /x/docs?filter=%7B%7D&limit=3 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer k\r\nAccept: */*\r\n\r\n",
    _POST + b"Content-Type: application/json\r\nContent-Length: 2\r\n\r\n",
    _POST + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n",
    _POST + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n",
    _POST + b"Transfer-Encoding: chunked\r\nTrailer: a\r\n\r\n",
    _POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n",
    _POST + b"Expect: 100-continue\r\nContent-Length: 5\r\n\r\n",
    b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    b'\r\nDELETE /x/docs/1 HTTP/1.1\r\nHost: x\r\nIf-Match: "1"\r\nConnection: close\r\n\r\n',
    b"GET / HTTP/1.1\r\nHost: x\r\nA: b\r\n c\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\nA : b\r\n\r\n",
    b"GET / HTTP/1.1\nHost: x\n\n",
    b"OPTIONS * HTTP/1.1\r\nHost: x\r\nOrigin: null\r\nAccess-Control-Request-Method: PUT\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\n",
    b"\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n",
    b"GET http://x/healthz HTTP/1.1\r\nHost: y\r\n\r\n",
    b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
    b"HTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n",
    _POST + b"Connection: Upgrade\r\nUpgrade: x\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\nPRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"CONNECT x:80 HTTP/1.1\r\nHost: x\r\n\r\n",
    b"DESCRIBE /x RTSP/1.0\r\nHost: x\r\n\r\n",
    b"M-SEARCH * HTTP/1.1\r\nHost: x\r\n\r\n",
]
CHUNKED: Final = [
    b"5\r\nhello\r\n0\r\n\r\nGET ",
    b"1\r\na\r\n1;x=y\r\nb\r\n000A\r\n0123456789\r\n0\r\n\r\n",
    b"0\r\n\r\n",
    b"0\r\nA: b\r\nC:\r\n\r\n",
    b"2\r\n\r\n\r\n0\r\n\r\n",
    b"5\nhello\n0\n\n",
    b"-1\r\n\r\n",
    b"0x5\r\nhello\r\n0\r\n\r\n",
    b"ffffffff\r\nx",
]
FRAMES: Final = [
    say(action="ping", ref=1),
    say(action="subscribe", collection="x") + frame(PING, b"p") + say(action="ping"),
    frame(TEXT, b'{"action":', fin=False) + frame(PONG) + frame(0, b'"ping"}'),
    frame(TEXT, "é€".encode()[:1], fin=False) + frame(0, "é€".encode()[1:]),
    frame(CLOSE, b"\x03\xe8bye"),
    frame(CLOSE),
    frame(BINARY, b"\0\1"),
    frame(TEXT, b"x" * 200),
    frame(TEXT, b"y" * 1500),
    frame(TEXT, b"x", masked=False),
    frame(TEXT, b"x", rsv=4),
    frame(0, b"x"),
    b"\x81\xff" + b"\xff" * 8,
]
JSON: Final = [
    b'{"a":1,"b":[true,false,null,-0.5e-3],"c":{"d":"\\u00e9\\ud83d\\ude00"}}',
    b'["\\u0000","\\ud800"]',
    b"[" * 110 + b"]" * 110,
    b'{"a":1e999,"b":-1E-999,"c":123456789012345678901234567890}',
    b"9" * 400,
    b'"\xed\xa0\x80"',
    b' {"a":1,"a":2} ',
    b"NaN",
    b"",
]
FILTERS: Final = [
    b'{"name":"x","age":{"$gt":3,"$lte":9.5}}',
    b'{"$or":[{"a":null},{"b":{"$in":[1,"x",true,null]}},{"$and":[{"c.d.0":{"$ne":1}}]}]}',
    b'{"a":{"$exists":true},"b":{"$nin":[]},"_id":{"$in":["x"]}}',
    b'{"$not":{"a":1},"b":{"$contains":"x"},"c":{"$regex":"^a"}}',
    b'{"a":{"b":[1,{"c":2}]}}',
    b'{"a\\"b":1,"":2,"a..b":3,"$x":4}',
    b'{"_createdAt":{"$gte":"2024-01-01T00:00:00Z"}}',
    b"[]",
    b" ",
]
ACTIONS: Final = [
    b'{"action":"subscribe","collection":"x","ref":1}',
    b'{"action":"unsubscribe","collection":"x","ref":"r"}',
    b'{"action":"auth","token":"a.b.c"}',
    b'{"action":"ping","ref":null}',
    b'{"action":["ping"],"ref":{}}',
    b'{"action":"ping","ref":1e400}',
    b"[]",
]
TOKENS: Final = [
    *(
        b"\r\n",
        b"\n",
        b"\r",
        b"\0",
        b" ",
        b"\t",
        b":",
        b";",
        b",",
        b"\x7f",
        b"\x80",
        b"\xff",
        b"\xc3\x28",
        b"\v",
    ),
    *(b"\r\n\r\n", b"\r\n ", b"0\r\n\r\n", b"+", b"-", b"0x", b"99999999999999999999", b"18446744073709551616"),
    *(b"Content-Length: 1\r\n", b"Transfer-Encoding: chunked\r\n", b"Host: y\r\n", b"Connection: upgrade\r\n"),
    *(b"HTTP/1.0", b"HTTP/2.0", b"chunked", b"%00", b"%", b"?", b"#", b"http://"),
    *(b'"', b"\\", b"\\u0000", b"\\ud800", b"\\udc00", b"{", b"}", b"[", b"]", b"$", b".", b"1e309", b"null"),
    *(b'{"$or":[', b'"$in"', b'"$gt"', b'"_id"', b"\x81\x80\0\0\0\0", b"\x89\x80\0\0\0\0", b"\0\x80\0\0\0\0"),
]


def mutate(chance: random.Random, corpus: list[bytes]) -> bytes:
    """One of `corpus` with up to five changes: flips, cuts, repeats, splices, special bytes."""
    data = bytearray(chance.choice(corpus))
    for _ in range(chance.choice((0, 1, 1, 1, 2, 3, 5))):
        at = chance.randrange(len(data) + 1)
        size = chance.choice((1, 1, 2, 4, 9, 30))
        kind = chance.randrange(7)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            del data[at : at + size]
        elif kind == 2:
            del data[at:]
        elif kind == 3:
            data[at:at] = data[at : at + size] * chance.choice((1, 1, 2, 40))
        elif kind == 4:
            other = chance.choice(corpus)
            data[at:] = other[chance.randrange(len(other) + 1) :]
        else:
            data[at : at + (kind == 5)] = chance.choice(TOKENS)
    return bytes(data)


def pieces(chance: random.Random, data: bytes) -> list[bytes]:
    """`data`, cut at random places."""
    if chance.random() < 0.1:
        return [data[n : n + 1] for n in range(len(data))]
    cuts = sorted(chance.randrange(len(data) + 1) for _ in range(chance.choice((1, 2, 5))))
    return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]
