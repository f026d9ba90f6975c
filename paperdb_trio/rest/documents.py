"""Documents: insert, find, get, patch, replace, delete, count.

Law: no framework, no socket, no SQL; every fault in a request is an `ApiError`.
"""

from __future__ import annotations

import re
from collections.abc import Container, Mapping
from functools import partial
from typing import Any, Final

from msgspec import UNSET, Raw, ValidationError, convert
from msgspec.structs import asdict

from paperdb_trio.errors import ApiError, bad_request
from paperdb_trio.json_input import parse_document, parse_json, split_items
from paperdb_trio.loop.turn import TimeSlice
from paperdb_trio.model import check_document, encode
from paperdb_trio.net.messages import NO_STORE, Response, document_response, json_response
from paperdb_trio.rest.call import LARGE_BYTES, Call
from paperdb_trio.rest.parameters import ATOMIC, COUNT, EXPLAIN, LIMIT, OFFSET, Query
from paperdb_trio.rest.responses import Bulk, Count, Deleted, Explanation, Failure, Page, Versions
from paperdb_trio.store.operations import (
    EVERY_TAG,
    BulkFailure,
    Condition,
    Delete,
    Draft,
    Insert,
    InsertBulk,
    Patch,
    Replace,
    Written,
)
from paperdb_trio.store.projection import parse_select, project
from paperdb_trio.store.protocol import Stored
from paperdb_trio.store.query import Question, ask
from paperdb_trio.store.slow import REQUEST
from paperdb_trio.store.view import View
from paperdb_trio.store.within import within

MORE_BULK_BYTES: Final = 4 * 1024 * 1024
"""What ids, times and a schema's defaults may add to a bulk, beside doubling it."""


async def insert(call: Call) -> Response:
    """Insert a document."""
    collection = call.collection
    view = call.view_to_write(collection)
    draft = Draft.parse(await call.document())
    insert = Insert(call.database_id, collection, draft, call.services.settings.max_document_bytes)
    return await call.write(within(view, insert), partial(_written, view))


async def insert_bulk(call: Call) -> Response:
    """Insert many documents."""
    collection = call.collection
    view = call.view_to_write(collection)
    settings = call.services.settings
    atomic = ATOMIC.of(call.query)
    drafts: list[Draft | ApiError] = []
    turn = TimeSlice()
    body = await call.body()
    for text in split_items(body, settings.max_bulk_documents, "documents"):
        if turn.is_over():
            await turn.pass_on()
        if len(text) > LARGE_BYTES:
            await call.services.turns.next()
        try:
            draft = Draft.parse(parse_document(text, settings.max_document_bytes))
            if view is not None:
                within(view, Insert(call.database_id, collection, draft, settings.max_document_bytes))
            drafts.append(draft)
        except ApiError as error:
            if error.code == "INVALID_JSON":
                raise
            drafts.append(error)
    bulk = InsertBulk(
        call.database_id,
        collection,
        drafts,
        settings.max_document_bytes,
        2 * len(body) + MORE_BULK_BYTES,
        atomic,
        None if view is None else partial(within, view),
    )
    return await call.write(bulk, _bulk_response)


def _bulk_response(result: tuple[list[bytes], list[BulkFailure]]) -> Response:
    documents, failures = result
    errors = [Failure(failure.index, failure.error.message, failure.error.code) for failure in failures]
    return json_response(
        200, Bulk(len(documents), len(failures), list(map(Raw, documents)), errors=errors or UNSET)
    )


async def find(call: Call) -> Response:
    """Find documents."""
    return await _find(call, call.query)


async def query(call: Call) -> Response:
    """Find documents, with the parameters as a body."""
    try:
        members = parse_json(await call.body(call.services.settings.max_document_bytes))
        if isinstance(members, dict):  # 100.0 is an integer in JSON
            whole = {name: int(n) for name, n in members.items() if isinstance(n, float) and n.is_integer()}
            members = members | whole
        asked = convert(members, Query)
    except ValidationError as error:
        found = str(error).replace("`", "'")
        known = ", ".join(f"'{name}'" for name in Query.__struct_fields__)
        raise bad_request(f"{found}. Expected an object with any of {known}") from None
    given = {name: value for name, value in asdict(asked).items() if value is not UNSET}
    texts = {name: value if isinstance(value, str) else encode(value).decode() for name, value in given.items()}
    return await _find(call, texts)


async def _find(call: Call, query: Mapping[str, str]) -> Response:
    collection = call.collection
    settings = call.services.settings
    limit, offset = LIMIT.of(query, settings), OFFSET.of(query, settings)
    if "after" in query and offset:
        raise bad_request("'after' and 'offset' exclude each other")
    explain = EXPLAIN.of(query)
    if explain and (call.token is not None or not call.identity.key.secret):
        raise ApiError(403, "READ_ONLY_KEY", "Only a secret key can ask for 'explain'")
    view, seal = call.view, call.seal
    after = query.get("after")
    if after is not None and seal is not None:
        after = seal.open(after)
    REQUEST.set(call.request.id)
    found = await call.services.store.find(
        call.database_id,
        collection,
        filter=query.get("filter"),
        sort=query.get("sort"),
        limit=limit,
        offset=offset,
        select=query.get("select"),
        count=COUNT.of(query),
        after=after,
        explain=explain,
        view=view,
    )
    page = Page(list(map(Raw, found.documents)), limit, offset, found.has_more, found.seq)
    if found.total is not None:
        page.total = found.total
    if found.next is not None:
        page.next = found.next if seal is None else seal.close(found.next)
    if found.plan is not None:
        page.explain = convert(found.plan, Explanation)
    return json_response(200, page)


