"""Every request that the SDK makes, and how its answer is read: once, for both façades.

Law: no I/O and no credentials; a request in plain values, an answer's bytes in, a result or a
`PaperDBError` out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar
from urllib.parse import quote, urlsplit

import msgspec

from paperdb_trio.client.errors import PaperDBError
from paperdb_trio.client.types import BulkFailure, BulkResult, Document, Documents

T = TypeVar("T")

COLLECTION_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")
_ETAG = re.compile(r'(?:W/)?"(\d+)"\Z')


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    body: bytes
    etag: str = ""


@dataclass(frozen=True, slots=True)
class Request(Generic[T]):
    """`path` begins with a slash and is percent-encoded; `body` is JSON text or None.

    `collection` is the one that is written to, None for reads. `repeatable`: a second try after a network
    failure can do no harm.
    """

    method: str
    path: str
    read: Callable[[Answer], T]
    query: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None
    if_match: int | None = None
    collection: str | None = None
    repeatable: bool = False

    def result(self, answer: Answer) -> T:
        """Read the answer. Raises `PaperDBError` for anything but a 2xx with the expected JSON."""
        if not 200 <= answer.status < 300:
            raise refusal(answer.status, answer.body)
        try:
            return self.read(answer)
        except (msgspec.MsgspecError, KeyError, TypeError, ValueError) as error:
            raise PaperDBError(
                answer.status, "BAD_ANSWER", f"The answer is not what PaperDB answers: {error!r}"
            ) from None


def check_collection(name: str) -> str:
    """Raises `PaperDBError` 400 `INVALID_COLLECTION`, as the server would, before anything is sent."""
    if not isinstance(name, str) or not COLLECTION_NAME.match(name):
        raise PaperDBError(
            400,
            "INVALID_COLLECTION",
            f"Invalid collection name: '{name}'. Use letters, numbers, underscores, and hyphens only.",
        )
    return name


def check_url(url: str, schemes: Sequence[str]) -> str:
    """`url` without its trailing slashes. Raises ValueError for what is no URL with one of `schemes`."""
    parts = urlsplit(url)
    if parts.scheme not in schemes or not parts.hostname or parts.query or parts.fragment:
        raise ValueError(f"Invalid URL {url!r}; expected something like {schemes[0]}://127.0.0.1:8000")
    if parts.username or parts.password:
        raise ValueError("The URL holds a user name or password; PaperDB takes an api_key instead")
    return url.rstrip("/")


def refusal(status: int, body: bytes) -> PaperDBError:
    """The error in an answer's body; if there is none, one that quotes the beginning of the body."""
    try:
        value = msgspec.json.decode(body)
        extra = {str(name): item for name, item in value.items() if name not in ("error", "code")}
        return PaperDBError(status, str(value.get("code") or f"HTTP_{status}"), str(value["error"]), extra)
    except (msgspec.MsgspecError, UnicodeDecodeError, AttributeError, KeyError):
        text = body[:200].decode("utf-8", "replace").strip()
        return PaperDBError(status, f"HTTP_{status}", text or f"The server answered with HTTP {status}")


def network(error: Exception) -> PaperDBError:
    """Status 0, code `NETWORK`, for an exception of the transport, in the words of what caused it."""
    cause: BaseException | None = error
    while cause is not None and not str(cause):  # as when a certificate is not trusted
        cause = cause.__cause__ or cause.__context__
    return PaperDBError(0, "NETWORK", f"No answer from the server: {cause or type(error).__name__}")


# --- documents -----------------------------------------------------------------------------------


def insert(collection: str, document: Mapping[str, Any]) -> Request[Document]:
    return Request("POST", _path(collection, "docs"), _document, body=_encode(document), collection=collection)


def insert_bulk(collection: str, documents: Iterable[Mapping[str, Any]], atomic: bool) -> Request[BulkResult]:
    query = {"atomic": "true"} if atomic else {}
    body = _encode([dict(document) for document in documents])
    return Request("POST", _path(collection, "bulk"), _bulk, query, body, collection=collection)


