"""The filter language and sorting, compiled to SQL over a document's JSONB.

Law: no I/O; every value from outside is a bound parameter, every field name is checked and quoted here.

Each condition is true or false, never unknown: a field that is missing satisfies no comparison, `ne` and
`nin` are the exact negations of `eq` and `in`, and `null` equals both null and missing (`exists` tells
them apart). Numbers, strings and booleans never equal one another. Strings compare by code point.
Integers beyond 64 bits compare as doubles.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from paperdb_trio.errors import bad_request
from paperdb_trio.json_input import parse_json

MAX_FILTER_DEPTH: Final = 8
"""SQLite's parser has a stack of 100; a level of a filter takes up to six of it."""
MAX_CONDITIONS: Final = 200
MAX_VALUES: Final = 2000
_TEXT: Final = "='text'"
_NUMBER: Final = " IN ('integer','real')"

Scalar = str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class Field:
    """SQL expressions for the JSON type and the value at a dotted path."""

    type: str
    value: str
    path: str


def field(name: object) -> Field:
    """Raises a 400 `INVALID_FIELD` for names that cannot be a path."""
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
    path = "$." + ".".join(f'"{segment}"' for segment in name.split("."))
    literal = "'" + path.replace("'", "''") + "'"
    return Field(f"json_type(data,{literal})", f"json_extract(data,{literal})", literal)


class _Compiler:
    def __init__(self) -> None:
        self.parameters: list[Any] = []
        self.conditions = 0
        self.filters = 0

    def bind(self, value: Scalar) -> str:
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            value = float(value)
        self.parameters.append(value)
        return "?"

    def filter(self, value: object, depth: int = 1) -> str:
        if not isinstance(value, dict):
            raise _invalid("a filter must be a JSON object")
        if depth > MAX_FILTER_DEPTH:
            raise _invalid(f"a filter is nested at most {MAX_FILTER_DEPTH} levels deep")
        self.filters += 1
        if self.filters > MAX_CONDITIONS:
            raise _invalid(f"a filter has at most {MAX_CONDITIONS} filters in it")
        parts = []
        for name, condition in value.items():
            if name in ("or", "and") and not isinstance(condition, dict):
                if not isinstance(condition, list):
                    raise _invalid(f"'{name}' takes an array of filters")
                inner = [self.filter(item, depth + 1) for item in condition]
                joiner, empty = (" OR ", "0") if name == "or" else (" AND ", "1")
                parts.append("(" + joiner.join(inner) + ")" if inner else empty)
            elif name == "not":
                parts.append(f"NOT coalesce({self.filter(condition, depth + 1)},0)")
            else:
                parts.append(self.conditions_on(name, condition))
        return "(" + " AND ".join(parts) + ")" if parts else "1"

    def conditions_on(self, name: str, condition: object) -> str:
        at = field(name)
        if not isinstance(condition, dict):
            condition = {"eq": condition}
        if not condition:
            raise _invalid(f"the condition on '{name}' is empty")
        parts = []
        for operator, operand in condition.items():
            compile = _OPERATORS.get(operator)
            if compile is None:
                raise bad_request(
                    f"Unknown operator '{operator[:40]}' on '{name}'. Use one of: {', '.join(_OPERATORS)}.",
                    "UNKNOWN_OPERATOR",
                )
            self.conditions += 1
            if self.conditions > MAX_CONDITIONS:
                raise _invalid(f"a filter has at most {MAX_CONDITIONS} conditions")
            parts.append(compile(self, at, operand, operator))
        return " AND ".join(parts)

    def eq(self, at: Field, operand: object, operator: str = "eq") -> str:
        value = _scalar(operand, operator)
        if value is None:
            return f"({at.type} IS NULL OR {at.type}='null')"
        if isinstance(value, bool):
            return f"{at.type}='{'true' if value else 'false'}'"
        kinds = _TEXT if isinstance(value, str) else _NUMBER
        return f"({at.value}={self.bind(value)} AND {at.type}{kinds})"

    def ne(self, at: Field, operand: object, operator: str) -> str:
        return f"NOT coalesce({self.eq(at, operand, operator)},0)"

    def compare(self, at: Field, operand: object, operator: str) -> str:
        if isinstance(operand, bool) or not isinstance(operand, str | int | float):
            raise _invalid(f"'{operator}' takes a number or a string")
        sign = {"gt": ">", "gte": ">=", "lt": "<", "lte": "<="}[operator]
        kinds = _TEXT if isinstance(operand, str) else _NUMBER
        return f"({at.value}{sign}{self.bind(operand)} AND {at.type}{kinds})"

    def within(self, at: Field, operand: object, operator: str = "in") -> str:
        if not isinstance(operand, list):
            raise _invalid(f"'{operator}' takes an array of values")
        if len(operand) > MAX_VALUES:
            raise _invalid(f"'{operator}' takes at most {MAX_VALUES} values")
        # One IN for all strings and one for all numbers: as long as it may be, it is one level deep.
        texts = [item for item in operand if isinstance(item, str)]
        numbers = [item for item in operand if isinstance(item, int | float) and not isinstance(item, bool)]
        parts = [
            f"({at.value} IN ({','.join(map(self.bind, values))}) AND {at.type}{kinds})"
            for values, kinds in ((texts, _TEXT), (numbers, _NUMBER))
            if values
        ]
        rest = [item for item in operand if item is None or isinstance(item, bool | list | dict)]
        parts += dict.fromkeys(self.eq(at, item, operator) for item in rest)
        return "(" + " OR ".join(parts) + ")" if parts else "0"

    def not_within(self, at: Field, operand: object, operator: str) -> str:
        return f"NOT coalesce({self.within(at, operand, operator)},0)"

    def contains(self, at: Field, operand: object, operator: str) -> str:
        element = Field("item.type", "item.value", "")
        member = (
            f"({at.type}='array' AND EXISTS(SELECT 1 FROM json_each(data,{at.path}) AS item "
            f"WHERE {self.eq(element, operand, operator)}))"
        )
        if not isinstance(operand, str):
            return member
        return f"({member} OR ({at.type}='text' AND instr({at.value},{self.bind(operand)})>0))"

    def starts_with(self, at: Field, operand: object, operator: str) -> str:
        if not isinstance(operand, str):
            raise _invalid("'startsWith' takes a string")
        head = f"substr({at.value},1,{len(operand)})"
        return f"({at.type}='text' AND {head}={self.bind(operand)})"

    def exists(self, at: Field, operand: object, operator: str) -> str:
        if not isinstance(operand, bool):
            raise _invalid("'exists' takes true or false")
        return f"{at.type} IS {'NOT ' if operand else ''}NULL"


