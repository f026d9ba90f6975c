"""Realtime tokens: short-lived JWTs scoped to collections of one database.

Law: one algorithm, one issuer, one audience. A token is valid only while its API key and its plan are.
"""

from __future__ import annotations

import hmac
import secrets
import sys
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, Final

import msgspec

from paperdb_trio.auth.accounts import Accounts, Database, Identity, Keyring
from paperdb_trio.errors import ApiError, bad_request
from paperdb_trio.model import Document, check_collection, new_id, timestamp


@contextmanager
def _absent(module: str) -> Iterator[None]:
    """Importing `module` fails, unless it has been imported before."""
    if module in sys.modules:
        yield
        return
    sys.modules[module] = None  # type: ignore[assignment]  # how Python documents it
    try:
        yield
    finally:
        del sys.modules[module]


# PyJWT imports cryptography if it can, for algorithms that are refused here, and has no option against it.
# Measured with PyJWT 2.15 and cryptography 50 on an idle `paperdb serve`: 52.2 MB resident instead of 42.9, and
# 134 ms of CPU for `import jwt` instead of 85. Importing it only for tokens that `_minted_claims` does not know
# would let the first bad token hold up everybody for that long.
with _absent("cryptography"):
    import jwt

ALGORITHM: Final = "HS256"
ISSUER: Final = "paperdb"
AUDIENCE: Final = "paperdb-realtime"
DEFAULT_SECONDS: Final = 900
MIN_SECONDS: Final = 30
MAX_SECONDS: Final = 86_400
ROTATION_SECONDS: Final = 60
"""Time in which a running server, or its clock, may still sign with a rotated secret."""
SLACK_SECONDS: Final = 60
"""How far in the future a token may be issued, because clocks are set back. Its expiry gets no slack."""
MAX_COLLECTIONS: Final = 100
MAX_NAMES_LENGTH: Final = 4096
"""Characters of all names together. Such a token is under 6 KiB, so it fits into a line of a request's head
behind any proxy (nginx accepts 8 KiB), and so do the same names beside it."""
PERMISSIONS: Final = ("read", "write")


@dataclass(frozen=True, slots=True)
class Grant:
    """The rights of a valid token. `collections` None is all; `expires` is in seconds since the epoch."""

    database: Database
    key_id: str
    collections: frozenset[str] | None
    expires: float

    def still_good(self, accounts: Accounts) -> bool:
        """Whether it has not expired, its key is not revoked, and the plan still has realtime."""
        key = accounts.key(self.key_id)
        return (
            key is not None
            and not key.revoked
            and accounts.database(self.database.id).realtime
            and time.time() < self.expires
        )

    def covers(self, collection: str) -> bool:
        return self.collections is None or collection in self.collections


def new_signing_secret() -> tuple[str, bytes]:
    """`(kid, secret)`: 256 random bits, as long as the hash (RFC 7518, section 3.2)."""
    return new_id(), secrets.token_bytes(32)


def mint(accounts: Accounts, identity: Identity, request: Document) -> dict[str, Any]:
    """The response body of `POST /realtime/token`. Raises 400s, and 403s for the plan and for public keys."""
    identity.database.require_realtime()
    unknown = set(request) - {"collections", "permissions", "expiresIn"}
    if unknown:
        raise bad_request(
            f"Unknown field '{sorted(unknown)[0][:80]}'; expected collections, permissions, expiresIn"
        )
    collections = request.get("collections")
    if not isinstance(collections, list) or not 0 < len(collections) <= MAX_COLLECTIONS:
        raise bad_request(f"'collections' must be an array of 1 to {MAX_COLLECTIONS} collection names")
    for name in collections:
        if not isinstance(name, str):
            raise bad_request("'collections' must be an array of strings")
        if name != "*":
            check_collection(name)
    length = sum(map(len, collections))
    if length > MAX_NAMES_LENGTH:
        raise bad_request(
            f"The names in 'collections' have {length:,} characters in total; at most {MAX_NAMES_LENGTH:,}"
            " are allowed"
        )
    if "*" in collections and not identity.key.secret:
        raise ApiError(403, "READ_ONLY_KEY", "Only a secret key can mint a token for every collection ('*')")
    permissions = request.get("permissions", ["read"])
    if (
        not isinstance(permissions, list)
        or "read" not in permissions
        or not all(permission in PERMISSIONS for permission in permissions)
    ):
        raise bad_request('\'permissions\' must be ["read"] or ["read", "write"]')
    if "write" in permissions and not identity.key.secret:
        raise ApiError(403, "READ_ONLY_KEY", "A public key can only mint read-only tokens")
    lifetime = request.get("expiresIn", DEFAULT_SECONDS)
    if (
        isinstance(lifetime, bool)
        or not isinstance(lifetime, int)
        or not MIN_SECONDS <= lifetime <= MAX_SECONDS
    ):
        raise bad_request(f"'expiresIn' must be a whole number of seconds from {MIN_SECONDS} to {MAX_SECONDS}")
    now = int(time.time())
    kid, secret = accounts.signing
    collections = list(dict.fromkeys(collections))
    claims = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": identity.database.name,
        "key": identity.key.id,
        "collections": collections,
        "permissions": permissions,
        "iat": now,
        "exp": now + lifetime,
        "jti": new_id(),
    }
    return {
        "token": jwt.encode(claims, secret, ALGORITHM, headers={"kid": kid}),
        "expiresAt": timestamp(now + lifetime),
        "expiresIn": lifetime,
        "collections": collections,
        "permissions": permissions,
    }


