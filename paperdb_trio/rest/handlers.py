"""What each route does: identity, parameters and body in, an answer out.

Law: no framework, no socket, no SQL; whatever is wrong with a request is an `ApiError`.
"""

from __future__ import annotations

import hmac
import math
import re
import time
from collections.abc import Container
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import trio

from paperdb_trio.auth import tokens
from paperdb_trio.auth.accounts import Accounts, Identity, unauthorized
from paperdb_trio.errors import ApiError, bad_request
from paperdb_trio.json_input import parse_document, parse_json, split_documents
from paperdb_trio.loop.turn import TimeSlice
from paperdb_trio.model import check_collection, check_document, check_id, encode
from paperdb_trio.net.messages import (
    NO_STORE,
    EventStream,
    Request,
    Response,
    document_response,
    json_response,
    json_text_response,
)
from paperdb_trio.rest.metrics import metrics_text
from paperdb_trio.services import Services
from paperdb_trio.store.cache import Stored
from paperdb_trio.store.change_log import EventText, Interest
from paperdb_trio.store.document_schema import parse_schema
from paperdb_trio.store.operations import (
    EVERY_SEQ,
    Condition,
    Delete,
    Draft,
    DropSome,
    Insert,
    InsertBulk,
    Patch,
    Replace,
    SetSchema,
)
from paperdb_trio.store.place import storage_gone
from paperdb_trio.store.reader import parse_select, project
from paperdb_trio.web.assets import ANY_PACKAGE

DEFAULT_LIMIT: Final = 100
MAX_LIMIT: Final = 1000
MAX_OFFSET: Final = 2**53
MAX_SEQ: Final = 2**53
STALE_SECONDS: Final = 5.0
"""After which time without a look at the file (there are four a second) the server is not ready."""
MAX_TOKEN_REQUEST_BYTES: Final = 64 * 1024
MORE_BULK_BYTES: Final = 4 * 1024 * 1024
"""That ids, times and a schema's defaults may add to a bulk, beside doubling it."""
LARGE_BYTES: Final = 64 * 1024
"""Of JSON, what takes long enough to decode, up to 50 ms a megabyte, to do one in a turn of the event loop."""


def _is_json(content_type: str) -> bool:
    kind, *parameters = (part.strip().lower() for part in content_type.split(";"))
    charsets = [part[8:].strip('"') for part in parameters if part.startswith("charset=")]
    return (kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))) and all(
        charset in ("utf-8", "utf8", "us-ascii") for charset in charsets
    )


def _unsupported(message: str, headers: dict[str, str] | None = None) -> ApiError:
    return ApiError(415, "UNSUPPORTED_MEDIA_TYPE", message, headers=headers)


@dataclass(slots=True)
class Call:
    """One request to one route: who asks, the parameters of path and query, and the request itself."""

    services: Services
    request: Request
    identity: Identity
    parameters: dict[str, str]
    query: dict[str, str]
    token: tokens.Grant | None = None

    @property
    def database_id(self) -> int:
        return self.identity.database.id

    @property
    def collection(self) -> str:
        return check_collection(self.parameters["collection"])

    @property
    def id(self) -> str:
        return check_id(self.parameters["id"])

    async def body(self, max_bytes: int | None = None) -> bytes:
        """The body, which is said to be JSON. Raises a 415 for another content type, and a 413."""
        headers = self.request.headers
        given = headers.get("content-type", "application/json")
        if given != "application/json" and not _is_json(given):
            raise _unsupported(f"Content-Type is '{given[:80]}'; expected application/json, in UTF-8")
        if "content-range" in headers:
            raise bad_request("Content-Range is not supported: send the whole body")
        coding = headers.get("content-encoding", "identity")
        if coding.strip().lower() != "identity":
            raise _unsupported(
                f"Content-Encoding is '{coding[:80]}'; expected a body that is not compressed",
                {"Accept-Encoding": "identity"},
            )
        most = self.services.settings.max_body_bytes
        body = await self.request.read_body(most if max_bytes is None else min(most, max_bytes))
        if self.services.accounts.identity_of(self.identity.key.id).key.revoked:  # while the body came
            raise unauthorized()
        return body

    async def document(self) -> Any:
        """The body as what one document is to be. Raises what `body` and `parse_document` raise."""
        body = await self.body()
        if len(body) > LARGE_BYTES:
            await self.services.turns.next()
        return parse_document(body, self.services.settings.max_document_bytes)


