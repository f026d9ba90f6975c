"""Administration of databases, keys, signing secrets and indexes, and the record of it.

Law: no framework, no socket, no SQL; every fault in a request is an `ApiError`. A secret is shown only once.
"""

from __future__ import annotations

import re
import time
from typing import TypeVar

import msgspec
from msgspec import UNSET, UnsetType

from paperdb_trio import __version__
from paperdb_trio.auth.keys import hash_key, new_key
from paperdb_trio.auth.tokens import new_signing_secret
from paperdb_trio.errors import ApiError, bad_request
from paperdb_trio.model import check_collection, milliseconds, new_id, timestamp
from paperdb_trio.net.messages import Response, json_response
from paperdb_trio.rest import admin_bodies as bodies
from paperdb_trio.rest import admin_responses as responses
from paperdb_trio.rest.admin_call import AdminCall
from paperdb_trio.store.administration import (
    AddIndex,
    AddKey,
    ChangeDatabase,
    ChangeKey,
    CreateDatabase,
    DeleteDatabase,
    DropIndex,
    Noted,
    RevokeKey,
    RotateSigning,
)
from paperdb_trio.store.document_schema import index_fields
from paperdb_trio.store.records import NewKey

Row = TypeVar("Row")


def page(rows: list[Row], limit: int, cursor: str) -> tuple[list[Row], str | UnsetType]:
    """The rows of one page, of which one more than `limit` were read, and what the next page comes after."""
    more = len(rows) > limit
    rows = rows[:limit]
    return rows, str(getattr(rows[-1], cursor)) if more else UNSET


async def me(call: AdminCall) -> Response:
    """Get the key of this request."""
    key = call.key
    own = None if call.own is None else call.own.name
    return json_response(200, responses.Me(key.id, key.kind, key.label, own, __version__))


# --- databases -----------------------------------------------------------------------------------


async def list_databases(call: AdminCall) -> Response:
    """List the databases."""
    limit, own = call.limit, None if call.own is None else call.own.name
    found = await call.services.store.databases(own, call.query.get("after", ""), limit + 1)
    return json_response(200, responses.Databases(*page(found, limit, "name")))


async def create_database(call: AdminCall) -> Response:
    """Create a database."""
    body = await call.body(bodies.NewDatabase)
    return json_response(201, await call.write(CreateDatabase(call.by, body.name, body.plan)))


async def change_database(call: AdminCall) -> Response:
    """Rename a database, or put it on another plan.

    Its keys, tokens and connections go on, unless the new plan has no realtime.
    """
    body = await call.body(bodies.DatabaseChange)
    name, plan = (None if value is UNSET else value for value in (body.name, body.plan))
    operation = ChangeDatabase(call.by, call.database.name, name, plan)
    return json_response(200, await call.write(operation))


async def delete_database(call: AdminCall) -> Response:
    """Delete a database, with its documents, change log and keys.

    Its tokens and connections end at once. The space is freed in the background.
    """
    name = call.database.name
    if call.query.get("confirm") != name:
        raise bad_request(
            f"This deletes the whole database; expected its name again: ?confirm={name}", "CONFIRMATION_NEEDED"
        )
    documents = await call.write(DeleteDatabase(call.by, name))
    return json_response(200, responses.DatabaseDeleted(documents))


# --- keys ----------------------------------------------------------------------------------------


async def list_keys(call: AdminCall) -> Response:
    """List the keys, without the keys themselves."""
    limit, database = call.limit, call.scope
    name = None if database is None else database.name
    found = await call.services.store.keys(name, call.query.get("after"), limit + 1)
    now = timestamp(time.time())
    for row in found:
        if row.id in call.services.accounts.used:  # the file will say so within a minute
            row.last_used_at = now
    return json_response(200, responses.Keys(*page(found, limit, "id")))


async def create_key(call: AdminCall) -> Response:
    """Create a key, and show it once."""
    body = await call.body(bodies.NewKeyRequest)
    if (body.database is None) is not (body.kind == "admin"):
        raise bad_request("A secret or public key needs a 'database', and an admin key has none")
    text = new_key(body.kind)
    key = NewKey(new_id(), body.kind, body.label, hash_key(text), _time(body.expires_at))
    made = await call.write(AddKey(call.by, body.database, key))
    return json_response(201, responses.CreatedKey(**msgspec.structs.asdict(made), key=text))


