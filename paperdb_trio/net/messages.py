"""A request as the handlers see it, and their response. No I/O."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import parse_qsl, unquote_to_bytes

from paperdb_trio.auth.accounts import Identity
from paperdb_trio.auth.tokens import Grant
from paperdb_trio.errors import ApiError, bad_request
from paperdb_trio.model import encode
from paperdb_trio.net.parameters import parse_parameters
from paperdb_trio.store.protocol import Topic

JSON: Final = "application/json"
NO_STORE: Final = "no-store"
"""Documents are for the owner of the key only: no cache may keep them."""


REQUEST: Final = "paperdb.request"
"""The key of the `Request` in an ASGI scope."""


@dataclass(slots=True)
class Request:
    """`path` is still percent-encoded, `headers` have lower-case names; `read_body(most)` raises ApiErrors.

    What is noted while it is responded to: `id`; `logged`: it gets an access line; `began`, by
    `perf_counter`, if a route sees it; `route`, the pattern that matched, or the path of what needs no key;
    `identity` and `token`, once they are known to be valid; `code` and `reason`, the code and the sentence of a
    refusal.
    """

    method: str
    path: str
    query_string: str
    headers: Mapping[str, str]
    read_body: Callable[[int], Awaitable[bytes]]
    peer: str = ""
    began: float = 0.0
    id: str = ""
    logged: bool = False
    route: str = ""
    identity: Identity | None = None
    token: Grant | None = None
    code: str = ""
    reason: str = ""

    def segments(self) -> tuple[str, ...]:
        """The path's segments, each decoded separately, because `%2F` in an id is not a separator."""
        if "%" not in self.path:
            return tuple(self.path.split("/")[1:])
        try:
            return tuple(unquote_to_bytes(part).decode() for part in self.path.split("/")[1:])
        except UnicodeDecodeError:
            raise bad_request("The path is not percent-encoded UTF-8") from None

    def query(self, *known: str) -> dict[str, str]:
        """The query's parameters, as `parse_parameters` returns them."""
        return parse_parameters(self.query_string, known)

    def query_token(self) -> str:
        """The query's `token`, or an empty string."""
        try:
            return self.query_string and dict(parse_qsl(self.query_string, max_num_fields=100)).get("token", "")
        except ValueError:  # too many fields
            return ""


@dataclass(slots=True)
class Response:
    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class EventStream(Response):
    """An endless response: the changes of a topic after `position`, as server-sent events."""

    grant: Grant
    topic: Topic
    position: int


def json_response(status: int, value: Any) -> Response:
    return json_text_response(status, encode(value))


def json_text_response(status: int, text: bytes) -> Response:
    return Response(status, text, {"Content-Type": JSON, "Cache-Control": NO_STORE})


def document_response(status: int, data: bytes, tag: int | str) -> Response:
    return Response(status, data, {"Content-Type": JSON, "Cache-Control": NO_STORE, "ETag": f'"{tag}"'})


def error_response(error: ApiError) -> Response:
    response = json_response(error.status, error.body())
    response.headers.update(error.headers)
    return response


def body_too_late(seconds: float) -> ApiError:
    return ApiError(408, "BODY_TIMEOUT", f"The body did not arrive within {seconds:g} s")


def body_too_large(max_bytes: int) -> ApiError:
    return ApiError(413, "BODY_TOO_LARGE", f"The request's body is larger than {max_bytes:,} bytes")
