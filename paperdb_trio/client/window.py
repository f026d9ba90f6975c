"""The documents of a live list, in the server's order.

Law: no I/O. A window knows all documents of its view up to an edge, or all there are. Each document has the seq
as of which it is known, so that a page which is newer than the events may be put in between them.

The order is the server's: by the values at the sort fields, null and missing before numbers (false is 0, true
is 1) before texts (arrays and objects are their JSON); documents that are equal in these by their insertion.
A page and an event of an insert tell that one. For a document that comes into the view later, only `createdAt`
does. Where that cannot tell either, `apply` raises `Unordered`, and the list must be fetched anew.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter
from typing import Any, Generic, TypeVar

import msgspec

from .requests import paths
from .types import Document

V = TypeVar("V")
_MISSING = (0, 0)


class Unordered(Exception):
    """The place of a document cannot be known."""


class _Descending:
    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Descending) and bool(self.value == other.value)

    def __lt__(self, other: _Descending) -> bool:
        return bool(other.value < self.value)

    __hash__ = None  # type: ignore[assignment]


def _comparable(value: Any) -> tuple[int, Any]:
    if isinstance(value, str):
        return (2, value)
    if isinstance(value, bool) or not isinstance(value, int | float | list | dict):
        return _MISSING if value is None else (1, int(value))
    if isinstance(value, list | dict):
        return (2, msgspec.json.encode(value).decode())
    return (1, value if -(2**63) <= value < 2**63 else float(value))


class Order:
    """A sort such as `-createdAt,name`; `-` at its end: equal ones by insertion, the last one first."""

    def __init__(self, sort: str | Sequence[str] | None) -> None:
        names = list(paths(sort) or ())
        self.newest_first = bool(names) and names[-1] == "-"
        if self.newest_first:
            names.pop()
        self.paths = tuple(name[1:] if name[0] in "-+" else name for name in names)
        self._fields = [(path.split("."), name[0] == "-") for path, name in zip(self.paths, names, strict=True)]

    def values(self, document: Any) -> tuple[Any, ...]:
        found = []
        for path, descending in self._fields:
            value = document
            for name in path:
                value = value.get(name) if isinstance(value, dict) else None
            comparable = _comparable(value)
            found.append(_Descending(comparable) if descending else comparable)
        return tuple(found)


class _Held(Generic[V]):
    """A document in the window. `tie`: its place among those with equal values. `shown`: what users get."""

    __slots__ = ("created", "id", "key", "seq", "shown")

    def __init__(self, document: Document, values: tuple[Any, ...], tie: float, seq: int, shown: V) -> None:
        self.id = document["_id"]
        self.created = document.get("createdAt")
        self.key = (values, tie)
        self.seq = seq
        self.shown = shown


_key = attrgetter("key")


class Window(Generic[V]):
    """`limit`: how many are shown; None: all. `version` rises when what is shown changes. `show` makes what
    users get of a document."""

    def __init__(self, order: Order, limit: int | None, show: Callable[[Document], V]) -> None:
        self._order = order
        self.limit = limit
        self._show = show
        self.version = 0
        self.begin()

    def begin(self, since: int = 0) -> None:
        """Forget everything. Events up to `since` say nothing new."""
        self._held: list[_Held[V]] = []
        self._by_id: dict[str, _Held[V]] = {}
        self._edge: _Held[V] | None = None
        self._first = self._last = 0.0
        self._since = since
        self.version += 1

    def __len__(self) -> int:
        return len(self._held)

    @property
    def complete(self) -> bool:
        """Whether it knows all that there are."""
        return self._edge is None

    @property
    def has_more(self) -> bool:
        return self.limit is not None and (not self.complete or len(self._held) > self.limit)

    @property
    def short(self) -> bool:
        """Whether there may be documents that should be shown and are not known."""
        return self.limit is not None and not self.complete and len(self._held) < self.limit

    def documents(self) -> list[V]:
        return [held.shown for held in self._held[: self.limit]]

    def extend(self, documents: Iterable[Document], seq: int, *, more: bool) -> None:
        """Add the page behind the edge, as of `seq`, which is no older than the last event."""
        last = self._edge
        for document in documents:
            self._remove(document["_id"])
            self._last += 1
            last = self._put(document, self._order.values(document), self._last, seq)
        self._edge = last if more else None

    def trim(self, most: int) -> None:
        """Forget all but the first `most`."""
        if len(self._held) > most:
            for held in self._held[most:]:
                del self._by_id[held.id]
            del self._held[most:]
            self._edge = self._held[-1]

    def apply(self, type: str, cause: str | None, document: Document, seq: int) -> None:
        """An event. Raises `Unordered`."""
        known = self._by_id.get(document["_id"])
        if seq <= (self._since if known is None else known.seq):
            return
        if type == "delete":
            self._remove(document["_id"])
            return
        values = self._order.values(document)
        if known is not None and known.key[0] == values:
            tie: float | None = known.key[1]
        elif cause == "insert" or (cause is None and type == "insert"):
            if self._order.newest_first:
                self._first -= 1
                tie = self._first
            else:
                self._last += 1
                tie = self._last
        else:
            tie = self._tie(values, document)
        self._remove(document["_id"])
        if tie is not None and (self._edge is None or not self._edge.key < (values, tie)):
            self._put(document, values, tie, seq)

    def _tie(self, values: tuple[Any, ...], document: Document) -> float | None:
        """The place of a document that is not new among those with equal values. None: beyond the edge."""
        low = bisect_left(self._held, (values, float("-inf")), key=_key)
        high = bisect_left(self._held, (values, float("inf")), key=_key)
        equal = [held for held in self._held[low:high] if held.id != document["_id"]]
        edge = self._edge
        if edge is not None and edge.key[0] == values and not (equal and not equal[-1].key < edge.key):
            equal.append(edge)
        if not equal:
            self._last += 1
            return self._last
        created = document.get("createdAt")
        if created is None or any(held.created is None or held.created == created for held in equal):
            raise Unordered
        before = [(held.created > created) is self._order.newest_first for held in equal]
        at = before.count(True)
        if not all(before[:at]):
            raise Unordered
        if at == len(equal):
            if edge is not None and not equal[-1].key < edge.key:
                return None
            self._last += 1
            return self._last
        if at == 0:
            self._first -= 1
            return self._first
        low_tie, high_tie = equal[at - 1].key[1], equal[at].key[1]
        tie = float((low_tie + high_tie) / 2)
        if not low_tie < tie < high_tie:
            raise Unordered
        return tie

    def _put(self, document: Document, values: tuple[Any, ...], tie: float, seq: int) -> _Held[V]:
        held = _Held(document, values, tie, seq, self._show(document))
        self._by_id[held.id] = held
        insort(self._held, held, key=_key)
        self._note(held)
        return held

    def _remove(self, id: str) -> None:
        held = self._by_id.pop(id, None)
        if held is not None:
            self._note(held)
            del self._held[bisect_left(self._held, held.key, key=_key)]

    def _note(self, held: _Held[V]) -> None:
        if self.limit is None or bisect_left(self._held, held.key, key=_key) < self.limit:
            self.version += 1
