"""A snapshot: the documents of a query at one seq, in messages of a bounded size.

Law: a large one lies in a file without a name while its client reads it, so that a slow client costs disk, not
memory.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import IO, Final

import trio

from paperdb_trio.errors import ApiError
from paperdb_trio.match.query import Query
from paperdb_trio.model import encode
from paperdb_trio.net.frames import text_frame
from paperdb_trio.store.protocol import Store
from paperdb_trio.store.query import ask
from paperdb_trio.store.view import View

PIECE_BYTES: Final = 64 * 1024
"""Bytes of documents in one message, about."""
IN_MEMORY: Final = 256 * 1024
"""Bytes of messages that are not put into a file."""
MOST: Final = 10_000_000
"""Documents. The bytes of a find are the narrower limit."""


class Snapshot:
    """`seq`: the last change that its documents show. `size`: bytes of the documents. Iterate over it once, for
    the messages as frames; close it."""

    def __init__(self, seq: int, size: int, frames: list[bytes], file: IO[bytes] | None) -> None:
        self.seq = seq
        self.size = size
        self._frames = frames
        self._file = file

    def __iter__(self) -> Iterator[bytes]:
        if self._file is None:
            yield from self._frames
            return
        while size := self._file.read(8):
            yield self._file.read(int.from_bytes(size, "big"))

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


async def take_snapshot(store: Store, database_id: int, query: Query, directory: Path) -> closing[Snapshot]:
    """Find the documents of a query. `directory` is for the file. Raises what `Store.find` does, and a 503
    `STORAGE_ERROR` without room for the file."""
    found = await store.find(
        database_id,
        query.collection,
        filter=None,
        sort=None,
        limit=MOST,
        offset=0,
        select=None,
        count=False,
        view=View(ask(encode(query.filter).decode()), query.select),
    )
    pieces = _pieces(query, found.seq, found.documents)
    size = sum(map(len, found.documents))
    if size <= IN_MEMORY:
        return closing(Snapshot(found.seq, size, [*pieces], None))
    try:
        file = await trio.to_thread.run_sync(_write, directory, pieces)
    except OSError as error:
        raise ApiError(
            503,
            "STORAGE_ERROR",
            f"There is no room for a large snapshot: {os.strerror(error.errno or 0)}. Try again later.",
            headers={"Retry-After": "1"},
        ) from None
    return closing(Snapshot(found.seq, size, [], file))


def _pieces(query: Query, seq: int, documents: list[bytes]) -> Iterator[bytes]:
    head = b'{"type":"snapshot","query":"%b","seq":%d,"documents":[' % (query.id.encode(), seq)
    piece: list[bytes] = []
    size = 0
    for document in documents:
        if piece and size + len(document) > PIECE_BYTES:
            yield text_frame(head + b",".join(piece) + b'],"last":false}')
            piece, size = [], 0
        piece.append(document)
        size += len(document)
    yield text_frame(head + b",".join(piece) + b'],"last":true}')


def _write(directory: Path, pieces: Iterator[bytes]) -> IO[bytes]:
    file = tempfile.TemporaryFile(dir=directory)  # noqa: SIM115 - the snapshot closes it
    try:
        for piece in pieces:
            file.write(len(piece).to_bytes(8, "big") + piece)
        file.seek(0)
    except BaseException:
        file.close()
        raise
    return file
