"""The indexes of a collection, and the keys of a document in them.

Law: no I/O. An index is a list of fields, with a leading `-` for descending ones. It has an entry for each
document: a row `(index, key, row key)` in one table for all collections. So an index affects only its own
collection, and is built and removed row by row, in steps, while the server runs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, NamedTuple

import msgspec

from paperdb_trio.model import encode
from paperdb_trio.store import keys

MAX_INDEXES: Final = 64
"""Indexes of one collection. Each adds some 3 µs to a write of a document."""
MAX_MADE: Final = 16
"""Automatic indexes of one collection."""
MAX_MADE_KEY: Final = 256
"""Average bytes of a key in an automatic index. An index of long texts would be as large as the documents."""
UNUSED_DAYS: Final = 14
"""Days without use after which an automatic index is removed."""
MAX_FIELDS: Final = 8
"""Fields of one index."""


class Index(msgspec.Struct, frozen=True, omit_defaults=True):
    """An index as it is stored. `made`: it is automatic. `used`: the last day (since the epoch) on which its
    use was noted. `built`: its entries are complete. `broken`: it should be unique, but two documents have the
    same value."""

    id: int
    fields: tuple[str, ...]
    unique: bool = False
    made: bool = False
    built: bool = False
    broken: bool = False
    used: int = 0

    @property
    def path(self) -> str:
        """The path of its first field."""
        return parse_field(self.fields[0]).path


class IndexField(NamedTuple):
    path: str
    descending: bool


def parse_field(text: str) -> IndexField:
    return IndexField(text[1:] if text[:1] in ("-", "+") else text, text.startswith("-"))


def field_text(path: str, descending: bool = False) -> str:
    """The inverse of `parse_field`."""
    return f"-{path}" if descending else f"+{path}" if path[0] in "+-" else path


@dataclass(frozen=True, slots=True)
class IndexSet:
    """All indexes of a collection. `text` is their stored JSON."""

    text: str
    all: tuple[Index, ...]
    _decode: Callable[[bytes], Any]
    _parts: tuple[tuple[tuple[tuple[str, ...], bool], ...], ...]

    def keys(self, data: bytes) -> list[bytes]:
        """The keys of a document (JSON text), one for each index."""
        document = self._decode(data)
        return [_key(document, parts) for parts in self._parts]

    def key(self, at: int, data: bytes) -> bytes:
        """The key of a document in one index."""
        return _key(self._decode(data), self._parts[at])

    def value(self, index: Index, data: bytes) -> Any:
        """The document's value at an index's only field; None if it is missing."""
        found = _at(self._decode(data), self._parts[self.all.index(index)][0][0])
        return None if found is msgspec.UNSET else found


def _key(document: Any, parts: tuple[tuple[tuple[str, ...], bool], ...]) -> bytes:
    found = [(keys.part(_at(document, path)), descending) for path, descending in parts]
    return b"".join([keys.inverted(part) if descending else part for part, descending in found])


def _at(document: Any, path: tuple[str, ...]) -> Any:
    """`path`: the attribute for the top-level field, then the names below it."""
    value = getattr(document, path[0])
    for name in path[1:]:
        value = value.get(name) if isinstance(value, dict) else None
    return value


@lru_cache(maxsize=1024)
def stored_indexes(text: str) -> IndexSet:
    found = msgspec.json.decode(text, type=tuple[Index, ...])
    fields = [[parse_field(name) for name in index.fields] for index in found]
    names = sorted({field.path.partition(".")[0] for each in fields for field in each})
    attributes = {name: f"f{number}" for number, name in enumerate(names)}
    # Only indexed fields are decoded: this takes a third of the time for a document of 200 bytes.
    wanted = msgspec.defstruct(
        "Wanted",
        [(attribute, Any, msgspec.UNSET) for attribute in attributes.values()],
        rename={attribute: name for name, attribute in attributes.items()},
        gc=False,
    )
    parts = tuple(
        tuple(
            ((attributes[head], *(rest.split(".") if rest else ())), field.descending)
            for field in each
            for head, _, rest in [field.path.partition(".")]
        )
        for each in fields
    )
    return IndexSet(text, found, msgspec.json.Decoder(wanted).decode, parts)


def index_set(indexes: tuple[Index, ...]) -> IndexSet | None:
    return stored_indexes(encode(indexes).decode()) if indexes else None


def kind(value: Any) -> str:
    """The kind of a JSON value. Values of different kinds are never equal."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return "number"
    if isinstance(value, str):
        return "text"
    if isinstance(value, list):
        return "array"
    return "object" if isinstance(value, dict) else "null"
