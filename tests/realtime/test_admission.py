"""Refused handshakes: each refusal is a plain HTTP response, before any upgrade."""

from __future__ import annotations

import base64
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import jwt
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from tests.conftest import Server, StartServer, need, receive, wait_until
from tests.realtime.raw import Raw, forge, handshake, open_raw, running


def segment(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


def unsigned(server: Server, algorithm: str) -> str:
    """A real token's claims, with another algorithm and no signature."""
    header, claims, _ = forge(server, "x").split(".")
    kid = jwt.get_unverified_header(f"{header}.{claims}.")["kid"]
    return f"{segment({'alg': algorithm, 'typ': 'JWT', 'kid': kid})}.{claims}."


def signed_by_public_kid(server: Server) -> str:
    """A token that names one of our key ids and is signed with public data."""
    return forge(server, "x", secret=b"paperdb-realtime-paperdb-realtime")


BAD_TOKENS: dict[str, Callable[[Server], str]] = {
    "no token": lambda server: "token",
    "empty": lambda server: "",
    "an API key": lambda server: server.key,
    "expired": lambda server: forge(server, "x", lifetime=-1),
    "alg none": lambda server: unsigned(server, "none"),
    "alg HS256 without a signature": lambda server: unsigned(server, "HS256"),
    "alg RS256": lambda server: unsigned(server, "RS256"),
    "another audience": lambda server: forge(server, "x", aud="elsewhere"),
    "another issuer": lambda server: forge(server, "x", iss="elsewhere"),
    "another secret": signed_by_public_kid,
    "cut": lambda server: server.token("x")[:-1],
    "two parts": lambda server: server.token("x").rpartition(".")[0],
    "claims changed": lambda server: ".".join(
        [
            (t := server.token("x").split("."))[0],
            segment({"aud": "paperdb-realtime", "collections": ["*"]}),
            t[2],
        ]
    ),
    "no such key": lambda server: forge(server, "x", key="nobody"),
    "no expiry": lambda server: forge(server, "x", exp=None),
    "an unknown kid": lambda server: jwt.encode(
        {"sub": "default"}, "k" * 32, "HS256", headers={"kid": "nobody"}
    ),
    "no kid": lambda server: jwt.encode({"sub": "default"}, "k" * 32, "HS256"),
    "not ASCII": lambda server: "%C3%A9.%FF.%00",
    "long": lambda server: "a" * 10_000,
}


@pytest.mark.parametrize(
    ("way", "kind"),
    [
        *(("query", kind) for kind in BAD_TOKENS),
        *(("header", kind) for kind in BAD_TOKENS if kind not in ("not ASCII", "empty")),
        *(("subprotocol", kind) for kind in BAD_TOKENS if kind not in ("not ASCII", "empty")),
    ],
)
def test_bad_token_is_a_401(server: Server, way: str, kind: str) -> None:
    token = BAD_TOKENS[kind](server)
    target, headers = "/", []
    if way == "query":
        target = f"/?token={token}"
    elif way == "header":
        headers = [f"Authorization: Bearer {token}"]
    else:
        headers = [f"Sec-WebSocket-Protocol: paperdb.v1, bearer.{token}"]
    with Raw(server) as raw:
        raw.send(handshake(server, target, *headers))
        status, _, body = raw.response()
    assert status == 401
    assert body["code"] == ("TOKEN_EXPIRED" if kind == "expired" else "INVALID_TOKEN")
    assert "Traceback" not in body["error"]


@pytest.mark.parametrize(
    "headers",
    [[], ["Authorization: Basic YTpi"], ["Authorization: Bearer"], ["Sec-WebSocket-Protocol: paperdb.v1"]],
    ids=["nothing", "Basic", "empty Bearer", "only paperdb.v1"],
)
def test_missing_token_is_a_401_that_says_how_to_send_one(server: Server, headers: list[str]) -> None:
    with Raw(server) as raw:
        raw.send(handshake(server, "/", *headers))
        status, response, body = raw.response()
    assert status == 401
    assert "www-authenticate" in response
    assert body["code"] == "TOKEN_MISSING"


def test_token_with_a_deeply_nested_header_is_a_401(server: Server) -> None:
    bomb = base64.urlsafe_b64encode(b"[" * 9_000).rstrip(b"=").decode()
    with Raw(server) as raw:
        raw.send(handshake(server, f"/?token={bomb}.e30.e30"))
        status, _, body = raw.response()
    assert (status, body["code"]) == (401, "INVALID_TOKEN")
    assert "Traceback" not in server.stderr


def test_token_of_another_server_is_a_401(server: Server, start_server: StartServer) -> None:
    """Even if that server has a database and, by chance, a secret of the same name."""
    other = start_server()
    with (
        pytest.raises(InvalidStatus) as refused,
        connect(f"{server.ws_url}/?token={other.token('x')}", proxy=None),
    ):
        pass
    assert refused.value.response.status_code == 401


def test_token_of_a_revoked_key_is_a_401(server: Server, collection: str) -> None:
    created = server.new_key()
    token = server.token(collection, key=created["key"])
    server.cli("keys", "revoke", created["id"])

    def status() -> int:
        with Raw(server) as raw:
            raw.send(handshake(server, f"/?token={token}"))
            return raw.head()[0]

    wait_until(lambda: status() == 401, 2)


def test_plan_without_realtime_is_a_403(server: Server, collection: str) -> None:
    server.cli("databases", "create", collection, "--plan", "pro")
    created = server.new_key(collection)
    token = server.token(collection, key=created["key"])
    server.cli("databases", "set-plan", collection, "free")
    wait_until(
        lambda: (
            server.request(
                "POST", "/realtime/token", key=created["key"], json={"collections": ["x"]}
            ).status_code
            == 403
        ),
        2,
    )
    with Raw(server) as raw:
        raw.send(handshake(server, f"/?token={token}"))
        status, _, body = raw.response()
    assert status == 403
    assert body == {
        "error": "Realtime is only available on Pro and Team plans",
        "code": "PLAN_REQUIRED",
        "plan": "free",
    }


@pytest.mark.parametrize(
    ("names", "status"), [("elsewhere", 403), ("a,elsewhere", 403), ("my%20collection", 400), ("x" * 65, 400)]
)
def test_collections_outside_the_token_are_refused(server: Server, names: str, status: int) -> None:
    with Raw(server) as raw:
        raw.send(handshake(server, f"/?token={server.token('a')}&collections={names}"))
        assert raw.response()[0] == status


@pytest.mark.parametrize("path", ["/x", "/realtime/", "//", "/realtime/token", "/messages/docs", "/healthz"])
def test_other_paths_are_a_404(server: Server, path: str) -> None:
    with Raw(server) as raw:
        raw.send(handshake(server, f"{path}?token={server.token('x')}"))
        status, _, body = raw.response()
        assert (status, body["code"]) == (404, "NOT_FOUND")


@pytest.mark.parametrize("version", ["", "8", "12", "13, 8", "14", "x"])
def test_other_version_is_a_426_that_names_ours(server: Server, version: str) -> None:
    with Raw(server) as raw:
        raw.send(handshake(server, f"/?token={server.token('x')}", version=version))
        status, headers, _ = raw.response()
        assert (status, headers["sec-websocket-version"]) == (426, "13")


@pytest.mark.parametrize(
    "replacement",
    ["", "Sec-WebSocket-Key: short\r\n", f"Sec-WebSocket-Key: {'x' * 25}\r\n"],
    ids=["none", "short", "long"],
)
def test_bad_websocket_key_is_a_400(server: Server, replacement: str) -> None:
    request = handshake(server, f"/?token={server.token('x')}")
    request = request.replace(b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n", replacement.encode())
    with Raw(server) as raw:
        raw.send(request)
        assert raw.response()[0] == 400


def test_http_1_0_upgrade_is_refused_at_once(server: Server) -> None:
    """RFC 6455, section 4.1: HTTP/1.1 or higher."""
    with Raw(server, timeout=3) as raw:
        raw.send(handshake(server, f"/?token={server.token('x')}").replace(b" HTTP/1.1", b" HTTP/1.0"))
        assert 400 <= raw.head()[0] < 500


@pytest.mark.parametrize(
    ("header", "replacement"),
    [
        ("Upgrade: websocket", "Upgrade: WebSocket"),
        ("Connection: Upgrade", "Connection: keep-alive, upgrade"),
        ("Connection: Upgrade", "connection:UPGRADE"),
    ],
)
def test_heads_of_firefox_and_proxies_are_accepted(server: Server, header: str, replacement: str) -> None:
    request = handshake(server, f"/?token={server.token('x')}")
    assert header.encode() in request
    with Raw(server) as raw:
        raw.send(request.replace(header.encode(), replacement.encode()))
        assert raw.head()[0] == 101


@pytest.mark.parametrize(
    "hosts",
    [["a" * 70, "a..b", "[::1", "x:99999999"], ["\xff"]],
    ids=["ASCII", "not ASCII"],
)
def test_strange_host_gets_a_response_and_no_traceback(server: Server, hosts: list[str]) -> None:
    request = handshake(server, f"/?token={server.token('x')}")
    for host in hosts:
        with Raw(server) as raw:
            line = f"Host: {host}".encode("latin-1")
            raw.send(request.replace(f"Host: 127.0.0.1:{server.port}".encode(), line))
            assert raw.head()[0] in (101, 400)
    assert "Traceback" not in server.stderr  # what is logged later fails the shared server's end


def test_curl_gets_the_handshake_of_the_rfc(server: Server) -> None:
    """The example of RFC 6455, section 1.3, with a client that does not know WebSocket."""
    command = [
        need("curl"), "-s", "-i", "-N", "--max-time", "20", "-H", "Upgrade: websocket",
        "-H", "Connection: Upgrade", "-H", "Sec-WebSocket-Version: 13",
        "-H", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        "-H", f"Authorization: Bearer {server.token('x')}", f"{server.url}/realtime?since=now",
    ]  # fmt: skip
    output = b""
    with subprocess.Popen(command, stdout=subprocess.PIPE) as curl:
        assert curl.stdout is not None
        while b'"seq":' not in output and (more := os.read(curl.stdout.fileno(), 4096)):
            output += more
        curl.kill()
    head, _, body = output.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 101 ")
    assert b"s3pplmbitxaq9kygzzhzrbk+xoo=" in head.lower()
    assert body[:1] == b"\x81"
    assert body[2:].startswith(b'{"type":"ready","seq":')


# --- origins and room ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fenced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    data = tmp_path_factory.mktemp("fenced") / "data"
    with running(data, "--allowed-origins", "https://app.example, http://localhost:3000") as server:
        yield server


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        (None, 101),
        ("https://app.example", 101),
        ("http://localhost:3000", 101),
        ("https://evil.example", 403),
        ("http://app.example", 403),
        ("https://app.example.evil.example", 403),
        ("https://app.example:8443", 403),
        ("null", 403),
        ("*", 403),
        ("", 403),
    ],
)
def test_only_the_allowed_origins_may_connect(fenced: Server, origin: str | None, status: int) -> None:
    headers = [] if origin is None else [f"Origin: {origin}"]
    with Raw(fenced) as raw:
        raw.send(handshake(fenced, f"/?token={fenced.token('x')}", *headers))
        assert raw.head()[0] == status


