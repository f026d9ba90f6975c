"""Documents as the types that a user has for them: a TypedDict, or a msgspec Struct.

Law: no I/O. A document that does not fit is a `PaperDBError` `WRONG_TYPE` that says where, never a value of
another type than the type checker believes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, is_typeddict

import msgspec

from .errors import PaperDBError
from .types import Document

Show = Callable[[Document], Any]


def show_as(collection: str, shape: type[Any] | None) -> Show:
    """What makes a user's value of a document. A TypedDict's is the document itself, with all its fields."""
    if shape is None or shape is Document:
        return lambda document: document
    if not is_typeddict(shape) and not (isinstance(shape, type) and issubclass(shape, msgspec.Struct)):
        raise TypeError(f"{shape!r} is neither a TypedDict nor a msgspec Struct")

    def show(document: Document) -> Any:
        try:
            value = msgspec.convert(dict(document), shape)
        except msgspec.ValidationError as error:
            raise PaperDBError(
                0,
                "WRONG_TYPE",
                f"Document '{document.get('_id')}' of '{collection}' is not a {shape.__name__}: {error}",
            ) from None
        return document if is_typeddict(shape) else value

    return show


def fields_of(document: Any) -> Mapping[str, Any]:
    """A document to be written, as a mapping. Fields of a Struct that are `msgspec.UNSET` are left out."""
    if isinstance(document, msgspec.Struct):
        fields: dict[str, Any] = msgspec.to_builtins(document)
        return fields
    if not isinstance(document, Mapping):
        raise TypeError(f"A document is a mapping or a msgspec Struct, not {type(document).__name__}")
    return document