async def get(call: Call) -> Response:
    """Get one document."""
    collection, id, view = call.collection, call.id, call.view
    select = call.query.get("select")
    wanted = parse_select(select) if view is None else view.selection(select)
    data, seq = await _read(call, collection, id, None if view is None else view.question)
    tag: int | str = seq
    if wanted and len(data) > LARGE_BYTES:
        await call.services.turns.next()
    if view is not None:
        data = view.project(data)
        tag = view.tag(data, seq)
    condition = _condition(call, view)
    if condition is not None:
        condition.check_match(tag)
        if condition.excludes(tag):
            return Response(304, b"", {"ETag": f'"{tag}"', "Cache-Control": NO_STORE})
    if wanted:
        data = project(data, wanted)
    return document_response(200, data, tag)


async def _read(call: Call, collection: str, id: str, within: Question | None = None) -> Stored:
    """A document, from the cache without waiting, else from the file. Raises a 404."""
    cache, key = call.services.cache, (call.database_id, collection, id)
    if within is not None:  # only SQLite evaluates filters
        return await call.services.store.get(*key, within)
    found = cache.get(key) if call.services.store.is_current(call.database_id) else None
    if found is None:
        mark = cache.begin_reading(key)
        try:
            found = await call.services.store.get(*key)
        finally:
            cache.end_reading(key, mark, found)
    return found


async def patch(call: Call) -> Response:
    """Merge into a document."""
    return await _change(call, Patch)


async def replace(call: Call) -> Response:
    """Replace a document, or insert it at this id."""
    return await _change(call, Replace)


async def _change(call: Call, change: type[Patch] | type[Replace]) -> Response:
    collection, id = call.collection, call.id
    view = call.view_to_write(collection)
    fields = own_fields(await call.document(), id)
    max_bytes = call.services.settings.max_document_bytes
    operation = change(call.database_id, collection, id, fields, _condition(call, view), max_bytes)
    return await call.write(within(view, operation), partial(_written, view))


def _written(view: View | None, written: Written) -> Response:
    tag = written.seq if view is None else view.tag(written.visible, written.seq)
    return document_response(201 if written.created else 200, written.visible, tag)


async def delete(call: Call) -> Response:
    """Delete a document."""
    collection, id = call.collection, call.id
    view = call.view_to_write(collection)
    operation = Delete(call.database_id, collection, id, _condition(call, view))
    return await call.write(within(view, operation), partial(_deleted, view))


def _deleted(view: View | None, written: Written) -> Response:
    response = json_response(200, Deleted(id=written.id))
    if view is None or view.select is None:
        response.headers["ETag"] = f'"{written.seq}"'
    return response


async def history(call: Call) -> Response:
    """List the versions of a document that the change log holds, newest first."""
    collection, id = call.collection, call.id
    limit = LIMIT.of(call.query, call.services.settings)
    versions = await call.services.store.history(call.database_id, collection, id, limit)
    if not versions:
        await _read(call, collection, id)  # its changes may be older than the log
    return json_response(200, Versions(list(map(Raw, versions))))


async def count(call: Call) -> Response:
    """Count documents."""
    filter = call.query.get("filter")
    REQUEST.set(call.request.id)
    n = await call.services.store.count(call.database_id, call.collection, filter, call.view)
    return json_response(200, Count(n))


# --- conditions and fields -----------------------------------------------------------------------

_ENTITY_TAG: Final = re.compile(r'\s*(?:W/)?"?([0-9]{1,18})"?\s*')
_OPAQUE_TAG: Final = re.compile(r'\s*(?:W/)?"?([A-Za-z0-9_-]{24})"?\s*')


def own_fields(value: object, id: str) -> dict[str, Any]:
    """The fields that a user may set, without the system's. `_id` must be the one in the path."""
    fields = check_document(value).copy()
    if fields.pop("_id", id) != id:
        raise bad_request(
            "'_id' differs from the id in the path; a document's id cannot be changed", "INVALID_ID"
        )
    fields.pop("createdAt", None)
    fields.pop("updatedAt", None)
    return fields


def _condition(call: Call, view: View | None = None) -> Condition | None:
    """What If-Match, If-None-Match and `where` demand."""
    headers, where = call.request.headers, call.query.get("where")
    if where is None and "if-match" not in headers and "if-none-match" not in headers:
        return None
    match, none_match = (tags(headers.get(name), view) for name in ("if-match", "if-none-match"))
    return Condition(match, none_match, None if where is None else question(where, view))


def question(filter: str, view: View | None) -> Question:
    return ask(filter) if view is None else view.ask(filter)


def tags(header: str | None, view: View | None) -> Container[Any] | None:
    """The entity tags in a header: seqs, or what `View.tag` makes. A tag that is not ours is not an error, it
    just is not the current one (RFC 9110, section 13.1.1). Weak tags count: a proxy that compresses makes ours
    weak."""
    if header is None:
        return None
    if header.strip() == "*":
        return EVERY_TAG
    opaque = view is not None and view.select is not None
    matches = map((_OPAQUE_TAG if opaque else _ENTITY_TAG).fullmatch, header.split(","))
    return frozenset(match[1] if opaque else int(match[1]) for match in matches if match is not None)
