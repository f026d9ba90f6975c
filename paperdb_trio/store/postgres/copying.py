"""A PostgreSQL database as a source or a target of `paperdb copy`. See `store.copying`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from paperdb_trio.errors import StartupError
from paperdb_trio.store.copying import BATCH_ROWS, META, Copyable, Entry, columns
from paperdb_trio.store.postgres.keys import stored
from paperdb_trio.store.postgres.prepare import unavailable
from paperdb_trio.store.postgres.session import Session
from paperdb_trio.store.postgres.wire import Blobs, ConnectionLost, Ints, Parameter, ServerError, Texts
from paperdb_trio.store.rowkeys import SEQ_BITS, SEQ_MASK

_BROKEN: Final = "(SELECT database_id, max(until) AS until FROM breaks GROUP BY database_id)"
"""Where the history of a log broke last: the copy begins there, as a file's log has no breaks."""
_FROM: Final = {
    "meta": META,
    "databases": (
        "(SELECT d.*, h.head, greatest(h.trimmed, b.until) AS trimmed FROM databases d JOIN heads h "
        f"ON h.database_id=d.id LEFT JOIN {_BROKEN} b ON b.database_id=d.id) t"
    ),
    "collections": (
        "(SELECT c.*, n.documents, n.newest FROM collections c JOIN counts n ON n.collection_id=c.id) t"
    ),
    "changes": (
        f"(SELECT c.*, c.database_id<<{SEQ_BITS}|seq AS rowkey FROM changes c LEFT JOIN {_BROKEN} b "
        "ON b.database_id=c.database_id WHERE c.seq>coalesce(b.until,0)) t"
    ),
}
_PAGED: Final = {
    "documents": "rowkey>$1",
    "changes": f"(database_id, seq)>($1::bigint>>{SEQ_BITS}, $1::bigint&{SEQ_MASK})",
}
"""The large tables are read page by page, in the order of this condition."""
_ORDER: Final = {"documents": "rowkey", "changes": "database_id, seq"}
BATCH_BYTES: Final = 16 * 1024 * 1024
_INTO: Final = {
    "databases": (
        "WITH d AS (INSERT INTO databases (id, name, plan, created_at) "
        "SELECT id, name, plan, created_at FROM t) INSERT INTO heads (database_id, head, trimmed) "
        "SELECT id, head, trimmed FROM t"
    ),
    "collections": (
        "WITH c AS (INSERT INTO collections (id, database_id, name, schema, indexes) "
        "SELECT id, database_id, name, schema, indexes FROM t) "
        "INSERT INTO counts (collection_id, documents, newest) SELECT id, documents, newest FROM t"
    ),
    "changes": (
        "INSERT INTO changes (database_id, seq, at, size, type, collection, data, id, before, txn) SELECT "
        f"rowkey>>{SEQ_BITS}, rowkey&{SEQ_MASK}, at, size, type, collection, data, id, before, txn FROM t"
    ),
}
_IDENTITIES: Final = ("databases", "collections", "index_builds", "requests", "revocations", "audit")
_TYPES: Final = {"i": "bigint", "t": "text", "b": "bytea", "f": "text"}


class Database(Copyable):
    def __init__(self, session: Session, *, read_only: bool) -> None:
        self._session = session
        session.query("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY" if read_only else "BEGIN")

    def is_empty(self) -> bool:
        return not self._session.query("SELECT 1 FROM signing_secrets LIMIT 1")

    def rows(self, table: str) -> Iterator[list[tuple[Any, ...]]]:
        names = [name for name, _ in columns(table)]
        texts = [at for at, (_, type) in enumerate(columns(table)) if type == "t"]
        select = f"SELECT {','.join(names)} FROM {_FROM.get(table, table)}"
        if table not in _PAGED:
            found = self._session.query(f"{select} ORDER BY {names[0]}")
            if found:
                yield [_decoded(row, texts) for row in found]
            return
        after = 0
        page = (
            f"SELECT {','.join(names)} FROM (SELECT *, sum(octet_length(data)) OVER (ORDER BY {names[0]} "
            f"ROWS UNBOUNDED PRECEDING)-octet_length(data) AS before_it FROM ({select} WHERE {_PAGED[table]} "
            f"ORDER BY {_ORDER[table]} LIMIT $2) t) t WHERE before_it<$3 ORDER BY {names[0]}"
        )
        while found := self._session.query(page, after, BATCH_ROWS, BATCH_BYTES):
            yield [_decoded(row, texts) for row in found]
            after = found[-1][0]

    def write(self, table: str, rows: list[tuple[Any, ...]]) -> None:
        own = columns(table)
        arrays = [f"${at}::{_TYPES[type]}[]" for at, (_, type) in enumerate(own, 1)]
        selected = [f"{name}::float8 AS {name}" if type == "f" else name for name, type in own]
        names = ",".join(name for name, _ in own)
        source = f"t AS (SELECT {','.join(selected)} FROM unnest({','.join(arrays)}) u({names}))"
        into = _INTO.get(table, f"INSERT INTO {table} ({names}) SELECT {names} FROM t")
        sql = f"WITH {source}, {into[5:]}" if into.startswith("WITH ") else f"WITH {source} {into}"
        values = zip(*rows, strict=True)
        self._session.query(sql, *(_array(type, of) for (_, type), of in zip(own, values, strict=True)))

    def enter(self, entries: list[Entry]) -> None:
        if entries:
            ids, keys, rowkeys = zip(*entries, strict=True)
            self._session.query(
                "INSERT INTO entries SELECT * FROM unnest($1::bigint[],$2::bytea[],$3::bigint[])",
                Ints(ids),
                Blobs([stored(key) for key in keys]),
                Ints(rowkeys),
            )

    def commit(self) -> None:
        for table in _IDENTITIES:
            self._session.add(
                f"SELECT setval(pg_get_serial_sequence('{table}','id'), greatest(max(id),1)) FROM {table}"
            )
        self._session.query("COMMIT")

    def close(self) -> None:
        self._session.close()

    def told(self, error: Exception) -> StartupError | None:
        return unavailable("Cannot copy", error) if isinstance(error, ServerError | ConnectionLost) else None


def _decoded(row: tuple[Any, ...], texts: list[int]) -> tuple[Any, ...]:
    values = list(row)
    for at in texts:
        if values[at] is not None:
            values[at] = values[at].decode()
    return tuple(values)


def _array(type: str, values: Sequence[Any]) -> Parameter:
    if type == "i":
        return Ints(values)
    if type == "b":
        return Blobs(values)
    return Texts([repr(value) if isinstance(value, float) else value for value in values])
