"""HTTP/2 over TLS: nghttp2's tools use it as they like, and each rule of RFC 9113 that a client breaks has its
consequence. `just h2spec` asks for more; it cannot be installed from a registry, so it is not run here."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from h2.errors import ErrorCodes

from tests.conformance.http2_rules import GOAWAY, PING, RST_STREAM, RULES, SETTINGS, frame
from tests.conftest import Server, need, shared_server
from tests.tls import trusting

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
LAST = frame(PING, payload=b"the last")


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    yield from shared_server(tmp_path_factory, "--tls-self-signed")


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(["--padding=255"], id="padding"),
        pytest.param(["--continuation"], id="CONTINUATION"),
        pytest.param(["--trailer=x-checksum: 1"], id="trailers"),
        pytest.param(["--expect-continue"], id="Expect"),
        pytest.param(["--no-content-length"], id="no length"),
        pytest.param(["--window-bits=8", "--connection-window-bits=16"], id="small windows"),
        pytest.param(["--header-table-size=0", "--encoder-header-table-size=0"], id="no header table"),
    ],
)
def test_nghttp_inserts_a_document(secure: Server, collection: str, tmp_path: Path, options: list[str]) -> None:
    body = tmp_path / "body"
    body.write_text(json.dumps({"text": "x" * 70_000}))
    headers = [f"-Hauthorization: Bearer {secure.key}", "-Hcontent-type: application/json"]
    target = f"{secure.url}/{collection}/docs"
    said = run(need("nghttp"), "--no-verify-peer", "--timeout=20", f"--data={body}", *headers, *options, target)
    document = json.loads(said)
    assert secure.request("GET", f"/{collection}/docs/{document['_id']}").json() == document


def test_h2load_gets_500_responses_at_a_time(secure: Server, collection: str) -> None:
    document = secure.insert(collection, {"text": "x" * 20_000})
    target = f"{secure.url}/{collection}/docs/{document['_id']}"
    load = ("--requests=500", "--clients=10", "--max-concurrent-streams=50")
    said = run(need("h2load"), *load, f"--header=authorization: Bearer {secure.key}", target)
    assert "500 succeeded, 0 failed, 0 errored, 0 timeout" in said
    assert "status codes: 500 2xx" in said


@pytest.mark.parametrize("consequence", RULES)
def test_a_broken_rule_has_its_consequence(secure: Server, consequence: str) -> None:
    found = {rule: consequence_of(secure, frames) for rule, frames in RULES[consequence].items()}
    assert found == dict.fromkeys(found, consequence)


def consequence_of(server: Server, frames: bytes) -> str:
    """The first error that the server sends, or that there was none."""
    context = trusting(server.certificate)
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection(("127.0.0.1", server.port), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as encrypted,
        encrypted.makefile("rb") as received,
    ):
        encrypted.sendall(PREFACE + frame(SETTINGS) + frames + LAST)
        while header := received.read(9):
            payload = received.read(int.from_bytes(header[:3], "big"))
            kind = header[3]
            if kind == GOAWAY:
                assert received.read() == b"", "something came after GOAWAY"
                return f"GOAWAY {ErrorCodes(int.from_bytes(payload[4:8], 'big')).name}"
            if kind == RST_STREAM:
                return f"RST_STREAM {ErrorCodes(int.from_bytes(payload, 'big')).name}"
            if kind == PING and payload == LAST[9:]:
                return "no error"
    return "the connection ended"
