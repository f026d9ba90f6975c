"""The one table of routes: what each is for, who may call it, what it takes and what it returns."""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from paperdb_trio.config import Settings
from paperdb_trio.model import encode
from paperdb_trio.net.messages import Request, Response, json_text_response
from paperdb_trio.rest import batch, bodies, changes, collections, documents, metrics, pages, responses, tokens
from paperdb_trio.rest.admin_routes import ADMIN_ROUTES
from paperdb_trio.rest.openapi import openapi_document
from paperdb_trio.rest.table import Access, OpenRoute, Route
from paperdb_trio.services import Services

_READ, _WRITE = Access.READ, Access.WRITE
_DOCUMENT: Final = {200: responses.SelectedDocument}
_SCHEMA: Final = {200: responses.Schema}
_FILTERED: Final = ("INVALID_FILTER", "INVALID_JSON", "UNKNOWN_OPERATOR", "INVALID_FIELD", "QUERY_TIMEOUT")
_WHERE: Final = ("INVALID_FILTER", "INVALID_JSON", "UNKNOWN_OPERATOR", "INVALID_FIELD", "CONDITION_FAILED")
_FOUND: Final = (*_FILTERED, "INVALID_SORT", "INVALID_CURSOR", "RESULT_TOO_LARGE", "READ_ONLY_KEY")

ROUTES: Final = (
    *ADMIN_ROUTES,
    Route(
        "documents",
        "POST",
        "/:collection/docs",
        "Insert a document.",
        documents.insert,
        _WRITE,
        tokens=True,
        body=bodies.NEW_DOCUMENT,
        returns={201: responses.SelectedDocument},
    ),
    Route(
        "documents",
        "POST",
        "/:collection/bulk",
        "Insert many documents.",
        documents.insert_bulk,
        _WRITE,
        ("atomic",),
        tokens=True,
        body=bodies.BULK,
        returns={200: responses.Bulk},
    ),
    Route(
        "documents",
        "GET",
        "/:collection/docs",
        "Find documents.",
        documents.find,
        _READ,
        ("filter", "sort", "limit", "offset", "select", "after", "count", "explain"),
        tokens=True,
        returns={200: responses.Page},
        refuses=_FOUND,
    ),
    Route(
        "documents",
        "POST",
        "/:collection/query",
        "Find documents, with the parameters as a body.",
        documents.query,
        _READ,
        body=bodies.QUERY,
        tokens=True,
        returns={200: responses.Page},
        refuses=_FOUND,
    ),
    Route(
        "documents",
        "GET",
        "/:collection/docs/:id",
        "Get one document.",
        documents.get,
        _READ,
        ("select",),
        conditional=True,
        tokens=True,
        returns={200: responses.SelectedDocument, 304: None},
        refuses=("NOT_FOUND", "INVALID_FIELD", "QUERY_TIMEOUT"),
    ),
    Route(
        "documents",
        "PATCH",
        "/:collection/docs/:id",
        "Merge into a document.",
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
        "documents",
        "PUT",
        "/:collection/docs/:id",
        "Replace a document, or insert it at this id.",
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
        "documents",
        "DELETE",
        "/:collection/docs/:id",
        "Delete a document.",
        documents.delete,
        _WRITE,
        ("where",),
        tokens=True,
        conditional=True,
        returns={200: responses.Deleted},
        refuses=("NOT_FOUND", *_WHERE),
    ),
    Route(
        "documents",
        "GET",
        "/:collection/docs/:id/history",
        "List the versions of a document that the change log holds, newest first.",
        documents.history,
        _READ,
        ("limit",),
        returns={200: responses.Versions},
        refuses=("NOT_FOUND", "QUERY_TIMEOUT", "RESULT_TOO_LARGE"),
    ),
    Route(
        "batch",
        "POST",
        "/batch",
        "Write several documents, all or none.",
        batch.batch,
        _WRITE,
        tokens=True,
        body=bodies.BATCH,
        returns={200: responses.BatchResults},
        refuses=("NOT_FOUND", "PRECONDITION_FAILED", *_WHERE),
    ),
    Route(
        "documents",
        "GET",
        "/:collection/count",
        "Count documents.",
        documents.count,
        _READ,
        ("filter",),
        tokens=True,
        returns={200: responses.Count},
        refuses=_FILTERED,
    ),
    Route(
        "changes",
        "GET",
        "/:collection/changes",
        "Read the change log: a page, or an event stream.",
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
        "collections",
        "GET",
        "/:collection/schema",
        "Get the schema of a collection.",
        collections.get_schema,
        _READ,
        returns=_SCHEMA,
        refuses=("NOT_FOUND", "QUERY_TIMEOUT"),
    ),
    Route(
        "collections",
        "PUT",
        "/:collection/schema",
        "Set the schema of a collection.",
        collections.put_schema,
        _WRITE,
        body=bodies.SCHEMA,
        returns=_SCHEMA,
    ),
    Route(
        "collections",
        "DELETE",
        "/:collection/schema",
        "Remove the schema of a collection.",
        collections.delete_schema,
        _WRITE,
        returns={200: responses.SchemaDeleted},
        refuses=("NOT_FOUND",),
    ),
    Route(
        "collections",
        "GET",
        "/collections",
        "List the collections.",
        collections.collections,
        _READ,
        returns={200: responses.Collections},
        refuses=("QUERY_TIMEOUT", "RESULT_TOO_LARGE"),
    ),
    Route(
        "collections",
        "DELETE",
        "/:collection",
        "Remove a collection.",
        collections.drop,
        _WRITE,
        ("confirm",),
        returns={200: responses.Dropped},
        refuses=("CONFIRMATION_NEEDED", "NOT_FOUND"),
    ),
    Route(
        "tokens",
        "POST",
        "/realtime/token",
        "Mint a token.",
        tokens.mint_token,
        _READ,
        body=bodies.TOKEN_REQUEST,
        returns={200: responses.Token},
        refuses=("READ_ONLY_KEY",),
    ),
    Route(
        "tokens",
        "POST",
        "/realtime/revoke",
        "Revoke a token, or all tokens of a subject.",
        tokens.revoke_token,
        _WRITE,
        body=bodies.REVOCATION,
        returns={200: responses.Revoked},
    ),
)


async def openapi(services: Services, request: Request) -> Response:
    return json_text_response(200, _openapi(services.settings))


@lru_cache(maxsize=1)
def _openapi(settings: Settings) -> bytes:
    return encode(openapi_document(ROUTES, OPEN_ROUTES, settings))


OPEN_ROUTES: Final = {
    "/healthz": OpenRoute("Whether the process responds.", pages.healthz, responses.Health),
    "/readyz": OpenRoute(
        "Whether requests should be sent here. Not while draining, and not while the file cannot be used.",
        pages.readyz,
        responses.Health,
        ("NOT_READY", "STORAGE_GONE", "SHUTTING_DOWN"),
    ),
    "/metrics": OpenRoute(
        "Counters, gauges and histograms in Prometheus's text format. "
        "Without a key they reveal nothing about any one database.",
        pages.metrics,
        metrics.CONTENT_TYPE,
        ("UNAUTHORIZED",),
    ),
    "/openapi.json": OpenRoute("This API, as OpenAPI 3.1.", openapi, responses.OpenApi),
}
