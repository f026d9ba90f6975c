"""The rows of databases, keys, signing secrets and the audit log, as administrators see them.

Law: reads only, within the caller's transaction. Pages are in an order that writes do not change, so that a
page's last item says where the next one begins.
"""

from __future__ import annotations

import msgspec

from paperdb_trio.measures import Family, gauge
from paperdb_trio.model import timestamp
from paperdb_trio.store.protocol import Directory, KeyRow, RevocationRow
from paperdb_trio.store.records import AuditEntry, DatabaseInfo, IndexInfo, KeyInfo, SecretInfo, made
from paperdb_trio.store.registry import index_infos
from paperdb_trio.store.rowkeys import span
from paperdb_trio.store.sizes import MOST_COLLECTIONS, documents
from paperdb_trio.store.sqlite import library as sqlite
from paperdb_trio.store.webhooks import Progress, Webhook, WebhookInfo

EVERYTHING = 2**62
"""A limit that is none."""


def directory(connection: sqlite.Connection, known: int, last: int) -> Directory | None:
    """See `Store.directory`."""
    (version,) = connection.execute("SELECT value FROM meta WHERE name='admin_version'").fetchone()
    if version == known:
        return None
    return Directory(
        version,
        connection.execute("SELECT id, name, plan FROM databases").fetchall(),
        [
            KeyRow(id, of, kind, label, hash, revoked_at is not None, expires)
            for id, of, kind, label, hash, revoked_at, expires in connection.execute(
                "SELECT id, database_id, kind, label, hash, revoked_at, expires_at/1000.0 FROM keys"
            )
        ],
        connection.execute("SELECT kid, secret, retired_at FROM signing_secrets").fetchall(),
        [
            RevocationRow(*row)
            for row in connection.execute(
                "SELECT id, database_id, kind, name, at, until FROM revocations WHERE id>? ORDER BY id", (last,)
            )
        ],
    )


def databases(
    connection: sqlite.Connection, *, name: str | None = None, after: str = "", limit: int = EVERYTHING
) -> list[DatabaseInfo]:
    """By name; only that one, if a `name` is given."""
    found = connection.execute(
        "SELECT name, plan, created_at, (SELECT count(*) FROM collections c WHERE c.database_id=d.id), "
        "(SELECT coalesce(sum(documents),0) FROM collections c WHERE c.database_id=d.id), head, trimmed "
        "FROM databases d WHERE name>?1 AND (?2 IS NULL OR name=?2) ORDER BY name LIMIT ?3",
        (after, name, limit),
    )
    return [made(DatabaseInfo, row) for row in found]


def keys(
    connection: sqlite.Connection,
    *,
    id: str | None = None,
    database: str | None = None,
    after: str | None = None,
    limit: int = EVERYTHING,
) -> list[KeyInfo]:
    """The oldest first; only that with the `id`, those of a `database`, those beyond the id `after`."""
    found = connection.execute(
        "SELECT k.id, k.kind, k.label, d.name, k.created_at, k.expires_at, k.last_used_at, k.revoked_at "
        "FROM keys k LEFT JOIN databases d ON d.id=k.database_id WHERE (?1 IS NULL OR k.id=?1) "
        "AND (?2 IS NULL OR d.name=?2) AND (?3 IS NULL OR "
        "(k.created_at, k.id) > ((SELECT created_at FROM keys WHERE id=?3), ?3)) "
        "ORDER BY k.created_at, k.id LIMIT ?4",
        (id, database, after, limit),
    )
    return [made(KeyInfo, (*row[:5], _time(row[5]), _time(row[6]), row[7])) for row in found]


def secrets(connection: sqlite.Connection) -> list[SecretInfo]:
    """The newest first."""
    found = connection.execute(
        "SELECT kid, created_at, retired_at FROM signing_secrets ORDER BY created_at DESC, kid"
    )
    return [
        SecretInfo(id=kid, created_at=timestamp(at), retired_at=None if retired is None else timestamp(retired))
        for kid, at, retired in found
    ]


def audit(
    connection: sqlite.Connection, *, before: int = EVERYTHING, limit: int = EVERYTHING
) -> list[AuditEntry]:
    """The newest first, of those with an id under `before`."""
    found = connection.execute(
        "SELECT id, at, by, action, database, target, details FROM audit WHERE id<? ORDER BY id DESC LIMIT ?",
        (before, limit),
    )
    return [
        made(AuditEntry, (id, timestamp(at / 1000), *row, msgspec.json.decode(details)))
        for id, at, *row, details in found
    ]


def indexes(connection: sqlite.Connection, database_id: int, collection: str) -> list[IndexInfo] | None:
    """None if there is no such collection."""
    row = connection.execute(
        "SELECT id, indexes, documents FROM collections WHERE database_id=? AND name=?",
        (database_id, collection),
    ).fetchone()
    if row is None:
        return None
    id, text, documents = row
    (last,) = connection.execute(
        "SELECT max(rowkey) FROM documents WHERE rowkey BETWEEN ? AND ?", span(id)
    ).fetchone()
    builds = dict(
        connection.execute("SELECT id, rowkey FROM index_builds WHERE collection_id=?", (id,)).fetchall()
    )
    return index_infos(id, text, documents, builds, last)


def sizes(connection: sqlite.Connection) -> list[Family]:
    """See `Store.sizes`."""
    found = connection.execute(
        "SELECT d.name, c.name, c.documents FROM collections c JOIN databases d ON d.id=c.database_id "
        "ORDER BY c.documents DESC LIMIT ?",
        (MOST_COLLECTIONS,),
    )
    pages, size = (connection.execute(f"PRAGMA {of}").fetchone()[0] for of in ("freelist_count", "page_size"))
    unused = gauge("paperdb_storage_unused_bytes", "Free pages of the database file", pages * size)
    return [documents(found.fetchall()), unused]


def webhook_infos(connection: sqlite.Connection) -> list[WebhookInfo]:
    """The oldest first."""
    found = connection.execute(
        "SELECT w.id, d.name, url, collection, filter, "
        "iif(failures>0,iif(dead_at IS NULL,'retrying','dead'),iif(dead_at IS NULL,'live','paused')), cursor, "
        "max(d.head-cursor,0), "
        "failures, error, failing_since, delivered_at, w.created_at "
        "FROM webhooks w JOIN databases d ON d.id=w.database_id ORDER BY w.created_at, w.id"
    )
    return [
        made(
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
        for row in found
    ]


def webhooks(connection: sqlite.Connection, known: int) -> tuple[int, list[Webhook]] | None:
    """See `Store.webhooks`."""
    (version,) = connection.execute("SELECT value FROM meta WHERE name='admin_version'").fetchone()
    if version == known:
        return None
    return version, webhook_rows(connection)


def webhook_rows(connection: sqlite.Connection) -> list[Webhook]:
    found = connection.execute(
        "SELECT id, database_id, url, collection, filter, secret, created_at, generation, cursor, until, "
        "failures, error, failing_since, delivered_at, dead_at FROM webhooks ORDER BY created_at, id"
    )
    return [made(Webhook, (*row[:8], Progress(*row[8:]))) for row in found]


def _time(ms: int | None) -> str | None:
    return None if ms is None else timestamp(ms / 1000)