def verify(accounts: Accounts, token: str) -> Grant:
    """Raises a 401 `INVALID_TOKEN`, `TOKEN_EXPIRED` or `KEY_REVOKED`, or a 403 `PLAN_REQUIRED`."""
    try:
        claims = _minted_claims(token, accounts.keyring) or _judged_claims(token, accounts.keyring)
    except jwt.ExpiredSignatureError:
        raise ApiError(401, "TOKEN_EXPIRED", "The token has expired; get a new one") from None
    except (jwt.InvalidTokenError, ValueError, OverflowError, TypeError) as error:
        raise _invalid(str(error)) from None
    database = accounts.database_named(claims["sub"])
    key = accounts.key(claims["key"])
    if database is None or key is None or key.database_id != database.id:
        raise _invalid("its database or key does not exist")
    if key.revoked:
        raise ApiError(401, "KEY_REVOKED", "The API key that minted this token has been revoked")
    database.require_realtime()
    collections = claims["collections"]
    return Grant(
        database, key.id, None if "*" in collections else frozenset(collections), float(int(claims["exp"]))
    )


class _Minted(msgspec.Struct, forbid_unknown_fields=True):
    """Exactly the claims that `mint` writes."""

    iss: str
    aud: str
    sub: str
    key: str
    collections: list[str]
    permissions: list[str]
    iat: int
    exp: Annotated[int, msgspec.Meta(lt=2**53)]
    jti: str


_decode_minted = msgspec.json.Decoder(_Minted).decode


@lru_cache(maxsize=4)
def _headers(keyring: Keyring) -> dict[str, tuple[bytes, float]]:
    """Each secret and the time of its retirement, by the first part of the tokens that it signs."""
    return {
        jwt.encode({}, secret, ALGORITHM, headers={"kid": kid}).partition(".")[0]: (secret, retired_at)
        for kid, secret, retired_at in keyring
    }


def _last_expiry(retired_at: float) -> float:
    """The latest expiry of a token that a secret signed before it was retired, so that a stolen secret does not
    sign forever after its rotation."""
    return retired_at + MAX_SECONDS + ROTATION_SECONDS


def _minted_claims(token: str, keyring: Keyring) -> dict[str, Any] | None:
    """The claims of a valid token that looks exactly like one of ours, or None. PyJWT takes 60 to 200 µs for
    it, as much as the rest of a connect. PyJWT still says why a token is invalid."""
    signed, _, signature = token.rpartition(".")
    header, _, payload = signed.partition(".")
    secret, retired_at = _headers(keyring).get(header, (None, 0.0))
    if secret is None:
        return None
    expected = urlsafe_b64encode(hmac.digest(secret, signed.encode(), "sha256")).rstrip(b"=")
    if not hmac.compare_digest(expected, signature.encode()):
        return None
    try:
        claims = _decode_minted(urlsafe_b64decode(payload + "=="))
    except (msgspec.MsgspecError, ValueError):
        return None
    now = time.time()
    if (claims.iss, claims.aud) != (ISSUER, AUDIENCE) or not claims.iat - SLACK_SECONDS <= now < claims.exp:
        return None
    if claims.exp > _last_expiry(retired_at):
        return None
    return msgspec.structs.asdict(claims)


def _judged_claims(token: str, keyring: Keyring) -> dict[str, Any]:
    """The claims of any valid token. Raises a PyJWT error that says what is wrong with an invalid one."""
    kid = jwt.get_unverified_header(token).get("kid")
    secret, retired_at = next(((secret, at) for own, secret, at in keyring if own == kid), (None, 0.0))
    if secret is None:
        raise jwt.InvalidTokenError("it was not issued by this server")
    claims: dict[str, Any] = jwt.decode(
        token,
        secret,
        algorithms=[ALGORITHM],
        audience=AUDIENCE,
        issuer=ISSUER,
        # PyJWT's leeway would also apply to `exp`.
        options={"require": ["exp", "iat", "sub", "key", "collections"], "verify_iat": False},
    )
    collections = claims["collections"]
    if (
        not isinstance(claims["key"], str)
        or not isinstance(claims["iat"], int | float)
        or not isinstance(claims["exp"], int | float)
        or not claims["exp"] < 2**53
        or not isinstance(collections, list)
        or not all(isinstance(name, str) for name in collections)
    ):
        raise jwt.InvalidTokenError("a claim has the wrong type")
    if not claims["iat"] - SLACK_SECONDS <= time.time():
        raise jwt.ImmatureSignatureError("it was issued in the future (iat)")
    if claims["exp"] > _last_expiry(retired_at):
        raise jwt.InvalidTokenError("its signing secret had been retired before the token was issued")
    return claims


def _invalid(why: str) -> ApiError:
    # `why` may quote the token: no lone surrogates, which no response can carry, and no megabytes.
    why = why.encode("ascii", "backslashreplace").decode()[:200]
    return ApiError(401, "INVALID_TOKEN", f"Invalid token: {why}")
