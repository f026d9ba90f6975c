"""Webhooks: where changes are posted to, and how far each one is.

Law: shapes only. Those for administrators hold no secret.
"""

from __future__ import annotations

import re
from typing import Any, Final, Literal
from urllib.parse import urlsplit

from msgspec import Struct

from paperdb_trio.errors import bad_request
from paperdb_trio.store.records import Number, Time

MAX_URL_LENGTH: Final = 2048
MAX_ERROR_LENGTH: Final = 300
_URL: Final = re.compile(r"https?://[!-~]+\Z")


State = Literal["live", "retrying", "dead", "paused"]


class WebhookInfo(Struct, rename="camel", kw_only=True):
    """A webhook, without its secret. `collection`: null is every one. `seq`: the changes up to it were
    delivered, or are none of its own; `lagChanges` is how many came after it. `state`: `retrying` since
    `failingSince`; `dead`: it gave up; `paused`: by an administrator. `failures`: in a row."""

    id: str
    database: str
    url: str
    collection: str | None
    filter: dict[str, Any] | None
    state: State
    seq: Number
    lag_changes: Number
    failures: Number
    error: str | None
    failing_since: Time | None
    delivered_at: Time | None
    created_at: Time


class Progress(Struct, frozen=True):
    """How far a webhook is. `cursor`: the seq up to which everything was delivered. `until`: the changes after
    that up to here are being delivered; None: none are. `dead_at`: it stopped then: it gave up or, without
    failures, it was paused. Times are milliseconds since the epoch."""

    cursor: int
    until: int | None = None
    failures: int = 0
    error: str | None = None
    failing_since: int | None = None
    delivered_at: int | None = None
    dead_at: int | None = None

    @property
    def state(self) -> State:
        if self.dead_at is None:
            return "retrying" if self.failures else "live"
        return "dead" if self.failures else "paused"


class Webhook(Struct, frozen=True):
    """`filter`: JSON. `generation`: another one makes the server begin anew with what is stored."""

    id: str
    database_id: int
    url: str
    collection: str | None
    filter: str | None
    secret: str
    created_at: str
    generation: int
    progress: Progress


def check_url(url: str) -> None:
    """Raises a 400 for what is not an http or https URL with a host, or holds a password."""
    try:
        parts = urlsplit(url)
        good = bool(_URL.match(url)) and bool(parts.hostname) and parts.port != 0
        good = good and len(url) <= MAX_URL_LENGTH and not parts.fragment and "@" not in parts.netloc
    except ValueError:
        good = False
    if not good:
        raise bad_request(
            f"Invalid URL: '{url[:80]}'. Use http:// or https:// with a host, without a password or a fragment."
        )
