"""What a row of the table of routes says."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum

from paperdb_trio.net.messages import Response
from paperdb_trio.rest.handlers import Call


class Access(Enum):
    """Which key a route wants."""

    READ = "any key"
    WRITE = "a secret key"
    LISTEN = "any key, or a token"


@dataclass(frozen=True, slots=True)
class Route:
    method: str
    pattern: str
    handler: Callable[[Call], Awaitable[Response]]
    access: Access
    query: tuple[str, ...] = ()
    conditional: bool = False
    """Whether it takes If-Match and If-None-Match."""
