"""Collections and their schemas.

Law: no framework, no socket, no SQL; every fault in a request is an `ApiError`.
"""

from __future__ import annotations

from functools import partial
from typing import TypeVar, cast

import trio
from msgspec import Raw

from paperdb_trio.errors import ApiError, bad_request
from paperdb_trio.json_input import parse_json
from paperdb_trio.net.messages import Response, json_response, json_text_response
from paperdb_trio.rest.call import Call
from paperdb_trio.rest.responses import Collections, Dropped, SchemaDeleted
from paperdb_trio.store.administration import Noted
from paperdb_trio.store.document_schema import parse_schema
from paperdb_trio.store.housekeeping import DropSome
from paperdb_trio.store.operations import Operation, SetSchema

Result = TypeVar("Result")


def _noted(call: Call, action: str, operation: Operation[Result]) -> Operation[Result]:
    """The operation, with an entry in the record."""
    identity = call.identity
    noted = Noted(identity.key.by, action, identity.database.name, call.collection, {}, operation)
    return cast("Operation[Result]", noted)  # whose result is None only without an operation


async def collections(call: Call) -> Response:
    """List the collections."""
    listed = await call.services.store.collections(call.database_id)
    return json_response(200, Collections(Raw(listed)))


async def get_schema(call: Call) -> Response:
    """Get the schema of a collection."""
    collection = call.collection
    schema = await call.services.store.schema(call.database_id, collection)
    if schema is None:
        raise ApiError(404, "NOT_FOUND", f"The collection '{collection}' has no schema")
    return json_text_response(200, schema.encode())


async def put_schema(call: Call) -> Response:
    """Set the schema of a collection."""
    collection = call.collection
    schema = parse_schema(parse_json(await call.body(call.services.settings.max_document_bytes)))
    operation = SetSchema(call.database_id, collection, schema)
    return await call.write(_noted(call, "schema.set", operation), partial(_schema_set, schema.text))


def _schema_set(text: bytes, _: bool) -> Response:
    return json_text_response(200, text)


def _schema_deleted(_: bool) -> Response:
    return json_response(200, SchemaDeleted())


async def delete_schema(call: Call) -> Response:
    """Remove the schema of a collection."""
    collection = call.collection
    operation = SetSchema(call.database_id, collection, None)
    return await call.write(_noted(call, "schema.delete", operation), _schema_deleted)


async def drop(call: Call) -> Response:
    """Remove a collection."""
    collection = call.collection
    if call.query.get("confirm") != collection:
        raise bad_request(
            f"This removes the whole collection; expected its name again: /{collection}?confirm={collection}",
            "CONFIRMATION_NEEDED",
        )
    if (response := await call.recall()) is not None:
        return response
    deleted, until, done = 0, None, False
    # A removal that has begun is finished even if the client disconnects: half a collection is of no use.
    try:
        with trio.CancelScope(shield=True):
            while not done:
                drop = DropSome(call.database_id, collection, until)
                noted = _noted(call, "collection.drop", drop) if until is None else drop
                step, until, done = await call.services.store.submit(noted)
                deleted += step
    except ApiError as error:
        if until is None:
            raise
        call.services.store.drops_left = True
        message = f"{error.message.rstrip('.')}. The rest of the collection is removed as soon as possible."
        raise ApiError(error.status, error.code, message, headers=error.headers) from None
    return await call.remember(json_response(200, Dropped(deleted)))
