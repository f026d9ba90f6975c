"""Finding and counting documents, in one read transaction.

Law: no I/O. What is found takes one statement, or another one before it that counts entries. So these functions
are generators (`Steps`): they yield a statement, get its rows, and return the result.

PostgreSQL does not choose the plan: it knows nothing of one collection among all, nor of one index among all
entries. `OFFSET 0` keeps it from joining in another order than is written here, and the sessions have
`enable_sort=off` (`SESSION`), so that it sorts only what does not come in the requested order. Row keys are
sorted, never texts.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import replace
from typing import Any, Final, NamedTuple, TypeVar

from paperdb_trio.errors import bad_request
from paperdb_trio.store import keys
from paperdb_trio.store.indexes import parse_field
from paperdb_trio.store.paging import Edge
from paperdb_trio.store.plan import MANY, Contest, Order, Plan, Shelf, choose, choose_count, explanation
from paperdb_trio.store.postgres.keys import LONG, intervals
from paperdb_trio.store.postgres.question import (
    PLACE,
    Parameter,
    Sql,
    condition,
    fence,
    sort_terms,
    sort_values,
)
from paperdb_trio.store.query import Question
from paperdb_trio.store.rowkeys import span

SESSION: Final = {
    "jit": "off",
    "plan_cache_mode": "force_generic_plan",
    "enable_sort": "off",
    "enable_bitmapscan": "off",
    "enable_seqscan": "off",
    "max_parallel_workers_per_gather": "0",
}
"""What these statements need of a session. PostgreSQL's estimates are those for unknown parameters: it would
start a second process, 6 ms, for a page that takes 0.5 ms."""

T = TypeVar("T")
Steps = Generator[Sql, Sequence[Sequence[Any]], T]

_ANY: Final = 2**40
"""More bytes than a document has."""


class Page(NamedTuple):
    """Documents as JSON texts, in order. `last`: the row key of the last one. `more`: there are more."""

    documents: list[bytes]
    last: int
    more: bool


class _Sql:
    """SQL in the making, with its parameters in the order of their places."""

    def __init__(self) -> None:
        self.text: list[str] = []
        self.parameters: list[Parameter] = []

    def add(self, text: str, *parameters: Parameter) -> _Sql:
        self.text.append(text)
        self.parameters += parameters
        return self

    def join(self, other: _Sql) -> _Sql:
        return self.add("".join(other.text), *other.parameters)

    def done(self) -> Sql:
        return Sql("".join(self.text), self.parameters)


# --- from a plan to SQL --------------------------------------------------------------------------


def _source(plan: Plan, question: Question, of: Shelf, edge: Edge | None) -> _Sql:
    """From FROM to the end of WHERE."""
    sql = _Sql()
    if plan.index is None:
        low, high = span(of.id)
        if edge is not None and _by_rowkey(plan, question) is not None:
            low, high = (low, edge.rowkey) if _by_rowkey(plan, question) else (edge.rowkey, high)
        sql.add(f"FROM documents d WHERE d.rowkey>={PLACE}::bigint AND d.rowkey<={PLACE}::bigint", low, high)
    else:
        _add_entries(sql.add("FROM "), plan, question, edge)
        _add_documents(sql, "doc,data", "e").add(" WHERE TRUE")
    if not question.everything:
        matching = condition(question)
        sql.add(f" AND {matching.text}", *matching.parameters)
    if edge is not None:
        beyond = _beyond(question, edge, _rowkey(plan))
        sql.add(f" AND {beyond.text}", *beyond.parameters)
    return sql


def _add_documents(sql: _Sql, columns: str, of: str) -> _Sql:
    text = f" CROSS JOIN LATERAL (SELECT {columns} FROM documents WHERE rowkey={of}.rowkey OFFSET 0) d"
    return sql.add(text)


def _add_entries(sql: _Sql, plan: Plan, question: Question, edge: Edge | None) -> None:
    """`e`: the plan's entries in its order, from the edge on."""
    assert plan.index is not None
    if plan.order is Order.SORTED:
        _add_intervals(sql, plan, "rowkey")
        return
    ((low, high),) = plan.intervals
    key = None if edge is None else _key(plan, question, edge)
    if key is not None:
        low, high = (max(low, key), high) if plan.order is Order.FORWARD else (low, min(high, keys.after(key)))
    ((low, high),) = intervals([(low, high)])
    sql.add(f"(SELECT key, rowkey FROM entries e WHERE index_id={PLACE}::bigint", plan.index.id)
    sql.add(f" AND key>={PLACE}::bytea AND key<{PLACE}::bytea", low, high)
    if edge is not None and key is not None and len(key) <= LONG:  # for others, by their documents
        behind = "<" if question.newest_first else ">"
        sql.add(f" AND (key<>{PLACE}::bytea OR rowkey{behind}{PLACE}::bigint)", key, edge.rowkey)
    sql.add(f" ORDER BY {_order(plan, question)} OFFSET 0) e")


