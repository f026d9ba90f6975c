"""The history that the change logs belong to, and where it broke.

A standby that takes over, and a server that is recovered to a moment, begin another timeline: what the old one
committed last may be lost. Its seqs must not be used again, because clients have cursors there. So the first
session on another timeline lets every log go on far beyond its head, and records what it left out. A cursor up
to the old head is good, as nothing before it was lost; one beyond it is in the break.

Law: a session that may write, and the watcher, look at the history before anything else. So nothing is written
on a new timeline before the break is recorded.
"""

from __future__ import annotations

from typing import Final

from paperdb_trio.store.postgres.session import Session
from paperdb_trio.store.postgres.wire import Statement
from paperdb_trio.store.rowkeys import EPOCH, JUMP

IDS: Final = 1000
"""Allowance for databases and revocations that were created and lost."""

HISTORY: Final = (
    "hashtextextended(concat_ws('/', (SELECT system_identifier FROM pg_control_system()), "
    "left(pg_walfile_name(pg_current_wal_lsn()),8), 'paperdb.heads'::regclass::oid),0)"
)
"""The cluster, its timeline, and the table: that of a restored dump is another one."""

SAME: Final = f"SELECT value={HISTORY} FROM meta WHERE name='history'"
BREAK: Final[tuple[Statement, ...]] = (
    ("BEGIN", ()),
    ("SELECT 1 FROM meta WHERE name='history' FOR UPDATE", ()),  # one node does it
    ("SELECT 1 FROM heads ORDER BY database_id FOR UPDATE", ()),
    (
        f"WITH m AS (UPDATE meta SET value={HISTORY} WHERE name='history' AND value<>{HISTORY} RETURNING 1), "
        # Nodes may know a lost version of keys, and lost revocations.
        f"v AS (UPDATE meta SET value=value+{JUMP} WHERE name='admin_version' AND EXISTS (SELECT FROM m)), "
        "n AS (UPDATE heads h SET head=greatest(o.head, "
        f"floor((extract(epoch FROM clock_timestamp())-{EPOCH})*1000)::bigint)+{JUMP} FROM heads o "
        "WHERE o.database_id=h.database_id AND EXISTS (SELECT FROM m) "
        "RETURNING h.database_id, o.head AS since, h.head AS until), "
        "b AS (INSERT INTO breaks (database_id, since, until, at) SELECT database_id, since, until, "
        "floor(extract(epoch FROM clock_timestamp())*1000)::bigint FROM n) "
        f"SELECT setval(s, nextval(s)+{IDS}) FROM m, unnest(ARRAY[pg_get_serial_sequence('databases','id'), "
        "pg_get_serial_sequence('revocations','id')]::regclass[]) s",
        (),
    ),
    ("COMMIT", ()),
)
"""Records the break, unless another node just has."""


def keep_history(session: Session) -> None:
    if session.query(SAME) != [(True,)]:
        session.run(BREAK)


BREAKS: Final = "SELECT database_id, since, until FROM breaks ORDER BY until"