def authenticate(accounts: Accounts, request: Request) -> tuple[Identity, tokens.Grant | None]:
    """Who asks: by `Authorization: Bearer`, `X-API-Key`, or a token in the query; raises a 401.

    With a token the identity is that of the key behind it, which may do no more than the grant says.
    """
    headers = request.headers
    scheme, _, credential = headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer":  # Basic, say, is a proxy's in front of us
        credential = headers.get("x-api-key") or request.query_token()
    credential = credential.strip()
    if not credential:
        raise unauthorized()
    if credential.count(".") != 2:  # a JWT has two dots, an API key none
        return accounts.identify(credential), None
    grant = tokens.verify(accounts, credential)
    return accounts.identity_of(grant.key_id), grant


# --- documents -----------------------------------------------------------------------------------


async def insert(call: Call) -> Response:
    """Insert a document."""
    collection = call.collection
    draft = Draft.parse(await call.document())
    written = await call.services.writer.submit(
        Insert(call.database_id, collection, draft, call.services.settings.max_document_bytes)
    )
    return document_response(201, written.data, written.seq)


async def insert_bulk(call: Call) -> Response:
    """Insert many documents."""
    collection = call.collection
    settings = call.services.settings
    query = call.query
    atomic = _flag(query, "atomic")
    drafts: list[Draft | ApiError] = []
    turn = TimeSlice()
    body = await call.body()
    for text in split_documents(body, settings.max_bulk_documents):
        if turn.is_over():
            await turn.pass_on()
        if len(text) > LARGE_BYTES:
            await call.services.turns.next()
        try:
            drafts.append(Draft.parse(parse_document(text, settings.max_document_bytes)))
        except ApiError as error:
            if error.code == "INVALID_JSON":
                raise
            drafts.append(error)
    documents, failures = await call.services.writer.submit(
        InsertBulk(
            call.database_id,
            collection,
            drafts,
            settings.max_document_bytes,
            2 * len(body) + MORE_BULK_BYTES,
            atomic,
        )
    )
    errors = [
        {"index": failure.index, "error": failure.error.message, "code": failure.error.code}
        for failure in failures
    ]
    body = b'{"inserted":%d,"failed":%d,"documents":[%b]%b}' % (
        len(documents),
        len(failures),
        b",".join(documents),
        b',"errors":%b' % encode(errors) if errors else b"",
    )
    return json_text_response(200, body)


async def find(call: Call) -> Response:
    """Find documents."""
    collection = call.collection
    query = call.query
    limit = _whole(query, "limit", DEFAULT_LIMIT, 1, MAX_LIMIT)
    offset = _whole(query, "offset", 0, 0, MAX_OFFSET)
    found = await call.services.reader.find(
        call.database_id,
        collection,
        filter=query.get("filter"),
        sort=query.get("sort"),
        limit=limit,
        offset=offset,
        select=query.get("select"),
        count=_flag(query, "count"),
    )
    body = b'{"documents":[%b],"limit":%d,"offset":%d,"hasMore":%b,"seq":%d%b}' % (
        b",".join(found.documents),
        limit,
        offset,
        b"true" if found.has_more else b"false",
        found.seq,
        b"" if found.total is None else b',"total":%d' % found.total,
    )
    return json_text_response(200, body)


async def get(call: Call) -> Response:
    """Get one document."""
    collection, id = call.collection, call.id
    wanted = parse_select(call.query.get("select"))
    data, seq = await _read(call, collection, id)
    condition = _condition(call)
    if condition is not None:
        condition.check_match(seq)
        if condition.excludes(seq):
            return Response(304, b"", {"ETag": f'"{seq}"', "Cache-Control": NO_STORE})
    if wanted:
        if len(data) > LARGE_BYTES:
            await call.services.turns.next()
        data = project(data, wanted)
    return document_response(200, data, seq)


