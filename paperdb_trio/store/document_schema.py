"""The schema of a collection: the rules that its documents must satisfy when they are written.

Law: no I/O and no SQL; a parsed schema is immutable and shared.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from paperdb_trio.errors import ApiError, bad_request
from paperdb_trio.json_input import decode
from paperdb_trio.model import SYSTEM_FIELDS, Document, encode
from paperdb_trio.store.indexes import MAX_FIELDS, MAX_INDEXES, field_text, parse_field
from paperdb_trio.store.query import check_path

MAX_PROPERTIES: Final = 200
MAX_BYTES: Final = 64 * 1024
"""Bytes of a schema's JSON. `stored_schema` caches a thousand schemas, and each write reads its own."""

_TYPES: Final[dict[str, Callable[[Any], bool]]] = {
    "string": lambda value: isinstance(value, str),
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "boolean": lambda value: isinstance(value, bool),
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
}
TYPES: Final = tuple(_TYPES)
_KEYS: Final = ("type", "required", "unique", "index", "default")


@dataclass(frozen=True, slots=True)
class Property:
    name: str
    type: str | None
    required: bool
    unique: bool
    index: bool
    default: Any


@dataclass(frozen=True, slots=True)
class DocumentSchema:
    """`text` is the JSON as it was put: `GET /:collection/schema` returns it."""

    text: bytes
    properties: tuple[Property, ...]
    indexes: tuple[tuple[tuple[str, ...], bool], ...]
    """The fields of each index, and whether it is unique."""
    unique: frozenset[str]

    def apply(self, document: Document) -> None:
        """Fill in copies of the defaults, then check. Raises a 400 `VALIDATION_FAILED`."""
        for property in self.properties:
            value = document.get(property.name)
            if value is None and property.name not in document and property.default is not None:
                value = document[property.name] = decode(encode(property.default))
            if value is None:
                if property.required:
                    raise _failed(f"Field '{property.name}' is required")
            elif property.type is not None and not _TYPES[property.type](value):
                raise _failed(f"Field '{property.name}' must be of type {property.type}")


def parse_schema(value: object) -> DocumentSchema:
    """Raises a 400 `INVALID_SCHEMA` that says what was expected."""
    if (
        not isinstance(value, dict)
        or not {"properties"} <= set(value) <= {"properties", "indexes"}
        or not isinstance(value["properties"], dict)
    ):
        raise _invalid(
            'expected {"properties": {"field": {"type": "string", …}}, "indexes": [["room", "-createdAt"], …]}'
        )
    if len(value["properties"]) > MAX_PROPERTIES:
        raise _invalid(f"at most {MAX_PROPERTIES} properties")
    properties = tuple(_parse_property(name, rules) for name, rules in value["properties"].items())
    unique = frozenset(property.name for property in properties if property.unique)
    indexes: dict[tuple[tuple[str, ...], bool], None] = dict.fromkeys(
        ((field_text(p.name),), p.unique) for p in properties if p.index or p.unique
    )
    indexes |= dict.fromkeys((fields, False) for fields in _parse_indexes(value.get("indexes", [])))
    if len(indexes) > MAX_INDEXES:
        raise _invalid(f"at most {MAX_INDEXES} indexes, including those of unique properties")
    text = encode(value)
    if len(text) > MAX_BYTES:
        raise _invalid(f"its JSON must be at most {MAX_BYTES:,} bytes")
    return DocumentSchema(text, properties, tuple(sorted(indexes)), unique)


def _parse_indexes(value: object) -> list[tuple[str, ...]]:
    if not isinstance(value, list):
        raise _invalid("'indexes' must be an array of arrays of fields")
    return [index_fields(fields) for fields in value]


def index_fields(value: object) -> tuple[str, ...]:
    """The fields of an index. Raises a 400 `INVALID_SCHEMA` or `INVALID_FIELD`."""
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_FIELDS:
        raise _invalid(f"an index is an array of 1 to {MAX_FIELDS} fields, with a leading - for descending")
    paths = [check_path(parse_field(name).path if isinstance(name, str) else name) for name in value]
    if len(set(paths)) < len(paths):
        raise _invalid(f"an index names the same field twice: {encode(value).decode()[:80]}")
    return tuple(field_text(*parse_field(name)) for name in value)


@lru_cache(maxsize=1024)
def stored_schema(text: str) -> DocumentSchema:
    """A schema from its stored text, which is known to be valid."""
    return parse_schema(decode(text.encode()))


def _parse_property(name: str, rules: object) -> Property:
    check_path(name)
    if not isinstance(rules, dict):
        raise _invalid(f"the rules of '{name}' must be an object")
    if ("." in name or name in SYSTEM_FIELDS) and set(rules) - {"index"}:
        raise _invalid(f"'{name[:80]}' takes only 'index'; other rules are for your own top-level fields")
    for key in rules:
        if key not in _KEYS:
            raise _invalid(f"unknown rule '{key[:40]}' of '{name}'; expected {', '.join(_KEYS)}")
    kind = rules.get("type")
    if kind is not None and (not isinstance(kind, str) or kind not in _TYPES):
        raise _invalid(f"the type of '{name}' must be one of {', '.join(_TYPES)}")
    for key in ("required", "unique", "index"):
        if not isinstance(rules.get(key, False), bool):
            raise _invalid(f"'{key}' of '{name}' must be true or false")
    default = rules.get("default")
    if default is not None and kind is not None and not _TYPES[kind](default):
        raise _invalid(f"the default of '{name}' must be of type {kind}")
    return Property(
        name,
        kind,
        rules.get("required", False),
        rules.get("unique", False),
        rules.get("index", False),
        default,
    )


def _invalid(message: str) -> ApiError:
    return bad_request(f"Invalid schema: {message}", "INVALID_SCHEMA")


def _failed(message: str) -> ApiError:
    return bad_request(message, "VALIDATION_FAILED")
