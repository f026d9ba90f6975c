"""Databases, API keys and signing secrets: the rows that the command line writes and the servers watch.

Law: each call is one transaction, and may come from any machine while servers run. It increments
`meta.admin_version`, so that they reload these rows within a second. Only the hash of a key is stored.
"""

from __future__ import annotations

import time

from paperdb_trio.model import timestamp
from paperdb_trio.store.postgres.change_log import BEGIN, END
from paperdb_trio.store.postgres.connection import Connection
from paperdb_trio.store.postgres.session import Session
from paperdb_trio.store.postgres.wire import Statement
from paperdb_trio.store.protocol import Directory, KeyRow, RevocationRow
from paperdb_trio.store.records import NewKey


def is_empty(session: Session) -> bool:
    """Whether this is a first start: there is no database yet."""
    return not session.query("SELECT 1 FROM databases LIMIT 1")


def set_up(session: Session, key: NewKey, kid: str, secret: bytes) -> None:
    """Create what a first start needs: the database `default`, a key, a signing secret."""
    now = time.time()
    session.run(
        [
            (
                "WITH d AS (INSERT INTO databases (name, plan, created_at) VALUES ('default','team',$1) "
                "RETURNING id) INSERT INTO heads (database_id) SELECT id FROM d",
                (timestamp(now),),
            ),
            (
                "INSERT INTO keys SELECT $1, id, $2, $3, $4, $5, NULL FROM databases WHERE name='default'",
                (key.id, key.kind, key.label, key.hash, timestamp(now)),
            ),
            ("INSERT INTO signing_secrets VALUES ($1,$2,$3,NULL)", (kid, secret, now)),
            ("UPDATE meta SET value=value+1 WHERE name='admin_version'", ()),
        ]
    )


DIRECTORY: tuple[Statement, ...] = (
    BEGIN,
    ("SELECT value FROM meta WHERE name='admin_version'", ()),
    ("SELECT id, name, plan FROM databases", ()),
    ("SELECT id, database_id, kind, hash, revoked_at IS NOT NULL FROM keys", ()),
    ("SELECT kid, secret, retired_at FROM signing_secrets", ()),
)


async def directory(connection: Connection, known: int, last: int) -> Directory | None:
    """See `Store.directory`."""
    if await connection.query("SELECT value FROM meta WHERE name='admin_version'") == [(known,)]:
        return None
    revoked: Statement = (
        "SELECT id, database_id, kind, name, at, until FROM revocations WHERE id>$1 ORDER BY id",
        (last,),
    )
    _, ((version,),), databases, keys, secrets, revocations, _ = await connection.queries(
        [*DIRECTORY, revoked, END]
    )
    return Directory(
        version,
        [(id, name.decode(), plan.decode()) for id, name, plan in databases],
        [KeyRow(id.decode(), of, kind.decode(), hash, revoked) for id, of, kind, hash, revoked in keys],
        [(kid.decode(), secret, retired) for kid, secret, retired in secrets],
        [
            RevocationRow(id, of, kind.decode(), name.decode(), at, until)
            for id, of, kind, name, at, until in revocations
        ],
    )
