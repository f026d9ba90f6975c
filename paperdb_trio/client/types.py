"""What users of the SDK get: documents, lists of them, events, states of a connection.

Law: plain values; no I/O.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, Generic, Literal, NotRequired, TypedDict

from .errors import PaperDBError

EventType = Literal["insert", "update", "delete"]
Permission = Literal["read", "write"]
Rules = Mapping[str, Mapping[str, Any]]
"""`{"orders": {"filter": {"userId": "alice"}, "select": ["status"], "permissions": ["read"]}, "news": {}}`"""
Schema = Mapping[str, Mapping[str, Any]]
"""`{"users": {"properties": {"email": {"type": "string", "required": True, "unique": True}}}}`"""


class Document(dict[str, Any]):
    """A document: a dict. The server sets `_id`, `createdAt` and `updatedAt`.

    `seq` is the seq of its last change, if the response said so (not in lists). Give it as `if_match` to write
    only if the document has not changed since.
    """

    seq: int | None = None


if TYPE_CHECKING:
    from typing_extensions import TypeVar

    D = TypeVar("D", default=Document)
else:  # the default is for type checkers, and Python has it from 3.13 on
    from typing import TypeVar

    D = TypeVar("D")


class Documents(list[D], Generic[D]):
    """What `find` found: a list. `total` counts all that match, if asked for with `count=True`. `seq` is that
    of the last change that the documents show, if the server says so: subscribe from it (`since=`). `next`:
    what `find(after=)` takes for the next page, if there is one.
    """

    def __init__(
        self,
        documents: Iterable[D],
        *,
        limit: int,
        offset: int,
        has_more: bool,
        total: int | None = None,
        seq: int | None = None,
        next: str | None = None,
    ) -> None:
        super().__init__(documents)
        self.limit = limit
        self.offset = offset
        self.has_more = has_more
        self.total = total
        self.seq = seq
        self.next = next


@dataclass(frozen=True, slots=True)
class BulkFailure:
    """A document of a bulk insert that was refused: its index in the given list, and why."""

    index: int
    error: str
    code: str


@dataclass(frozen=True, slots=True)
class BulkResult:
    """`documents` are those that were inserted, in order."""

    inserted: int
    failed: int
    documents: list[Document] = field(repr=False)
    errors: list[BulkFailure]


class InsertOperation(TypedDict):
    """One of a batch: as `insert`. `id` can be in the document, too."""

    op: Literal["insert"]
    collection: str
    document: Mapping[str, Any]
    id: NotRequired[str]


class UpdateOperation(TypedDict):
    """One of a batch: as `update`."""

    op: Literal["update"]
    collection: str
    id: str
    fields: Mapping[str, Any]
    ifMatch: NotRequired[int]
    where: NotRequired[Mapping[str, Any]]


class ReplaceOperation(TypedDict):
    """One of a batch: as `replace`."""

    op: Literal["replace"]
    collection: str
    id: str
    document: Mapping[str, Any]
    ifMatch: NotRequired[int]
    where: NotRequired[Mapping[str, Any]]


class DeleteOperation(TypedDict):
    """One of a batch: as `delete`."""

    op: Literal["delete"]
    collection: str
    id: str
    ifMatch: NotRequired[int]
    where: NotRequired[Mapping[str, Any]]


Operation = InsertOperation | UpdateOperation | ReplaceOperation | DeleteOperation


@dataclass(frozen=True, slots=True)
class BatchResult:
    """`results` has a document for each operation, in order; for a delete, `{"deleted": True, "_id": …}`.
    `txn` is the seq of the first result. All events of the batch have it, too."""

    results: list[Document] = field(repr=False)
    txn: int


@dataclass(frozen=True, slots=True)
class Version:
    """A document as it was after the change `seq` (for a delete, before it)."""

    type: EventType
    data: dict[str, Any]
    seq: int


@dataclass(frozen=True, slots=True)
class Event:
    """One change. `data` is the whole document (for a delete, as it last was); `seq` is its cursor.

    With a filter, or a rule of the token, `type` says what happened to the view, and `cause` what happened to
    the document. `txn` is the same for all events of a batch.
    """

    type: EventType
    collection: str
    data: dict[str, Any]
    seq: int
    cause: EventType | None = None
    txn: int | None = None


class ConnectionState(Enum):
    """What a subscription's connection is doing."""

    CONNECTING = "connecting"
    CATCHING_UP = "catching_up"
    LIVE = "live"
    OFFLINE = "offline"
    GAP = "gap"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class Status:
    """A state and its reason.

    `retry_in`: seconds until it connects again (offline) or asks for a token again (live). `error` (gap, and
    closed for good): what the iterators raise. `cursor`: the seq up to which everything has been received; None
    before the first connection.
    """

    state: ConnectionState
    reason: str = ""
    retry_in: float | None = None
    error: PaperDBError | None = None
    cursor: int | None = None
