"""Questions in SQLite's SQL, over a document's JSONB. `store.query` has the semantics.

Law: no I/O. Every value from outside is a bound parameter; every field name has been checked (`check_path`),
and is quoted here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from paperdb_trio.store import keys
from paperdb_trio.store.conditions import Conditions
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


class _Compiler(Conditions[Field]):
    ALL, NONE = "1", "0"

    def __init__(self) -> None:
        self.parameters: list[Any] = []

    def field(self, name: str) -> Field:
        return field(name)

    def negated(self, sql: str) -> str:
        return f"NOT coalesce({sql},0)"

    def bind(self, value: Scalar) -> str:
        self.parameters.append(keys.sortable(value))
        return "?"

    def eq(self, at: Field, operand: Any) -> str:
        if operand is None:
            return f"({at.type} IS NULL OR {at.type}='null')"
        if isinstance(operand, bool):
            return f"{at.type}='{'true' if operand else 'false'}'"
        kinds = _TEXT if isinstance(operand, str) else _NUMBER
        return f"({at.value}={self.bind(operand)} AND {at.type}{kinds})"

    def compare(self, at: Field, sign: str, operand: Any) -> str:
        kinds = _TEXT if isinstance(operand, str) else _NUMBER
        return f"({at.value}{sign}{self.bind(operand)} AND {at.type}{kinds})"

    def within(self, at: Field, operand: list[Any]) -> str:
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

    def contains(self, at: Field, operand: Any) -> str:
        element = Field("item.type", "item.value", "")
        member = (
            f"({at.type}='array' AND EXISTS(SELECT 1 FROM json_each(data,{at.path}) AS item "
            f"WHERE {self.eq(element, operand)}))"
        )
        if not isinstance(operand, str):
            return member
        return f"({member} OR ({at.type}='text' AND instr({at.value},{self.bind(operand)})>0))"

    def starts_with(self, at: Field, operand: str) -> str:
        head = f"substr({at.value},1,{len(operand)})"
        return f"({at.type}='text' AND {head}={self.bind(operand)})"

    def exists(self, at: Field, wanted: bool) -> str:
        return f"{at.type} IS {'NOT ' if wanted else ''}NULL"


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
