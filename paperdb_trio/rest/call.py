"""One request to one route: the client, the parameters and the body.

Law: no framework, no socket; every fault in a request is an `ApiError`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from typing import Any, Final, TypeVar

from paperdb_trio.auth import tokens
from paperdb_trio.auth.accounts import Accounts, Identity, unauthorized
from paperdb_trio.auth.seal import Seal
from paperdb_trio.errors import ApiError, bad_request
from paperdb_trio.json_input import parse_document
from paperdb_trio.model import check_collection, check_id, encode
from paperdb_trio.net.messages import Request, Response, error_response
from paperdb_trio.services import Services
from paperdb_trio.store.housekeeping import until_indexed
from paperdb_trio.store.operations import Operation
from paperdb_trio.store.requests import Kept, Once, Recall, Remember, RequestKey
from paperdb_trio.store.view import View

Result = TypeVar("Result")

DATABASE_HEADER: Final = "x-paperdb-database"
"""Names the database of a request with an admin key."""
MAX_IDEMPOTENCY_KEY: Final = 255
"""Characters."""
LARGE_BYTES: Final = 64 * 1024
"""Bytes. JSON above this size takes up to 50 ms per megabyte to decode: one per loop iteration."""


def _is_json(content_type: str) -> bool:
    kind, *parameters = (part.strip().lower() for part in content_type.split(";"))
    charsets = [part[8:].strip('"') for part in parameters if part.startswith("charset=")]
    return (kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))) and all(
        charset in ("utf-8", "utf8", "us-ascii") for charset in charsets
    )


def _unsupported(message: str, headers: dict[str, str] | None = None) -> ApiError:
    return ApiError(415, "UNSUPPORTED_MEDIA_TYPE", message, headers=headers)


@dataclass(slots=True)
class Call:
    """`parameters` come from the path, `query` from the query string."""

    services: Services
    request: Request
    identity: Identity
    parameters: dict[str, str]
    query: dict[str, str]
    token: tokens.Grant | None = None
    _said: bytes = b""

    @property
    def database_id(self) -> int:
        return self.identity.database.id

    @property
    def collection(self) -> str:
        return check_collection(self.parameters["collection"])

    @property
    def view(self) -> View | None:
        """What the client may see of the collection; None is everything. Raises a 403 `NOT_IN_TOKEN`."""
        return None if self.token is None else self.token.rule(self.collection).view

    def view_to_write(self, collection: str) -> View | None:
        """The view within which the client may write. Raises a 403 `NOT_IN_TOKEN` or `READ_ONLY_TOKEN`."""
        if self.token is None:
            return None
        rule = self.token.rule(collection)
        if not rule.write:
            raise ApiError(403, "READ_ONLY_TOKEN", f"The token can read '{collection}', not write to it")
        return rule.view

    @property
    def seal(self) -> Seal | None:
        """What hides the cursors of pages from the client; None: nothing, because it may see everything."""
        if self.view is None:
            return None
        accounts = self.services.accounts
        secrets = (accounts.signing[1], *(secret for _, secret, _ in accounts.keyring))
        return Seal(secrets, f"{self.database_id}/{self.collection}")

    @property
    def id(self) -> str:
        return check_id(self.parameters["id"])

    async def body(self, max_bytes: int | None = None) -> bytes:
        """See `read_json`. Raises a 401 if the client lost its access meanwhile, too."""
        body = await read_json(self.services, self.request, max_bytes)
        self.services.accounts.still(self.identity.key.id, self.database_id)
        if self.token is not None:
            self.token.check(self.services.accounts)
        self._said = body
        return body

    async def write(
        self, operation: Operation[Result | None], respond: Callable[[Result], Response]
    ) -> Response:
        """Commit an operation, and return the response that `respond` makes of its result. With an
        `Idempotency-Key`, only the first time; later the same response.

        An operation with a false result needs an index that is being built, and is repeated. Both may have to
        go to another process: `respond` is a function of a module, or a `partial` of one.
        """
        store, request = self.services.store, self._request_key()
        if request is None:
            return respond(await until_indexed(store, operation))

        return _kept_response(await until_indexed(store, Once(request, operation, partial(_keep, respond))))

    async def recall(self) -> Response | None:
        """The remembered response, if there is one, for a call that needs several transactions."""
        request = self._request_key()
        kept = None if request is None else await self.services.store.submit(Recall(request))
        return None if kept is None else _kept_response(kept)

    async def remember(self, response: Response) -> Response:
        """Remember the response of such a call, and return it."""
        request = self._request_key()
        if request is not None:
            kept = Kept(response.status, response.headers, response.body)
            await self.services.store.submit(Remember(request, kept))
        return response

    def _request_key(self) -> RequestKey | None:
        """Whose request this is, and what it says. Raises a 400 for an `Idempotency-Key` that is not valid."""
        request = self.request
        key = request.headers.get("idempotency-key")
        if key is None:
            return None
        if not 0 < len(key) <= MAX_IDEMPOTENCY_KEY or not all("!" <= c <= "~" for c in key):
            raise bad_request(
                f"Invalid Idempotency-Key: use 1 to {MAX_IDEMPOTENCY_KEY} printable ASCII characters without "
                "spaces, such as a UUID"
            )
        headers = (request.headers.get(name, "") for name in ("if-match", "if-none-match"))
        scope, rules = self.identity.key.id, None
        if self.identity.key.admin:
            scope = f"{scope}@{self.database_id}"
        if self.token is not None:  # one key mints the tokens of many people
            scope, rules = f"{scope} {self.token.scope}", self.token.rules
        said = encode([request.method, request.path, self.query, *headers, rules])
        digest = blake2b(said + b"\n" + self._said, digest_size=16).digest()
        return RequestKey(self.database_id, scope, key, digest)

    async def document(self) -> Any:
        """The body as one document. Raises what `body` and `parse_document` raise."""
        body = await self.body()
        if len(body) > LARGE_BYTES:
            await self.services.turns.next()
        return parse_document(body, self.services.settings.max_document_bytes)


def _keep(respond: Callable[[Result], Response], outcome: Result | ApiError) -> Kept:
    response = error_response(outcome) if isinstance(outcome, ApiError) else respond(outcome)
    return Kept(response.status, response.headers, response.body)


def _kept_response(kept: Kept) -> Response:
    return Response(
        kept.status, kept.body, kept.headers | ({"Idempotent-Replayed": "true"} if kept.again else {})
    )


async def read_json(services: Services, request: Request, max_bytes: int | None = None) -> bytes:
    """The body, whose content type is JSON. Raises a 415 for another one, and a 413."""
    headers = request.headers
    given = headers.get("content-type", "application/json")
    if given != "application/json" and not _is_json(given):
        raise _unsupported(f"Content-Type is '{given[:80]}'; expected application/json, in UTF-8")
    if "content-range" in headers:
        raise bad_request("Content-Range is not supported: send the whole body")
    coding = headers.get("content-encoding", "identity")
    if coding.strip().lower() != "identity":
        raise _unsupported(
            f"Content-Encoding is '{coding[:80]}'; expected a body that is not compressed",
            {"Accept-Encoding": "identity"},
        )
    most = services.settings.max_body_bytes
    return await request.read_body(most if max_bytes is None else min(most, max_bytes))


def credential_of(request: Request) -> str:
    """The key or token in `Authorization: Bearer`, `X-API-Key` or the query. Raises a 401 if there is none."""
    headers = request.headers
    scheme, _, credential = headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer":  # Basic may be for a proxy in front of the server
        credential = headers.get("x-api-key") or request.query_token()
    credential = credential.strip()
    if not credential:
        raise unauthorized()
    return credential


def is_token(credential: str) -> bool:
    return credential.count(".") == 2  # a JWT has two dots, an API key none


def authenticate(accounts: Accounts, request: Request) -> tuple[Identity, tokens.Grant | None]:
    """The client's identity. Raises a 401, and what `Accounts.identify` and `identify_in` do.

    A token has the identity of the key that minted it. It may do no more than its grant says.
    """
    named = request.headers.get(DATABASE_HEADER)
    if named is None:
        known = accounts.known(request.headers.get("authorization", ""))
        if known is not None:  # the usual case: a third of the time of what follows
            return known, None
    credential = credential_of(request)
    if not is_token(credential):
        return accounts.identify(credential) if named is None else accounts.identify_in(credential, named), None
    grant = tokens.verify(accounts, credential)
    if named is not None:
        grant.database.require_name(named)
    return accounts.still(grant.key_id, grant.database.id), grant
