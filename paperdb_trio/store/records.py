"""What administrators see: databases, keys, signing secrets, indexes, and who did what.

Law: shapes only, as the admin API and the command line show them. No secret, hash or token is in any of them.
Times are RFC 3339 in UTC.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

from msgspec import Meta, Struct

PLANS: Final = ("free", "pro", "team")
KINDS: Final = ("secret", "public", "admin")
MAX_LABEL_LENGTH: Final = 128

Number = Annotated[int, Meta(ge=0)]
Time = Annotated[str, Meta(extra_json_schema={"format": "date-time"})]


class DatabaseInfo(Struct, rename="camel", kw_only=True):
    """`seq`: that of its last change. `trimmed`: that of the last change that is gone from the log."""

    name: str
    plan: Literal[PLANS]  # type: ignore[valid-type]
    created_at: Time
    collections: Number
    documents: Number
    seq: Number
    trimmed: Number


class KeyInfo(Struct, rename="camel", kw_only=True):
    """An API key, without the key. `database`: null for an admin key. `lastUsedAt`: to the minute."""

    id: str
    kind: Literal[KINDS]  # type: ignore[valid-type]
    label: str
    database: str | None
    created_at: Time
    expires_at: Time | None
    last_used_at: Time | None
    revoked_at: Time | None


class SecretInfo(Struct, rename="camel", kw_only=True):
    """A secret that signs tokens, without the secret. `retiredAt`: null for the one that signs new tokens."""

    id: str
    created_at: Time
    retired_at: Time | None


class IndexInfo(Struct, rename="camel", kw_only=True):
    """`automatic`: made by the server or by an administrator, and removed when nothing uses it; the schema
    declares the others. `state`: a broken index should be unique, but two documents have the same value.
    `built`: how many of the collection's `documents` are in it, about."""

    id: Number
    fields: list[str]
    unique: bool
    automatic: bool
    state: Literal["ready", "building", "broken"]
    built: Number
    documents: Number


class AuditEntry(Struct, rename="camel", kw_only=True):
    """`by`: the key, or the user of the command line. `database`: its name at that time."""

    id: Number
    at: Time
    by: str
    action: str
    database: str | None
    target: str | None
    details: dict[str, Any]


def made(type: Any, row: Iterable[Any]) -> Any:
    """One of these, from its values in order."""
    return type(**dict(zip(type.__struct_fields__, row, strict=True)))


@dataclass(frozen=True, slots=True)
class NewKey:
    """The stored part of a key. `expires`: milliseconds since the epoch; None: never."""

    id: str
    kind: str
    label: str
    hash: bytes
    expires: int | None = None
