"""Every request that the SDK makes, and how its response is read; used by the async and the blocking client.

Law: no I/O and no credentials. A request consists of plain values; a response's bytes become a result or a
`PaperDBError`. Each write has an `Idempotency-Key`, the same for each try.
"""

from __future__ import annotations

import re
import secrets
import ssl
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, Generic, Literal, TypeVar
from urllib.parse import quote, urlsplit

import msgspec

from .errors import PaperDBError
from .types import BatchResult, BulkFailure, BulkResult, Document, Documents, Operation, Rules, Version

T = TypeVar("T")

COLLECTION_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")
_ETAG = re.compile(r'(?:W/)?"(\d+)"\Z')
_TAG = re.compile(r"<[^>]*>")
_KEY = re.compile(r"[!-~]{1,255}\Z")

ATTEMPTS: Final = 5

BATCH_PATH: Final = "/batch"
MAX_QUERY_BYTES: Final = 2000
"""A larger find is sent as a body. Percent-encoded it is up to three times as long, and heads are bounded."""


@dataclass(frozen=True, slots=True)
class RestResponse:
    """The names in `headers` are in lower case."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RestRequest(Generic[T]):
    """`path` begins with a slash and is percent-encoded. `body` is JSON text or None.

    `collections` are those that are written to. `key` is a write's `Idempotency-Key`; a request without one
    does no harm if it is repeated. `attempts`: how often it is sent at most.
    `reads`: the collection that is read, if a token suffices for this.
    """

    method: str
    path: str
    read: Callable[[RestResponse], T]
    query: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None
    if_match: int | None = None
    collections: frozenset[str] = frozenset()
    key: str | None = None
    attempts: int = ATTEMPTS
    reads: str | None = None

    def result(self, response: RestResponse) -> T:
        """Read the response. Raises `PaperDBError` for anything but a 2xx with the expected JSON."""
        if not 200 <= response.status < 300:
            raise refusal(response)
        try:
            return self.read(response)
        except (msgspec.MsgspecError, KeyError, TypeError, ValueError) as error:
            raise PaperDBError(
                response.status, "BAD_ANSWER", f"This is not a response of PaperDB: {error!r}"
            ) from None


def check_collection(name: str) -> str:
    """Raises `PaperDBError` 400 `INVALID_COLLECTION` before anything is sent, as the server would."""
    if not isinstance(name, str) or not COLLECTION_NAME.match(name):
        raise PaperDBError(
            400,
            "INVALID_COLLECTION",
            f"Invalid collection name: '{name}'. Use letters, numbers, underscores, and hyphens only.",
        )
    return name


def check_url(url: str, schemes: Sequence[str]) -> str:
    """`url` without trailing slashes. Raises ValueError unless it is a URL with one of `schemes`."""
    wrong = ValueError(f"Invalid URL {url!r}; expected something like {schemes[0]}://127.0.0.1:8000")
    if not isinstance(url, str) or any(character.isspace() for character in url):
        raise wrong
    try:
        parts = urlsplit(url)
        (parts.hostname or "").encode("idna")
        usable = parts.port != 0  # reading it raises, too
    except ValueError:
        raise wrong from None
    if not usable or parts.scheme not in schemes or not parts.hostname or parts.query or parts.fragment:
        raise wrong
    if parts.username or parts.password:
        raise ValueError("The URL contains a user name or password; PaperDB takes an api_key instead")
    return url.rstrip("/")


def refusal(response: RestResponse) -> PaperDBError:
    """The error in a response's body, or else one that shows what came instead."""
    status = response.status
    seconds = response.headers.get("retry-after", "")  # or a date
    waiting = {"retry_after": int(seconds)} if seconds.isascii() and seconds.isdecimal() else {}
    try:
        value = msgspec.json.decode(response.body)
        extra = {str(name): item for name, item in value.items() if name not in ("error", "code")} | waiting
        return PaperDBError(status, str(value.get("code") or f"HTTP_{status}"), str(value["error"]), extra)
    except (msgspec.MsgspecError, UnicodeDecodeError, AttributeError, KeyError):
        pass
    if 300 <= status < 400:
        target = response.headers.get("location", "").partition("?")[0][:200]
        return PaperDBError(
            status,
            "REDIRECTED",
            f"Redirected to {target or 'another address'}; redirects are not followed. "
            "Is the URL the server's own, with the right scheme and path?",
        )
    words = " ".join(_TAG.sub(" ", response.body[:2000].decode("utf-8", "replace")).split())[:200]
    return PaperDBError(status, f"HTTP_{status}", f"The server responded with HTTP {status}: {words}", waiting)


def network(error: Exception) -> PaperDBError:
    """The error for an exception of the transport: status 0, code `CERTIFICATE` or else `NETWORK`, with the
    message of its cause."""
    if (distrust := distrusted(error)) is not None:
        return PaperDBError(
            0,
            "CERTIFICATE",
            f"The server's certificate is not trusted: {distrust.verify_message or distrust}. "
            "Give an ssl_context that trusts it, or name its CA's file in SSL_CERT_FILE.",
        )
    words = next((text for text in map(str, _causes(error)) if text), type(error).__name__)
    return PaperDBError(0, "NETWORK", f"No response from the server: {words}")


