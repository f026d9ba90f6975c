"""Tokens: short-lived JWTs scoped to collections of one database, and to rules for these.

Law: one algorithm, one issuer, one audience for each form. A token is valid only while its API key and its
plan are, and until it is revoked.
"""

from __future__ import annotations

import hmac
import secrets
import sys
import time
from binascii import a2b_base64, b2a_base64
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from typing import Annotated, Any, ClassVar, Final, NamedTuple

import msgspec

from paperdb_trio.auth.accounts import Accounts, Database, Identity, Keyring
from paperdb_trio.auth.rules import Rule, RuleClaim, check_permissions, parse_rules, rule_of
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
RULES_AUDIENCE: Final = "paperdb-rules"
"""That of tokens with rules or a subject: a server that does not know those must refuse them."""
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
MAX_TOKEN_LENGTH: Final = 6144
"""The same for a token with rules."""
MAX_SUBJECT_LENGTH: Final = 128


_ONLY_READ: Final[Mapping[str, Rule]] = {"*": Rule()}
_READ_AND_WRITE: Final[Mapping[str, Rule]] = {"*": Rule(write=True)}


class Grant(msgspec.Struct, frozen=True):
    """The rights of a valid token. `collections` None is all; `expires` is in seconds since the epoch, `issued`
    in milliseconds, if it has a subject. A collection without a rule in `rules` has that of `*`."""

    database: Database
    key_id: str
    collections: frozenset[str] | None
    expires: float
    jti: str = ""
    subject: str | None = None
    issued: int = 0
    rules: Mapping[str, Rule] = msgspec.field(default_factory=lambda: _ONLY_READ)

    def check(self, accounts: Accounts) -> None:
        """Raises a 401 `TOKEN_EXPIRED`, `TOKEN_REVOKED` or `KEY_REVOKED`, or a 403 `PLAN_REQUIRED`."""
        if time.time() >= self.expires:
            raise ApiError(401, "TOKEN_EXPIRED", "The token has expired; get a new one")
        key = accounts.key(self.key_id)
        if key is None or key.revoked:
            raise _key_revoked()
        if self.is_revoked(accounts):
            raise _token_revoked()
        database = accounts.database(self.database.id)
        if database is None:
            raise _key_revoked()
        database.require_realtime()

    def still_good(self, accounts: Accounts) -> bool:
        """Whether it has not expired, neither it nor its key is revoked, and the plan still has realtime."""
        try:
            self.check(accounts)
        except ApiError:
            return False
        return True

    @property
    def scope(self) -> str:
        """Whose token it is: the subject's; without one, only its own."""
        return f"jti {self.jti}" if self.subject is None else f"subject {self.subject}"

    def is_revoked(self, accounts: Accounts) -> bool:
        return accounts.is_revoked(self.database.id, self.jti, self.subject, self.issued)

    def covers(self, collection: str) -> bool:
        return self.collections is None or collection in self.collections

    def rule(self, collection: str) -> Rule:
        """The rule for a collection. Raises a 403 `NOT_IN_TOKEN` if the token does not cover it."""
        if not self.covers(collection):
            raise ApiError(403, "NOT_IN_TOKEN", f"The token does not cover the collection '{collection}'")
        return self.rules.get(collection) or self.rules["*"]


def new_signing_secret() -> tuple[str, bytes]:
    """`(kid, secret)`: 256 random bits, as long as the hash (RFC 7518, section 3.2)."""
    return new_id(), secrets.token_bytes(32)


# --- minting -------------------------------------------------------------------------------------


def mint(accounts: Accounts, identity: Identity, request: Document) -> dict[str, Any]:
    """The response body of `POST /realtime/token`. Raises 400s, and 403s for the plan and for public keys."""
    identity.database.require_realtime()
    for member in request:
        if member not in _MEMBERS:
            raise bad_request(f"Unknown field '{member[:80]}'; expected {', '.join(_MEMBERS)}")
    collections = _check_collections(request.get("collections"))
    permissions = check_permissions(request.get("permissions", ["read"]))
    rules = parse_rules(collections) if isinstance(collections, dict) else None
    if not identity.key.secret:
        if "*" in collections:
            raise ApiError(
                403, "READ_ONLY_KEY", "Only a secret key can mint a token for every collection ('*')"
            )
        if "write" in permissions or any(
            "write" in (rule.permissions or ()) for rule in (rules or {}).values()
        ):
            raise ApiError(403, "READ_ONLY_KEY", "A public key can only mint read-only tokens")
    lifetime = request.get("expiresIn", DEFAULT_SECONDS)
    if isinstance(lifetime, float) and lifetime.is_integer():  # 900.0 is an integer in JSON
        lifetime = int(lifetime)
    if (
        isinstance(lifetime, bool)
        or not isinstance(lifetime, int)
        or not MIN_SECONDS <= lifetime <= MAX_SECONDS
    ):
        raise bad_request(f"'expiresIn' must be a whole number of seconds from {MIN_SECONDS} to {MAX_SECONDS}")
    jti = new_id()
    now = time.time()
    claims: dict[str, Any] = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": identity.database.name,
        "key": _key_claim(identity),
        "collections": collections,
        "permissions": permissions,
        "iat": int(now),
        "exp": int(now) + lifetime,
        "jti": jti,
    }
    minted = {
        "expiresAt": timestamp(int(now) + lifetime),
        "expiresIn": lifetime,
        "collections": collections,
        "permissions": permissions,
    }
    if rules is not None or "subject" in request:
        subject = check_subject(request["subject"]) if "subject" in request else None
        issued = int(now * 1000)
        if subject is not None:
            # At once after a revocation, or with a clock behind the one that revoked.
            issued = max(issued, accounts.revoked_until(identity.database.id, subject) + 1)
        claims |= {"aud": RULES_AUDIENCE, "iat": issued / 1000, "subject": subject}
        minted |= {"jti": jti} if subject is None else {"jti": jti, "subject": subject}
    kid, secret = accounts.signing
    token = jwt.encode(claims, secret, ALGORITHM, headers={"kid": kid})
    if rules is not None and len(token) > MAX_TOKEN_LENGTH:
        raise bad_request(
            f"The rules in 'collections' are too long: the token has {len(token):,} characters, at most "
            f"{MAX_TOKEN_LENGTH:,} fit into the head of a request behind any proxy"
        )
    return {"token": token, **minted}


