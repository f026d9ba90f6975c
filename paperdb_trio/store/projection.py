"""A document with only some of its fields: what `select` leaves.

Law: no I/O.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from paperdb_trio.errors import bad_request
from paperdb_trio.json_input import decode
from paperdb_trio.model import encode
from paperdb_trio.store.query import check_path

MAX_SELECT: Final = 200
Selection = list[list[str]]
_MISSING: Final = object()


def parse_select(text: str | None) -> Selection:
    """The paths of a select like `name,address.city`; `_id` is always included. Empty: everything."""
    if not text:
        return []
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    return selection(names) if names else []


def selection(names: Sequence[str]) -> Selection:
    """The paths of these fields and of `_id`. Raises a 400 `INVALID_FIELD` or `INVALID_REQUEST`."""
    # The deadline cannot stop a projection: it is Python code, and holds the lock that the event loop needs.
    if sum(str(name).count(".") + 1 for name in names) > MAX_SELECT:
        raise bad_request(f"Invalid select: at most {MAX_SELECT} names, counting each part of a path")
    for name in names:
        check_path(name)
    return [name.split(".") for name in dict.fromkeys(["_id", *names])]


def project(data: bytes, wanted: Selection) -> bytes:
    """The document with only the wanted paths."""
    return projected(decode(data), wanted)


def projected(document: dict[str, Any], wanted: Iterable[Iterable[str]]) -> bytes:
    """The same for a decoded document."""
    result: dict[str, Any] = {}
    for path in wanted:
        value: Any = document
        for segment in path:
            value = value.get(segment, _MISSING) if isinstance(value, dict) else _MISSING
        if value is _MISSING:
            continue
        *outer, last = path
        target = result
        for segment in outer:
            inner = target.setdefault(segment, {})
            if not isinstance(inner, dict):
                break
            target = inner
        else:
            target[last] = value
    return encode(result)
