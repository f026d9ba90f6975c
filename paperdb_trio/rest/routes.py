"""The one table of routes, and the way from a request to its handler.

Law: every door (our own loop, Quart) calls `respond` and nothing else.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from contextlib import suppress
from functools import lru_cache
from time import perf_counter
from typing import Final

from paperdb_trio.config import Settings
from paperdb_trio.errors import ApiError, bad_request
from paperdb_trio.model import COLLECTION_NAME, encode
from paperdb_trio.net.cors import allow_origin, preflight
from paperdb_trio.net.messages import Request, Response, error_response, json_text_response
from paperdb_trio.rest import batch, bodies, changes, collections, documents, metrics, pages, responses, tokens
from paperdb_trio.rest.admin_call import PREFIX, AdminCall, admit, check_access
from paperdb_trio.rest.admin_routes import ADMIN_ROUTES
from paperdb_trio.rest.call import Call, authenticate
from paperdb_trio.rest.openapi import openapi_document
from paperdb_trio.rest.table import Access, OpenRoute, Route
from paperdb_trio.services import Services
from paperdb_trio.web.assets import ANY_PACKAGE

log = logging.getLogger("paperdb.rest")

_READ, _WRITE = Access.READ, Access.WRITE
_DOCUMENT: Final = {200: responses.SelectedDocument}
_SCHEMA: Final = {200: responses.Schema}
_FILTERED: Final = ("INVALID_FILTER", "INVALID_JSON", "UNKNOWN_OPERATOR", "INVALID_FIELD", "QUERY_TIMEOUT")
_WHERE: Final = ("INVALID_FILTER", "INVALID_JSON", "UNKNOWN_OPERATOR", "INVALID_FIELD", "CONDITION_FAILED")
_FOUND: Final = (*_FILTERED, "INVALID_SORT", "INVALID_CURSOR", "RESULT_TOO_LARGE", "READ_ONLY_KEY")

ROUTES: Final = (
    *ADMIN_ROUTES,
    Route(
        "POST",
        "/:collection/docs",
        documents.insert,
        _WRITE,
        tokens=True,
        body=bodies.NEW_DOCUMENT,
        returns={201: responses.SelectedDocument},
    ),
    Route(
        "POST",
        "/:collection/bulk",
        documents.insert_bulk,
        _WRITE,
        ("atomic",),
        tokens=True,
        body=bodies.BULK,
        returns={200: responses.Bulk},
    ),
    Route(
        "GET",
        "/:collection/docs",
        documents.find,
        _READ,
        ("filter", "sort", "limit", "offset", "select", "after", "count", "explain"),
        tokens=True,
        returns={200: responses.Page},
        refuses=_FOUND,
    ),
    Route(
        "POST",
        "/:collection/query",
        documents.query,
        _READ,
        body=bodies.QUERY,
        tokens=True,
        returns={200: responses.Page},
        refuses=_FOUND,
    ),
    Route(
        "GET",
        "/:collection/docs/:id",
        documents.get,
        _READ,
        ("select",),
        conditional=True,
        tokens=True,
        returns={200: responses.SelectedDocument, 304: None},
        refuses=("NOT_FOUND", "INVALID_FIELD", "QUERY_TIMEOUT"),
    ),
    Route(
        "PATCH",
        "/:collection/docs/:id",
        documents.patch,
        _WRITE,
        ("where",),
        tokens=True,
        conditional=True,
        body=bodies.PATCH,
        returns=_DOCUMENT,
        refuses=("NOT_FOUND", *_WHERE),
    ),
    Route(
        "PUT",
        "/:collection/docs/:id",
        documents.replace,
        _WRITE,
        ("where",),
        tokens=True,
        conditional=True,
        body=bodies.FIELDS,
        returns={**_DOCUMENT, 201: responses.SelectedDocument},
        refuses=_WHERE,
    ),
    Route(
        "DELETE",
        "/:collection/docs/:id",
        documents.delete,
        _WRITE,
        ("where",),
        tokens=True,
        conditional=True,
        returns={200: responses.Deleted},
        refuses=("NOT_FOUND", *_WHERE),
    ),
    Route(
        "GET",
        "/:collection/docs/:id/history",
        documents.history,
        _READ,
        ("limit",),
        returns={200: responses.Versions},
        refuses=("NOT_FOUND", "QUERY_TIMEOUT", "RESULT_TOO_LARGE"),
    ),
    Route(
        "POST",
        "/batch",
        batch.batch,
        _WRITE,
        tokens=True,
        body=bodies.BATCH,
        returns={200: responses.BatchResults},
        refuses=("NOT_FOUND", "PRECONDITION_FAILED", *_WHERE),
    ),
    Route(
        "GET",
        "/:collection/count",
        documents.count,
        _READ,
        ("filter",),
        tokens=True,
        returns={200: responses.Count},
        refuses=_FILTERED,
    ),
    Route(
        "GET",
        "/:collection/changes",
        changes.changes,
        _READ,
        ("since", "limit", "wait", "lastEventId", "filter", "select", "token"),
        tokens=True,
        returns={200: responses.Changes},
        refuses=(
            *_FILTERED,
            "TOO_MANY_RESIDUAL_QUERIES",
            "CURSOR_EXPIRED",
            "ORIGIN_NOT_ALLOWED",
            "QUERY_TIMEOUT",
            "SHUTTING_DOWN",
        ),
    ),
    Route(
        "GET",
        "/:collection/schema",
        collections.get_schema,
        _READ,
        returns=_SCHEMA,
        refuses=("NOT_FOUND", "QUERY_TIMEOUT"),
    ),
    Route("PUT", "/:collection/schema", collections.put_schema, _WRITE, body=bodies.SCHEMA, returns=_SCHEMA),
    Route(
        "DELETE",
        "/:collection/schema",
        collections.delete_schema,
        _WRITE,
        returns={200: responses.SchemaDeleted},
        refuses=("NOT_FOUND",),
    ),
    Route(
        "GET",
        "/collections",
        collections.collections,
        _READ,
        returns={200: responses.Collections},
        refuses=("QUERY_TIMEOUT", "RESULT_TOO_LARGE"),
    ),
    Route(
        "DELETE",
        "/:collection",
        collections.drop,
        _WRITE,
        ("confirm",),
        returns={200: responses.Dropped},
        refuses=("CONFIRMATION_NEEDED", "NOT_FOUND"),
    ),
    Route(
        "POST",
        "/realtime/token",
        tokens.mint_token,
        _READ,
        body=bodies.TOKEN_REQUEST,
        returns={200: responses.Token},
        refuses=("READ_ONLY_KEY",),
    ),
    Route(
        "POST",
        "/realtime/revoke",
        tokens.revoke_token,
        _WRITE,
        body=bodies.REVOCATION,
        returns={200: responses.Revoked},
    ),
)


async def openapi(services: Services, request: Request) -> Response:
    """This API, as OpenAPI 3.1."""
    return json_text_response(200, _openapi(services.settings))


@lru_cache(maxsize=1)
def _openapi(settings: Settings) -> bytes:
    return encode(openapi_document(ROUTES, OPEN_ROUTES, settings))


OPEN_ROUTES: Final = {
    "/healthz": OpenRoute(pages.healthz, responses.Health),
    "/readyz": OpenRoute(pages.readyz, responses.Health, ("NOT_READY", "STORAGE_GONE", "SHUTTING_DOWN")),
    "/metrics": OpenRoute(pages.metrics, metrics.CONTENT_TYPE, ("UNAUTHORIZED",)),
    "/openapi.json": OpenRoute(openapi, responses.OpenApi),
}


class _Pattern:
    """A route's pattern, taken apart: the segments that are fixed, and those that are parameters."""

    __slots__ = ("fixed", "parameters", "route")

    def __init__(self, route: Route, parts: list[str]) -> None:
        self.route = route
        self.fixed = [(n, part) for n, part in enumerate(parts) if not part.startswith(":")]
        self.parameters = [(n, part[1:]) for n, part in enumerate(parts) if part.startswith(":")]


