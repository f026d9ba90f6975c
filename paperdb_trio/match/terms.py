"""What a filter can be found by: terms of which one holds for each document that matches.

Law: no I/O, no state. Each kind of term is a key for an index of `match.index`.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Any, Final, NamedTuple

from paperdb_trio.store import keys
from paperdb_trio.store.predicate import number


class Kind(Enum):
    EQUAL = "equal"
    """The value has this key."""
    MEMBER = "member"
    """The value is an array with such an element, or a text with this part."""
    RANGE = "range"
    """The value's ordinal is in `(low, high)`, both included."""
    PRESENT = "present"
    NULL = "null"
    """The value is null or missing."""


class Term(NamedTuple):
    path: str
    kind: Kind
    key: Any
    rank: float
    """How many documents it lets through: the fewer, the lower."""


Cost = Callable[[Term], float]
Choice = tuple[float, tuple[Term, ...]]

ORDINAL_BYTES: Final = 32
"""Of a key's bytes. A longer text counts as its beginning, and the predicate tells the rest."""
_ALL: Final = 2 ** (8 * ORDINAL_BYTES) - 1


def key(value: Any) -> Any:
    """A hashable value that is equal for equal scalars, and only for these."""
    kind = type(value)
    if kind is str:
        return value
    return number(value) if kind is int or kind is float else (value,)


def ordinal(value: str | float) -> int:
    """An integer for a text or number. Of two, the greater one never has the lesser ordinal."""
    return _padded(keys.part(value[:ORDINAL_BYTES] if isinstance(value, str) else value), b"\0")


def _padded(key: bytes, padding: bytes) -> int:
    return int.from_bytes(key[:ORDINAL_BYTES].ljust(ORDINAL_BYTES, padding))


def best(filter: dict[str, Any], cost: Cost) -> Choice | None:
    """The cheapest terms for a canonical filter, and their cost. None if there are none. No terms at all: no
    document can match."""
    choices: list[Choice] = []
    ranges: dict[str, list[tuple[str, Any]]] = {}
    for name, condition in filter.items():
        if isinstance(condition, list):
            found = [best(part, cost) for part in condition]
            if name == "and":
                choices += [choice for choice in found if choice is not None]
            else:
                branches = [choice for choice in found if choice is not None]
                if len(branches) == len(found):
                    terms = dict.fromkeys(term for _, terms in branches for term in terms)
                    choices.append(_union(tuple(terms), [branch[0] for branch in branches]))
            continue
        if name == "not":
            continue
        for operator, operand in condition.items():
            if operator in keys.COMPARISONS:
                ranges.setdefault(name, []).append((operator, operand))
            elif (terms_of := _TERMS.get(operator)) is not None:
                made = terms_of(name, operand)
                choices.append(_union(made, [cost(term) for term in made]))
    for path, comparisons in ranges.items():
        made = _range(path, comparisons)
        choices.append(_union(made, [cost(term) for term in made]))
    return min(choices, key=lambda choice: choice[0], default=None)


def _union(terms: tuple[Term, ...], costs: list[float]) -> Choice:
    """Terms of which one must hold: as bad as the worst of them. More of them take more memory."""
    return max(costs, default=0) + len(terms) / 1000, terms


def _equal(path: str, value: Any) -> Term:
    if value is None:
        return Term(path, Kind.NULL, None, 25)
    return Term(path, Kind.EQUAL, key(value), 20 if isinstance(value, bool) else 0 if path == "_id" else 1)


def _exists(path: str, wanted: bool) -> Term:
    return Term(path, Kind.PRESENT, None, 50) if wanted else Term(path, Kind.NULL, None, 25)


_TERMS: Final[dict[str, Callable[[str, Any], tuple[Term, ...]]]] = {
    "eq": lambda path, value: (_equal(path, value),),
    "in": lambda path, values: tuple(_equal(path, value) for value in values),
    "contains": lambda path, value: (Term(path, Kind.MEMBER, key(value), 2),),
    "exists": lambda path, wanted: (_exists(path, wanted),),
}


def _range(path: str, comparisons: list[tuple[str, Any]]) -> tuple[Term, ...]:
    """One range for all comparisons of a field."""
    low, high, rank = 0, _ALL, 30.0
    sides = set()
    for operator, operand in comparisons:
        begin, end, _ = keys.comparison(operator, operand)
        exact = len(begin.prefix) <= ORDINAL_BYTES
        low = max(low, _padded(begin.prefix, b"\0") + (begin.behind and exact))
        exact = len(end.prefix) <= ORDINAL_BYTES
        high = min(high, _padded(end.prefix, b"\xff") if end.behind else _padded(end.prefix, b"\0") - exact)
        if operator == "startsWith":
            rank = min(rank, 5 + 25 / (len(operand) + 1))
        sides.add(operator[0])
    if sides >= {"g", "l"}:
        rank = min(rank, 10)
    return (Term(path, Kind.RANGE, (low, high), rank),) if low <= high else ()
