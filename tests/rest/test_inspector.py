"""The admin API on live connections and health: who is connected, why one did not get a change.

Each test has a database of its own on the shared server.
"""

from __future__ import annotations

import itertools
import json
import re
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import httpx
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from tests.conftest import NO_TLS, Server, StartServer, receive, wait_until
from tests.rest.documented import check_documented
from tests.rest.tools import client_of, refusal

_numbers = itertools.count()


class Own:
    """A database, its secret key as a client, and sockets with tokens of it."""

    def __init__(self, server: Server, stack: ExitStack) -> None:
        self.server = server
        self.name = f"test_inspector{next(_numbers)}"
        server.cli("databases", "create", self.name, "--plan", "pro")
        self.key = server.new_key(self.name)["key"]
        self.client = stack.enter_context(client_of(server))
        self.client.headers["Authorization"] = f"Bearer {self.key}"
        self.client.event_hooks = {"response": [check_documented]}
        self._stack = stack

    def token(self, collections: Any, **more: Any) -> str:
        body = {"collections": collections, **more}
        return str(self.client.post("/realtime/token", json=body).json()["token"])

    def socket(self, collections: Any, query: str = "", **more: Any) -> ClientConnection:
        url = f"{self.server.ws_url}/?token={self.token(collections, **more)}{query}"
        return self._stack.enter_context(connect(url, proxy=None, close_timeout=2))

    def put(self, id: str, **fields: Any) -> None:
        assert self.client.put(f"/c/docs/{id}", json=fields).status_code < 300

    def connections(self, **query: Any) -> list[dict[str, Any]]:
        response = self.client.get("/admin.v1/connections", params=query)
        assert response.status_code == 200, response.text
        found: list[dict[str, Any]] = response.json()["connections"]
        return found

    def why(self, connection: dict[str, Any], **query: Any) -> dict[str, Any]:
        response = self.client.get(f"/admin.v1/connections/{connection['id']}/why", params=query)
        assert response.status_code == 200, response.text
        body: dict[str, Any] = response.json()
        return body


@pytest.fixture
def own(server: Server) -> Iterator[Own]:
    with ExitStack() as stack:
        yield Own(server, stack)


@pytest.fixture(scope="session")
def admin_key(server: Server) -> str:
    key = str(json.loads(server.cli("keys", "create", "--admin", "--json"))["key"])
    wait_until(lambda: server.request("GET", "/admin.v1/me", key=key).status_code == 200)
    return key


def test_connections_say_who_they_are_and_how_far(own: Own) -> None:
    rule = {"c": {"filter": {"room": "r1"}, "select": ["room"]}}
    ruled = own.socket(rule, "&since=now", subject="ada")
    plain = own.socket(["c", "d"])
    assert receive(ruled)["type"] == "ready"
    own.put("a", room="r1")
    assert receive(ruled)["data"] == {"_id": "a", "room": "r1"}
    assert receive(plain)["type"] == "insert"
    listed = own.connections()
    one, other = sorted(listed, key=lambda row: str(row["mode"]))  # each worker lists its own
    assert (one["database"], one["transport"], one["mode"], one["subject"]) == (
        own.name,
        "websocket",
        "cursor",
        "ada",
    )
    assert (one["collections"], one["rules"]["c"]["filter"]) == (["c"], {"room": "r1"})
    assert one["follows"][0]["filter"] == {"room": {"eq": "r1"}}
    assert (other["mode"], other["rules"], other["subject"]) == ("plain", {}, None)
    assert {followed["collection"] for followed in other["follows"]} == {"c", "d"}
    for row in (one, other):
        assert (row["state"], row["seq"], row["head"], row["lagChanges"]) == ("live", 1, 1, 0)
        assert row["address"] == "127.0.0.1"
        assert row["sentBytes"] > 100
    assert own.connections(limit=1) == listed[:1]
    page = own.client.get("/admin.v1/connections", params={"limit": 1}).json()
    assert page["total"] == 2
    assert [row["id"] for row in own.connections(after=page["next"])] == [listed[1]["id"]]
    assert refusal(own.client.get("/admin.v1/connections?after=x")) == (400, "INVALID_CURSOR")
    plain.close()
    wait_until(lambda: [row["id"] for row in own.connections()] == [one["id"]])


