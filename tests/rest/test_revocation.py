"""`POST /realtime/revoke`: tokens end before their time, everywhere within a second."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from tests.conftest import NO_TLS, Server, StartServer, receive, wait_until
from tests.rest.rules import ruled
from tests.rest.test_tokens import claims, listens
from tests.rest.tools import figure, refusal


def revoke(server: Server, body: object, key: str | None = None) -> httpx.Response:
    return server.request("POST", "/realtime/revoke", json=body, key=key)


def reads(server: Server, token: str, collection: str) -> tuple[int, str]:
    response = server.request("GET", f"/{collection}/count", key=token)
    return (200, "") if response.status_code == 200 else refusal(response)


REVOKED = (401, "TOKEN_REVOKED")


def socket(server: Server, token: str, query: str = "") -> ClientConnection:
    return connect(f"{server.ws_url}/?token={token}{query}", proxy=None, close_timeout=2)


def closes(ws: ClientConnection) -> int:
    with pytest.raises(ConnectionClosed) as closed:
        ws.recv(timeout=5)
    assert closed.value.rcvd is not None
    return closed.value.rcvd.code


def test_a_long_poll_ends(server: Server, collection: str) -> None:
    token = ruled(server, [collection], subject="eve-1")
    with ThreadPoolExecutor(1) as pool:
        path = f"/{collection}/changes?since=now&wait=30&token={token}"
        waiting = pool.submit(httpx.get, server.url + path, timeout=40)
        wait_until(lambda: figure(server, "paperdb_live_connections") == 1)
        assert revoke(server, {"subject": "eve-1"}).status_code == 200
        assert refusal(waiting.result(10)) == REVOKED


@pytest.mark.executable
def test_a_revoked_subject_is_refused_and_its_sockets_close(server: Server, collection: str) -> None:
    alice, bob, again = (ruled(server, [collection], subject=name) for name in ("alice-1", "bob-1", "alice-1"))
    with socket(server, alice) as one, socket(server, bob) as other, socket(server, again) as third:
        response = revoke(server, {"subject": "alice-1"})
        assert (response.status_code, response.json()["revoked"]) == (200, True)
        for token in (alice, again):  # at once
            assert reads(server, token, collection) == REVOKED
            assert listens(server, token, collection) == 401
        assert (closes(one), closes(third)) == (4403, 4403)
        server.insert(collection, {})
        assert receive(other)["type"] == "insert"
    with socket(server, alice, "&errors=close") as refused:
        assert closes(refused) == 4403
    assert reads(server, ruled(server, [collection], subject="alice-1"), collection) == (200, "")


def test_a_revoked_jti_ends_one_token(server: Server, collection: str) -> None:
    kept, revoked = (server.token(collection) for _ in range(2))
    with socket(server, revoked) as ws:
        assert revoke(server, {"jti": claims(revoked)["jti"]}).status_code == 200
        assert closes(ws) == 4403
    assert reads(server, revoked, collection) == REVOKED
    assert reads(server, kept, collection) == (200, "")


def test_a_socket_does_not_take_a_revoked_token(server: Server, collection: str) -> None:
    kept, revoked = (ruled(server, [collection], subject=name) for name in ("carol-1", "dora-1"))
    revoke(server, {"subject": "dora-1"})
    with socket(server, kept, "&since=now") as ws:
        assert receive(ws)["type"] == "ready"
        ws.send(json.dumps({"action": "auth", "token": revoked, "ref": 1}))
        reply = receive(ws)
        assert (reply["type"], reply["code"], reply["ref"]) == ("error", "TOKEN_REVOKED", 1)
        ws.send('{"action": "ping"}')
        assert receive(ws)["type"] == "pong"


def test_a_stream_ends(server: Server, collection: str) -> None:
    token = ruled(server, [collection], subject="eve-1")
    headers = {"Authorization": f"Bearer {token}"}
    url = f"{server.url}/{collection}/changes"
    with httpx.Client(trust_env=False, timeout=10, headers=headers, verify=NO_TLS) as client:
        stream = client.stream("GET", url, headers={"Accept": "text/event-stream"})
        with stream as events:
            lines = events.iter_lines()
            assert next(lines) == "event: progress"
            assert revoke(server, {"subject": "eve-1"}).status_code == 200
            for _ in lines:  # until the end, which is clean
                pass
        assert refusal(client.get(url, params={"since": "now", "wait": "5"})) == REVOKED


def test_it_outlives_the_server(start_server: StartServer) -> None:
    server = start_server()
    token = ruled(server, ["c"], subject="alice")
    revoke(server, {"subject": "alice"})
    server.kill()
    server.start()
    assert reads(server, token, "c") == REVOKED


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ([], "The body must be"),
        ({}, "The body must be"),
        ({"jti": "a", "subject": "b"}, "The body must be"),
        ({"token": "a"}, "The body must be"),
        ({"jti": 5}, "'jti' must be a string"),
        ({"subject": ""}, "'subject' must be a string"),
        ({"subject": None}, "'subject' must be a string"),
        ({"subject": "x" * 129}, "'subject' must be a string"),
    ],
)
def test_a_wrong_request_is_a_400(server: Server, body: object, words: str) -> None:
    response = revoke(server, body)
    assert refusal(response) == (400, "INVALID_REQUEST")
    assert words in response.json()["error"]


def test_only_a_secret_key_of_the_database_revokes(server: Server, collection: str) -> None:
    token = ruled(server, [collection], subject="frank-1", permissions=["read", "write"])
    public = server.new_key(public=True)["key"]
    server.cli("databases", "create", "test_revocation", "--plan", "pro")
    other = server.new_key("test_revocation")["key"]
    assert refusal(revoke(server, {"subject": "frank-1"}, public)) == (403, "READ_ONLY_KEY")
    assert refusal(revoke(server, {"subject": "frank-1"}, token)) == (403, "TOKEN_NOT_ALLOWED")
    assert revoke(server, {"subject": "frank-1"}, other).status_code == 200
    assert reads(server, token, collection) == (200, "")


@pytest.mark.sqlite
def test_a_process_that_did_not_revoke_sees_it_within_a_second(start_server: StartServer) -> None:
    """The command line, or a second worker, writes the same rows."""
    from paperdb_trio.store.revocations import Revocation
    from tests.store.tools import committed

    server = start_server()
    token = ruled(server, ["c"], subject="alice")
    with socket(server, token) as ws:
        at = round(claims(token)["iat"] * 1000)
        with committed(server.data / "paperdb.sqlite") as tx:
            Revocation(1, "subject", "alice", at, at + 86_460_000).apply(tx)
        wait_until(lambda: reads(server, token, "c") == REVOKED, 1.5)
        assert closes(ws) == 4403