# By the number of segments and the method: one to three patterns are left to compare.
_BY_LENGTH: Final[dict[int, dict[str, list[_Pattern]]]] = {}
for _route in ROUTES:
    _parts = _route.pattern.split("/")[1:]
    _BY_LENGTH.setdefault(len(_parts), {}).setdefault(_route.method, []).append(_Pattern(_route, _parts))


def match(method: str, segments: tuple[str, ...]) -> tuple[Route, dict[str, str]]:
    """Raises a 404, or a 405 that names the methods."""
    found = _find(_BY_LENGTH.get(len(segments), {}).get(method, ()), segments)
    if found is not None:
        return found
    allowed = methods(segments)
    if allowed:
        raise not_allowed(method, segments, allowed)
    raise ApiError(404, "NOT_FOUND", "There is nothing at this path")


def methods(segments: tuple[str, ...]) -> list[str]:
    """The methods of a path. `/collections` lists collections; removing one of that name is not advertised."""
    if "/" + "/".join(segments) in OPEN_ROUTES:
        return ["GET"]
    found = {
        method: match[0]
        for method, candidates in _BY_LENGTH.get(len(segments), {}).items()
        if (match := _find(candidates, segments)) is not None
    }
    fewest = min((len([*route.parameters()]) for route in found.values()), default=0)
    return [method for method, route in found.items() if len([*route.parameters()]) == fewest]


