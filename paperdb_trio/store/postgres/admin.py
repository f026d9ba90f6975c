"""The command line's way to databases, keys and signing secrets, and what servers know of these.

Law: each call is one transaction, and may come from any machine while servers run. They read what changed
within a second.
"""

from __future__ import annotations

import time
from typing import TypeVar

from paperdb_trio.store.operations import Operation
from paperdb_trio.store.postgres.change_log import BEGIN, END
from paperdb_trio.store.postgres.connection import Connection
from paperdb_trio.store.postgres.session import Session
from paperdb_trio.store.postgres.transaction import Transaction
from paperdb_trio.store.postgres.wire import Statement
from paperdb_trio.store.protocol import Directory, KeyRow, RevocationRow

Result = TypeVar("Result")


def is_empty(session: Session) -> bool:
    """Whether this is a first start."""
    return not session.query("SELECT 1 FROM signing_secrets LIMIT 1")


def apply(session: Session, operation: Operation[Result]) -> Result:
    """Apply an operation of `administration`. Raises its `ApiError`."""
    now = time.time()
    tx = Transaction(session, now, now)
    tx.begin()
    try:
        result = operation.apply(tx)
        session.run([("COMMIT", ())])
    except BaseException:
        session.rollback()
        raise
    return result


DIRECTORY: tuple[Statement, ...] = (
    BEGIN,
    ("SELECT value FROM meta WHERE name='admin_version'", ()),
    ("SELECT id, name, plan FROM databases", ()),
    (
        "SELECT id, database_id, kind, label, hash, revoked_at IS NOT NULL, (expires_at/1000.0)::float8 "
        "FROM keys",
        (),
    ),
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
