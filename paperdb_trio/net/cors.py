"""CORS: what a web page of another origin may request and read (Fetch, section 3.2).

Law: every HTTP response goes through here, even an early refusal by the door.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from paperdb_trio.config import Settings
from paperdb_trio.errors import ApiError
from paperdb_trio.net.messages import Response, error_response

METHODS: Final = ("GET", "POST", "PUT", "PATCH", "DELETE")


def preflight(methods: Sequence[str] = ()) -> Response:
    """The response to OPTIONS. `methods`: the path's, if known. `allow_origin` adds the CORS headers."""
    return Response(204, b"", {"Allow": ", ".join([*(methods or METHODS), "OPTIONS"])})


def refusal(settings: Settings, method: str, origin: str | None, error: ApiError, request_id: str) -> Response:
    """The response of a door that refuses a request before the routes.

    A preflight succeeds all the same: only then does a browser send its request, and show its page the refusal.
    """
    response = preflight() if method == "OPTIONS" else error_response(error)
    allow_origin(settings, method, origin, response)
    response.headers["X-Request-Id"] = request_id
    return response


def allow_origin(settings: Settings, method: str, origin: str | None, response: Response) -> None:
    """Add the CORS headers (Fetch, section 3.2). There are no cookies, so `*` gives nothing away."""
    origins = settings.origins
    headers = response.headers
    if origin is None:
        if not origins.any:  # a shared cache must not serve this to requests with an Origin
            _vary(headers)
        return
    if origins.any:
        headers["Access-Control-Allow-Origin"] = "*"
    else:
        _vary(headers)
        if not origins.allows(origin):
            return
        headers["Access-Control-Allow-Origin"] = origin
    headers["Access-Control-Expose-Headers"] = "ETag, Idempotent-Replayed, Retry-After, X-Request-Id"
    if method == "OPTIONS":
        headers["Access-Control-Allow-Methods"] = ", ".join([*METHODS, "OPTIONS"])
        headers["Access-Control-Allow-Headers"] = (
            "Authorization, X-API-Key, X-PaperDB-Database, Content-Type, If-Match, If-None-Match, "
            "Idempotency-Key, Last-Event-ID, X-Request-Id"
        )
        headers["Access-Control-Max-Age"] = "86400"


def _vary(headers: dict[str, str]) -> None:
    headers["Vary"] = f"{headers['Vary']}, Origin" if "Vary" in headers else "Origin"
