"""What a client may see of a collection: some documents, and some of their fields.

Law: no I/O. What it refuses depends on the view and on the request, never on what is stored.
"""

from __future__ import annotations

from base64 import urlsafe_b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final

from paperdb_trio.errors import ApiError, bad_request
from paperdb_trio.json_input import decode
from paperdb_trio.model import encode
from paperdb_trio.store.query import Question, ask, field

MAX_SELECT: Final = 200
Selection = list[list[str]]
_MISSING: Final = object()


def parse_select(text: str | None) -> Selection:
    """The paths of a select like `name,address.city`; `_id` is always included. Empty: everything."""
    names = [name.strip() for name in (text or "").split(",") if name.strip()]
    return selection(list(dict.fromkeys(names))) if names else []


def selection(names: Sequence[str]) -> Selection:
    """The paths of these fields and of `_id`. Raises a 400 for what is not a field."""
    # The deadline cannot stop a projection: it is Python code, and holds the lock that the event loop needs.
    if sum(str(name).count(".") + 1 for name in names) > MAX_SELECT:
        raise bad_request(f"Invalid select: at most {MAX_SELECT} names, counting each part of a path")
    for name in names:
        field(name)
    return [name.split(".") for name in dict.fromkeys(["_id", *names])]


def project(data: bytes, wanted: Selection) -> bytes:
    """The document with only the wanted paths."""
    document = decode(data)
    result: dict[str, Any] = {}
    for path in wanted:
        value: Any = document
        for segment in path:
            value = value.get(segment, _MISSING) if isinstance(value, dict) else _MISSING
        if value is _MISSING:
            continue
        target = result
        for segment in path[:-1]:
            inner = target.setdefault(segment, {})
            if not isinstance(inner, dict):
                break
            target = inner
        else:
            target[path[-1]] = value
    return encode(result)


@dataclass(frozen=True, slots=True)
class View:
    """The documents that match `question`; None is all. Of them the fields in `select`, with `_id`; None is
    all."""

    question: Question | None
    select: tuple[str, ...] | None

    def shows(self, path: str) -> bool:
        """Whether a field is visible: it is selected, or a part of what is. The rest of an object that is only
        selected in part is not, so neither is the object."""
        return self.select is None or any(path == name or path.startswith(f"{name}.") for name in self.select)

    def writes(self, name: str) -> bool:
        """Whether a top-level field may be written: only if it is selected as a whole."""
        return self.select is None or ("." not in name and name in self.select)

    def require(self, path: str) -> None:
        """Raises a 400 for a field that is not visible, whether or not it exists."""
        if not self.shows(path):
            raise ApiError(400, "FIELD_NOT_IN_TOKEN", f"The token's rule does not show the field '{path[:80]}'")

    def ask(self, filter: str | None, sort: str | None = None) -> Question:
        """The question within the view. Raises what `query.ask` does, and what `require` does."""
        question = ask(filter, sort)
        for path in sorted(question.paths):
            self.require(path)
        for name in question.sort:
            self.require(name.path)
        return question if self.question is None else question.within(self.question)

    def selection(self, text: str | None) -> Selection:
        """What a client's `select` shows within the view. Raises what `parse_select` and `require` do."""
        wanted = parse_select(text)
        for path in wanted:
            self.require(".".join(path))
        return wanted if wanted or self.select is None else selection(self.select)

    def project(self, data: bytes) -> bytes:
        return data if self.select is None else project(data, selection(self.select))

    def tag(self, visible: bytes, seq: int) -> str | int:
        """The entity tag of a document: its seq, unless that changes with fields that are not visible."""
        return seq if self.select is None else urlsafe_b64encode(sha256(visible).digest()[:18]).decode()
