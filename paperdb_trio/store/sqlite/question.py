"""Questions in SQLite's SQL, over a document's JSONB. `store.query` has the semantics.

Law: no I/O. Every value from outside is a bound parameter; every field name has been checked (`check_path`),
and is quoted here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from paperdb_trio.store import keys
from paperdb_trio.store.query import Question, Scalar, check_path

_TEXT: Final = "='text'"
_NUMBER: Final = " IN ('integer','real')"

Condition = tuple[str, list[Any]]
"""SQL over a document's `data` that is 0 or 1, and its parameters."""


@dataclass(frozen=True, slots=True)
class Field:
    """SQL expressions for the JSON type and the value at a dotted path."""

    type: str
    value: str
    path: str


def field(name: str) -> Field:
    literal = "'" + json_path(name).replace("'", "''") + "'"
    return Field(f"json_type(data,{literal})", f"json_extract(data,{literal})", literal)


def json_path(name: str) -> str:
    """SQLite's path for a dotted path."""
    return "$." + ".".join(f'"{segment}"' for segment in name.split("."))


class _Compiler:
    def __init__(self) -> None:
        self.parameters: list[Any] = []

    def bind(self, value: Scalar) -> str:
        self.parameters.append(keys.sortable(value))
        return "?"

    def filter(self, value: dict[str, Any]) -> str:
        parts = []
        for name, condition in value.items():
            if isinstance(condition, list):  # of `and`, `or`: a condition on a field is never a list
                inner = [self.filter(item) for item in condition]
                joiner, empty = (" OR ", "0") if name == "or" else (" AND ", "1")
                parts.append("(" + joiner.join(inner) + ")" if inner else empty)
            elif name == "not":
                parts.append(f"NOT coalesce({self.filter(condition)},0)")
            else:
                parts.append(self._conditions_on(name, condition))
        return "(" + " AND ".join(parts) + ")" if parts else "1"

    def _conditions_on(self, name: str, condition: Any) -> str:
        at = field(name)
        operators = condition if isinstance(condition, dict) else {"eq": condition}
        return " AND ".join(
            [_OPERATORS[operator](self, at, operand, operator) for operator, operand in operators.items()]
        )

    def eq(self, at: Field, value: Any, operator: str = "eq") -> str:
        if value is None:
            return f"({at.type} IS NULL OR {at.type}='null')"
        if isinstance(value, bool):
            return f"{at.type}='{'true' if value else 'false'}'"
        kinds = _TEXT if isinstance(value, str) else _NUMBER
        return f"({at.value}={self.bind(value)} AND {at.type}{kinds})"

    def ne(self, at: Field, operand: Any, operator: str) -> str:
        return f"NOT coalesce({self.eq(at, operand)},0)"

    def compare(self, at: Field, operand: Any, operator: str) -> str:
        sign = {"gt": ">", "gte": ">=", "lt": "<", "lte": "<="}[operator]
        kinds = _TEXT if isinstance(operand, str) else _NUMBER
        return f"({at.value}{sign}{self.bind(operand)} AND {at.type}{kinds})"

    def within(self, at: Field, operand: Any, operator: str = "in") -> str:
        # One IN for all strings and one for all numbers: a long list is still only one level deep.
        texts = [item for item in operand if isinstance(item, str)]
        numbers = [item for item in operand if isinstance(item, int | float) and not isinstance(item, bool)]
        parts = [
            f"({at.value} IN ({','.join(map(self.bind, values))}) AND {at.type}{kinds})"
            for values, kinds in ((texts, _TEXT), (numbers, _NUMBER))
            if values
        ]
        rest = [item for item in operand if item is None or isinstance(item, bool)]
        parts += dict.fromkeys(self.eq(at, item) for item in rest)
        return "(" + " OR ".join(parts) + ")" if parts else "0"

    def not_within(self, at: Field, operand: Any, operator: str) -> str:
        return f"NOT coalesce({self.within(at, operand)},0)"

    def contains(self, at: Field, operand: Any, operator: str) -> str:
        element = Field("item.type", "item.value", "")
        member = (
            f"({at.type}='array' AND EXISTS(SELECT 1 FROM json_each(data,{at.path}) AS item "
            f"WHERE {self.eq(element, operand)}))"
        )
        if not isinstance(operand, str):
            return member
        return f"({member} OR ({at.type}='text' AND instr({at.value},{self.bind(operand)})>0))"

    def starts_with(self, at: Field, operand: Any, operator: str) -> str:
        head = f"substr({at.value},1,{len(operand)})"
        return f"({at.type}='text' AND {head}={self.bind(operand)})"

    def exists(self, at: Field, operand: Any, operator: str) -> str:
        return f"{at.type} IS {'NOT ' if operand else ''}NULL"


_OPERATORS: Final[dict[str, Callable[[_Compiler, Field, Any, str], str]]] = {
    "eq": _Compiler.eq,
    "ne": _Compiler.ne,
    "gt": _Compiler.compare,
    "gte": _Compiler.compare,
    "lt": _Compiler.compare,
    "lte": _Compiler.compare,
    "in": _Compiler.within,
    "nin": _Compiler.not_within,
    "contains": _Compiler.contains,
    "startsWith": _Compiler.starts_with,
    "exists": _Compiler.exists,
}


def condition(question: Question) -> Condition:
    """SQL for "the document matches"."""
    own: Condition | None = question.compiled.get("sqlite")
    if own is None:
        compiler = _Compiler()
        own = question.compiled["sqlite"] = (compiler.filter(question.filter), compiler.parameters)
    if question.inside is None:
        return own
    outer, parameters = condition(question.inside)
    return f"({outer} AND {own[0]})", [*parameters, *own[1]]


def order(question: Question) -> str:
    """SQL for an ORDER BY."""
    terms = [field(name.path).value + (" DESC" if name.descending else "") for name in question.sort]
    return ",".join([*terms, "d.rowkey DESC" if question.newest_first else "d.rowkey"])


def unique_condition(name: str, value: Scalar) -> Condition:
    """SQL for "this field has this value". Raises a 400 `INVALID_FIELD`."""
    compiler = _Compiler()
    return compiler.eq(field(check_path(name)), value), compiler.parameters
