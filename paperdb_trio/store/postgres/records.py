"""The rows of databases, keys, signing secrets and the audit log, as administrators see them.

Law: no I/O: each function makes a statement, and says what its rows mean. Pages are in an order that writes do
not change, so that a page's last item says where the next one begins.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Generic, NamedTuple, TypeVar

import msgspec

from paperdb_trio.measures import Family
from paperdb_trio.model import timestamp
from paperdb_trio.store.postgres.wire import Parameter, Row
from paperdb_trio.store.records import AuditEntry, DatabaseInfo, IndexInfo, KeyInfo, SecretInfo, made
from paperdb_trio.store.registry import index_infos
from paperdb_trio.store.rowkeys import SEQ_BITS
from paperdb_trio.store.sizes import MOST_COLLECTIONS, documents
from paperdb_trio.store.webhooks import Progress, Webhook, WebhookInfo

T = TypeVar("T")

EVERYTHING: Final = 2**62
"""A limit that is none."""


class Asked(NamedTuple, Generic[T]):
    sql: str
    parameters: tuple[Parameter, ...]
    made: Callable[[list[Row]], T]


def databases(
    *, name: str | None = None, after: str = "", limit: int = EVERYTHING
) -> Asked[list[DatabaseInfo]]:
    """By name; only that one, if a `name` is given."""
    return Asked(
        "SELECT d.name, d.plan, d.created_at, (SELECT count(*) FROM collections c WHERE c.database_id=d.id), "
        "(SELECT coalesce(sum(n.documents),0)::bigint FROM collections c JOIN counts n ON n.collection_id=c.id "
        "WHERE c.database_id=d.id), h.head, h.trimmed FROM databases d JOIN heads h ON h.database_id=d.id "
        "WHERE d.name>$1 AND ($2::text IS NULL OR d.name=$2) ORDER BY d.name LIMIT $3",
        (after, name, limit),
        lambda rows: [_made(DatabaseInfo, row) for row in rows],
    )


def keys(
    *, id: str | None = None, database: str | None = None, after: str | None = None, limit: int = EVERYTHING
) -> Asked[list[KeyInfo]]:
    """The oldest first; only that with the `id`, those of a `database`, those beyond the id `after`."""
    return Asked(
        "SELECT k.id, k.kind, k.label, d.name, k.created_at, k.expires_at, k.last_used_at, k.revoked_at "
        "FROM keys k LEFT JOIN databases d ON d.id=k.database_id WHERE ($1::text IS NULL OR k.id=$1) "
        "AND ($2::text IS NULL OR d.name=$2) AND ($3::text IS NULL OR "
        "(k.created_at, k.id) > ((SELECT created_at FROM keys WHERE id=$3), $3)) "
        "ORDER BY k.created_at, k.id LIMIT $4",
        (id, database, after, limit),
        lambda rows: [_made(KeyInfo, (*row[:5], _time(row[5]), _time(row[6]), row[7])) for row in rows],
    )


def secrets() -> Asked[list[SecretInfo]]:
    """The newest first."""
    return Asked(
        "SELECT kid, created_at, retired_at FROM signing_secrets ORDER BY created_at DESC, kid",
        (),
        lambda rows: [
            SecretInfo(
                id=kid.decode(),
                created_at=timestamp(at),
                retired_at=None if retired is None else timestamp(retired),
            )
            for kid, at, retired in rows
        ],
    )


def audit(*, before: int = EVERYTHING, limit: int = EVERYTHING) -> Asked[list[AuditEntry]]:
    """The newest first, of those with an id under `before`."""
    return Asked(
        "SELECT id, at, by, action, database, target, details FROM audit WHERE id<$1 ORDER BY id DESC LIMIT $2",
        (before, limit),
        lambda rows: [
            _made(AuditEntry, (id, timestamp(at / 1000), *row, msgspec.json.decode(details)))
            for id, at, *row, details in rows
        ],
    )


def sizes() -> Asked[list[Family]]:
    """See `Store.sizes`."""
    return Asked(
        "SELECT d.name, c.name, n.documents FROM collections c JOIN databases d ON d.id=c.database_id "
        "JOIN counts n ON n.collection_id=c.id ORDER BY n.documents DESC LIMIT $1",
        (MOST_COLLECTIONS,),
        lambda rows: [documents((name.decode(), of.decode(), int(count)) for name, of, count in rows)],
    )


def indexes(database_id: int, collection: str) -> Asked[list[IndexInfo] | None]:
    """None if there is no such collection."""
    return Asked(
        # Row keys tell how far an index is: counting entries would take as long as building it.
        "SELECT c.id, c.indexes, n.documents, (SELECT max(rowkey) FROM documents WHERE rowkey BETWEEN "
        f"c.id<<{SEQ_BITS} AND (c.id+1<<{SEQ_BITS})-1), ARRAY(SELECT b.id||':'||b.rowkey FROM index_builds b "
        "WHERE b.collection_id=c.id)::text FROM collections c JOIN counts n ON n.collection_id=c.id "
        "WHERE c.database_id=$1 AND c.name=$2",
        (database_id, collection),
        _indexes,
    )


def webhook_infos() -> Asked[list[WebhookInfo]]:
    """The oldest first."""
    return Asked(
        "SELECT w.id, d.name, w.url, w.collection, w.filter, CASE WHEN w.failures>0 THEN CASE WHEN w.dead_at "
        "IS NULL THEN 'retrying' ELSE 'dead' END WHEN w.dead_at IS NULL THEN 'live' ELSE 'paused' END, "
        "w.cursor, greatest(h.head-w.cursor-"
        "(SELECT coalesce(sum(until-since),0) FROM breaks b WHERE b.database_id=d.id AND b.since>=w.cursor)"
        "::bigint,0), w.failures, "
        "w.error, w.failing_since, w.delivered_at, w.created_at FROM webhooks w "
        "JOIN databases d ON d.id=w.database_id JOIN heads h ON h.database_id=d.id ORDER BY w.created_at, w.id",
        (),
        lambda rows: [
            _made(
                WebhookInfo,
                (
                    *row[:4],
                    None if row[4] is None else msgspec.json.decode(row[4]),
                    *row[5:10],
                    _time(row[10]),
                    _time(row[11]),
                    row[12],
                ),
            )
            for row in rows
        ],
    )


def webhooks() -> Asked[tuple[int, list[Webhook]]]:
    """With the version of what administrators changed."""
    return Asked(
        "SELECT m.value, w.id, database_id, url, collection, filter, secret, created_at, generation, cursor, "
        "until, failures, error, failing_since, delivered_at, dead_at FROM meta m LEFT JOIN webhooks w ON TRUE "
        "WHERE m.name='admin_version' ORDER BY created_at, id",
        (),
        lambda rows: (rows[0][0], [_webhook(row[1:]) for row in rows if row[1] is not None]),
    )


def _webhook(row: Row) -> Webhook:
    cursor, until, failures, error, *times = row[8:]
    progress = Progress(cursor, until, failures, None if error is None else error.decode(), *times)
    found: Webhook = _made(Webhook, (*row[:8], progress))
    return found


def _indexes(rows: list[Row]) -> list[IndexInfo] | None:
    if not rows:
        return None
    id, text, documents, last, building = rows[0]
    pairs = [item.split(":") for item in building.decode().strip("{}").split(",") if item]
    built = {int(index_id): int(rowkey) for index_id, rowkey in pairs}
    return index_infos(id, None if text is None else text.decode(), documents, built, last)


def _time(ms: int | None) -> str | None:
    return None if ms is None else timestamp(ms / 1000)


def _made(type: Any, row: Any) -> Any:
    return made(type, [value.decode() if isinstance(value, bytes) else value for value in row])
