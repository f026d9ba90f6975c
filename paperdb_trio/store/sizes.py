"""How large a store's collections are, for figures.

Law: the counts that writes keep; nothing is counted anew.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from paperdb_trio.measures import Family, Sample

MOST_COLLECTIONS: Final = 1000
"""Of all databases together, the largest ones: a client may make any number."""


def documents(rows: Iterable[tuple[str, str, int]]) -> Family:
    """`rows`: database, collection, documents."""
    return Family(
        "paperdb_collection_documents",
        "gauge",
        "Documents of each of the 1,000 largest collections",
        [Sample({"database": database, "collection": name}, count) for database, name, count in rows],
    )