@pytest.mark.parametrize("http2", [False, True])
@pytest.mark.parametrize("with_key", [False, True])
def test_an_event_stream_is_listed_too(own: Own, http2: bool, with_key: bool) -> None:
    credential = own.key if with_key else own.token({"c": {"filter": {"room": "r1"}}}, subject="ada")
    headers = {"Authorization": f"Bearer {credential}", "Accept": "text/event-stream"}
    with (
        httpx.Client(http1=not http2, http2=http2, verify=NO_TLS, timeout=10) as client,
        client.stream("GET", f"{own.server.url}/c/changes", headers=headers) as stream,
    ):
        lines = stream.iter_lines()
        next(lines)
        wait_until(lambda: [row["state"] for row in own.connections()] == ["live"])
        own.put("other", room="r2")
        own.put("seen", room="r1")
        wait_for(lines, "seen")
        (row,) = own.connections()
        assert (row["transport"], row["mode"], row["address"]) == ("sse", "cursor", "127.0.0.1")
        assert (row["subject"], row["expiresAt"] is None) == ((None, True) if with_key else ("ada", False))
        wait_until(lambda: own.connections()[0]["seq"] == 2)
        outcomes = [own.why(row, collection="c", id=id)["outcome"] for id in ("other", "seen")]
        assert outcomes == ["sent" if with_key else "rule", "sent"]
        assert own.client.delete(f"/admin.v1/connections/{row['id']}").status_code == 200
        with pytest.raises(httpx.RemoteProtocolError):  # cut off, so that its client comes back
            for _ in lines:
                pass
    wait_until(lambda: own.connections() == [])


def wait_for(lines: Iterator[str], text: str) -> None:
    assert any(text in line for line in lines)


def test_a_long_poll_is_listed_while_it_waits(own: Own) -> None:
    own.put("a", room="r1")
    token = own.token({"c": {"filter": {"room": "r1"}}}, subject="ada")
    with ThreadPoolExecutor(1) as pool, client_of(own.server) as client:

        def poll(**more: Any) -> Any:
            headers = {"Authorization": f"Bearer {token}"}
            return client.get("/c/changes", params={"wait": 20, **more}, headers=headers)

        def waiting() -> dict[str, Any]:
            wait_until(lambda: [row["state"] for row in own.connections()] == ["live"])
            return own.connections()[0]

        asked = pool.submit(poll, since=1)
        row = waiting()
        assert (row["transport"], row["subject"], row["seq"], row["lagChanges"]) == ("poll", "ada", 1, 0)
        own.put("other", room="r2")
        assert [(of["state"], of["lagChanges"]) for of in own.connections()] == [("live", 0)]
        assert own.why(row, seq=2)["outcome"] == "rule"
        assert own.client.get("/admin.v1/health").json()["audience"]["byTransport"] == {"poll": 1}
        own.client.delete(f"/admin.v1/connections/{row['id']}")
        assert asked.result(10).json()["changes"] == []
        asked = pool.submit(poll, since=2)
        own.client.delete(f"/admin.v1/connections/{waiting()['id']}?revoke=subject")
        assert refusal(asked.result(10)) == (401, "TOKEN_REVOKED")
    assert own.connections() == []


def test_a_reader_that_does_not_read_is_seen_to_be_behind(own: Own) -> None:
    ws = own.socket(["c"], "&since=now")
    receive(ws)
    text = "x" * 100_000

    def is_behind() -> bool:
        """It may still read: until its own buffers are full."""
        own.client.post("/c/bulk", json=[{"text": text} for _ in range(20)])
        (row,) = own.connections()
        behind = row["state"] == "catching up" and row["lagChanges"] > 0 and row["unsentBytes"] > 100_000
        waits = behind and own.why(row, seq=row["head"])["outcome"] == "waiting"
        return waits and bool(own.client.get("/admin.v1/health").json()["audience"]["catchingUp"] == 1)

    wait_until(is_behind)


ROOM = {"c": {"filter": {"room": "r1"}}}


@pytest.mark.parametrize(
    ("outcome", "collections", "query", "subscribe", "fields"),
    [
        ("sent", ["*"], "", None, {"room": "r1"}),
        ("sent", ROOM, "", None, {"room": "r1"}),
        ("rule", ROOM, "", None, {"room": "r2"}),
        ("no-match", ["c"], "&since=now&collections=", {"filter": {"n": 1}}, {"n": 2}),
        ("sent", ["c"], "&since=now&collections=", {"filter": {"n": 1}}, {"n": 1}),
        ("no-match", ROOM, "&since=now&collections=", {"filter": {"n": 1}}, {"room": "r1", "n": 2}),
        ("not-covered", ["d"], "", None, {}),
        ("not-subscribed", ["c"], "&since=now&collections=", None, {}),
    ],
    ids=str,
)
def test_why_a_client_did_or_did_not_get_a_change(
    own: Own, outcome: str, collections: Any, query: str, subscribe: Any, fields: Any
) -> None:
    ws = own.socket(collections, query)
    if "since" in query:
        assert receive(ws)["type"] == "ready"
    if subscribe is not None:
        ws.send(json.dumps({"action": "subscribe", "collection": "c", **subscribe}))
        assert receive(ws)["type"] == "subscribed"
    own.put("a", **fields)
    if outcome == "sent":
        assert receive(ws)["type"] == "insert"
    (row,) = own.connections()
    told = own.why(row, seq=1)
    assert told["outcome"] == outcome, told
    assert told["change"] == {"type": "insert", "collection": "c", "id": "a"}
    assert ("It was sent" in told["text"]) == (outcome == "sent")
    assert own.why(row, collection="c", id="a") | {"unsentBytes": 0, "text": ""} == (
        told | {"unsentBytes": 0, "text": ""}  # the client reads meanwhile
    )


