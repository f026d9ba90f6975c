"""A filter as a function of a decoded document.

Law: its semantics are those of `store.query`, whose SQL it must equal (`tests/store/test_query.py`). A
predicate is total: it has a result for every JSON document, and raises for none.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import ge, gt, le, lt
from typing import Any, Final

from paperdb_trio.store.keys import fits

Predicate = Callable[[dict[str, Any]], bool]
Test = Callable[[Any], bool]

MISSING: Final = object()
"""What stands at a path that a document does not have."""


def at(document: Any, segments: tuple[str, ...]) -> Any:
    """The value at a path, which never leads through an array."""
    for name in segments:
        if type(document) is not dict or name not in document:
            return MISSING
        document = document[name]
    return document


def number(value: Any) -> float | None:
    """A number as it is compared: a double beyond 64 bits. None for other values."""
    kind = type(value)
    if kind is float:
        return float(value)
    if kind is not int:
        return None
    if fits(value):
        return int(value)
    try:
        return float(value)
    except OverflowError:  # no document has such a number, but a predicate is total
        return float("inf") if value > 0 else float("-inf")


# --- operators: from an operand to a test of a value ---------------------------------------------


def _equal(operand: Any) -> Test:
    if operand is None:
        return lambda value: value is None or value is MISSING
    if isinstance(operand, bool):
        return lambda value: value is operand
    if isinstance(operand, str):
        return lambda value: bool(value == operand)
    wanted = number(operand)
    return lambda value: number(value) == wanted


def _ordered(compare: Callable[[Any, Any], bool]) -> Callable[[Any], Test]:
    def operator(operand: Any) -> Test:
        if isinstance(operand, str):  # Python, too, compares by code point
            return lambda value: type(value) is str and compare(value, operand)
        bound = number(operand)

        def holds(value: Any) -> bool:
            own = number(value)
            return own is not None and compare(own, bound)

        return holds

    return operator


def _within(operand: list[Any]) -> Test:
    texts = frozenset(item for item in operand if isinstance(item, str))
    numbers = frozenset(number(item) for item in operand) - {None}
    others = [_equal(item) for item in operand if item is None or isinstance(item, bool)]

    def holds(value: Any) -> bool:
        if type(value) is str:
            return value in texts
        return number(value) in numbers or any(test(value) for test in others)

    return holds


def _contains(operand: Any) -> Test:
    equal, text = _equal(operand), operand if isinstance(operand, str) else None

    def holds(value: Any) -> bool:
        if type(value) is list:
            return any(map(equal, value))
        return text is not None and type(value) is str and text in value

    return holds


def _starts_with(operand: str) -> Test:
    return lambda value: type(value) is str and value.startswith(operand)


def _exists(operand: bool) -> Test:
    return lambda value: (value is not MISSING) is operand


def _negated(operator: Callable[[Any], Test]) -> Callable[[Any], Test]:
    def negation(operand: Any) -> Test:
        test = operator(operand)
        return lambda value: not test(value)

    return negation


OPERATORS: Final[dict[str, Callable[[Any], Test]]] = {
    "eq": _equal,
    "ne": _negated(_equal),
    "gt": _ordered(gt),
    "gte": _ordered(ge),
    "lt": _ordered(lt),
    "lte": _ordered(le),
    "in": _within,
    "nin": _negated(_within),
    "contains": _contains,
    "startsWith": _starts_with,
    "exists": _exists,
}


# --- filters -------------------------------------------------------------------------------------


def predicate(filter: dict[str, Any]) -> Predicate:
    """Compile a valid filter."""
    parts: list[Predicate] = []
    for name, condition in filter.items():
        if isinstance(condition, list):  # of `and`, `or`: a condition on a field is never a list
            inner = [predicate(part) for part in condition]
            parts.append(_any(inner) if name == "or" else _all(inner))
        elif name == "not":
            parts.append(_not(predicate(condition)))
        else:
            operators = condition if isinstance(condition, dict) else {"eq": condition}
            parts += [_on(name, OPERATORS[op](operand)) for op, operand in operators.items()]
    return parts[0] if len(parts) == 1 else _all(parts)


def _on(path: str, test: Test) -> Predicate:
    if "." not in path:
        return lambda document: test(document.get(path, MISSING))
    segments = tuple(path.split("."))
    return lambda document: test(at(document, segments))


def _all(parts: list[Predicate]) -> Predicate:
    if not parts:
        return lambda document: True
    if len(parts) == 2:
        one, other = parts
        return lambda document: one(document) and other(document)
    return lambda document: all(part(document) for part in parts)


def _any(parts: list[Predicate]) -> Predicate:
    return lambda document: any(part(document) for part in parts)


def _not(part: Predicate) -> Predicate:
    return lambda document: not part(document)
