"""The log: what an operator finds in it, that a line is one line, and never a key, a token or a document.

Rules: a test waits for its line; it does not count on the order of lines of different threads.
"""

from __future__ import annotations

import json
import logging
import re
import socket
import subprocess
import sys
from typing import Any

import httpx
import pytest

from paperdb_trio.logs import JsonFormatter, SparingLog, TextFormatter
from tests.conftest import NO_TLS, Server, StartServer, need, wait_until
from tests.docs import blocks, text
from tests.logs import HANDSHAKE, line_of, lines, raw
from tests.realtime.raw import Raw, request
from tests.rest.tools import refusal

# --- the form of a line --------------------------------------------------------------------------


def record(message: str, *, failed: bool = False, **fields: Any) -> logging.LogRecord:
    error = None
    if failed:
        try:
            raise ValueError("of\nthe test")
        except ValueError:
            error = sys.exc_info()
    made = logging.LogRecord("paperdb.test", logging.WARNING, "", 0, message, (), error)
    made.created, made.fields = 1_769_860_800.0625, fields
    return made


def test_text_line_has_utc_time_level_logger_message_and_fields() -> None:
    line = TextFormatter().format(record("hello", n=1, name="a b", empty="", ok=None))
    assert line == '2026-01-31T12:00:00.062Z WARNING paperdb.test: hello n=1 name="a b" empty="" ok=null'


@pytest.mark.parametrize(
    "hostile", ["a\nb", "a\r\nb", "a\x1b[31mb", "a\x7fb", "a\x85b", "a\u2028b", "a\ud800b"]
)
def test_what_a_client_chooses_starts_no_line_and_sends_no_escape(hostile: str) -> None:
    for line in (
        TextFormatter().format(record(hostile, field=hostile)),
        JsonFormatter().format(record(hostile, field=hostile)),
    ):
        assert len(line.splitlines()) == 1
        assert "\x1b" not in line
        line.encode()
    assert json.loads(JsonFormatter().format(record(hostile, field=hostile)))["field"] == hostile


def test_traceback_follows_its_line_and_is_a_member_in_json() -> None:
    plain = TextFormatter().format(record("failed", failed=True))
    assert plain.splitlines()[1].startswith("Traceback")
    line = json.loads(JsonFormatter().format(record("failed", failed=True, n=1)))
    assert line.pop("traceback").startswith("Traceback")
    assert line == {
        "time": "2026-01-31T12:00:00.062Z",
        "level": "warning",
        "logger": "paperdb.test",
        "message": "failed",
        "n": 1,
    }


def test_fault_that_lasts_is_one_line_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    now = 100.0
    sparing = SparingLog(logging.getLogger("paperdb.test"), lambda: now)
    for _ in range(5):
        sparing.error("no room for %s", "a")
    sparing.warning("another fault")
    now += 59.9
    sparing.error("no room for %s", "b")
    now += 0.2
    sparing.error("no room for %s", "c")
    now += 60.1
    sparing.error("no room for %s", "d")
    assert [record.getMessage() for record in caplog.records] == [
        "no room for a",
        "another fault",
        "no room for c; and 5 more times since the last such line",
        "no room for d",
    ]


def test_burst_is_logged_whole_and_what_exceeds_it_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    now = 100.0
    sparing = SparingLog(logging.getLogger("paperdb.test"), lambda: now, burst=3)
    for n in range(5):
        sparing.error("%d", n)
    now += 60.1
    for n in range(5, 10):
        sparing.error("%d", n)
    more = "; and 2 more times since the last such line"
    assert [record.getMessage() for record in caplog.records] == ["0", "1", "2", f"5{more}", "6", "7"]


# --- secrets -------------------------------------------------------------------------------------


