"""Bodies that say much in few bytes, one after another, beside a normal client.

Millions of empty arrays, numbers at the ends of what a double holds, digits in thousands, keys, escapes,
whitespace: each is answered as it should be, nobody waits long (the longest wait is printed for each), and
memory returns.

    python -m tests.stress.heavy --mebibytes 16
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

from tests.stress.harness import PROMISE, Footprint, new_server, normal, report

MEBIBYTE = 2**20
JSON = {"Content-Type": "application/json"}
KEPT = 2**27
"""Bytes that may stay resident: SQLite's caches of pages, and what malloc keeps of the largest. The second and
the tenth time it is the same."""


def repeated(unit: bytes, size: int, around: bytes = b"[%b]") -> bytes:
    """An array of so many units that it has `size` bytes."""
    return around % b",".join([unit] * (size // (len(unit) + 1)))


def bodies(size: int, document: int) -> Iterator[tuple[str, str, bytes, int]]:
    """Name, route, body and expected status; `size` is the largest body, `document` the largest document."""
    for name, unit in {
        "empty arrays": b"[]",
        "empty objects": b"{}",
        "zeros": b"0",
        "1e308": b"1e308",
        "smallest double": b"5e-324",
        "308 digits": b"1" * 308,
        "pairs": b'{"a":[0]}',
        "escapes": b'"\\n\\u00e9"',
    }.items():
        one = repeated(unit, document * 9 // 20, b'{"a":[%b]}')
        yield f"{name}, a document", "docs", one, 201
        yield f"{name}, a bulk of documents", "bulk", repeated(one, size), 200
        yield f"{name}, too large a document", "docs", repeated(unit, size, b'{"a":[%b]}'), 413
        yield f"{name}, too many in a bulk", "bulk", repeated(unit, size), 413
    keys = b"{%b}" % b",".join(b'"%07d":0' % n for n in range(document // 13))
    yield "keys, a document", "docs", keys, 201
    yield "keys, a bulk of documents", "bulk", repeated(keys, size), 200
    yield "names that are to be unique", "docs", repeated(b'"a"', document // 2, b'{"unique":[%b]}'), 400
    yield "an escaped NUL and arrays", "docs", repeated(b"[]", document // 2, b'{"a":["\\\\u0000",%b]}'), 201
    yield "a number too large, behind zeros", "docs", repeated(b"0", document // 2, b'{"a":[%b,1e309]}'), 400
    yield "broken escapes", "bulk", b"[" + b"\\u" * (size // 2 - 1), 400
    yield "whitespace", "docs", b" " * (size - 2) + b"{}", 201
    yield "brackets", "bulk", b"[" * size, 400


async def heavy(mebibytes: int) -> dict[str, Any]:
    """Run it; returns the longest waits. Raises AssertionError for a broken promise."""
    size = mebibytes * MEBIBYTE
    document = min(MEBIBYTE, size // 8)
    limits = {"--max-body-bytes": size, "--max-document-bytes": document, "--cache-bytes": 0}
    server = new_server(*(str(word) for option in limits.items() for word in option))
    waits: dict[str, Any] = {}
    try:
        await asyncio.to_thread(server.insert, "heavy", {})
        before = Footprint(server)
        for name, route, body, status in bodies(size, document):
            delays: list[float] = []
            stop = asyncio.Event()
            other = asyncio.create_task(normal(server, delays, stop))
            post = partial(server.request, "POST", f"/heavy/{route}", headers=JSON, content=body)
            answer = await asyncio.to_thread(post)
            stop.set()
            await other
            if answer.status_code != status:
                raise PROMISE(f"{name}: {answer.status_code} instead of {status}: {answer.text[:200]}")
            if route == "bulk" and status == 200 and answer.json()["failed"]:
                raise PROMISE(f"{name}: {answer.json()['errors'][0]}")
            waits[name] = f"{max(delays) * 1e3:.0f} ms"
        kept = await before.is_back(KEPT)
    finally:
        server.kill()
    return {**waits, "memory kept, KiB": kept // 1024}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mebibytes", type=int, default=16)
    return report(heavy(parser.parse_args().mebibytes), 0)


if __name__ == "__main__":
    sys.exit(main())
