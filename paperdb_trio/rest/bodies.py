"""JSON Schemas of the request bodies, made from the constants that the parsers check against.

Law: description only. Bodies are parsed by hand (`json_input`, `Draft.parse`, `parse_schema`, `tokens.mint`),
faster than by a general decoder, and with errors that say more. `tests/rest/test_openapi.py` holds the two
together: what is allowed here is accepted, what is not is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from paperdb_trio.auth import rules, tokens
from paperdb_trio.config import Settings
from paperdb_trio.model import COLLECTION_NAME, MAX_ID_LENGTH, SYSTEM_FIELDS
from paperdb_trio.rest.batch import MEMBERS
from paperdb_trio.rest.parameters import AFTER, COUNT, EXPLAIN, FILTER, LIMIT, OFFSET, SELECT, SORT, WHERE
from paperdb_trio.store.document_schema import MAX_PROPERTIES, TYPES
from paperdb_trio.store.indexes import MAX_FIELDS, MAX_INDEXES
from paperdb_trio.store.operations import MAX_UNIQUE_FIELDS

JsonSchema = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Body:
    """`name`: the schema's. `refuses`: the error codes for such a body."""

    name: str
    schema: Callable[[Settings], JsonSchema]
    example: Any
    refuses: tuple[str, ...] = ()


# --- names and ids -------------------------------------------------------------------------------

_NAME: Final = COLLECTION_NAME.pattern.removesuffix(r"\Z")  # JavaScript's regular expressions have no \Z
COLLECTION: Final[JsonSchema] = {"type": "string", "pattern": f"^{_NAME}$"}
ID: Final[JsonSchema] = {
    "type": "string",
    "minLength": 1,
    "maxLength": MAX_ID_LENGTH,
    "pattern": r"^(?!\.{1,2}$)[^/\u0000-\u001f\u007f]+$",
    "format": "printable",  # not every dialect of regular expressions has Unicode's categories
}
PATH: Final = {"collection": COLLECTION, "id": ID}
"""The parameters of paths."""

_ID_REF: Final[JsonSchema] = {"$ref": "#/components/schemas/Id"}
_NEW: Final[JsonSchema] = {"$ref": "#/components/schemas/NewDocument"}


# --- documents -----------------------------------------------------------------------------------


def _new_document(settings: Settings) -> JsonSchema:
    names = {
        "type": "array",
        "maxItems": MAX_UNIQUE_FIELDS,
        "items": {"type": "string", "pattern": r"^[^.]+$"},
    }
    optional_id = {"anyOf": [_ID_REF, {"type": "null"}]}
    return {
        "type": "object",
        "description": "A document's fields. `_id`, or else `key`, sets its id; else the server makes one. "
        "`unique` names fields whose values no other document may have. `key` and `unique` are not stored",
        "properties": {
            "_id": optional_id,
            "unique": {"anyOf": [names, {"type": "null"}]},
        },
        "if": {"required": ["_id"], "properties": {"_id": {"type": "string"}}},
        "else": {"properties": {"key": optional_id}},
    }


_OWN: Final[JsonSchema] = {name: {"readOnly": True} for name in SYSTEM_FIELDS}


def _fields(settings: Settings) -> JsonSchema:
    return {"type": "object", "description": "A document's fields", "properties": _OWN}


def _steps(settings: Settings) -> JsonSchema:
    number: JsonSchema = {"type": "number"}
    operands = {"increment": number, "decrement": number, "unset": {"const": True}}
    return {
        "type": "object",
        "description": 'Fields to set. `{"increment": 1}` and `{"decrement": 1}` add to a number, '
        '`{"push": value}` and `{"pull": value}` change an array, `{"unset": true}` removes the field',
        "properties": _OWN,
        "additionalProperties": {
            "allOf": [
                {
                    "if": {"type": "object", "maxProperties": 1, "required": [step]},
                    "then": {"properties": {step: operand}},
                }
                for step, operand in operands.items()
            ],
        },
    }


def _bulk(settings: Settings) -> JsonSchema:
    documents = {"type": "array", "items": _NEW, "maxItems": settings.max_bulk_documents}
    wrapped = {
        "type": "object",
        "required": ["documents"],
        "properties": {"documents": documents},
        "additionalProperties": False,
    }
    return {
        "description": "Each succeeds or fails on its own, unless `atomic`",
        "anyOf": [documents, wrapped],
    }