def test_keys_tokens_and_documents_are_not_logged(start_server: StartServer) -> None:
    """At its most verbose, however they were sent."""
    options = (
        "--log-level",
        "debug",
        "--access-log",
        "on",
        "--slow-query-ms",
        "1",
        "--metrics-key",
        "hush-key",
    )
    server = start_server(*options)
    token = server.token("x")
    server.insert("x", {"secret": "hush-document"})
    for protocol in ("--http1.1", "--http2-prior-knowledge"):
        for secret in (server.key, token):
            for where in (
                ["-H", f"Authorization: Bearer {secret}", f"{server.url}/x/changes"],
                ["-H", f"X-API-Key: {secret}", f"{server.url}/x/docs"],
                [f"{server.url}/x/changes?token={secret}"],
                [f"{server.url}/a/b/c/d?token={secret}"],
            ):
                command = [need("curl"), "-s", "-o", "/dev/null", "--max-time", "20", protocol, *where]
                assert subprocess.run(command, check=False).returncode == 0
    with server.connect("x") as ws:
        ws.send(f'{{"action": "auth", "token": "{token}"}}')
        ws.recv()
    assert server.stop() == 0
    assert "stopped" in server.stderr
    for secret in (server.key, token.rpartition(".")[2], "hush"):
        assert secret not in server.stderr


# --- refusals ------------------------------------------------------------------------------------


def test_refusals_are_logged_with_their_reason_and_sparingly(start_server: StartServer) -> None:
    server = start_server("--log-format", "json", "--requests-per-second", "40")
    pk = server.new_key(public=True)
    response = server.request("POST", "/x/docs", json={}, key=pk["key"])
    assert refusal(response) == (403, "READ_ONLY_KEY")
    line = line_of(server, "paperdb.refused", message="refused with 403 READ_ONLY_KEY")
    assert {
        "key": pk["id"],
        "route": "/:collection/docs",
        "method": "POST",
        "level": "info",
    }.items() <= line.items()
    assert line["request"] == response.headers["x-request-id"]
    with Raw(server) as client:  # at once: on a busy machine, one after another may not exceed the rate
        client.send(200 * request(server, "GET", "/collections"))
        while client.response()[0] != 429:
            pass
    with httpx.Client(verify=NO_TLS, timeout=20) as client:
        for _ in range(25):
            assert client.get(f"{server.url}/x/docs").status_code == 401
    raw(server, HANDSHAKE.format(query="token=no"))
    line_of(server, "paperdb.refused", request="mine", message="refused with 401 INVALID_TOKEN", route="/")
    assert server.stop() == 0
    refused = [(line["message"], line.get("database")) for line in lines(server, "paperdb.refused")]
    assert refused.count(("refused with 401 UNAUTHORIZED", None)) == 10
    assert refused.count(("refused with 429 RATE_LIMITED", "default")) in range(1, 11)
    assert not lines(server, "paperdb.access")


