"""A row of the table of routes, and what follows from it.

Law: the errors of a route follow from its row, so that the OpenAPI document cannot forget it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final

from paperdb_trio.net.messages import Request, Response
from paperdb_trio.rest.bodies import Body
from paperdb_trio.services import Services


class Access(Enum):
    """Which key a route wants."""

    READ = "any key"
    WRITE = "a secret key"
    OWN = "an admin key, or a secret key for its own database"
    ADMIN = "an admin key"

    @property
    def administers(self) -> bool:
        """Whether the route is of the admin API."""
        return self in (Access.OWN, Access.ADMIN)


@dataclass(frozen=True, slots=True)
class Route:
    tag: str
    """The group in which the OpenAPI document lists it."""
    method: str
    pattern: str
    about: str
    """What it does: a sentence, and perhaps more."""
    handler: Callable[[Any], Awaitable[Response]]
    """It gets a `Call`, in the admin API an `AdminCall`."""
    access: Access
    query: tuple[str, ...] = ()
    conditional: bool = False
    """Whether it takes If-Match and If-None-Match."""
    tokens: bool = False
    """Whether it takes tokens, too: what is done stays within the token's rule for the collection."""
    body: Body | None = None
    returns: Mapping[int, type | None] = field(default_factory=dict)
    """The type of a response (`rest/responses.py`) by its status; None for one without a body."""
    refuses: tuple[str, ...] = ()
    """Error codes, beside those that follow from the rest of the row."""

    @property
    def streams(self) -> bool:
        """Whether it can respond with an event stream."""
        return "lastEventId" in self.query

    def parameters(self) -> Iterator[str]:
        """The parameters of the path."""
        return (part[1:] for part in self.pattern.split("/") if part.startswith(":"))


@dataclass(frozen=True, slots=True)
class OpenRoute:
    """A GET that needs no key."""

    about: str
    handler: Callable[[Services, Request], Awaitable[Response]]
    returns: type | str
    """The type of its JSON, or the content type."""
    refuses: tuple[str, ...] = ()


STATUS: Final = {
    **dict.fromkeys(
        (
            *("INVALID_REQUEST", "INVALID_JSON", "INVALID_DOCUMENT", "INVALID_COLLECTION", "INVALID_ID"),
            *("INVALID_FIELD", "INVALID_FILTER", "INVALID_SORT", "UNKNOWN_OPERATOR", "INVALID_INCREMENT"),
            *("INVALID_UNIQUE", "INVALID_SCHEMA", "VALIDATION_FAILED", "RESULT_TOO_LARGE", "TOO_MANY_INDEXES"),
            *("TOO_MANY_UNIQUE_FIELDS", "CONFIRMATION_NEEDED", "INVALID_CURSOR", "INVALID_STEP"),
            "FIELD_NOT_IN_TOKEN",
            "INVALID_OPERATION",
            "TOO_MANY_RESIDUAL_QUERIES",
            "DATABASE_NEEDED",
        ),
        400,
    ),
    **dict.fromkeys(("UNAUTHORIZED", "INVALID_TOKEN", "TOKEN_EXPIRED", "TOKEN_REVOKED", "KEY_REVOKED"), 401),
    **dict.fromkeys(("READ_ONLY_KEY", "PLAN_REQUIRED", "TOKEN_NOT_ALLOWED", "NOT_IN_TOKEN"), 403),
    **dict.fromkeys(("RULE", "READ_ONLY_TOKEN"), 403),
    **dict.fromkeys(("ORIGIN_NOT_ALLOWED", "OTHER_DATABASE", "ADMIN_KEY_NEEDED"), 403),
    "NOT_FOUND": 404,
    "BODY_TIMEOUT": 408,
    "CONFLICT": 409,
    "CURSOR_EXPIRED": 410,
    "RESPONSE_EXPIRED": 410,
    "PRECONDITION_FAILED": 412,
    "CONDITION_FAILED": 412,
    **dict.fromkeys(("BODY_TOO_LARGE", "DOCUMENT_TOO_LARGE", "TOO_MANY_DOCUMENTS", "BATCH_TOO_LARGE"), 413),
    "UNSUPPORTED_MEDIA_TYPE": 415,
    "IDEMPOTENCY_KEY_REUSED": 422,
    "RATE_LIMITED": 429,
    **dict.fromkeys(("TOO_MANY_CONNECTIONS", "TOO_MANY_PENDING_BYTES", "QUERY_TIMEOUT", "SHUTTING_DOWN"), 503),
    **dict.fromkeys(("NOT_READY", "STORAGE_ERROR", "STORAGE_GONE"), 503),
    "STORAGE_UNKNOWN": 504,
    "STORAGE_FULL": 507,
}
"""The status of each error code that a route may respond with."""
OF_THE_CONNECTION: Final = (
    *(
        "METHOD_NOT_ALLOWED",
        "HEAD_TIMEOUT",
        "EXPECTATION_FAILED",
        "HEAD_TOO_LARGE",
        "INTERNAL",
        "NOT_IMPLEMENTED",
    ),
)
"""Codes that have nothing to do with the route."""

