"""Sorts that are larger than the memory for them."""

from __future__ import annotations

import json
from pathlib import Path

from paperdb_trio.store.file import connect
from paperdb_trio.store.rowkeys import span


def peak() -> int:
    """The most bytes of this process that were resident since the last call."""
    text = Path("/proc/self/status").read_text()
    Path("/proc/self/clear_refs").write_text("5")
    return int(text.partition("VmHWM:")[2].split()[0]) * 1024


def test_large_sort_takes_no_more_memory_than_the_cache(file: Path) -> None:
    low, _ = span(1)
    writer = connect(file)
    writer.execute("BEGIN")
    rows = ((low | n, 1, str(n), n, json.dumps({"n": -n, "pad": "x" * 5000})) for n in range(12_000))
    writer.executemany("INSERT INTO documents VALUES (?,?,?,?,?)", rows)
    writer.execute("COMMIT")
    writer.close()
    reader = connect(file, read_only=True)
    try:
        peak()
        before = peak()
        # With this offset, SQLite must sort all rows.
        reader.execute(
            "SELECT data FROM documents ORDER BY json_extract(data,'$.n'), data LIMIT 1 OFFSET ?", (2**53,)
        ).fetchall()
        assert peak() - before < 50 * 2**20  # sorting in memory: 120
    finally:
        reader.close()
