"""Ids of requests, and access lines: the same from every door."""

from __future__ import annotations

import json
import re

import httpx
import pytest

from tests.conftest import NO_TLS, Server, StartServer
from tests.logs import HANDSHAKE, line_of, lines, raw

# --- request ids ---------------------------------------------------------------------------------


@pytest.mark.parametrize("http2", [False, True])
def test_request_id_of_the_client_comes_back(server: Server, http2: bool) -> None:
    with httpx.Client(http1=not http2, http2=http2, verify=NO_TLS, timeout=20) as client:
        for path, status in (("/healthz", 200), ("/x/docs", 401), ("/x/docs/%FF", 400)):
            response = client.get(
                server.url + path, headers={"X-Request-Id": "a-Z_0.9", "Origin": "https://a.example"}
            )
            assert (response.status_code, response.headers["x-request-id"]) == (status, "a-Z_0.9")
            assert "X-Request-Id" in response.headers["access-control-expose-headers"]


MADE = r"[0-9a-f]{8}-[0-9]+"


@pytest.mark.parametrize("http2", [False, True])
def test_each_response_has_an_id_of_its_own(server: Server, http2: bool) -> None:
    id = server.insert("x", {"a": 1})["_id"]
    server.http2 = http2
    token = server.token("x")
    paths = ["/healthz", "/metrics", "/", "/sdk/paperdb.js", "/openapi.json", "/x/docs", f"/x/docs/{id}"]
    paths += [f"/x/docs/{id}", "/x/docs/none", "/x/changes", "/a/b/c/d", "/admin.v1/me", "/admin.v1/audit"]
    made = [server.request("GET", path).headers["x-request-id"] for path in paths]
    etag = server.request("GET", f"/x/docs/{id}").headers["etag"]
    for method, path, headers in (
        ("GET", f"/x/docs/{id}", {"If-None-Match": etag}),
        ("HEAD", f"/x/docs/{id}", {}),
        ("OPTIONS", "/x/docs", {}),
        ("POST", "/x/docs", {"Idempotency-Key": "k"}),
        ("POST", "/x/docs", {"Idempotency-Key": "k"}),  # the response is the remembered one, but not the id
        ("DELETE", "/x", {}),
    ):
        response = server.request(method, path, headers=headers, json={} if method == "POST" else None)
        made.append(response.headers["x-request-id"])
    with httpx.Client(http1=not http2, http2=http2, verify=NO_TLS, timeout=20) as client:
        headers = {"Authorization": f"Bearer {token}", "Accept": "text/event-stream"}
        with client.stream("GET", f"{server.url}/x/changes", headers=headers) as response:
            made.append(response.headers["x-request-id"])
    assert [id for id in made if not re.fullmatch(MADE, id)] == []
    assert len(set(made)) == len(made)


@pytest.mark.parametrize("given", [None, "", "a b", "ä", "a" * 129, "a;b", '"a"'])
def test_refusal_has_an_id_even_if_the_client_sent_none_or_an_unsound_one(
    server: Server, given: str | None
) -> None:
    headers: dict[bytes, bytes] = {} if given is None else {b"X-Request-Id": given.encode()}
    made = {
        httpx.get(f"{server.url}/x/docs", headers=headers, verify=NO_TLS).headers["x-request-id"] for _ in "12"
    }
    assert len(made) == 2
    assert all(re.fullmatch(MADE, id) for id in made)


def test_every_door_names_the_request_that_it_refuses_or_upgrades(server: Server) -> None:
    for request, status, id in (
        ("GET / HTTP/3.0\r\n\r\n", 400, MADE),
        (f"GET /{'a' * 20_000} HTTP/1.1\r\n\r\n", 431, MADE),
        ("GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: x\r\n\r\n", 400, MADE),
        (HANDSHAKE.format(query="token=no"), 401, "mine"),
        (HANDSHAKE.format(query="token=no&errors=close"), 101, "mine"),
        (HANDSHAKE.format(query=f"token={server.token('x')}"), 101, "mine"),
    ):
        head = raw(server, request)
        assert head.startswith(f"HTTP/1.1 {status} "), head
        assert re.search(rf"\r\nX-Request-Id: {id}\r\n", head), head


# --- access lines --------------------------------------------------------------------------------


def test_access_line_of_each_request_of_every_door(start_server: StartServer) -> None:
    server = start_server("--access-log", "on", "--log-format", "json")
    id = server.insert("x", {"a": 1})["_id"]
    key = json.loads(server.cli("keys", "list", "--json"))[0]["id"]
    common = {"level": "info", "address": "127.0.0.1", "database": "default", "key": key}
    for http2 in (False, True):
        server.http2 = http2
        response = server.request("GET", f"/x/docs/{id}?select=a", headers={"X-Request-Id": f"get-{http2}"})
        line = line_of(server, "paperdb.access", request=f"get-{http2}")
        assert line["ms"] > 0
        assert {
            **common,
            "message": f"GET /x/docs/{id}",
            "method": "GET",
            "path": f"/x/docs/{id}",
        }.items() <= line.items()
        assert {
            "route": "/:collection/docs/:id",
            "status": 200,
            "bytes": len(response.content),
        }.items() <= line.items()
        response = server.request("GET", "/x/docs?filter=no")
        line = line_of(server, "paperdb.access", request=response.headers["x-request-id"])
        assert (line["status"], line["code"], line["route"]) == (400, "INVALID_JSON", "/:collection/docs")
    server.http2 = False
    token = server.token("x", subject="ada")
    for path, headers, status, route in (
        ("/x/changes?since=0", {"Accept": "text/event-stream"}, 200, "/:collection/changes"),
        ("/sdk/paperdb.js", {}, 200, "/sdk/paperdb.js"),
        ("/healthz", {}, 200, "/healthz"),
        ("/a/b/c/d", {}, 404, None),
    ):
        request = httpx.Request(
            "GET", server.url + path, headers={"Authorization": f"Bearer {token}"} | headers
        )
        with httpx.Client(verify=NO_TLS, timeout=20) as client:
            response = client.send(request, stream=True)
            response.close()
        line = line_of(server, "paperdb.access", request=response.headers["x-request-id"])
        assert (line["status"], line.get("route")) == (status, route)
        assert line.get("subject") == (None if route and path == route else "ada")
    raw(server, HANDSHAKE.format(query=f"token={token}"))
    line = line_of(server, "paperdb.access", request="mine")
    assert {**common, "status": 101, "route": "/", "subject": "ada", "bytes": 0}.items() <= line.items()


def test_sampled_access_lines_say_of_how_many_each_is_one(start_server: StartServer) -> None:
    server = start_server("--access-log", "sampled", "--access-log-every", "5", "--log-format", "json")
    with httpx.Client(verify=NO_TLS, timeout=20) as client:
        for n in range(13):
            assert client.get(f"{server.url}/healthz", headers={"X-Request-Id": str(n)}).status_code == 200
    assert server.stop() == 0
    assert [(line["request"], line["of"]) for line in lines(server, "paperdb.access")] == [("4", 5), ("9", 5)]


def test_client_behind_a_proxy_is_named_by_its_own_address(start_server: StartServer) -> None:
    server = start_server("--access-log", "on", "--log-format", "json")
    server.request("GET", "/healthz", headers={"X-Forwarded-For": "1.2.3.4, 5.6.7.8", "X-Request-Id": "p"})
    assert line_of(server, "paperdb.access", request="p")["address"] == "5.6.7.8"
