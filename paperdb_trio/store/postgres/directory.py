"""What every node must know of databases, keys, secrets and revocations: see `Store.directory`."""

from __future__ import annotations

from paperdb_trio.store.postgres.change_log import BEGIN, END
from paperdb_trio.store.postgres.connection import Connection
from paperdb_trio.store.postgres.wire import Statement
from paperdb_trio.store.protocol import Directory, KeyRow, RevocationRow

_VERSION: Statement = ("SELECT value FROM meta WHERE name='admin_version'", ())
_ALL: tuple[Statement, ...] = (
    BEGIN,
    _VERSION,
    ("SELECT id, name, plan FROM databases", ()),
    (
        "SELECT id, database_id, kind, label, hash, revoked_at IS NOT NULL, expires_at/1000.0::float8 "
        "FROM keys",
        (),
    ),
    ("SELECT kid, secret, retired_at FROM signing_secrets", ()),
)


async def directory(connection: Connection, known: int, last: int) -> Directory | None:
    if await connection.queries([_VERSION]) == [[(known,)]]:
        return None
    revoked: Statement = (
        "SELECT id, database_id, kind, name, at, until FROM revocations WHERE id>$1 ORDER BY id",
        (last,),
    )
    _, ((version,),), databases, keys, secrets, revocations, _ = await connection.queries([*_ALL, revoked, END])
    return Directory(
        version,
        [(id, name.decode(), plan.decode()) for id, name, plan in databases],
        [
            KeyRow(id.decode(), of, kind.decode(), label.decode(), hash, revoked, expires)
            for id, of, kind, label, hash, revoked, expires in keys
        ],
        [(kid.decode(), secret, retired) for kid, secret, retired in secrets],
        [
            RevocationRow(id, of, kind.decode(), name.decode(), at, until)
            for id, of, kind, name, at, until in revocations
        ],
    )
