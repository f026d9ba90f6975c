"""The one table of routes, and the way from a request to its handler.

Law: every door (Quart, and whatever else speaks HTTP here) calls `respond` and nothing else.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

from paperdb_trio.errors import ApiError, bad_request
from paperdb_trio.model import COLLECTION_NAME
from paperdb_trio.net.cors import allow_origin, preflight
from paperdb_trio.net.messages import Request, Response, error_response, json_response
from paperdb_trio.rest import handlers
from paperdb_trio.rest.handlers import Call, authenticate
from paperdb_trio.rest.openapi import openapi_document
from paperdb_trio.rest.table import Access, Route
from paperdb_trio.services import Services
from paperdb_trio.web.assets import ANY_PACKAGE

log = logging.getLogger("paperdb.rest")


_FIND: Final = ("filter", "sort", "limit", "offset", "select", "count")
_CHANGES: Final = ("since", "limit", "wait", "lastEventId", "token")

ROUTES: Final = (
    Route("POST", "/:collection/docs", handlers.insert, Access.WRITE),
    Route("POST", "/:collection/bulk", handlers.insert_bulk, Access.WRITE, ("atomic",)),
    Route("GET", "/:collection/docs", handlers.find, Access.READ, _FIND),
    Route("GET", "/:collection/docs/:id", handlers.get, Access.READ, ("select",), conditional=True),
    Route("PATCH", "/:collection/docs/:id", handlers.patch, Access.WRITE, conditional=True),
    Route("PUT", "/:collection/docs/:id", handlers.replace, Access.WRITE, conditional=True),
    Route("DELETE", "/:collection/docs/:id", handlers.delete, Access.WRITE, conditional=True),
    Route("GET", "/:collection/count", handlers.count, Access.READ, ("filter",)),
    Route("GET", "/:collection/changes", handlers.changes, Access.LISTEN, _CHANGES),
    Route("GET", "/:collection/schema", handlers.get_schema, Access.READ),
    Route("PUT", "/:collection/schema", handlers.put_schema, Access.WRITE),
    Route("DELETE", "/:collection/schema", handlers.delete_schema, Access.WRITE),
    Route("GET", "/collections", handlers.collections, Access.READ),
    Route("DELETE", "/:collection", handlers.drop, Access.WRITE, ("confirm",)),
    Route("POST", "/realtime/token", handlers.mint_token, Access.READ),
)


async def openapi(services: Services, request: Request) -> Response:
    """This API, as OpenAPI 3.1."""
    return json_response(200, openapi_document(ROUTES))


OPEN_ROUTES: Final[dict[str, Callable[[Services, Request], Awaitable[Response]]]] = {
    "/healthz": handlers.healthz,
    "/readyz": handlers.readyz,
    "/metrics": handlers.metrics,
    "/openapi.json": openapi,
}


class _Pattern:
    """A route's pattern, taken apart: which segments are what they are, and which are parameters."""

    __slots__ = ("fixed", "parameters", "route")

    def __init__(self, route: Route, parts: list[str]) -> None:
        self.route = route
        self.fixed = [(n, part) for n, part in enumerate(parts) if not part.startswith(":")]
        self.parameters = [(n, part[1:]) for n, part in enumerate(parts) if part.startswith(":")]


# By the number of segments, and the method: one to three patterns are left to compare.
_BY_LENGTH: Final[dict[int, dict[str, list[_Pattern]]]] = {}
for _route in ROUTES:
    _parts = _route.pattern.split("/")[1:]
    _BY_LENGTH.setdefault(len(_parts), {}).setdefault(_route.method, []).append(_Pattern(_route, _parts))


def match(method: str, segments: tuple[str, ...]) -> tuple[Route, dict[str, str]]:
    """Raises a 404, or a 405 that names the methods."""
    by_method = _BY_LENGTH.get(len(segments), {})
    found = _find(by_method.get(method, ()), segments)
    if found is not None:
        return found
    allowed = [other for other, candidates in by_method.items() if _find(candidates, segments)]
    if allowed:
        raise ApiError(
            405,
            "METHOD_NOT_ALLOWED",
            _not_allowed(method, segments, allowed),
            headers={"Allow": ", ".join([*allowed, "OPTIONS"])},
        )
    raise ApiError(404, "NOT_FOUND", "There is nothing at this path")


def _not_allowed(method: str, segments: tuple[str, ...], allowed: list[str]) -> str:
    # Of a collection's own path only dropping it is allowed, which is the last thing to recommend.
    if len(segments) == 1 and COLLECTION_NAME.match(segments[0]):
        return f"{method} is not allowed here; the documents are at /{segments[0]}/docs"
    return f"{method} is not allowed here; use {' or '.join(allowed)}"


def _find(candidates: Iterable[_Pattern], segments: tuple[str, ...]) -> tuple[Route, dict[str, str]] | None:
    for pattern in candidates:
        for n, part in pattern.fixed:
            if segments[n] != part:
                break
        else:
            return pattern.route, {name: segments[n] for n, name in pattern.parameters}
    return None


async def respond(services: Services, request: Request) -> Response:
    """Answer a request, whatever it is. Raises nothing but cancellation."""
    try:
        response = await _respond(services, request)
    except ApiError as error:
        response = error_response(error)
    except Exception:
        log.exception("%s %s failed", request.method, request.path[:200])
        response = error_response(ApiError(500, "INTERNAL", "Internal error; the server's log has the details"))
    allow_origin(services.settings, request.method, request.headers.get("origin"), response)
    return response


async def _respond(services: Services, request: Request) -> Response:
    method = "GET" if request.method == "HEAD" else request.method
    if method == "OPTIONS":
        return preflight()
    if method == "GET" and request.path in OPEN_ROUTES:
        return await OPEN_ROUTES[request.path](services, request)
    if method == "GET" and request.path in services.assets:
        return handlers.asset(services, request)
    if method == "GET" and (package := ANY_PACKAGE.fullmatch(request.path)):
        raise handlers.another_package(services, package[1])
    segments = request.segments()
    identity, token = authenticate(services.accounts, request)
    services.limits.request(identity.key.id)
    route, parameters = match(method, segments)
    if token is not None and route.access is not Access.LISTEN:
        raise ApiError(403, "TOKEN_NOT_ALLOWED", "A realtime token can only listen; use an API key here")
    if route.access is Access.WRITE:
        if not identity.key.secret:
            raise ApiError(403, "READ_ONLY_KEY", "This is a public key: it can read, not write")
        if not route.conditional and ("if-match" in request.headers or "if-none-match" in request.headers):
            raise bad_request("If-Match and If-None-Match are for one document: they hold nothing back here")
    return await route.handler(
        Call(services, request, identity, parameters, request.query(*route.query), token)
    )
