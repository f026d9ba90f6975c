"""The filter language and sorting: what a client may ask, checked, and not yet in any engine's words.

Law: no I/O, no SQL. An engine compiles a question to its SQL (`sqlite/question.py`, `postgres/question.py`);
`predicate` is the same for one document in memory.

Each condition is true or false, never unknown. A missing field satisfies no comparison. `ne` and `nin` are the
exact negations of `eq` and `in`. `null` equals both null and missing (`exists` distinguishes them). Numbers,
strings and booleans never equal one another. Strings compare by code point. Integers beyond 64 bits compare as
doubles.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Final

from paperdb_trio.errors import bad_request
from paperdb_trio.json_input import parse_json
from paperdb_trio.model import encode
from paperdb_trio.store import keys
from paperdb_trio.store.indexes import IndexField
from paperdb_trio.store.predicate import Predicate, predicate

MAX_FILTER_DEPTH: Final = 8
"""SQLite's parser has a stack of 100 entries; one level of a filter takes up to six."""
MAX_CONDITIONS: Final = 200
MAX_VALUES: Final = 2000

Scalar = str | int | float | bool | None


def check_path(name: object) -> str:
    """The name, if it is a valid path. Raises a 400 `INVALID_FIELD`."""
    if (
        not isinstance(name, str)
        or not 0 < len(name) <= 256
        or not all(name.split("."))
        or any(c < " " or c in '"\\' or c == "\x7f" for c in name)
    ):
        raise bad_request(
            f"Invalid field name {str(name)[:80]!r} in a query: use names without quotes, backslashes and "
            "control characters, joined by single dots",
            "INVALID_FIELD",
        )
    return name


class _Check:
    """One walk over a filter, which raises for the first thing that is wrong. `paths`: the fields it names."""

    def __init__(self) -> None:
        self.paths: set[str] = set()
        self.conditions = 0
        self.filters = 0
        self.values = 0

    def filter(self, value: object, depth: int = 1) -> None:
        if not isinstance(value, dict):
            raise _invalid("a filter must be a JSON object")
        if depth > MAX_FILTER_DEPTH:
            raise _invalid(f"a filter is nested at most {MAX_FILTER_DEPTH} levels deep")
        self.filters += 1
        if self.filters > MAX_CONDITIONS:
            raise _invalid(f"a filter contains at most {MAX_CONDITIONS} filters")
        for name, condition in value.items():
            if name in ("or", "and") and not isinstance(condition, dict):
                if not isinstance(condition, list):
                    raise _invalid(f"'{name}' takes an array of filters")
                for item in condition:
                    self.filter(item, depth + 1)
            elif name == "not":
                self.filter(condition, depth + 1)
            else:
                self._conditions_on(name, condition)

    def _conditions_on(self, name: str, condition: object) -> None:
        check_path(name)
        self.paths.add(name)
        if not isinstance(condition, dict):
            condition = {"eq": condition}
        if not condition:
            raise _invalid(f"the condition on '{name}' is empty")
        for operator, operand in condition.items():
            check = _OPERATORS.get(operator)
            if check is None:
                raise bad_request(
                    f"Unknown operator '{operator[:40]}' on '{name}'. Use one of: {', '.join(_OPERATORS)}.",
                    "UNKNOWN_OPERATOR",
                )
            self.conditions += 1
            if self.conditions > MAX_CONDITIONS:
                raise _invalid(f"a filter has at most {MAX_CONDITIONS} conditions")
            check(self, operand, operator)

    def scalar(self, operand: object, operator: str) -> None:
        if operand is not None and not isinstance(operand, str | int | float | bool):
            raise _invalid(f"'{operator}' compares with a string, number, boolean or null")

    def comparable(self, operand: object, operator: str) -> None:
        if isinstance(operand, bool) or not isinstance(operand, str | int | float):
            raise _invalid(f"'{operator}' takes a number or a string")

    def within(self, operand: object, operator: str) -> None:
        if not isinstance(operand, list):
            raise _invalid(f"'{operator}' takes an array of values")
        self.values += len(operand)
        if self.values > MAX_VALUES:
            raise _invalid(f"'in' and 'nin' take at most {MAX_VALUES} values in one filter")
        for item in operand:
            self.scalar(item, operator)

    def text(self, operand: object, operator: str) -> None:
        if not isinstance(operand, str):
            raise _invalid(f"'{operator}' takes a string")

    def boolean(self, operand: object, operator: str) -> None:
        if not isinstance(operand, bool):
            raise _invalid(f"'{operator}' takes true or false")


_OPERATORS: Final[dict[str, Callable[[_Check, object, str], None]]] = {
    "eq": _Check.scalar,
    "ne": _Check.scalar,
    "gt": _Check.comparable,
    "gte": _Check.comparable,
    "lt": _Check.comparable,
    "lte": _Check.comparable,
    "in": _Check.within,
    "nin": _Check.within,
    "contains": _Check.scalar,
    "startsWith": _Check.text,
    "exists": _Check.boolean,
}


def _invalid(message: str) -> Exception:
    return bad_request(f"Invalid filter: {message}", "INVALID_FILTER")


