"""The admin API: databases, keys, secrets, indexes, the record; and who may do what there.

The shared server has databases of other tests, so these look at their own.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from websockets.exceptions import ConnectionClosed

from paperdb_trio.auth.keys import hash_key
from paperdb_trio.model import milliseconds, timestamp
from paperdb_trio.rest.routes import ROUTES
from paperdb_trio.rest.table import Access
from tests.conftest import Server, StartServer, wait_until
from tests.rest.documented import check_documented
from tests.rest.tools import client_of, refusal
from tests.store.tools import rows


def keyed(server: Server, key: str) -> Iterator[httpx.Client]:
    with client_of(server) as client:
        client.headers["Authorization"] = f"Bearer {key}"
        client.event_hooks = {"response": [check_documented]}
        yield client


@pytest.fixture(scope="session")
def admin(server: Server) -> Iterator[httpx.Client]:
    """A client with an admin key. Responses must be in the OpenAPI document."""
    key = json.loads(server.cli("keys", "create", "--admin", "--label", "the tests", "--json"))["key"]
    wait_until(lambda: server.request("GET", "/admin.v1/me", key=key).status_code == 200)
    yield from keyed(server, key)


def database(admin: httpx.Client, name: str, plan: str = "pro") -> str:
    """The text of a secret key of a new database."""
    assert admin.post("/admin.v1/databases", json={"name": name, "plan": plan}).status_code == 201
    return str(new_key(admin, "secret", database=name)["key"])


def new_key(admin: httpx.Client, kind: str, **more: Any) -> dict[str, Any]:
    response = admin.post("/admin.v1/keys", json={"kind": kind, **more})
    assert response.status_code == 201, response.text
    made: dict[str, Any] = response.json()
    return made


def listed(client: httpx.Client, what: str, **query: str) -> list[dict[str, Any]]:
    """All pages."""
    found: list[dict[str, Any]] = []
    while True:
        response = client.get(f"/admin.v1/{what}", params=query)
        assert response.status_code == 200, response.text
        body = response.json()
        found += body[what if what != "audit" else "entries"]
        if "next" not in body:
            return found
        query["after"] = body["next"]


def test_the_key_says_what_it_is(server: Server, admin: httpx.Client, api: httpx.Client) -> None:
    mine = admin.get("/admin.v1/me").json()
    assert (mine["kind"], mine["label"], mine["database"]) == ("admin", "the tests", None)
    other = api.get("/admin.v1/me").json()
    assert (other["kind"], other["database"]) == ("secret", "default")


# --- databases -----------------------------------------------------------------------------------


def test_databases_are_created_changed_and_listed(server: Server, admin: httpx.Client) -> None:
    made = admin.post("/admin.v1/databases", json={"name": "test_admin_made", "plan": "free"})
    assert made.status_code == 201
    assert made.json() in listed(admin, "databases")
    again = admin.post("/admin.v1/databases", json={"name": "test_admin_made", "plan": "free"})
    assert refusal(again) == (409, "CONFLICT")
    key = new_key(admin, "secret", database="test_admin_made")["key"]
    server.insert("c", {}, key=key)
    changed = admin.patch("/admin.v1/databases/test_admin_made", json={"plan": "team"}).json()
    assert (changed["plan"], changed["collections"], changed["documents"], changed["seq"]) == ("team", 1, 1, 1)
    assert refusal(admin.patch("/admin.v1/databases/nowhere", json={"plan": "pro"})) == (404, "NOT_FOUND")
    taken = admin.patch("/admin.v1/databases/test_admin_made", json={"name": "default"})
    assert refusal(taken) == (409, "CONFLICT")


@pytest.mark.parametrize(
    "body",
    [
        {"name": "x y", "plan": "pro"},
        {"name": "x", "plan": "gold"},
        {"name": "x"},
        {"name": "x", "plan": "pro", "owner": 1},
        {"name": 1, "plan": "pro"},
        [],
    ],
    ids=str,
)
def test_a_body_that_is_not_as_described_is_refused(admin: httpx.Client, body: Any) -> None:
    assert refusal(admin.post("/admin.v1/databases", json=body)) == (400, "INVALID_REQUEST")
    assert not any(row["name"].startswith("x") for row in listed(admin, "databases"))


def test_pages_hold_everything_once(admin: httpx.Client) -> None:
    for n in range(5):
        database(admin, f"test_admin_page{n}")
    for what, name in (("databases", "name"), ("keys", "id"), ("audit", "id")):
        whole = [row[name] for row in listed(admin, what, limit="1000")]
        assert [row[name] for row in listed(admin, what, limit="2")] == whole
        assert len(set(whole)) == len(whole) >= 5


def test_a_renamed_database_keeps_its_keys_tokens_and_sockets(server: Server, admin: httpx.Client) -> None:
    key = database(admin, "test_admin_old")
    token = server.token("c", key=key)
    with _socket(server, token) as ws:
        admin.patch("/admin.v1/databases/test_admin_old", json={"name": "test_admin_new"})
        other = database(admin, "test_admin_old")  # another one takes the name
        made = server.insert("c", {"n": 1}, key=key)
        assert json.loads(ws.recv(timeout=10))["data"] == made
    assert server.request("GET", "/c/count", key=token).json() == {"count": 1}
    assert server.request("GET", "/c/count", key=other).json() == {"count": 0}


def _socket(server: Server, token: str) -> Any:
    from websockets.sync.client import connect

    return connect(f"{server.ws_url}/?token={token}", proxy=None, close_timeout=2)


@pytest.mark.sqlite
def test_a_deleted_database_is_gone_at_once_and_later_from_the_file(
    server: Server, admin: httpx.Client
) -> None:
    name = "test_admin_deleted"
    key = database(admin, name)
    ids = rows(server.data / "paperdb.sqlite", "SELECT id FROM databases WHERE name=?", name)
    for collection in ("a", "b"):
        server.request("POST", f"/{collection}/bulk", key=key, json=[{"n": n} for n in range(700)])
        server.insert(collection, {"m": 1, "unique": ["m"]}, key=key)  # which makes an index
    token = server.token("*", key=key)
    path = f"/admin.v1/databases/{name}"
    for query in ("", "?confirm=default"):
        assert refusal(admin.delete(path + query)) == (400, "CONFIRMATION_NEEDED")
    with _socket(server, token) as ws:
        assert admin.delete(f"{path}?confirm={name}").json() == {"deleted": True, "documents": 1402}
        with pytest.raises(ConnectionClosed) as closed:
            ws.recv(timeout=10)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 4403
    for credential in (key, token):
        assert server.request("GET", "/a/docs", key=credential).status_code == 401
        assert server.request("POST", "/a/docs", key=credential, json={}).status_code == 401
    assert refusal(admin.get("/a/docs", headers={"X-PaperDB-Database": name})) == (400, "DATABASE_NEEDED")
    fresh = database(admin, name)  # the name is free at once, and is another database
    assert server.request("GET", "/collections", key=fresh).json() == {"collections": []}
    assert server.request("GET", "/a/docs", key=token).status_code == 401
    assert [row["kind"] for row in listed(admin, "keys", database=name)] == ["secret"]  # the fresh one
    owner = (ids[0][0] << 40, (ids[0][0] + 1) << 40)

    def is_removed() -> bool:
        file = server.data / "paperdb.sqlite"
        return (
            not rows(file, "SELECT 1 FROM changes WHERE rowkey BETWEEN ? AND ? LIMIT 1", *owner)
            and not rows(file, "SELECT 1 FROM collections WHERE database_id=?", ids[0][0])
            and not rows(file, "SELECT 1 FROM database_drops")
            and not rows(
                file, "SELECT 1 FROM documents WHERE collection_id NOT IN (SELECT id FROM collections)"
            )
        )

    wait_until(is_removed)
    assert "All is well" in server.cli("check")


@pytest.mark.sqlite
def test_a_removal_goes_on_after_a_kill(start_server: StartServer) -> None:
    server = start_server()
    server.cli("databases", "create", "doomed", "--plan", "pro")
    key = server.new_key("doomed")["key"]
    for _ in range(5):
        server.request("POST", "/a/bulk", key=key, json=[{"n": n} for n in range(1000)])
    server.kill()
    server.cli("databases", "delete", "doomed", "--confirm", "doomed")
    file = server.data / "paperdb.sqlite"
    assert rows(file, "SELECT count(*) FROM documents") == [(5000,)]
    assert "All is well" in server.cli("check")
    server.start()
    wait_until(lambda: rows(file, "SELECT count(*) FROM documents") < [(5000,)])
    server.kill()
    assert "All is well" in server.cli("check")
    server.start()
    wait_until(lambda: not rows(file, "SELECT 1 FROM database_drops"))
    assert rows(file, "SELECT (SELECT count(*) FROM documents), (SELECT count(*) FROM changes)") == [(0, 0)]


# --- keys and secrets ----------------------------------------------------------------------------


def test_a_key_is_shown_once_and_works_at_once(server: Server, admin: httpx.Client) -> None:
    database(admin, "test_admin_keys")
    made = new_key(admin, "public", database="test_admin_keys", label="a label")
    key = made.pop("key")
    assert key.startswith("pdb_pk_")
    assert made in listed(admin, "keys", database="test_admin_keys")
    assert server.request("GET", "/c/docs", key=key).status_code == 200
    (row,) = (row for row in listed(admin, "keys") if row["id"] == made["id"])
    assert row["lastUsedAt"] is not None
    changed = admin.patch(f"/admin.v1/keys/{made['id']}", json={"label": "another"}).json()
    assert changed["label"] == "another"
    revoked = admin.delete(f"/admin.v1/keys/{made['id']}").json()
    assert revoked["revokedAt"] is not None
    assert refusal(server.request("GET", "/c/docs", key=key)) == (401, "UNAUTHORIZED")
    assert admin.delete(f"/admin.v1/keys/{made['id']}").json()["revokedAt"] == revoked["revokedAt"]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"kind": "secret"}, 400),
        ({"kind": "admin", "database": "default"}, 400),
        ({"kind": "root", "database": "default"}, 400),
        ({"kind": "secret", "database": "nowhere"}, 404),
        ({"kind": "secret", "database": "default", "expiresAt": "tomorrow"}, 400),
        ({"kind": "secret", "database": "default", "expiresAt": "2027-01-31T12:00:00"}, 400),
        ({"kind": "secret", "database": "default", "label": "x" * 129}, 400),
        ({"kind": "secret", "database": "default", "label": "a\x1b[2J"}, 400),
    ],
    ids=str,
)
def test_keys_that_make_no_sense_are_refused(admin: httpx.Client, body: Any, status: int) -> None:
    before = len(listed(admin, "keys"))
    assert admin.post("/admin.v1/keys", json=body).status_code == status
    assert len(listed(admin, "keys")) == before


def test_a_key_expires_with_its_tokens_and_sockets(server: Server, admin: httpx.Client) -> None:
    database(admin, "test_admin_expiry")
    made = new_key(admin, "secret", database="test_admin_expiry")
    key, path = made["key"], f"/admin.v1/keys/{made['id']}"
    token = server.token("c", key=key)
    with _socket(server, token) as ws:
        soon = timestamp(time.time() + 0.5)
        assert admin.patch(path, json={"expiresAt": soon}).json()["expiresAt"] == soon
        with pytest.raises(ConnectionClosed) as closed:
            ws.recv(timeout=10)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 4403
    assert time.time() * 1000 >= milliseconds(soon)
    assert refusal(server.request("GET", "/c/docs", key=key)) == (401, "UNAUTHORIZED")
    assert refusal(server.request("GET", "/c/docs", key=token)) == (401, "KEY_REVOKED")
    assert admin.patch(path, json={"expiresAt": None}).json()["expiresAt"] is None
    assert server.request("GET", "/c/docs", key=key).status_code == 200


def test_the_key_of_a_request_cannot_lock_itself_out(admin: httpx.Client) -> None:
    path = f"/admin.v1/keys/{admin.get('/admin.v1/me').json()['id']}"
    assert refusal(admin.delete(path)) == (409, "CONFLICT")
    assert refusal(admin.patch(path, json={"expiresAt": timestamp(0)})) == (409, "CONFLICT")
    assert admin.get("/admin.v1/me").status_code == 200


def test_secrets_rotate_without_being_shown(server: Server, admin: httpx.Client) -> None:
    old = server.token("c")
    made = admin.post("/admin.v1/secrets")
    assert made.status_code == 201
    found = listed(admin, "secrets")
    assert found[0] == made.json()
    assert found[1]["retiredAt"] is not None
    assert set(found[0]) == {"id", "createdAt", "retiredAt"}
    for token in (old, server.token("c")):
        assert server.request("GET", "/c/count", key=token).status_code == 200


@pytest.mark.sqlite
def test_no_secret_hash_or_token_is_ever_listed(server: Server, admin: httpx.Client) -> None:
    made = new_key(admin, "secret", database="default")
    token = server.token("c", key=made["key"])
    found = json.dumps([listed(admin, what) for what in ("databases", "keys", "secrets", "audit")])
    (stored,) = rows(server.data / "paperdb.sqlite", "SELECT hash FROM keys WHERE id=?", made["id"])
    assert stored[0] == hash_key(made["key"])
    secrets = rows(server.data / "paperdb.sqlite", "SELECT hex(secret) FROM signing_secrets")
    for secret in (made["key"], stored[0].hex(), token, *(hexed for (hexed,) in secrets)):
        assert secret.lower() not in found.lower()


# --- indexes -------------------------------------------------------------------------------------


def test_an_index_is_made_used_and_removed(server: Server, admin: httpx.Client) -> None:
    key = database(admin, "test_admin_indexes")
    server.request("POST", "/c/bulk", key=key, json=[{"room": n % 7, "n": n} for n in range(600)])
    path = "/admin.v1/databases/test_admin_indexes/collections/c/indexes"
    made = admin.post(path, json={"fields": ["room", "-n"]})
    assert made.status_code == 201
    assert refusal(admin.post(path, json={"fields": ["room", "-n"]})) == (409, "CONFLICT")
    wait_until(lambda: admin.get(path).json()["indexes"][0]["state"] == "ready")
    (row,) = admin.get(path).json()["indexes"]
    assert (row["fields"], row["automatic"], row["built"], row["documents"]) == (["room", "-n"], True, 600, 600)
    query = {"filter": '{"room": 3}', "sort": "-n", "explain": "true"}
    found = server.request("GET", "/c/docs", key=key, params=query).json()["explain"]
    assert found["index"] == ["room", "-n"]
    assert admin.delete(f"{path}/{row['id']}").json() == {"deleted": True}
    assert refusal(admin.delete(f"{path}/{row['id']}")) == (404, "NOT_FOUND")
    assert admin.get(path).json() == {"indexes": []}
    server.request("PUT", "/c/schema", key=key, json={"properties": {"n": {"index": True}}})
    (row,) = admin.get(path).json()["indexes"]
    assert refusal(admin.delete(f"{path}/{row['id']}")) == (409, "CONFLICT")
    for fields in ([], ["a", "-a"], ["a.."] * 9, ["a", 'b"']):
        assert admin.post(path, json={"fields": fields}).status_code == 400
    assert refusal(admin.get(path.replace("/c/", "/absent/"))) == (404, "NOT_FOUND")


# --- who may do what -----------------------------------------------------------------------------

ADMIN_PATHS = [route for route in ROUTES if route.access is Access.ADMIN]
OWN_PATHS = [route for route in ROUTES if route.access is Access.OWN]


def filled(pattern: str) -> str:
    parts = {":database": "default", ":collection": "c", ":index": "1"}
    return "/".join(parts.get(part, "x" if part.startswith(":") else part) for part in pattern.split("/"))


@pytest.mark.parametrize("route", ADMIN_PATHS, ids=lambda route: f"{route.method} {route.pattern}")
def test_a_secret_key_may_not(api: httpx.Client, route: Any) -> None:
    response = api.request(route.method, filled(route.pattern), json={} if route.body else None)
    assert refusal(response) == (403, "ADMIN_KEY_NEEDED")


@pytest.mark.parametrize(
    "route", [*ADMIN_PATHS, *OWN_PATHS], ids=lambda route: f"{route.method} {route.pattern}"
)
def test_public_keys_tokens_and_strangers_may_not(server: Server, route: Any, public_key: str) -> None:
    path = filled(route.pattern)
    expected = {
        public_key: (403, "READ_ONLY_KEY"),
        server.token("*"): (403, "TOKEN_NOT_ALLOWED"),
        "pdb_ak_" + "x" * 43: (401, "UNAUTHORIZED"),
        "nothing": (401, "UNAUTHORIZED"),
    }
    for key, code in expected.items():
        assert refusal(server.request(route.method, path, key=key)) == code


@pytest.fixture(scope="session")
def public_key(server: Server) -> str:
    return server.new_key(public=True)["key"]


def test_a_secret_key_sees_nothing_of_another_database(server: Server, admin: httpx.Client) -> None:
    """Each response is the same as for a database that does not exist."""
    one, two = database(admin, "test_admin_one"), database(admin, "test_admin_two")
    for n in range(2):  # the second one makes an index
        server.insert("hidden", {"n": n, "unique": ["n"]}, key=two)
    path = "/admin.v1/databases/{}/collections/hidden/indexes"
    for client in keyed(server, one):
        assert [row["name"] for row in listed(client, "databases")] == ["test_admin_one"]
        assert {row["database"] for row in listed(client, "keys")} == {"test_admin_one"}
        (index,) = admin.get(path.format("test_admin_two")).json()["indexes"]
        attempts: list[tuple[str, str, Any]] = [
            ("GET", "/admin.v1/keys?database={}", None),
            ("GET", path, None),
            ("POST", path, {"fields": ["a"]}),
            ("DELETE", f"{path}/{index['id']}", None),
        ]
        for method, target, body in attempts:
            there = client.request(method, target.format("test_admin_two"), json=body)
            control = client.request(method, target.format("nowhere_at_all"), json=body)
            assert refusal(there) == (404, "NOT_FOUND")
            assert there.text.replace("test_admin_two", "nowhere_at_all") == control.text
        for name in ("test_admin_two", "nowhere_at_all"):
            response = client.get("/hidden/docs", headers={"X-PaperDB-Database": name})
            assert refusal(response) == (403, "OTHER_DATABASE")
        assert client.get("/hidden/docs", headers={"X-PaperDB-Database": "test_admin_one"}).json()["seq"] == 0
    assert admin.get(path.format("test_admin_two")).json()["indexes"] == [index]


def test_an_admin_key_uses_documents_of_the_database_that_it_names(server: Server, admin: httpx.Client) -> None:
    keys = {name: database(admin, name) for name in ("test_admin_here", "test_admin_there")}
    for method, path in (("GET", "/c/docs"), ("POST", "/c/docs"), ("GET", "/collections"), ("POST", "/batch")):
        assert refusal(admin.request(method, path, json={})) == (400, "DATABASE_NEEDED")
    for name in keys:
        sent = {"X-PaperDB-Database": name, "Idempotency-Key": "the-same"}
        made = admin.post("/c/docs", json={"_id": "a", "of": "x"}, headers=sent)
        assert (made.status_code, made.headers.get("idempotent-replayed")) == (201, None)
        assert server.request("GET", "/c/docs/a", key=keys[name]).json() == made.json()
    here = {"X-PaperDB-Database": "test_admin_here"}
    admin.patch("/c/docs/a", json={"of": "here"}, headers=here)
    assert server.request("GET", "/c/docs/a", key=keys["test_admin_there"]).json()["of"] == "x"
    token = admin.post("/realtime/token", json={"collections": ["*"]}, headers=here).json()["token"]
    assert server.request("GET", "/c/docs/a", key=token).json()["of"] == "here"
    refused = server.request("GET", "/c/docs", key=token, headers={"X-PaperDB-Database": "test_admin_there"})
    assert refusal(refused) == (403, "OTHER_DATABASE")
    with _socket(server, token) as ws:
        server.insert("c", {"of": "there"}, key=keys["test_admin_there"])
        inserted = server.insert("c", {"of": "here"}, key=keys["test_admin_here"])
        assert json.loads(ws.recv(timeout=10))["data"] == inserted


DATABASES = "/admin.v1/databases"


@pytest.mark.parametrize("path", ["/admin%2Ev1/databases", "/admin%2ev1/audit", "//admin.v1/databases"])
def test_no_spelling_of_the_path_avoids_the_check(server: Server, path: str) -> None:
    public = server.new_key(public=True)["key"]
    assert server.request("GET", path, key=public).status_code in (403, 404)
    response = server.request("GET", path, headers={"X-PaperDB-Database": "default"})
    assert "databases" not in response.json() or [row["name"] for row in response.json()["databases"]] == [
        "default"
    ]
    assert "entries" not in response.json()


# --- the record ----------------------------------------------------------------------------------


def test_who_did_what_is_recorded(server: Server, admin: httpx.Client) -> None:
    me = admin.get("/admin.v1/me").json()
    database(admin, "test_admin_record")
    server.cli("databases", "set-plan", "test_admin_record", "free")
    refused = admin.post("/admin.v1/databases", json={"name": "test_admin_record", "plan": "pro"})
    assert refused.status_code == 409
    found = [row for row in listed(admin, "audit") if row["database"] == "test_admin_record"]
    assert [row["action"] for row in found] == ["database.plan", "key.create", "database.create"]
    assert found[0]["by"].startswith("command line (")
    assert found[0]["details"] == {"plan": "free"}
    assert found[1]["by"] == found[2]["by"] == f"key {me['id']} (the tests)"
    assert [row["id"] for row in found] == sorted((row["id"] for row in found), reverse=True)
    assert refusal(admin.get("/admin.v1/audit?after=x")) == (400, "INVALID_CURSOR")


def test_what_keys_do_is_recorded(server: Server, admin: httpx.Client) -> None:
    """To tokens, schemas and collections; each once, however many steps it takes."""
    name = "test_admin_acts"
    made = database(admin, name)
    with client_of(server) as client:
        client.headers["Authorization"] = f"Bearer {made}"
        client.event_hooks = {"response": [check_documented]}
        for begin in (0, 600):
            assert client.post("/c/bulk", json=[{"n": begin + n} for n in range(600)]).json()["inserted"] == 600
        for body in ({"subject": "ada"}, {"jti": "j1"}):
            for _ in range(2):  # a repeated request
                done = client.post("/realtime/revoke", json=body, headers={"Idempotency-Key": "".join(body)})
                assert done.status_code == 200
        client.put("/c/schema", json={"properties": {"n": {"type": "number", "unique": True}}})
        client.delete("/c/schema")
        assert client.delete("/c/schema").status_code == 404
        assert client.delete("/c?confirm=c").json() == {"deleted": 1200}
        assert client.delete("/c?confirm=c").status_code == 404
        entry = {"action": "documents.import", "database": name, "collection": "d"}
        assert client.post("/admin.v1/audit", json={**entry, "note": "d.csv"}).json() == {"recorded": True}
        for wrong in ({"note": "a\nb"}, {"note": "a" * 501}, {"action": "key.revoke"}, {"by": "somebody else"}):
            assert client.post("/admin.v1/audit", json=entry | wrong).status_code == 400, wrong
        other = client.post("/admin.v1/audit", json={**entry, "database": "default"})
        assert refusal(other) == (404, "NOT_FOUND")
        by = f"key {client.get('/admin.v1/me').json()['id']}"
    found = [row for row in reversed(listed(admin, "audit")) if row["database"] == name and row["by"] == by]
    assert [(row["action"], row["target"], row["details"]) for row in found] == [
        ("subject.revoke", "ada", {}),
        ("token.revoke", "j1", {}),
        ("schema.set", "c", {}),
        ("schema.delete", "c", {}),
        ("collection.drop", "c", {}),
        ("documents.import", "d", {"note": "d.csv"}),
    ]


# --- the command line, remotely ------------------------------------------------------------------


def test_the_command_line_does_the_same_through_the_server(server: Server, admin: httpx.Client) -> None:
    from tests.auth.commands import fails_here, run_here

    env = {"PAPERDB_URL": server.url, "PAPERDB_API_KEY": admin.headers["authorization"].split()[1]}

    def remote(*arguments: str) -> str:
        done = run_here(*arguments, env=env)
        assert done.exit_code == 0, done.stderr
        return done.stdout

    remote("databases", "create", "test_admin_cli", "--plan", "free")
    remote("databases", "set-plan", "test_admin_cli", "pro")
    remote("databases", "rename", "test_admin_cli", "test_admin_cli2")
    made = json.loads(remote("keys", "create", "--database", "test_admin_cli2", "--json"))
    assert set(made) == {"id", "key", "database", "kind"}
    server.insert("c", {}, key=made["key"])
    remote("keys", "expire", made["id"], "30d")
    # What it lists there is what it lists here.
    assert json.loads(remote("databases", "list", "--json")) == json.loads(
        server.cli("databases", "list", "--json")
    )
    (row,) = (row for row in json.loads(remote("keys", "list", "--json")) if row["id"] == made["id"])
    assert row["expiresAt"] is not None
    assert "test_admin_cli2" in remote("keys", "list")
    assert "database.rename" in remote("audit", "--limit", "20")
    remote("keys", "revoke", made["id"])
    assert refusal(server.request("GET", "/c/docs", key=made["key"])) == (401, "UNAUTHORIZED")
    assert "are now signed" in remote("keys", "rotate-signing")
    fails_here(run_here("databases", "delete", "x", "--confirm", "x", env=env), 1, "404", "'x'")
    remote("databases", "delete", "test_admin_cli2", "--confirm", "test_admin_cli2")
    assert "test_admin_cli2" not in remote("databases", "list")
    fails_here(run_here("keys", "list", env={**env, "PAPERDB_API_KEY": "pdb_ak_x"}), 1, "401")
    fails_here(run_here("keys", "list", env={**env, "PAPERDB_URL": "http://127.0.0.1:9"}), 1)
    assert run_here("keys", "list", env={"PAPERDB_URL": server.url}).exit_code == 2
