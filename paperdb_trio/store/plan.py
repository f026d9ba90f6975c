"""Plans for finds: which index, which of its entries, in which order.

Law: no I/O. `choose` says which entries must be counted, if any. An index only proposes documents. Each is
checked against the whole filter, so that the result never depends on the plan.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, NamedTuple

from paperdb_trio.store import keys
from paperdb_trio.store.indexes import MAX_FIELDS, Index, IndexField, field_text, parse_field
from paperdb_trio.store.query import Question

FEW: Final = 5000
"""Up to this many entries, looking at all of them (some 10 ms) beats reading in the right order with a
filter."""
SCATTERED: Final = 8
"""How many times longer a document takes through an index than in a scan."""

MANY: Final = 1_000_000
"""The most entries that are counted, in some 20 ms."""

Interval = tuple[bytes, bytes]
ALL: Final[Interval] = (b"", b"\xff")
"""The first byte of every key is less than 255."""


class Shelf(NamedTuple):
    """What finding needs of a collection. `documents`: their number. `in_order`: insertion order is also the
    order of `createdAt`."""

    id: int
    documents: int
    indexes: tuple[Index, ...]
    in_order: bool


class Order(Enum):
    """The order in which documents are read; `SORTED` means that they must be sorted afterwards."""

    FORWARD = "the index's order"
    BACKWARD = "the index's order, backwards"
    INSERTION = "insertion order"
    CREATION = "insertion order, which is that of createdAt"
    SORTED = "sorted"


@dataclass(frozen=True, slots=True)
class Plan:
    """`index` None means a scan of the collection. `intervals`: disjoint ranges of the index's keys. `prefix`:
    the common prefix of these keys, made of the index's first `used` fields."""

    order: Order
    index: Index | None = None
    intervals: tuple[Interval, ...] = ()
    prefix: bytes = b""
    used: int = 0

    @property
    def narrows(self) -> bool:
        return self.intervals != (ALL,) and self.index is not None

    def covers(self, question: Question) -> bool:
        """Whether the plan uses every condition that an index can use."""
        paths = () if self.index is None else [parse_field(name).path for name in self.index.fields]
        used = [path for path in paths if question.point(path) is not None]
        return len(used) == len(question.spans) or {*used, *paths[len(used) :][:1]} >= question.spans.keys()


def plan_with(index: Index, question: Question) -> Plan | None:
    """The best plan with one index; None if the index does not help."""
    fields = [parse_field(name) for name in index.fields]
    prefix = b""
    used = 0
    for field in fields:
        point = question.point(field.path)
        if point is None:
            break
        prefix += keys.inverted(point) if field.descending else point
        used += 1
    rest = fields[used:]
    intervals: tuple[Interval, ...] = ((prefix, keys.after(prefix)) if prefix else ALL,)
    spans = question.spans.get(rest[0].path) if rest else None
    if spans is not None:
        made = {keys.interval(prefix, span, descending=rest[0].descending) for span in spans}
        intervals = tuple(sorted(interval for interval in made if interval[0] < interval[1]))
    plan = Plan(_order(rest, question, len(intervals)), index, intervals, prefix, used)
    return plan if plan.narrows or plan.order is not Order.SORTED else None


def _order(rest: list[IndexField], question: Question, intervals: int) -> Order:
    wanted = [field for field in question.sort if question.point(field.path) is None]
    if intervals != 1 or [field.path for field in rest] != [field.path for field in wanted]:
        return Order.SORTED
    same = [field.descending == want.descending for field, want in zip(rest, wanted, strict=True)]
    if all(same):
        return Order.FORWARD
    return Order.SORTED if any(same) else Order.BACKWARD


class Contest(NamedTuple):
    """`plans` of which the one with the fewest entries is best if it has fewer than `most`; else it is
    `otherwise`."""

    plans: list[Plan]
    most: int
    otherwise: Plan

    def won(self, counts: list[int]) -> Plan:
        """`counts`: the entries of each plan, counted up to `most`."""
        unordered = [plan.order is Order.SORTED for plan in self.plans]
        entries, _, at = min(zip(counts, unordered, range(len(counts)), strict=True))
        return self.plans[at] if entries < self.most else self.otherwise