def test_refusal_for_lack_of_room_is_a_warning_from_each_door(start_server: StartServer) -> None:
    server = start_server("--log-format", "json", "--max-connections", "1")
    held = socket.create_connection(("127.0.0.1", server.port))
    with held:
        held.sendall(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
        assert held.recv(65536).startswith(b"HTTP/1.1 200 ")
        assert raw(server, "GET /x HTTP/1.1\r\nHost: a\r\nX-Request-Id: full\r\n\r\n").startswith(
            "HTTP/1.1 503 "
        )
        line = line_of(server, "paperdb.refused", request="full", path="/x")
    assert (line["level"], line["message"]) == ("warning", "refused with 503 TOO_MANY_CONNECTIONS")


# --- accounts, start, retention, debug -----------------------------------------------------------


def test_changes_of_databases_keys_and_tokens_are_logged(start_server: StartServer) -> None:
    server = start_server("--log-format", "json")

    def told(message: str, **fields: Any) -> None:
        line_of(server, "paperdb.accounts", level="info", message=message, **fields)

    server.cli("databases", "create", "shop", "--plan", "pro")
    told("a database was created", database="shop", plan="pro")
    server.cli("databases", "set-plan", "shop", "free")
    told("a database has another plan", database="shop", plan="free", before="pro")
    key = json.loads(server.cli("keys", "create", "--database", "shop", "--public", "--json"))
    told("a key was created", database="shop", key=key["id"], kind="public")
    server.cli("keys", "revoke", key["id"])
    told("a key was revoked", database="shop", key=key["id"], kind="public")
    server.cli("keys", "rotate-signing")
    told("new tokens are signed with another secret")
    assert server.request("POST", "/realtime/revoke", json={"subject": "ada"}).status_code == 200
    told("the tokens of a subject were revoked", database="default", subject="ada")
    assert server.request("POST", "/realtime/revoke", json={"jti": "a" * 21}).status_code == 200
    told("a token was revoked", database="default", jti="a" * 21)


def test_of_several_processes_one_tells_of_a_change(start_server: StartServer) -> None:
    server = start_server("--log-format", "json", "--workers", "2")
    server.cli("databases", "create", "shop", "--plan", "pro")
    line_of(server, "paperdb.accounts", database="shop")
    assert server.request("POST", "/realtime/revoke", json={"jti": "a" * 21}).status_code == 200
    line_of(server, "paperdb.accounts", jti="a" * 21)
    assert server.stop() == 0
    told = [tuple(line[name] for name in line if name != "time") for line in lines(server, "paperdb.accounts")]
    assert len(told) == len(set(told))


def test_start_says_which_settings_are_not_the_defaults_and_no_secret(
    start_server: StartServer,
) -> None:
    server = start_server("--metrics-key", "hush", env={"PAPERDB_MAX_WAIT": "30"})
    wait_until(lambda: "started paperdb" in server.stderr)
    (line,) = [line for line in server.stderr.splitlines() if "started paperdb" in line]
    for part in (
        server.url,
        "port=0 (--port)",
        "max_wait=30.0 (PAPERDB_MAX_WAIT)",
        "metrics_key=hidden (--metrics-key)",
    ):
        assert part in line
    assert "hush" not in line
    assert "max_body_bytes" not in line


def test_trims_are_logged(start_server: StartServer) -> None:
    server = start_server("--log-format", "json", "--retention-count", "5")
    server.request("POST", "/x/bulk", json=[{}] * 100)
    line = line_of(server, "paperdb.store", message="trimmed the change log")
    assert line["changes"] > 0


def test_debug_lines_tell_of_connections_and_subscriptions(start_server: StartServer) -> None:
    server = start_server("--log-level", "debug")
    with server.connect("x", query="since=now") as ws:
        ws.send('{"action": "subscribe", "collection": "x", "filter": {"a": 1}}')
        wait_until(lambda: "subscription of 127.0.0.1 to x" in server.stderr)
    for part in (
        "connection from 127.0.0.1",
        "live connection of 127.0.0.1",
        "closing a live connection of 127.0.0.1: 1000",
    ):
        wait_until(lambda part=part: part in server.stderr)  # type: ignore[misc]


# --- the documentation ---------------------------------------------------------------------------

_VARYING = re.compile(r"""(?<=[ "])(ms|bytes|request|key|documents)(=|":)("[^"]*"|[\w.-]+)""")


def general(line: str) -> str:
    """A line without what differs from run to run."""
    line = re.sub(r"20\d\d-\d\d-\d\dT[\d:.]+Z", "TIME", line)
    line = re.sub(r"started paperdb \S+ on \S+; changed settings: (?=\w+=).*", "started", line)
    return _VARYING.sub(r"\1\2_", line)


def sample_lines() -> list[str]:
    section = text("docs/operations.md").partition("\n## Logs\n")[2].partition("\n## ")[0]
    found = [
        line
        for block in blocks("docs/operations.md", "text", "json")
        if block.source in section
        for line in block.source.splitlines()
    ]
    return [general(line) for line in found]


def do_what_the_samples_tell(server: Server) -> None:
    server.request("GET", "/messages/docs")
    httpx.get(f"{server.url}/messages/docs", verify=NO_TLS)
    server.cli("databases", "set-plan", "default", "pro")


def find_among_more(server: Server) -> None:
    """How many documents take a millisecond depends on the machine."""
    orders = [{"state": "paid", "at": n, "text": "x" * 500} for n in range(1000)]
    assert server.request("POST", "/orders/bulk", json=orders).status_code == 200
    server.request("GET", "/orders/docs", params={"filter": '{"state": "open"}', "sort": "-at"})


@pytest.mark.parametrize("format", ["text", "json"])
def test_samples_in_the_documentation_are_lines_of_a_server(start_server: StartServer, format: str) -> None:
    server = start_server(
        *("--access-log", "on", "--slow-query-ms", "1", "--index-after", "0"),
        env={"PAPERDB_LOG_FORMAT": format},
    )
    do_what_the_samples_tell(server)
    samples = [line for line in sample_lines() if line.startswith("{") == (format == "json")]
    assert len(samples) >= (5 if format == "text" else 1)

    def all_are_there() -> bool:
        find_among_more(server)
        return {*samples} <= {*map(general, server.stderr.splitlines())}

    wait_until(all_are_there)
