"""What a write transaction has changed in memory, and the statements that write it.

Law: no I/O.
"""

from __future__ import annotations

from typing import NamedTuple

from paperdb_trio.store.postgres.wire import Blobs, Ints, Statement, Texts
from paperdb_trio.store.rowkeys import SEQ_BITS, SEQ_MASK

Entry = tuple[int, bytes, int]
"""Of an index: its id, a key, a row key."""


class Document(NamedTuple):
    id: str
    seq: int
    data: bytes


class Savepoint:
    """What was pending when it was made. `begun`: PostgreSQL has a savepoint, too."""

    def __init__(self, pending: dict[int, Document | None], marks: dict[Entry, bool]) -> None:
        self.pending, self.marks = pending, marks
        self.begun = False


def statements_of(pending: dict[int, Document | None], marks: dict[Entry, bool]) -> list[Statement]:
    """First what is removed, so that an id or a value can be taken anew."""
    statements: list[Statement] = []
    removed = [rowkey for rowkey, document in pending.items() if document is None]
    if removed:
        statements.append(("DELETE FROM documents WHERE rowkey=ANY($1::bigint[])", (Ints(removed),)))
    kept = [(rowkey, document) for rowkey, document in pending.items() if document is not None]
    fresh = [(rowkey, document) for rowkey, document in kept if document.seq == rowkey & SEQ_MASK]
    changed = [(rowkey, document) for rowkey, document in kept if document.seq != rowkey & SEQ_MASK]
    for rows, conflict in (
        (changed, " ON CONFLICT (rowkey) DO UPDATE SET seq=excluded.seq, data=excluded.data"),
        (fresh, ""),
    ):
        if rows:
            statements.append(
                (
                    "INSERT INTO documents (rowkey, collection_id, id, seq, data) SELECT u.rowkey, "
                    f"u.rowkey>>{SEQ_BITS}, u.id, u.seq, u.data FROM unnest($1::bigint[],$2::text[],"
                    f"$3::bigint[],$4::text[]) u(rowkey, id, seq, data){conflict}",
                    (
                        Ints([rowkey for rowkey, _ in rows]),
                        Texts([document.id for _, document in rows]),
                        Ints([document.seq for _, document in rows]),
                        Texts([document.data for _, document in rows]),
                    ),
                )
            )
    for entries, sql in (
        (
            [entry for entry, mark in marks.items() if not mark],
            "DELETE FROM entries e USING unnest($1::bigint[],$2::bytea[],$3::bigint[]) "
            "u(index_id, key, rowkey) WHERE e.index_id=u.index_id AND e.key=u.key AND e.rowkey=u.rowkey",
        ),
        (
            [entry for entry, mark in marks.items() if mark],
            "INSERT INTO entries SELECT * FROM unnest($1::bigint[],$2::bytea[],$3::bigint[]) "
            "ON CONFLICT DO NOTHING",
        ),
    ):
        if entries:
            ids, keys, rowkeys = zip(*entries, strict=True)
            statements.append((sql, (Ints(ids), Blobs(keys), Ints(rowkeys))))
    return statements
