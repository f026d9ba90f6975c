"""Where a page ends: the token with which a client asks for the next one.

Law: no I/O. The token is opaque to clients and the same for every engine: the sort, the document's place in its
collection, and its values at the sort fields.
"""

from __future__ import annotations

import base64
import binascii
from typing import Any, NamedTuple

import msgspec

from paperdb_trio.errors import bad_request
from paperdb_trio.json_input import decode
from paperdb_trio.model import encode
from paperdb_trio.store import keys
from paperdb_trio.store.query import Question
from paperdb_trio.store.rowkeys import SEQ_MASK, span


class Edge(NamedTuple):
    """The last document of a page: its row key, and its values at the sort fields, as they are sorted."""

    values: tuple[keys.Sortable, ...]
    rowkey: int


def edge_text(sort: str | None, question: Question, document: bytes, rowkey: int) -> str:
    """The text of an edge for `after`."""
    found = decode(document) if question.sort else {}
    values = [_value(found, name.path) for name in question.sort]
    text = encode([sort or "", rowkey & SEQ_MASK, values])
    return base64.urlsafe_b64encode(text).rstrip(b"=").decode()


def _value(document: Any, path: str) -> keys.Sortable:
    value = document
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return keys.sortable(value)


def parse_edge(text: str, sort: str | None, question: Question, collection_id: int) -> Edge:
    """Raises a 400 `INVALID_CURSOR`."""
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        of, seq, values = msgspec.json.decode(raw, type=tuple[str, int, tuple[str | int | float | None, ...]])
        # A page never ends with a larger integer: it is a double.
        large = any(isinstance(value, int) and not keys.fits(value) for value in values)
        if large or of != (sort or "") or len(values) != len(question.sort) or not 0 < seq <= SEQ_MASK:
            raise ValueError
        return Edge(values, span(collection_id)[0] | seq)
    except (ValueError, binascii.Error, msgspec.MsgspecError):
        raise bad_request(
            "Invalid after: expected the 'next' of a page that was found with the same 'sort'", "INVALID_CURSOR"
        ) from None