def find(
    collection: str,
    filter: Mapping[str, Any] | None,
    sort: str | Sequence[str] | None,
    limit: int | None,
    offset: int | None,
    select: str | Sequence[str] | None,
    count: bool,
) -> Request[Documents]:
    query = {}
    if filter is not None:
        query["filter"] = _encode(filter).decode()
    for name, value in (("sort", _list(sort)), ("limit", limit), ("offset", offset), ("select", _list(select))):
        if value is not None:
            query[name] = str(value)
    if count:
        query["count"] = "true"
    return Request("GET", _path(collection, "docs"), _documents, query, repeatable=True)


def get(collection: str, id: str, select: str | Sequence[str] | None) -> Request[Document]:
    fields = _list(select)
    query = {} if fields is None else {"select": fields}
    return Request("GET", _path(collection, "docs", id), _document, query, repeatable=True)


def write(
    method: str, collection: str, id: str, fields: Mapping[str, Any], if_match: int | None
) -> Request[Document]:
    """PATCH (shallow merge) or PUT (replace)."""
    return Request(
        method,
        _path(collection, "docs", id),
        _document,
        body=_encode(fields),
        if_match=if_match,
        collection=collection,
    )


def delete(collection: str, id: str, if_match: int | None) -> Request[None]:
    return Request("DELETE", _path(collection, "docs", id), _nothing, if_match=if_match, collection=collection)


def count(collection: str, filter: Mapping[str, Any] | None) -> Request[int]:
    query = {} if filter is None else {"filter": _encode(filter).decode()}
    return Request("GET", _path(collection, "count"), _count, query, repeatable=True)


# --- schemas and tokens --------------------------------------------------------------------------


def put_schema(collection: str, properties: Mapping[str, Any]) -> Request[None]:
    return Request(
        "PUT", _path(collection, "schema"), _nothing, body=_encode({"properties": properties}), repeatable=True
    )


@dataclass(frozen=True, slots=True)
class Minted:
    token: str = field(repr=False)
    expires_in: float


def mint(collections: Iterable[str], permissions: Sequence[str], expires_in: int) -> Request[Minted]:
    if isinstance(collections, str) or isinstance(permissions, str):
        raise TypeError("collections and permissions are lists of strings, not a string")
    body = {"collections": list(collections), "permissions": list(permissions), "expiresIn": expires_in}
    return Request("POST", "/realtime/token", _minted, body=_encode(body), repeatable=True)


# --- parts ---------------------------------------------------------------------------------------


def _path(collection: str, *rest: str) -> str:
    for part in rest:
        if not isinstance(part, str) or part in ("", ".", ".."):
            raise PaperDBError(400, "INVALID_ID", f"Invalid document id: {part!r}. Use a string.")
    return "/" + "/".join(quote(part, safe="") for part in (check_collection(collection), *rest))


def _list(value: str | Sequence[str] | None) -> str | None:
    return value if value is None or isinstance(value, str) else ",".join(value)


def _encode(value: Any) -> bytes:
    """JSON text. Raises TypeError for what JSON has no word for (datetimes become RFC 3339 strings)."""
    return msgspec.json.encode(value)


def _decode(answer: Answer) -> Any:
    return msgspec.json.decode(answer.body)


def _document(answer: Answer) -> Document:
    document = Document(_decode(answer))
    if match := _ETAG.match(answer.etag):
        document.seq = int(match[1])
    return document


def _documents(answer: Answer) -> Documents:
    value = _decode(answer)
    return Documents(
        map(Document, value["documents"]),
        limit=value["limit"],
        offset=value["offset"],
        has_more=value["hasMore"],
        total=value.get("total"),
    )


def _bulk(answer: Answer) -> BulkResult:
    value = _decode(answer)
    errors = [BulkFailure(item["index"], item["error"], item["code"]) for item in value.get("errors", ())]
    return BulkResult(
        value["inserted"], value["failed"], [Document(item) for item in value["documents"]], errors
    )


def _count(answer: Answer) -> int:
    return int(_decode(answer)["count"])


def _minted(answer: Answer) -> Minted:
    value = _decode(answer)
    return Minted(str(value["token"]), float(value["expiresIn"]))


def _nothing(answer: Answer) -> None:
    return None