def distrusted(error: Exception) -> ssl.SSLCertVerificationError | None:
    """The certificate error that caused `error`, if one did."""
    return next((cause for cause in _causes(error) if isinstance(cause, ssl.SSLCertVerificationError)), None)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


# --- documents -----------------------------------------------------------------------------------


def insert(collection: str, document: Mapping[str, Any], key: str | None) -> RestRequest[Document]:
    return _write("POST", _path(collection, "docs"), _document, key, {collection}, document)


def insert_bulk(
    collection: str, documents: Iterable[Mapping[str, Any]], atomic: bool, key: str | None
) -> RestRequest[BulkResult]:
    query = {"atomic": "true"} if atomic else {}
    body = [dict(document) for document in documents]
    return _write("POST", _path(collection, "bulk"), _bulk, key, {collection}, body, query)


def batch(operations: Sequence[Operation], key: str | None) -> RestRequest[BatchResult]:
    collections = {check_collection(operation["collection"]) for operation in operations}
    return _write("POST", BATCH_PATH, _batch, key, collections, {"operations": operations})


def find(
    collection: str,
    filter: Mapping[str, Any] | None,
    sort: str | Sequence[str] | None,
    limit: int | None,
    offset: int | None,
    select: str | Sequence[str] | None,
    count: bool,
    after: str | None = None,
) -> RestRequest[Documents]:
    given = {
        "filter": filter,
        "sort": _list(sort),
        "limit": limit,
        "offset": offset,
        "select": _list(select),
        "count": count or None,
        "after": after,
    }
    members = {name: value for name, value in given.items() if value is not None}
    body = _encode(members)
    if len(body) > MAX_QUERY_BYTES:
        return RestRequest("POST", _path(collection, "query"), _documents, body=body, reads=collection)
    query = {name: v if isinstance(v, str) else _encode(v).decode() for name, v in members.items()}
    return RestRequest("GET", _path(collection, "docs"), _documents, query, reads=collection)


def get(collection: str, id: str, select: str | Sequence[str] | None) -> RestRequest[Document]:
    fields = _list(select)
    query = {} if fields is None else {"select": fields}
    return RestRequest("GET", _path(collection, "docs", id), _document, query, reads=collection)


def history(collection: str, id: str, limit: int | None) -> RestRequest[list[Version]]:
    query = {} if limit is None else {"limit": _encode(limit).decode()}
    return RestRequest("GET", _path(collection, "docs", id) + "/history", _versions, query)


def write(
    method: str,
    collection: str,
    id: str,
    fields: Mapping[str, Any],
    if_match: int | None,
    where: Mapping[str, Any] | None,
    key: str | None,
) -> RestRequest[Document]:
    """PATCH (shallow merge) or PUT (replace)."""
    path = _path(collection, "docs", id)
    return _write(method, path, _document, key, {collection}, fields, _where(where), if_match)


def delete(
    collection: str, id: str, if_match: int | None, where: Mapping[str, Any] | None, key: str | None
) -> RestRequest[None]:
    path = _path(collection, "docs", id)
    return _write("DELETE", path, _deleted, key, {collection}, None, _where(where), if_match)


def count(collection: str, filter: Mapping[str, Any] | None) -> RestRequest[int]:
    query = {} if filter is None else {"filter": _encode(filter).decode()}
    return RestRequest("GET", _path(collection, "count"), _count, query, reads=collection)


def ask_for_keys() -> RestRequest[None]:
    """A server that refuses this as an empty batch knows `Idempotency-Key`, too: both came in one version. An
    older one has no such path."""
    return RestRequest("POST", BATCH_PATH, lambda _: None, body=b'{"operations":[]}')


# --- schemas and tokens --------------------------------------------------------------------------


def put_schema(collection: str, schema: Mapping[str, Any]) -> RestRequest[None]:
    return RestRequest(
        "PUT",
        _path(collection, "schema"),
        _registered,
        body=_encode(schema),
    )


@dataclass(frozen=True, slots=True)
class Minted:
    token: str = field(repr=False)
    expires_in: float


def mint(
    collections: Iterable[str] | Rules, permissions: Sequence[str], expires_in: int, subject: str | None = None
) -> RestRequest[Minted]:
    if isinstance(collections, str) or isinstance(permissions, str):
        raise TypeError("collections and permissions are lists of strings, not a string")
    body = {
        "collections": collections if isinstance(collections, Mapping) else list(collections),
        "permissions": list(permissions),
        "expiresIn": expires_in,
        **({} if subject is None else {"subject": subject}),
    }
    return RestRequest("POST", "/realtime/token", _minted, body=_encode(body), attempts=2)


def revoke(subject: str | None, jti: str | None) -> RestRequest[None]:
    if (subject is None) == (jti is None):
        raise TypeError("revoke takes either a subject or a jti")
    body = {"jti": jti} if subject is None else {"subject": subject}
    return RestRequest("POST", "/realtime/revoke", _revoked, body=_encode(body))