def not_allowed(method: str, segments: tuple[str, ...], allowed: list[str]) -> ApiError:
    # The only method of a collection's own path removes it, so it is not recommended.
    if allowed == ["DELETE"] and COLLECTION_NAME.match(segments[0]):
        instead = f"the documents are at /{segments[0]}/docs"
    else:
        instead = f"use {' or '.join(allowed)}"
    headers = {"Allow": ", ".join([*allowed, "OPTIONS"])}
    return ApiError(405, "METHOD_NOT_ALLOWED", f"{method} is not allowed here; {instead}", headers=headers)


def _find(candidates: Iterable[_Pattern], segments: tuple[str, ...]) -> tuple[Route, dict[str, str]] | None:
    for pattern in candidates:
        for n, part in pattern.fixed:
            if segments[n] != part:
                break
        else:
            return pattern.route, {name: segments[n] for n, name in pattern.parameters}
    return None


async def respond(services: Services, request: Request) -> Response:
    """The response to any request. Raises nothing but cancellation."""
    request.began = perf_counter()
    services.exchanges.begin(request)
    try:
        response = await _respond(services, request)
    except ApiError as error:
        response = _refused(services, request, error)
    except Exception:
        failure = ApiError(500, "INTERNAL", "Internal error; the server's log has the details")
        response = _refused(services, request, failure)
        fields = {"request": request.id}
        log.exception("%s %s failed", request.method, request.path[:200], extra={"fields": fields})
    allow_origin(services.settings, request.method, request.headers.get("origin"), response)
    response.headers["X-Request-Id"] = request.id
    return response


def _refused(services: Services, request: Request, error: ApiError) -> Response:
    services.exchanges.note(request, error)
    if not request.route:  # before it was looked up, but what is refused where shall be known
        with suppress(ApiError):
            request.route = match(request.method, request.segments())[0].pattern
    return error_response(error)


def _advertised(services: Services, request: Request) -> list[str]:
    """The methods of the path; none for a path that does not exist."""
    if request.path in services.assets:
        return ["GET"]
    try:
        return methods(request.segments())
    except ApiError:
        return []


async def _respond(services: Services, request: Request) -> Response:
    method = "GET" if request.method == "HEAD" else request.method
    if method == "OPTIONS":
        return preflight(_advertised(services, request))
    if method == "GET" and request.path in OPEN_ROUTES:
        request.route = request.path
        return await OPEN_ROUTES[request.path].handler(services, request)
    if request.path in services.assets:
        if method != "GET":
            raise not_allowed(method, request.segments(), ["GET"])
        request.route = request.path
        return pages.asset(services, request)
    if method == "GET" and (package := ANY_PACKAGE.fullmatch(request.path)):
        raise pages.another_package(services, package[1])
    segments = request.segments()
    if segments[:1] == (PREFIX,):
        admitted = request.identity = admit(services, request)
        route, parameters = match(method, segments)
        request.route = route.pattern
        check_access(admitted, route.access)
        return await route.handler(
            AdminCall(services, request, admitted, parameters, request.query(*route.query))
        )
    identity, token = authenticate(services.accounts, request)
    request.identity, request.token = identity, token
    services.limits.request(identity.key.id)
    services.accounts.used.add(identity.key.id)
    route, parameters = match(method, segments)
    request.route = route.pattern
    if token is not None and not route.tokens:
        raise ApiError(
            403, "TOKEN_NOT_ALLOWED", "A token is for documents and changes only; use an API key here"
        )
    if route.access is Access.WRITE:
        if token is None and not identity.key.secret:
            raise ApiError(403, "READ_ONLY_KEY", "This is a public key: it can read, not write")
        if not route.conditional and ("if-match" in request.headers or "if-none-match" in request.headers):
            raise bad_request("If-Match and If-None-Match are for one document; this call takes neither")
    return await route.handler(
        Call(services, request, identity, parameters, request.query(*route.query), token)
    )