async def _read(call: Call, collection: str, id: str) -> Stored:
    """A document from memory, at once, or from the file. Raises a 404."""
    cache, key = call.services.cache, (call.database_id, collection, id)
    found = cache.get(key)
    if found is None:
        mark = cache.begin_reading(key)
        try:
            found = await call.services.reader.get(*key)
        finally:
            cache.end_reading(key, mark, found)
    return found


async def patch(call: Call) -> Response:
    """Merge into a document."""
    collection, id = call.collection, call.id
    fields = _own_fields(await call.document(), id)
    written = await call.services.writer.submit(
        Patch(
            call.database_id,
            collection,
            id,
            fields,
            _condition(call),
            call.services.settings.max_document_bytes,
        )
    )
    return document_response(200, written.data, written.seq)


async def replace(call: Call) -> Response:
    """Replace a document, or insert it at this id."""
    collection, id = call.collection, call.id
    fields = _own_fields(await call.document(), id)
    written = await call.services.writer.submit(
        Replace(
            call.database_id,
            collection,
            id,
            fields,
            _condition(call),
            call.services.settings.max_document_bytes,
        )
    )
    return document_response(201 if written.created else 200, written.data, written.seq)


async def delete(call: Call) -> Response:
    """Delete a document."""
    collection, id = call.collection, call.id
    written = await call.services.writer.submit(Delete(call.database_id, collection, id, _condition(call)))
    response = json_response(200, {"deleted": True, "_id": id})
    response.headers["ETag"] = f'"{written.seq}"'
    return response


async def count(call: Call) -> Response:
    """Count documents."""
    collection = call.collection
    query = call.query
    return json_response(
        200, {"count": await call.services.reader.count(call.database_id, collection, query.get("filter"))}
    )


# --- the change log ------------------------------------------------------------------------------


async def changes(call: Call) -> Response:
    """A page of the log, waiting for one if asked to; or the stream of all that comes."""
    collection, services, database = call.collection, call.services, call.identity.database
    database.require_realtime()
    grant = call.token or tokens.Grant(database, call.identity.key.id, frozenset({collection}), math.inf)
    if not grant.covers(collection):
        raise ApiError(403, "NOT_IN_TOKEN", f"The token does not cover the collection '{collection}'")
    query = call.query
    limit = _whole(query, "limit", DEFAULT_LIMIT, 1, MAX_LIMIT)
    wait = _whole(query, "wait", 0, 0, int(services.settings.max_wait))
    head, trimmed = services.hub.committed(database.id), services.hub.trimmed(database.id)
    as_stream = call.request.method == "GET" and "text/event-stream" in call.request.headers.get("accept", "")
    for name in ("limit", "wait") if as_stream else ("lastEventId",):
        if name in query:
            what = "pages of the log" if as_stream else "a stream (Accept: text/event-stream)"
            raise bad_request(f"'{name}' is for {what}")
    if as_stream and (last_id := _last_event_id(call)):
        query["since"] = last_id
    if query.get("since", "now" if as_stream else "") == "now":
        position = head
    else:
        position = _whole(query, "since", trimmed, 0, MAX_SEQ)
    if not trimmed <= position <= head:
        raise _cursor_expired(position, trimmed)
    if as_stream:
        headers = {
            "Content-Type": "text/event-stream",
            "Cache-Control": "no-store",
            "X-Accel-Buffering": "no",  # nginx would hold events back
        }
        return EventStream(200, b"", headers, grant=grant, collection=collection, position=position)
    interest: Interest = {collection: 0}
    page = await services.log.page(database.id, position, interest, EventText.CURSOR, limit)
    while page.expired and "since" not in query:  # trimmed meanwhile: the oldest is what was asked for
        page = await services.log.page(database.id, page.trimmed, interest, EventText.CURSOR, limit)
    if wait and not page.events and not page.expired:
        with services.limits.listener(database.id), trio.move_on_after(wait):
            while not page.events and not page.expired and not services.draining:
                await services.hub.wait(database.id, collection, page.position)
                _check_still_good(call)
                page = await services.log.page(database.id, page.position, interest, EventText.CURSOR, limit)
    if page.expired:
        raise _cursor_expired(position, page.trimmed)
    body = b'{"changes":[%b],"seq":%d,"hasMore":%b}' % (
        b",".join(page.events),
        page.position,
        b"false" if page.reached_end else b"true",
    )
    return json_text_response(200, body)


