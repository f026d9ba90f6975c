"""JSON in: decoding, and the checks beyond its grammar.

Law: no I/O. Nothing else in the process runs during a decode. So the time is proportional to the size of the
text, whatever it contains; text that cannot be a document is refused first; and an array of documents is split
without decoding them, so that the caller can decode one by one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import chain
from typing import Any, Final, TypeVar

import msgspec

from paperdb_trio.errors import ApiError, bad_request
from paperdb_trio.model import document_too_large

Envelope = TypeVar("Envelope")

MAX_DEPTH: Final = 64
"""Levels of nesting in a document. SQLite's JSON functions refuse 2,000; people need about ten."""
MAX_CONTAINERS: Final = 65_536
"""Arrays and objects in a text. A megabyte of `[[[[` takes 0.3 s; a megabyte of coordinates has 26,000."""


# --- numbers that msgspec decodes slowly ---------------------------------------------------------


def _float(literal: str) -> float:
    value = float(literal)
    if value - value:  # infinite
        raise ValueError("Number out of range")
    return value


_decode_any = msgspec.json.Decoder().decode
_decode_extremes = msgspec.json.Decoder(float_hook=_float).decode
"""msgspec takes up to 10 µs for a number near either limit of a double (from 1e289 up, from 1e-300 down), so a
megabyte could block every client for 1.6 s. Python takes 0.3 s, but for any numbers, and so ten times as long
as msgspec for most."""
_EXPONENTS: Final = bytes.maketrans(b"E123456789", b"e000000000")
_HARMLESS: Final = 512
"""Bytes that hold too few of such numbers to matter."""


def decode(text: bytes) -> Any:
    """The value of the JSON `text`. Raises msgspec's errors."""
    if len(text) > _HARMLESS and b"e000" in text.translate(_EXPONENTS, b"+-"):
        return _decode_extremes(text)
    return _decode_any(text)


# --- a text, a document, an array of documents ---------------------------------------------------


def parse_json(text: bytes) -> Any:
    """Decode a request's JSON text. Raises a 400 `INVALID_JSON` that says where the error is.

    Also refused: lone surrogates, NUL in strings (SQLite's JSON functions end a string there, so a filter could
    not find it again), numbers beyond a double, and nesting over `MAX_DEPTH`.
    """
    size = len(text)
    if size > MAX_CONTAINERS and _containers(text) > MAX_CONTAINERS:
        raise bad_request(f"JSON has more than {MAX_CONTAINERS:,} arrays and objects", "INVALID_JSON")
    try:
        value = decode(text)
    except (RecursionError, msgspec.MsgspecError, ValueError) as error:
        raise _invalid(error, text) from None
    # Nearly every text passes with these scans, which cost less than a walk over the value.
    if b"\\u0000" in text or (size > _LONG and _has_long_number(text)):
        _check_scalars(value)
    elif size > 2 * MAX_DEPTH and text.count(b"[") + text.count(b"{") > MAX_DEPTH:
        for _ in _levels(value):
            pass
    return value


def parse_document(text: bytes, max_bytes: int) -> Any:
    """The same for one document. Also raises a 413 `DOCUMENT_TOO_LARGE`, before it decodes a text that is too
    large even without its whitespace and escapes."""
    if len(text) > max_bytes:
        bare = text.translate(None, b" \t\r\n").replace(b"\\\\", b"..")
        size = len(bare) - 5 * bare.count(b"\\u") - bare.count(b"\\/")
        if size > max_bytes:
            raise document_too_large(size, max_bytes)
    return parse_json(text)


def split_items(body: bytes, most: int, name: str) -> list[bytes]:
    """The elements of an array, or of the array in `{name: [...]}`, each as text for `parse_document`.

    Raises a 400 `INVALID_JSON` or `INVALID_DOCUMENT`, and a 413 `TOO_MANY_DOCUMENTS`.
    """
    try:
        array = unwrap(body, _wrapped(name)).items if body.lstrip()[:1] == b"{" else body
        documents = _array_decoder(most)(array)
    except msgspec.ValidationError:
        raise bad_request(
            f'The body must be an array of {name}, or {{"{name}": [...]}} and nothing else',
            "INVALID_DOCUMENT",
        ) from None
    except (RecursionError, msgspec.MsgspecError, ValueError) as error:
        raise _invalid(error, body) from None
    texts = msgspec.structs.astuple(documents)
    if texts[-1] is not msgspec.UNSET:
        raise ApiError(413, "TOO_MANY_DOCUMENTS", f"At most {most:,} {name} are allowed in one request")
    return list(map(bytes, texts[: texts.index(msgspec.UNSET)]))


