"""The filter language and sorting, compiled to SQL over a document's JSONB.

Law: no I/O. Every value from outside is a bound parameter; every field name is checked and quoted here.

Each condition is true or false, never unknown. A missing field satisfies no comparison. `ne` and `nin` are the
exact negations of `eq` and `in`. `null` equals both null and missing (`exists` distinguishes them). Numbers,
strings and booleans never equal one another. Strings compare by code point. Integers beyond 64 bits compare as
doubles.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

from paperdb_trio.errors import bad_request
from paperdb_trio.json_input import parse_json
from paperdb_trio.model import encode
from paperdb_trio.store import keys
from paperdb_trio.store.indexes import IndexField

MAX_FILTER_DEPTH: Final = 8
"""SQLite's parser has a stack of 100 entries; one level of a filter takes up to six."""
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
    """Raises a 400 `INVALID_FIELD` for a name that is not a valid path."""
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
    path = json_path(name)
    literal = "'" + path.replace("'", "''") + "'"
    return Field(f"json_type(data,{literal})", f"json_extract(data,{literal})", literal)


def json_path(name: str) -> str:
    """SQLite's path for a dotted path."""
    return "$." + ".".join(f'"{segment}"' for segment in name.split("."))


def sqlite_value(value: Any) -> Any:
    """What `json_extract` makes of a value: arrays and objects are text, booleans 0 and 1."""
    if isinstance(value, list | dict):
        return encode(value).decode()
    if isinstance(value, int):
        return int(value) if keys.fits(value) else float(value)
    return value


class _Compiler:
    def __init__(self) -> None:
        self.parameters: list[Any] = []
        self.paths: set[str] = set()
        self.conditions = 0
        self.filters = 0
        self.values = 0

    def bind(self, value: Scalar) -> str:
        self.parameters.append(sqlite_value(value))
        return "?"

    def filter(self, value: object, depth: int = 1) -> str:
        if not isinstance(value, dict):
            raise _invalid("a filter must be a JSON object")
        if depth > MAX_FILTER_DEPTH:
            raise _invalid(f"a filter is nested at most {MAX_FILTER_DEPTH} levels deep")
        self.filters += 1
        if self.filters > MAX_CONDITIONS:
            raise _invalid(f"a filter contains at most {MAX_CONDITIONS} filters")
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
        self.paths.add(name)
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
        self.values += len(operand)
        if self.values > MAX_VALUES:
            raise _invalid(f"'in' and 'nin' take at most {MAX_VALUES} values in one filter")
        # One IN for all strings and one for all numbers: a long list is still only one level deep.
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


@dataclass(frozen=True, slots=True)
class Question:
    """A parsed filter and sort.

    `condition`: SQL over a document's `data`, with `parameters`. `spans`, for indexes: by field, the ranges in
    one of which its value must be. `sort`: the fields to sort by; equal documents come in insertion order, or
    in its reverse with `newest_first`. `paths`: the fields that the filter names.
    """

    condition: str
    parameters: list[Any]
    spans: dict[str, tuple[keys.Span, ...]]
    sort: tuple[IndexField, ...] = ()
    newest_first: bool = False
    paths: frozenset[str] = frozenset()

    def within(self, other: Question) -> Question:
        """This question, about documents that match `other`, too."""
        spans = dict(other.spans)
        for path, found in self.spans.items():
            _narrow(spans, path, found)
        condition = f"({other.condition} AND {self.condition})"
        return replace(self, condition=condition, parameters=[*other.parameters, *self.parameters], spans=spans)

    def point(self, path: str) -> bytes | None:
        """The key part of the field's value, if the filter allows only one."""
        spans = self.spans.get(path, ())
        return spans[0].low.prefix if len(spans) == 1 and spans[0].point else None

    @property
    def order(self) -> str:
        """SQL for an ORDER BY."""
        terms = [field(name.path).value + (" DESC" if name.descending else "") for name in self.sort]
        return ",".join([*terms, "d.rowkey DESC" if self.newest_first else "d.rowkey"])


def ask(filter: str | None, sort: str | None = None) -> Question:
    """Raises a 400 `INVALID_FILTER`, `UNKNOWN_OPERATOR`, `INVALID_FIELD`, `INVALID_SORT` or `INVALID_JSON`."""
    fields, newest_first = _parse_sort(sort)
    if filter is None or not filter.strip():
        return Question("1", [], {}, fields, newest_first)
    compiler = _Compiler()
    value = parse_json(filter.encode("utf-8", "surrogatepass"))
    condition = compiler.filter(value)
    spans: dict[str, tuple[keys.Span, ...]] = {}
    for path, operator, operand in _conjuncts(value):
        found = _spans_of(operator, operand)
        if found is not None:
            _narrow(spans, path, found)
    return Question(condition, compiler.parameters, spans, fields, newest_first, frozenset(compiler.paths))


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


def unique_condition(name: str, value: Scalar) -> tuple[str, list[Any]]:
    """SQL for "this field has this value", and its parameters."""
    compiler = _Compiler()
    return compiler.eq(field(name), value, "unique"), compiler.parameters


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
        field(each.path)
    return tuple(fields), newest_first
