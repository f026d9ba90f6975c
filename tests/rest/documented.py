"""Whether a response is one that the OpenAPI document describes: its status, its error code, its JSON."""

from __future__ import annotations

from functools import cache
from urllib.parse import unquote

import httpx
import jsonschema_rs

from paperdb_trio.config import Settings
from paperdb_trio.errors import ApiError
from paperdb_trio.rest.dispatch import match
from paperdb_trio.rest.openapi import openapi_document
from paperdb_trio.rest.routes import OPEN_ROUTES, ROUTES

DOCUMENT = openapi_document(ROUTES, OPEN_ROUTES, Settings())


def check_documented(response: httpx.Response) -> None:
    """For the event hooks of an httpx client. It skips paths without a route, and event streams."""
    request = response.request
    path = request.url.raw_path.decode().partition("?")[0]
    if path == "/" or response.headers.get("content-type") != "application/json" or request.method == "HEAD":
        return
    try:
        route, _ = match(request.method, tuple(unquote(part) for part in path.split("/")[1:]))
    except ApiError:
        return
    response.read()
    _validator(route.method, route.pattern, response.status_code).validate(response.json())


@cache
def _validator(method: str, pattern: str, status: int) -> jsonschema_rs.Validator:
    path = "/".join(f"{{{part[1:]}}}" if part[:1] == ":" else part for part in pattern.split("/"))
    responses = DOCUMENT["paths"][path][method.lower()]["responses"]
    described = responses.get(str(status))
    assert described, f"{method} {pattern}: {status} is not in /openapi.json"
    if "$ref" in described:
        described = DOCUMENT["components"]["responses"][described["$ref"].rpartition("/")[2]]
    schema = described["content"]["application/json"]["schema"]
    return jsonschema_rs.validator_for({**schema, "components": DOCUMENT["components"]})
