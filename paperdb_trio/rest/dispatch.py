"""The way from a request to its handler.

Law: every door (our own loop, Quart) calls `respond` and nothing else.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from contextlib import suppress
from time import perf_counter
from typing import Final

from paperdb_trio.errors import ApiError, bad_request
from paperdb_trio.model import COLLECTION_NAME
from paperdb_trio.net.cors import allow_origin, preflight
from paperdb_trio.net.messages import Request, Response, error_response
from paperdb_trio.rest import pages
from paperdb_trio.rest.admin_call import PREFIX, AdminCall, admit, check_access
from paperdb_trio.rest.call import Call, authenticate
from paperdb_trio.rest.routes import OPEN_ROUTES, ROUTES
from paperdb_trio.rest.table import Access, Route
from paperdb_trio.services import Services
from paperdb_trio.web.assets import ANY_PACKAGE

log = logging.getLogger("paperdb.rest")


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
