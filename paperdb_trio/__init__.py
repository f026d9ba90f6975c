"""PaperDB: a realtime document database on Trio, SQLite and WebSockets.

The rooms and their laws are listed in docs/architecture.md. This module exports the names of the Python SDK,
and loads them on first use, because the server and the command line do not need it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from paperdb_trio import client

if TYPE_CHECKING:
    from paperdb_trio.client import (
        BatchResult,
        BulkResult,
        Client,
        Collection,
        ConnectionState,
        Document,
        Documents,
        Event,
        GapError,
        Live,
        Operation,
        PaperDBError,
        Status,
        SyncClient,
        Version,
        create_client,
        create_sync_client,
    )

__version__ = "0.1.0"

__all__ = [
    "BatchResult",
    "BulkResult",
    "Client",
    "Collection",
    "ConnectionState",
    "Document",
    "Documents",
    "Event",
    "GapError",
    "Live",
    "Operation",
    "PaperDBError",
    "Status",
    "SyncClient",
    "Version",
    "__version__",
    "create_client",
    "create_sync_client",
]


if not TYPE_CHECKING:  # else a type checker would believe that every name exists

    def __getattr__(name: str) -> Any:
        if name not in client.__all__:
            raise AttributeError(f"module 'paperdb_trio' has no attribute {name!r}")
        return getattr(client, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
