"""What a change is to a query: an insert, update or delete in its view, or nothing.

Law: no I/O. A change is decoded at most once for all queries that look at it, and only if one does.
"""

from __future__ import annotations

from typing import Any, Final

from paperdb_trio.json_input import decode
from paperdb_trio.match.query import Query
from paperdb_trio.model import Change, Document, encode, version_before


class BeforeUnknown(Exception):
    """An older version wrote this update, without what it changed: whether it left a view cannot be told."""


_UNSET: Final[Any] = object()


class Judged:
    """One committed change, and the document on both sides of it, decoded when first used.

    `known`: `before` can be told. If it is False, `before` is None.
    """

    # Slots, and no functools.cached_property, which takes 1 µs for each first use: its lock.
    __slots__ = ("_after", "_before", "_before_bytes", "_patch", "_views", "change", "known")

    def __init__(self, change: Change) -> None:
        self.change = change
        self.known = change.type != "update" or change.before is not None
        self._after: Document | None = _UNSET
        self._before: Document | None = _UNSET
        self._before_bytes: bytes | None = _UNSET
        self._patch: tuple[Document, list[str]] = _UNSET
        self._views: dict[tuple[str, ...], tuple[bytes | None, bytes | None]] | None = None

    @property
    def after(self) -> Document | None:
        """The document now; None for a delete."""
        if self._after is _UNSET:
            self._after = None if self.change.type == "delete" else decode(self.change.data)
        return self._after

    @property
    def before(self) -> Document | None:
        """The document before; None for an insert."""
        if self._before is _UNSET:
            if self.change.type == "delete":
                self._before = decode(self.change.data)
            elif self.change.type == "insert" or not self.known or self.after is None:
                self._before = None
            else:
                self._before = version_before(self.after, self.patch)
        return self._before

    @property
    def patch(self) -> tuple[Document, list[str]]:
        """The decoded `model.reverse_patch` of a known update."""
        if self._patch is _UNSET:
            assert self.change.before is not None
            self._patch = decode(self.change.before)
        return self._patch

    @property
    def after_bytes(self) -> bytes | None:
        return None if self.change.type == "delete" else self.change.data

    @property
    def before_bytes(self) -> bytes | None:
        if self._before_bytes is _UNSET:
            if self.change.type == "delete":
                self._before_bytes = self.change.data
            else:
                self._before_bytes = None if self.before is None else encode(_in_order(self.before))
        return self._before_bytes

    def views(self, query: Query) -> tuple[bytes | None, bytes | None]:
        """Before and after as the query shows them; the same bytes for all queries of one select."""
        if query.select is None:
            return self.before_bytes, self.after_bytes
        if self._views is None:
            self._views = {}
        found = self._views.get(query.select)
        if found is None:
            before = None if self.before is None else query.view(b"", self.before)
            after = None if self.after is None else query.view(b"", self.after)
            found = self._views[query.select] = before, after
        return found


def _in_order(document: Document) -> Document:
    """With the times last, as in every document, and not before fields that an update removed."""
    names = ("createdAt", "updatedAt")
    fields = {name: value for name, value in document.items() if name not in names}
    return fields | {name: document[name] for name in names if name in document}


def _shows_a_change(select: tuple[str, ...], patch: tuple[Document, list[str]]) -> bool:
    """Whether an update changed a top-level field of which the select shows something."""
    old, came = patch
    return any(path.partition(".")[0] in old or path.partition(".")[0] in came for path in select)


_UNCHANGED: Final = b"[{},[]]"


def event_of(query: Query, judged: Judged) -> tuple[str, bytes] | None:
    """The change as the query shows it: `(type, data)`, with the document now, or for a delete as it last was
    in view. None if it is not to be seen.

    Raises `BeforeUnknown`, or what a faulty predicate raises.
    """
    change = judged.change
    if query.everything and query.select is None:
        return None if change.before == _UNCHANGED else (change.type, change.data)
    if not judged.known and not query.everything:
        raise BeforeUnknown
    before, after = judged.before, judged.after
    was = change.type != "insert" if query.everything else before is not None and query.matches(before)
    now = after is not None and query.matches(after)
    if not now:
        return ("delete", _whole(judged.views(query)[0])) if was else None
    if not was:
        return "insert", _whole(judged.views(query)[1])
    if query.select is None:
        return None if change.before == _UNCHANGED else ("update", change.data)
    if judged.known and not _shows_a_change(query.select, judged.patch):
        return None
    old, new = judged.views(query)
    return None if old == new else ("update", _whole(new))


def _whole(data: bytes | None) -> bytes:
    assert data is not None
    return data
