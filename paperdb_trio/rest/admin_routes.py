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
    handler: Callable[[AdminCall], Awaitable[Response]],
    returns: Mapping[int, type | None],
    query: tuple[str, ...] = (),
    body: Body | None = None,
    refuses: tuple[str, ...] = (),
) -> Route:
    return Route(method, f"/{PREFIX}/{path}", handler, who, query, body=body, returns=returns, refuses=refuses)


ADMIN_ROUTES: Final = (
    _route(Access.OWN, "GET", "me", access.me, {200: responses.Me}),
    _route(
        Access.OWN, "GET", "databases", access.list_databases, {200: responses.Databases}, ("limit", "after")
    ),
    _route(
        Access.ADMIN, "POST", "databases", access.create_database, {201: DatabaseInfo}, body=bodies.NEW_DATABASE
    ),
    _route(
        Access.ADMIN,
        "PATCH",
        _DATABASE,
        access.change_database,
        {200: DatabaseInfo},
        body=bodies.DATABASE_CHANGE,
    ),
    _route(
        Access.ADMIN,
        "DELETE",
        _DATABASE,
        access.delete_database,
        {200: responses.DatabaseDeleted},
        ("confirm",),
        refuses=("CONFIRMATION_NEEDED",),
    ),
    _route(
        Access.OWN,
        "GET",
        "keys",
        access.list_keys,
        {200: responses.Keys},
        ("database", "limit", "after"),
        refuses=("NOT_FOUND",),
    ),
    _route(Access.ADMIN, "POST", "keys", access.create_key, {201: responses.CreatedKey}, body=bodies.NEW_KEY),
    _route(
        Access.ADMIN,
        "PATCH",
        "keys/:key",
        access.change_key,
        {200: KeyInfo},
        body=bodies.KEY_CHANGE,
        refuses=("CONFLICT",),
    ),
    _route(Access.ADMIN, "DELETE", "keys/:key", access.revoke_key, {200: KeyInfo}, refuses=("CONFLICT",)),
    _route(Access.ADMIN, "GET", "secrets", access.list_secrets, {200: responses.Secrets}),
    _route(Access.ADMIN, "POST", "secrets", access.rotate_secret, {201: SecretInfo}),
    _route(Access.OWN, "GET", "health", health, {200: responses.ServerHealth}),
    _route(
        Access.OWN,
        "GET",
        "connections",
        live.list_connections,
        {200: responses.Connections},
        ("database", "limit", "after"),
        refuses=("NOT_FOUND", "INVALID_CURSOR"),
    ),
    _route(
        Access.OWN,
        "GET",
        "connections/:connection/why",
        live.explain_connection,
        {200: responses.Why},
        ("seq", "collection", "id"),
        refuses=("INVALID_COLLECTION", "INVALID_ID"),
    ),
    _route(
        Access.OWN,
        "DELETE",
        "connections/:connection",
        live.end_connection,
        {200: responses.ConnectionEnded},
        ("revoke",),
        refuses=("CONFLICT",),
    ),
    _route(Access.OWN, "GET", _INDEXES, access.list_indexes, {200: responses.Indexes}),
    _route(Access.OWN, "POST", _INDEXES, access.create_index, {201: IndexInfo}, body=bodies.NEW_INDEX),
    _route(
        Access.OWN,
        "DELETE",
        f"{_INDEXES}/:index",
        access.drop_index,
        {200: responses.IndexDropped},
        refuses=("CONFLICT",),
    ),
    _route(
        Access.ADMIN,
        "GET",
        "audit",
        access.list_audit,
        {200: responses.Audit},
        ("limit", "after"),
        refuses=("INVALID_CURSOR",),
    ),
    _route(Access.OWN, "POST", "audit", access.record, {201: responses.Recorded}, body=bodies.NEW_ENTRY),
    _route(Access.ADMIN, "GET", "webhooks", webhooks.list_webhooks, {200: responses.Webhooks}),
    _route(
        Access.ADMIN,
        "POST",
        "webhooks",
        webhooks.add_webhook,
        {201: responses.CreatedWebhook},
        body=bodies.NEW_WEBHOOK,
    ),
    _route(
        Access.ADMIN, "DELETE", "webhooks/:webhook", webhooks.remove_webhook, {200: responses.WebhookRemoved}
    ),
    _route(Access.ADMIN, "POST", "webhooks/:webhook/revive", webhooks.revive_webhook, {200: WebhookInfo}),
    _route(
        Access.ADMIN, "POST", "webhooks/:webhook/test", webhooks.test_webhook, {200: responses.WebhookTested}
    ),
)
