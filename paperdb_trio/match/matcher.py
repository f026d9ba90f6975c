"""The queries of one database that have listeners, and which of them a change may concern.

Law: no I/O. Finding too many queries costs time only, because each is verified by `event_of`; finding too few
would lose an event. So what is not understood concerns every query of its collection.
"""

from __future__ import annotations

from paperdb_trio.errors import bad_request
from paperdb_trio.match.change import Judged
from paperdb_trio.match.index import Bucket, Hits, Index
from paperdb_trio.match.query import Query
from paperdb_trio.match.terms import Term, best


class _Collection:
    def __init__(self) -> None:
        self.terms: dict[Query, tuple[Term, ...] | None] = {}
        """All queries, with the terms by which each is found. None: by none."""
        self.index = Index()
        self.whole: Bucket = {}
        self.residual: Bucket = {}

    def hits(self, judged: Judged) -> Hits:
        hits = [self.whole, self.residual]
        if not self.index:
            return hits
        after = judged.after
        if after is not None:
            self.index.probe(after, hits)
        if judged.change.type == "update":  # what is the same on both sides was found already
            self.index.probe(judged.patch[0], hits)
        elif judged.before is not None:
            self.index.probe(judged.before, hits)
        if self.index.nulls:
            for document in (judged.before, after):
                if document is not None:
                    self.index.probe_nulls(document, hits)
        return hits


class Matcher:
    """`max_residual`: how many queries there may be that no index finds, and that each change is held
    against."""

    def __init__(self, max_residual: int) -> None:
        self._max_residual = max_residual
        self._collections: dict[str, _Collection] = {}
        self.residual = 0
        """The number of such queries now."""

    def add(self, query: Query) -> None:
        """Adding a query again changes nothing. Raises a 400 `TOO_MANY_RESIDUAL_QUERIES`."""
        of = self._collections.get(query.collection) or _Collection()
        if query in of.terms:
            return
        terms: tuple[Term, ...] | None = None
        if query.everything:
            of.whole[query] = None
        else:
            choice = best(query.filter, of.index.cost)
            if choice is None or choice[0] == float("inf"):
                self._admit()
                of.residual[query] = None
            else:
                terms = choice[1]
                for term in terms:
                    of.index.add(query, term)
        of.terms[query] = terms
        self._collections[query.collection] = of

    def _admit(self) -> None:
        if self.residual >= self._max_residual:
            raise bad_request(
                f"At most {self._max_residual:,} live queries may be ones that no index finds, because every "
                "change is held against them. Add a condition that every match satisfies: 'eq', 'in', "
                "'contains', 'startsWith', 'gt', 'gte', 'lt', 'lte' or 'exists' on a field, outside of 'not', "
                "and in each branch of an 'or'.",
                "TOO_MANY_RESIDUAL_QUERIES",
            )
        self.residual += 1

    def remove(self, query: Query) -> None:
        """Removing a query that is not there changes nothing."""
        of = self._collections.get(query.collection)
        if of is None or query not in of.terms:
            return
        terms = of.terms.pop(query)
        if terms is not None:
            for term in terms:
                of.index.remove(query, term)
        elif query.everything:
            del of.whole[query]
        else:
            del of.residual[query]
            self.residual -= 1
        if not of.terms:
            del self._collections[query.collection]

    def candidates(self, collection: str, judged: Judged) -> list[Query]:
        """The queries that the document may match before or after the change, each once. Never raises."""
        of = self._collections.get(collection)
        if of is None:
            return []
        if not judged.known:
            return list(of.terms)
        try:
            hits = of.hits(judged)
        except Exception:  # whatever is wrong with the document: `event_of` fails for each query by itself
            return list(of.terms)
        found: Bucket = {}
        for bucket in hits:
            found.update(bucket)
        return list(found)
