"""The one place where a request ends: its id, and all who are told of it.

Law: each door ends each request here once, when its response is decided and before it is sent, so that a slow
reader does not count. A request that is not logged costs its id, a test, and what each observer takes.
"""

from __future__ import annotations

import itertools
import logging
import re
import secrets
from collections.abc import Callable, Iterator
from time import perf_counter
from typing import Any, Final

from paperdb_trio.auth.accounts import SERVER
from paperdb_trio.config import Settings
from paperdb_trio.errors import ApiError
from paperdb_trio.limits import Limits
from paperdb_trio.logs import SparingLog
from paperdb_trio.net.messages import Request
from paperdb_trio.request_counts import BATCH, RequestCounts

access_log = logging.getLogger("paperdb.access")
log = logging.getLogger("paperdb.refused")

REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,128}")
REFUSALS: Final = frozenset({401, 403, 429, 503})
"""Statuses that an operator wants to hear of, with the reason."""
REFUSALS_A_MINUTE: Final = 10
"""Lines for each error code."""

Observer = Callable[[Request, int, int, float], None]
"""`observe(request, status, size, seconds)`: `size` in bytes of the response's body (0 if it is endless),
`seconds` from the whole head to the decision. `request.code` is the error code, if it was refused."""


class Exchanges:
    """Ids of requests, counts of their ends, and who else is told of these: append to `observers` before the
    first request."""

    def __init__(self, settings: Settings, limits: Limits) -> None:
        self.observers: list[Observer] = []
        self.counts = RequestCounts()
        self._limits = limits
        self._ids = _ids(f"{secrets.token_hex(4)}-")
        self._refusals = SparingLog(log, burst=REFUSALS_A_MINUTE)
        self.every = {"off": 0, "sampled": settings.access_log_every, "on": 1}[settings.access_log]
        """So many requests have one access line; 0: none has."""
        self._seen = 0

    def begin(self, request: Request) -> None:
        """Give the request its id, and choose whether it gets an access line.

        The id is the client's `X-Request-Id` if that is sane, else one that no other request has.
        """
        given = request.headers.get("x-request-id")
        if given is None or not REQUEST_ID.fullmatch(given):
            given = next(self._ids)
        request.id = given
        if self.every:
            self._seen += 1
            request.logged = not self._seen % self.every

    def refuse(self, request: Request, error: ApiError) -> None:
        """End a request that a door refuses before any route sees it, or after the route has responded."""
        self.note(request, error)
        self.end(request, error.status, 0)

    def note(self, request: Request, error: ApiError) -> None:
        """Note why a request is refused."""
        if not request.id:  # no route has seen it
            self.begin(request)
        request.code, request.reason = error.code, error.message

    def end(self, request: Request, status: int, size: int) -> None:
        """The response is decided. Call this once for each request, a WebSocket's too (101)."""
        seconds = perf_counter() - request.began if request.began else 0.0
        ended = self.counts.ended
        ended.append((request.method, request.route, status, request.identity, seconds))
        if len(ended) >= BATCH:
            self.counts.count()
        for observe in self.observers:
            observe(request, status, size, seconds)
        if request.logged:
            self._access(request, status, size, seconds)
        if request.code:
            self.counts.refused(request.code)
            if status in REFUSALS:
                self._refused(request, status)

    def _access(self, request: Request, status: int, size: int, seconds: float) -> None:
        fields = described(request, self._limits)
        fields |= {"status": status, "ms": round(seconds * 1000, 3), "bytes": size}
        if request.code:
            fields["code"] = request.code
        if self.every > 1:
            fields["of"] = self.every
        access_log.info("%s %s", request.method, request.path[:200], extra={"fields": fields})

    def _refused(self, request: Request, status: int) -> None:
        level = logging.WARNING if status == 503 else logging.INFO
        if log.isEnabledFor(level):
            fields = described(request, self._limits) | {"reason": request.reason[:200]}
            self._refusals.log(level, f"refused with {status} {request.code}", fields=fields)


def _ids(prefix: str) -> Iterator[str]:
    """The prefix with 1000, 1001 and so on. Formatting each number takes five times as long."""
    endings = [f"{number:03}" for number in range(1000)]
    for thousands in itertools.count(1):
        begin = f"{prefix}{thousands}"
        for ending in endings:
            yield begin + ending


def client_of(request: Request, limits: Limits) -> str:
    """The address of the client, behind trusted proxies."""
    return limits.client_address(request.peer, request.headers.get("x-forwarded-for"))


def described(request: Request, limits: Limits) -> dict[str, Any]:
    """The fields of a log line about a request. Never a query string: it may hold a token."""
    fields: dict[str, Any] = {
        "request": request.id,
        "method": request.method,
        "path": request.path[:200],
        "address": client_of(request, limits),
    }
    if request.route:
        fields["route"] = request.route
    if request.identity is not None:
        if request.identity.database is not SERVER:
            fields["database"] = request.identity.database.name
        fields["key"] = request.identity.key.id
    if request.token is not None and request.token.subject is not None:
        fields["subject"] = request.token.subject
    return fields