def _last_event_id(call: Call) -> str | None:
    """Where a stream that was cut off goes on. Empty: no event has come yet.

    Polyfills of `EventSource` send it as a parameter, since a header of theirs would need a preflight.
    """
    return call.request.headers.get("last-event-id") or call.query.get("lastEventId")


def _check_still_good(call: Call) -> None:
    """After a wait: whoever asks may still see what there is now. Raises a 401 or 403."""
    accounts = call.services.accounts
    if call.token is not None and time.time() >= call.token.expires:
        raise ApiError(401, "TOKEN_EXPIRED", "The token has expired; get a new one")
    identity = accounts.identity_of(call.identity.key.id)
    if identity.key.revoked:
        raise unauthorized()
    identity.database.require_realtime()


def _cursor_expired(position: int, trimmed: int) -> ApiError:
    return ApiError(
        410,
        "CURSOR_EXPIRED",
        f"The change log holds no cursor {position} any more: fetch the documents again, "
        "then go on with since=now",
        oldest=trimmed + 1,
    )


# --- collections ---------------------------------------------------------------------------------


async def collections(call: Call) -> Response:
    """List the collections."""
    listed = await call.services.reader.collections(call.database_id)
    return json_response(200, {"collections": msgspec.Raw(listed)})


async def get_schema(call: Call) -> Response:
    """Get the schema of a collection."""
    collection = call.collection
    schema = await call.services.reader.schema(call.database_id, collection)
    if schema is None:
        raise ApiError(404, "NOT_FOUND", f"The collection '{collection}' has no schema")
    return json_text_response(200, schema.encode())


async def put_schema(call: Call) -> Response:
    """Set the schema of a collection."""
    collection = call.collection
    schema = parse_schema(parse_json(await call.body(call.services.settings.max_document_bytes)))
    await call.services.writer.submit(SetSchema(call.database_id, collection, schema))
    return json_text_response(200, schema.text)


async def delete_schema(call: Call) -> Response:
    """Remove the schema of a collection."""
    collection = call.collection
    await call.services.writer.submit(SetSchema(call.database_id, collection, None))
    return json_response(200, {"deleted": True})


async def drop(call: Call) -> Response:
    """Remove a collection."""
    collection = call.collection
    if call.query.get("confirm") != collection:
        raise bad_request(
            f"This removes the whole collection; expected its name again: /{collection}?confirm={collection}",
            "CONFIRMATION_NEEDED",
        )
    deleted, until, done = 0, None, False
    # Once begun it is finished, even if the client goes: a collection half deleted is nobody's wish.
    try:
        with trio.CancelScope(shield=True):
            while not done:
                drop = DropSome(call.database_id, collection, until)
                step, until, done = await call.services.writer.submit(drop)
                deleted += step
    except ApiError as error:
        if until is None:
            raise
        call.services.drops_left = True
        message = f"{error.message.rstrip('.')}. The rest of the collection is removed as soon as possible."
        raise ApiError(error.status, error.code, message, headers=error.headers) from None
    return json_response(200, {"deleted": deleted})


# --- tokens and health ---------------------------------------------------------------------------


async def mint_token(call: Call) -> Response:
    """Mint a realtime token."""
    call.services.limits.token(call.identity.key.id)
    # Public keys come here: what anybody may send is small.
    request = parse_json(await call.body(MAX_TOKEN_REQUEST_BYTES))
    if not isinstance(request, dict):
        raise bad_request('The body must be a JSON object like {"collections": ["messages"]}')
    return json_response(200, tokens.mint(call.services.accounts, call.identity, request))


