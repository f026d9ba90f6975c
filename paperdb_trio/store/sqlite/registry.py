"""The rows of `store.registry` in SQLite.

Law: that of `transaction`, of which it is a part.
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec.structs import astuple

from paperdb_trio.store import registry
from paperdb_trio.store.records import DatabaseInfo, IndexInfo, KeyInfo, NewKey
from paperdb_trio.store.sqlite import library as sqlite
from paperdb_trio.store.sqlite import records
from paperdb_trio.store.webhooks import Progress, Webhook, WebhookInfo


class Registry(registry.Registry):
    connection: sqlite.Connection

    def tell_servers(self) -> None:
        self.connection.execute("UPDATE meta SET value=value+1 WHERE name='admin_version'")

    def note(
        self, at: int, by: str, action: str, database: str | None, target: str | None, details: str, keep: int
    ) -> None:
        (id,) = self.connection.execute(
            "INSERT INTO audit (at, by, action, database, target, details) VALUES (?,?,?,?,?,?) RETURNING id",
            (at, by, action, database, target, details),
        ).fetchone()
        self.connection.execute("DELETE FROM audit WHERE id<=?", (id - keep,))

    # --- databases -------------------------------------------------------------------------------

    def databases(self) -> dict[str, int]:
        return dict(self.connection.execute("SELECT name, id FROM databases").fetchall())

    def database_info(self, name: str) -> DatabaseInfo | None:
        return next(iter(records.databases(self.connection, name=name)), None)

    def add_database(self, name: str, plan: str, created: str) -> None:
        self.connection.execute(
            "INSERT INTO databases (name, plan, created_at) VALUES (?,?,?)", (name, plan, created)
        )

    def change_database(self, id: int, name: str, plan: str) -> None:
        self.connection.execute("UPDATE databases SET name=?, plan=? WHERE id=?", (name, plan, id))

    def forget_database(self, id: int) -> None:
        collections = "SELECT id FROM collections WHERE database_id=?"
        for statement in (
            "INSERT INTO database_drops VALUES (?)",
            f"DELETE FROM drops WHERE collection_id IN ({collections})",
            "DELETE FROM keys WHERE database_id=?",
            "DELETE FROM webhooks WHERE database_id=?",
            "DELETE FROM databases WHERE id=?",
        ):
            self.connection.execute(statement, (id,))

    def removal(self) -> int | None:
        (id,) = self.connection.execute("SELECT min(id) FROM database_drops").fetchone()
        return None if id is None else int(id)

    def end_removal(self, id: int) -> None:
        self.connection.execute("DELETE FROM revocations WHERE database_id=?", (id,))
        self.connection.execute("DELETE FROM database_drops WHERE id=?", (id,))

    def some_collection(self, database_id: int) -> tuple[int, str] | None:
        found: tuple[int, str] | None = self.connection.execute(
            "SELECT id, name FROM collections WHERE database_id=? LIMIT 1", (database_id,)
        ).fetchone()
        return found

    # --- keys and signing secrets ----------------------------------------------------------------

    def key_info(self, id: str) -> KeyInfo | None:
        return next(iter(records.keys(self.connection, id=id)), None)

    def add_key(self, database_id: int | None, key: NewKey, created: str) -> None:
        self.connection.execute(
            "INSERT INTO keys (id, database_id, kind, label, hash, created_at, expires_at) "
            "VALUES (?,?,?,?,?,?,?)",
            (key.id, database_id, key.kind, key.label, key.hash, created, key.expires),
        )

    def label_key(self, id: str, label: str) -> None:
        self.connection.execute("UPDATE keys SET label=? WHERE id=?", (label, id))

    def expire_key(self, id: str, at: int | None) -> None:
        self.connection.execute("UPDATE keys SET expires_at=? WHERE id=?", (at, id))

    def revoke_key(self, id: str, at: str) -> None:
        self.connection.execute("UPDATE keys SET revoked_at=? WHERE id=?", (at, id))

    def note_used(self, used: Mapping[str, int]) -> None:
        self.connection.executemany(
            "UPDATE keys SET last_used_at=max(?1, ifnull(last_used_at,0)) WHERE id=?2",
            [(at, id) for id, at in used.items()],
        )

    def rotate_secret(self, kid: str, secret: bytes, at: float) -> None:
        execute = self.connection.execute
        execute("UPDATE signing_secrets SET retired_at=? WHERE retired_at IS NULL", (at,))
        execute("INSERT INTO signing_secrets (kid, secret, created_at) VALUES (?,?,?)", (kid, secret, at))

    # --- webhooks --------------------------------------------------------------------------------

    def webhook_infos(self) -> list[WebhookInfo]:
        return records.webhook_infos(self.connection)

    def add_webhook(self, webhook: Webhook) -> None:
        self.connection.execute(
            "INSERT INTO webhooks (id, database_id, url, collection, filter, secret, created_at, cursor) "
            "VALUES (?,?,?,?,?,?,?,?)",
            (
                webhook.id,
                webhook.database_id,
                webhook.url,
                webhook.collection,
                webhook.filter,
                webhook.secret,
                webhook.created_at,
                webhook.progress.cursor,
            ),
        )

    def remove_webhook(self, id: str) -> None:
        self.connection.execute("DELETE FROM webhooks WHERE id=?", (id,))

    def stop_webhook(self, id: str, at: int | None) -> None:
        self.connection.execute(
            "UPDATE webhooks SET generation=generation+1, failures=0, error=NULL, failing_since=NULL, "
            "dead_at=? WHERE id=?",
            (at, id),
        )

    def begin_webhooks(self) -> None:
        self.connection.execute("UPDATE webhooks SET generation=generation+1")

    def keep_progress(self, id: str, generation: int, progress: Progress) -> bool:
        self.connection.execute(
            "UPDATE webhooks SET cursor=?, until=?, failures=?, error=?, failing_since=?, delivered_at=?, "
            "dead_at=? WHERE id=? AND generation=?",
            (*astuple(progress), id, generation),
        )
        return self.connection.changes() > 0

    # --- indexes ---------------------------------------------------------------------------------

    def index_infos(self, database_id: int, collection: str) -> list[IndexInfo]:
        return records.indexes(self.connection, database_id, collection) or []
