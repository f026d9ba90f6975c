"""The change log over HTTP: pages, long polls and server-sent events."""

from __future__ import annotations

import json
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from paperdb_trio.net.chunked import LAST_CHUNK
from tests.conftest import Server, StartServer, need, wait_until
from tests.realtime.raw import Raw, forge, request
from tests.rest.tools import client_of, figure, refusal


def changes(server: Server, collection: str, query: str = "", *, key: str | None = None) -> dict[str, Any]:
    response = server.request("GET", f"/{collection}/changes?{query}", key=key)
    assert response.status_code == 200, response.text
    page = response.json()
    assert isinstance(page, dict)
    return page


@contextmanager
def stream(
    server: Server, collection: str, query: str = "", *, key: str | None = None, **headers: str
) -> Iterator[Iterator[str]]:
    """The lines of a stream of events."""
    asked = {"Accept": "text/event-stream", "Authorization": f"Bearer {key or server.key}", **headers}
    with (
        client_of(server) as client,
        client.stream("GET", f"/{collection}/changes?{query}", headers=asked) as response,
    ):
        assert response.status_code == 200, response.read()
        assert response.headers["content-type"] == "text/event-stream"
        yield lines_of(response)


def lines_of(response: httpx.Response) -> Iterator[str]:
    """Split at newlines only. httpx splits at U+2028, too; the standard does not (HTML, section 9.2.6)."""
    rest = ""
    for text in response.iter_text():
        *lines, rest = (rest + text).split("\n")
        yield from lines


def event(lines: Iterator[str]) -> dict[str, Any]:
    """The next event of a stream; its id must be its seq."""
    id = ""
    for line in lines:
        if line.startswith("id: "):
            id = line[4:]
        elif line.startswith("data: "):
            data = json.loads(line[6:])
            assert id == str(data["seq"])
            assert isinstance(data, dict)
            return data
    raise AssertionError("the stream ended")


class Poll:
    """A long poll in a thread of its own."""

    def __init__(self, server: Server, path: str, *, key: str | None = None) -> None:
        self.response: httpx.Response | None = None
        self.took = 0.0
        self._thread = threading.Thread(target=self._run, args=(server, path, key))
        self._thread.start()

    def _run(self, server: Server, path: str, key: str | None) -> None:
        began = time.monotonic()
        self.response = server.request("GET", path, key=key)
        self.took = time.monotonic() - began

    def end(self) -> httpx.Response:
        self._thread.join(30)
        assert self.response is not None
        return self.response


def test_pages_hold_every_change_once_in_order_and_say_where_to_continue(
    server: Server, collection: str
) -> None:
    made = [server.insert(collection, {"n": n}) for n in range(7)]
    server.insert(f"{collection}-other", {})
    server.request("DELETE", f"/{collection}/docs/{made[0]['_id']}")
    since, seen, pages = 0, [], 0
    while True:
        page = changes(server, collection, f"since={since}&limit=3")
        assert len(page["changes"]) <= 3
        assert set(page) == {"changes", "seq", "hasMore"}
        assert all(set(change) == {"seq", "type", "collection", "data"} for change in page["changes"])
        seen += page["changes"]
        since, pages = page["seq"], pages + 1
        if not page["hasMore"]:
            break
    assert pages in (3, 4)
    assert [change["data"] for change in seen] == [*made, made[0]]
    assert [change["type"] for change in seen] == ["insert"] * 7 + ["delete"]
    assert [change["seq"] for change in seen] == sorted({change["seq"] for change in seen})
    assert changes(server, collection) == changes(server, collection, "since=0")
    assert changes(server, collection, f"since={since}") == {"changes": [], "seq": since, "hasMore": False}
    assert changes(server, collection, "since=now")["seq"] >= since


def test_a_long_poll_returns_at_a_change_or_when_its_time_is_over(server: Server, collection: str) -> None:
    seq = changes(server, collection, "since=now")["seq"]
    poll = Poll(server, f"/{collection}/changes?since={seq}&wait=30")
    server.insert(f"{collection}-other", {})  # wakes no one
    assert poll.response is None
    made = server.insert(collection, {})
    response = poll.end()
    assert [change["data"] for change in response.json()["changes"]] == [made]
    assert poll.took < 15
    again = Poll(server, f"/{collection}/changes?since={response.json()['seq']}&wait=1")
    page = again.end().json()
    assert (page["changes"], page["hasMore"]) == ([], False)
    assert page["seq"] >= response.json()["seq"]
    assert again.took >= 1


