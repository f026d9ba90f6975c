"""Tools of the matcher's tests: changes from the documents on both sides."""

from __future__ import annotations

from hypothesis import strategies as st

from paperdb_trio.match.change import Judged
from paperdb_trio.model import Change, Document, encode, reverse_patch
from tests.store.tools import DOCUMENTS


def whole(fields: Document, updated: str = "2026-11-26T00:00:01.000Z") -> Document:
    """A stored document with these fields."""
    return {"_id": "x", **fields, "createdAt": "2026-11-26T00:00:00.000Z", "updatedAt": updated}


def change(before: Document | None, after: Document | None) -> Change:
    if after is None:
        assert before is not None
        return Change(1, 1, "delete", "c", "x", encode(before))
    if before is None:
        return Change(1, 1, "insert", "c", "x", encode(after))
    return Change(1, 1, "update", "c", "x", encode(after), reverse_patch(before, after))


def judged(before: Document | None, after: Document | None) -> Judged:
    return Judged(change(before, after))


@st.composite
def sides(draw: st.DrawFn) -> tuple[Document | None, Document | None]:
    """A document before and after a change: often with most fields the same, one of the two at times None."""
    kind = draw(st.sampled_from(["insert", "update", "update", "update", "delete"]))
    first = draw(DOCUMENTS)
    if kind == "insert":
        return None, whole(first)
    if kind == "delete":
        return whole(first), None
    second = draw(DOCUMENTS)
    kept = draw(st.booleans())
    after = {**first, **second} if kept else second
    return whole(first), whole(after, draw(st.sampled_from(["2026-11-26T00:00:01.000Z", "2026-11-27"])))
