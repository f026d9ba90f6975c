"""Token verification: a token with any foreign part is refused with the right error, and no other error
escapes.

The tests build tokens by hand from base64 and HMAC, so that no library repairs an attacker's input.
"""

from __future__ import annotations

import base64
import gc
import hashlib
import hmac
import json
import subprocess
import sys
import time
from datetime import datetime, tzinfo
from pathlib import Path
from typing import Any, Self

import pytest
import trio

from paperdb_trio.auth import tokens
from paperdb_trio.auth.accounts import Accounts
from paperdb_trio.auth.keys import hash_key, new_key
from paperdb_trio.auth.tokens import SLACK_SECONDS, mint, new_signing_secret, verify
from paperdb_trio.errors import ApiError
from paperdb_trio.store.administration import (
    AddKey,
    ChangeDatabase,
    ChangeKey,
    CreateDatabase,
    DeleteDatabase,
    RevokeKey,
    RotateSigning,
    SetUp,
)
from paperdb_trio.store.records import NewKey
from paperdb_trio.store.sqlite import admin
from paperdb_trio.store.sqlite.file import prepare
from paperdb_trio.store.sqlite.reader import Reader

KID, SECRET = "kid-one", b"1" * 32
KEY = "pdb_sk_" + "k" * 43
ADMIN_KEY = "pdb_ak_" + "a" * 43
FUTURE = 2**33
"""The year 2242, not relative to now, because test names must be the same in each pytest worker."""


class World:
    """A database file and the accounts read from it; call `refresh()` after each change."""

    def __init__(self, path: Path) -> None:
        self.file = prepare(path, create=True)
        admin.apply(self.file, SetUp("test", NewKey("k1", "secret", "", hash_key(KEY)), KID, SECRET))
        admin.apply(self.file, CreateDatabase("test", "other", "pro"))
        admin.apply(self.file, AddKey("test", "other", NewKey("k2", "secret", "", b"hash")))
        admin.apply(self.file, AddKey("test", None, NewKey("a1", "admin", "", hash_key(ADMIN_KEY))))
        self.accounts = Accounts()

    async def refresh(self) -> bool:
        reader = Reader(self.file, threads=1, timeout=10, max_result_bytes=2**20)
        try:
            return await self.accounts.refresh(reader)
        finally:
            reader.close()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A world that tests only read."""
    world = World(tmp_path_factory.mktemp("world"))
    trio.run(world.refresh)
    return world


@pytest.fixture
async def own_world(tmp_path: Path) -> World:
    """A world that a test changes."""
    world = World(tmp_path)
    await world.refresh()
    return world


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def claims(**changes: Any) -> dict[str, Any]:
    now = int(time.time())
    full = {
        "iss": "paperdb",
        "aud": "paperdb-realtime",
        "sub": "default",
        "key": "k1",
        "collections": ["a", "b"],
        "permissions": ["read"],
        "iat": now,
        "exp": now + 60,
        "jti": "j",
    } | changes
    return {name: value for name, value in full.items() if value is not ...}


separators = (",", ":")


@pytest.fixture(params=[(",", ":"), (", ", ": ")], ids=["minted", "judged"], autouse=True)
def _both_ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fast path verifies tokens whose header equals ours byte for byte; PyJWT verifies all others."""
    monkeypatch.setitem(globals(), "separators", request.param)


def test_fast_path_recognizes_our_own_tokens(world: World) -> None:
    text = mint(world.accounts, world.accounts.identify(KEY), {"collections": ["a"]})["token"]
    assert tokens._minted_claims(text, world.accounts.keyring) is not None
    short = tokens._minted_claims(token(), world.accounts.keyring) is not None
    assert short is (separators == (",", ":"))


def token(
    payload: Any = None, *, secret: bytes = SECRET, alg: str = "HS256", hash: str = "sha256", **header: Any
) -> str:
    """A token with these claims (or raw bytes); `kid=...` (Ellipsis) omits the kid."""
    head = {"alg": alg, "kid": KID, "typ": "JWT"} | header
    head = {name: value for name, value in head.items() if value is not ...}
    body = (
        payload if isinstance(payload, bytes) else json.dumps(claims() if payload is None else payload).encode()
    )
    signed = f"{b64(json.dumps(head, separators=separators).encode())}.{b64(body)}"
    return f"{signed}.{b64(hmac.digest(secret, signed.encode(), hash))}"


def refused(world: World, text: str) -> tuple[int, str]:
    with pytest.raises(ApiError) as error:
        verify(world.accounts, text)
    assert SECRET.decode() not in error.value.message
    return error.value.status, error.value.code


INVALID = (401, "INVALID_TOKEN")