_OF_DOCUMENTS: Final = ("INVALID_DOCUMENT", "DOCUMENT_TOO_LARGE", "VALIDATION_FAILED", "CONFLICT")
_OF_NEW_ONES: Final = (
    *_OF_DOCUMENTS,
    "INVALID_ID",
    "INVALID_UNIQUE",
    "TOO_MANY_UNIQUE_FIELDS",
    "TOO_MANY_INDEXES",
)
_EXAMPLE: Final = {"email": "ada@example.com", "age": 36}

NEW_DOCUMENT: Final = Body("NewDocument", _new_document, {"_id": "ada", **_EXAMPLE}, _OF_NEW_ONES)
BULK: Final = Body(
    "NewDocuments", _bulk, [_EXAMPLE, {"email": "bob@example.com"}], (*_OF_NEW_ONES, "TOO_MANY_DOCUMENTS")
)
FIELDS: Final = Body("Fields", _fields, _EXAMPLE, _OF_DOCUMENTS)
PATCH: Final = Body(
    "Patch", _steps, {"age": {"increment": 1}}, (*_OF_DOCUMENTS, "INVALID_INCREMENT", "INVALID_STEP")
)


# --- batches -------------------------------------------------------------------------------------


def _batch(settings: Settings) -> JsonSchema:
    any_of = {
        "id": _ID_REF,
        "document": {"type": "object"},
        "fields": {"$ref": f"#/components/schemas/{PATCH.name}"},
        "ifMatch": {"type": ["string", "integer"], "description": "The ETag that the document must have"},
        "where": {"type": "object", "format": "filterObject", "description": WHERE.about},
    }
    operations = [
        {
            "type": "object",
            "required": ["op", "collection", *needed],
            "properties": {
                "op": {"const": op},
                "collection": COLLECTION,
                **{name: any_of[name] for name in (*needed, *optional)},
                **({"document": _NEW} if op == "insert" else {}),
            },
            "additionalProperties": False,
        }
        for op, (needed, optional) in MEMBERS.items()
    ]
    array = {
        "type": "array",
        "minItems": 1,
        "maxItems": settings.max_bulk_documents,
        "items": {"anyOf": operations},
    }
    return {
        "type": "object",
        "description": "All are done, in this order, or none",
        "required": ["operations"],
        "properties": {"operations": array},
        "additionalProperties": False,
    }


BATCH: Final = Body(
    "Batch",
    _batch,
    {
        "operations": [
            {"op": "insert", "collection": "orders", "document": {"item": "pen", "amount": 2}},
            {"op": "insert", "collection": "ledger", "document": {"item": "pen", "change": -2}},
        ]
    },
    (
        *_OF_NEW_ONES,
        "INVALID_INCREMENT",
        "INVALID_STEP",
        "INVALID_OPERATION",
        "INVALID_COLLECTION",
        "TOO_MANY_DOCUMENTS",
        "BATCH_TOO_LARGE",
    ),
)


# --- queries -------------------------------------------------------------------------------------


def _without_format(schema: JsonSchema) -> JsonSchema:
    return {name: value for name, value in schema.items() if name != "format"}


def _query(settings: Settings) -> JsonSchema:
    named = {
        parameter.name: {**_without_format(parameter.schema(settings)), "description": parameter.about}
        for parameter in (SORT, LIMIT, OFFSET, SELECT, AFTER, COUNT, EXPLAIN)
    }
    return {
        "type": "object",
        "description": "What `GET /{collection}/docs` takes as parameters",
        "properties": {
            "filter": {"type": "object", "format": "filterObject", "description": FILTER.about},
            **named,
        },
        "additionalProperties": False,
    }


QUERY: Final = Body("Query", _query, {"filter": {"age": {"gte": 18}}, "sort": "-createdAt", "limit": 50})


# --- schemas and tokens --------------------------------------------------------------------------

_FIELD: Final[JsonSchema] = {
    "type": "string",
    "minLength": 1,
    "maxLength": 256,
    "pattern": r'^[^."\\\u0000-\u001f\u007f]+(\.[^."\\\u0000-\u001f\u007f]+)*$',
}
_ONLY_INDEX: Final = rf"\.|^({'|'.join(SYSTEM_FIELDS)})$"
"""Dotted paths, and the server's own fields."""


