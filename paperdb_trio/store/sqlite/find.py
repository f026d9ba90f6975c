"""Finding and counting documents on one connection, in one read transaction.

Law: only row keys are sorted or skipped, never texts. So row keys are found first, and then their documents,
unless SQLite reads them in the requested order anyway. SQLite joins the texts, because each row that Python
fetches competes with the event loop for the interpreter's lock.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, NamedTuple

from paperdb_trio.model import encode
from paperdb_trio.store import keys
from paperdb_trio.store.indexes import IndexSet, parse_field, stored_indexes
from paperdb_trio.store.paging import Edge
from paperdb_trio.store.plan import (
    MANY,
    Contest,
    Interval,
    Order,
    Plan,
    Shelf,
    choose,
    choose_count,
    explanation,
)
from paperdb_trio.store.query import Question
from paperdb_trio.store.rowkeys import span
from paperdb_trio.store.sqlite import library as sqlite
from paperdb_trio.store.sqlite.question import condition, field, order

_CREATED: Final = "json_extract(data,'$.createdAt')"


def shelf(connection: sqlite.Connection, database_id: int, collection: str) -> Shelf | None:
    """None if there is no such collection."""
    row = connection.execute(
        "SELECT id, documents, indexes, newest FROM collections WHERE database_id=? AND name=?",
        (database_id, collection),
    ).fetchone()
    if row is None:
        return None
    id, documents, text, newest = row
    indexes: IndexSet | None = None if text is None else stored_indexes(text)
    return Shelf(id, documents, () if indexes is None else indexes.all, newest is not None)


def _beyond(question: Question, edge: Edge) -> tuple[str, list[Any]]:
    """SQL for "comes after the edge in the requested order"."""
    beyond = f"d.rowkey{'<' if question.newest_first else '>'}?"
    parameters: list[Any] = [edge.rowkey]
    for name, value in reversed(list(zip(question.sort, edge.values, strict=True))):
        at = field(name.path).value
        if value is None:
            later, own = ("0" if name.descending else f"{at} IS NOT NULL"), []
        elif name.descending:
            later, own = f"({at}<? OR {at} IS NULL)", [value]
        else:
            later, own = f"{at}>?", [value]
        beyond = f"({later} OR ({at} IS ? AND {beyond}))"
        parameters = [*own, value, *parameters]
    return beyond, parameters


# --- from a plan to SQL ---------------------------------------------------------------------------


class _Source(NamedTuple):
    """The SQL from FROM to the end of WHERE, its parameters, and the ORDER BY."""

    sql: str
    parameters: list[Any]
    order: str


def _source(plan: Plan, question: Question, of: Shelf, edge: Edge | None) -> _Source:
    matching, parameters = condition(question)
    if edge is not None:
        beyond, more = _beyond(question, edge)
        matching, parameters = f"{matching} AND {beyond}", parameters + more
    low, high = span(of.id)
    if plan.index is None:
        if edge is not None and plan.order is Order.INSERTION:
            low, high = (low, edge.rowkey) if question.newest_first else (edge.rowkey, high)
        within = f"FROM documents d WHERE d.rowkey>=? AND d.rowkey<=? AND {matching}"
        return _Source(within, [low, high, *parameters], order(question))
    last = "e.rowkey DESC" if question.newest_first else "e.rowkey"  # with `d.rowkey`, SQLite would sort
    ordered = {Order.FORWARD: f"e.key,{last}", Order.BACKWARD: f"e.key DESC,{last}"}.get(
        plan.order, order(question)
    )
    intervals = plan.intervals
    if edge is not None and plan.order is not Order.SORTED and question.sort:
        intervals = (_narrowed(plan, question, edge),)
    joined = "entries e CROSS JOIN documents d ON d.rowkey=e.rowkey WHERE e.index_id=?"
    if len(intervals) == 1:
        sql = f"FROM {joined} AND e.key>=? AND e.key<? AND {matching}"
        return _Source(sql, [plan.index.id, *intervals[0], *parameters], ordered)
    sql = f"FROM json_each(?) AS r CROSS JOIN {joined} AND {_WITHIN} AND {matching}"
    return _Source(sql, [_pairs(intervals), plan.index.id, *parameters], ordered)


_WITHIN: Final = "e.key>=unhex(r.value->>0) AND e.key<unhex(r.value->>1)"


def _pairs(intervals: tuple[Interval, ...]) -> str:
    """The JSON array that `_WITHIN` takes apart."""
    return encode([(low.hex(), high.hex()) for low, high in intervals]).decode()


def _narrowed(plan: Plan, question: Question, edge: Edge) -> Interval:
    """The interval of an ordered plan, narrowed to what comes after the edge."""
    assert plan.index is not None
    at = dict(zip((name.path for name in question.sort), edge.values, strict=True))
    key = plan.prefix
    for name in plan.index.fields[plan.used :]:
        parsed = parse_field(name)
        own = keys.part(at[parsed.path])
        key += keys.inverted(own) if parsed.descending else own
    ((low, high),) = plan.intervals
    return (max(low, key), high) if plan.order is Order.FORWARD else (low, min(high, keys.after(key)))


def choose_plan(connection: sqlite.Connection, question: Question, of: Shelf) -> Plan:
    """The plan of a find."""
    chosen = choose(question, of)
    return chosen if isinstance(chosen, Plan) else _won(connection, chosen)


def _won(connection: sqlite.Connection, contest: Contest) -> Plan:
    return contest.won([_entries(connection, plan, contest.most) for plan in contest.plans])


def _entries(connection: sqlite.Connection, plan: Plan, most: int) -> int:
    assert plan.index is not None
    (count,) = connection.execute(
        "SELECT count(*) FROM (SELECT 1 FROM json_each(?) AS r CROSS JOIN entries e WHERE e.index_id=? "
        f"AND {_WITHIN} LIMIT ?)",
        (_pairs(plan.intervals), plan.index.id, most),
    ).fetchone()
    return int(count)


def _rowkeys(
    connection: sqlite.Connection,
    plan: Plan,
    question: Question,
    of: Shelf,
    edge: Edge | None,
    page: tuple[int, int],
) -> list[int]:
    """`page`: limit and offset."""
    source = _source(plan, question, of, edge)
    if plan.order is Order.CREATION:
        source = _by_creation(connection, source, question, of, edge, sum(page))
    (text,) = connection.execute(
        f"SELECT group_concat(rowkey) FROM (SELECT d.rowkey AS rowkey {source.sql} "
        f"ORDER BY {source.order} LIMIT ? OFFSET ?)",
        (*source.parameters, *page),
    ).fetchone()
    return [] if text is None else [int(rowkey) for rowkey in text.split(",")]


def _by_creation(
    connection: sqlite.Connection, source: _Source, question: Question, of: Shelf, edge: Edge | None, rows: int
) -> _Source:
    """The source, narrowed. Documents are stored in order of creation, but those created at the same moment may
    be requested in reverse order. So only `rows` documents, and the rest of a moment at each end, have to be
    sorted."""
    low, high = span(of.id)
    ((at, descending),) = [
        (at, name.descending) for at, name in enumerate(question.sort) if name.path == "createdAt"
    ]

    def next_moment(rowkey: int, moment: Any, *, later: bool) -> int | None:
        """The nearest document that was created at another moment."""
        sign, order = (">", "ASC") if later else ("<", "DESC")
        row = connection.execute(
            f"SELECT rowkey FROM documents WHERE rowkey BETWEEN ? AND ? AND rowkey{sign}? "
            f"AND {_CREATED}{sign}? ORDER BY rowkey {order} LIMIT 1",
            (low, high, rowkey, moment),
        ).fetchone()
        return None if row is None else int(row[0])

    if edge is not None:
        other = next_moment(edge.rowkey, edge.values[at], later=descending)
        if other is not None:
            low, high = (low, other) if descending else (other, high)
    least, order = ("min", "DESC") if descending else ("max", "ASC")
    page = f"SELECT d.rowkey AS rowkey {source.sql} ORDER BY d.rowkey {order} LIMIT ?"
    (last,) = connection.execute(
        f"SELECT {least}(rowkey) FROM ({page})",
        (low, high, *source.parameters[2:], rows),
    ).fetchone()
    if last is None:
        low, high = high, low  # nothing matches: the second query finds nothing at once
    else:
        (moment,) = connection.execute(f"SELECT {_CREATED} FROM documents WHERE rowkey=?", (last,)).fetchone()
        other = next_moment(last, moment, later=not descending)
        if other is not None:
            low, high = (other, high) if descending else (low, other)
    return _Source(source.sql, [low, high, *source.parameters[2:]], source.order)


# --- queries -------------------------------------------------------------------------------------


class Page(NamedTuple):
    """Documents as JSON texts, in order. `last`: the row key of the last one. `more`: there are more. `plan`:
    how they were found."""

    documents: list[bytes]
    last: int
    more: bool
    plan: Plan


def _texts(connection: sqlite.Connection, rowkeys: list[int]) -> list[bytes]:
    # By the row ids of `json_each`, which it has in order: by its keys, SQLite would sort the texts.
    (text,) = connection.execute(
        "SELECT group_concat(json(data),char(10)) FROM (SELECT d.data AS data FROM json_each(?) AS r "
        "CROSS JOIN documents d ON d.rowkey=r.value ORDER BY r.rowid)",
        (encode(rowkeys).decode(),),
    ).fetchone()
    return [] if text is None else text.encode().split(b"\n")


def find(
    connection: sqlite.Connection,
    question: Question,
    of: Shelf,
    edge: Edge | None,
    limit: int,
    offset: int,
    texts: Callable[[sqlite.Connection, list[int]], list[bytes]] | None = None,
    plan: Plan | None = None,
) -> Page:
    """`texts` gets the texts of the documents with these row keys, if they are not to be the whole ones.
    `plan`: what `choose_plan` has returned, if it was asked."""
    plan = plan or choose_plan(connection, question, of)
    if limit > 1 and texts is None and _needs_no_sorting(plan, question):
        with suppress(sqlite.TooBigError):  # without the document behind it, the page may be small enough
            return _scan(connection, plan, question, of, edge, limit, offset)
    rowkeys = _rowkeys(connection, plan, question, of, edge, (limit + 1, offset))
    more = len(rowkeys) > limit
    del rowkeys[limit:]
    return Page((texts or _texts)(connection, rowkeys), rowkeys[-1] if rowkeys else 0, more, plan)


def _needs_no_sorting(plan: Plan, question: Question) -> bool:
    """Whether SQLite reads the documents in the requested order: equal ones, too."""
    if plan.index is None:
        return plan.order is Order.INSERTION and not question.sort
    order = Order.BACKWARD if question.newest_first else Order.FORWARD
    return plan.order is order and len(plan.intervals) == 1


def _scan(
    connection: sqlite.Connection,
    plan: Plan,
    question: Question,
    of: Shelf,
    edge: Edge | None,
    limit: int,
    offset: int,
) -> Page:
    """A page for which nothing has to be sorted, so that one statement can read row keys and texts."""
    source = _source(plan, question, of, edge)
    found, text = connection.execute(
        "SELECT group_concat(rowkey), group_concat(json(data),char(10)) FROM "
        f"(SELECT d.rowkey AS rowkey, d.data AS data {source.sql} ORDER BY {source.order} LIMIT ? OFFSET ?)",
        (*source.parameters, limit + 1, offset),
    ).fetchone()
    if found is None:
        return Page([], 0, False, plan)
    rowkeys, documents = found.split(","), text.encode().split(b"\n")
    more = len(rowkeys) > limit
    return Page(documents[:limit], int(rowkeys[:limit][-1]), more, plan)


def choose_plan_to_count(connection: sqlite.Connection, question: Question, of: Shelf) -> Plan:
    """The plan of a count."""
    if question.everything:
        return Plan(Order.INSERTION)
    contest = choose_count(question, of)
    return _won(connection, contest) if contest.plans else contest.otherwise


def count(
    connection: sqlite.Connection, question: Question, of: Shelf, plan: Plan | None = None
) -> tuple[int, Plan]:
    """The number of matching documents, and how they were found."""
    plan = plan or choose_plan_to_count(connection, question, of)
    if question.everything:
        return of.documents, plan
    source = _source(plan, question, of, None)
    (n,) = connection.execute(f"SELECT count(*) {source.sql}", source.parameters).fetchone()
    return int(n), plan


def explain(connection: sqlite.Connection, plan: Plan, question: Question, of: Shelf) -> dict[str, Any]:
    """The plan by which a question was answered, as the members of `rest.responses.Explanation`."""
    looks_at = of.documents if plan.index is None else _entries(connection, plan, MANY)
    return explanation(plan, question, of, looks_at)