def _add_intervals(sql: _Sql, plan: Plan, columns: str) -> _Sql:
    """`e`: the plan's entries, in any order."""
    assert plan.index is not None
    within = intervals(plan.intervals)
    low, high = _array([low for low, _ in within]), _array([high for _, high in within])
    sql.add(f"unnest({PLACE}::bytea[],{PLACE}::bytea[]) AS r(low,high) CROSS JOIN LATERAL (", low, high)
    sql.add(f"SELECT {columns} FROM entries WHERE index_id={PLACE}::bigint ", plan.index.id)
    return sql.add("AND key>=r.low AND key<r.high OFFSET 0) e")


def _array(values: Iterable[bytes]) -> str:
    """The text of a bytea[]."""
    return "{" + ",".join([f'"\\\\x{value.hex()}"' for value in values]) + "}"


def _key(plan: Plan, question: Question, edge: Edge) -> bytes:
    """The key of the edge's document in the plan's index, which has the requested order."""
    assert plan.index is not None
    at = dict(zip((name.path for name in question.sort), edge.values, strict=True))
    key = plan.prefix
    for name in plan.index.fields[plan.used :]:
        parsed = parse_field(name)
        own = keys.part(at[parsed.path])
        key += keys.inverted(own) if parsed.descending else own
    return key


# --- order ---------------------------------------------------------------------------------------


def _rowkey(plan: Plan) -> str:
    return "d.rowkey" if plan.index is None else "e.rowkey"


def _by_rowkey(plan: Plan, question: Question) -> bool | None:
    """Whether the requested order is that of row keys, descending ones (True) or ascending ones (False)."""
    if plan.order is Order.INSERTION:
        return question.newest_first
    if plan.order is Order.CREATION:
        (descending,) = (name.descending for name in question.sort if name.path == "createdAt")
        return descending if descending == question.newest_first else None
    return None


def _order(plan: Plan, question: Question) -> str:
    """For an ORDER BY, of a plan that needs no sorting."""
    last = f"{_rowkey(plan)}{' DESC' if question.newest_first else ''}"
    if plan.index is not None and plan.order is not Order.SORTED:
        return f"e.key{' DESC' if plan.order is Order.BACKWARD else ''},{last}"
    return f"d.rowkey{' DESC' if _by_rowkey(plan, question) else ''}"


def _add_sorted(sql: _Sql, plan: Plan, question: Question, source: _Sql) -> _Sql:
    """The row keys of the source in the requested order."""
    columns = [f"{_rowkey(plan)} AS rowkey", "d.data AS data"]
    terms = []
    for number, name in enumerate(question.sort):
        looked_up, at = fence(name.path, number)
        columns.append(looked_up)
        terms += [term.sql + (" DESC" if name.descending else "") for term in sort_terms(name.path, at)]
    terms.append(f"rowkey{' DESC' if question.newest_first else ''}")
    sql.add(f"SELECT rowkey FROM (SELECT {','.join(columns)} ").join(source)
    return sql.add(f" OFFSET 0) s ORDER BY {','.join(terms)}")