def test_why_knows_the_beginning_the_end_and_what_nobody_sees(own: Own) -> None:
    own.put("a", n=1)
    ws = own.socket({"c": {"select": ["n"]}}, "&since=now")
    assert receive(ws)["seq"] == 1
    own.put("a", n=1, m=2)  # nothing of what it sees
    (row,) = own.connections()
    outcomes = [own.why(row, seq=seq)["outcome"] for seq in (1, 2, 3)]
    assert outcomes == ["before-start", "no-change", "future"]
    path = f"/admin.v1/connections/{row['id']}/why"
    for query in ("", "?seq=1&id=a", "?collection=c", "?seq=0", "?seq=x"):
        assert own.client.get(path + query).status_code == 400
    assert refusal(own.client.get(f"{path}?collection=c&id=absent")) == (404, "NOT_FOUND")
    assert refusal(own.client.get(path.replace(row["id"], "x-1") + "?seq=1")) == (404, "NOT_FOUND")


def test_why_says_when_the_log_does_not_hold_it(start_server: StartServer) -> None:
    server = start_server("--retention-count", "2")
    with ExitStack() as stack:
        own = Own(server, stack)
        own.socket(["c"])
        for n in range(5):
            own.put(str(n))
        (row,) = own.connections()
        wait_until(lambda: own.why(row, seq=1)["outcome"] == "gone")


def closes(ws: ClientConnection) -> int:
    """The close code, behind whatever comes before it."""
    with pytest.raises(ConnectionClosed) as closed:
        deque(iter(lambda: ws.recv(timeout=10), None), maxlen=0)
    assert closed.value.rcvd is not None
    return closed.value.rcvd.code


@pytest.mark.parametrize(("revoke", "code"), [(None, 1012), ("token", 4403), ("subject", 4403)])
def test_a_connection_is_ended(own: Own, admin_key: str, revoke: str | None, code: int) -> None:
    ended, kept = own.socket(["c"], subject="ada"), own.socket(["c"], subject="bob")
    (row,) = (row for row in own.connections() if row["subject"] == "ada")
    query = {} if revoke is None else {"revoke": revoke}
    response = own.client.delete(f"/admin.v1/connections/{row['id']}", params=query)
    assert response.json() == {"closed": True, "revoked": revoke}
    assert closes(ended) == code
    own.put("a")
    assert receive(kept)["type"] == "insert"
    entries = own.server.request("GET", "/admin.v1/audit", key=admin_key).json()["entries"]
    entry = next(entry for entry in entries if entry["target"] == row["id"])
    assert (entry["action"], entry["database"]) == ("connection.end", own.name)
    assert entry["details"] == {"subject": "ada", **({} if revoke is None else {"revoked": revoke})}


def test_a_token_without_a_subject_cannot_be_ended_by_it(own: Own) -> None:
    ws = own.socket(["c"])
    (row,) = own.connections()
    path = f"/admin.v1/connections/{row['id']}"
    assert refusal(own.client.delete(f"{path}?revoke=subject")) == (409, "CONFLICT")
    assert refusal(own.client.delete(f"{path}?revoke=all")) == (400, "INVALID_REQUEST")
    own.put("a")
    assert receive(ws)["type"] == "insert"


def test_connections_of_another_database_do_not_exist(own: Own, server: Server, admin_key: str) -> None:
    own.socket(["c"])
    (row,) = own.connections()
    with ExitStack() as stack:
        other = Own(server, stack)
        assert other.connections() == []
        assert refusal(other.client.get(f"/admin.v1/connections?database={own.name}")) == (404, "NOT_FOUND")
        for method, path in (("GET", "/why?seq=1"), ("DELETE", ""), ("DELETE", "?revoke=token")):
            response = other.client.request(method, f"/admin.v1/connections/{row['id']}{path}")
            assert refusal(response) == (404, "NOT_FOUND")
    assert own.connections() == [row]
    seen = server.request("GET", f"/admin.v1/connections?database={own.name}", key=admin_key).json()
    assert [found["id"] for found in seen["connections"]] == [row["id"]]


