"""What an acknowledged write survives: with `disk` a power cut, with `process` only the end of the server.

Law: with `process`, SQLite does not wait for the disk. A crash of the machine can lose the newest changes, and
the next server would reuse their seqs. A client that has seen the lost changes must get a gap, never silently
another history. So a mark in the file names the boot of the machine. If the machine has booted again since, the
logs start anew.
"""

from __future__ import annotations

import hashlib
import logging
from contextlib import closing
from pathlib import Path
from typing import Final

from paperdb_trio.store.sqlite import library as sqlite
from paperdb_trio.store.sqlite.backup import begin_logs_anew
from paperdb_trio.store.sqlite.file import connect

log = logging.getLogger("paperdb.store")

_MARK: Final = "unsynced_boot"


def boot() -> int:
    """A number that identifies this boot of the machine. The kernel makes a new id at each boot."""
    text = Path("/proc/sys/kernel/random/boot_id").read_bytes()
    return int.from_bytes(hashlib.sha256(text).digest()[:6])


def _marked(connection: sqlite.Connection) -> int | None:
    row = connection.execute("SELECT value FROM meta WHERE name=?", (_MARK,)).fetchone()
    return None if row is None else int(row[0])


def recover(file: Path) -> None:
    """Start the logs anew if a crash of the machine may have lost changes. Call it before reading the logs."""
    with closing(connect(file)) as connection:
        marked = _marked(connection)
        if marked is None:
            return
        if marked != boot():
            log.warning("the machine went down while writes did not wait for the disk: clients get a gap once")
            begin_logs_anew(connection, 0)
        _remove_mark(connection)


def relax(connection: sqlite.Connection) -> None:
    """Mark the file. From now on this connection's commits do not wait for the disk."""
    connection.execute("INSERT OR REPLACE INTO meta VALUES (?,?)", (_MARK, boot()))
    connection.execute("PRAGMA synchronous=NORMAL")


def settle(file: Path) -> None:
    """At the end of a server: wait until everything is on the disk."""
    with closing(connect(file)) as connection:
        if _marked(connection) is not None:
            _remove_mark(connection)


def _remove_mark(connection: sqlite.Connection) -> None:
    """This commit waits for the disk, and so for all earlier commits."""
    connection.execute("DELETE FROM meta WHERE name=?", (_MARK,))
