"""What a web page of another origin may ask and read (Fetch, section 3.2).

Law: every answer over HTTP goes through here, a refusal by the door itself, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from paperdb_trio.config import Settings
from paperdb_trio.errors import ApiError
from paperdb_trio.net.messages import Response, error_response

METHODS: Final = ("GET", "POST", "PUT", "PATCH", "DELETE")


def preflight(methods: Sequence[str] = ()) -> Response:
    """The response to OPTIONS. `methods`: the path's, if known. `allow_origin` adds what browsers look for."""
    return Response(204, b"", {"Allow": ", ".join([*(methods or METHODS), "OPTIONS"])})


def refusal(settings: Settings, method: str, origin: str | None, error: ApiError) -> Response:
    """The answer of a door that does not get as far as the routes.

    A preflight goes through: only then does a browser ask, and show its page what the refusal says.
    """
    response = preflight() if method == "OPTIONS" else error_response(error)
    allow_origin(settings, method, origin, response)
    return response


def allow_origin(settings: Settings, method: str, origin: str | None, response: Response) -> None:
    """CORS (Fetch, section 3.2). No cookies are used, so that `*` gives nothing away."""
    origins = settings.origins
    headers = response.headers
    if origin is None:
        if not origins.any:  # a shared cache must not give this to those who have one
            headers["Vary"] = "Origin"
        return
    if origins.any:
        headers["Access-Control-Allow-Origin"] = "*"
    else:
        headers["Vary"] = "Origin"
        if not origins.allows(origin):
            return
        headers["Access-Control-Allow-Origin"] = origin
    headers["Access-Control-Expose-Headers"] = "ETag, Retry-After"
    if method == "OPTIONS":
        headers["Access-Control-Allow-Methods"] = ", ".join([*METHODS, "OPTIONS"])
        headers["Access-Control-Allow-Headers"] = (
            "Authorization, X-API-Key, Content-Type, If-Match, If-None-Match, Last-Event-ID"
        )
        headers["Access-Control-Max-Age"] = "86400"
