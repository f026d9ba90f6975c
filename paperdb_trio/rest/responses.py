"""The responses of the routes: objects that handlers encode and the OpenAPI document describes.

Law: shapes only. Documents and changes are already JSON, and are inserted as they are (`msgspec.Raw`).
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from msgspec import UNSET, Meta, Raw, Struct, UnsetType, field

from paperdb_trio.auth.rules import PERMISSIONS
from paperdb_trio.store.document_schema import TYPES

Seq = Annotated[int, Meta(ge=0)]
Timestamp = Annotated[str, Meta(extra_json_schema={"format": "date-time"})]
Number = Annotated[int, Meta(ge=0)]


def _is(name: str) -> Meta:
    return Meta(extra_json_schema={"$ref": f"#/components/schemas/{name}"})


class Document(Struct):
    """A document: its own fields, and the server's. The ETag is the seq of its last change."""

    HAS_ETAG: ClassVar = True
    EXAMPLE: ClassVar[dict[str, Any]] = {
        "_id": "ada",
        "email": "ada@example.com",
        "age": 36,
        "createdAt": "2026-01-31T12:00:00.000Z",
        "updatedAt": "2026-01-31T12:00:00.000Z",
    }

    id: str = field(name="_id")
    created_at: Timestamp = field(name="createdAt")
    updated_at: Timestamp = field(name="updatedAt")


class SelectedDocument(Struct):
    """A document, or the fields of it that `select` names: that of the request, or of the token's rule."""

    HAS_ETAG: ClassVar = True

    id: str = field(name="_id")
    created_at: Timestamp | UnsetType = field(name="createdAt", default=UNSET)
    updated_at: Timestamp | UnsetType = field(name="updatedAt", default=UNSET)


class Explanation(Struct, rename="camel"):
    """How documents were found. `index`: the fields of the one that was used. `order`: where their order comes
    from. `looksAt`: so many documents, or entries of the index. `documents`: all in the collection. `building`:
    indexes that are not finished. `suggestion`: the fields of an index that would be better."""

    index: list[str] | None
    order: str
    looks_at: Number
    documents: Number
    building: list[list[str]]
    suggestion: list[str] | None


class Page(Struct, rename="camel"):
    """`seq`: the last change that the documents show. `total`, `explain`: only if they were asked for. `next`:
    what `after` takes for the next page, if there is one."""

    documents: list[Annotated[Raw, _is("SelectedDocument")]]
    limit: Number
    offset: Number
    has_more: bool
    seq: Seq
    total: Number | UnsetType = UNSET
    next: str | UnsetType = UNSET
    explain: Explanation | UnsetType = UNSET


class Failure(Struct):
    """`index`: the document's place in the bulk."""

    index: Number
    error: str
    code: str


class Bulk(Struct):
    """`documents`: those that were inserted. `errors`: only if there are any."""

    inserted: Number
    failed: Number
    documents: list[Annotated[Raw, _is("SelectedDocument")]]
    errors: list[Failure] | UnsetType = UNSET


class Deleted(Struct, kw_only=True):
    HAS_ETAG: ClassVar = True

    deleted: bool = True
    id: str = field(name="_id")


class Count(Struct):
    count: Number


class Change(Struct):
    """`data`: the whole document, or what `select` names; for a delete, as it last was. `txn`: the seq of the
    first change of its transaction, if that has several. With a filter or a select, `query` is the id of the
    query, and `cause` what happened to the document. A `reset` has no `data`, and says its `reason`."""

    seq: Seq
    type: Literal["insert", "update", "delete", "reset"]
    collection: str
    data: SelectedDocument | UnsetType = UNSET
    txn: Seq | UnsetType = UNSET
    query: str | UnsetType = UNSET
    cause: Literal["insert", "update", "delete"] | UnsetType = UNSET
    reason: Literal["gap", "size", "error"] | UnsetType = UNSET


class Version(Struct):
    """`data`: the whole document; for a delete, as it last was."""

    seq: Seq
    type: Literal["insert", "update", "delete"]
    data: Document


class Versions(Struct):
    versions: list[Annotated[Raw, _is("Version")]]


class BatchResult(Struct):
    """The document, or what a delete responds with."""

    id: str = field(name="_id")
    created_at: Timestamp | UnsetType = field(name="createdAt", default=UNSET)
    updated_at: Timestamp | UnsetType = field(name="updatedAt", default=UNSET)
    deleted: bool | UnsetType = UNSET


class BatchResults(Struct):
    """`results`: the document of each operation; `{"deleted": true, "_id"}` of a delete. `txn`: the seq of the
    first; the following have the next ones."""

    results: list[Annotated[Raw, _is("BatchResult")]]
    txn: Seq


class Changes(Struct, rename="camel"):
    """`seq`: the cursor to continue from."""

    changes: list[Annotated[Raw, _is("Change")]]
    seq: Seq
    has_more: bool


class Property(Struct):
    type: Literal[TYPES] | UnsetType | None = UNSET  # type: ignore[valid-type]
    required: bool | UnsetType = UNSET
    unique: bool | UnsetType = UNSET
    index: bool | UnsetType = UNSET
    default: Any = UNSET


class Schema(Struct):
    """The schema of a collection, as it was set."""

    properties: dict[str, Property]
    indexes: list[list[str]] | UnsetType = UNSET


class Collection(Struct):
    name: str
    count: Number
    schema: Schema | None


class Collections(Struct):
    collections: Annotated[
        Raw, Meta(extra_json_schema={"type": "array", "items": {"$ref": "#/components/schemas/Collection"}})
    ]


class SchemaDeleted(Struct):
    deleted: bool = True


class Dropped(Struct):
    """`deleted`: how many documents the collection had."""

    deleted: Number


Permissions = list[Literal[PERMISSIONS]]  # type: ignore[valid-type]


class Rule(Struct):
    """`filter`: the documents. `select`: their visible fields, beside `_id`."""

    filter: dict[str, Any] | UnsetType = UNSET
    select: list[str] | UnsetType = UNSET
    permissions: Permissions | UnsetType = UNSET


class Token(Struct, rename="camel"):
    """`token` is a JWT that only the server reads. `jti`, its id: only of tokens with rules or a `subject`."""

    token: str
    expires_at: Timestamp
    expires_in: Number
    collections: list[str] | dict[str, Rule]
    permissions: Permissions
    subject: str | UnsetType = UNSET
    jti: str | UnsetType = UNSET


class Revoked(Struct):
    """`at`: a subject's tokens that were minted up to this moment are no longer valid."""

    at: Timestamp
    revoked: bool = True


class Health(Struct):
    """`storage`: only if the disk is full, so that only writes that free space are done."""

    status: Literal["ok", "ready"]
    storage: Literal["full"] | UnsetType = UNSET


class OpenApi(Struct):
    openapi: str
    info: dict[str, Any]
    paths: dict[str, Any]
    components: dict[str, Any]


class Error(Struct):
    """`error` is a sentence for people, `code` is for programs.

    `index`: which document of a bulk. `oldest`: the first seq that the log still holds. `plan`: the database's.
    """

    error: str
    code: str
    index: Number | UnsetType = UNSET
    oldest: Seq | UnsetType = UNSET
    plan: str | UnsetType = UNSET
