"""What `/metrics` shows of a store over SQLite.

Law: reads what its parts counted, and asks the file system for sizes. No SQL.
"""

from __future__ import annotations

import os
from pathlib import Path

from paperdb_trio.measures import Family, Sample, counter, gauge, histogram
from paperdb_trio.store.sqlite.change_log import ChangeLog
from paperdb_trio.store.sqlite.reader import Reader
from paperdb_trio.store.sqlite.writer import Writer


def of_reads(reader: Reader, log: ChangeLog) -> list[Family]:
    seconds = {**reader.seconds, **log.seconds}
    return [
        Family(
            "paperdb_query_duration_seconds",
            "histogram",
            "Time of a read, and of waiting for a thread",
            [sample for kind in sorted(seconds) for sample in seconds[kind].samples({"kind": kind})],
        )
    ]


def of_writes(file: Path, writer: Writer) -> list[Family]:
    fault = writer.fault()
    return [
        counter("paperdb_commits_total", "Transactions committed", writer.commits),
        counter("paperdb_operations_total", "Writes requested, done or refused", writer.operations),
        histogram("paperdb_commit_operations", "Writes by transaction", writer.batch_sizes),
        histogram("paperdb_commit_duration_seconds", "Time of a transaction", writer.commit_seconds),
        histogram("paperdb_fsync_duration_seconds", "Time of its COMMIT, mostly fsync", writer.fsync_seconds),
        counter("paperdb_index_builds_total", "Indexes built", writer.indexes_built),
        Family(
            "paperdb_storage_bytes",
            "gauge",
            "Sizes of the database file and of its write-ahead log, and free space of the disk",
            [Sample({"part": part}, size) for part, size in _sizes(file).items()],
        ),
        gauge("paperdb_storage_full", "1: the disk is full, only deletes are done", writer.full),
        Family(
            "paperdb_storage_fault",
            "gauge",
            "1: the file is gone, or read-only",
            [Sample({"reason": reason}, fault == reason) for reason in ("gone", "read-only")],
        ),
    ]


def _sizes(file: Path) -> dict[str, int]:
    """Nothing of what is gone."""
    sizes = {}
    for part, path in {"file": file, "wal": Path(f"{file}-wal")}.items():
        try:
            sizes[part] = path.stat().st_size
        except OSError:
            continue
    try:
        disk = os.statvfs(file.parent)
    except OSError:
        return sizes
    return {**sizes, "free": disk.f_bavail * disk.f_frsize}
