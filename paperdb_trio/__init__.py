"""PaperDB: a realtime document database on Trio, SQLite and WebSockets.

The rooms and their laws are listed in docs/architecture.md. This module exports the names of the Python SDK,
and loads them on first use, because the server and the command line do not need it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from paperdb_trio.client.client import Client, SyncClient, create_client, create_sync_client
    from paperdb_trio.client.errors import GapError, PaperDBError
    from paperdb_trio.client.types import BulkResult, Document, Documents, Event, State, Status

__version__ = "0.1.0"

_ROOMS = {
    "paperdb_trio.client.client": ("Client", "SyncClient", "create_client", "create_sync_client"),
    "paperdb_trio.client.errors": ("GapError", "PaperDBError"),
    "paperdb_trio.client.types": ("BulkResult", "Document", "Documents", "Event", "State", "Status"),
}
_HOMES = {name: room for room, names in _ROOMS.items() for name in names}

__all__ = [
    "BulkResult",
    "Client",
    "Document",
    "Documents",
    "Event",
    "GapError",
    "PaperDBError",
    "State",
    "Status",
    "SyncClient",
    "__version__",
    "create_client",
    "create_sync_client",
]


if not TYPE_CHECKING:  # else a type checker would believe that every name exists

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module 'paperdb_trio' has no attribute '{name}'")
        return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