def _key_claim(identity: Identity) -> str:
    """The key's id; that of an admin key, which has no database, with the database's, which is never reused."""
    return f"{identity.key.id}@{identity.database.id}" if identity.key.admin else identity.key.id


_MEMBERS: Final = ("collections", "permissions", "expiresIn", "subject")


def _check_collections(collections: object) -> list[str] | dict[str, Any]:
    """Raises a 400."""
    if not isinstance(collections, list | dict) or not 0 < len(collections) <= MAX_COLLECTIONS:
        raise bad_request(
            f"'collections' must be an array of 1 to {MAX_COLLECTIONS} collection names, "
            "or an object with a rule for each"
        )
    for name in collections:
        if not isinstance(name, str):
            raise bad_request("'collections' must be an array of strings, or an object")
        if name != "*":
            check_collection(name)
    length = sum(map(len, collections))
    if length > MAX_NAMES_LENGTH:
        raise bad_request(
            f"The names in 'collections' have {length:,} characters in total; at most {MAX_NAMES_LENGTH:,}"
            " are allowed"
        )
    return collections if isinstance(collections, dict) else list(dict.fromkeys(collections))


def check_subject(subject: object, what: str = "subject") -> str:
    """Raises a 400."""
    if not isinstance(subject, str) or not 0 < len(subject) <= MAX_SUBJECT_LENGTH or not subject.isprintable():
        raise bad_request(f"'{what}' must be a string of 1 to {MAX_SUBJECT_LENGTH} printable characters")
    return subject


# --- verifying -----------------------------------------------------------------------------------


class _Minted(msgspec.Struct, forbid_unknown_fields=True, tag_field="aud", tag=AUDIENCE):
    """Exactly the claims that `mint` writes."""

    iss: str
    sub: str
    key: str
    collections: list[str]
    permissions: list[str]
    iat: float
    exp: Annotated[int, msgspec.Meta(lt=2**53)]
    jti: str
    subject: ClassVar[None] = None


class _MintedRules(msgspec.Struct, forbid_unknown_fields=True, tag_field="aud", tag=RULES_AUDIENCE):
    """The same for a token with rules or a subject. `iat` has milliseconds."""

    iss: str
    sub: str
    key: str
    collections: dict[str, RuleClaim] | list[str]
    permissions: list[str]
    iat: float
    exp: Annotated[int, msgspec.Meta(lt=2**53)]
    jti: str
    subject: str | None


_Claims = _Minted | _MintedRules
# Rules may hold numbers that msgspec decodes slowly by itself: see `json_input`.
_decode_minted = msgspec.json.Decoder(_Claims, float_hook=float).decode


def verify(accounts: Accounts, token: str) -> Grant:
    """Raises a 401 `INVALID_TOKEN` or what `Grant.check` does."""
    try:
        claims = _minted_claims(token, accounts.keyring) or _judged_claims(token, accounts.keyring)
    except jwt.ExpiredSignatureError:
        raise ApiError(401, "TOKEN_EXPIRED", "The token has expired; get a new one") from None
    except (jwt.InvalidTokenError, ValueError, OverflowError, TypeError) as error:
        raise _invalid(str(error)) from None
    # The name of the database in `sub` may have changed.
    key_id, _, named = claims.key.partition("@")
    key = accounts.key(key_id)
    database = None
    if key is not None:
        own = int(named) if named.isdecimal() else 0
        database = accounts.database(own if key.database_id is None else key.database_id)
    if key is None or database is None:
        raise _invalid("its database or key does not exist")
    subject = claims.subject
    issued = 0 if subject is None else round(claims.iat * 1000)
    if key.revoked:
        raise _key_revoked()
    if accounts.is_revoked(database.id, claims.jti, subject, issued):
        raise _token_revoked()
    database.require_realtime()
    names = claims.collections
    return Grant(
        database,
        key.id,
        None if "*" in names else frozenset(names),
        float(claims.exp),
        claims.jti,
        subject,
        issued,
        _rules(claims),
    )