def test_server_does_without_cryptography_which_can_still_be_imported() -> None:
    program = (
        "import sys, paperdb_trio.server.serving, jwt.algorithms\n"
        "print('cryptography' in sys.modules, jwt.algorithms.has_crypto)\n"
        "import cryptography.x509"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=20, check=True
    )
    assert done.stdout.split() == ["False", "False"]


def test_valid_token_grants_its_claims(world: World) -> None:
    payload = claims()
    grant = verify(world.accounts, token(payload))
    assert (grant.database.name, grant.key_id, grant.expires) == ("default", "k1", payload["exp"])
    assert grant.collections == frozenset({"a", "b"})
    assert (grant.covers("a"), grant.covers("c"), grant.covers("*")) == (True, False, False)


def test_star_covers_every_collection(world: World) -> None:
    grant = verify(world.accounts, token(claims(collections=["a", "*"])))
    assert grant.collections is None
    assert grant.covers("anything")


def test_minted_token_is_verified_and_signed_with_hmac_sha256(world: World) -> None:
    response = mint(world.accounts, world.accounts.identify(KEY), {"collections": ["a"], "expiresIn": 30})
    grant = verify(world.accounts, response["token"])
    assert grant.covers("a")
    head, body, signature = response["token"].split(".")
    assert signature == b64(hmac.digest(SECRET, f"{head}.{body}".encode(), "sha256"))


@pytest.mark.parametrize("alg", ["none", "None", "NONE", "HS512", "HS384", "RS256", "hs256", "", None, 5])
def test_other_algorithms_are_refused(world: World, alg: Any) -> None:
    hash = {"HS512": "sha512", "HS384": "sha384"}.get(alg, "sha256")
    forged = token(alg=alg, hash=hash)
    assert refused(world, forged) == INVALID
    assert refused(world, forged.rpartition(".")[0] + ".") == INVALID


@pytest.mark.parametrize(
    "secret", [b"2" * 32, b"", b"1" * 31, b"1" * 33, KEY.encode(), hashlib.sha256(SECRET).digest()]
)
def test_other_secrets_are_refused(world: World, secret: bytes) -> None:
    assert refused(world, token(secret=secret)) == INVALID


@pytest.mark.parametrize(
    "kid",
    [..., None, "", "kid-two", 5, True, ["kid-one"], {"kid-one": 1}, "kid-one ", "' OR 1=1 --"],
)
def test_kid_must_name_one_of_our_secrets(world: World, kid: Any) -> None:
    assert refused(world, token(kid=kid)) == INVALID


@pytest.mark.parametrize(
    "changes",
    [
        {"iss": "someone"},
        {"iss": ...},
        {"iss": ["paperdb"]},
        {"aud": "paperdb"},
        {"aud": ...},
        {"aud": []},
        {"aud": 5},
        {"sub": ...},
        {"sub": 5},
        {"key": ...},
        {"key": "nobody"},
        {"key": "a1"},
        {"key": "a1@9"},
        {"key": "a1@x"},
        {"collections": ...},
        {"iat": ...},
        {"iat": "now"},
        {"iat": FUTURE},
        {"exp": ...},
        {"exp": "never"},
        {"exp": None},
        {"exp": True, "iat": 0, "nbf": FUTURE},
        {"nbf": FUTURE},
    ],
    ids=repr,
)
def test_wrong_or_missing_claims_are_refused(world: World, changes: dict[str, Any]) -> None:
    assert refused(world, token(claims(**changes))) in (INVALID, (401, "TOKEN_EXPIRED"))


@pytest.mark.parametrize(
    "changes",
    [{"key": ["k1"]}, {"key": {}}, {"collections": 5}, {"exp": 10**400}],
    ids=["key array", "key object", "collections number", "exp beyond a double"],
)
def test_claims_of_the_wrong_type_are_refused(world: World, changes: dict[str, Any]) -> None:
    """Only we can sign them, but even our own mistake must not end a connection's task."""
    assert refused(world, token(claims(**changes))) == INVALID


@pytest.mark.parametrize("seconds", [-1, -60, -(10**9)])
def test_expired_token_gets_token_expired(world: World, seconds: int) -> None:
    now = int(time.time())
    assert refused(world, token(claims(iat=now - 10**9, exp=now + seconds))) == (401, "TOKEN_EXPIRED")


@pytest.mark.parametrize("seconds", [2, 30, 59])
def test_clock_set_back_does_not_refuse_live_tokens(world: World, seconds: int) -> None:
    now = int(time.time())
    assert verify(world.accounts, token(claims(iat=now + seconds, exp=now + seconds + 60))).covers("a")


def test_future_token_is_refused_and_expiry_gets_no_slack(world: World) -> None:
    now = int(time.time())
    assert refused(world, token(claims(iat=now + SLACK_SECONDS + 5, exp=now + 600))) == INVALID
    assert refused(world, token(claims(iat=now - 60, exp=now))) == (401, "TOKEN_EXPIRED")


