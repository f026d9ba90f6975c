"""What the server needs of a store: the one seam between it and an engine.

Law: no SQL and no engine here. Handlers and delivery know this module, the operations and plain values.
`engine` holds the only implementation; `tests/store/test_conformance.py` holds each one to the same suite.

Beneath this, a second engine needs a `Transaction` for the operations, which all engines share: documents by
id and by unique value under the database's head, and one commit of documents and changes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeVar

from paperdb_trio.measures import Family
from paperdb_trio.model import Change
from paperdb_trio.store.operations import Operation
from paperdb_trio.store.query import Question
from paperdb_trio.store.records import AuditEntry, DatabaseInfo, IndexInfo, KeyInfo, SecretInfo
from paperdb_trio.store.view import View
from paperdb_trio.store.webhooks import Webhook, WebhookInfo

if TYPE_CHECKING:  # commands need no event loop
    import trio

Result = TypeVar("Result")

Fault = Literal["gone", "read-only", "away", "hangs"]


class Stored(NamedTuple):
    """A document as JSON text, and the seq of its last change."""

    data: bytes
    seq: int


class Found(NamedTuple):
    """The result of a find. `documents`: JSON texts. `total`: the number of all matches, if requested. `seq`:
    the head of the change log in the snapshot that was read; later changes are not included. `next`: the
    `after` of the next page, if there is one. `plan`: how it was found, if requested."""

    documents: list[bytes]
    has_more: bool
    total: int | None
    seq: int
    next: str | None = None
    plan: dict[str, Any] | None = None


# --- the change log ------------------------------------------------------------------------------


class EventText(Enum):
    """The text of an event: that of plain mode, or with its seq."""

    PLAIN = "plain"
    CURSOR = "cursor"


class Filtered(Protocol):
    """A part of a collection's changes: those that a filter concerns."""

    @property
    def collection(self) -> str: ...

    @property
    def filter(self) -> dict[str, Any]:
        """A valid filter."""
        ...


Topic = str | Filtered | None
"""What changes can be about: a collection, a part of one, or (None) everything."""
Interest = Mapping[Topic, int]
"""Topics, each with the seq after which its changes are wanted."""
Render = Callable[[Change], list[bytes]]
"""The events that a change makes for an interest, in order."""

FIRST_ROWS = 250
MAX_ROWS = 2000
PAGE_BYTES = 256 * 1024
"""The size that a page aims at. A subscriber that does not read keeps this much in memory. With half of it,
catching up takes a fifth longer; with twice as much it is no faster."""


@dataclass(frozen=True, slots=True)
class Page:
    """Events after a position, in seq order.

    `position`: the seq up to which this page covers the log. `reached_end`: there was no later change when the
    page was read. `head`, `trimmed`: the log's bounds at that time. `expired`: the requested position is no
    longer in this log (older than the kept changes, or beyond the head, as after restoring a backup); then
    there are no events.
    """

    events: list[bytes]
    position: int
    reached_end: bool
    head: int
    trimmed: int
    expired: bool = False


class Log(Protocol):
    """The change log, as subscribers read it."""

    async def page(
        self,
        database_id: int,
        after: int,
        interest: Interest,
        text: EventText | Render,
        rows: int = FIRST_ROWS,
    ) -> Page:
        """Read the events of at most `rows` changes after seq `after`, or of fewer if they are much larger than
        `PAGE_BYTES`. The page is empty only if there are none up to the end. Raises a 503 `QUERY_TIMEOUT`.

        An interest with filters needs a function as `text`.
        """
        ...


# --- accounts ------------------------------------------------------------------------------------


class KeyRow(NamedTuple):
    """`database_id`: None for an admin key. `expires`: seconds since the epoch."""

    id: str
    database_id: int | None
    kind: str
    label: str
    hash: bytes
    revoked: bool
    expires: float | None


class RevocationRow(NamedTuple):
    """`at`: tokens issued up to then are revoked. `until`: when it may be forgotten. In milliseconds since the
    epoch."""

    id: int
    database_id: int
    kind: str
    name: str
    at: int
    until: int


class Directory(NamedTuple):
    """Databases as `(id, name, plan)`, keys, signing secrets as `(kid, secret, retired_at)`, and revocations
    that are newer than was asked for."""

    version: int
    databases: list[tuple[int, str, str]]
    keys: list[KeyRow]
    secrets: list[tuple[str, bytes, float | None]]
    revocations: list[RevocationRow]


class Submits(Protocol):
    async def submit(self, operation: Operation[Result]) -> Result: ...


class Directories(Protocol):
    async def directory(self, known: int, last: int) -> Directory | None:
        """Databases, keys, secrets, and revocations beyond the id `last`; None if nothing has changed since
        version `known`. Other processes change them, too."""
        ...


# --- administration ------------------------------------------------------------------------------