def test_by_default_any_origin_may_connect(server: Server) -> None:
    with server.connect("x", origin="https://anywhere.example") as ws:
        assert ws.ping().wait(5)


def test_full_server_refuses_with_503_and_has_room_later(start_server: StartServer, collection: str) -> None:
    server = start_server("--max-connections", "4")
    token = server.token(collection)
    wait_until(lambda: server.request("GET", "/healthz").status_code == 200)
    raws = [open_raw_with(server, token) for _ in range(4)]
    try:
        for request in (handshake(server, f"/?token={token}"), b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"):
            with Raw(server) as refused:
                refused.send(request)
                status, headers, body = refused.response()
                assert status == 503
                assert int(headers["retry-after"]) > 0
                assert body["code"] == "TOO_MANY_CONNECTIONS"
        raws.pop().drop()

        def has_room() -> bool:
            with Raw(server) as raw:
                raw.send(handshake(server, f"/?token={token}&since=now"))
                return raw.head()[0] == 101

        wait_until(has_room)
        raws[0].send(b"\x89\x80\0\0\0\0")  # those inside were not disturbed
        assert raws[0].frame() == (10, b"")
    finally:
        for raw in raws:
            raw.drop()


def open_raw_with(server: Server, token: str) -> Raw:
    """Connect; try again if an earlier HTTP connection still occupies the slot."""
    for _ in range(100):
        raw = Raw(server)
        raw.send(handshake(server, f"/?token={token}"))
        if raw.head()[0] == 101:
            return raw
        raw.drop()
    raise AssertionError("the server stayed full")


def test_refused_handshake_leaves_the_server_unchanged(server: Server, collection: str) -> None:
    for _ in range(50):
        with Raw(server) as raw:
            raw.send(handshake(server, "/?token=bad"))
            assert raw.head()[0] == 401
    with open_raw(server, collection) as raw, server.connect(collection) as ws:
        document = server.insert(collection, {})
        assert raw.message()["data"] == receive(ws)["data"] == document


# --- for clients that cannot see a status ----------------------------------------------------------


def closed_with(server: Server, target: str, **more: Any) -> tuple[int, str]:
    """The close code and reason for a client that asked for them."""
    with connect(server.ws_url + target, proxy=None, close_timeout=2, **more) as ws:
        with pytest.raises(ConnectionClosed) as closed:
            ws.recv(timeout=10)
        assert closed.value.rcvd is not None
        return closed.value.rcvd.code, closed.value.rcvd.reason


@pytest.mark.parametrize(
    ("target", "code", "word"),
    [
        ("/?token=x&errors=close", 4401, "INVALID_TOKEN: "),
        ("/?errors=close", 4401, "TOKEN_MISSING: "),
        ("/?token=EXPIRED&errors=close", 4401, "TOKEN_EXPIRED: "),
        ("/?token=GOOD&collections=y&errors=close", 4400, "NOT_IN_TOKEN: "),
        ("/?token=GOOD&collections=é&errors=close", 4400, "INVALID_COLLECTION: "),
        ("/?token=GOOD&since=-1&errors=close", 4400, "INVALID_REQUEST: Invalid since: '-1'"),
        ("/?token=GOOD&sinse=1&errors=close", 4400, "INVALID_REQUEST: Unknown query parameter 'sinse'"),
        ("/nowhere?token=GOOD&errors=close", 4400, "NOT_FOUND: "),
        ("/?errors=close&token=MANY", 4400, "TOO_MANY_SUBSCRIPTIONS: "),
    ],
)
def test_refusal_is_a_close_code_on_request(
    start_server: StartServer, target: str, code: int, word: str
) -> None:
    server = start_server("--max-subscriptions", "10")
    target = target.replace("GOOD", server.token("x")).replace("EXPIRED", forge(server, "x", lifetime=-1))
    target = target.replace("MANY", server.token(*(f"c{n}" for n in range(11))))
    for protocols in (None, ["paperdb.v1", "bearer.x"], ["bearer.x"]):
        more = {} if protocols is None else {"subprotocols": protocols}
        if protocols and "TOKEN_MISSING" in word:
            continue  # now there is one
        found, reason = closed_with(server, target.replace("é", "%C3%A9"), **more)
        assert found == code
        assert reason.startswith(word)
    with pytest.raises(InvalidStatus):  # and by a status to all others
        connect(server.ws_url + target.replace("é", "%C3%A9").replace("errors=close", ""), proxy=None)


@pytest.mark.executable
def test_refused_key_plan_or_origin_closes_with_4403(start_server: StartServer) -> None:
    server = start_server("--allowed-origins", "https://app.example.com")
    token = server.token("x")
    target = f"/?token={token}&errors=close"
    assert closed_with(server, target, origin="https://evil.example.com")[0] == 4403
    key = server.new_key()
    revoked = f"/?token={server.token('x', key=key['key'])}&errors=close"
    server.cli("keys", "revoke", key["id"])
    wait_until(lambda: closed_with(server, revoked) == (4403, closed_with(server, revoked)[1]))
    server.cli("databases", "set-plan", "default", "free")
    wait_until(lambda: closed_with(server, target)[1].startswith("PLAN_REQUIRED: "))
    assert closed_with(server, target)[0] == 4403


def test_full_database_closes_with_1013(start_server: StartServer) -> None:
    server = start_server("--max-connections-per-database", "1")
    with server.connect("x"):
        code, reason = closed_with(server, f"/?token={server.token('x')}&errors=close")
    assert (code, reason.partition(":")[0]) == (1013, "TOO_MANY_CONNECTIONS")


def test_invalid_handshake_is_still_refused_by_a_status(server: Server) -> None:
    with Raw(server) as raw:
        raw.send(handshake(server, "/?token=x&errors=close", version="12"))
        assert raw.response()[0] == 426


@pytest.mark.parametrize("query", ["token=GOOD&token=GOOD", "token=GOOD&since=1&since=2", "token=GOOD&sinse=1"])
def test_unknown_or_repeated_parameter_is_a_400(server: Server, query: str) -> None:
    with Raw(server) as raw:
        raw.send(handshake(server, "/?" + query.replace("GOOD", server.token("x"))))
        status, _, body = raw.response()
    assert (status, body["code"]) == (400, "INVALID_REQUEST")