async def healthz(services: Services, request: Request) -> Response:
    """Whether the process answers at all."""
    return json_response(200, {"status": "ok"})


async def readyz(services: Services, request: Request) -> Response:
    """Whether requests should be sent here: not while draining, nor when the file cannot be used."""
    if services.draining:
        raise ApiError(503, "SHUTTING_DOWN", "The server is shutting down", headers={"Retry-After": "1"})
    if services.accounts.age() > STALE_SECONDS:
        raise ApiError(503, "NOT_READY", "The database file could not be read for a while")
    fault = services.writer.fault()
    if fault == "gone":
        raise storage_gone()
    if fault == "read-only":
        raise ApiError(503, "NOT_READY", "The database file cannot be written to: it is read-only")
    return json_response(200, {"status": "ready"})


async def metrics(services: Services, request: Request) -> Response:
    """Counters and gauges in Prometheus's text format; nothing of any one database."""
    wanted = services.settings.metrics_key
    given = request.headers.get("authorization", "").encode()  # of text, it compares ASCII only
    if wanted and not hmac.compare_digest(given, f"Bearer {wanted}".encode()):
        raise unauthorized()
    return Response(200, metrics_text(services), {"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})


def asset(services: Services, request: Request) -> Response:
    """A file of the SDK, or the live page. Clients ask each time whether it has changed."""
    found = services.assets[request.path]
    headers = {"ETag": found.etag, "Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff"}
    if found.versioned is not None:
        headers["Content-Location"] = found.versioned
    if request.headers.get("if-none-match") == found.etag:
        return Response(304, b"", headers)
    return Response(200, found.body, {"Content-Type": found.content_type, **headers})


def another_package(services: Services, suffix: str) -> ApiError:
    """The 404 for the SDK of a server of another version."""
    ours = next(path for path in filter(ANY_PACKAGE.fullmatch, services.assets) if path.endswith(suffix))
    return ApiError(404, "NOT_FOUND", f"This server has another version of the SDK: {ours}")


# --- parameters ----------------------------------------------------------------------------------

_ENTITY_TAG: Final = re.compile(r'\s*(?:W/)?"?([0-9]{1,18})"?\s*')


def _own_fields(value: object, id: str) -> dict[str, Any]:
    """The fields that a user may set: not the system's; `_id` must be the one of the path."""
    fields = check_document(value).copy()
    if fields.pop("_id", id) != id:
        raise bad_request(
            "'_id' differs from the id in the path; a document's id cannot be changed", "INVALID_ID"
        )
    fields.pop("createdAt", None)
    fields.pop("updatedAt", None)
    return fields


def _condition(call: Call) -> Condition | None:
    """What If-Match and If-None-Match ask for."""
    headers = call.request.headers
    if "if-match" not in headers and "if-none-match" not in headers:
        return None
    return Condition(_seqs(headers.get("if-match")), _seqs(headers.get("if-none-match")))


def _seqs(header: str | None) -> Container[int] | None:
    """Those that the entity tags of a header name. One that is none of ours is no error: it is not the current
    one (RFC 9110, section 13.1.1). Weak ones count: a proxy that compresses makes ours weak."""
    if header is None:
        return None
    if header.strip() == "*":
        return EVERY_SEQ
    matches = map(_ENTITY_TAG.fullmatch, header.split(","))
    return frozenset(int(match[1]) for match in matches if match is not None)


def _whole(query: dict[str, str], name: str, default: int, low: int, high: int) -> int:
    text = query.get(name)
    if text is None:
        return default
    value = int(text) if re.fullmatch(r"[0-9]{1,16}", text) else None
    if value is None or not low <= value <= high:
        raise bad_request(f"Invalid {name}: '{text[:40]}'. Use a whole number from {low} to {high}.")
    return value


def _flag(query: dict[str, str], name: str) -> bool:
    text = query.get(name, "false")
    if text not in ("true", "false", "1", "0"):
        raise bad_request(f"Invalid {name}: '{text[:40]}'. Use true or false.")
    return text in ("true", "1")
