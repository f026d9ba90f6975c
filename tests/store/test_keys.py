"""Keys sort like SQLite's values."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from paperdb_trio.model import encode
from paperdb_trio.store import keys
from tests.store.tools import NUMBERS, TEXTS, VALUES

OPERANDS = st.one_of(NUMBERS, TEXTS)


def rank(value: Any) -> tuple[int, Any]:
    """The value's place in SQLite's order."""
    if value is None:
        return 0, 0
    if isinstance(value, int | float):
        return 1, value if isinstance(value, float) or -(2**63) <= value < 2**63 else float(value)
    return 2, [ord(c) for c in (value if isinstance(value, str) else encode(value).decode())]


@given(VALUES, VALUES)
@settings(max_examples=400)
def test_parts_sort_like_values(a: Any, b: Any) -> None:
    one, other = keys.part(a), keys.part(b)
    assert (one < other) == (rank(a) < rank(b))
    assert (one == other) == (rank(a) == rank(b))
    assert (keys.inverted(one) < keys.inverted(other)) == (rank(a) > rank(b))


@given(VALUES, VALUES)
@settings(max_examples=200)
def test_no_part_is_a_prefix_of_another(a: Any, b: Any) -> None:
    one, other = keys.part(a), keys.part(b)
    assert one == other or not other.startswith(one)


HOLDS = {
    "gt": lambda a, b: a > b,
    "gte": lambda a, b: a >= b,
    "lt": lambda a, b: a < b,
    "lte": lambda a, b: a <= b,
}


@given(VALUES, st.sampled_from([*HOLDS, "startsWith"]), OPERANDS, st.booleans(), st.sampled_from(["", "p"]))
@settings(max_examples=600)
def test_interval_holds_exactly_the_values_of_its_comparison(
    value: Any, operator: str, operand: Any, descending: bool, prefix: str
) -> None:
    if operator == "startsWith" and not isinstance(operand, str):
        return
    span = keys.comparison(operator, operand)
    before = keys.part(prefix) if prefix else b""
    low, high = keys.interval(before, span, descending=descending)
    own = keys.part(value)
    key = before + (keys.inverted(own) if descending else own) + keys.part("next")
    same_kind = rank(value)[0] == rank(operand)[0]
    if operator == "startsWith":
        text = value if isinstance(value, str) else encode(value).decode()
        expected = same_kind and text.startswith(operand)
    else:
        expected = same_kind and HOLDS[operator](rank(value)[1], rank(operand)[1])
    assert (low <= key < high) == expected


@given(VALUES, VALUES, st.booleans())
def test_point_holds_exactly_the_equal_values(value: Any, operand: Any, descending: bool) -> None:
    low, high = keys.interval(b"", keys.point(operand), descending=descending)
    own = keys.part(value)
    key = (keys.inverted(own) if descending else own) + keys.part(1)
    assert (low <= key < high) == (rank(value) == rank(operand))


@given(st.lists(st.tuples(st.sampled_from([*HOLDS]), NUMBERS), min_size=1, max_size=4), NUMBERS, st.booleans())
def test_intersection_holds_what_satisfies_every_comparison(
    conditions: list[tuple[str, Any]], value: Any, descending: bool
) -> None:
    span = keys.comparison(*conditions[0])
    for condition in conditions[1:]:
        span = keys.intersection(span, keys.comparison(*condition))
    low, high = keys.interval(b"", span, descending=descending)
    own = keys.part(value)
    key = keys.inverted(own) if descending else own
    assert (low <= key < high) == all(HOLDS[o](rank(value)[1], rank(v)[1]) for o, v in conditions)
