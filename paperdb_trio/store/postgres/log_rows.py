"""The change log, and what goes by its time, as rows of a write transaction: remembered requests, revocations.

Law: that of `rows`.
"""

from __future__ import annotations

from typing import Any, Final

from paperdb_trio.store.postgres.rows import Rows
from paperdb_trio.store.postgres.wire import Texts
from paperdb_trio.store.rowkeys import SEQ_BITS, SEQ_MASK
from paperdb_trio.store.transaction import Remembered

BOUNDS: Final = "SELECT h.database_id, h.head, h.trimmed FROM heads h JOIN databases d ON d.id=h.database_id"
REQUESTS: Final = (
    "SELECT r.scope, r.key, r.at, r.digest, r.response, r.body, r.change "
    "FROM unnest($1::text[],$2::text[]) u(scope, key) JOIN requests r ON r.scope=u.scope AND r.key=u.key"
)


class Log(Rows):
    # --- the change log ----------------------------------------------------------------------------

    def _logged_data(self, rowkey: int) -> bytes | None:
        found = self._query(
            "SELECT data FROM changes WHERE database_id=$1 AND seq=$2", rowkey >> SEQ_BITS, rowkey & SEQ_MASK
        )
        return found[0][0] if found else None

    def bounds_of(self, database_id: int) -> tuple[int, int]:
        head, trimmed, _ = self._lock(database_id)
        return head, trimmed

    def before_newest(self, database_id: int, count: int) -> int:
        head, trimmed, _ = self._lock(database_id)
        last = head - count
        if last > trimmed:  # else all of them are
            for since, until in self._query(
                "SELECT since, until FROM breaks WHERE database_id=$1 ORDER BY until DESC", database_id
            ):
                if last < until:
                    last -= until - since
        return last

    def bounds(self) -> dict[int, tuple[int, int]]:
        rows = self._query(BOUNDS)
        return {id: (head, trimmed) for id, head, trimmed in rows}

    def logged(self, database_id: int, after: int, limit: int) -> list[tuple[int, int, int]]:
        rows = self._query(
            "SELECT seq, at, size FROM changes WHERE database_id=$1 AND seq>$2 ORDER BY seq LIMIT $3",
            database_id,
            after,
            limit,
        )
        return [(seq, at, size) for seq, at, size in rows]

    def trim(self, database_id: int, trimmed: int, until: int) -> None:
        self._add(
            "DELETE FROM changes WHERE database_id=$1 AND seq>$2 AND seq<=$3", database_id, trimmed, until
        )
        self._add("DELETE FROM breaks WHERE database_id=$1 AND until<=$2", database_id, until)
        self._add("UPDATE heads SET trimmed=$2 WHERE database_id=$1", database_id, until)
        head, _, catalog = self._locked[database_id]
        self._locked[database_id] = (head, until, catalog)

    # --- requests, revocations, time -----------------------------------------------------------------

    def recall(self, scope: str, key: str) -> Remembered | None:
        if (scope, key) not in self._requests:
            rows = self._query(REQUESTS, Texts([scope]), Texts([key]))
            self._requests[scope, key] = remembered(rows[0][2:]) if rows else None
        return self._requests[scope, key]

    def remember(self, scope: str, key: str, request: Remembered) -> None:
        self._requests[scope, key] = request
        self._add(
            "INSERT INTO requests (scope, key, at, digest, response, body, change) "
            "VALUES ($1,$2,$3,$4,$5,$6,$7) ON CONFLICT (scope, key) "
            "DO UPDATE SET at=$3, digest=$4, response=$5, body=$6, change=$7",
            scope,
            key,
            *request,
        )

    def forget_requests(self, before: float, limit: int) -> int:
        ((forgotten,),) = self._change(
            "WITH r AS (DELETE FROM requests WHERE id IN (SELECT id FROM requests WHERE at<$1 ORDER BY at "
            "LIMIT $2 FOR UPDATE SKIP LOCKED) RETURNING 1) SELECT count(*) FROM r",
            int(before),
            limit,
        )
        return int(forgotten)

    def revoke(self, database_id: int, kind: str, name: str, at: int, until: int) -> None:
        # This first: its lock makes ids visible in their order. Readers ask for those after the last.
        self.tell_servers()
        # A clock that was set back must not take back an earlier revocation.
        self._add(
            "WITH old AS (DELETE FROM revocations WHERE database_id=$1 AND kind=$2 AND name=$3 RETURNING at) "
            "INSERT INTO revocations (database_id, kind, name, at, until) "
            "SELECT $1, $2, $3, greatest($4::bigint, (SELECT max(at) FROM old)), $5",
            database_id,
            kind,
            name,
            at,
            until,
        )

    def forget_revocations(self, until: int, limit: int) -> int:
        ((forgotten,),) = self._change(
            "WITH r AS (DELETE FROM revocations WHERE id IN (SELECT id FROM revocations WHERE until<$1 "
            "LIMIT $2 FOR UPDATE SKIP LOCKED) RETURNING 1) SELECT count(*) FROM r",
            until,
            limit,
        )
        return int(forgotten)

    def keep_time(self, log_time: float, wall_time: float) -> None:
        for name, seconds in (("log_time", log_time), ("wall_time", wall_time)):
            self._add(
                "INSERT INTO meta VALUES ($1,$2) ON CONFLICT (name) DO UPDATE SET value=$2",
                name,
                int(seconds * 1000),
            )


def remembered(fields: Any) -> Remembered:
    at, digest, response, body, change = fields
    return Remembered(at, digest, response.decode(), body, change)