# --- parts ---------------------------------------------------------------------------------------


def _write(
    method: str,
    path: str,
    read: Callable[[RestResponse], T],
    key: str | None,
    collections: Iterable[str],
    body: Any,
    query: Mapping[str, str] | None = None,
    if_match: int | None = None,
) -> RestRequest[T]:
    """`key` None: the request gets a new one. `body` None: it has no body."""
    if key is not None and not (isinstance(key, str) and _KEY.match(key)):
        raise PaperDBError(
            400,
            "INVALID_REQUEST",
            f"Invalid idempotency_key: {key!r}. Use 1 to 255 printable ASCII characters without spaces.",
        )
    text = None if body is None else _encode(body)
    names = frozenset(collections)
    return RestRequest(method, path, read, dict(query or {}), text, if_match, names, key or _new_key())


def _new_key() -> str:
    """A key that no one else makes. It begins with the time, so that the server's index of keys grows at its
    end."""
    return f"{int(time.time() * 1000):012x}-{secrets.token_hex(10)}"


def _where(filter: Mapping[str, Any] | None) -> dict[str, str]:
    return {} if filter is None else {"where": _encode(filter).decode()}


def _path(collection: str, *rest: str) -> str:
    for part in rest:
        if not isinstance(part, str) or part in ("", ".", ".."):
            raise PaperDBError(400, "INVALID_ID", f"Invalid document id: {part!r}. Use a string.")
    return "/" + "/".join(quote(part, safe="") for part in (check_collection(collection), *rest))


def paths(select: str | Sequence[str] | None) -> tuple[str, ...] | None:
    """The fields of a select, or of a sort."""
    if select is None:
        return None
    names = select.split(",") if isinstance(select, str) else select
    return tuple(stripped for name in names if (stripped := name.strip()))


def _list(value: str | Sequence[str] | None) -> str | None:
    return value if value is None or isinstance(value, str) else ",".join(value)


def _encode(value: Any) -> bytes:
    """JSON text. Raises TypeError for what JSON cannot express (datetimes become RFC 3339 strings)."""
    return msgspec.json.encode(value)


class _Found(msgspec.Struct):
    documents: list[dict[str, Any]]
    limit: int
    offset: int
    has_more: bool = msgspec.field(name="hasMore")
    total: int | None = None
    seq: int | None = None
    next: str | None = None


class _Inserted(msgspec.Struct):
    inserted: int
    failed: int
    documents: list[dict[str, Any]]
    errors: list[BulkFailure] = []


class _Batch(msgspec.Struct):
    results: list[dict[str, Any]]
    txn: int


class _Versions(msgspec.Struct):
    versions: list[Version]


class _Counted(msgspec.Struct):
    count: int


class _Token(msgspec.Struct):
    token: Annotated[str, msgspec.Meta(min_length=1)]
    expires_in: float = msgspec.field(name="expiresIn")


class _Deleted(msgspec.Struct):
    deleted: Literal[True]


class _Revoked(msgspec.Struct):
    revoked: Literal[True]


class _Schema(msgspec.Struct):
    properties: dict[str, Any]


def _checked(fields: dict[str, Any]) -> Document:
    if "_id" not in fields:
        raise ValueError("a document without _id")
    return Document(fields)


def _document(response: RestResponse) -> Document:
    document = _checked(msgspec.json.decode(response.body, type=dict[str, Any]))
    if match := _ETAG.match(response.headers.get("etag", "")):
        document.seq = int(match[1])
    return document


def _documents(response: RestResponse) -> Documents:
    found = msgspec.json.decode(response.body, type=_Found)
    return Documents(
        map(_checked, found.documents),
        limit=found.limit,
        offset=found.offset,
        has_more=found.has_more,
        total=found.total,
        seq=found.seq,
        next=found.next,
    )


def _bulk(response: RestResponse) -> BulkResult:
    came = msgspec.json.decode(response.body, type=_Inserted)
    return BulkResult(came.inserted, came.failed, [_checked(fields) for fields in came.documents], came.errors)


def _batch(response: RestResponse) -> BatchResult:
    came = msgspec.json.decode(response.body, type=_Batch)
    results = [_checked(fields) for fields in came.results]
    for seq, document in enumerate(results, came.txn):
        document.seq = seq
    return BatchResult(results, came.txn)


def _versions(response: RestResponse) -> list[Version]:
    return msgspec.json.decode(response.body, type=_Versions).versions


def _count(response: RestResponse) -> int:
    return msgspec.json.decode(response.body, type=_Counted).count


def _minted(response: RestResponse) -> Minted:
    came = msgspec.json.decode(response.body, type=_Token)
    return Minted(came.token, came.expires_in)


def _deleted(response: RestResponse) -> None:
    msgspec.json.decode(response.body, type=_Deleted)


def _revoked(response: RestResponse) -> None:
    msgspec.json.decode(response.body, type=_Revoked)


def _registered(response: RestResponse) -> None:
    msgspec.json.decode(response.body, type=_Schema)
