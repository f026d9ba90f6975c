"""One request to the admin API: the key, what it may see, and the operations that it submits.

Law: an admin key may do everything. A secret key sees its own database only, and another one as if it did not
exist. No handler finds a database but through `Caller.see`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, TypeVar

import msgspec

from paperdb_trio.auth.accounts import SERVER, ApiKey, Database, Identity, unauthorized
from paperdb_trio.errors import ApiError, bad_request
from paperdb_trio.json_input import parse_json
from paperdb_trio.model import check_collection
from paperdb_trio.net.messages import Request
from paperdb_trio.rest.call import credential_of, is_token, read_json
from paperdb_trio.rest.parameters import LIMIT
from paperdb_trio.rest.table import Access
from paperdb_trio.services import Services
from paperdb_trio.store.operations import Operation

Result = TypeVar("Result")
Body = TypeVar("Body", bound=msgspec.Struct)

PREFIX: Final = "admin.v1"
"""The first segment of the paths. The dot keeps it apart from collections, and nothing percent-encodes it."""
MAX_BODY_BYTES: Final = 64 * 1024


@dataclass(slots=True)
class AdminCall:
    """`parameters` come from the path, `query` from the query string."""

    services: Services
    request: Request
    identity: Identity
    parameters: dict[str, str]
    query: Mapping[str, str]

    @property
    def key(self) -> ApiKey:
        return self.identity.key

    @property
    def own(self) -> Database | None:
        """The database of a secret key; None for an admin key, which has them all."""
        return None if self.key.admin else self.identity.database

    @property
    def by(self) -> str:
        return self.key.by

    def see(self, name: str) -> Database:
        """Raises a 404 for a database that does not exist, or that the key may not see."""
        database = self.services.accounts.database_named(name)
        if database is None or (self.own is not None and database.id != self.own.id):
            raise ApiError(404, "NOT_FOUND", f"There is no database '{name[:80]}'")
        return database

    @property
    def database(self) -> Database:
        """That of the path. Raises a 404."""
        return self.see(self.parameters["database"])

    @property
    def scope(self) -> Database | None:
        """What a list is about: the database in the query, else that of the key; None is all. Raises a 404."""
        name = self.query.get("database")
        return self.own if name is None else self.see(name)

    @property
    def collection(self) -> str:
        return check_collection(self.parameters["collection"])

    @property
    def limit(self) -> int:
        return LIMIT.of(self.query, self.services.settings)

    async def body(self, type: type[Body]) -> Body:
        """Raises a 400 for a body that is not of the type."""
        value = parse_json(await read_json(self.services, self.request, MAX_BODY_BYTES))
        self.check()
        try:
            return msgspec.convert(value, type)
        except msgspec.ValidationError as error:
            raise bad_request(f"Invalid body: {error}") from None

    def check(self) -> None:
        """Raises a 401 if the key was revoked meanwhile."""
        key = self.services.accounts.key(self.key.id)
        if key is None or key.revoked:
            raise unauthorized()

    async def write(self, operation: Operation[Result]) -> Result:
        """Commit an operation, which is in force in this process when this returns. Other processes look four
        times a second."""
        result = await self.services.store.submit(operation)
        await self.services.look_at_accounts()
        return result


def admit(services: Services, request: Request) -> Identity:
    """The identity of a request. Raises a 401 or 403 for any but an admin key and a secret key."""
    credential = credential_of(request)
    if is_token(credential):
        raise ApiError(
            403, "TOKEN_NOT_ALLOWED", "The admin API takes an admin key or a secret key, not a token"
        )
    key = services.accounts.key_of(credential)
    if not key.secret:
        raise ApiError(403, "READ_ONLY_KEY", "This is a public key: the admin API takes none")
    services.limits.request(key.id)
    services.accounts.used.add(key.id)
    if key.database_id is None:
        return Identity(key, SERVER)
    return services.accounts.still(key.id, key.database_id)


def check_access(identity: Identity, access: Access) -> None:
    """Raises a 403 if a route is for admin keys only, and this is another one."""
    if access is Access.ADMIN and not identity.key.admin:
        raise ApiError(403, "ADMIN_KEY_NEEDED", "Only an admin key may do this (paperdb keys create --admin)")
