"""Documents and entries of indexes, as a write transaction reads and changes them in memory.

Law: that of `rows`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from paperdb_trio.json_input import decode
from paperdb_trio.model import encode
from paperdb_trio.store.catalog import AT_ONCE_BYTES, Value
from paperdb_trio.store.indexes import Index, kind, parse_field
from paperdb_trio.store.keys import interval, inverted, part, point
from paperdb_trio.store.postgres.keys import intervals, stored
from paperdb_trio.store.postgres.pending import Document, Entry
from paperdb_trio.store.postgres.rows import Rows
from paperdb_trio.store.postgres.wire import Blobs, Ints, Texts
from paperdb_trio.store.query import ask
from paperdb_trio.store.rowkeys import SEQ_BITS, span
from paperdb_trio.store.transaction import Taken


def documents_sql(order: str) -> str:
    """`(rowkey, id, data)` of the first documents from row key $1 to $2: at most $3, and no more when they have
    $4 bytes together."""
    return (
        "SELECT rowkey, id, data FROM (SELECT rowkey, id, data, sum(octet_length(data)) OVER w - "
        "octet_length(data) AS before FROM (SELECT rowkey, id, data FROM documents WHERE rowkey BETWEEN $1 "
        f"AND $2 ORDER BY rowkey {order} LIMIT $3) d WINDOW w AS (ORDER BY rowkey {order} ROWS UNBOUNDED "
        f"PRECEDING)) d WHERE before<$4 ORDER BY rowkey {order}"
    )


class Documents(Rows):
    # --- documents ---------------------------------------------------------------------------------

    def document(self, collection_id: int, id: str) -> tuple[int, int, bytes] | None:
        key = (collection_id, id)
        if key not in self._documents:
            if self._guess is not None:
                return None  # if it exists, the INSERT of one with this id fails
            found = self._query(
                "SELECT rowkey, seq, data FROM documents WHERE collection_id=$1 AND id=$2", collection_id, id
            )
            self._documents[key] = (found[0][0], found[0][1], found[0][2]) if found else None
        return self._documents[key]

    def documents(
        self, low: int, high: int, limit: int, max_bytes: int = AT_ONCE_BYTES, *, newest_first: bool = False
    ) -> list[tuple[int, str, bytes]]:
        rows = self._read(documents_sql("DESC" if newest_first else "ASC"), low, high, limit, max_bytes)
        return [(rowkey, id.decode(), data) for rowkey, id, data in rows]

    def _put(self, row: tuple[int, int, str, int, str]) -> None:
        rowkey, collection_id, id, seq, text = row
        if self.document(collection_id, id) is not None:
            raise Taken
        self._set(rowkey, collection_id, Document(id, seq, text.encode()))

    def _put_many(self, rows: list[tuple[int, int, str, int, str]]) -> None:
        ids = {row[2] for row in rows}
        if len(ids) < len(rows) or any(self.document(rows[0][1], id) is not None for id in ids):
            raise Taken
        for rowkey, collection_id, id, seq, text in rows:
            self._set(rowkey, collection_id, Document(id, seq, text.encode()))

    def expect(self, collection_id: int, documents: Iterable[tuple[str, bytes]]) -> None:
        if self._guess is not None:
            return
        expected = list(documents)
        self._read_documents(collection_id, [id for id, _ in expected])
        indexes = self._indexes.get(collection_id)
        if indexes is not None:
            own = [(at, index.id) for at, index in enumerate(indexes.all) if index.unique]
            self._expect_holders([(id, indexes.key(at, data)) for at, id in own for _, data in expected])

    def _read_documents(self, collection_id: int, ids: list[str]) -> None:
        unread = [id for id in ids if (collection_id, id) not in self._documents]
        if not unread:
            return
        for id in unread:
            self._documents[collection_id, id] = None
        for id, rowkey, seq, data in self._query(
            "SELECT d.id, rowkey, seq, data FROM unnest($2::text[]) u(id) CROSS JOIN LATERAL "
            "(SELECT id, rowkey, seq, data FROM documents WHERE collection_id=$1 AND id=u.id OFFSET 0) d",
            collection_id,
            Texts(unread),
        ):
            self._documents[collection_id, id.decode()] = (rowkey, seq, data)

    def _replace(self, rowkey: int, id: str, seq: int, data: str) -> None:
        self._set(rowkey, rowkey >> SEQ_BITS, Document(id, seq, data.encode()))

    def _set(self, rowkey: int, collection_id: int, document: Document) -> None:
        self._pending[rowkey] = document
        self._documents[collection_id, document.id] = (rowkey, document.seq, document.data)

    def _remove(self, rowkey: int, id: str) -> None:
        self._pending[rowkey] = None
        self._documents[rowkey >> SEQ_BITS, id] = None

    # --- entries of indexes ------------------------------------------------------------------------

    def _enter(self, entries: list[Entry]) -> None:
        for index_id, key, rowkey in entries:
            short = stored(key)
            self._marks[index_id, short, rowkey] = True
            held = self._held.get((index_id, short))
            if held is not None:
                self._held[index_id, short] = held | {rowkey}

    def _leave(self, entries: list[Entry]) -> None:
        for index_id, key, rowkey in entries:
            short = stored(key)
            self._marks[index_id, short, rowkey] = False
            held = self._held.get((index_id, short))
            if held is not None:
                self._held[index_id, short] = held - {rowkey}

    def _holders(self, index: Index, key: bytes, rowkey: int) -> Iterable[str]:
        others = self._holding(index, key) - {rowkey}
        return [kind(_at(self._data(other), index.path)) for other in others]

    def _expect_holders(self, keys: list[tuple[int, bytes]]) -> None:
        wanted = {(id, stored(key)) for id, key in keys} - self._held.keys()
        if not wanted:
            return
        found: dict[tuple[int, bytes], set[int]] = {held: set() for held in wanted}
        for id, key, rowkey in self._read(
            "SELECT u.id, u.key, e.rowkey FROM unnest($1::bigint[],$2::bytea[]) u(id, key) CROSS JOIN LATERAL "
            "(SELECT rowkey FROM entries WHERE index_id=u.id AND key=u.key OFFSET 0) e",
            Ints([id for id, _ in wanted]),
            Blobs([key for _, key in wanted]),
        ):
            found[id, key].add(rowkey)
        self._held |= {held: frozenset(rowkeys) for held, rowkeys in found.items()}

    def _holding(self, index: Index, key: bytes) -> frozenset[int]:
        """The row keys of the documents that have a key in an index."""
        short = stored(key)
        held = self._held.get((index.id, short))
        if held is None:
            rows = self._read("SELECT rowkey FROM entries WHERE index_id=$1 AND key=$2", index.id, short)
            held = self._held[index.id, short] = frozenset(rowkey for (rowkey,) in rows)
        return held

    def _data(self, rowkey: int) -> bytes:
        pending = self._pending.get(rowkey)
        if pending is not None:
            return pending.data
        ((data,),) = self._read("SELECT data FROM documents WHERE rowkey=$1", rowkey)
        return bytes(data)

    def _holders_unindexed(self, collection_id: int, index: Index, value: Any, rowkey: int) -> Iterable[str]:
        own = part(value)
        low, high = span(collection_id)
        while found := self.documents(low, high, 1000):
            for other, _, data in found:
                theirs = _at(data, index.path)
                if other != rowkey and part(theirs) == own:
                    yield kind(theirs)
            low = found[-1][0] + 1

    def _has_value(self, collection_id: int, index: Index | None, field: str, value: Value) -> bool:
        if index is not None and len(index.fields) == 1:
            own = part(value)
            key = inverted(own) if parse_field(index.fields[0]).descending else own
            return any(other == kind(value) for other in self._holders(index, key, 0))
        question = ask(encode({field: value}).decode())
        low, high = span(collection_id)
        if index is not None:
            lowest, highest = interval(b"", point(value), descending=parse_field(index.fields[0]).descending)
            rows = self._read(
                "SELECT d.data FROM entries e JOIN documents d ON d.rowkey=e.rowkey "
                "WHERE e.index_id=$1 AND e.key>=$2 AND e.key<$3",
                index.id,
                *intervals([(lowest, highest)])[0],
            )
            return any(self.satisfies(data, question) for (data,) in rows)
        while found := self.documents(low, high, 1000):
            if any(self.satisfies(data, question) for _, _, data in found):
                return True
            low = found[-1][0] + 1
        return False


def _at(data: bytes, path: str) -> Any:
    value: Any = decode(data)
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value
