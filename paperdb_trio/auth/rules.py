"""Rules: what a token may do with the documents of a collection.

Law: no I/O. A rule is checked when a token is minted, and travels in it. Its holder can read it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import msgspec

from paperdb_trio.errors import ApiError, bad_request
from paperdb_trio.model import encode
from paperdb_trio.store.projection import selection
from paperdb_trio.store.query import Question, ask
from paperdb_trio.store.view import View

PERMISSIONS: Final = ("read", "write")


class RuleClaim(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """A rule as it is requested, and as it is written in a token."""

    filter: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET
    select: list[str] | msgspec.UnsetType = msgspec.UNSET
    permissions: list[str] | msgspec.UnsetType = msgspec.UNSET


@dataclass(frozen=True, slots=True)
class Rule:
    """`filter`: which documents; None is all. `select`: which of their fields, `_id` among them; None is all.
    `read` and `write`: what may be done with them."""

    filter: dict[str, Any] | None = None
    select: tuple[str, ...] | None = None
    read: bool = True
    write: bool = False

    @property
    def view(self) -> View | None:
        """What it shows; None is everything."""
        if self.filter is None and self.select is None:
            return None
        return View(None if self.filter is None else _question(encode(self.filter).decode()), self.select)


@lru_cache(maxsize=256)  # each up to 50 KB: anybody with a public key mints rules
def _question(filter: str) -> Question:
    try:
        return ask(filter)
    except ApiError as error:  # minted by another version
        raise ApiError(
            401, "INVALID_TOKEN", f"Invalid token: this server does not understand its rule: {error.message}"
        ) from None


def rule_of(claim: RuleClaim, permissions: list[str]) -> Rule:
    """`permissions`: the token's, for a rule that has none of its own."""
    own = permissions if claim.permissions is msgspec.UNSET else claim.permissions
    select = None if claim.select is msgspec.UNSET else tuple(dict.fromkeys(["_id", *claim.select]))
    filter = None if claim.filter is msgspec.UNSET else claim.filter or None
    return Rule(filter, select, "read" in own, "write" in own)


def check_permissions(permissions: object, where: str = "") -> list[str]:
    """Raises a 400."""
    if (
        not isinstance(permissions, list)
        or "read" not in permissions
        or not all(permission in PERMISSIONS for permission in permissions)
    ):
        raise bad_request(f'\'permissions\'{where} must be ["read"] or ["read", "write"]')
    return permissions


def parse_rules(collections: Mapping[str, Any]) -> dict[str, RuleClaim]:
    """Raises a 400 that names the collection and what is wrong with its rule."""
    return {name: _parse_rule(name, rule) for name, rule in collections.items()}


def _parse_rule(name: str, rule: object) -> RuleClaim:
    where = f" of '{name}'"
    if not isinstance(rule, dict):
        raise bad_request(
            f'The rule{where} must be an object like {{"filter": {{"userId": "alice"}}, "select": ["status"]}}'
        )
    for member in rule:
        if member not in RuleClaim.__struct_fields__:
            raise bad_request(
                f"Unknown member '{member[:80]}' in the rule{where}; expected filter, select, permissions"
            )
    try:
        if "filter" in rule:
            if not isinstance(rule["filter"], dict):
                raise bad_request("'filter' must be an object", "INVALID_FILTER")
            ask(encode(rule["filter"]).decode())
        if "select" in rule:
            if not isinstance(rule["select"], list):
                raise bad_request("'select' must be an array of fields")
            selection(rule["select"])
    except ApiError as error:
        raise bad_request(f"The rule{where}: {error.message}", error.code) from None
    if "permissions" in rule:
        check_permissions(rule["permissions"], where)
    return RuleClaim(**rule)
