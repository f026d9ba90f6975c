"""The responses of the admin API.

Law: shapes only. Rows of lists are in `store/records.py`, because the command line shows them, too.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType, field

from paperdb_trio.delivery.explaining import OUTCOMES
from paperdb_trio.rest.parameters import REVOKE
from paperdb_trio.store.records import AuditEntry, DatabaseInfo, IndexInfo, KeyInfo, Number, SecretInfo, Time
from paperdb_trio.store.webhooks import WebhookInfo


class Me(Struct):
    """The key of this request. `database`: null for an admin key."""

    id: str
    kind: Annotated[str, Meta(extra_json_schema={"enum": ["admin", "secret"]})]
    label: str
    database: str | None
    version: str


class Databases(Struct):
    """By name. `next`: what `after` takes for the next page, if there is one."""

    databases: list[DatabaseInfo]
    next: str | UnsetType = UNSET


class DatabaseDeleted(Struct):
    """`documents`: how many it had."""

    documents: Number
    deleted: bool = True


class Keys(Struct):
    """The oldest first. `next`: what `after` takes for the next page, if there is one."""

    keys: list[KeyInfo]
    next: str | UnsetType = UNSET


class CreatedKey(KeyInfo, rename="camel", kw_only=True):
    """`key`: shown only here."""

    key: str


class Secrets(Struct):
    """The newest first."""

    secrets: list[SecretInfo]


class Audit(Struct):
    """The newest first. `next`: what `after` takes for the next page, if there is one."""

    entries: list[AuditEntry]
    next: str | UnsetType = UNSET


class Indexes(Struct):
    indexes: list[IndexInfo]


class IndexDropped(Struct):
    deleted: bool = True


class ListedWebhook(WebhookInfo, rename="camel", kw_only=True):
    """`nextTryAt`: null unless it waits for its next try."""

    next_try_at: Time | None


class Webhooks(Struct):
    """The oldest first."""

    webhooks: list[ListedWebhook]


class CreatedWebhook(WebhookInfo, rename="camel", kw_only=True):
    """`secret`: shown only here."""

    secret: str


class WebhookRemoved(Struct):
    deleted: bool = True


class WebhookTested(Struct):
    """`arrived`: whether the response was a 2xx. `error`: why not."""

    arrived: bool
    error: str | None
    seconds: Annotated[float, Meta(ge=0)]


class Recorded(Struct):
    recorded: bool = True


class Followed(Struct):
    """`collection`: null is every one. Only a live query has the other members: its id, filter and select."""

    collection: str | None
    query: str | None
    filter: dict[str, Any] | None
    select: list[str] | None


class TokenRule(Struct):
    filter: dict[str, Any] | None
    select: list[str] | None


class Connection(Struct, rename="camel"):
    """`mode`: whether events have a seq. `collections`: those of the token, null is all. `rules`: those of the
    token that hide something. `seq`: up to here, everything was handed to its socket; `lagChanges` is how far
    that is behind the `head`. `unsentBytes`: its machine has not acknowledged them yet. `sentBytes`: it has;
    null if that is not known. `jti`: empty if it has no token, but a key. `expiresAt`: null for never."""

    id: str
    database: str
    transport: Literal["websocket", "sse", "poll"]
    mode: Literal["plain", "cursor"]
    address: str
    key: str
    subject: str | None
    jti: str
    permissions: list[str]
    collections: list[str] | None
    rules: dict[str, TokenRule]
    expires_at: Time | None
    follows: list[Followed]
    state: Literal["new", "live", "catching up", "closed"]
    since: Time
    seq: Number
    head: Number
    lag_changes: Number
    unsent_bytes: Number
    sent_bytes: Number | None


class Connections(Struct):
    """In order of their ids. `total`: on all pages. `next`: what `after` takes for the next page."""

    connections: list[Connection]
    total: Number
    next: str | UnsetType = UNSET


class ConnectionEnded(Struct):
    """`revoked`: what was revoked besides."""

    revoked: Annotated[str | None, Meta(extra_json_schema={"enum": [*REVOKE.values, None]})]
    closed: bool = True


class ExplainedTopic(Followed):
    """`since`: only later changes are wanted. `event`: the type of the event that the change is; null: none."""

    since: Number
    event: Literal["insert", "update", "delete", "reset"] | None


class ExplainedChange(Struct):
    type: Literal["insert", "update", "delete"]
    collection: str
    id: str


class Why(Struct, rename="camel"):
    """`text` says it to people. `start`: the seq after which the connection began. `position`: up to here,
    everything was handed to its socket. `topics`: what it follows now of the change's collection."""

    seq: Number
    outcome: Literal[tuple(OUTCOMES)]  # type: ignore[valid-type]
    text: str
    head: Number
    start: Number
    position: Number
    state: Literal["new", "live", "catching up", "closed"]
    unsent_bytes: Number
    change: ExplainedChange | None
    topics: list[ExplainedTopic]


class MeasureSample(Struct):
    """`suffix`: of a histogram, `_bucket` (up to the label `le`), `_sum` or `_count`."""

    labels: dict[str, str]
    value: float
    suffix: str


class Measure(Struct):
    """A figure of `/metrics`, of all processes together. Samples of single routes are added up."""

    name: str
    type: Annotated[str, Meta(extra_json_schema={"enum": ["counter", "gauge", "histogram"]})]
    samples: list[MeasureSample]


class Audience(Struct, rename="camel"):
    """WebSockets, event streams and long polls that wait. `maxLagChanges`: how far the last one is behind."""

    live: Number = 0
    catching_up: Number = 0
    max_lag_changes: Number = 0
    by_transport: dict[str, Number] = field(default_factory=dict)
    by_database: dict[str, Number] = field(default_factory=dict)


class SlowQuery(Struct, rename="camel"):
    """`request`: the `X-Request-Id` of its response. `filter`: its shape, without the values. `suggestion`: the
    fields of an index that would help, separated by commas; null if none would."""

    at: Time
    kind: Literal["find", "count"]
    database: str
    collection: str
    ms: Number
    filter: str
    request: str | None = None
    sort: str | None = None
    index: str | None = None
    order: str | None = None
    documents: Number | None = None
    suggestion: str | None = None


class Process(Struct, rename="camel"):
    """`name`: empty if the server is one process. `connections`: the open ones."""

    name: str
    cpu_seconds: float
    memory_bytes: float
    connections: float
    max_loop_delay_seconds: float


class ServerHealth(Struct, rename="camel"):
    """`processes`: only for an admin key. `slowQueries`: the newest first."""

    at: Time
    version: str
    processes: list[Process]
    measures: list[Measure]
    audience: Audience
    slow_queries: list[SlowQuery]