_OPERATORS: Final[dict[str, Callable[[_Compiler, Field, object, str], str]]] = {
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


def _scalar(operand: object, operator: str) -> Scalar:
    if operand is not None and not isinstance(operand, str | int | float | bool):
        raise _invalid(f"'{operator}' compares with a string, number, boolean or null")
    return operand


def _invalid(message: str) -> Exception:
    return bad_request(f"Invalid filter: {message}", "INVALID_FILTER")


def compile_filter(text: str | None) -> tuple[str, list[Any]]:
    """SQL for a WHERE clause over columns `id` and `data`, and its parameters. No filter is `1`.

    Raises a 400 `INVALID_FILTER`, `UNKNOWN_OPERATOR`, `INVALID_FIELD` or `INVALID_JSON`.
    """
    if text is None or not text.strip():
        return "1", []
    compiler = _Compiler()
    sql = compiler.filter(parse_json(text.encode("utf-8", "surrogatepass")))
    return sql, compiler.parameters


def unique_condition(name: str, value: Scalar) -> tuple[str, list[Any], str]:
    """SQL for "this field has this value", its parameters, and the expression that an index should hold."""
    compiler = _Compiler()
    at = field(name)
    return compiler.eq(at, value, "unique"), compiler.parameters, at.value


def compile_sort(text: str | None) -> str:
    """SQL for an ORDER BY: the fields of `-createdAt,name`, then insertion order."""
    names = [name for item in (text or "").split(",") if (name := item.strip())]
    if len(names) > 8:  # before they are looked at: 8,000 fit in a request
        raise bad_request("Invalid sort: at most 8 fields", "INVALID_SORT")
    terms = []
    for name in names:
        direction = " DESC" if name[0] == "-" else ""
        terms.append(field(name[1:] if name[0] in "-+" else name).value + direction)
    return ",".join([*terms, "position"])
