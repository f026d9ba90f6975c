"""Tokens with rules: what is minted, what is refused and why, and what an older server makes of them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import jwt
import msgspec
import pytest
import trio

from paperdb_trio.auth.keys import hash_key
from paperdb_trio.auth.rules import Rule
from paperdb_trio.auth.tokens import Grant, mint, verify
from paperdb_trio.errors import ApiError
from paperdb_trio.store.administration import AddKey
from paperdb_trio.store.records import NewKey
from paperdb_trio.store.revocations import ForgetRevocations, Revocation
from paperdb_trio.store.sqlite import admin
from tests.auth.test_tokens import KEY, SECRET, World, refused
from tests.store.tools import committed

PUBLIC = "pdb_pk_" + "p" * 43


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    world = World(tmp_path_factory.mktemp("world"))
    admin.apply(world.file, AddKey("test", "default", NewKey("p1", "public", "", hash_key(PUBLIC))))
    trio.run(world.refresh)
    return world


def minted(world: World, collections: Any, *, key: str = KEY, **more: Any) -> dict[str, Any]:
    return mint(world.accounts, world.accounts.identify(key), {"collections": collections, **more})


def granted(world: World, collections: Any, **more: Any) -> Grant:
    return verify(world.accounts, minted(world, collections, **more)["token"])


def claims(text: str) -> dict[str, Any]:
    decoded: dict[str, Any] = jwt.decode(text, options={"verify_signature": False})
    return decoded


def signed(world: World, changed: dict[str, Any]) -> str:
    return jwt.encode(changed, SECRET, "HS256", headers={"kid": world.accounts.signing[0]})


# --- what is minted ------------------------------------------------------------------------------


def test_the_response_echoes_the_form_that_was_sent(world: World) -> None:
    rules = {"orders": {"filter": {"a": 1}, "select": ["b"], "permissions": ["read"]}, "news": {}}
    response = minted(world, rules, subject="alice", permissions=["read", "write"])
    assert response["collections"] == rules
    assert (response["subject"], response["jti"]) == ("alice", claims(response["token"])["jti"])
    assert set(response) == {
        *("token", "expiresAt", "expiresIn", "collections", "permissions", "subject", "jti"),
    }
    plain = minted(world, ["a", "b"], subject="alice")
    assert (plain["collections"], plain["subject"]) == (["a", "b"], "alice")
    assert "subject" not in minted(world, ["a"])


def test_a_grant_knows_its_rules(world: World) -> None:
    grant = granted(
        world,
        {"orders": {"filter": {"userId": "é"}, "select": ["a.b", "_id"], "permissions": ["read"]}, "news": {}},
        permissions=["read", "write"],
        subject="alice",
    )
    assert grant.rule("orders") == Rule({"userId": "é"}, ("_id", "a.b"), read=True, write=False)
    assert grant.rule("news") == Rule(None, None, read=True, write=True)
    assert (grant.collections, grant.subject) == (frozenset({"orders", "news"}), "alice")
    with pytest.raises(ApiError, match="does not cover the collection 'other'"):
        grant.rule("other")


def test_a_grant_without_rules_has_one_for_all(world: World) -> None:
    assert granted(world, ["a"]).rule("a") == Rule()
    assert granted(world, ["*"], permissions=["read", "write"]).rule("any") == Rule(write=True)


def test_a_rule_for_every_collection_gives_way_to_a_named_one(world: World) -> None:
    grant = granted(world, {"*": {"filter": {"a": 1}}, "news": {}})
    assert grant.collections is None
    assert (grant.rule("any").filter, grant.rule("news").filter) == ({"a": 1}, None)


@pytest.mark.parametrize("filter", [{}, {"a": {"in": [1, 1.5, 1e300, -5, "x", None, True]}}, {"or": []}])
def test_a_filter_travels_unchanged(world: World, filter: dict[str, Any]) -> None:
    assert granted(world, {"c": {"filter": filter}}).rule("c").filter == (filter or None)


def test_an_empty_select_is_not_everything(world: World) -> None:
    assert granted(world, {"c": {"select": []}}).rule("c").select == ("_id",)


# --- what is refused -----------------------------------------------------------------------------

DEEP: dict[str, Any] = {"a": 1}
for _ in range(8):
    DEEP = {"not": DEEP}


@pytest.mark.parametrize(
    ("rule", "code", "words"),
    [
        (5, "INVALID_REQUEST", "must be an object like"),
        (None, "INVALID_REQUEST", "must be an object like"),
        ({"filters": {}}, "INVALID_REQUEST", "Unknown member 'filters'"),
        ({"filter": 5}, "INVALID_FILTER", "'filter' must be an object"),
        ({"filter": None}, "INVALID_FILTER", "'filter' must be an object"),
        ({"filter": {"a": {"like": 1}}}, "UNKNOWN_OPERATOR", "Unknown operator 'like' on 'a'"),
        ({"filter": {"a": {"$where": "1"}}}, "UNKNOWN_OPERATOR", "Unknown operator '$where' on 'a'"),
        ({"filter": {"a": {"in": 5}}}, "INVALID_FILTER", "'in' takes an array"),
        ({"filter": {'a"b': 1}}, "INVALID_FIELD", "Invalid field name"),
        ({"filter": DEEP}, "INVALID_FILTER", "at most 8 levels"),
        ({"select": "a"}, "INVALID_REQUEST", "'select' must be an array"),
        ({"select": [5]}, "INVALID_FIELD", "Invalid field name"),
        ({"select": [["a"]]}, "INVALID_FIELD", "Invalid field name"),
        ({"select": ["a..b"]}, "INVALID_FIELD", "Invalid field name"),
        ({"select": [""]}, "INVALID_FIELD", "Invalid field name"),
        ({"select": [f"f{n}" for n in range(201)]}, "INVALID_REQUEST", "at most 200 names"),
        ({"permissions": []}, "INVALID_REQUEST", "'permissions'"),
        ({"permissions": ["write"]}, "INVALID_REQUEST", "'permissions'"),
        ({"permissions": ["read", "admin"]}, "INVALID_REQUEST", "'permissions'"),
        ({"permissions": "read"}, "INVALID_REQUEST", "'permissions'"),
        ({"filter": {"a": {"in": ["x" * 50] * 100}}}, "INVALID_REQUEST", "6,144"),
    ],
)
def test_a_wrong_rule_is_a_400_that_names_the_collection(
    world: World, rule: Any, code: str, words: str
) -> None:
    with pytest.raises(ApiError) as error:
        minted(world, {"fine": {}, "orders": rule})
    assert (error.value.status, error.value.code) == (400, code)
    assert words in error.value.message
    assert "'orders'" in error.value.message or "6,144" in error.value.message


@pytest.mark.parametrize("subject", ["", "x" * 129, "a\nb", "\ud800", 5, None, ["a"], True])
def test_a_subject_is_a_short_printable_string(world: World, subject: Any) -> None:
    with pytest.raises(ApiError, match="'subject' must be a string of 1 to 128 printable characters"):
        minted(world, ["a"], subject=subject)
    assert granted(world, ["a"], subject="x" * 128).subject == "x" * 128


def test_a_public_key_mints_rules_that_only_read_named_collections(world: World) -> None:
    rule = {"c": {"filter": {"a": 1}, "select": ["a"]}}
    assert granted(world, rule, key=PUBLIC).rule("c").filter == {"a": 1}
    for collections, more in (
        ({"*": {"filter": {"a": 1}}}, {}),
        ({"c": {"permissions": ["read", "write"]}}, {}),
        (rule, {"permissions": ["read", "write"]}),
    ):
        with pytest.raises(ApiError) as error:
            minted(world, collections, key=PUBLIC, **more)
        assert (error.value.status, error.value.code) == (403, "READ_ONLY_KEY")


# --- other servers -------------------------------------------------------------------------------


class OldClaims(msgspec.Struct, forbid_unknown_fields=True):
    """What servers accept without PyJWT that know no rules."""

    iss: str
    aud: str
    sub: str
    key: str
    collections: list[str]
    permissions: list[str]
    iat: int
    exp: int
    jti: str


@pytest.mark.parametrize(
    ("collections", "more"),
    [({"a": {}}, {}), ({"a": {"filter": {"x": 1}}}, {}), (["a"], {"subject": "alice"}), ({"*": {}}, {})],
)
def test_a_server_that_knows_no_rules_refuses_the_token(
    world: World, collections: Any, more: dict[str, Any]
) -> None:
    text = minted(world, collections, **more)["token"]
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(claims(text), OldClaims)
    with pytest.raises(jwt.InvalidAudienceError):
        jwt.decode(text, SECRET, algorithms=["HS256"], audience="paperdb-realtime", issuer="paperdb")
    plain = minted(world, ["a"])["token"]
    msgspec.convert(claims(plain), OldClaims)


@pytest.mark.parametrize(
    "changes",
    [
        {"aud": "paperdb-realtime"},
        {"aud": ["paperdb-rules", "paperdb-realtime"]},
        {"aud": ["paperdb-rules"]},
        {"collections": {"a": {"filter": 5}}},
        {"collections": {"a": {"filters": {}}}},
        {"collections": {"a": None}},
        {"collections": 5},
        {"permissions": "read"},
        {"subject": 5},
        {"jti": 5},
        {"iat": "now"},
    ],
    ids=repr,
)
def test_rules_are_accepted_in_no_other_form(world: World, changes: dict[str, Any]) -> None:
    text = minted(world, {"a": {"filter": {"x": 1}}}, subject="alice")["token"]
    assert verify(world.accounts, signed(world, claims(text))).rule("a").filter == {"x": 1}
    assert refused(world, signed(world, claims(text) | changes)) == (401, "INVALID_TOKEN")


def test_a_rule_of_a_newer_server_is_a_401(world: World) -> None:
    text = minted(world, {"a": {}})["token"]
    grant = verify(
        world.accounts, signed(world, claims(text) | {"collections": {"a": {"filter": {"x": {"near": 1}}}}})
    )
    with pytest.raises(ApiError) as error:
        _ = grant.rule("a").view
    assert (error.value.status, error.value.code) == (401, "INVALID_TOKEN")


def test_an_expired_token_with_rules_says_so(world: World) -> None:
    found = claims(minted(world, {"a": {}}, subject="alice")["token"])
    assert refused(world, signed(world, found | {"iat": 1000.5, "exp": 2000})) == (401, "TOKEN_EXPIRED")


# --- revocation ----------------------------------------------------------------------------------


@pytest.fixture
async def own_world(tmp_path: Path) -> World:
    world = World(tmp_path)
    await world.refresh()
    return world


def revoke(world: World, *revocations: tuple[str, str, int]) -> None:
    """Each is a kind, a name and a time in milliseconds since the epoch."""
    until = int(time.time() * 1000) + 86_460_000
    with committed(world.file) as tx:
        for kind, name, at in revocations:
            Revocation(1, kind, name, at, until).apply(tx)


async def test_a_revoked_jti_ends_that_token_alone(own_world: World) -> None:
    one, other = (minted(own_world, {"a": {}})["token"] for _ in range(2))
    plain = minted(own_world, ["a"])["token"]
    grant = verify(own_world.accounts, one)
    revoke(own_world, ("jti", claims(one)["jti"], 0), ("jti", claims(plain)["jti"], 0))
    assert await own_world.refresh()
    assert refused(own_world, one) == refused(own_world, plain) == (401, "TOKEN_REVOKED")
    assert not grant.still_good(own_world.accounts)
    assert not own_world.accounts.is_revoked(2, grant.jti, None, 0)  # another database
    assert verify(own_world.accounts, other).covers("a")


async def test_a_revoked_subject_ends_its_tokens_up_to_that_moment(own_world: World) -> None:
    alice, bob = (minted(own_world, ["a"], subject=name)["token"] for name in ("alice", "bob"))
    jti = minted(own_world, ["a"], subject="carol")
    now = round(claims(alice)["iat"] * 1000)
    revoke(own_world, ("subject", "alice", now), ("jti", "bob", now), ("subject", jti["jti"], now))
    await own_world.refresh()
    assert refused(own_world, alice) == (401, "TOKEN_REVOKED")  # of the same millisecond
    assert verify(own_world.accounts, bob).subject == "bob"
    assert verify(own_world.accounts, jti["token"]).subject == "carol"
    assert refused(own_world, signed(own_world, claims(alice) | {"iat": (now - 1) / 1000})) == (
        401,
        "TOKEN_REVOKED",
    )
    later = signed(own_world, claims(alice) | {"iat": (now + 1) / 1000})
    assert verify(own_world.accounts, later).subject == "alice"


async def test_a_token_minted_at_once_after_a_revocation_is_good(own_world: World) -> None:
    """Even if the clock that revoked is ahead of ours."""
    ahead = int(time.time() * 1000) + 5000
    revoke(own_world, ("subject", "alice", ahead))
    await own_world.refresh()
    assert granted(own_world, ["a"], subject="alice").issued == ahead + 1


async def test_a_clock_set_back_takes_back_no_revocation(own_world: World) -> None:
    now = int(time.time() * 1000)
    revoke(own_world, ("subject", "alice", now), ("subject", "alice", now - 60_000))
    await own_world.refresh()
    assert own_world.accounts.revoked_until(1, "alice") == now


async def test_a_revocation_is_forgotten_when_it_can_end_no_token(own_world: World) -> None:
    revoke(own_world, *(("jti", str(n), 0) for n in range(1500)))
    with committed(own_world.file) as tx:
        assert not ForgetRevocations(int(time.time() * 1000)).apply(tx)
        (left,) = tx.connection.execute("SELECT count(*) FROM revocations").fetchone()
        assert left == 1500
        tomorrow = int(time.time() * 1000) + 86_470_000
        assert ForgetRevocations(tomorrow).apply(tx)
        assert not ForgetRevocations(tomorrow).apply(tx)
        (left,) = tx.connection.execute("SELECT count(*) FROM revocations").fetchone()
        assert left == 0


async def test_only_new_revocations_are_read(own_world: World) -> None:
    """There may be 100,000 of them, and each one makes all processes look."""
    revoke(own_world, *(("jti", str(n), 0) for n in range(100)))
    await own_world.refresh()
    with committed(own_world.file) as tx:
        tx.connection.execute("UPDATE revocations SET name=name||' changed'")
    revoke(own_world, ("jti", "new", 0))
    await own_world.refresh()
    revoked = {name for name in ("5", "new", "5 changed") if own_world.accounts.is_revoked(1, name, None, 0)}
    assert revoked == {"5", "new"}
