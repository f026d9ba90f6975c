"""What a client may see of a collection: some documents, and some of their fields.

Law: no I/O. What it refuses depends on the view and on the request, never on what is stored.
"""

from __future__ import annotations

from base64 import urlsafe_b64encode
from dataclasses import dataclass
from hashlib import sha256

from paperdb_trio.errors import ApiError
from paperdb_trio.store.projection import Selection, parse_select, project, selection
from paperdb_trio.store.query import Question, ask


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
