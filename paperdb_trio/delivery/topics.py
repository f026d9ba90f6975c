"""What a client asks to follow, within what its token shows: a topic.

Law: no I/O. What is asked is always narrowed by the token's rule; nothing here can widen it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from paperdb_trio.auth.tokens import Grant
from paperdb_trio.errors import ApiError
from paperdb_trio.match.query import Query, conjunction, query
from paperdb_trio.model import encode
from paperdb_trio.store.protocol import Topic


@dataclass(frozen=True, slots=True)
class Asked:
    """A collection, or a part of it; None is every collection. `snapshot`: it began with one."""

    collection: str | None
    filter: dict[str, Any] | None = None
    select: tuple[str, ...] | None = None
    snapshot: bool = False

    @property
    def is_query(self) -> bool:
        return self.filter is not None or self.select is not None or self.snapshot

    def within(self, grant: Grant) -> Topic:
        """What is followed with a token: a query if this is one, or if the token has a rule.

        Raises a 403 `NOT_IN_TOKEN`, a 400 `FIELD_NOT_IN_TOKEN` for a field that the rule does not show, and
        what `match.query` does.
        """
        if self.collection is None:
            return _everything(grant)
        rule = grant.rule(self.collection)
        view = rule.view
        if view is None and not self.is_query:
            return self.collection
        own = query(self.collection, self.filter, self.select)
        if view is None:
            return own
        if self.filter is not None:
            view.ask(encode(self.filter).decode())
        for path in self.select or ():
            view.require(path)
        return conjunction(query(self.collection, rule.filter, rule.select), own)


def _everything(grant: Grant) -> Topic:
    if grant.collections is not None:
        raise ApiError(403, "NOT_IN_TOKEN", "The token does not cover every collection")
    if any(rule.view is not None for rule in grant.rules.values()):
        raise ApiError(
            403, "NOT_IN_TOKEN", "The token has rules: name the collections to follow (?collections=…)"
        )
    return None


def name_of(topic: Topic) -> str | None:
    """The collection of a topic; None is every collection."""
    return topic.collection if isinstance(topic, Query) else topic  # type: ignore[return-value]