def test_a_long_poll_ends_at_once_when_the_server_drains(start_server: StartServer) -> None:
    server = start_server()
    server.insert("c", {})
    with Raw(server, timeout=15) as poll:
        poll.send(request(server, "GET", "/c/changes?since=now&wait=60"))
        wait_until(lambda: figure(server, "paperdb_live_connections") == 1)
        assert server.stop() == 0
        status, _, page = poll.response()
    assert (status, page) == (200, {"changes": [], "seq": 1, "hasMore": False})


def test_a_long_poll_whose_key_is_revoked_gets_no_more_changes(server: Server, collection: str) -> None:
    revoked, kept = server.new_key(), server.new_key()
    seq = changes(server, collection, "since=now")["seq"]
    path = f"/{collection}/changes?since={seq}&wait=30"
    token = server.token(collection, key=revoked["key"])
    polls = [Poll(server, path, key=key) for key in (revoked["key"], token, kept["key"])]
    server.cli("keys", "revoke", revoked["id"])
    wait_until(lambda: server.request("GET", f"/{collection}/count", key=revoked["key"]).status_code == 401)
    made = server.insert(collection, {"secret": True})
    assert [poll.end().status_code for poll in polls] == [401, 401, 200]
    assert polls[2].end().json()["changes"][0]["data"] == made


def test_a_long_poll_outlives_neither_its_token_nor_its_plan(server: Server, collection: str) -> None:
    server.cli("databases", "create", collection, "--plan", "pro")
    key = server.new_key(collection)["key"]
    server.insert("c", {}, key=key)
    short = forge(server, collection, lifetime=2)
    polls = [
        Poll(server, f"/{collection}/changes?since=now&wait=30", key=short),
        Poll(server, "/c/changes?since=1&wait=30", key=key),
    ]
    server.cli("databases", "set-plan", collection, "free")
    wait_until(lambda: server.request("GET", "/c/changes", key=key).status_code == 403)
    wait_until(lambda: server.request("GET", f"/{collection}/changes", key=short).status_code == 401, 10)
    server.insert(collection, {})
    server.insert("c", {}, key=key)
    assert refusal(polls[0].end()) == (401, "TOKEN_EXPIRED")
    assert refusal(polls[1].end()) == (403, "PLAN_REQUIRED")


def test_a_stream_sends_past_then_new_changes_with_ids_to_resume_from(server: Server, collection: str) -> None:
    made = [server.insert(collection, {"n": n, "text": "a\nb\u2028ü"}) for n in range(3)]
    with stream(server, collection, "since=0") as lines:
        past = [event(lines) for _ in made]
        assert [change["data"] for change in past] == made
        live = server.insert(collection, {"n": 3})
        assert event(lines)["data"] == live
    resumed = {"Last-Event-ID": str(past[1]["seq"])}
    with stream(server, collection, "since=0", **resumed) as lines:  # it has the last word
        assert [event(lines)["data"] for _ in range(2)] == [made[2], live]
    for headers in ({}, {"Last-Event-ID": ""}):
        with stream(server, collection, **headers) as lines:  # from now on
            progress(lines)
            newest = server.insert(collection, {"n": 4})
            assert event(lines)["data"] == newest


def test_a_token_can_listen_only_to_its_collections(server: Server, collection: str) -> None:
    server.insert(collection, {"n": 1})
    token = server.token(collection)
    with client_of(server) as client:
        response = client.get(f"/{collection}/changes?token={token}&since=0")
        other = client.get(f"/{collection}-other/changes?token={token}")
    assert [change["data"]["n"] for change in response.json()["changes"]] == [1]
    assert refusal(other) == (403, "NOT_IN_TOKEN")
    with stream(server, collection, "since=0", key=token) as lines:
        assert event(lines)["data"]["n"] == 1


def progress(lines: Iterator[str]) -> int:
    """The id of the next event, which has no data."""
    while (line := next(lines)).startswith(":") or line == "":
        pass
    assert line == "event: progress"
    id = next(lines)
    assert id.startswith("id: ")
    assert [next(lines), next(lines)] == ["data", ""]
    return int(id[4:])


def test_a_stream_sends_its_position_at_once_and_while_quiet(start_server: StartServer) -> None:
    server = start_server("--ping-interval", "0.2")
    server.insert("quiet", {})
    with stream(server, "quiet") as lines:
        assert progress(lines) == 1
        server.insert("busy", {})
        while (seq := progress(lines)) == 1:
            pass
        assert seq == 2
    missed = server.insert("quiet", {})  # while the client is away, before it has seen any event
    with stream(server, "quiet", **{"Last-Event-ID": str(seq)}) as lines:
        assert progress(lines) == 2
        assert event(lines)["data"] == missed