def _beyond(question: Question, edge: Edge, rowkey: str) -> Sql:
    """SQL for "comes after the edge in the requested order"."""
    text = f"{rowkey}{'<' if question.newest_first else '>'}{PLACE}::bigint"
    parameters: list[Parameter] = [edge.rowkey]
    for name, value in reversed(list(zip(question.sort, edge.values, strict=True))):
        terms, own = sort_terms(name.path), sort_values(name.path, value)
        document = f"({','.join([term.sql for term in terms])})"
        wanted = f"({','.join([f'{PLACE}::{term.type}' for term in terms])})"
        text = f"({document}{'<' if name.descending else '>'}{wanted} OR ({document}={wanted} AND {text}))"
        parameters = [*own, *own, *parameters]
    return Sql(text, parameters)


# --- pages ---------------------------------------------------------------------------------------


def _page(
    plan: Plan, question: Question, of: Shelf, edge: Edge | None, limit: int, offset: int, most: int
) -> Sql:
    """Rows `(rowkey, data, inexact)` in order. `data` is null beyond `most` bytes in all. `inexact`: the
    document may not be where it should be among those whose keys begin like its own."""
    sql, source = _Sql(), _source(plan, question, of, edge)
    moments = plan.order is Order.CREATION and _by_rowkey(plan, question) is None
    if moments:
        _add_bounds(sql, source, question, of, edge, limit + offset)
        source.add(" AND d.rowkey>=(SELECT least(near,far) FROM bounds)")
        source.add(" AND d.rowkey<=(SELECT greatest(near,far) FROM bounds)")
    size = "sum(octet_length(data)+1) OVER (ROWS UNBOUNDED PRECEDING)"
    sql.add(f"SELECT rowkey, CASE WHEN {size}<={PLACE}::bigint THEN data END, inexact FROM (", most + 1)
    limits = f" LIMIT {PLACE}::bigint OFFSET {PLACE}::bigint"
    if moments or plan.order is Order.SORTED:
        _add_sorted(sql.add("SELECT p.rowkey, d.data, FALSE AS inexact FROM ("), plan, question, source)
        _add_documents(sql.add(f"{limits}) p", limit, offset), "data", "p")
    else:
        inexact = "FALSE" if plan.index is None else f"octet_length(e.key)>{LONG}"
        sql.add(f"SELECT {_rowkey(plan)}, d.data, {inexact} AS inexact ").join(source)
        sql.add(f" ORDER BY {_order(plan, question)}{limits}", limit, offset)
    return sql.add(") page").done()


def _add_bounds(sql: _Sql, source: _Sql, question: Question, of: Shelf, edge: Edge | None, rows: int) -> None:
    """`WITH bounds (near, far)`, between which the first `rows` documents of the source are. They are stored in
    order of creation, but those created at the same moment are requested in reverse order. So only these, and
    the rest of a moment at each end, have to be sorted."""
    ((at, descending),) = [
        (at, name.descending) for at, name in enumerate(question.sort) if name.path == "createdAt"
    ]
    ends = span(of.id)
    near, far = reversed(ends) if descending else ends
    created = sort_terms("createdAt")[0].sql

    def add_next(rowkey: str, moment: str, *, later: bool) -> _Sql:
        """The nearest document that was created at another moment."""
        sign, order = (">", "") if later else ("<", " DESC")
        sql.add(f"(SELECT d.rowkey FROM documents d WHERE d.rowkey>={PLACE}::bigint ", ends[0])
        sql.add(f"AND d.rowkey<={PLACE}::bigint AND d.rowkey{sign}{rowkey} ", ends[1])
        return sql.add(f"AND {created}{sign}{moment} ORDER BY d.rowkey{order} LIMIT 1)")

    sql.add("WITH first AS MATERIALIZED (SELECT coalesce(")
    if edge is not None:
        add_next(f"{PLACE}::bigint", f"{PLACE}::text", later=descending)
        sql.add(",", edge.rowkey, *sort_values("createdAt", edge.values[at]))
    sql.add(f"{PLACE}::bigint) AS rowkey), last AS MATERIALIZED (SELECT rowkey, moment FROM (", near)
    sql.add(f"SELECT d.rowkey, {created} AS moment ").join(source)
    sign, way, back = ("<=", " DESC", "") if descending else (">=", "", " DESC")
    sql.add(f" AND d.rowkey{sign}(SELECT rowkey FROM first) ORDER BY d.rowkey{way} ")
    sql.add(f"LIMIT {PLACE}::bigint) p ORDER BY rowkey{back} LIMIT 1), bounds AS MATERIALIZED (", rows)
    sql.add("SELECT (SELECT rowkey FROM first) AS near, coalesce(")
    add_next("last.rowkey", "last.moment", later=not descending)
    sql.add(f",{PLACE}::bigint) AS far FROM last) ", far)


