"""Checks a database file, beyond what SQLite itself can check.

Law: reads only, in one read transaction, so that commits of a running server cannot make a sound file look
damaged.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from paperdb_trio.store.checking import MAX_FAULTS, Report
from paperdb_trio.store.indexes import stored_indexes
from paperdb_trio.store.rowkeys import SEQ_BITS, SEQ_MASK, span
from paperdb_trio.store.sqlite import library as sqlite
from paperdb_trio.store.sqlite.file import connect

_ENTRY: Final = "SELECT 1 FROM entries WHERE index_id=? AND key=? AND rowkey=?"


def check(file: Path) -> Report:
    """Check a whole file, in about the time of reading it twice."""
    report = Report()
    connection = connect(file, read_only=True)
    try:
        connection.execute("BEGIN")
        for (verdict,) in connection.execute(f"PRAGMA integrity_check({MAX_FAULTS})"):
            if verdict != "ok":
                report.faults.append(" ".join(verdict.split()))
        if not report.faults:  # a damaged file would only give the same faults in other words
            report.faults.extend(_owners(connection))
            for id, name, head, trimmed in connection.execute("SELECT id, name, head, trimmed FROM databases"):
                documents = _collections(connection, id, name, head, report.faults)
                changes = _log(connection, id, name, head, trimmed, report.faults)
                report.databases.append(
                    f"{name}: {documents:,} documents, {changes:,} changes in the log, seq {head:,}"
                )
    except sqlite.Error as error:
        report.faults.append(str(error))
    finally:
        connection.close()
    return report


_DATABASES: Final = "SELECT id FROM databases UNION SELECT id FROM database_drops"
"""Also those that are being removed."""
_ORPHANS: Final = {
    "entries without an index": "entries WHERE index_id NOT IN (SELECT value->>'id' FROM collections, "
    "json_each(indexes) WHERE indexes IS NOT NULL UNION SELECT id FROM index_drops)",
    "keys without a database": "keys WHERE database_id NOT IN (SELECT id FROM databases)",
    "collections without a database": f"collections WHERE database_id NOT IN ({_DATABASES})",
    "documents without a collection": "documents WHERE collection_id NOT IN (SELECT id FROM collections)",
    "documents at another collection's rowkey": f"documents WHERE rowkey>>{SEQ_BITS}<>collection_id",
    "changes without a database": f"changes WHERE rowkey>>{SEQ_BITS} NOT IN ({_DATABASES})",
}


def _owners(connection: sqlite.Connection) -> Iterator[str]:
    for what, rows in _ORPHANS.items():
        (count,) = connection.execute(f"SELECT count(*) FROM {rows}").fetchone()
        if count:
            yield f"{count:,} {what}"


def _collections(
    connection: sqlite.Connection, database_id: int, database: str, head: int, faults: list[str]
) -> int:
    """Check the collections of a database. Returns the number of its documents."""
    total = 0
    for id, name, counted in connection.execute(
        "SELECT id, name, documents FROM collections WHERE database_id=?", (database_id,)
    ).fetchall():
        where = f"{database}/{name}"
        (count,) = connection.execute(
            "SELECT count(*) FROM documents WHERE rowkey BETWEEN ? AND ?", span(id)
        ).fetchone()
        if count != counted:
            faults.append(f"{where}: {count:,} documents, counted as {counted:,}")
        total += count
        damaged = False
        for document, well_formed, seq in connection.execute(
            "SELECT id, own IS id, seq FROM (SELECT id, seq, "
            "iif(json_valid(data,8),json_extract(data,'$._id'),NULL) AS own "
            "FROM documents WHERE rowkey BETWEEN ?1 AND ?2) WHERE own IS NOT id OR seq NOT BETWEEN 1 AND ?3 "
            f"LIMIT {MAX_FAULTS}",
            (*span(id), head),
        ):
            what = f"is at seq {seq:,}, beyond {head:,}" if well_formed else "is not its document's JSON"
            faults.append(f"{where}/{document}: {what}")
            damaged = damaged or not well_formed
        if not damaged:
            faults.extend(f"{where}: {fault}" for fault in _index_faults(connection, id))
        if not damaged:
            faults.extend(f"{where}: {fault}" for fault in _order_faults(connection, id))
    return total


def _order_faults(connection: sqlite.Connection, collection_id: int) -> Iterator[str]:
    """Documents that are not in order of `createdAt`, in a collection that is marked as in order."""
    (out_of_order,) = connection.execute(
        "SELECT sum(created<before OR created>newest) FROM "
        "(SELECT created, lag(created) OVER (ORDER BY rowkey) AS before, newest FROM "
        "(SELECT json_extract(data,'$.createdAt') AS created, rowkey, newest FROM documents d "
        "JOIN collections c ON c.id=?1 WHERE newest IS NOT NULL AND rowkey BETWEEN ?2 AND ?3))",
        (collection_id, *span(collection_id)),
    ).fetchone()
    if out_of_order:
        yield f"{out_of_order:,} documents are not in order of createdAt"


def _index_faults(connection: sqlite.Connection, collection_id: int) -> Iterator[str]:
    """Missing and extra entries in the indexes of a collection."""
    (text,) = connection.execute("SELECT indexes FROM collections WHERE id=?", (collection_id,)).fetchone()
    if text is None:
        return
    indexes = stored_indexes(text)
    documents = 0
    missing = dict.fromkeys((index for index in indexes.all if index.built), 0)
    for rowkey, data in connection.execute(
        "SELECT rowkey, json(data) FROM documents WHERE rowkey BETWEEN ? AND ?", span(collection_id)
    ):
        documents += 1
        for index, key in zip(indexes.all, indexes.keys(data.encode()), strict=True):
            if index.built and not connection.execute(_ENTRY, (index.id, key, rowkey)).fetchone():
                missing[index] += 1
    for index in indexes.all:
        name = f"index {', '.join(index.fields)}"
        (entries,) = connection.execute("SELECT count(*) FROM entries WHERE index_id=?", (index.id,)).fetchone()
        building = connection.execute("SELECT 1 FROM index_builds WHERE id=?", (index.id,)).fetchone()
        if missing.get(index):
            yield f"{name} lacks {missing[index]:,} of {documents:,} documents"
        if index.built and entries > documents - missing[index]:
            yield f"{name} has {entries - documents + missing[index]:,} entries without a document"
        if not (index.built or index.broken or building):
            yield f"{name} is not being built"


def _log(
    connection: sqlite.Connection, database_id: int, database: str, head: int, trimmed: int, faults: list[str]
) -> int:
    """Check the log of a database. Returns the number of its changes."""
    low, high = span(database_id)
    (count,) = connection.execute(
        "SELECT count(*) FROM changes WHERE rowkey BETWEEN ? AND ?", (low, high)
    ).fetchone()
    (inside,) = connection.execute(
        "SELECT count(*) FROM changes WHERE rowkey>? AND rowkey<=?", (low | trimmed, low | head)
    ).fetchone()
    log = f"{database}: the log of {trimmed + 1:,} to {head:,}"
    if inside != count:
        faults.append(f"{log} has {count - inside:,} changes outside this range")
    if inside != head - trimmed:
        faults.append(f"{log} lacks {head - trimmed - inside:,} changes")
    for (rowkey,) in connection.execute(
        "SELECT rowkey FROM changes WHERE rowkey BETWEEN ? AND ? AND "
        "(type NOT IN ('insert','update','delete') OR NOT json_valid(data) "
        f"OR size<>length(CAST(data||ifnull(before,'') AS BLOB))) LIMIT {MAX_FAULTS}",
        (low, high),
    ):
        faults.append(f"{database}: change {rowkey & SEQ_MASK:,} is malformed")
    for collection, document, seq in connection.execute(
        "SELECT c.name, d.id, d.seq FROM collections c JOIN documents d ON d.collection_id=c.id "
        "WHERE c.database_id=?1 AND d.seq>?2 AND NOT EXISTS (SELECT 1 FROM changes WHERE rowkey=?3|d.seq "
        f"AND collection=c.name AND data=json(d.data) AND type<>'delete') LIMIT {MAX_FAULTS}",
        (database_id, trimmed, low),
    ):
        faults.append(f"{database}/{collection}/{document}: differs from its change {seq:,}")
    return int(count)
