"""Minting tokens over HTTP, and what the command line does to keys and plans while the server runs."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

import httpx
import jwt
import pytest

from tests.conftest import NO_TLS, Server, wait_until
from tests.realtime.raw import Raw
from tests.rest.tools import refusal


def mint(server: Server, body: object, key: str | None = None) -> httpx.Response:
    return server.request("POST", "/realtime/token", json=body, key=key)


def claims(token: str) -> dict[str, Any]:
    decoded: dict[str, Any] = jwt.decode(token, options={"verify_signature": False})
    return decoded


def within_a_second(condition: Callable[[], bool]) -> None:
    wait_until(condition, 1.5)  # the promised second, and the time of the request itself


def listens(server: Server, token: str, collection: str = "c") -> int:
    """The status of the response when a token reads a collection's change log."""
    with httpx.Client(trust_env=False, timeout=20, verify=NO_TLS) as client:
        headers = {"Authorization": f"Bearer {token}"}
        return client.get(
            f"{server.url}/{collection}/changes", params={"since": "0"}, headers=headers
        ).status_code


@pytest.mark.executable
@pytest.mark.smoke
def test_a_token_has_the_documented_claims(server: Server) -> None:
    key = server.new_key()
    response = mint(server, {"collections": ["b", "a", "b"], "expiresIn": 60}, key["key"])
    assert response.status_code == 200
    assert response.headers["cache-control"] == "no-store"
    body = response.json()
    assert set(body) == {"token", "expiresAt", "expiresIn", "collections", "permissions"}
    assert (body["expiresIn"], body["collections"], body["permissions"]) == (60, ["b", "a"], ["read"])
    header, found = jwt.get_unverified_header(body["token"]), claims(body["token"])
    assert header["alg"] == "HS256"
    assert isinstance(header["kid"], str)
    assert set(found) == {"iss", "aud", "sub", "key", "collections", "permissions", "iat", "exp", "jti"}
    assert found["sub"] == "default"
    assert found["key"] == key["id"]
    assert found["collections"] == ["b", "a"]
    assert found["permissions"] == ["read"]
    assert found["exp"] - found["iat"] == 60
    assert datetime.fromisoformat(body["expiresAt"]).timestamp() == found["exp"]


def test_defaults_are_read_and_900_seconds_and_no_two_tokens_are_alike(server: Server) -> None:
    tokens = [mint(server, {"collections": ["a"]}).json() for _ in range(2)]
    assert {token["expiresIn"] for token in tokens} == {900}
    assert {tuple(token["permissions"]) for token in tokens} == {("read",)}
    assert len({claims(token["token"])["jti"] for token in tokens}) == 2


@pytest.mark.parametrize(
    "body",
    [
        {"collections": ["a"], "expiresIn": 30},
        {"collections": ["a"], "expiresIn": 86_400},
        {"collections": ["a"], "expiresIn": 60.0},
        {"collections": ["a"], "permissions": ["read", "write"]},
        {"collections": ["*"]},
        {"collections": ["a", "*"]},
        {"collections": [f"c{n}" for n in range(100)]},
        {"collections": [f"{n:064}" for n in range(64)]},
    ],
)
def test_allowed_requests_are_granted_as_requested(server: Server, body: dict[str, Any]) -> None:
    response = mint(server, body).json()
    assert body.items() <= response.items()
    assert listens(server, response["token"], body["collections"][-1].replace("*", "any")) == 200
    assert listens(server, response["token"], "other") == (200 if "*" in body["collections"] else 403)


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ([], "object"),
        (5, "object"),
        ({}, "'collections'"),
        ({"collections": []}, "'collections'"),
        ({"collections": "a"}, "'collections'"),
        ({"collections": {}}, "'collections'"),
        ({"collections": [1]}, "'collections'"),
        ({"collections": [["a"]]}, "'collections'"),
        ({"collections": ["a b"]}, "'a b'"),
        ({"collections": ["a", ""]}, "''"),
        ({"collections": ["a*"]}, "'a*'"),
        ({"collections": ["a"] * 101}, "'collections'"),
        ({"collections": [f"{n:064}" for n in range(65)]}, "4,160"),
        ({"collections": ["a"], "permissions": []}, "'permissions'"),
        ({"collections": ["a"], "permissions": ["write"]}, "'permissions'"),
        ({"collections": ["a"], "permissions": ["read", "admin"]}, "'permissions'"),
        ({"collections": ["a"], "permissions": "read"}, "'permissions'"),
        ({"collections": ["a"], "permissions": [["read"]]}, "'permissions'"),
        ({"collections": ["a"], "permissions": None}, "'permissions'"),
        *(({"collections": ["a"], "expiresIn": n}, "'expiresIn'") for n in (29, 86_401, 0, -1, 10**30, 1.5)),
        *(({"collections": ["a"], "expiresIn": x}, "'expiresIn'") for x in ("60", True, None, [60])),
        ({"collections": ["a"], "expires": 60}, "'expires'"),
    ],
)
def test_a_wrong_request_is_a_400_that_names_what_is_wrong(server: Server, body: object, word: str) -> None:
    response = mint(server, body)
    assert refusal(response)[0] == 400
    assert word in response.json()["error"]


