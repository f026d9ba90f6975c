"""The responses of the admin API.

Law: shapes only. Rows of lists are in `store/records.py`, because the command line shows them, too.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import UNSET, Meta, Struct, UnsetType

from paperdb_trio.store.records import AuditEntry, DatabaseInfo, IndexInfo, KeyInfo, Number, SecretInfo


class Me(Struct):
    """The key of this request. `database`: null for an admin key."""

    id: str
    kind: Annotated[str, Meta(extra_json_schema={"enum": ["admin", "secret"]})]
    label: str
    database: str | None
    version: str


class Databases(Struct):
    """By name. `next`: what `after` takes for the next page, if there is one."""

    databases: list[DatabaseInfo]
    next: str | UnsetType = UNSET


class DatabaseDeleted(Struct):
    """`documents`: how many it had."""

    documents: Number
    deleted: bool = True


class Keys(Struct):
    """The oldest first. `next`: what `after` takes for the next page, if there is one."""

    keys: list[KeyInfo]
    next: str | UnsetType = UNSET


class CreatedKey(KeyInfo, rename="camel", kw_only=True):
    """`key`: shown only here."""

    key: str


class Secrets(Struct):
    """The newest first."""

    secrets: list[SecretInfo]


class Audit(Struct):
    """The newest first. `next`: what `after` takes for the next page, if there is one."""

    entries: list[AuditEntry]
    next: str | UnsetType = UNSET


class Indexes(Struct):
    indexes: list[IndexInfo]


class IndexDropped(Struct):
    deleted: bool = True