class Records(Protocol):
    """What administrators see. Lists have at most `limit` items, beyond `after` or `before`."""

    async def databases(self, name: str | None, after: str, limit: int) -> list[DatabaseInfo]:
        """By name; only that one, if a `name` is given."""
        ...

    async def keys(self, database: str | None, after: str | None, limit: int) -> list[KeyInfo]:
        """The oldest first; only those of a database, if its name is given."""
        ...

    async def secrets(self) -> list[SecretInfo]:
        """The newest first."""
        ...

    async def audit(self, before: int | None, limit: int) -> list[AuditEntry]:
        """The newest first."""
        ...

    async def indexes(self, database_id: int, collection: str) -> list[IndexInfo] | None:
        """None if there is no such collection."""
        ...

    async def webhook_infos(self) -> list[WebhookInfo]:
        """The oldest first."""
        ...

    async def webhooks(self, known: int) -> tuple[int, list[Webhook]] | None:
        """What the sender of webhooks needs of them, and its version; None if nothing has changed since version
        `known`. Progress is no such change."""
        ...


# --- the store -----------------------------------------------------------------------------------


class Store(Log, Submits, Directories, Records, Protocol):
    """Reads see every write that was acknowledged before. All reads raise a 503 `QUERY_TIMEOUT`.

    Start `run` with `nursery.start`, end it by `stop`, and `close` the store when no read is running. Its maker
    is told of each commit, in order, before any waiting writer is: `on_commit(changes)`; and of each trim:
    `on_trimmed(database_id, seq)`.

    `closed`: everything that was submitted is committed or refused, and no more is accepted. `drops_left`: the
    removal of a collection failed half-way. Set it, and the store goes on with it later.
    """

    drops_left: bool

    @property
    def closed(self) -> trio.Event: ...

    async def run(self, task_status: trio.TaskStatus[None] = ...) -> None:
        """The writer and the background work. It has started when removals that were interrupted are finished.

        Raises fatal errors: a file that cannot be opened, a damaged file, or a bug in publishing.
        """
        ...

    def stop(self) -> None:
        """Refuse the writes that wait, and let `run` return."""
        ...

    def close(self) -> None: ...

    @property
    def commits(self) -> int: ...

    @property
    def operations(self) -> int:
        """Writes that clients asked for, done or refused."""
        ...

    @property
    def full(self) -> bool:
        """Whether the disk is full: only operations that free space are done."""
        ...

    def slow_queries(self) -> list[dict[str, Any]]:
        """The newest slow finds and counts of this process: see `SlowQueries`. `database`: its id."""
        ...

    def measures(self) -> list[Family]:
        """What `/metrics` shows of the store: totals, never of one database."""
        ...

    async def sizes(self) -> list[Family]:
        """How many documents each collection has, and what is unused in the file, for those who may see each
        database. Of all processes that share a file, one tells. Empty if the store cannot be read now."""
        ...

    def is_current(self, database_id: int) -> bool:
        """Whether this process has been told of every commit of a database that was acknowledged before."""
        ...

    async def current(self, database_id: int) -> None:
        """Return when it has."""
        ...

    def bounds(self) -> dict[int, tuple[int, int]]:
        """`(head, trimmed)` of every database. Blocks: for start-up only."""
        ...

    def fault(self) -> Fault | None:
        """The reason why writes cannot be stored, if one is known."""
        ...

    async def submit(self, operation: Operation[Result]) -> Result:
        """Commit an operation, and return its result once it is on disk.

        Cancelling stops the waiting, not the write. Raises `ApiError`: the operation's own, 507
        `STORAGE_FULL`, 503 `STORAGE_ERROR`, 503 `STORAGE_GONE`, or 503 `SHUTTING_DOWN`; 504 `STORAGE_UNKNOWN`,
        if it may have been written.
        """
        ...

    async def get(self, database_id: int, collection: str, id: str, within: Question | None = None) -> Stored:
        """One document, which matches `within`. Raises a 404."""
        ...

    async def find(
        self,
        database_id: int,
        collection: str,
        *,
        filter: str | None,
        sort: str | None,
        limit: int,
        offset: int,
        select: str | None,
        count: bool,
        after: str | None = None,
        explain: bool = False,
        view: View | None = None,
    ) -> Found:
        """A page of the matching documents. `count` adds their `total`, and `explain` the plan. Raises 400s,
        also `RESULT_TOO_LARGE`."""
        ...

    async def count(
        self, database_id: int, collection: str, filter: str | None, view: View | None = None
    ) -> int: ...

    async def collections(self, database_id: int) -> bytes:
        """A JSON array of all collections of a database, sorted by name: `{"name", "count", "schema"}`."""
        ...

    async def schema(self, database_id: int, collection: str) -> str | None:
        """The schema of a collection as JSON text."""
        ...

    async def history(self, database_id: int, collection: str, id: str, limit: int) -> list[bytes]:
        """The newest versions of a document that the log holds, newest first, as JSON `{seq, type, data}`."""
        ...
