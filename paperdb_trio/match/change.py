"""What a change is to a query: an insert, update or delete in its view, or nothing.

Law: no I/O. A change is decoded at most once for all queries that look at it, and only if one does.
"""

from __future__ import annotations

from functools import cached_property

from paperdb_trio.json_input import decode
from paperdb_trio.match.query import Query
from paperdb_trio.model import Change, Document, encode, version_before


class BeforeUnknown(Exception):
    """An older version wrote this update, without what it changed: whether it left a view cannot be told."""


class Judged:
    """One committed change, and the document on both sides of it, decoded when first used.

    `known`: `before` can be told. If it is False, `before` is None.
    """

    def __init__(self, change: Change) -> None:
        self.change = change
        self.known = change.type != "update" or change.before is not None
        self._views: dict[tuple[str, ...], tuple[bytes | None, bytes | None]] = {}

    @cached_property
    def _patch(self) -> tuple[Document, list[str]]:
        """Of an update: the old values of top-level fields that changed or went, and the names of added
        ones."""
        if self.change.before is None:
            return {}, []
        old, added = decode(self.change.before)
        return old, added

    @cached_property
    def after(self) -> Document | None:
        """The document now; None for a delete."""
        return None if self.change.type == "delete" else decode(self.change.data)

    @cached_property
    def before(self) -> Document | None:
        """The document before; None for an insert."""
        if self.change.type == "delete":
            document: Document = decode(self.change.data)
            return document
        if self.change.type == "insert" or not self.known or self.after is None:
            return None
        document = version_before(self.after, self._patch)
        for name in ("createdAt", "updatedAt"):  # last, as in every document
            if name in document:
                document[name] = document.pop(name)
        return document

    @cached_property
    def changed(self) -> Document:
        """The fields of `before` that differ from `after`: all of them unless it is an update."""
        return self._patch[0] if self.change.type == "update" else self.before or {}

    @property
    def after_bytes(self) -> bytes | None:
        return None if self.change.type == "delete" else self.change.data

    @cached_property
    def before_bytes(self) -> bytes | None:
        if self.change.type == "delete":
            return self.change.data
        return None if self.before is None else encode(self.before)

    def touches(self, select: tuple[str, ...]) -> bool:
        """Whether an update changed a top-level field of which the select shows something."""
        old, added = self._patch
        return any(path.partition(".")[0] in old or path.partition(".")[0] in added for path in select)

    def views(self, query: Query) -> tuple[bytes | None, bytes | None]:
        """Before and after as the query shows them; the same bytes for all queries of one select."""
        if query.select is None:
            return self.before_bytes, self.after_bytes
        found = self._views.get(query.select)
        if found is None:
            before = None if self.before is None else query.view(b"", self.before)
            after = None if self.after is None else query.view(b"", self.after)
            found = self._views[query.select] = before, after
        return found


_UNCHANGED = b"[{},[]]"


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
    if judged.known and not judged.touches(query.select):
        return None
    old, new = judged.views(query)
    return None if old == new else ("update", _whole(new))


def _whole(data: bytes | None) -> bytes:
    assert data is not None
    return data