def unwrap(text: bytes, envelope: msgspec.json.Decoder[Envelope]) -> Envelope:
    """Decode only the envelope. The document in it stays `msgspec.Raw`, for `parse_json`, because its limits do
    not apply to the envelope.

    Raises a 400 `INVALID_JSON`, and msgspec's ValidationError for JSON of another shape.
    """
    try:
        return envelope.decode(text)
    except msgspec.ValidationError:
        raise
    except (RecursionError, msgspec.MsgspecError, ValueError) as error:
        raise _invalid(error, text) from None


@lru_cache
def _wrapped(name: str) -> msgspec.json.Decoder[Any]:
    """Decodes `{name: …}`, and gives that one member as text."""
    wrapped = msgspec.defstruct(
        "Wrapped", [("items", msgspec.Raw)], rename={"items": name}, forbid_unknown_fields=True
    )
    return msgspec.json.Decoder(wrapped)


@lru_cache(maxsize=1)
def _array_decoder(most: int) -> Callable[[bytes | msgspec.Raw], Any]:
    """Decodes an array as a struct of `most` fields and one more. Unlike a list, it creates no objects for
    elements beyond those; 16 MiB can hold eight million of them."""
    fields = [(f"_{n}", msgspec.Raw | msgspec.UnsetType, msgspec.UNSET) for n in range(most + 1)]
    return msgspec.json.Decoder(msgspec.defstruct("Documents", fields, array_like=True)).decode


def _invalid(error: Exception, text: bytes) -> ApiError:
    if isinstance(error, RecursionError):
        return _too_deep()
    if re.search(rb"\\u[dD][89a-fA-F]", text):
        return bad_request("Invalid JSON: lone surrogate in a string, or text cut short", "INVALID_JSON")
    return bad_request(f"Invalid JSON: {error}", "INVALID_JSON")


def _too_deep() -> ApiError:
    return bad_request(f"JSON is nested deeper than {MAX_DEPTH} levels", "INVALID_JSON")


# --- beyond the grammar --------------------------------------------------------------------------

_STRING: Final = re.compile(rb'"(?:[^"\\]|\\.)*+"', re.DOTALL)


def _containers(text: bytes) -> int:
    """The number of arrays and objects in a text. Brackets in strings are excluded only if that matters."""
    count = text.count(b"[") + text.count(b"{")
    if count > MAX_CONTAINERS and b'"' in text:
        text = _STRING.sub(b"", text)
        count = text.count(b"[") + text.count(b"{")
    return count


_LONG: Final = 309  # digits of the largest double, 1.8e308
_DIGITS: Final = b"0123456789"


def _has_long_number(text: bytes) -> bool:
    """Whether `_LONG` digits stand in a row: such a run covers one of the bytes checked here. A search of the
    whole text took ten times as long as decoding it."""
    for n, byte in enumerate(text[_LONG - 1 :: _LONG]):
        if 48 <= byte <= 57:
            before, after = text[n * _LONG : (n + 1) * _LONG], text[(n + 1) * _LONG : (n + 2) * _LONG]
            if len(before) - len(before.rstrip(_DIGITS)) + len(after) - len(after.lstrip(_DIGITS)) >= _LONG:
                return True
    return False


def _levels(value: Any) -> Iterator[list[Any]]:
    """All arrays and objects, level by level. Raises a 400 beyond `MAX_DEPTH` levels."""
    level = [value] if type(value) is dict or type(value) is list else []
    for _ in range(MAX_DEPTH):
        if not level:
            return
        yield level
        level = [
            item
            for container in level
            for item in (container.values() if type(container) is dict else container)
            if type(item) is dict or type(item) is list
        ]
    if level:
        raise _too_deep()


def _check_scalars(value: Any) -> None:
    for level in chain([[[value]]], _levels(value)):
        for container in level:
            for item in chain(container, container.values()) if type(container) is dict else container:
                if type(item) is str:
                    if "\0" in item:
                        raise bad_request("NUL characters (\\u0000) are not allowed in strings", "INVALID_JSON")
                elif type(item) is int:
                    try:
                        float(item)
                    except OverflowError:
                        raise bad_request(
                            "Number out of range: use at most 1.7976931348623157e308", "INVALID_JSON"
                        ) from None
