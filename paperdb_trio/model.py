"""Names, ids, documents and changes.

Law: no I/O, no clock but the one passed in, no knowledge of SQLite, HTTP or sockets.
"""

from __future__ import annotations

import os
import re
from collections import deque
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from paperdb_trio.errors import ApiError, bad_request

Document = dict[str, Any]

encode = msgspec.json.Encoder().encode

COLLECTION_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")
DATABASE_NAME: Final = COLLECTION_NAME
MAX_ID_LENGTH: Final = 128

SYSTEM_FIELDS: Final = ("_id", "createdAt", "updatedAt")

# nanoid's URL-safe alphabet has 64 characters, so six bits of each random byte choose one without bias.
_ALPHABET: Final = b"useandom-26T198340PX75pxJACKVERYMINDBUSHWOLF_GQZbfghjklqvwyzrict"
_TO_ALPHABET: Final = bytes(_ALPHABET[byte & 63] for byte in range(256))


_ID_LENGTH: Final = 21
_ids: deque[str] = deque()
os.register_at_fork(after_in_child=_ids.clear)  # else two processes make the same ids


def new_id() -> str:
    """A nanoid: 21 characters, 126 random bits. It reveals neither time nor place."""
    try:
        return _ids.pop()  # atomic: any thread may call
    except IndexError:
        # 256 ids per system call, which took a tenth of an insert.
        text = os.urandom(_ID_LENGTH * 256).translate(_TO_ALPHABET).decode("ascii")
        _ids.extend(text[at : at + _ID_LENGTH] for at in range(0, len(text), _ID_LENGTH))
        return _ids.pop()


def timestamp(seconds: float) -> str:
    """RFC 3339 in UTC with milliseconds and `Z`, from seconds since the epoch."""
    return datetime.fromtimestamp(seconds, UTC).isoformat("T", "milliseconds").replace("+00:00", "Z")


def milliseconds(text: str) -> int:
    """The inverse: milliseconds since the epoch, from RFC 3339 with any offset. Raises ValueError."""
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError("a time needs Z or an offset")
    return round(moment.timestamp() * 1000)


def check_collection(name: str) -> str:
    if not COLLECTION_NAME.match(name):
        raise bad_request(
            f"Invalid collection name: '{_shown(name)}'. Use letters, numbers, underscores, and hyphens only.",
            "INVALID_COLLECTION",
        )
    return name


def check_id(value: object) -> str:
    """An id has 1 to 128 printable characters without `/`. URLs fold `.` and `..`, so these are refused."""
    if (
        not isinstance(value, str)
        or not 0 < len(value) <= MAX_ID_LENGTH
        or not value.isprintable()
        or "/" in value
        or value in (".", "..")
    ):
        raise bad_request(
            f"Invalid document id: {_shown(repr(value))}. Use a string of 1 to {MAX_ID_LENGTH} printable "
            "characters without '/'; '.' and '..' are not allowed.",
            "INVALID_ID",
        )
    return value


def _shown(text: str) -> str:
    """Input as an error quotes it: short, and without control characters for a log or a terminal."""
    text = text if len(text) <= 80 else text[:79] + "…"
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


# --- documents -----------------------------------------------------------------------------------


def check_document(value: object) -> Document:
    if not isinstance(value, dict):
        kind = {list: "array", str: "string", bool: "boolean", type(None): "null"}.get(type(value), "number")
        raise bad_request(f"A document must be a JSON object, not {kind}", "INVALID_DOCUMENT")
    return value


def document_bytes(id: str, fields: bytes, created: str, updated: str, max_bytes: int) -> bytes:
    """The stored and served JSON text of a document with these fields, an object as `encode` returns it.

    Raises a 413 `DOCUMENT_TOO_LARGE`. The text never holds a raw newline (JSON escapes it); the change log
    relies on that to separate events.
    """
    comma = b"," if len(fields) > 2 else b""
    times = f',"createdAt":"{created}","updatedAt":"{updated}"}}'.encode()
    data = b"".join((b'{"_id":', encode(id), comma, fields[1:-1], times))
    if len(data) > max_bytes:
        raise document_too_large(len(data), max_bytes)
    return data


def document_too_large(size: int, max_bytes: int) -> ApiError:
    return ApiError(
        413,
        "DOCUMENT_TOO_LARGE",
        f"The document is {size:,} bytes of JSON; at most {max_bytes:,} are allowed",
    )


# --- changes -------------------------------------------------------------------------------------


class Change(msgspec.Struct, frozen=True, gc=False):  # one per write, in a third of a NamedTuple's time
    """One committed write, as in the change log.

    `seq` is positive, strictly increasing in commit order within a database, and never reused.
    `type` is insert, update or delete; `data` the whole document as JSON text (for delete: as it last was).
    `before`: the `reverse_patch` of an update. None for updates that an older version logged.
    `txn`: the seq of the first change of its transaction. None for a transaction of one change.
    """

    database_id: int
    seq: int
    type: str
    collection: str
    id: str
    data: bytes
    before: bytes | None = None
    txn: int | None = None


def reverse_patch(old: Document, new: Document) -> bytes:
    """What turns the new version of a document back into the old one, as JSON: an array of the top-level fields
    that changed or went, with their old values, and an array of the names of fields that came."""
    fields = {name: value for name, value in old.items() if name not in new or not _is_same(value, new[name])}
    return encode([fields, [name for name in new if name not in old]])


def _is_same(one: Any, other: Any) -> bool:
    """Whether two values have the same JSON text."""
    if one is other:
        return True
    return type(one) is type(other) and one == other and (isinstance(one, str) or encode(one) == encode(other))


def version_before(new: Document, patch: tuple[Document, list[str]]) -> Document:
    """The old version of a document, from the new one and a decoded `reverse_patch`."""
    fields, came = patch
    return {**{name: value for name, value in new.items() if name not in came}, **fields}
