"""Checks the tables of a PostgreSQL database, beyond what PostgreSQL itself can check.

Law: reads only, in one snapshot, so that commits of running nodes cannot make sound tables look damaged.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Final

from paperdb_trio.store.catalog import AT_ONCE_BYTES
from paperdb_trio.store.checking import MAX_FAULTS, Report
from paperdb_trio.store.indexes import stored_indexes
from paperdb_trio.store.postgres.documents import documents_sql
from paperdb_trio.store.postgres.keys import stored
from paperdb_trio.store.postgres.prepare import prepare, telling
from paperdb_trio.store.postgres.session import Session
from paperdb_trio.store.postgres.wire import Blobs, Ints, ServerError
from paperdb_trio.store.rowkeys import SEQ_BITS, span

ROWS: Final = 1000
"""Documents that one round trip reads."""
_PLANS: Final = ("seqscan", "sort", "hashjoin", "bitmapscan")
"""What other sessions turn off: here, whole tables are read."""


def check(url: str) -> Report:
    """Check everything, in about the time of reading it twice. Raises `StartupError`."""
    report = Report()
    with closing(prepare(url)) as session, telling("PostgreSQL refused to read"):
        session.query("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        for plan in _PLANS:
            session.query(f"SET LOCAL enable_{plan}=on")
        report.faults.extend(_owners(session))
        for id, text, head, trimmed in session.query(
            "SELECT d.id, d.name, h.head, h.trimmed FROM databases d JOIN heads h ON h.database_id=d.id "
            "ORDER BY d.id"
        ):
            name = text.decode()
            documents = _collections(session, id, name, head, report.faults)
            changes = _log(session, id, name, head, trimmed, report.faults)
            report.databases.append(
                f"{name}: {documents:,} documents, {changes:,} changes in the log, seq {head:,}"
            )
    return report


_DATABASES: Final = "SELECT id FROM databases UNION SELECT id FROM database_drops"
"""Also those that are being removed."""
_ORPHANS: Final = {
    "entries without an index": "entries WHERE index_id NOT IN (SELECT (i->>'id')::bigint FROM collections, "
    "jsonb_array_elements(indexes::jsonb) i UNION SELECT id FROM index_drops)",
    "keys without a database": "keys WHERE database_id NOT IN (SELECT id FROM databases)",
    "webhooks without a database": "webhooks WHERE database_id NOT IN (SELECT id FROM databases)",
    "databases without a head": "databases WHERE id NOT IN (SELECT database_id FROM heads)",
    "collections without a database": f"collections WHERE database_id NOT IN ({_DATABASES})",
    "collections without a count": "collections WHERE id NOT IN (SELECT collection_id FROM counts)",
    "documents without a collection": "documents WHERE collection_id NOT IN (SELECT id FROM collections)",
    "documents at another collection's rowkey": f"documents WHERE rowkey>>{SEQ_BITS}<>collection_id",
    "changes without a database": f"changes WHERE database_id NOT IN ({_DATABASES})",
}


def _owners(session: Session) -> Iterator[str]:
    for what, rows in _ORPHANS.items():
        ((count,),) = session.query(f"SELECT count(*) FROM {rows}")
        if count:
            yield f"{count:,} {what}"


def _collections(session: Session, database_id: int, database: str, head: int, faults: list[str]) -> int:
    """Check the collections of a database. Returns the number of its documents."""
    total = 0
    for id, name, indexes, counted in session.query(
        "SELECT c.id, c.name, c.indexes, n.documents FROM collections c JOIN counts n ON n.collection_id=c.id "
        "WHERE c.database_id=$1 ORDER BY c.id",
        database_id,
    ):
        where = f"{database}/{name.decode()}"
        ((count,),) = session.query("SELECT count(*) FROM documents WHERE rowkey BETWEEN $1 AND $2", *span(id))
        if count != counted:
            faults.append(f"{where}: {count:,} documents, counted as {counted:,}")
        total += count
        for document, own, seq in session.query(
            "SELECT id, doc->'_id' IS NOT DISTINCT FROM to_jsonb(id), seq FROM documents WHERE rowkey BETWEEN "
            "$1 AND $2 AND (doc->'_id' IS DISTINCT FROM to_jsonb(id) OR seq NOT BETWEEN 1 AND $3) "
            f"ORDER BY rowkey LIMIT {MAX_FAULTS}",
            *span(id),
            head,
        ):
            what = f"is at seq {seq:,}, beyond {head:,}" if own else "is not its document's JSON"
            faults.append(f"{where}/{document.decode()}: {what}")
        if indexes is not None:
            faults.extend(f"{where}: {fault}" for fault in _index_faults(session, id, indexes.decode()))
        faults.extend(f"{where}: {fault}" for fault in _order_faults(session, id))
    return total


def _order_faults(session: Session, collection_id: int) -> Iterator[str]:
    """Documents that are not in order of `createdAt`, in a collection that is marked as in order."""
    ((out_of_order,),) = session.query(
        "SELECT count(*) FROM (SELECT created, lag(created) OVER (ORDER BY rowkey) AS before, newest FROM "
        '(SELECT doc->>\'createdAt\' COLLATE "C" AS created, rowkey, newest COLLATE "C" AS newest '
        "FROM documents d JOIN counts n ON n.collection_id=$1 WHERE newest IS NOT NULL "
        "AND rowkey BETWEEN $2 AND $3) d) d WHERE created<before OR created>newest",
        collection_id,
        *span(collection_id),
    )
    if out_of_order:
        yield f"{out_of_order:,} documents are not in order of createdAt"


def _index_faults(session: Session, collection_id: int, text: str) -> Iterator[str]:
    """Missing and extra entries in the indexes of a collection."""
    indexes = stored_indexes(text)
    built = [(at, index) for at, index in enumerate(indexes.all) if index.built]
    documents = 0
    missing = {index.id: 0 for _, index in built}
    low, high = span(collection_id)
    while found := session.query(documents_sql("ASC"), low, high, ROWS, AT_ONCE_BYTES):
        documents += len(found)
        low = found[-1][0] + 1
        for at, index in built:
            ((there,),) = session.query(
                "SELECT count(*) FROM unnest($2::bytea[],$3::bigint[]) u(key, rowkey) "
                "JOIN entries e ON e.index_id=$1 AND e.key=u.key AND e.rowkey=u.rowkey",
                index.id,
                Blobs([stored(indexes.key(at, data)) for _, _, data in found]),
                Ints([rowkey for rowkey, _, _ in found]),
            )
            missing[index.id] += len(found) - there
    for index in indexes.all:
        name = f"index {', '.join(index.fields)}"
        ((entries,),) = session.query("SELECT count(*) FROM entries WHERE index_id=$1", index.id)
        building = session.query("SELECT 1 FROM index_builds WHERE id=$1", index.id)
        lacking = missing.get(index.id, 0)
        if lacking:
            yield f"{name} lacks {lacking:,} of {documents:,} documents"
        if index.built and entries > documents - lacking:
            yield f"{name} has {entries - documents + lacking:,} entries without a document"
        if not (index.built or index.broken or building):
            yield f"{name} is not being built"


def _log(session: Session, database_id: int, database: str, head: int, trimmed: int, faults: list[str]) -> int:
    """Check the log of a database. Returns the number of its changes."""
    ((count, inside),) = session.query(
        "SELECT count(*), count(*) FILTER (WHERE seq>$2 AND seq<=$3) FROM changes WHERE database_id=$1",
        database_id,
        trimmed,
        head,
    )
    log = f"{database}: the log of {trimmed + 1:,} to {head:,}"
    if inside != count:
        faults.append(f"{log} has {count - inside:,} changes outside this range")
    ((left_out, amiss),) = session.query(
        "SELECT coalesce(sum(until-since),0)::bigint, coalesce(sum((SELECT count(*) FROM changes c "
        "WHERE c.database_id=$1 AND c.seq>b.since AND c.seq<=b.until)),0)::bigint "
        "FROM breaks b WHERE b.database_id=$1 AND b.until>$2",
        database_id,
        trimmed,
    )
    expected = head - trimmed - left_out
    if amiss:
        faults.append(f"{log} has {amiss:,} changes where its history broke")
    if inside != expected:
        faults.append(f"{log} lacks {expected - inside:,} changes")
    for (seq,) in session.query(
        "SELECT seq FROM changes WHERE database_id=$1 AND (type NOT IN ('insert','update','delete') "
        "OR size<>octet_length(data)+coalesce(octet_length(before),0)) "
        f"ORDER BY seq LIMIT {MAX_FAULTS}",
        database_id,
    ):
        faults.append(f"{database}: change {seq:,} is malformed")
    if fault := _text_fault(session, database_id):
        faults.append(f"{database}: a change is malformed: {fault}")
    for collection, document, seq in session.query(
        "SELECT c.name, d.id, d.seq FROM collections c JOIN documents d ON d.collection_id=c.id "
        "LEFT JOIN changes h ON h.database_id=$1 AND h.seq=d.seq WHERE c.database_id=$1 AND d.seq>$2 "
        "AND (h.seq IS NULL OR h.collection<>c.name OR h.data<>d.data OR h.type='delete') "
        f"ORDER BY d.rowkey LIMIT {MAX_FAULTS}",
        database_id,
        trimmed,
    ):
        faults.append(f"{database}/{collection.decode()}/{document.decode()}: differs from its change {seq:,}")
    return int(count)


def _text_fault(session: Session, database_id: int) -> str | None:
    """What is wrong with the JSON of a change, if something is."""
    session.query("SAVEPOINT texts")
    try:
        session.query(
            "SELECT count(data::json), count(before::json) FROM changes WHERE database_id=$1", database_id
        )
    except ServerError as error:
        if not error.state.startswith("22"):
            raise
        session.query("ROLLBACK TO texts")
        return str(error)
    return None