def test_the_command_line_lists_and_ends_connections(own: Own) -> None:
    from tests.auth.commands import run_here

    ws = own.socket(["c"], subject="ada")
    env = {"PAPERDB_URL": own.server.url, "PAPERDB_API_KEY": own.key}
    (row,) = json.loads(run_here("connections", "list", "--json", env=env).stdout)
    assert "ada" in run_here("connections", "list", env=env).stdout
    done = run_here("connections", "end", row["id"], "--revoke", "token", env=env)
    assert (done.exit_code, done.stdout) == (0, f"Closed {row['id']}.\n")
    assert closes(ws) == 4403


def measure(health: dict[str, Any], name: str, suffix: str = "", **labels: str) -> float:
    (found,) = (of for of in health["measures"] if of["name"] == name)
    of = [sample for sample in found["samples"] if sample["suffix"] == suffix]
    return float(sum(sample["value"] for sample in of if labels.items() <= sample["labels"].items()))


def test_health_shows_the_server_to_an_admin_and_a_database_to_its_key(start_server: StartServer) -> None:
    server = start_server("--slow-query-ms", "1")
    key = json.loads(server.cli("keys", "create", "--admin", "--json"))["key"]
    wait_until(lambda: server.request("GET", "/admin.v1/me", key=key).status_code == 200)
    with ExitStack() as stack:
        own, other = Own(server, stack), Own(server, stack)
        own.socket(["c"])
        own.client.post("/c/bulk", json=[{"n": n, "text": f"secret {n}" * 200} for n in range(1000)])

        def health(key: str) -> dict[str, Any]:
            response = server.request("GET", "/admin.v1/health", key=key)
            check_documented(response)
            body: dict[str, Any] = response.json()
            return body

        def is_slow() -> bool:
            query = {"filter": '{"text": {"contains": "secret 9"}}', "sort": "n"}
            assert own.client.get("/c/docs", params=query).status_code == 200
            return bool(health(key)["slowQueries"])

        wait_until(is_slow)
        whole = health(key)
        assert measure(whole, "paperdb_operations_total") == measure(whole, "paperdb_commit_operations", "_sum")
        assert measure(whole, "paperdb_commit_duration_seconds", "_bucket", le="+Inf") >= 1
        assert measure(whole, "paperdb_http_requests_total", status="200") >= 3
        assert measure(whole, "paperdb_collection_changes_total", database=own.name, collection="c") == 1000
        assert not any(of["name"].startswith("paperdb_database_") for of in whole["measures"])
        assert whole["audience"]["byDatabase"] == {own.name: 1}
        slow = whole["slowQueries"][0]
        assert (slow["database"], slow["collection"], slow["sort"]) == (own.name, "c", "n")
        assert json.loads(slow["filter"]) == {"text": {"contains": "?"}}
        mine = health(own.key)
        assert mine["slowQueries"]
        assert (len(whole["processes"]), mine["processes"]) == (1, [])
        assert measure(mine, "paperdb_database_log_head") == 1000
        for text in (json.dumps(health(other.key)), json.dumps(health(server.key))):
            assert own.name not in text
            assert '"value": 1000' not in text
        assert "secret 9" not in json.dumps(whole)


@pytest.mark.sqlite
def test_a_change_counts_once_although_each_worker_publishes_it(start_server: StartServer) -> None:
    server = start_server("--workers", "2")
    key = json.loads(server.cli("keys", "create", "--admin", "--json"))["key"]

    def health() -> dict[str, Any]:
        found: dict[str, Any] = server.request("GET", "/admin.v1/health", key=key).json()
        return found

    def published() -> list[str]:
        text = server.request("GET", "/metrics").text
        return re.findall(r'^paperdb_changes_total\{worker="worker-\d"\} (\S+)$', text, re.MULTILINE)

    before = measure(health(), "paperdb_operations_total")
    for n in range(5):
        server.insert("c", {"n": n})
    wait_until(lambda: published() == ["5.0", "5.0"])
    after = health()
    assert measure(after, "paperdb_changes_total") == 5
    assert measure(after, "paperdb_collection_changes_total", collection="c") == 5
    assert measure(after, "paperdb_operations_total") == before + 5
    assert [of["name"] for of in after["processes"]] == ["worker-1", "worker-2", "writer"]
    assert all(of["cpuSeconds"] > 0 and of["memoryBytes"] > 1e6 for of in after["processes"])
    assert sum(of["connections"] for of in after["processes"]) == measure(after, "paperdb_connections") > 0
