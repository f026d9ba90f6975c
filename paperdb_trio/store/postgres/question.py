"""Questions in PostgreSQL's SQL, over a document's JSON text and the jsonb that is made of it.

Law: no I/O. Every value from outside is a bound parameter; every field name has been checked (`check_path`),
and is quoted here. `store.query` has the semantics: a condition is true or false, never unknown, and raises for
no document. So an operator stands in `(…) IS TRUE`, and a cast in a CASE, since PostgreSQL evaluates the parts
of an AND in any order.

jsonb reads `1e17` as an integer, and compares integers of any length exactly. That is the same as in SQLite for
numbers below 2^53: `data` has the shortest text of each double, which sorts as the doubles do. For larger ones,
the text in `data` tells integers from doubles. `->` with a text key, unlike `#>`, never leads through an array.

What takes time is the look into the jsonb, 1 µs. So a type is asked after what it guards, which is mostly
false.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from paperdb_trio.model import SYSTEM_FIELDS, encode
from paperdb_trio.store import keys
from paperdb_trio.store.conditions import Conditions
from paperdb_trio.store.query import Question

PLACE: Final = "\0"
"""Stands for the next parameter, as no field name can, until `numbered` makes it `$1`, `$2` …"""
EXACT: Final = 2**53
"""Below it, a double and an integer are equal only if their texts denote the same number."""

Parameter = str | int | bytes


class Sql(NamedTuple):
    """SQL with `PLACE` for each of its parameters."""

    text: str
    parameters: list[Parameter]

    def numbered(self, first: int = 1) -> str:
        """The SQL with its parameters as `$first` and so on."""
        head, *rest = self.text.split(PLACE)
        return head + "".join([f"${number}{part}" for number, part in enumerate(rest, first)])


class Columns(NamedTuple):
    """SQL for a document's jsonb and for its JSON text."""

    doc: str
    data: str


DOCUMENTS: Final = Columns("d.doc", "d.data")


@dataclass(frozen=True, slots=True)
class Field:
    """SQL for what stands at a path: as jsonb, its type, as json with the original text, and as text."""

    value: str
    type: str
    json: str
    text: str

    @property
    def literal(self) -> str:
        """A number as the document's text has it."""
        return f"({self.json}#>>'{{}}')"


def field(path: str, columns: Columns = DOCUMENTS) -> Field:
    *outer, last = _segments(path)
    above = "->".join([columns.doc, *outer])
    value = f"({above}->{last})"
    return Field(value, f"jsonb_typeof({value})", _json(path, columns.data), f"({above}->>{last})")


def _segments(path: str) -> list[str]:
    return ["'" + segment.replace("'", "''") + "'::text" for segment in path.split(".")]


def _json(path: str, data: str) -> str:
    return f"({'->'.join([f'({data})::json', *_segments(path)])})"


# --- numbers -------------------------------------------------------------------------------------


def numeric(value: float) -> str:
    """A number that sorts as it is compared: exactly, but as a double beyond 64 bits."""
    if isinstance(value, int) and not keys.fits(value):
        value = float(value)
    if isinstance(value, float) and abs(value) >= EXACT and keys.fits(int(value)):
        return str(int(value))
    return str(value)


def _exact(literal: str) -> str:
    """SQL for the same of a number of at least 2^53, from its text."""
    double = f"{literal}::float8"
    return (
        f"CASE WHEN {literal}!~'[.eE]' AND {literal}::numeric BETWEEN -9223372036854775808 "
        f"AND 9223372036854775807 THEN {literal}::numeric "
        f"WHEN {double}>=-9223372036854775808 AND {double}<9223372036854775808 "
        f"THEN {double}::int8::numeric ELSE {double}::text::numeric END"
    )


def _number(at: Field) -> str:
    """SQL for the same of the number at a field. Raises if there is another value."""
    exact = _exact(at.literal)
    return f"CASE WHEN abs({at.value}::numeric)<{EXACT} THEN {at.value}::numeric ELSE {exact} END"


def _is_large(value: object) -> bool:
    return isinstance(value, int | float) and abs(value) >= EXACT


# --- conditions ----------------------------------------------------------------------------------