def choose_plan(question: Question, of: Shelf) -> Steps[Plan]:
    """The plan of a find."""
    chosen = choose(question, of)
    return chosen if isinstance(chosen, Plan) else (yield from _won(chosen))


def _won(contest: Contest) -> Steps[Plan]:
    return contest.won((yield from _entries(contest.plans, contest.most)))


def find(
    plan: Plan,
    question: Question,
    of: Shelf,
    edge: Edge | None,
    limit: int,
    offset: int,
    most: int,
    project: Callable[[bytes], bytes] | None = None,
) -> Steps[Page]:
    """Raises a 400 `RESULT_TOO_LARGE` for several documents of more than `most` bytes. `project`: what counts
    of a document, and is found, if the whole ones are too large."""
    size = _ANY if limit == 1 else most
    rows = yield _page(plan, question, of, edge, limit + 1, offset, size)
    if any(inexact for _, _, inexact in rows):
        exact = replace(plan, order=Order.SORTED)
        rows = yield _page(exact, question, of, edge, limit + 1, offset, size)
    rowkeys = [int(rowkey) for rowkey, _, _ in rows[:limit]]
    documents = [data for _, data, _ in rows[:limit]]
    if documents and documents[-1] is None:
        if project is None:
            raise _too_large(most)
        documents = yield from _projected(rowkeys, project, most)
    return Page(documents, rowkeys[-1] if rowkeys else 0, len(rows) > limit)


def _projected(rowkeys: list[int], project: Callable[[bytes], bytes], most: int) -> Steps[list[bytes]]:
    """One after the other: together they are too large."""
    found: list[bytes] = []
    size = 0
    for rowkey in rowkeys:
        ((data,),) = yield Sql(f"SELECT data FROM documents WHERE rowkey={PLACE}::bigint", [rowkey])
        found.append(project(data))
        size += len(found[-1])
        if size > most and len(rowkeys) > 1:
            raise _too_large(most)
    return found


def _too_large(most: int) -> Exception:
    return bad_request(f"The result is larger than {most:,} bytes; use a smaller 'limit'", "RESULT_TOO_LARGE")


# --- counts --------------------------------------------------------------------------------------


def _entries(plans: Sequence[Plan], most: int) -> Steps[list[int]]:
    """The entries of each plan, counted up to `most`."""
    sql = _Sql()
    for plan in plans:
        sql.add(",(" if sql.text else "SELECT (").add("SELECT count(*) FROM (SELECT FROM ")
        _add_intervals(sql, plan, "").add(f" LIMIT {PLACE}::bigint) found)", most)
    (counts,) = yield sql.done()
    return list(counts)


def choose_plan_to_count(question: Question, of: Shelf) -> Steps[Plan]:
    """The plan of a count."""
    contest = choose_count(question, of)
    if question.everything or not contest.plans:
        return contest.otherwise
    return (yield from _won(contest))


def count(plan: Plan, question: Question, of: Shelf) -> Steps[int]:
    """The number of matching documents."""
    if question.everything:
        return of.documents
    unordered = plan if plan.index is None else replace(plan, order=Order.SORTED)
    ((n,),) = yield _Sql().add("SELECT count(*) ").join(_source(unordered, question, of, None)).done()
    return int(n)


def explain(plan: Plan, question: Question, of: Shelf) -> Steps[dict[str, Any]]:
    """The plan by which a question was answered, as the members of `rest.responses.Explanation`."""
    looks_at = of.documents if plan.index is None else (yield from _entries([plan], MANY))[0]
    return explanation(plan, question, of, looks_at)
