"""What administrators and the sender of webhooks do with them.

Law: that of `administration`. Progress is kept in the file, so that a delivery that was interrupted is repeated
as it was: the same changes under the same id.
"""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass
from typing import Any, ClassVar, Final
from urllib.parse import urlsplit

from paperdb_trio.errors import ApiError, bad_request
from paperdb_trio.model import encode, timestamp
from paperdb_trio.store.administration import database_id, note
from paperdb_trio.store.transaction import Transaction
from paperdb_trio.store.webhooks import Progress, Webhook, WebhookInfo, check_url

MAX_WEBHOOKS: Final = 100
"""Each has a task, and a thread may read the log for it."""


def new_secret() -> str:
    return f"whsec_{secrets.token_urlsafe(32)}"


@dataclass(frozen=True, slots=True)
class AddWebhook:
    """Post the changes from now on to a URL. `filter`: valid, and None without a `collection`."""

    by: str
    database: str
    id: str
    url: str
    collection: str | None
    filter: dict[str, Any] | None
    secret: str

    def apply(self, tx: Transaction) -> WebhookInfo:
        check_url(self.url)
        id = database_id(tx, self.database)
        if len(tx.webhook_infos()) >= MAX_WEBHOOKS:
            raise bad_request(f"A server has at most {MAX_WEBHOOKS} webhooks")
        database = tx.database_info(self.database)
        assert database is not None
        filter = None if self.filter is None else encode(self.filter).decode()
        now = timestamp(time.time())
        progress = Progress(cursor=database.seq)
        tx.add_webhook(Webhook(self.id, id, self.url, self.collection, filter, self.secret, now, 0, progress))
        note(
            tx, self.by, "webhook.add", self.database, self.id, host=_host(self.url), collection=self.collection
        )
        tx.tell_servers()
        return _webhook(tx, self.id)


@dataclass(frozen=True, slots=True)
class RemoveWebhook:
    frees: ClassVar = True

    by: str
    id: str

    def apply(self, tx: Transaction) -> None:
        was = _webhook(tx, self.id)
        tx.remove_webhook(self.id)
        note(tx, self.by, "webhook.remove", was.database, self.id, host=_host(was.url))
        tx.tell_servers()


@dataclass(frozen=True, slots=True)
class PauseWebhook:
    """Deliver nothing until the webhook is resumed. A delivery that is under way may arrive, and is repeated
    then."""

    by: str
    id: str

    def apply(self, tx: Transaction) -> WebhookInfo:
        was = _webhook(tx, self.id)
        tx.stop_webhook(self.id, int(time.time() * 1000))
        note(tx, self.by, "webhook.pause", was.database, self.id)
        tx.tell_servers()
        return _webhook(tx, self.id)


@dataclass(frozen=True, slots=True)
class ResumeWebhook:
    """Let a paused or dead webhook go on where it was, or one that waits for its next try make it now."""

    by: str
    id: str

    def apply(self, tx: Transaction) -> WebhookInfo:
        was = _webhook(tx, self.id)
        tx.stop_webhook(self.id, None)
        note(tx, self.by, "webhook.resume", was.database, self.id)
        tx.tell_servers()
        return _webhook(tx, self.id)


@dataclass(frozen=True, slots=True)
class BeginWebhooks:
    """Send all webhooks from now on. Another process that still does can keep no progress any more, and so send
    nothing new: what it sends now is repeated here."""

    frees: ClassVar = True

    def apply(self, tx: Transaction) -> None:
        tx.begin_webhooks()


@dataclass(frozen=True, slots=True)
class KeepProgress:
    """Of a webhook in the same `generation`. Raises a 409 if a later one began anew."""

    id: str
    generation: int
    progress: Progress

    def apply(self, tx: Transaction) -> None:
        if not tx.keep_progress(self.id, self.generation, self.progress):
            raise ApiError(409, "CONFLICT", "The webhook was removed, or began anew")


def _host(url: str) -> str:
    """For the record: the rest of a URL may be a secret."""
    return urlsplit(url).netloc


def _webhook(tx: Transaction, id: str) -> WebhookInfo:
    found = next((info for info in tx.webhook_infos() if info.id == id), None)
    if found is None:
        raise ApiError(404, "NOT_FOUND", f"There is no webhook '{id[:80]}'")
    return found
