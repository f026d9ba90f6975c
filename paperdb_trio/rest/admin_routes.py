"""The routes of the admin API: rows of the one table, which `routes` joins with the others."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from paperdb_trio.net.messages import Response
from paperdb_trio.rest import admin_access as access
from paperdb_trio.rest import admin_bodies as bodies
from paperdb_trio.rest import admin_live as live
from paperdb_trio.rest import admin_responses as responses
from paperdb_trio.rest import admin_webhooks as webhooks
from paperdb_trio.rest.admin_call import PREFIX, AdminCall
from paperdb_trio.rest.admin_health import health
from paperdb_trio.rest.bodies import Body
from paperdb_trio.rest.table import Access, Route
from paperdb_trio.store.records import DatabaseInfo, IndexInfo, KeyInfo, SecretInfo
from paperdb_trio.store.webhooks import WebhookInfo

_DATABASE: Final = "databases/:database"
_INDEXES: Final = "databases/:database/collections/:collection/indexes"


def _route(
    who: Access,
    method: str,
    path: str,
    about: str,
    handler: Callable[[AdminCall], Awaitable[Response]],
    returns: Mapping[int, type | None],
    query: tuple[str, ...] = (),
    body: Body | None = None,
    refuses: tuple[str, ...] = (),
) -> Route:
    pattern = f"/{PREFIX}/{path}"
    return Route(
        "administration",
        method,
        pattern,
        about,
        handler,
        who,
        query,
        body=body,
        returns=returns,
        refuses=refuses,
    )


ADMIN_ROUTES: Final = (
    _route(Access.OWN, "GET", "me", "Get the key of this request.", access.me, {200: responses.Me}),
    _route(
        Access.OWN,
        "GET",
        "databases",
        "List the databases.",
        access.list_databases,
        {200: responses.Databases},
        ("limit", "after"),
    ),
    _route(
        Access.ADMIN,
        "POST",
        "databases",
        "Create a database.",
        access.create_database,
        {201: DatabaseInfo},
        body=bodies.NEW_DATABASE,
    ),
    _route(
        Access.ADMIN,
        "PATCH",
        _DATABASE,
        "Rename a database, or put it on another plan. "
        "Its keys, tokens and connections go on, unless the new plan has no realtime.",
        access.change_database,
        {200: DatabaseInfo},
        body=bodies.DATABASE_CHANGE,
    ),
    _route(
        Access.ADMIN,
        "DELETE",
        _DATABASE,
        "Delete a database, with its documents, change log and keys. "
        "Its tokens and connections end at once. The space is freed in the background.",
        access.delete_database,
        {200: responses.DatabaseDeleted},
        ("confirm",),
        refuses=("CONFIRMATION_NEEDED",),
    ),
    _route(
        Access.OWN,
        "GET",
        "keys",
        "List the keys, without the keys themselves.",
        access.list_keys,
        {200: responses.Keys},
        ("database", "limit", "after"),
        refuses=("NOT_FOUND",),
    ),
    _route(
        Access.ADMIN,
        "POST",
        "keys",
        "Create a key, and show it once.",
        access.create_key,
        {201: responses.CreatedKey},
        body=bodies.NEW_KEY,
    ),
    _route(
        Access.ADMIN,
        "PATCH",
        "keys/:key",
        "Let a key expire, or label it.",
        access.change_key,
        {200: KeyInfo},
        body=bodies.KEY_CHANGE,
        refuses=("CONFLICT",),
    ),
    _route(
        Access.ADMIN,
        "DELETE",
        "keys/:key",
        "Revoke a key. Its tokens and their connections end within a second.",
        access.revoke_key,
        {200: KeyInfo},
        refuses=("CONFLICT",),
    ),
    _route(
        Access.ADMIN,
        "GET",
        "secrets",
        "List the secrets that sign tokens, without the secrets themselves.",
        access.list_secrets,
        {200: responses.Secrets},
    ),
    _route(
        Access.ADMIN,
        "POST",
        "secrets",
        "Sign new tokens with a new secret. Tokens of the old one stay valid until they expire.",
        access.rotate_secret,
        {201: SecretInfo},
    ),
    _route(
        Access.OWN,
        "GET",
        "health",
        "Get the figures of the server, its slow queries, and how many listen. "
        "With a secret key: those of its database.",
        health,
        {200: responses.ServerHealth},
    ),
    _route(
        Access.OWN,
        "GET",
        "connections",
        "List WebSockets, event streams and long polls that wait: who listens to what, and how far behind.",
        live.list_connections,
        {200: responses.Connections},
        ("database", "limit", "after"),
        refuses=("NOT_FOUND", "INVALID_CURSOR"),
    ),
    _route(
        Access.OWN,
        "GET",
        "connections/:connection/why",
        "Tell why a connection did or did not get a change. "
        "The change is that with the `seq`, or the newest one of the document with `collection` and `id`.",
        live.explain_connection,
        {200: responses.Why},
        ("seq", "collection", "id"),
        refuses=("INVALID_COLLECTION", "INVALID_ID"),
    ),
    _route(
        Access.OWN,
        "DELETE",
        "connections/:connection",
        "Close a connection. "
        "Its client is told to connect again (1012), unless its token is revoked: `revoke` (4403).",
        live.end_connection,
        {200: responses.ConnectionEnded},
        ("revoke",),
        refuses=("CONFLICT",),
    ),
    _route(
        Access.OWN,
        "GET",
        _INDEXES,
        "List the indexes of a collection, and how far they are built.",
        access.list_indexes,
        {200: responses.Indexes},
    ),
    _route(
        Access.OWN,
        "POST",
        _INDEXES,
        "Make an index for a collection. "
        "The server builds it in the background. As one that it made itself, it goes when nothing uses it.",
        access.create_index,
        {201: IndexInfo},
        body=bodies.NEW_INDEX,
    ),
    _route(
        Access.OWN,
        "DELETE",
        f"{_INDEXES}/:index",
        "Remove an index that no schema declares.",
        access.drop_index,
        {200: responses.IndexDropped},
        refuses=("CONFLICT",),
    ),
    _route(
        Access.ADMIN,
        "GET",
        "audit",
        "List who did what: the newest first.",
        access.list_audit,
        {200: responses.Audit},
        ("limit", "after"),
        refuses=("INVALID_CURSOR",),
    ),
    _route(
        Access.OWN,
        "POST",
        "audit",
        "Record what is about to be done to many documents, or to the past of one. "
        "What the server cannot tell from a client's ordinary writes. "
        "The dashboard records so before it begins.",
        access.record,
        {201: responses.Recorded},
        body=bodies.NEW_ENTRY,
    ),
    _route(
        Access.ADMIN,
        "GET",
        "webhooks",
        "List the webhooks: where each posts to, how far it is, and why not further.",
        webhooks.list_webhooks,
        {200: responses.Webhooks},
    ),
    _route(
        Access.ADMIN,
        "POST",
        "webhooks",
        "Post the changes from now on to a URL, and show the secret that signs them once.",
        webhooks.add_webhook,
        {201: responses.CreatedWebhook},
        body=bodies.NEW_WEBHOOK,
    ),
    _route(
        Access.ADMIN,
        "DELETE",
        "webhooks/:webhook",
        "Remove a webhook. What was not delivered yet never will be.",
        webhooks.remove_webhook,
        {200: responses.WebhookRemoved},
    ),
    _route(
        Access.ADMIN,
        "POST",
        "webhooks/:webhook/pause",
        "Deliver nothing to a webhook until it is resumed. It stays where it is.",
        webhooks.pause_webhook,
        {200: WebhookInfo},
    ),
    _route(
        Access.ADMIN,
        "POST",
        "webhooks/:webhook/resume",
        "Let a paused or dead webhook go on where it was, or a failing one try again now.",
        webhooks.resume_webhook,
        {200: WebhookInfo},
    ),
    _route(
        Access.ADMIN,
        "POST",
        "webhooks/:webhook/test",
        "Send an event of the type `test` to a webhook now.",
        webhooks.test_webhook,
        {200: responses.WebhookTested},
    ),
)