class _Compiler(Conditions[Field]):
    ALL, NONE = "TRUE", "FALSE"

    def __init__(self, columns: Columns) -> None:
        self.columns = columns
        self.parameters: list[Parameter] = []

    def bind(self, value: Parameter, type: str) -> str:
        self.parameters.append(value)
        return f"{PLACE}::{type}"

    def json(self, value: Any) -> str:
        return self.bind(encode(value).decode(), "jsonb")

    def field(self, name: str) -> Field:
        return field(name, self.columns)

    def negated(self, sql: str) -> str:
        return f"NOT ({sql})"

    def eq(self, at: Field, operand: Any) -> str:
        if operand is None:
            return f"({at.value} IS NULL OR {at.value}='null'::jsonb)"
        if _is_large(operand):
            return self._large(at, "=", operand)
        return f"({at.value}={self.json(operand)}) IS TRUE"

    def _large(self, at: Field, sign: str, operand: float) -> str:
        number = f"({_number(at)}){sign}{self.bind(numeric(operand), 'numeric')}"
        return f"(CASE {at.type} WHEN 'number' THEN {number} END) IS TRUE"

    def compare(self, at: Field, sign: str, operand: Any) -> str:
        if isinstance(operand, str):
            text = f'{at.text} COLLATE "C"{sign}{self.bind(operand, "text")}'
            return f"({text} AND {at.type}='string') IS TRUE"
        if _is_large(operand):
            return self._large(at, sign, operand)
        return f"({at.value}{sign}{self.json(operand)} AND {at.type}='number') IS TRUE"

    def within(self, at: Field, operand: list[Any]) -> str:
        large = [item for item in operand if _is_large(item)]
        plain = [item for item in operand if not _is_large(item)]
        parts = []
        if plain:  # hashed once, however many they are; an ANY would compare each document with each value
            parts.append(f"({at.value} IN (SELECT jsonb_array_elements({self.json(plain)}))) IS TRUE")
        if large:
            values = self.bind("{" + ",".join(map(numeric, large)) + "}", "numeric[]")
            number = f"abs({at.value}::numeric)>={EXACT} AND ({_exact(at.literal)})=ANY({values})"
            parts.append(f"(CASE {at.type} WHEN 'number' THEN {number} END) IS TRUE")
        if None in operand:
            parts.append(f"{at.value} IS NULL")
        return "(" + " OR ".join(parts) + ")" if parts else "FALSE"

    def contains(self, at: Field, operand: Any) -> str:
        if _is_large(operand):
            items = f"json_array_elements(CASE {at.type} WHEN 'array' THEN {at.json} ELSE '[]'::json END)"
            value = "(item.value::jsonb)"
            item = Field(value, f"jsonb_typeof({value})", "item.value", f"({value}#>>'{{}}')")
            return f"EXISTS(SELECT 1 FROM {items} AS item WHERE {self.eq(item, operand)})"
        member = f"({at.value}@>{self.json([operand])} AND {at.type}='array') IS TRUE"
        if not isinstance(operand, str):
            return member
        part = f'strpos({at.text} COLLATE "C",{self.bind(operand, "text")})>0'
        return f"({member} OR ({part} AND {at.type}='string') IS TRUE)"

    def starts_with(self, at: Field, operand: str) -> str:
        return f"(starts_with({at.text},{self.bind(operand, 'text')}) AND {at.type}='string') IS TRUE"

    def exists(self, at: Field, wanted: bool) -> str:
        return f"{at.value} IS {'NOT ' if wanted else ''}NULL"


def condition(question: Question, columns: Columns = DOCUMENTS) -> Sql:
    """SQL for "the document matches"."""
    name = f"postgres {columns.doc}"
    own: Sql | None = question.compiled.get(name)
    if own is None:
        compiler = _Compiler(columns)
        own = question.compiled[name] = Sql(compiler.filter(question.filter), compiler.parameters)
    if question.inside is None:
        return own
    outer, parameters = condition(question.inside, columns)
    return Sql(f"({outer} AND {own.text})", [*parameters, *own.parameters])


# --- sorting -------------------------------------------------------------------------------------


class SortTerm(NamedTuple):
    """SQL for a part of what a field sorts by, never null, and its type."""

    sql: str
    type: str


def fence(path: str, number: int) -> tuple[str, Field]:
    """Columns that are to be selected from documents, and a field made of them: it is looked up once, not in
    each part of each term, which halves the time of a sort."""
    at = field(path)
    value, type = f"v{number}", f"t{number}"
    return f"{at.value} AS {value},{at.type} AS {type}", Field(
        value, type, _json(path, "data"), f"({value}#>>'{{}}')"
    )


def sort_terms(path: str, at: Field | None = None) -> list[SortTerm]:
    """The kind of a field's value (null or missing, number, text), its number, its text."""
    at = at or field(path)
    if path in SYSTEM_FIELDS:  # texts in every document
        return [SortTerm(f'({at.text} COLLATE "C")', "text")]
    kinds = (
        "WHEN 'number' THEN 1 WHEN 'boolean' THEN 1 "
        "WHEN 'string' THEN 2 WHEN 'array' THEN 2 WHEN 'object' THEN 2"
    )
    truth = f"CASE WHEN {at.value}='true'::jsonb THEN 1 ELSE 0 END"
    number = f"WHEN 'number' THEN {_number(at)} WHEN 'boolean' THEN {truth}"
    text = f"WHEN 'string' THEN {at.text} WHEN 'array' THEN {at.json}::text WHEN 'object' THEN {at.json}::text"
    return [
        SortTerm(f"(CASE {at.type} {kinds} ELSE 0 END)", "int"),
        SortTerm(f"(CASE {at.type} {number} ELSE 0 END)", "numeric"),
        SortTerm(f"((CASE {at.type} {text} ELSE '' END) COLLATE \"C\")", "text"),
    ]


def sort_values(path: str, value: keys.Sortable) -> list[Parameter]:
    """The same of a value."""
    text = value if isinstance(value, str) else ""
    if path in SYSTEM_FIELDS:
        return [text]
    if isinstance(value, int | float):
        return [1, numeric(value), ""]
    return [0 if value is None else 2, "0", text]