def choose(question: Question, of: Shelf) -> Plan | Contest:
    plans = [plan for index in of.indexes if index.built and (plan := plan_with(index, question)) is not None]
    ordered = [plan for plan in plans if plan.order is not Order.SORTED]
    narrow = [plan for plan in plans if plan.narrows]
    best = max(ordered, key=lambda plan: len(plan.prefix), default=None)
    if best is not None and best.narrows and (len(narrow) == 1 or best.covers(question)):
        return best
    natural = _natural(question, in_order=of.in_order)
    if best is None or not best.narrows:
        best = natural or best
    otherwise = best or Plan(Order.SORTED)
    return Contest(narrow, worth(of.documents) if best is None else FEW, otherwise) if narrow else otherwise


def choose_count(question: Question, of: Shelf) -> Contest:
    """The same where no order is needed."""
    plans = (plan_with(index, question) for index in of.indexes if index.built)
    narrow = [plan for plan in plans if plan is not None and plan.narrows]
    return Contest(narrow, worth(of.documents), Plan(Order.INSERTION))


def worth(documents: int) -> int:
    """From this many entries on, a scan of all documents is faster."""
    return max(FEW, documents // SCATTERED)


def improvement(plan: Plan, question: Question) -> tuple[str, ...] | None:
    """The fields of an index that would give a better plan."""
    for fields in wishes(question):
        better = plan_with(Index(0, fields), question)
        if better is not None and _rank(better) < _rank(plan):
            return fields
    return None


def _rank(plan: Plan) -> tuple[bool, bool, int]:
    """Less is better."""
    return not plan.narrows, plan.order is Order.SORTED, -len(plan.prefix)


def _natural(question: Question, *, in_order: bool) -> Plan | None:
    """The plan that reads the collection in insertion order, if that is the requested order."""
    wanted = [field for field in question.sort if question.point(field.path) is None]
    if not wanted:
        return Plan(Order.INSERTION)
    if in_order and [field.path for field in wanted] == ["createdAt"]:
        return Plan(Order.CREATION)
    return None


def wishes(question: Question) -> list[tuple[str, ...]]:
    """The fields of indexes that would help, the best first: fields that must equal a value, then the sort
    fields or one field that is compared. An index of the compared field helps if few documents match: a read in
    sort order would then pass over many."""
    equal = sorted(path for path in question.spans if question.point(path) is not None)
    sort = [field for field in question.sort if field.path not in equal]
    compared = sorted(question.spans.keys() - set(equal))[:1]
    ends = [[field_text(*field) for field in sort], [field_text(path) for path in compared]]
    first = [field_text(path) for path in equal]
    found = [(*first, *end)[:MAX_FIELDS] for end in ends if end] or [tuple(first[:MAX_FIELDS])]
    return [fields for fields in found if fields]


def described(plan: Plan, question: Question, of: Shelf) -> dict[str, Any]:
    """The plan as fields of a log line, for which nothing is counted."""
    suggestion = improvement(plan, question)
    fields: dict[str, Any] = {
        "index": "none" if plan.index is None else ",".join(plan.index.fields),
        "order": plan.order.value,
        "documents": of.documents,
    }
    if suggestion is not None and not any(index.fields == suggestion for index in of.indexes):
        fields["suggestion"] = ",".join(suggestion)
    return fields


def explanation(plan: Plan, question: Question, of: Shelf, looks_at: int) -> dict[str, Any]:
    """The members of `rest.responses.Explanation`. `looks_at`: how many documents, or entries up to `MANY`."""
    suggestion = improvement(plan, question)
    return {
        "index": None if plan.index is None else plan.index.fields,
        "order": plan.order.value,
        "looksAt": looks_at,
        "documents": of.documents,
        "building": [index.fields for index in of.indexes if not index.built],
        "suggestion": None if any(i.fields == suggestion for i in of.indexes) else suggestion,
    }
