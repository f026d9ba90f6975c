"""A query: a filter and a select on one collection, in canonical form.

Law: no I/O. A query never changes. Two that mean the same in the sense of `match.canonical` are equal, so that
they can share what is made for one.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b
from typing import Any, Final

import msgspec

from paperdb_trio.errors import bad_request
from paperdb_trio.json_input import decode
from paperdb_trio.match.canonical import canonical
from paperdb_trio.model import encode
from paperdb_trio.store.predicate import Predicate, predicate
from paperdb_trio.store.projection import projected, selection
from paperdb_trio.store.query import ask

_ID_BYTES: Final = 8


class Query:
    """Made by `query` and `conjunction`.

    `select`: `_id` and then the other paths, sorted; None for whole documents. `id`: 16 hex characters for the
    wire; inside, compare queries, because ids can be made to collide. `matches(document)`: whether the filter
    holds for a decoded document. `everything`: it holds for every one.
    """

    __slots__ = ("__weakref__", "_canonical", "collection", "everything", "id", "matches", "select")

    collection: str
    select: tuple[str, ...] | None
    id: str
    matches: Predicate
    everything: bool

    def __init__(self, collection: str, filter: dict[str, Any], select: tuple[str, ...] | None) -> None:
        self.collection = collection
        self.select = select
        self.matches = predicate(filter)
        self.everything = not filter
        self._canonical = encode((collection, filter, select))
        self.id = blake2b(self._canonical, digest_size=_ID_BYTES).hexdigest()

    @property
    def filter(self) -> dict[str, Any]:
        """The canonical filter, a valid one; `{}` matches everything. Decoded anew each time, which saves
        memory."""
        filter: dict[str, Any] = decode(self._canonical)[1]
        return filter

    def view(self, data: bytes, document: dict[str, Any]) -> bytes:
        """What the query shows of a document, as JSON. `data` is the JSON text of `document`."""
        if self.select is None:
            return data
        return projected(document, [path.split(".") for path in self.select])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Query) and self._canonical == other._canonical

    def __hash__(self) -> int:
        return hash(self.id)

    def __repr__(self) -> str:
        return f"<Query {self._canonical.decode()}>"


def query(collection: str, filter: dict[str, Any] | None, select: Iterable[str] | None = None) -> Query:
    """An empty select shows only `_id`; None shows whole documents.

    Raises a 400 `INVALID_FILTER`, `UNKNOWN_OPERATOR`, `INVALID_FIELD`, `INVALID_JSON` or, for too long a
    select, `INVALID_REQUEST`.
    """
    paths = None
    if select is not None:
        names = list(select)
        selection(names)
        paths = _shown(set(names))
    return Query(collection, canonical(_valid({} if filter is None else filter)), paths)


def conjunction(a: Query, b: Query) -> Query:
    """What both show, of the documents that match both. The queries are of the same collection.

    Raises a 400 `INVALID_FILTER` if the two filters together are beyond the limits of one.
    """
    assert a.collection == b.collection
    filter = canonical({"and": [a.filter, b.filter]})
    if a.select is None or b.select is None:
        select = b.select if a.select is None else a.select
    else:
        pairs = [(one, other) for one in a.select for other in b.select]
        select = _shown({max(pair, key=len) for pair in pairs if _covers(*pair) or _covers(*reversed(pair))})
    return Query(a.collection, _valid(filter), select)


def _covers(path: str, inner: str) -> bool:
    return inner == path or inner.startswith(path + ".")


def _shown(paths: set[str]) -> tuple[str, ...]:
    """`_id` first, as `select` has it everywhere; without paths that another includes."""
    shown: list[str] = []
    for path in sorted(paths - {"_id"}, key=lambda path: path.split(".")):
        if not _covers("_id", path) and not (shown and _covers(shown[-1], path)):
            shown.append(path)
    return ("_id", *sorted(shown))


def _valid(filter: dict[str, Any]) -> dict[str, Any]:
    """The filter, as decoded JSON."""
    try:
        text = encode(filter)
    except (TypeError, ValueError, RecursionError, msgspec.MsgspecError) as error:
        raise bad_request(f"Invalid JSON in a filter: {error}", "INVALID_JSON") from None
    ask(text.decode())
    valid: dict[str, Any] = decode(text)
    return valid