async def change_key(call: AdminCall) -> Response:
    """Let a key expire, or label it."""
    body = await call.body(bodies.KeyChange)
    expire = body.expires_at is not UNSET
    expires = _time(body.expires_at) if isinstance(body.expires_at, str) else None
    label = None if body.label is UNSET else body.label
    return json_response(200, await call.write(ChangeKey(call.by, _key(call), label, expire, expires)))


async def revoke_key(call: AdminCall) -> Response:
    """Revoke a key. Its tokens and their connections end within a second."""
    return json_response(200, await call.write(RevokeKey(call.by, _key(call))))


def _key(call: AdminCall) -> str:
    """The id in the path. Raises a 409 for the key of the request: a slip must not lock its owner out."""
    id = call.parameters["key"]
    if id == call.key.id:
        raise ApiError(409, "CONFLICT", "This is the key of the request itself: change it with another one")
    return id


def _time(text: str | None) -> int | None:
    try:
        return None if text is None else milliseconds(text)
    except (ValueError, OverflowError):
        raise bad_request(f"Invalid expiresAt: '{text}'. Use a time like 2027-01-31T12:00:00Z") from None


# --- signing secrets -----------------------------------------------------------------------------


async def list_secrets(call: AdminCall) -> Response:
    """List the secrets that sign tokens, without the secrets themselves."""
    return json_response(200, responses.Secrets(await call.services.store.secrets()))


async def rotate_secret(call: AdminCall) -> Response:
    """Sign new tokens with a new secret.

    Tokens of the old one stay valid until they expire.
    """
    return json_response(201, await call.write(RotateSigning(call.by, *new_signing_secret())))


# --- indexes -------------------------------------------------------------------------------------


async def list_indexes(call: AdminCall) -> Response:
    """List the indexes of a collection, and how far they are built."""
    collection = call.collection
    found = await call.services.store.indexes(call.database.id, collection)
    if found is None:
        raise ApiError(404, "NOT_FOUND", f"There is no collection '{collection}'")
    return json_response(200, responses.Indexes(found))


async def create_index(call: AdminCall) -> Response:
    """Make an index for a collection.

    The server builds it in the background. As one that it made itself, it goes when nothing uses it.
    """
    fields = index_fields((await call.body(bodies.NewIndex)).fields)
    return json_response(201, await call.write(AddIndex(call.by, *_of(call), call.collection, fields)))


async def drop_index(call: AdminCall) -> Response:
    """Remove an index that no schema declares."""
    number = call.parameters["index"]
    if not re.fullmatch(r"[0-9]{1,15}", number):
        raise ApiError(404, "NOT_FOUND", f"The collection has no index '{number[:40]}'")
    await call.write(DropIndex(call.by, *_of(call), call.collection, int(number)))
    return json_response(200, responses.IndexDropped())


def _of(call: AdminCall) -> tuple[int, str]:
    return call.database.id, call.database.name


# --- the record ----------------------------------------------------------------------------------


async def list_audit(call: AdminCall) -> Response:
    """List who did what: the newest first."""
    limit, after = call.limit, call.query.get("after")
    if after is not None and not re.fullmatch(r"[0-9]{1,15}", after):
        raise bad_request("Invalid after: expected the 'next' of a page", "INVALID_CURSOR")
    found = await call.services.store.audit(None if after is None else int(after), limit + 1)
    return json_response(200, responses.Audit(*page(found, limit, "id")))


async def record(call: AdminCall) -> Response:
    """Record what is about to be done to many documents, or to the past of one.

    What the server cannot tell from a client's ordinary writes. The dashboard records so before it begins.
    """
    body = await call.body(bodies.NewEntry)
    if not body.note.isprintable():
        raise bad_request("Invalid note: use printable characters")
    database, collection = call.see(body.database), check_collection(body.collection)
    details = {"note": body.note} if body.note else {}
    await call.write(Noted(call.by, body.action, database.name, collection, details))
    return json_response(201, responses.Recorded())
