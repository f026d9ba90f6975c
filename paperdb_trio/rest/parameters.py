"""Query parameters: what each may be, for the handlers that read it and for the OpenAPI document.

Law: no I/O. A value that is not allowed is a 400 that names the allowed ones.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from msgspec import UNSET, Struct, UnsetType

from paperdb_trio.config import Settings
from paperdb_trio.errors import bad_request

MAX_SEQ: Final = 2**53
"""JavaScript's integers are exact up to here."""
MAX_OFFSET: Final = 2**53


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """A text whose meaning `format` names. `example`: an allowed value."""

    name: str
    about: str
    required: bool = False
    format: str | None = None
    example: str | None = None

    def schema(self, settings: Settings) -> dict[str, Any]:
        return {"type": "string", **({"format": self.format} if self.format else {})}


@dataclass(frozen=True, slots=True, kw_only=True)
class Whole(Parameter):
    """A whole number. `high`: the highest, or its setting's name. `now`: whether that word is allowed."""

    default: int | None = None
    low: int = 0
    high: int | str
    now: bool = False

    def of(self, query: Mapping[str, str], settings: Settings, default: int = 0) -> int:
        """Its value, or its default; `default` for a parameter that has none of its own."""
        text = query.get(self.name)
        if text is None:
            return default if self.default is None else self.default
        high = self._highest(settings)
        value = int(text) if re.fullmatch(r"[0-9]{1,16}", text) else None
        if value is None or not self.low <= value <= high:
            raise bad_request(
                f"Invalid {self.name}: '{text[:40]}'. Use a whole number from {self.low} to {high}."
            )
        return value

    def _highest(self, settings: Settings) -> int:
        return int(getattr(settings, self.high)) if isinstance(self.high, str) else self.high

    def schema(self, settings: Settings) -> dict[str, Any]:
        number = {"type": "integer", "minimum": self.low, "maximum": self._highest(settings)}
        if self.default is not None:
            number["default"] = self.default
        return {"anyOf": [number, {"type": "string", "const": "now"}]} if self.now else number


@dataclass(frozen=True, slots=True, kw_only=True)
class Flag(Parameter):
    """True or false; false unless given."""

    def of(self, query: Mapping[str, str]) -> bool:
        text = query.get(self.name, "false")
        if text not in ("true", "false", "1", "0"):
            raise bad_request(f"Invalid {self.name}: '{text[:40]}'. Use true or false.")
        return text in ("true", "1")

    def schema(self, settings: Settings) -> dict[str, Any]:
        return {"type": "boolean", "default": False}


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice(Parameter):
    """One of some words, or none."""

    values: tuple[str, ...]

    def of(self, query: Mapping[str, str]) -> str | None:
        text = query.get(self.name)
        if text is not None and text not in self.values:
            raise bad_request(f"Invalid {self.name}: '{text[:40]}'. Use {' or '.join(self.values)}.")
        return text

    def schema(self, settings: Settings) -> dict[str, Any]:
        return {"enum": [*self.values]}


FILTER: Final = Parameter(
    name="filter",
    about="A filter as JSON. Fields, operators, `and`, `or` and `not`: see the page on REST",
    format="filter",
    example='{"age": {"gte": 18}}',
)
WHERE: Final = Parameter(
    name="where",
    about="A filter as JSON that the document must satisfy; else 412 and nothing is written",
    format="filter",
    example='{"stock": {"gt": 0}}',
)
SORT: Final = Parameter(
    name="sort",
    about="Fields, separated by commas, 8 at most; `-` before a field sorts descending",
    format="sort",
    example="-createdAt,name",
)
SELECT: Final = Parameter(
    name="select",
    about="Only these fields, separated by commas; `_id` is always included",
    format="fields",
    example="name,address.city",
)
LIMIT: Final = Whole(name="limit", about="At most this many", default=100, low=1, high=1000)
OFFSET: Final = Whole(name="offset", about="Skips this many first", default=0, high=MAX_OFFSET)
AFTER: Final = Parameter(
    name="after", about="`next` of the page before; for documents, found with the same `sort`", format="next"
)
EXPLAIN: Final = Flag(
    name="explain", about="Responds with how the documents would be found, instead; for secret keys"
)
COUNT: Final = Flag(name="count", about="Adds `total`, the number of all that match")
ATOMIC: Final = Flag(
    name="atomic", about="All or none: if one fails, none is written, and the response is its error"
)
CONFIRM: Final = Parameter(name="confirm", about="The name again", required=True)
SINCE: Final = Whole(name="since", about="The seq of the last change seen, or `now`", high=MAX_SEQ, now=True)
WAIT: Final = Whole(
    name="wait", about="Seconds to wait for a change; not for a stream", default=0, high="max_wait"
)
LAST_EVENT_ID: Final = Parameter(
    name="lastEventId", about="What polyfills of EventSource send for Last-Event-ID; only for a stream"
)
TOKEN: Final = Parameter(name="token", about="A realtime token")
REVOKE: Final = Choice(
    name="revoke",
    about="`token` also ends its token, `subject` all tokens of its subject",
    values=("token", "subject"),
)
SEQ: Final = Whole(name="seq", about="The seq of a change", low=1, high=MAX_SEQ)
COLLECTION: Final = Parameter(
    name="collection", about="With `id`, instead of `seq`: the newest change of a document"
)
ID: Final = Parameter(name="id", about="The id of that document")
DATABASE: Final = Parameter(name="database", about="Only of this database", example="default")

PARAMETERS: Final = {
    parameter.name: parameter
    for parameter in (
        *(FILTER, SORT, SELECT, LIMIT, OFFSET, AFTER, COUNT, EXPLAIN),
        *(ATOMIC, WHERE, CONFIRM, SINCE, WAIT, LAST_EVENT_ID, TOKEN, DATABASE),
        *(REVOKE, SEQ, COLLECTION, ID),
    )
}


class Query(Struct, forbid_unknown_fields=True):
    """The members of a body that stands for the parameters of `find`."""

    filter: dict[str, Any] = {}
    sort: str = ""
    limit: int | UnsetType = UNSET
    offset: int = 0
    select: str = ""
    after: str | UnsetType = UNSET
    count: bool = False
    explain: bool = False
