"""The index of one collection's queries: a tree of field names, and at each path the queries by their terms.

Law: no I/O. A probe looks at the fields of a document, not at the queries: its time is that of its hits, and of
looking once at each value. It may find too many queries, never too few. Adding and removing do not scan.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from typing import Any, Final

from paperdb_trio.match.query import Query
from paperdb_trio.match.terms import ORDINAL_BYTES, Kind, Term, key, ordinal
from paperdb_trio.store.predicate import MISSING, at

Bucket = dict[Query, None]
"""Queries that have the same term. A dict keeps their order, and is joined to others without hashing anew."""
Hits = list[Bucket]

MAX_NULL_PATHS: Final = 64
"""Paths at which queries may wait for null: these are looked at for each change, whatever it contains."""
GRAM: Final = 4
"""Characters of a text by which those that contain it are found."""
SCANNED: Final = 100
"""Grams that are searched for one by one. For more, a text is cut into all of its own."""


class _Members:
    """The queries with `contains`: elements of an array, and parts of a text."""

    def __init__(self) -> None:
        self.buckets: dict[Any, Bucket] = {}
        self._grams: dict[int, dict[str, dict[str, Bucket]]] = {}

    def add(self, operand: Any) -> Bucket:
        bucket: Bucket = {}
        self.buckets[operand] = bucket
        if isinstance(operand, str):
            gram = operand[:GRAM]
            self._grams.setdefault(len(gram), {}).setdefault(gram, {})[operand] = bucket
        return bucket

    def drop(self, operand: Any) -> None:
        del self.buckets[operand]
        if isinstance(operand, str):
            gram = operand[:GRAM]
            grams = self._grams[len(gram)]
            del grams[gram][operand]
            if not grams[gram]:
                del grams[gram]
            if not grams:
                del self._grams[len(gram)]

    def probe_array(self, items: list[Any], hits: Hits) -> None:
        buckets = self.buckets
        for item in items:
            kind = type(item)
            if kind is not list and kind is not dict:
                bucket = buckets.get(item if kind is str else key(item))
                if bucket is not None:
                    hits.append(bucket)

    def probe_text(self, text: str, hits: Hits) -> None:
        for length, grams in self._grams.items():
            if len(grams) <= SCANNED:
                found = [gram for gram in grams if gram in text]
            else:
                own = {text[n : n + length] for n in range(len(text) - length + 1)}
                found = list(grams.keys() & own)
            for gram in found:
                hits += [bucket for operand, bucket in grams[gram].items() if operand in text]


_Range = tuple[int, int]
_BITS: Final = 8 * ORDINAL_BYTES


def _high(range: _Range) -> int:
    return range[1]


def _high_first(range: _Range) -> _Range:
    return range[1], range[0]


class _Ranges:
    """An interval tree whose nodes need no balancing: a range stands where the bits of its ends first differ.

    All ordinals under a node begin with its bits. The ends of each of its ranges lie on both sides of its
    middle, so for a value on the left only the low ends matter, and on the right only the high ends. A probe
    looks at one node for each number of bits that occurs. (The idea is that of the relational interval tree:
    Kriegel, Pötke, Seidl, VLDB 2000.)
    """

    def __init__(self) -> None:
        self.buckets: dict[_Range, Bucket] = {}
        self._levels: dict[int, dict[int, tuple[list[_Range], list[_Range]]]] = {}
        """By the number of bits after those in common, and by these: the ranges by low and by high end."""

    def add(self, range: _Range) -> Bucket:
        low, high = range
        level = (low ^ high).bit_length()
        by_low, by_high = self._levels.setdefault(level, {}).setdefault(low >> level, ([], []))
        insort(by_low, range)
        insort(by_high, range, key=_high_first)
        bucket = self.buckets[range] = {}
        return bucket

    def drop(self, range: _Range) -> None:
        del self.buckets[range]
        low, high = range
        level = (low ^ high).bit_length()
        nodes = self._levels[level]
        by_low, by_high = nodes[low >> level]
        del by_low[bisect_left(by_low, range)]
        del by_high[bisect_left(by_high, _high_first(range), key=_high_first)]
        if not by_low:
            del nodes[low >> level]
            if not nodes:
                del self._levels[level]

    def probe(self, value: int, hits: Hits) -> None:
        buckets = self.buckets
        for level, nodes in self._levels.items():
            node = nodes.get(value >> level)
            if node is None:
                continue
            by_low, by_high = node
            if level and not value >> (level - 1) & 1:
                reached = by_low[: bisect_right(by_low, (value, 1 << _BITS))]
            else:
                reached = by_high[bisect_left(by_high, value, key=_high) :]
            hits += [buckets[range] for range in reached]


class _Equals:
    """The queries that wait for one value."""

    def __init__(self) -> None:
        self.buckets: dict[Any, Bucket] = {}

    def add(self, value: Any) -> Bucket:
        bucket = self.buckets[value] = {}
        return bucket

    def drop(self, value: Any) -> None:
        del self.buckets[value]


class _Node:
    """A path. Its members are made when needed: most paths have one kind of term."""

    __slots__ = ("children", "equals", "members", "present", "ranges")

    def __init__(self) -> None:
        self.children: dict[str, _Node] = {}
        self.equals: _Equals | None = None
        self.members: _Members | None = None
        self.ranges: _Ranges | None = None
        self.present: _Equals | None = None

    def probe(self, document: dict[str, Any], hits: Hits) -> None:
        """The queries below this node for the fields of a document, or of an object in it."""
        children = self.children
        if len(children) <= len(document):
            for name, child in children.items():
                if name in document:
                    child.look(document[name], hits)
        else:
            for name, value in document.items():
                if name in children:
                    children[name].look(value, hits)

    def look(self, value: Any, hits: Hits) -> None:
        """The queries at this path, and below, for its value."""
        kind = type(value)
        if self.present is not None:
            hits += self.present.buckets.values()
        if kind is dict:
            if self.children:
                self.probe(value, hits)
            return
        if kind is list:
            if self.members is not None:
                self.members.probe_array(value, hits)
            return
        if self.equals is not None:
            bucket = self.equals.buckets.get(value if kind is str else key(value))
            if bucket is not None:
                hits.append(bucket)
        if kind is str and self.members is not None:
            self.members.probe_text(value, hits)
        if self.ranges is not None and (kind is str or kind is int or kind is float):
            self.ranges.probe(ordinal(value), hits)

    @property
    def empty(self) -> bool:
        return not (self.children or self.equals or self.members or self.ranges or self.present)


_SLOTS: Final[dict[Kind, tuple[str, Any]]] = {
    Kind.EQUAL: ("equals", _Equals),
    Kind.MEMBER: ("members", _Members),
    Kind.RANGE: ("ranges", _Ranges),
    Kind.PRESENT: ("present", _Equals),
}


class Index:
    """Queries by their terms."""

    def __init__(self) -> None:
        self._root = _Node()
        self.nulls: dict[str, Bucket] = {}

    def cost(self, term: Term) -> float:
        """What it costs to find a query by this term: its rank, and how many are found with it."""
        if term.kind is Kind.NULL:
            full = len(self.nulls) >= MAX_NULL_PATHS and term.path not in self.nulls
            return float("inf") if full else term.rank + len(self.nulls.get(term.path, ()))
        node: _Node | None = self._root
        for name in term.path.split("."):
            node = node.children.get(name) if node is not None else None
        index = None if node is None else getattr(node, _SLOTS[term.kind][0])
        return term.rank if index is None else term.rank + len(index.buckets.get(term.key, ()))

    def add(self, query: Query, term: Term) -> None:
        if term.kind is Kind.NULL:
            self.nulls.setdefault(term.path, {})[query] = None
            return
        node = self._root
        for name in term.path.split("."):
            node = node.children.setdefault(name, _Node())
        slot, make = _SLOTS[term.kind]
        index = getattr(node, slot)
        if index is None:
            index = make()
            setattr(node, slot, index)
        bucket = index.buckets.get(term.key)
        (index.add(term.key) if bucket is None else bucket)[query] = None

    def remove(self, query: Query, term: Term) -> None:
        if term.kind is Kind.NULL:
            del self.nulls[term.path][query]
            if not self.nulls[term.path]:
                del self.nulls[term.path]
            return
        names = term.path.split(".")
        way = [self._root]
        for name in names:
            way.append(way[-1].children[name])
        slot, _ = _SLOTS[term.kind]
        index = getattr(way[-1], slot)
        bucket = index.buckets[term.key]
        del bucket[query]
        if not bucket:
            index.drop(term.key)
        if not index.buckets:
            setattr(way[-1], slot, None)
        while names and way[-1].empty:
            way.pop()
            del way[-1].children[names.pop()]

    def probe(self, document: dict[str, Any], hits: Hits) -> None:
        """The queries that the fields of this document, or part of one, may concern."""
        self._root.probe(document, hits)

    def probe_nulls(self, document: dict[str, Any], hits: Hits) -> None:
        """The queries that wait for a field that this document has not."""
        for path, bucket in self.nulls.items():
            value = at(document, tuple(path.split(".")))
            if value is None or value is MISSING:
                hits.append(bucket)

    def __bool__(self) -> bool:
        """Whether it holds anything."""
        return bool(self.nulls or self._root.children)