def later(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """From now on it is so much later, and stays so: for us and for PyJWT."""
    now = time.time() + seconds

    class Stopped(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Self:
            return cls.fromtimestamp(now, tz)

    monkeypatch.setattr("time.time", lambda: now)
    monkeypatch.setattr("jwt.api_jwt.datetime", Stopped)


def test_token_verified_before_still_expires_and_cannot_be_altered(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = token()
    head, body, signature = good.split(".")
    for _ in range(2):
        assert verify(world.accounts, good).covers("a")
    assert refused(world, f"{head}.{b64(json.dumps(claims(sub='other')).encode())}.{signature}") == INVALID
    assert refused(world, f"{head}.{body}.{b64(b'x' * 32)}") == INVALID
    later(monkeypatch, 60)
    assert refused(world, good) == (401, "TOKEN_EXPIRED")


def test_foreign_tokens_leave_nothing_in_memory(world: World) -> None:
    """Otherwise strangers could fill our memory: 20,000 heads of 16 KiB are 320 MB."""
    texts = [token(secret=b"2" * 32), token(kid="nobody"), token(alg="none")]
    before = [sys.getrefcount(text) for text in texts]
    assert [refused(world, text) for text in texts] == [INVALID] * 3
    gc.collect()
    assert [sys.getrefcount(text) for text in texts] == before


def test_forged_token_does_not_get_token_expired(world: World) -> None:
    assert refused(world, token(claims(exp=1), secret=b"2" * 32)) == INVALID


def test_token_cut_anywhere_is_refused(world: World) -> None:
    whole = token()
    for end in range(len(whole)):
        assert refused(world, whole[:end]) == INVALID


def test_token_changed_anywhere_is_refused(world: World) -> None:
    whole = token()
    for place in range(len(whole) - 1):  # the last base64 character of 32 bytes has two unused bits
        other = "A" if whole[place] != "A" else "B"
        assert refused(world, whole[:place] + other + whole[place + 1 :]) == INVALID


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "..",
        "...",
        "a.b.c",
        "é.é.é",
        "\udcff.b.c",
        "\0.\0.\0",
        "e30.e30.",
        "e30.e30.e30",
        b64(b"[]") + ".e30.AAAA",
        b64(b'"HS256"') + ".e30.AAAA",
        b64(b"null") + ".e30.AAAA",
        b64(b"\xff") + ".e30.AAAA",
        b64(b"[" * 11_000) + ".e30.AAAA",
        b64(b'{"kid":' * 5_000) + ".e30.AAAA",
        b64(b'{"kid":1' + b"0" * 5000 + b"}") + ".e30.AAAA",
        "A" * 100_000,
        "a." * 10_000,
        KEY,
    ],
    ids=lambda text: ascii(text[:20]),
)
def test_text_that_is_not_a_token_is_refused(world: World, text: str) -> None:
    assert refused(world, text) == INVALID


@pytest.mark.parametrize("payload", [b"", b"{", b"[]", b"5", b"null", b"\xff", b"[" * 11_000, b'"x"'])
def test_signed_payload_that_is_not_an_object_is_refused(world: World, payload: bytes) -> None:
    assert refused(world, token(payload)) == INVALID


async def test_token_needs_its_key_and_plan_to_be_valid_now(own_world: World) -> None:
    good = token()
    grant = verify(own_world.accounts, good)
    assert grant.still_good(own_world.accounts)
    admin.apply(own_world.file, ChangeDatabase("test", "default", plan="free"))
    assert await own_world.refresh()
    assert refused(own_world, good) == (403, "PLAN_REQUIRED")
    assert not grant.still_good(own_world.accounts)
    admin.apply(own_world.file, ChangeDatabase("test", "default", plan="pro"))
    await own_world.refresh()
    assert verify(own_world.accounts, good).covers("a")
    assert grant.still_good(own_world.accounts)
    admin.apply(own_world.file, RevokeKey("test", "k1"))
    await own_world.refresh()
    assert refused(own_world, good) == (401, "KEY_REVOKED")
    assert not grant.still_good(own_world.accounts)


async def test_rotation_signs_with_a_new_secret_and_still_accepts_old_ones(own_world: World) -> None:
    old = token()
    kid, secret = new_signing_secret()
    admin.apply(own_world.file, RotateSigning("test", kid, secret))
    await own_world.refresh()
    assert own_world.accounts.signing == (kid, secret)
    assert verify(own_world.accounts, old).covers("a")
    assert verify(own_world.accounts, token(secret=secret, kid=kid)).covers("a")
    assert refused(own_world, token(secret=secret)) == INVALID
    assert refused(own_world, token(kid=kid)) == INVALID


async def test_retired_secret_signs_no_later_tokens(own_world: World) -> None:
    """A stolen secret, a likely reason for the rotation, must not sign forever."""
    kid, secret = new_signing_secret()
    admin.apply(own_world.file, RotateSigning("test", kid, secret))
    await own_world.refresh()
    now = int(time.time())
    assert verify(own_world.accounts, token(claims(exp=now + 86_400))).covers("a")
    assert refused(own_world, token(claims(exp=now + 86_400 + 120))) == INVALID
    assert refused(own_world, token(claims(exp=now + 10**9))) == INVALID
    assert verify(own_world.accounts, token(claims(exp=now + 10**9), secret=secret, kid=kid)).covers("a")


async def test_token_goes_on_when_its_database_is_renamed_and_another_gets_the_name(own_world: World) -> None:
    good = token()
    admin.apply(own_world.file, ChangeDatabase("test", "default", "renamed"))
    admin.apply(own_world.file, CreateDatabase("test", "default", "team"))
    await own_world.refresh()
    database = verify(own_world.accounts, good).database
    assert (database.id, database.name) == (1, "renamed")


async def test_token_of_an_admin_key_is_for_one_database_whatever_is_called_by_its_name(
    own_world: World,
) -> None:
    accounts = own_world.accounts
    minted = mint(accounts, accounts.identify_in(ADMIN_KEY, "other"), {"collections": ["*"]})["token"]
    grant = verify(accounts, minted)
    assert (grant.database.name, grant.key_id) == ("other", "a1")
    admin.apply(own_world.file, DeleteDatabase("test", "other"))
    admin.apply(own_world.file, CreateDatabase("test", "other", "team"))
    await own_world.refresh()
    assert refused(own_world, minted) == INVALID
    assert not grant.still_good(accounts)


async def test_admin_key_needs_the_name_of_a_database(own_world: World) -> None:
    accounts = own_world.accounts
    for _ in range(2):  # nothing is remembered
        with pytest.raises(ApiError) as refusal:
            accounts.identify(ADMIN_KEY)
        assert (refusal.value.status, refusal.value.code) == (400, "DATABASE_NEEDED")
        assert accounts.identify_in(ADMIN_KEY, "other").database.name == "other"
    for key, name, status in ((ADMIN_KEY, "nowhere", 400), (KEY, "other", 403), (KEY, "nowhere", 403)):
        with pytest.raises(ApiError) as refusal:
            accounts.identify_in(key, name)
        assert refusal.value.status == status
    assert accounts.identify_in(KEY, "default").key.id == "k1"


async def test_key_that_expires_counts_as_revoked_from_then_on(
    own_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    accounts, good = own_world.accounts, token()
    assert accounts.identify(KEY).key.id == "k1"
    soon = int((time.time() + 30) * 1000)
    admin.apply(own_world.file, ChangeKey("test", "k1", expire=True, expires=soon))
    assert await own_world.refresh()
    assert not await own_world.refresh()
    assert accounts.identify(KEY).key.id == "k1"
    later(monkeypatch, 30)
    assert await own_world.refresh()  # nothing was written: the time alone says so
    with pytest.raises(ApiError):
        accounts.identify(KEY)
    assert refused(own_world, good) == (401, "KEY_REVOKED")
    assert not await own_world.refresh()
    admin.apply(own_world.file, ChangeKey("test", "k1", expire=True))
    assert await own_world.refresh()
    assert accounts.identify(KEY).key.id == "k1"


async def test_accounts_are_read_again_only_after_a_change(own_world: World) -> None:
    assert not await own_world.refresh()
    admin.apply(own_world.file, AddKey("test", "default", NewKey("k3", "public", "", hash_key("pdb_pk_x"))))
    assert await own_world.refresh()
    assert not await own_world.refresh()
    assert own_world.accounts.identify("pdb_pk_x").key.secret is False


async def test_keys_are_long_and_random_and_stored_only_as_a_hash(own_world: World, tmp_path: Path) -> None:
    keys = [new_key("secret") for _ in range(50)] + [new_key("public") for _ in range(50)]
    keys += [new_key("admin") for _ in range(50)]
    assert len(set(keys)) == 150
    for key in keys:
        random = key[7:]
        assert len(base64.urlsafe_b64decode(random + "=")) == 32
    assert {key[:7] for key in keys} == {"pdb_sk_", "pdb_pk_", "pdb_ak_"}
    assert own_world.accounts.identify(KEY).key.id == "k1"
    stored = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert hash_key(KEY) in stored
    assert KEY.encode() not in stored


@pytest.mark.parametrize("key", ["", KEY[:-1], KEY + "k", KEY.upper(), "\udcff", "\0", hash_key(KEY).hex()])
def test_unknown_key_identifies_no_one(world: World, key: str) -> None:
    with pytest.raises(ApiError) as error:
        world.accounts.identify(key)
    assert (error.value.status, error.value.code) == (401, "UNAUTHORIZED")
