"""Batches: several writes, in any collections, of which all are done or none.

Law: no framework, no socket, no SQL; every fault in a request is an `ApiError`.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from paperdb_trio.errors import ApiError, bad_request
from paperdb_trio.json_input import parse_document, split_items, unwrap
from paperdb_trio.loop.turn import TimeSlice
from paperdb_trio.model import check_collection, check_document, check_id, encode
from paperdb_trio.net.messages import Response, json_response
from paperdb_trio.rest.call import LARGE_BYTES, Call
from paperdb_trio.rest.documents import own_fields, question, tags
from paperdb_trio.rest.responses import BatchResults, Deleted
from paperdb_trio.store.operations import (
    Batch,
    BatchResult,
    Condition,
    Delete,
    Draft,
    Insert,
    Patch,
    Replace,
    Write,
)
from paperdb_trio.store.view import View
from paperdb_trio.store.within import within


class _Operation(Struct, forbid_unknown_fields=True, rename="camel"):
    """`document`, `fields` and `where` stay JSON text until they are parsed with their own limits."""

    op: Literal["insert", "update", "replace", "delete"]
    collection: str
    id: str | UnsetType = UNSET
    document: Raw | UnsetType = UNSET
    fields: Raw | UnsetType = UNSET
    if_match: str | int | UnsetType = UNSET
    where: Raw | UnsetType = UNSET


_operation: Final = msgspec.json.Decoder(_Operation)

MEMBERS: Final = {
    "insert": (("document",), ("id",)),
    "update": (("id", "fields"), ("ifMatch", "where")),
    "replace": (("id", "document"), ("ifMatch", "where")),
    "delete": (("id",), ("ifMatch", "where")),
}
"""What each operation needs, and what else it takes, beside `op` and `collection`."""


async def batch(call: Call) -> Response:
    settings = call.services.settings
    operations: list[Write] = []
    turn = TimeSlice()
    body = await call.body()
    if body.lstrip()[:1] != b"{":
        raise bad_request('The body must be {"operations": [...]}', "INVALID_OPERATION")
    items = split_items(body, settings.max_bulk_documents, "operations")
    for index, text in enumerate(items):
        if turn.is_over():
            await turn.pass_on()
        if len(text) > LARGE_BYTES:
            await call.services.turns.next()
        try:
            operations.append(_parse(text, call, settings.max_document_bytes))
        except ApiError as error:
            raise error.at(index) from None
    if not operations:
        raise bad_request("'operations' must have at least one operation", "INVALID_OPERATION")

    return await call.write(Batch(operations, settings.max_body_bytes), _batch_response)


def _batch_response(done: BatchResult) -> Response:
    results = [
        Raw(encode(Deleted(id=written.id)) if written.deleted else written.visible) for written in done.results
    ]
    return json_response(200, BatchResults(results, done.txn))


def _parse(text: bytes, call: Call, max_bytes: int) -> Write:
    """Raises a 400 or 403 for every error that can be found without the database."""
    try:
        item = unwrap(text, _operation)
    except msgspec.ValidationError as error:
        raise _invalid(str(error).replace("`", "'")) from None
    needed, optional = MEMBERS[item.op]
    for name, value in zip(item.__struct_encode_fields__, msgspec.structs.astuple(item), strict=True):
        if value is UNSET and name in needed:
            raise _invalid(f"'{item.op}' needs '{name}'")
        if value is not UNSET and name not in ("op", "collection", *needed, *optional):
            raise _invalid(f"'{item.op}' takes no '{name}'; it takes {', '.join((*needed, *optional))}")
    collection, database_id = check_collection(item.collection), call.database_id
    view = call.view_to_write(collection)
    body = item.fields if isinstance(item.fields, Raw) else item.document
    document = check_document(parse_document(bytes(body), max_bytes)) if isinstance(body, Raw) else {}
    if item.op == "insert":
        chosen = {} if item.id is UNSET else {"_id": item.id}
        draft = Draft.parse({**document, **chosen})
        return within(view, Insert(database_id, collection, draft, max_bytes))
    assert isinstance(item.id, str)
    id, condition = check_id(item.id), _condition(item, view)
    if item.op == "delete":
        return within(view, Delete(database_id, collection, id, condition))
    change = Patch if item.op == "update" else Replace
    fields = own_fields(document, id)
    return within(view, change(database_id, collection, id, fields, condition, max_bytes))


def _condition(item: _Operation, view: View | None) -> Condition | None:
    if item.if_match is UNSET and item.where is UNSET:
        return None
    return Condition(
        match=None if item.if_match is UNSET else tags(str(item.if_match), view),
        where=question(bytes(item.where).decode(), view) if isinstance(item.where, Raw) else None,
    )


def _invalid(message: str) -> ApiError:
    return bad_request(f"Invalid operation: {message}", "INVALID_OPERATION")
