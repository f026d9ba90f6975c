"""The steps by which a patch can change a field: `{"n": {"increment": 1}}`.

Law: no I/O. A step changes the document in place, or raises a 400 and changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from paperdb_trio.errors import ApiError, bad_request
from paperdb_trio.model import Document
from paperdb_trio.store.indexes import kind


def is_step(value: object) -> bool:
    """Whether a value in a patch is a step: an object whose only key is the name of a step."""
    return isinstance(value, dict) and len(value) == 1 and next(iter(value)) in STEPS


def take(document: Document, field: str, step: dict[str, Any]) -> None:
    ((name, operand),) = step.items()
    STEPS[name](document, field, operand, name)


def _add(document: Document, field: str, by: Any, name: str) -> None:
    current = document.get(field, 0)
    for number, what in ((by, f"'{name}' of '{field}'"), (current, f"Field '{field}'")):
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise bad_request(f"{what} must be a number", "INVALID_INCREMENT")
    try:
        result = current + by if name == "increment" else current - by
        if abs(float(result)) == float("inf"):
            raise OverflowError
    except OverflowError:
        raise bad_request(f"'{name}' takes '{field}' out of range", "INVALID_INCREMENT") from None
    document[field] = result


def _push(document: Document, field: str, value: Any, name: str) -> None:
    document[field] = [*_array(document, field, name), value]


def _pull(document: Document, field: str, value: Any, name: str) -> None:
    array = _array(document, field, name)
    if field in document:
        document[field] = [item for item in array if not same(item, value)]


def _unset(document: Document, field: str, operand: Any, name: str) -> None:
    if operand is not True:
        raise _invalid(f"'{name}' of '{field}' must be true")
    document.pop(field, None)


def _array(document: Document, field: str, name: str) -> list[Any]:
    array = document.get(field, [])
    if not isinstance(array, list):
        raise _invalid(f"'{name}' needs an array, but field '{field}' is not one")
    return array


def same(one: Any, other: Any) -> bool:
    """Whether two values are equal as JSON: 1 equals 1.0, but not true."""
    if kind(one) != kind(other):
        return False
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[name]) for name, value in one.items())
    return bool(one == other)


def _invalid(message: str) -> ApiError:
    return bad_request(message, "INVALID_STEP")


STEPS: Final[dict[str, Callable[[Document, str, Any, str], None]]] = {
    "increment": _add,
    "decrement": _add,
    "push": _push,
    "pull": _pull,
    "unset": _unset,
}
