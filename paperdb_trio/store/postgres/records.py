"""The rows of databases, keys, signing secrets and the record in PostgreSQL, as administrators see them.

Law: no I/O: statements, and what their rows mean. Pages are in an order that writes do not change.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from paperdb_trio.model import timestamp
from paperdb_trio.store.postgres.wire import Row, Statement
from paperdb_trio.store.records import AuditEntry, DatabaseInfo, IndexInfo, KeyInfo, SecretInfo, made
from paperdb_trio.store.registry import index_infos

EVERYTHING = 2**62
"""A limit that is none."""


def databases(name: str | None = None, after: str = "", limit: int = EVERYTHING) -> Statement:
    return (
        "SELECT d.name, d.plan, d.created_at, count(c.id), coalesce(sum(n.documents),0)::bigint, h.head, "
        "h.trimmed FROM databases d JOIN heads h ON h.database_id=d.id "
        "LEFT JOIN collections c ON c.database_id=d.id LEFT JOIN counts n ON n.collection_id=c.id "
        "WHERE d.name>$1 AND ($2::text IS NULL OR d.name=$2) "
        "GROUP BY d.id, h.database_id ORDER BY d.name LIMIT $3",
        (after, name, limit),
    )


def database_infos(rows: Sequence[Row]) -> list[DatabaseInfo]:
    return [made(DatabaseInfo, _texts(row)) for row in rows]


def keys(
    id: str | None = None, database: str | None = None, after: str | None = None, limit: int = EVERYTHING
) -> Statement:
    return (
        "SELECT k.id, k.kind, k.label, d.name, k.created_at, k.expires_at, k.last_used_at, k.revoked_at "
        "FROM keys k LEFT JOIN databases d ON d.id=k.database_id WHERE ($1::text IS NULL OR k.id=$1) "
        "AND ($2::text IS NULL OR d.name=$2) AND ($3::text IS NULL OR "
        "(k.created_at, k.id) > ((SELECT created_at FROM keys WHERE id=$3), $3)) "
        "ORDER BY k.created_at, k.id LIMIT $4",
        (id, database, after, limit),
    )


def key_infos(rows: Sequence[Row]) -> list[KeyInfo]:
    return [made(KeyInfo, (*row[:5], _time(row[5]), _time(row[6]), row[7])) for row in map(_texts, rows)]


SECRETS: Statement = (
    "SELECT kid, created_at, retired_at FROM signing_secrets ORDER BY created_at DESC, kid",
    (),
)


def secret_infos(rows: Sequence[Row]) -> list[SecretInfo]:
    return [
        SecretInfo(
            id=kid.decode(),
            created_at=timestamp(at),
            retired_at=None if retired is None else timestamp(retired),
        )
        for kid, at, retired in rows
    ]


def audit(before: int, limit: int) -> Statement:
    return (
        "SELECT id, at, by, action, database, target, details FROM audit WHERE id<$1 ORDER BY id DESC LIMIT $2",
        (before, limit),
    )


def audit_entries(rows: Sequence[Row]) -> list[AuditEntry]:
    return [
        made(AuditEntry, (id, timestamp(at / 1000), *row, msgspec.json.decode(details)))
        for id, at, *row, details in map(_texts, rows)
    ]


def indexes(database_id: int, collection: str) -> Statement:
    return (
        "SELECT c.id, c.indexes, n.documents, b.id, b.rowkey, (SELECT max(rowkey) FROM documents d "
        "WHERE d.rowkey BETWEEN c.id<<40 AND ((c.id+1)<<40)-1) FROM collections c "
        "JOIN counts n ON n.collection_id=c.id LEFT JOIN index_builds b ON b.collection_id=c.id "
        "WHERE c.database_id=$1 AND c.name=$2",
        (database_id, collection),
    )


def infos_of_indexes(rows: Sequence[Row]) -> list[IndexInfo] | None:
    """None if there is no such collection."""
    if not rows:
        return None
    id, text, documents, _, _, last = rows[0]
    builds = {build: rowkey for _, _, _, build, rowkey, _ in rows if build is not None}
    return index_infos(id, None if text is None else text.decode(), documents, builds, last)


def _texts(row: Row) -> tuple[Any, ...]:
    return tuple(value.decode() if isinstance(value, bytes) else value for value in row)


def _time(ms: int | None) -> str | None:
    return None if ms is None else timestamp(ms / 1000)