@dataclass(frozen=True, slots=True)
class Question:
    """A checked filter and sort.

    `filter`: the filter's value; `{}` matches everything. `inside`: what documents must match besides. `spans`,
    for indexes: by field, the ranges in one of which its value must be. `sort`: the fields to sort by; equal
    documents come in insertion order, or in its reverse with `newest_first`. `paths`: the fields that the
    filter names. `compiled`: what has been made of `filter` alone, by the name of its maker.
    """

    filter: dict[str, Any]
    spans: dict[str, tuple[keys.Span, ...]]
    sort: tuple[IndexField, ...] = ()
    newest_first: bool = False
    paths: frozenset[str] = frozenset()
    inside: Question | None = None
    compiled: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def within(self, other: Question) -> Question:
        """This question, about documents that match `other`, too."""
        spans = dict(other.spans)
        for path, found in self.spans.items():
            _narrow(spans, path, found)
        inside = other if self.inside is None else self.inside.within(other)
        return replace(self, inside=inside, spans=spans)

    @property
    def everything(self) -> bool:
        """Whether every document matches, and no look at them is needed."""
        return not self.filter and (self.inside is None or self.inside.everything)

    def matches(self, document: dict[str, Any]) -> bool:
        """The same for a decoded document as an engine's SQL for a stored one."""
        holds: Predicate | None = self.compiled.get("predicate")
        if holds is None:
            holds = self.compiled["predicate"] = predicate(self.filter)
        return holds(document) and (self.inside is None or self.inside.matches(document))

    def point(self, path: str) -> bytes | None:
        """The key part of the field's value, if the filter allows only one."""
        spans = self.spans.get(path, ())
        return spans[0].low.prefix if len(spans) == 1 and spans[0].point else None


def ask(filter: str | None, sort: str | None = None) -> Question:
    """Raises a 400 `INVALID_FILTER`, `UNKNOWN_OPERATOR`, `INVALID_FIELD`, `INVALID_SORT` or `INVALID_JSON`."""
    fields, newest_first = _parse_sort(sort)
    if filter is None or not filter.strip():
        return Question({}, {}, fields, newest_first)
    check = _Check()
    value = parse_json(filter.encode("utf-8", "surrogatepass"))
    check.filter(value)
    spans: dict[str, tuple[keys.Span, ...]] = {}
    for path, operator, operand in _conjuncts(value):
        found = _spans_of(operator, operand)
        if found is not None:
            _narrow(spans, path, found)
    return Question(value, spans, fields, newest_first, frozenset(check.paths))


MAX_SHAPE: Final = 1000
"""Characters."""


def shape(filter: str | None) -> str:
    """A valid filter as compact JSON, with `?` for each value: what two questions of one kind share."""
    value = {} if filter is None or not filter.strip() else parse_json(filter.encode("utf-8", "surrogatepass"))
    text = encode(_shape(value)).decode()
    return text if len(text) <= MAX_SHAPE else f"{text[:MAX_SHAPE]}…"


def _shape(filter: Any) -> dict[str, Any]:
    shapes: dict[str, Any] = {}
    for name, condition in filter.items():
        if name in ("or", "and") and isinstance(condition, list):
            inner = {encode(found): found for found in map(_shape, condition)}
            shapes[name] = list(inner.values())
        elif name == "not":
            shapes[name] = _shape(condition)
        else:
            shapes[name] = dict.fromkeys(condition, "?") if isinstance(condition, dict) else "?"
    return shapes


def _narrow(spans: dict[str, tuple[keys.Span, ...]], path: str, found: tuple[keys.Span, ...]) -> None:
    """Add a condition that must hold, too."""
    known = spans.get(path)
    if known is None or len(found) == len(known) == 1:
        spans[path] = found if known is None else (keys.intersection(known[0], found[0]),)
    elif len(found) == 1 and found[0].point:
        spans[path] = found


def _conjuncts(filter: Any) -> Iterator[tuple[str, str, Any]]:
    """The conditions of a valid filter that must all hold, as `(path, operator, operand)`."""
    for name, condition in filter.items():
        if name == "and" and isinstance(condition, list):
            for inner in condition:
                yield from _conjuncts(inner)
        elif name == "not" or (name == "or" and isinstance(condition, list)):
            continue
        elif isinstance(condition, dict):
            yield from ((name, operator, operand) for operator, operand in condition.items())
        else:
            yield name, "eq", condition


def _spans_of(operator: str, operand: Any) -> tuple[keys.Span, ...] | None:
    if operator == "eq":
        return (keys.point(operand),)
    if operator == "in":
        return tuple({keys.point(value) for value in operand})
    return (keys.comparison(operator, operand),) if operator in keys.COMPARISONS else None


def _parse_sort(text: str | None) -> tuple[tuple[IndexField, ...], bool]:
    """The fields of a sort like `-createdAt,name`. A final `-` alone means reverse insertion order."""
    names = [name for item in (text or "").split(",") if (name := item.strip())]
    newest_first = bool(names) and names[-1] == "-"
    if newest_first:
        names.pop()
    if len(names) > 8:  # checked first, because 8,000 names fit into a request
        raise bad_request("Invalid sort: at most 8 fields", "INVALID_SORT")
    fields = [IndexField(name[1:] if name[0] in "-+" else name, name[0] == "-") for name in names]
    for each in fields:
        check_path(each.path)
    return tuple(fields), newest_first
