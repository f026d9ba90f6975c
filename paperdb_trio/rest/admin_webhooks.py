"""Administration of webhooks.

Law: no framework, no socket, no SQL; every fault in a request is an `ApiError`. A secret is shown only once.
"""

from __future__ import annotations

import msgspec

from paperdb_trio.errors import ApiError, bad_request
from paperdb_trio.match.query import query
from paperdb_trio.model import check_collection, new_id, timestamp
from paperdb_trio.net.messages import Response, json_response
from paperdb_trio.rest import admin_bodies as bodies
from paperdb_trio.rest import admin_responses as responses
from paperdb_trio.rest.admin_call import AdminCall
from paperdb_trio.store.webhook_changes import (
    AddWebhook,
    PauseWebhook,
    RemoveWebhook,
    ResumeWebhook,
    new_secret,
)


async def list_webhooks(call: AdminCall) -> Response:
    found = await call.services.store.webhook_infos()
    tries: dict[str, str] = {}
    for _, of in await call.services.gather("webhook_tries") if found else []:
        tries |= {id: timestamp(at) for id, at in of.items()}
    rows = [responses.ListedWebhook(**msgspec.structs.asdict(of), next_try_at=tries.get(of.id)) for of in found]
    return json_response(200, responses.Webhooks(rows))


async def add_webhook(call: AdminCall) -> Response:
    body = await call.body(bodies.NewWebhook)
    if body.collection is not None:
        query(check_collection(body.collection), body.filter)
    elif body.filter is not None:
        raise bad_request("A 'filter' needs a 'collection'")
    secret = new_secret()
    operation = AddWebhook(call.by, body.database, new_id(), body.url, body.collection, body.filter, secret)
    made = await call.write(operation)
    return json_response(201, responses.CreatedWebhook(**msgspec.structs.asdict(made), secret=secret))


async def remove_webhook(call: AdminCall) -> Response:
    await call.write(RemoveWebhook(call.by, call.parameters["webhook"]))
    return json_response(200, responses.WebhookRemoved())


async def pause_webhook(call: AdminCall) -> Response:
    return json_response(200, await call.write(PauseWebhook(call.by, call.parameters["webhook"])))


async def resume_webhook(call: AdminCall) -> Response:
    return json_response(200, await call.write(ResumeWebhook(call.by, call.parameters["webhook"])))


async def test_webhook(call: AdminCall) -> Response:
    id = call.parameters["webhook"]
    known = any(webhook.id == id for webhook in await call.services.store.webhook_infos())
    asked = await call.services.gather("webhook_test", id) if known else []
    found = [of for _, of in asked if of is not None]
    if not found:
        raise ApiError(404, "NOT_FOUND", f"There is no webhook '{id[:80]}'")
    return json_response(200, msgspec.convert(found[0], responses.WebhookTested))
