"""What `/metrics` shows of a node over PostgreSQL: the same families as for SQLite, without sizes of files.

Law: reads what its parts counted. No SQL.
"""

from __future__ import annotations

from collections.abc import Mapping

from paperdb_trio.measures import Family, Histogram, Sample, counter, gauge, histogram
from paperdb_trio.store.postgres.writer import Writer


def figures(writer: Writer, seconds: Mapping[str, Histogram]) -> list[Family]:
    return [
        Family(
            "paperdb_query_duration_seconds",
            "histogram",
            "Time of a read, and of waiting for a connection",
            [sample for kind in sorted(seconds) for sample in seconds[kind].samples({"kind": kind})],
        ),
        counter("paperdb_commits_total", "Transactions committed", writer.commits),
        counter("paperdb_operations_total", "Writes requested, done or refused", writer.operations),
        histogram("paperdb_commit_operations", "Writes by transaction", writer.batch_sizes),
        histogram("paperdb_commit_duration_seconds", "Time of a transaction", writer.commit_seconds),
        histogram("paperdb_fsync_duration_seconds", "Time of its COMMIT, mostly fsync", writer.fsync_seconds),
        counter("paperdb_index_builds_total", "Indexes built", writer.indexes_built),
        gauge("paperdb_storage_full", "1: the disk is full, only deletes are done", writer.full),
        Family(
            "paperdb_storage_fault",
            "gauge",
            "1: PostgreSQL cannot be reached",
            [Sample({"reason": "away"}, writer.fault() == "away")],
        ),
    ]