def test_the_parameter_of_polyfills_resumes_like_the_header(server: Server, collection: str) -> None:
    first, second = (server.insert(collection, {"n": n}) for n in range(2))
    with stream(server, collection, "since=0") as lines:
        cursor = event(lines)["seq"]
    with stream(server, collection, f"since=0&lastEventId={cursor}") as lines:  # it has the last word
        assert event(lines)["data"] == second
    with stream(server, collection, f"since=0&lastEventId={cursor}", **{"Last-Event-ID": "0"}) as lines:
        assert event(lines)["data"] == first
    response = server.request(
        "GET", f"/{collection}/changes?lastEventId=x", headers={"Accept": "text/event-stream"}
    )
    assert refusal(response) == (400, "INVALID_REQUEST")


@pytest.mark.parametrize("door", ["raw", "quart", "http2", "http1.0"])
@pytest.mark.parametrize("end", ["kill", "drain", "revoke", "expire"])
def test_only_a_stream_that_ends_on_purpose_looks_complete(
    start_server: StartServer, door: str, end: str
) -> None:
    server = start_server(*{"quart": ("--http", "quart"), "http2": ("--tls-self-signed",)}.get(door, ()))
    created = server.new_key() if end == "revoke" else {"key": server.key}
    key = forge(server, "c", lifetime=3) if end == "expire" else created["key"]
    command = [need("curl"), "-sSNk", f"{server.url}/c/changes", "-H", "Accept: text/event-stream"]
    command += {"http2": ["--http2"], "http1.0": ["--http1.0"]}.get(door, ["--http1.1"])
    command += ["-H", f"Authorization: Bearer {key}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as curl:
        assert curl.stdout is not None
        assert curl.stdout.readline() == "event: progress\n"
        if end == "kill":
            server.kill()
        elif end == "drain":
            server.stop()
        elif end == "revoke":
            server.cli("keys", "revoke", created["id"])
        _, error = curl.communicate(timeout=20)
    if door == "http1.0" and end != "kill":  # which ends only with the connection
        assert curl.returncode == 0
    elif door != "http1.0":
        assert (curl.returncode == 0) is (end in ("revoke", "expire")), error


@pytest.mark.parametrize("tls", [False, True])
def test_a_stream_whose_client_ends_its_own_side_is_whole(start_server: StartServer, tls: bool) -> None:
    """It sends nothing more, but it may still read: the response must not look cut off."""
    server = start_server(*(("--tls-self-signed",) if tls else ()))
    for n in range(3):
        server.insert("c", {"n": n})
    with Raw(server) as raw:
        raw.send(request(server, "GET", "/c/changes?since=0", b"", "Accept: text/event-stream"))
        assert raw.head()[0] == 200
        socket.socket.shutdown(raw.socket, socket.SHUT_WR)  # of TLS sockets, too: it ends TCP's side only
        while raw.fill():
            pass
    assert raw.buffer.endswith(LAST_CHUNK)


@pytest.mark.parametrize("how", ["token", "key"])
def test_a_stream_ends_when_its_key_is_revoked(server: Server, collection: str, how: str) -> None:
    created = server.new_key()
    key = created["key"] if how == "key" else server.token(collection, key=created["key"])
    with stream(server, collection, key=key) as lines:
        server.cli("keys", "revoke", created["id"])
        began = time.monotonic()
        # It ends in order: the client need not reconnect.
        assert [line for line in lines if line.startswith("data: ")] == []
        assert time.monotonic() - began < 1 + 8  # with slack for a busy machine


@pytest.mark.parametrize("accept", ["application/json", "text/event-stream"])
def test_a_cursor_that_the_log_does_not_hold_is_a_410_with_the_oldest_kept(
    start_server: StartServer, accept: str
) -> None:
    server = start_server("--retention-count", "3")
    server.request("POST", "/c/bulk", json=[{}] * 10)
    headers = {"Accept": accept}
    wait_until(lambda: server.request("GET", "/c/changes?since=6").status_code == 410)
    for since in (0, 6, 11):
        response = server.request("GET", f"/c/changes?since={since}", headers=headers)
        assert refusal(response) == (410, "CURSOR_EXPIRED")
        assert response.json()["oldest"] == 8
    assert [change["seq"] for change in changes(server, "c", "since=7")["changes"]] == [8, 9, 10]


@pytest.mark.parametrize("query", ["since=-1", "since=x", "limit=0", "limit=1001", "wait=61", "wait=-1", "x=1"])
def test_a_parameter_that_is_wrong_is_a_400(server: Server, collection: str, query: str) -> None:
    response = server.request("GET", f"/{collection}/changes?{query}")
    assert refusal(response) == (400, "INVALID_REQUEST")
