"""The OpenAPI document, made from the table of routes, so that it cannot forget one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from paperdb_trio import __version__
from paperdb_trio.rest.table import Access, Route

_PARAMETERS: Final[dict[str, tuple[dict[str, Any], str]]] = {
    "filter": ({"type": "string"}, 'A filter as JSON, like {"age": {"gte": 18}}'),
    "sort": ({"type": "string"}, "Fields, separated by commas; - before one for descending"),
    "limit": ({"type": "integer", "minimum": 1, "maximum": 1000, "default": 100}, "At most so many"),
    "offset": ({"type": "integer", "minimum": 0, "default": 0}, "Leave out so many first"),
    "select": ({"type": "string"}, "Only these fields, separated by commas"),
    "count": ({"type": "boolean", "default": False}, "Add the total of all that match"),
    "atomic": ({"type": "boolean", "default": False}, "All or none"),
    "since": ({"type": "string"}, "The seq of the last change seen, or now"),
    "confirm": ({"type": "string"}, "The collection's name again"),
    "lastEventId": ({"type": "string"}, "What polyfills of EventSource send for Last-Event-ID"),
    "wait": ({"type": "integer", "minimum": 0, "default": 0}, "Seconds to wait for a change"),
}
_ERROR: Final = {
    "description": "An error",
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["error", "code"],
                "properties": {"error": {"type": "string"}, "code": {"type": "string"}},
            }
        }
    },
}


def openapi_document(routes: Iterable[Route]) -> dict[str, Any]:
    """OpenAPI 3.1."""
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        names = [part[1:] for part in route.pattern.split("/") if part.startswith(":")]
        path = "/".join(
            f"{{{part[1:]}}}" if part.startswith(":") else part for part in route.pattern.split("/")
        )
        paths.setdefault(path, {})[route.method.lower()] = _operation(route, names)
    return {
        "openapi": "3.1.0",
        "info": {"title": "PaperDB", "version": __version__, "license": {"name": "MIT", "identifier": "MIT"}},
        "paths": paths,
        "components": {
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "description": "An API key"},
                "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
                "token": {"type": "apiKey", "in": "query", "name": "token", "description": "A realtime token"},
            }
        },
        "security": [{"bearer": []}, {"header": []}],
    }


def _operation(route: Route, names: list[str]) -> dict[str, Any]:
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names
    ]
    for name in route.query:
        if name == "token":  # a security scheme
            continue
        schema, description = _PARAMETERS[name]
        parameters.append({"name": name, "in": "query", "schema": schema, "description": description})
    operation: dict[str, Any] = {
        "operationId": route.handler.__name__,
        "summary": (route.handler.__doc__ or "").strip().partition("\n")[0].rstrip("."),
        "description": f"Needs {route.access.value}.",
        "parameters": parameters,
        "responses": {"2XX": {"description": "Done"}, "default": _ERROR},
    }
    if route.method in ("POST", "PUT", "PATCH"):
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": {}}}}
    if route.access is Access.LISTEN:
        operation["security"] = [{"bearer": []}, {"header": []}, {"token": []}]
    return operation
