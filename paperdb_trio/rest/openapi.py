"""The OpenAPI document, made from the server's own tables, so that it is complete.

Law: no I/O, and no shape of its own: parameters, bodies, responses and refusals come from their modules.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any, Final

import msgspec

from paperdb_trio import __version__
from paperdb_trio.config import Settings
from paperdb_trio.rest import responses
from paperdb_trio.rest.bodies import ID, PATH, Body
from paperdb_trio.rest.call import MAX_IDEMPOTENCY_KEY
from paperdb_trio.rest.parameters import PARAMETERS
from paperdb_trio.rest.table import OF_THE_CONNECTION, STATUS, Access, OpenRoute, Route, by_status, refusals
from paperdb_trio.web.assets import CONTENT_TYPES

Json = dict[str, Any]

_HEADERS: Final = {
    "ETag": ("The seq of the document's last change, in quotes", {"type": "string", "pattern": '^"[0-9]+"$'}),
    "CacheControl": ("No cache may keep it", {"type": "string", "const": "no-store"}),
    "RetryAfter": ("Seconds to wait", {"type": "integer", "minimum": 1}),
    "WWWAuthenticate": ("What the server expects: `Bearer`", {"type": "string"}),
    "Allow": ("The path's methods, separated by commas", {"type": "string"}),
}
_SENT: Final = {
    "If-Match": 'ETags, such as `"7"`, of which the document must have one; `*`: it must exist. Else 412',
    "If-None-Match": "ETags that the document must not have; `*`: it must not exist. Else 412 (a GET: 304)",
    "Idempotency-Key": "A key that the client makes, such as a UUID. A repeated request with the same key, "
    "within a day, gets the first response and writes nothing",
    "Last-Event-ID": "Where a stream resumes: the seq of the last event seen. It takes precedence over `since`",
}
_BEARER: Final = (
    "An API key, or a token. With an admin key, a header names the database, except in the admin API: "
    "`X-PaperDB-Database: default`"
)
_WITH_STATUS: Final = {401: "WWW-Authenticate", 405: "Allow", 429: "Retry-After", 503: "Retry-After"}
"""The header that comes with an error status."""
_TEXT: Final = {"schema": {"type": "string"}}
_BY_ID: Final = "/:collection/docs/:id"


def openapi_document(routes: Iterable[Route], open_routes: Mapping[str, OpenRoute], settings: Settings) -> Json:
    """OpenAPI 3.1."""
    made = _Document(settings, [route for route in routes if route.pattern == _BY_ID])
    for route in routes:
        made.add(route)
    for path, open_route in open_routes.items():
        made.add_open(path, open_route)
    made.add_assets()
    return made.finished()


class _Document:
    def __init__(self, settings: Settings, by_id: list[Route]) -> None:
        self._settings = settings
        self._by_id = [route.handler.__name__ for route in by_id]
        self._paths: dict[str, Json] = {}
        self._bodies: dict[str, Body] = {}
        self._types: list[type] = [responses.Error, responses.SelectedDocument, responses.Change]
        self._types += [responses.Version, responses.BatchResult, responses.Collection, responses.Document]
        self._errors: dict[tuple[str, ...], str] = {}

    def add(self, route: Route) -> None:
        operation = {
            **_named(route),
            "tags": [route.tag],
            "parameters": [*map(_path_parameter, route.parameters()), *self._query(route), *_headers(route)],
            "responses": {
                **{str(status): self._response(route, status, type) for status, type in route.returns.items()},
                **self._refusals(route.handler.__name__, refusals(route)),
                "default": _ref("responses", "Default"),
            },
        }
        operation["description"] = f"{operation.get('description', '')} Needs {route.access.value}.".strip()
        if route.body is not None:
            self._bodies[route.body.name] = route.body
            operation["requestBody"] = {"required": True, "content": _json(_ref("schemas", route.body.name))}
        if "token" in route.query:
            operation["security"] = [{"key": []}, {"header": []}, {"token": []}]
        path = "/".join(f"{{{part[1:]}}}" if part[:1] == ":" else part for part in route.pattern.split("/"))
        self._paths.setdefault(path, {})[route.method.lower()] = operation

    def add_open(self, path: str, route: OpenRoute) -> None:
        returns = route.returns
        content = {returns: _TEXT} if isinstance(returns, str) else self._content(returns)
        refused = self._refusals(route.handler.__name__, by_status(route.refuses))
        self._add_page(path, _named(route), {"200": {"description": "OK", "content": content}, **refused})

    def add_assets(self) -> None:
        """The dashboard and the files of the SDK, which a client may cache and revalidate by ETag."""
        pages = {
            "page": ("/", "The dashboard", (".html",), ""),
            "dashboard": ("/dashboard/{file}", "A file of the dashboard", (".js", ".css"), "app.js"),
            "sdk": ("/sdk/{file}", "A file of an SDK", (".js", ".d.ts", ".tgz", ".whl", ".zip"), "paperdb.js"),
        }
        for id, (path, summary, suffixes, example) in pages.items():
            kinds = [CONTENT_TYPES[suffix] for suffix in suffixes]
            found = {
                "description": "OK",
                "headers": {"ETag": _TEXT},
                "content": dict.fromkeys(kinds, _TEXT),
            }
            about: Json = {"operationId": id, "summary": summary, "parameters": [_header("If-None-Match")]}
            possible = {"200": found, "304": {"description": "Not Modified"}}
            if example:
                about["parameters"].append({**_path_parameter("file"), "example": example})
                possible |= self._refusals(id, by_status(["UNAUTHORIZED", "NOT_FOUND"]))
            self._add_page(path, about, possible)

    def _add_page(self, path: str, about: Json, possible: Json) -> None:
        possible = {**possible, "default": _ref("responses", "Default")}
        self._paths[path] = {"get": {**about, "tags": ["pages"], "security": [], "responses": possible}}

    def _query(self, route: Route) -> Iterable[Json]:
        for name in route.query:
            if name == "token":  # a security scheme
                continue
            parameter = PARAMETERS[name]
            made = {
                "name": name,
                "in": "query",
                "required": parameter.required,
                "description": parameter.about,
                "schema": parameter.schema(self._settings),
            }
            yield {**made, "example": parameter.example} if parameter.example else made

    def _response(self, route: Route, status: int, type: type | None) -> Json:
        headers = {"Cache-Control": _ref("headers", "CacheControl")}
        if type is None or hasattr(type, "HAS_ETAG"):
            headers["ETag"] = _ref("headers", "ETag")
        response: Json = {"description": HTTPStatus(status).phrase, "headers": headers}
        if type is not None:
            response["content"] = self._content(type)
            if route.streams:
                response["content"]["text/event-stream"] = {
                    "schema": {"type": "string", "description": "A `Change` as JSON in each event's `data`"}
                }
        if type is responses.SelectedDocument and route.access is Access.WRITE:
            response["links"] = {name: _ref("links", name) for name in self._by_id}
        return response

    def _content(self, type: type) -> Json:
        if type not in self._types:
            self._types.append(type)
        return _json(_ref("schemas", type.__name__))

    def _refusals(self, operation: str, codes: Mapping[int, list[str]]) -> Json:
        """One component for all operations with the same codes; it has the name of the first, if any differ."""
        found = {}
        for status, some in codes.items():
            first = f"Error{status}"
            name = f"{first}_{operation}" if first in self._errors.values() else first
            found[str(status)] = _ref("responses", self._errors.setdefault(tuple(some), name))
        return found

    def finished(self) -> Json:
        _, schemas = msgspec.json.schema_components(self._types, ref_template="#/components/schemas/{name}")
        for type in self._types:
            if type.__doc__:
                schemas[type.__name__]["description"] = " ".join(type.__doc__.split())
            if hasattr(type, "EXAMPLE"):
                schemas[type.__name__]["examples"] = [type.EXAMPLE]
        for body in self._bodies.values():
            schemas[body.name] = {**body.schema(self._settings), "examples": [body.example]}
        return {
            "openapi": "3.1.0",
            "info": {
                "title": "PaperDB",
                "version": __version__,
                "license": {"name": "MIT", "identifier": "MIT"},
            },
            "paths": self._paths,
            "components": {
                "schemas": {"Id": ID, **schemas},
                "responses": {
                    **{name: _refusal(codes) for codes, name in self._errors.items()},
                    "Default": _refusal(OF_THE_CONNECTION),
                },
                "headers": {
                    name: {"description": about, "schema": schema} for name, (about, schema) in _HEADERS.items()
                },
                "links": {
                    name: {
                        "operationId": name,
                        "parameters": {"collection": "$request.path.collection", "id": "$response.body#/_id"},
                    }
                    for name in self._by_id
                },
                "securitySchemes": {
                    "key": {"type": "http", "scheme": "bearer", "description": _BEARER},
                    "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
                    "token": {
                        "type": "apiKey",
                        "in": "query",
                        "name": "token",
                        "description": PARAMETERS["token"].about,
                    },
                },
            },
            "security": [{"key": []}, {"header": []}],
        }


def _named(route: Route | OpenRoute) -> Json:
    """The first sentence about a route is the summary, the rest the description."""
    summary, _, more = route.about.partition(". ")
    named = {"operationId": route.handler.__name__, "summary": summary.rstrip(".")}
    return {**named, "description": more} if more else named


def _ref(kind: str, name: str) -> Json:
    return {"$ref": f"#/components/{kind}/{name}"}


def _json(schema: Json) -> Json:
    return {"application/json": {"schema": schema}}


def _path_parameter(name: str) -> Json:
    return {"name": name, "in": "path", "required": True, "schema": PATH.get(name, {"type": "string"})}


def _header(name: str) -> Json:
    schema: Json = {"type": "string"}
    if name == "Idempotency-Key":
        schema |= {"minLength": 1, "maxLength": MAX_IDEMPOTENCY_KEY, "pattern": "^[!-~]+$"}
    return {"name": name, "in": "header", "description": _SENT[name], "schema": schema}


def _headers(route: Route) -> list[Json]:
    names = ["If-Match", "If-None-Match"] if route.conditional else []
    names += ["Idempotency-Key"] if route.access is Access.WRITE else []
    return list(map(_header, [*names, *(["Last-Event-ID"] if route.streams else [])]))


def _refusal(codes: Iterable[str]) -> Json:
    schema = {"allOf": [_ref("schemas", "Error"), {"properties": {"code": {"enum": [*codes]}}}]}
    response = {"description": ", ".join(codes), "content": _json(schema)}
    names = {_WITH_STATUS[status] for code in codes if (status := STATUS.get(code, 405)) in _WITH_STATUS}
    if names:
        response["headers"] = {name: _ref("headers", name.replace("-", "")) for name in sorted(names)}
    return response
