"""Giving unused pages of the file back to the disk.

Law: the law of `operations` holds here, too; only SQLite's keeper submits it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

from paperdb_trio.store.sqlite import transaction
from paperdb_trio.store.transaction import Transaction

INCREMENTAL: Final = 2
"""The value of `PRAGMA auto_vacuum` for a file that can give pages back."""
SPARE_PAGES: Final = 1024
"""Free pages of 4 KiB that stay in the file, for coming writes."""


@dataclass(frozen=True, slots=True)
class FreePages:
    """Return some unused pages to the disk, all but `spare`. Returns whether there may be more.

    The file shrinks at the next checkpoint. A file made by version 0.1 keeps its pages until `paperdb compact`.
    """

    frees: ClassVar = True

    pages: int = 200
    spare: int = SPARE_PAGES

    def apply(self, tx: Transaction) -> bool:
        assert isinstance(tx, transaction.Transaction)
        free, mode = (
            tx.connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("freelist_count", "auto_vacuum")
        )
        if mode != INCREMENTAL or free <= self.spare:
            return False
        tx.connection.execute(f"PRAGMA incremental_vacuum({min(self.pages, free - self.spare)})").fetchall()
        return True
