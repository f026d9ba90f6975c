"""Requests by route, status and duration, and refusals by their code.

Law: `Exchanges` tells it of each request's end. Methods, routes, statuses and codes are ours, not a client's,
so that the number of counts is bounded.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from paperdb_trio.auth.accounts import Identity
from paperdb_trio.measures import Family, Histogram, Sample, counter
from paperdb_trio.net.messages import Request

METHODS: Final = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))
TOKEN_CODES: Final = ("INVALID_TOKEN", "TOKEN_EXPIRED", "TOKEN_REVOKED", "KEY_REVOKED", "TOKEN_MISSING")
"""Those of requests whose token is not valid."""
MINT: Final = ("POST", "/realtime/token")


BATCH: Final = 256
"""Ended requests that are counted together: one at a time, what they are counted in is no longer in the CPU's
cache. It takes 0.1 ms."""


class _Route:
    __slots__ = ("seconds", "statuses")

    def __init__(self) -> None:
        self.seconds = Histogram()
        self.statuses: dict[int, int] = {}


class RequestCounts:
    """Append `observe` to the observers of `Exchanges`."""

    def __init__(self) -> None:
        self._ended: list[tuple[str, str, int, str, Identity | None, float]] = []
        self._routes: dict[tuple[str, str], _Route] = {}
        self._codes: dict[str, int] = {}
        self._databases: dict[int, int] = {}

    def observe(self, request: Request, status: int, size: int, seconds: float) -> None:
        ended = self._ended
        ended.append((request.method, request.route, status, request.code, request.identity, seconds))
        if len(ended) >= BATCH:
            self._count()

    def _count(self) -> None:
        ended, self._ended = self._ended, []
        for method, name, status, code, identity, seconds in ended:
            route = self._routes.get((method, name)) or self._route(method, name)
            route.statuses[status] = route.statuses.get(status, 0) + 1
            if seconds:  # a door's refusal has none
                route.seconds.observe(seconds)
            if identity is not None:
                id = identity.database.id
                self._databases[id] = self._databases.get(id, 0) + 1
            if code:
                self._codes[code] = self._codes.get(code, 0) + 1

    def _route(self, method: str, route: str) -> _Route:
        # A client may send any method; what matches a route has one of these.
        return self._routes.setdefault((method if method in METHODS else "other", route), _Route())

    def by_database(self) -> dict[int, int]:
        """Requests with a valid key or token of each database."""
        self._count()
        return self._databases

    def families(self) -> list[Family]:
        self._count()
        routes = sorted(self._routes.items())
        minted = self._routes[MINT].statuses.get(200, 0) if MINT in self._routes else 0
        return [
            Family(
                "paperdb_http_requests_total",
                "counter",
                "Requests responded to, by route ('': none) and status",
                [
                    Sample({"method": method, "route": route, "status": str(status)}, count)
                    for (method, route), of in routes
                    for status, count in sorted(of.statuses.items())
                ],
            ),
            Family(
                "paperdb_http_request_duration_seconds",
                "histogram",
                "Time from the head of a request to its response",
                [
                    sample
                    for (method, route), of in routes
                    for sample in of.seconds.samples({"method": method, "route": route})
                ],
            ),
            _by_code("paperdb_refusals_total", "Requests refused", "code", sorted(self._codes), self._codes),
            counter("paperdb_tokens_minted_total", "Tokens minted", minted),
            _by_code("paperdb_tokens_refused_total", "Tokens refused", "reason", TOKEN_CODES, self._codes),
        ]


def _by_code(name: str, help: str, label: str, codes: Iterable[str], counts: dict[str, int]) -> Family:
    return Family(name, "counter", help, [Sample({label: code}, counts.get(code, 0)) for code in codes])
