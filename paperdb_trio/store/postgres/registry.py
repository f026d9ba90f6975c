"""The rows of `store.registry` in PostgreSQL.

Law: that of `rows`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from msgspec.structs import astuple

from paperdb_trio.store.postgres import records
from paperdb_trio.store.postgres.rows import Rows
from paperdb_trio.store.postgres.wire import Ints, Texts
from paperdb_trio.store.records import DatabaseInfo, IndexInfo, KeyInfo, NewKey
from paperdb_trio.store.webhooks import Progress, Webhook, WebhookInfo

T = TypeVar("T")


class Registry(Rows):
    def _ask(self, asked: records.Asked[T]) -> T:
        return asked.made(self._read(asked.sql, *asked.parameters))

    def tell_servers(self) -> None:
        self._add("UPDATE meta SET value=value+1 WHERE name='admin_version'")

    def note(
        self, at: int, by: str, action: str, database: str | None, target: str | None, details: str, keep: int
    ) -> None:
        ((id,),) = self._change(
            "INSERT INTO audit (at, by, action, database, target, details) VALUES ($1,$2,$3,$4,$5,$6) "
            "RETURNING id",
            at,
            by,
            action,
            database,
            target,
            details,
        )
        self._add("DELETE FROM audit WHERE id<=$1", id - keep)

    # --- databases -------------------------------------------------------------------------------

    def _lock_removed(self, database_id: int) -> None:
        self._query("SELECT 1 FROM heads WHERE database_id=$1 FOR UPDATE", database_id)
        self._locked[database_id] = (0, 0, 0)

    def databases(self) -> dict[str, int]:
        return {name.decode(): id for name, id in self._read("SELECT name, id FROM databases")}

    def database_info(self, name: str) -> DatabaseInfo | None:
        found = self._ask(records.databases(name=name))
        return found[0] if found else None

    def add_database(self, name: str, plan: str, created: str) -> None:
        self._add(
            "WITH d AS (INSERT INTO databases (name, plan, created_at) VALUES ($1,$2,$3) RETURNING id) "
            "INSERT INTO heads (database_id) SELECT id FROM d",
            name,
            plan,
            created,
        )

    def change_database(self, id: int, name: str, plan: str) -> None:
        self._add("UPDATE databases SET name=$2, plan=$3 WHERE id=$1", id, name, plan)

    def forget_database(self, id: int) -> None:
        # Its head first: nobody writes to it meanwhile, and afterwards no guess at it holds.
        for statement in (
            "UPDATE heads SET catalog=catalog+1 WHERE database_id=$1",
            "INSERT INTO database_drops VALUES ($1)",
            "DELETE FROM drops WHERE collection_id IN (SELECT id FROM collections WHERE database_id=$1)",
            "DELETE FROM keys WHERE database_id=$1",
            "DELETE FROM webhooks WHERE database_id=$1",
            "DELETE FROM databases WHERE id=$1",
        ):
            self._add(statement, id)

    def removal(self) -> int | None:
        found = self._change("SELECT id FROM database_drops ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED")
        if not found:
            return None
        self._lock_removed(found[0][0])
        return int(found[0][0])

    def end_removal(self, id: int) -> None:
        for statement in (
            "DELETE FROM revocations WHERE database_id=$1",
            "DELETE FROM breaks WHERE database_id=$1",
            "DELETE FROM heads WHERE database_id=$1",
            "DELETE FROM database_drops WHERE id=$1",
        ):
            self._add(statement, id)

    def some_collection(self, database_id: int) -> tuple[int, str] | None:
        found = self._read("SELECT id, name FROM collections WHERE database_id=$1 LIMIT 1", database_id)
        return (found[0][0], found[0][1].decode()) if found else None

    # --- keys and signing secrets ----------------------------------------------------------------

    def key_info(self, id: str) -> KeyInfo | None:
        found = self._ask(records.keys(id=id))
        return found[0] if found else None

    def add_key(self, database_id: int | None, key: NewKey, created: str) -> None:
        self._add(
            "INSERT INTO keys (id, database_id, kind, label, hash, created_at, expires_at) "
            "VALUES ($1,$2,$3,$4,$5,$6,$7)",
            key.id,
            database_id,
            key.kind,
            key.label,
            key.hash,
            created,
            key.expires,
        )

    def label_key(self, id: str, label: str) -> None:
        self._add("UPDATE keys SET label=$2 WHERE id=$1", id, label)

    def expire_key(self, id: str, at: int | None) -> None:
        self._add("UPDATE keys SET expires_at=$2 WHERE id=$1", id, at)

    def revoke_key(self, id: str, at: str) -> None:
        self._add("UPDATE keys SET revoked_at=$2 WHERE id=$1", id, at)

    def note_used(self, used: Mapping[str, int]) -> None:
        # In the order of ids, so that two nodes do not wait for each other.
        ids = sorted(used)
        self._add(
            "UPDATE keys k SET last_used_at=greatest(u.at, k.last_used_at) FROM (SELECT keys.id, u.at FROM "
            "unnest($1::text[],$2::bigint[]) u(id, at) JOIN keys ON keys.id=u.id ORDER BY keys.id "
            "FOR UPDATE OF keys) u WHERE k.id=u.id",
            Texts(ids),
            Ints([used[id] for id in ids]),
        )

    def rotate_secret(self, kid: str, secret: bytes, at: float) -> None:
        self._add("UPDATE signing_secrets SET retired_at=$1 WHERE retired_at IS NULL", at)
        self._add("INSERT INTO signing_secrets (kid, secret, created_at) VALUES ($1,$2,$3)", kid, secret, at)

    # --- webhooks --------------------------------------------------------------------------------

    def webhook_infos(self) -> list[WebhookInfo]:
        return self._ask(records.webhook_infos())

    def add_webhook(self, webhook: Webhook) -> None:
        self._add(
            "INSERT INTO webhooks (id, database_id, url, collection, filter, secret, created_at, cursor) "
            "VALUES ($1,$2,$3,$4,$5,$6,$7,$8)",
            webhook.id,
            webhook.database_id,
            webhook.url,
            webhook.collection,
            webhook.filter,
            webhook.secret,
            webhook.created_at,
            webhook.progress.cursor,
        )

    def remove_webhook(self, id: str) -> None:
        self._add("DELETE FROM webhooks WHERE id=$1", id)

    def stop_webhook(self, id: str, at: int | None) -> None:
        self._add(
            "UPDATE webhooks SET generation=generation+1, failures=0, error=NULL, failing_since=NULL, "
            "dead_at=$2 WHERE id=$1",
            id,
            at,
        )

    def begin_webhooks(self) -> None:
        self._add("UPDATE webhooks SET generation=generation+1")

    def keep_progress(self, id: str, generation: int, progress: Progress) -> bool:
        # It waits for another node's `begin_webhooks`, and then finds another generation.
        return bool(
            self._change(
                "UPDATE webhooks SET cursor=$3, until=$4, failures=$5, error=$6, failing_since=$7, "
                "delivered_at=$8, dead_at=$9 WHERE id=$1 AND generation=$2 RETURNING 1",
                id,
                generation,
                *astuple(progress),
            )
        )

    # --- indexes ---------------------------------------------------------------------------------

    def index_infos(self, database_id: int, collection: str) -> list[IndexInfo]:
        return self._ask(records.indexes(database_id, collection)) or []