def _rules(claims: _Claims) -> Mapping[str, Rule]:
    if isinstance(claims.collections, dict):
        return {name: rule_of(claim, claims.permissions) for name, claim in claims.collections.items()}
    return _READ_AND_WRITE if "write" in claims.permissions else _ONLY_READ


class _Signer(NamedTuple):
    """`mac` is begun with one secret; a copy takes half as long as a new one. No token of it is valid beyond
    `last_expiry`."""

    mac: hmac.HMAC
    last_expiry: float

    def signature(self, text: bytes) -> bytes:
        mac = self.mac.copy()
        mac.update(text)
        return b2a_base64(mac.digest(), newline=False).translate(_TO_URL).rstrip(b"=")


_TO_URL: Final = bytes.maketrans(b"+/", b"-_")
_FROM_URL: Final = bytes.maketrans(b"-_", b"+/")


@lru_cache(maxsize=4)
def _signers(keyring: Keyring) -> dict[bytes, _Signer]:
    """By the first part of the tokens that it signs."""
    return {
        jwt.encode({}, secret, ALGORITHM, headers={"kid": kid}).partition(".")[0].encode(): _Signer(
            hmac.new(secret, digestmod="sha256"), _last_expiry(retired_at)
        )
        for kid, secret, retired_at in keyring
    }


def _last_expiry(retired_at: float) -> float:
    """The latest expiry of a token that a secret signed before it was retired, so that a stolen secret does not
    sign forever after its rotation."""
    return retired_at + MAX_SECONDS + ROTATION_SECONDS


def _minted_claims(token: str, keyring: Keyring) -> _Claims | None:
    """The claims of a valid token that looks exactly like one of ours, or None. PyJWT takes 60 to 200 µs for
    it, as much as the rest of a connect. PyJWT still says why a token is invalid."""
    signed, _, signature = token.encode("utf-8", "surrogatepass").rpartition(b".")
    header, _, payload = signed.partition(b".")
    signer = _signers(keyring).get(header)
    if signer is None or not hmac.compare_digest(signer.signature(signed), signature):
        return None
    try:
        claims: _Claims = _decode_minted(a2b_base64(payload.translate(_FROM_URL) + b"=="))
    except (msgspec.MsgspecError, ValueError):
        return None
    now = time.time()
    if claims.iss != ISSUER or not claims.iat - SLACK_SECONDS <= now < claims.exp:
        return None
    if claims.exp > signer.last_expiry:
        return None
    return claims


def _judged_claims(token: str, keyring: Keyring) -> _Claims:
    """The claims of any valid token. Raises a PyJWT error that says what is wrong with an invalid one."""
    kid = jwt.get_unverified_header(token).get("kid")
    secret, retired_at = next(((secret, at) for own, secret, at in keyring if own == kid), (None, 0.0))
    if secret is None:
        raise jwt.InvalidTokenError("it was not issued by this server")
    claims: dict[str, Any] = jwt.decode(
        token,
        secret,
        algorithms=[ALGORITHM],
        audience=[AUDIENCE, RULES_AUDIENCE],
        issuer=ISSUER,
        # PyJWT's leeway would also apply to `exp`.
        options={"require": ["exp", "iat", "sub", "key", "collections"], "verify_iat": False},
    )
    # Rules are never read but from claims of their audience alone.
    kind: type[_Claims] = _MintedRules if claims["aud"] == RULES_AUDIENCE else _Minted
    claims = {"permissions": ["read"], "jti": "", "subject": None} | claims | {"exp": int(claims["exp"])}
    try:
        judged: _Claims = msgspec.convert({name: claims[name] for name in kind.__struct_fields__}, kind)
    except (msgspec.ValidationError, KeyError):
        raise jwt.InvalidTokenError("a claim has the wrong type") from None
    if not judged.iat - SLACK_SECONDS <= time.time():
        raise jwt.ImmatureSignatureError("it was issued in the future (iat)")
    if judged.exp > _last_expiry(retired_at):
        raise jwt.InvalidTokenError("its signing secret had been retired before the token was issued")
    return judged


def _key_revoked() -> ApiError:
    return ApiError(401, "KEY_REVOKED", "The API key that minted this token has been revoked")


def _token_revoked() -> ApiError:
    return ApiError(401, "TOKEN_REVOKED", "The token, or all tokens of its subject, have been revoked")


def _invalid(why: str) -> ApiError:
    # `why` may quote the token: no lone surrogates, which no response can carry, and no megabytes.
    why = why.encode("ascii", "backslashreplace").decode()[:200]
    return ApiError(401, "INVALID_TOKEN", f"Invalid token: {why}")
