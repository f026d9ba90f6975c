"""The Python SDK: clients of the server.

Law: talks to a server over HTTP and WebSocket only. Its modules import one another relatively and nothing else
of this package, because the server also serves this folder as the package `paperdb` (`web/wheel.py`). The names
are loaded when they are first used, because the server needs only `groups`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .client import Client, SyncClient, create_client, create_sync_client
    from .collection import Collection
    from .errors import GapError, PaperDBError
    from .live import Live
    from .types import (
        BatchResult,
        BulkResult,
        ConnectionState,
        Document,
        Documents,
        Event,
        Operation,
        Status,
        Version,
    )

__version__ = "0.2.0"
"""The SDK's own: it rises when this folder changes, not with each version of the server."""

_HOMES = {
    "BatchResult": "types",
    "BulkResult": "types",
    "Client": "client",
    "Collection": "collection",
    "ConnectionState": "types",
    "Document": "types",
    "Documents": "types",
    "Event": "types",
    "GapError": "errors",
    "Live": "live",
    "Operation": "types",
    "PaperDBError": "errors",
    "Status": "types",
    "SyncClient": "client",
    "Version": "types",
    "create_client": "client",
    "create_sync_client": "client",
}

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


if not TYPE_CHECKING:  # a type checker that saw it would believe that every name exists

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
