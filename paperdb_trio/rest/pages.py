"""Routes that need no API key: health, metrics, the dashboard and the files of the SDK."""

from __future__ import annotations

import hmac
import re
from typing import Final

from msgspec import UNSET

from paperdb_trio.auth.accounts import unauthorized
from paperdb_trio.auth.keys import ADMIN_PREFIX
from paperdb_trio.errors import ApiError
from paperdb_trio.measures import joined
from paperdb_trio.net.messages import Request, Response, json_response
from paperdb_trio.rest.metrics import CONTENT_TYPE, text
from paperdb_trio.rest.responses import Health
from paperdb_trio.services import Services
from paperdb_trio.store.refusals import storage_gone
from paperdb_trio.web.assets import ANY_PACKAGE, COMPRESSED

PAGE_HEADERS: Final = {
    "Content-Security-Policy": "; ".join(
        (
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "connect-src 'self'",
            "img-src 'self' data:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        )
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
}
"""For the dashboard. It runs its own modules, and speaks with its own server. No text can become markup:
`innerHTML` and the like throw with these trusted types."""

STALE_SECONDS: Final = 5.0
"""Seconds without a look at the file after which the server is not ready. It looks four times a second."""


TAKES_GZIP: Final = re.compile(r"(?:^|,)\s*gzip\s*(?:,|$|;\s*q=(?!0(?:\.0*)?\s*(?:,|$)))", re.IGNORECASE)
"""An `Accept-Encoding` that names gzip, and not with a weight of 0."""


async def healthz(services: Services, request: Request) -> Response:
    return json_response(200, Health("ok"))


async def readyz(services: Services, request: Request) -> Response:
    if services.draining:
        raise ApiError(503, "SHUTTING_DOWN", "The server is shutting down", headers={"Retry-After": "1"})
    if services.accounts.age() > STALE_SECONDS:
        raise ApiError(503, "NOT_READY", "The database file could not be read for a while")
    fault = services.store.fault()
    if fault == "gone":
        raise storage_gone()
    if fault == "read-only":
        raise ApiError(503, "NOT_READY", "The database file cannot be written to: it is read-only")
    if fault == "away":
        raise ApiError(503, "NOT_READY", "PostgreSQL cannot be reached")
    if fault == "hangs":
        raise ApiError(503, "NOT_READY", "The process that writes does not respond")
    return json_response(200, Health("ready", "full" if services.store.full else UNSET))


async def metrics(services: Services, request: Request) -> Response:
    found = await services.gather("metrics", _sees_each(services, request))
    whole = found[0][1] if len(found) == 1 else joined(dict(found), "worker")
    return Response(200, await text(whole), {"Content-Type": CONTENT_TYPE})


def _sees_each(services: Services, request: Request) -> bool:
    """Whether the metrics of each database are shown: to the metrics key and to admin keys. Raises a 401 if a
    key is needed, and for an admin key that is not valid."""
    wanted = services.settings.metrics_key
    given = request.headers.get("authorization", "")
    # As text, they would have to be ASCII.
    if wanted and hmac.compare_digest(given.encode(), f"Bearer {wanted}".encode()):
        return True
    if given.startswith(f"Bearer {ADMIN_PREFIX}"):
        key = services.accounts.key_of(given.removeprefix("Bearer "))
        services.accounts.used.add(key.id)
        return True
    if wanted:
        raise unauthorized()
    return False


def asset(services: Services, request: Request) -> Response:
    """A file of an SDK or of the dashboard. Clients ask each time whether it has changed.

    A compressed file has a weak tag: its bytes depend on the zlib. Either tag matches (RFC 9110, 13.1.2).
    """
    found = services.assets[request.path]
    headers = {"ETag": found.etag, "Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff"}
    body = found.body
    if found.content_type in COMPRESSED:
        headers["Vary"] = "Accept-Encoding"
        if TAKES_GZIP.search(request.headers.get("accept-encoding", "")):
            body = found.gzipped()
            headers |= {"ETag": f"W/{found.etag}", "Content-Encoding": "gzip"}
    if request.path == "/":
        headers |= PAGE_HEADERS
    if found.versioned is not None:
        headers["Content-Location"] = found.versioned
    if request.headers.get("if-none-match", "").removeprefix("W/") == found.etag:
        headers.pop("Content-Encoding", None)
        return Response(304, b"", headers)
    return Response(200, body, {"Content-Type": found.content_type, **headers})


def another_package(services: Services, suffix: str) -> ApiError:
    """The 404 for an SDK of another version."""
    ours = next(path for path in filter(ANY_PACKAGE.fullmatch, services.assets) if path.endswith(suffix))
    return ApiError(404, "NOT_FOUND", f"This server has another version of the SDK: {ours}")
