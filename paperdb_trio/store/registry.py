"""The rows of databases, keys, signing secrets and the record of who did what, as a write transaction changes
them.

Law: no SQL. An engine brings the rows; what an operation means is in `administration`. Times are milliseconds
since the epoch unless a name says otherwise.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

from paperdb_trio.store.indexes import stored_indexes
from paperdb_trio.store.records import DatabaseInfo, IndexInfo, KeyInfo, NewKey
from paperdb_trio.store.rowkeys import span
from paperdb_trio.store.webhooks import Progress, Webhook, WebhookInfo


class Registry(ABC):
    @abstractmethod
    def tell_servers(self) -> None:
        """Have every process read databases, keys, secrets and revocations again."""

    @abstractmethod
    def note(
        self, at: int, by: str, action: str, database: str | None, target: str | None, details: str, keep: int
    ) -> None:
        """Add to the record, of which the newest `keep` entries stay. `details`: JSON."""

    # --- databases -------------------------------------------------------------------------------

    @abstractmethod
    def databases(self) -> dict[str, int]:
        """The id of each, by its name."""

    @abstractmethod
    def database_info(self, name: str) -> DatabaseInfo | None: ...

    @abstractmethod
    def add_database(self, name: str, plan: str, created: str) -> None: ...

    @abstractmethod
    def change_database(self, id: int, name: str, plan: str) -> None: ...

    @abstractmethod
    def forget_database(self, id: int) -> None:
        """Remove its row, its keys, and unfinished removals of its collections. Its id is a removal from now
        on."""

    @abstractmethod
    def removal(self) -> int | None:
        """The id of a forgotten database of which something is left."""

    @abstractmethod
    def end_removal(self, id: int) -> None:
        """Nothing is left of it but its revocations, which go now."""

    @abstractmethod
    def some_collection(self, database_id: int) -> tuple[int, str] | None:
        """The id and name of one of its collections."""

    # --- keys and signing secrets ----------------------------------------------------------------

    @abstractmethod
    def key_info(self, id: str) -> KeyInfo | None: ...

    @abstractmethod
    def add_key(self, database_id: int | None, key: NewKey, created: str) -> None: ...

    @abstractmethod
    def label_key(self, id: str, label: str) -> None: ...

    @abstractmethod
    def expire_key(self, id: str, at: int | None) -> None: ...

    @abstractmethod
    def revoke_key(self, id: str, at: str) -> None:
        """`at`: RFC 3339."""

    @abstractmethod
    def note_used(self, used: Mapping[str, int]) -> None:
        """When keys were last used, by their ids."""

    @abstractmethod
    def rotate_secret(self, kid: str, secret: bytes, at: float) -> None:
        """Retire the current secret, and add this one. `at`: seconds since the epoch."""

    # --- webhooks --------------------------------------------------------------------------------

    @abstractmethod
    def webhook_infos(self) -> list[WebhookInfo]: ...

    @abstractmethod
    def add_webhook(self, webhook: Webhook) -> None: ...

    @abstractmethod
    def remove_webhook(self, id: str) -> None: ...

    @abstractmethod
    def stop_webhook(self, id: str, at: int | None) -> None:
        """Pause it, or with None let it deliver. It is then in another generation, and without its failures."""

    @abstractmethod
    def begin_webhooks(self) -> None:
        """Put all of them into another generation."""

    @abstractmethod
    def keep_progress(self, id: str, generation: int, progress: Progress) -> bool:
        """Returns False, having done nothing, for another generation."""

    # --- indexes ---------------------------------------------------------------------------------

    @abstractmethod
    def index_infos(self, database_id: int, collection: str) -> list[IndexInfo]: ...


def index_infos(
    collection_id: int, text: str | None, documents: int, builds: Mapping[int, int], last: int | None
) -> list[IndexInfo]:
    """The indexes in the stored JSON `text`. `builds`: for each that is being built, the row key up to which it
    is. `last`: the highest row key of the collection. Row keys tell how far it is: counting its entries would
    take as long as building it."""
    low, _ = span(collection_id)
    infos = []
    for index in () if text is None else stored_indexes(text).all:
        built = documents
        if not index.built:
            at = builds.get(index.id, low)
            built = 0 if last is None else documents * (at - low) // max(last - low, 1)
        infos.append(
            IndexInfo(
                id=index.id,
                fields=list(index.fields),
                unique=index.unique,
                automatic=index.made,
                state="broken" if index.broken else "ready" if index.built else "building",
                built=built,
                documents=documents,
            )
        )
    return infos
