"""Two databases in one server: nothing of one can be seen, changed or guessed with a key of the other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import httpx
import jwt
import pytest

from tests.conftest import Server
from tests.rest.tools import etag


@dataclass
class Database:
    server: Server
    key: str

    def ask(self, method: str, path: str, **more: Any) -> httpx.Response:
        return self.server.request(method, path, key=self.key, **more)


@pytest.fixture(scope="module")
def pair(server: Server) -> tuple[Database, Database]:
    """Two databases that nothing but these tests writes to, both on plan pro."""
    databases = []
    for name in ("test_isolation_a", "test_isolation_b"):
        server.cli("databases", "create", name, "--plan", "pro")
        databases.append(Database(server, server.new_key(name)["key"]))
    return databases[0], databases[1]


def test_a_new_database_is_empty(server: Server, pair: tuple[Database, Database]) -> None:
    server.insert("test_isolation", {})
    for database in pair:
        assert database.ask("GET", "/collections").json() == {"collections": []}


def test_seqs_of_one_do_not_move_with_writes_of_the_other(pair: tuple[Database, Database]) -> None:
    one, two = pair
    first = etag(one.ask("POST", "/seqs/docs", json={}))
    for _ in range(3):
        two.ask("POST", "/seqs/docs", json={})
    assert etag(one.ask("POST", "/seqs/docs", json={})) == first + 1


def test_the_same_id_in_both_is_two_documents(pair: tuple[Database, Database]) -> None:
    one, two = pair
    for n, database in enumerate(pair):
        response = database.ask("POST", "/same/docs", json={"key": "a", "n": n, "unique": ["n"]})
        assert response.status_code == 201
    assert two.ask("POST", "/same/docs", json={"n": 0, "unique": ["n"]}).status_code == 201
    one.ask("PATCH", "/same/docs/a", json={"n": {"increment": 10}})
    assert one.ask("GET", "/same/docs/a").json()["n"] == 10
    assert two.ask("GET", "/same/docs/a").json()["n"] == 1
    assert one.ask("DELETE", "/same/docs/a").status_code == 200
    assert two.ask("GET", "/same/docs/a").status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/secret/docs/a", None),
        ("GET", "/secret/docs?count=true", None),
        ("GET", "/secret/count", None),
        ("GET", "/secret/schema", None),
        ("PATCH", "/secret/docs/a", {"n": 2}),
        ("DELETE", "/secret/docs/a", None),
        ("DELETE", "/secret?confirm=secret", None),
        ("DELETE", "/secret/schema", None),
        ("GET", "/collections", None),
    ],
)
def test_the_other_database_responds_as_if_nothing_had_ever_been_there(
    pair: tuple[Database, Database], method: str, path: str, body: object
) -> None:
    """The same bytes as for a collection and a document that neither database has."""
    one, two = pair
    there = one.ask("PUT", "/secret/docs/a", json={"n": 1})
    one.ask("PUT", "/secret/schema", json={"properties": {"n": {"type": "number"}}})
    response = two.ask(method, path, json=body)
    control = two.ask(method, path.replace("secret", "absent"), json=body)
    assert response.status_code == control.status_code
    assert response.text.replace("secret", "absent") == control.text
    assert response.headers.get("etag") == control.headers.get("etag")
    assert one.ask("GET", "/secret/docs/a").json() == there.json()


def test_dropping_a_collection_leaves_its_namesake_alone(pair: tuple[Database, Database]) -> None:
    one, two = pair
    for database in pair:
        database.ask("POST", "/dropped/bulk", json=[{"v": n, "unique": ["v"]} for n in range(20)])
    assert one.ask("DELETE", "/dropped?confirm=dropped").json() == {"deleted": 20}
    assert two.ask("GET", "/dropped/count").json() == {"count": 20}
    assert two.ask("POST", "/dropped/docs", json={"v": 5, "unique": ["v"]}).status_code == 409


def test_a_schema_binds_only_its_own_database(pair: tuple[Database, Database]) -> None:
    one, two = pair
    one.ask("PUT", "/ruled/schema", json={"properties": {"v": {"required": True, "unique": True}}})
    assert one.ask("POST", "/ruled/docs", json={}).status_code == 400
    for _ in range(2):
        assert two.ask("POST", "/ruled/docs", json={"v": 1}).status_code == 201


def test_a_token_names_the_database_of_its_key(pair: tuple[Database, Database]) -> None:
    names = []
    for database in pair:
        token = database.server.token("*", key=database.key)
        names.append(jwt.decode(token, options={"verify_signature": False})["sub"])
    assert names == ["test_isolation_a", "test_isolation_b"]