def _schema(settings: Settings) -> JsonSchema:
    rules = {
        "type": "object",
        "properties": {
            "type": {"enum": [*TYPES, None]},
            **{rule: {"type": "boolean"} for rule in ("required", "unique", "index")},
            "default": {"description": "A value of the field's `type`"},
        },
        "additionalProperties": False,
        "allOf": [
            {
                "if": {"required": ["type"], "properties": {"type": {"const": kind}}},
                "then": {"properties": {"default": {"type": [kind, "null"]}}},
            }
            for kind in TYPES
        ],
    }
    only_index = {"type": "object", "properties": {"index": {"type": "boolean"}}, "additionalProperties": False}
    return {
        "type": "object",
        "required": ["properties"],
        "properties": {
            "properties": {
                "type": "object",
                "maxProperties": MAX_PROPERTIES,
                "propertyNames": _FIELD,
                "patternProperties": {_ONLY_INDEX: only_index},
                "additionalProperties": rules,
            },
            "indexes": {
                "type": "array",
                "description": "Each is the fields of an index; `-` before one that descends",
                "maxItems": MAX_INDEXES,
                "items": {
                    "type": "array",
                    "minItems": 1,
                    "maxItems": MAX_FIELDS,
                    "uniqueItems": True,
                    "items": {"type": "string", "format": "indexField"},
                },
            },
        },
        "additionalProperties": False,
    }


_SUBJECT: Final[JsonSchema] = {
    "type": "string",
    "minLength": 1,
    "maxLength": tokens.MAX_SUBJECT_LENGTH,
    "format": "printable",
}


def _permissions(**more: Any) -> JsonSchema:
    return {
        "type": "array",
        "items": {"enum": [*rules.PERMISSIONS]},
        "contains": {"const": "read"},
        **more,
    }


def _token_request(settings: Settings) -> JsonSchema:
    name = rf"^({_NAME}|\*)$"
    rule = {
        "type": "object",
        "properties": {
            "filter": {
                "type": "object",
                "format": "filterObject",
                "description": "Only documents that match it are visible, and only these may be written",
            },
            "select": {
                "type": "array",
                "items": {"type": "string", "format": "field"},
                "description": "Only these fields are visible, and `_id`",
            },
            "permissions": _permissions(description="The token's, by default"),
        },
        "additionalProperties": False,
    }
    names = {
        "type": "array",
        "minItems": 1,
        "maxItems": tokens.MAX_COLLECTIONS,
        "items": {"type": "string", "pattern": name},
    }
    ruled = {
        "type": "object",
        "minProperties": 1,
        "maxProperties": tokens.MAX_COLLECTIONS,
        "propertyNames": {"type": "string", "pattern": name},
        "additionalProperties": rule,
    }
    return {
        "type": "object",
        "required": ["collections"],
        "properties": {
            "collections": {
                "description": "An array, or an object with a rule for each. `*` is every collection. "
                f"The names have at most {tokens.MAX_NAMES_LENGTH:,} characters in all",
                "anyOf": [names, ruled],
            },
            "permissions": _permissions(default=["read"]),
            "expiresIn": {
                "type": "integer",
                "description": "Seconds",
                "minimum": tokens.MIN_SECONDS,
                "maximum": tokens.MAX_SECONDS,
                "default": tokens.DEFAULT_SECONDS,
            },
            "subject": {**_SUBJECT, "description": "Whose token it is, for `POST /realtime/revoke`"},
        },
        "additionalProperties": False,
    }


def _revocation(settings: Settings) -> JsonSchema:
    return {
        "type": "object",
        "properties": {"jti": _SUBJECT, "subject": _SUBJECT},
        "minProperties": 1,
        "maxProperties": 1,
        "additionalProperties": False,
    }


SCHEMA: Final = Body(
    "NewSchema",
    _schema,
    {"properties": {"email": {"type": "string", "required": True}}, "indexes": [["room", "-createdAt"]]},
    ("INVALID_SCHEMA", "INVALID_FIELD", "CONFLICT"),
)
TOKEN_REQUEST: Final = Body(
    "TokenRequest",
    _token_request,
    {"collections": {"orders": {"filter": {"userId": "ada"}, "select": ["status"]}}, "subject": "ada"},
    ("INVALID_COLLECTION", "INVALID_FILTER", "INVALID_FIELD", "UNKNOWN_OPERATOR"),
)
REVOCATION: Final = Body("Revocation", _revocation, {"subject": "ada"})
