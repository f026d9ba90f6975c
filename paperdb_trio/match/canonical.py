"""The canonical form of a filter: filters that differ only in how they are written become the same bytes.

Law: no I/O. The canonical form is a valid filter with the same meaning, and no deeper than the filter was.
Order, repetition, `and` within `and`, `or` within `or`, `1.0` for `1` and the short form of `eq` make no
difference.
"""

from __future__ import annotations

from typing import Any, Final

from paperdb_trio.model import encode
from paperdb_trio.store.predicate import number

Filter = dict[str, Any]
Conjuncts = dict[bytes, Filter]
"""Filters with one condition each, by their JSON text."""

NEVER: Final[Filter] = {"or": []}
_NEVER: Final = encode(NEVER)
_COMPLEMENT: Final = {"eq": "ne", "ne": "eq", "in": "nin", "nin": "in"}


def canonical(filter: Filter) -> Filter:
    """The canonical form of a valid filter."""
    return _merged(_conjuncts(filter))


def _conjuncts(filter: Filter) -> Conjuncts:
    found: Conjuncts = {}
    for name, condition in filter.items():
        if isinstance(condition, list) and name == "and":
            for inner in condition:
                found |= _conjuncts(inner)
        elif isinstance(condition, list):
            found |= _disjunction([_conjuncts(inner) for inner in condition])
        elif name == "not":
            found |= _negation(_conjuncts(condition))
        else:
            operators = condition if isinstance(condition, dict) else {"eq": condition}
            for operator, operand in operators.items():
                found |= _leaf(name, operator, operand)
    return _one(NEVER) if _NEVER in found else found


def _one(filter: Filter) -> Conjuncts:
    return {encode(filter): filter}


def _disjunction(branches: list[Conjuncts]) -> Conjuncts:
    found: Conjuncts = {}
    for branch in branches:
        if not branch:
            return {}  # one branch is always true
        (first, *more) = branch.values()
        inner = first.get("or")
        if not more and isinstance(inner, list):
            found |= {encode(part): part for part in inner}
        else:
            found |= _one(_merged(branch))
    if len(found) == 1:
        return _conjuncts(*found.values())
    return _one({"or": [part for _, part in sorted(found.items())]})


def _negation(parts: Conjuncts) -> Conjuncts:
    if not parts:
        return _one(NEVER)
    if _NEVER in parts:
        return {}
    if len(parts) == 1:
        ((name, condition),) = next(iter(parts.values())).items()
        if name == "not":
            return _conjuncts(condition)
        if isinstance(condition, dict):
            ((operator, operand),) = condition.items()
            if operator == "exists":
                return _one({name: {operator: not operand}})
            if operator in _COMPLEMENT:
                return _one({name: {_COMPLEMENT[operator]: operand}})
    return _one({"not": _merged(parts)})


def _leaf(path: str, operator: str, operand: Any) -> Conjuncts:
    if operator not in ("in", "nin"):
        return _one({path: {operator: _scalar(operand)}})
    values = {encode(value): value for value in map(_scalar, operand)}
    if not values:
        return _one(NEVER) if operator == "in" else {}
    if len(values) == 1:
        (value,) = values.values()
        return _one({path: {"eq" if operator == "in" else "ne": value}})
    return _one({path: {operator: [value for _, value in sorted(values.items())]}})


def _scalar(value: Any) -> Any:
    """Equal numbers are written in one way: as an integer where there is one of 64 bits."""
    double = number(value)
    if double is None:
        return value
    return int(double) if -(2**63) <= double < 2**63 and double == int(double) else double


# --- from conjuncts to a filter ------------------------------------------------------------------


def _merged(parts: Conjuncts) -> Filter:
    """One filter of all, with an `and` for those that do not fit into one object. The deepest come first, since
    those in the `and` become a level deeper."""
    layers: list[Filter] = []
    for _, part in sorted(parts.items(), key=lambda item: (-_depth(item[1]), item[0])):
        ((name, condition),) = part.items()
        for layer in layers:
            if _place(layer, name, condition):
                break
        else:
            layers.append({})
            _place(layers[-1], name, condition)
    if not layers:
        return {}
    first, *rest = layers
    if rest and "and" in first:  # a field of that name
        rest.append({"and": first.pop("and")})
    return _sorted(first | {"and": [_sorted(layer) for layer in rest]} if rest else first)


def _place(layer: Filter, name: str, condition: Any) -> bool:
    known = layer.get(name)
    if known is None:
        layer[name] = dict(condition) if isinstance(condition, dict) else condition
        return True
    if (
        name == "not"
        or isinstance(known, list)
        or isinstance(condition, list)
        or condition.keys() & known.keys()
    ):
        return False
    layer[name] = _sorted(known | condition)
    return True


def _sorted(filter: Filter) -> Filter:
    return dict(sorted(filter.items()))


def _depth(filter: Filter) -> int:
    inner = [0]
    for name, condition in filter.items():
        if isinstance(condition, list):
            inner += map(_depth, condition)
        elif name == "not":
            inner.append(_depth(condition))
    return 1 + max(inner)
