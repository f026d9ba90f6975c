"""Index keys: bytes that sort like the values that they represent.

Law: no I/O. Each value becomes a part. Parts sort as SQLite sorts the results of `json_extract`: null and
missing, then numbers (false is 0, true is 1), then text (an array or object is its JSON). No part is a prefix
of another, so that parts can be joined to a key. A descending part has every bit inverted.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from paperdb_trio.model import encode

_NULL: Final = b"\x01"
_NUMBER: Final = b"\x02"
_TEXT: Final = b"\x03"
_END: Final = b"\0\0"
_INVERTED: Final = bytes(255 - n for n in range(256))
_double: Final = struct.Struct(">d").pack


def part(value: Any) -> bytes:
    """The part for one value. Anything that is not JSON, such as `msgspec.UNSET`, counts as missing."""
    if isinstance(value, str):
        return _TEXT + value.encode().replace(b"\0", b"\0\xff") + _END
    if isinstance(value, int | float):
        return _number(value)
    if isinstance(value, list | dict):
        return part(encode(value).decode())
    return _NULL


def fits(value: int) -> bool:
    """Whether SQLite has it as an integer; else it is a double."""
    return -(2**63) <= value < 2**63


Sortable = str | int | float | None


def sortable(value: Any) -> Sortable:
    """What a value sorts as: an array or object as its JSON, a boolean as 0 or 1, an integer beyond 64 bits as
    a double."""
    if isinstance(value, list | dict):
        return encode(value).decode()
    if isinstance(value, int):
        return int(value) if fits(value) else float(value)
    found: Sortable = value
    return found


def _number(value: float) -> bytes:
    """The bits of the nearest double, made sortable, and then the integer's difference from it."""
    double = float(value)
    rest = int(value) - int(double) if isinstance(value, int) and fits(value) else 0
    bits = int.from_bytes(_double(double + 0.0))  # + 0.0 turns -0.0 into 0.0
    bits = bits ^ (2**64 - 1) if bits >> 63 else bits | 1 << 63
    return b"%b%b%b" % (_NUMBER, bits.to_bytes(8), (rest + 2048).to_bytes(2))


def inverted(key: bytes) -> bytes:
    return key.translate(_INVERTED)


def after(prefix: bytes) -> bytes:
    """The least bytes beyond all keys that begin with `prefix`."""
    kept = prefix.rstrip(b"\xff")
    return kept[:-1] + bytes([kept[-1] + 1])


@dataclass(frozen=True, slots=True)
class Bound:
    """A place before all keys with this prefix, or `behind` them."""

    prefix: bytes
    behind: bool = False


class Span(NamedTuple):
    """A range of values of one field. `point`: the range is a single value."""

    low: Bound
    high: Bound
    point: bool = False


def point(value: Any) -> Span:
    exact = part(value)
    return Span(Bound(exact), Bound(exact, behind=True), point=True)


COMPARISONS: Final = frozenset({"gt", "gte", "lt", "lte", "startsWith"})


def comparison(operator: str, operand: str | float) -> Span:
    kind = _TEXT if isinstance(operand, str) else _NUMBER
    low, high = Bound(kind), Bound(kind, behind=True)
    match operator:
        case "gt":
            low = Bound(part(operand), behind=True)
        case "gte":
            low = Bound(part(operand))
        case "lt":
            high = Bound(part(operand))
        case "lte":
            high = Bound(part(operand), behind=True)
        case "startsWith":
            prefix = part(operand).removesuffix(_END)
            low, high = Bound(prefix), Bound(prefix, behind=True)
    return Span(low, high)


def intersection(one: Span, other: Span) -> Span:
    low, high = max(one.low, other.low, key=_place), min(one.high, other.high, key=_place)
    return Span(low, high, point=Span(low, high, point=True) in (one, other))


def _place(bound: Bound) -> bytes:
    return after(bound.prefix) if bound.behind else bound.prefix


def interval(prefix: bytes, span: Span, *, descending: bool) -> tuple[bytes, bytes]:
    """`[low, high)`: the keys that begin with `prefix` and continue with a part in the span."""
    if not descending:
        return prefix + _place(span.low), prefix + _place(span.high)
    low, high = inverted(span.high.prefix), inverted(span.low.prefix)
    return (
        prefix + (low if span.high.behind else after(low)),
        prefix + (high if span.low.behind else after(high)),
    )