_ANY: Final = ("INVALID_REQUEST", "UNAUTHORIZED")
_OF_DOCUMENTS: Final = ("PLAN_REQUIRED", "DATABASE_NEEDED", "OTHER_DATABASE")
_TOKEN: Final = ("INVALID_TOKEN", "TOKEN_EXPIRED", "TOKEN_REVOKED", "KEY_REVOKED")
_WITH_TOKEN: Final = frozenset({"NOT_IN_TOKEN", "FIELD_NOT_IN_TOKEN"})
_BUSY: Final = ("RATE_LIMITED", "TOO_MANY_CONNECTIONS", "TOO_MANY_PENDING_BYTES")
_BODY: Final = ("INVALID_JSON", "BODY_TIMEOUT", "BODY_TOO_LARGE", "UNSUPPORTED_MEDIA_TYPE")
_STORAGE: Final = ("SHUTTING_DOWN", "STORAGE_ERROR", "STORAGE_GONE", "STORAGE_UNKNOWN", "STORAGE_FULL")


def refusals(route: Route) -> dict[int, list[str]]:
    """The error codes that a route may respond with, by their status."""
    codes = {*_ANY, *_BUSY, *route.refuses}
    codes |= _of_administration(route) if route.access.administers else {*_OF_DOCUMENTS, *_TOKEN}
    if "collection" in route.parameters():
        codes.add("INVALID_COLLECTION")
    if "id" in route.parameters():
        codes.add("INVALID_ID")
    if route.conditional:
        codes.add("PRECONDITION_FAILED")
    if route.body is not None:
        codes |= {*_BODY, *route.body.refuses}
    codes |= _WITH_TOKEN if route.tokens else {"TOKEN_NOT_ALLOWED"}
    if route.access is Access.WRITE and route.tokens:
        codes |= {"RULE", "READ_ONLY_TOKEN"}
    if route.access is Access.WRITE:
        codes |= {"READ_ONLY_KEY", "IDEMPOTENCY_KEY_REUSED", "RESPONSE_EXPIRED", *_STORAGE}
    return by_status(codes)


def _of_administration(route: Route) -> set[str]:
    codes = {"READ_ONLY_KEY"}
    if route.access is Access.ADMIN:
        codes.add("ADMIN_KEY_NEEDED")
    if route.parameters():
        codes.add("NOT_FOUND")
    return codes | {*_STORAGE, "QUERY_TIMEOUT"}


def by_status(codes: Iterable[str]) -> dict[int, list[str]]:
    found: dict[int, list[str]] = {}
    for code in sorted(codes):
        found.setdefault(STATUS[code], []).append(code)
    return dict(sorted(found.items()))