@pytest.mark.executable
def test_a_public_key_mints_tokens_that_read_named_collections_only(server: Server) -> None:
    key = server.new_key(public=True)["key"]
    assert mint(server, {"collections": ["a"]}, key).json()["permissions"] == ["read"]
    for body in ({"collections": ["*"]}, {"collections": ["a", "*"]}):
        assert refusal(mint(server, body, key)) == (403, "READ_ONLY_KEY")
    body = {"collections": ["a"], "permissions": ["read", "write"]}
    assert refusal(mint(server, body, key)) == (403, "READ_ONLY_KEY")


def test_a_plan_without_realtime_gets_exactly_the_hosted_refusal(server: Server) -> None:
    server.cli("databases", "create", "test_tokens_free", "--plan", "free")
    key = server.new_key("test_tokens_free")["key"]
    response = mint(server, {"collections": ["a"]}, key)
    assert response.status_code == 403
    assert response.json() == {
        "error": "Realtime is only available on Pro and Team plans",
        "code": "PLAN_REQUIRED",
        "plan": "free",
    }
    assert server.insert("a", {}, key=key)["_id"]


def test_a_change_of_plan_is_seen_within_a_second(server: Server) -> None:
    server.cli("databases", "create", "test_tokens_plan", "--plan", "pro")
    key = server.new_key("test_tokens_plan")["key"]
    token = server.token("c", key=key)
    assert listens(server, token) == 200
    server.cli("databases", "set-plan", "test_tokens_plan", "free")
    within_a_second(lambda: mint(server, {"collections": ["c"]}, key).status_code == 403)
    assert listens(server, token) == 403
    server.cli("databases", "set-plan", "test_tokens_plan", "team")
    within_a_second(lambda: mint(server, {"collections": ["c"]}, key).status_code == 200)
    assert listens(server, token) == 200


@pytest.mark.executable
def test_a_new_key_works_and_a_revoked_one_ends_within_a_second(server: Server) -> None:
    server.cli("databases", "create", "test_tokens_keys", "--plan", "pro")
    kept, revoked = (server.new_key("test_tokens_keys") for _ in range(2))
    token = server.token("c", key=revoked["key"])
    assert listens(server, token) == 200
    server.cli("keys", "revoke", revoked["id"])
    within_a_second(lambda: server.request("GET", "/collections", key=revoked["key"]).status_code == 401)
    assert listens(server, token) == 401
    assert server.request("GET", "/collections", key=kept["key"]).status_code == 200


@pytest.mark.executable
def test_a_new_signing_secret_leaves_live_tokens_good(server: Server) -> None:
    old = [server.token("c")]
    for _ in range(2):
        server.cli("keys", "rotate-signing")
        kid = jwt.get_unverified_header(old[-1])["kid"]
        within_a_second(lambda kid=kid: jwt.get_unverified_header(server.token("c"))["kid"] != kid)  # type: ignore[misc]
        old.append(server.token("c"))
    assert len({jwt.get_unverified_header(token)["kid"] for token in old}) == 3
    assert [listens(server, token) for token in old] == [200, 200, 200]


def test_a_request_for_a_token_is_small(server: Server) -> None:
    """Public keys may mint, too, and a large body takes many times its size in memory."""
    response = server.request("POST", "/realtime/token", json={"collections": ["a"] * 300_000})
    assert (response.status_code, response.json()["code"]) == (413, "BODY_TOO_LARGE")


def test_a_key_revoked_while_a_body_arrives_writes_nothing(server: Server, collection: str) -> None:
    key = server.new_key()
    with Raw(server) as raw:
        credential = f"Authorization: Bearer {key['key']}\r\nContent-Length: 8\r\n"
        raw.send(f'POST /{collection}/docs HTTP/1.1\r\nHost: x\r\n{credential}\r\n{{"n":'.encode())
        server.cli("keys", "revoke", key["id"])
        within_a_second(lambda: server.request("GET", "/collections", key=key["key"]).status_code == 401)
        raw.send(b" 1}")
        assert raw.response()[0] == 401
    assert server.request("GET", f"/{collection}/count").json() == {"count": 0}
