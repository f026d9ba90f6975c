"""The request bodies of the admin API. Both the parser and the OpenAPI document follow from these types."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from paperdb_trio.config import Settings
from paperdb_trio.model import DATABASE_NAME
from paperdb_trio.rest.bodies import Body, JsonSchema
from paperdb_trio.store.indexes import MAX_FIELDS
from paperdb_trio.store.records import KINDS, MAX_LABEL_LENGTH, PLANS
from paperdb_trio.store.webhooks import MAX_URL_LENGTH

Name = Annotated[str, Meta(pattern=f"^{DATABASE_NAME.pattern.removesuffix(chr(92) + 'Z')}$")]
Label = Annotated[str, Meta(max_length=MAX_LABEL_LENGTH, extra_json_schema={"format": "printable"})]
When = Annotated[str, Meta(extra_json_schema={"format": "date-time"})]


class NewDatabase(Struct, forbid_unknown_fields=True):
    name: Name
    plan: Literal[PLANS]  # type: ignore[valid-type]


class DatabaseChange(Struct, forbid_unknown_fields=True):
    """`name`: the new one."""

    name: Name | UnsetType = UNSET
    plan: Literal[PLANS] | UnsetType = UNSET  # type: ignore[valid-type]


class NewKeyRequest(Struct, forbid_unknown_fields=True, rename="camel"):
    """`database`: not for an admin key. `label`: a note."""

    kind: Literal[KINDS]  # type: ignore[valid-type]
    database: str | None = None
    label: Label = ""
    expires_at: When | None = None


class KeyChange(Struct, forbid_unknown_fields=True, rename="camel"):
    """`expiresAt`: null for never."""

    expires_at: When | UnsetType | None = UNSET
    label: Label | UnsetType = UNSET


class NewIndex(Struct, forbid_unknown_fields=True):
    """`fields`: with `-` before one that descends."""

    fields: Annotated[
        list[Annotated[str, Meta(extra_json_schema={"format": "indexField"})]],
        Meta(min_length=1, max_length=MAX_FIELDS, extra_json_schema={"uniqueItems": True}),
    ]


class NewWebhook(Struct, forbid_unknown_fields=True):
    """`collection`: without it, all changes of the database. `filter`: needs a `collection`."""

    database: str
    url: Annotated[str, Meta(max_length=MAX_URL_LENGTH, extra_json_schema={"format": "webhookUrl"})]
    collection: Name | None = None
    filter: Annotated[dict[str, Any], Meta(extra_json_schema={"format": "filterObject"})] | None = None


class NewEntry(Struct, forbid_unknown_fields=True):
    """`note`: in words, what was about to be done to the collection."""

    action: Literal["documents.delete", "documents.import", "document.restore"]
    database: str
    collection: Name
    note: Annotated[str, Meta(max_length=500, extra_json_schema={"format": "printable"})] = ""


def _body(type: Any, example: Any, *refuses: str, **more: Any) -> Body:
    """`more`: what the type cannot say, for the JSON Schema."""

    def schema(settings: Settings) -> JsonSchema:
        (made,) = msgspec.json.schema_components([type])[1].values()
        described: JsonSchema = {**made, **more, "description": " ".join((type.__doc__ or "").split())}
        return described

    return Body(type.__name__, schema, example, refuses)


NEW_DATABASE: Final = _body(NewDatabase, {"name": "shop", "plan": "pro"}, "CONFLICT")
DATABASE_CHANGE: Final = _body(DatabaseChange, {"plan": "team"}, "CONFLICT")
NEW_KEY: Final = _body(
    NewKeyRequest,
    {"kind": "secret", "database": "shop", "label": "back end"},
    "NOT_FOUND",
    **{
        "if": {"properties": {"kind": {"const": "admin"}}},
        "then": {"properties": {"database": {"type": "null"}}},
        "else": {"required": ["database"], "properties": {"database": {"type": "string"}}},
    },
)
KEY_CHANGE: Final = _body(KeyChange, {"expiresAt": "2027-01-31T12:00:00.000Z"})
NEW_INDEX: Final = _body(
    NewIndex,
    {"fields": ["room", "-createdAt"]},
    "INVALID_FIELD",
    "INVALID_SCHEMA",
    "CONFLICT",
    "TOO_MANY_INDEXES",
)
NEW_WEBHOOK: Final = _body(
    NewWebhook,
    {"database": "shop", "url": "https://example.com/hook", "collection": "orders", "filter": {"paid": True}},
    "NOT_FOUND",
    "INVALID_COLLECTION",
    "INVALID_FILTER",
    "UNKNOWN_OPERATOR",
    "INVALID_FIELD",
)
NEW_ENTRY: Final = _body(
    NewEntry,
    {"action": "documents.import", "database": "shop", "collection": "orders", "note": "orders.csv"},
    "NOT_FOUND",
    "INVALID_COLLECTION",
)
