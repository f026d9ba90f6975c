"""The door: any malformed input costs only its connection, and gets a response where possible. After each, the
server serves other clients; it logs none of this as a failure."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import time
from collections.abc import Iterator

import pytest
from websockets.sync.client import ClientConnection

from tests.conftest import Server, StartServer, need, receive, wait_until
from tests.realtime.raw import Raw, handshake, open_raw, request, running, say
from tests.server.test_workers import processes

GET = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("door") / "data", "--head-timeout", "0.5") as server:
        yield server


@pytest.fixture(scope="module")
def witness(door: Server) -> Iterator[ClientConnection]:
    """A connection that stays open."""
    with door.connect("witness") as ws:
        yield ws


@pytest.fixture(autouse=True)
def _still_responds(door: Server, witness: ClientConnection) -> Iterator[None]:
    yield
    document = door.insert("witness", {})
    assert receive(witness)["data"] == document


GARBAGE = {
    "zeros": b"\0" * 100,
    "TLS": bytes.fromhex("16030100c8010000c40303") + b"x" * 190,
    "SSH": b"SSH-2.0-OpenSSH_9.2p1\r\n",
    "Redis": b"*1\r\n$4\r\nPING\r\n",
    "lower case": b"get / http/1.1\r\nhost: x\r\n\r\n",
    "a frame": b"\x81\x85\0\0\0\0hello",
    "blank lines": b"\r\n\r\n",
    "no version": b"GET /\r\n\r\n",
    "HTTP/3.0": b"GET / HTTP/3.0\r\nHost: x\r\n\r\n",
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "two hosts": b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    "a bare LF": b"GET /healthz HTTP/1.1\nHost: x\n\n",
    "a folded header": b"GET /healthz HTTP/1.1\r\nHost: x\r\nA: b\r\n c\r\n\r\n",
    "a space before the colon": b"GET /healthz HTTP/1.1\r\nHost: x\r\nA : b\r\n\r\n",
    "a NUL in a header": b"GET /healthz HTTP/1.1\r\nHost: x\r\nA: \0\r\n\r\n",
    "a header without a colon": b"GET /healthz HTTP/1.1\r\nHost: x\r\nnonsense\r\n\r\n",
    "two lengths": b"POST /x/docs HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
    "a length and chunks": (
        b"POST /x/docs HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    ),
    "a negative length": b"POST /x/docs HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
    "a length of 30 digits": b"POST /x/docs HTTP/1.1\r\nHost: x\r\nContent-Length: " + b"9" * 30 + b"\r\n\r\n",
    "a target that is not ASCII": b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n",
}


@pytest.mark.parametrize("kind", GARBAGE)
def test_garbage_gets_a_4xx_or_5xx_or_a_close(door: Server, kind: str) -> None:
    with Raw(door) as raw:
        raw.send(GARBAGE[kind])
        raw.socket.shutdown(socket.SHUT_WR)
        response = raw.drain()
        assert response == b"" or response.startswith((b"HTTP/1.1 4", b"HTTP/1.1 5")), response
        assert b"Traceback" not in response


@pytest.mark.parametrize(
    "kind", ["zeros", "TLS", "SSH", "lower case", "no host", "two lengths", "a folded header", "blank lines"]
)
def test_bytes_that_cannot_become_a_request_are_a_400_at_once(door: Server, kind: str) -> None:
    """The server does not wait for more: half a second later it would have been a 408."""
    with Raw(door) as raw:
        raw.send(GARBAGE[kind])
        status, headers, body = raw.response()
        assert status == 400
        assert headers["connection"] == "close"
        assert body.keys() == {"error", "code"}
        assert raw.drain() == b""


def test_half_a_head_and_silence_is_a_408(door: Server) -> None:
    parts = (b"", b"G", b"GET / HT", b"\r\n", b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: webso")
    began = time.monotonic()
    raws = [Raw(door) for _ in parts]
    for raw, part in zip(raws, parts, strict=True):
        raw.send(part)
    for raw in raws:
        with raw:
            status, _, body = raw.response()
            assert (status, body["code"]) == (408, "HEAD_TIMEOUT")
            assert time.monotonic() - began > 0.4
            assert raw.drain() == b""


def test_head_that_trickles_in_forever_is_a_408(door: Server) -> None:
    """The deadline is for the whole head; a byte now and then does not extend it."""
    with Raw(door, timeout=0.1) as raw:
        deadline = time.monotonic() + 15
        raw.send(b"GET / HTTP/1.1\r\n")
        while time.monotonic() < deadline:
            try:
                raw.send(b"a")
                if raw.fill():
                    break
            except TimeoutError:
                continue
        assert raw.buffer.startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize("size", [20_000, 1 << 20])
def test_head_that_is_too_large_is_a_431(door: Server, size: int) -> None:
    with Raw(door) as raw:
        raw.send(b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"x" * size + b"\r\n\r\n")
        status, _, body = raw.response()
        assert (status, body["code"]) == (431, "HEAD_TOO_LARGE")


def test_head_of_many_small_headers_is_bounded(door: Server) -> None:
    with Raw(door) as raw:
        raw.send(b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 50_000 + b"\r\n")
        assert raw.response()[0] == 431


def test_pipelined_requests_get_responses_in_order(door: Server) -> None:
    with Raw(door) as raw:
        raw.send(GET + GET.replace(b"healthz", b"nothing") + GET)
        assert [raw.response()[0] for _ in range(3)] == [200, 401, 200]


def test_requests_after_connection_close_get_no_response(door: Server) -> None:
    """RFC 9112, section 9.6: the connection closes at once, and later bytes are not a request."""
    with Raw(door) as raw:
        raw.send(GET.replace(b"Host", b"Connection: close\r\nHost") + GET)
        status, headers, _ = raw.response()
        assert (status, headers["connection"]) == (200, "close")
        assert raw.drain() == b""


def test_handshake_after_a_pipelined_request_is_served(door: Server, collection: str) -> None:
    with Raw(door) as raw:
        raw.send(GET + handshake(door, f"/?token={door.token(collection)}&since=now"))
        assert raw.response()[0] == 200
        assert raw.head()[0] == 101
        assert raw.message()["type"] == "ready"
        raw.send(say(action="ping"))
        assert raw.message()["type"] == "pong"


@pytest.mark.parametrize(
    ("headers", "trailing"),
    [
        ((), b"hello"),
        ((), GET),
        (("Content-Length: 5",), b"hello"),
        (("Content-Length: 5",), b""),
        (("Transfer-Encoding: chunked",), b"5\r\nhello\r\n0\r\n\r\n"),
        (("Expect: 100-continue",), b""),
    ],
)
@pytest.mark.parametrize("good", [True, False], ids=["good token", "bad token"])
def test_upgrade_with_a_body_or_trailing_bytes_closes_one_connection(
    door: Server, headers: tuple[str, ...], trailing: bytes, good: bool
) -> None:
    """One such request ends a whole Hypercorn (hypercorn #225). Here it gets some response and then a close."""
    token = door.token("x") if good else "bad"
    with Raw(door) as raw:
        raw.send(handshake(door, f"/?token={token}", *headers) + trailing)
        raw.socket.shutdown(socket.SHUT_WR)
        response = raw.drain()
        assert response.startswith((b"HTTP/1.1 101", b"HTTP/1.1 4")), response
        if not good:
            assert response.startswith((b"HTTP/1.1 400", b"HTTP/1.1 401"))


@pytest.mark.parametrize(
    ("header", "value"),
    [("Upgrade", "TLS/1.0"), ("Upgrade", ""), ("Connection", "keep-alive"), ("Connection", "")],
)
def test_other_upgrade_is_ignored_and_does_not_hang(door: Server, header: str, value: str) -> None:
    lines = {"Upgrade": "websocket", "Connection": "Upgrade"}
    request = handshake(door, f"/realtime?token={door.token('x')}").replace(
        f"{header}: {lines[header]}".encode(), f"{header}: {value}".encode()
    )
    with Raw(door) as raw:
        raw.send(request)
        assert 400 <= raw.head()[0] < 500


@pytest.mark.parametrize("method", ["POST", "PUT", "HEAD", "DELETE", "CONNECT", "BREW"])
def test_handshake_with_another_method_is_refused(door: Server, method: str) -> None:
    with Raw(door) as raw:
        request = handshake(door, f"/realtime?token={door.token('x')}")
        raw.send(request.replace(b"GET", method.encode(), 1))
        raw.socket.shutdown(socket.SHUT_WR)
        response = raw.drain()
        assert response == b"" or response.startswith(b"HTTP/1.1 4"), response


def test_http_2_preface_gets_http_2(door: Server) -> None:
    output = subprocess.run(
        [
            need("curl"),
            "-s",
            "--http2-prior-knowledge",
            "-w",
            "%{http_version} %{http_code}",
            f"{door.url}/healthz",
        ],
        capture_output=True,
        text=True,
        timeout=10,
        check=False,
    ).stdout
    assert output.endswith("2 200")


@pytest.mark.parametrize("rest", [b"", b"\0\0\0\4\0\0\0\0\0", b"garbage" * 100])
def test_bare_http_2_preface_closes_one_connection(door: Server, rest: bytes) -> None:
    with Raw(door) as raw:
        raw.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + rest)
        raw.socket.shutdown(socket.SHUT_WR)
        raw.drain()


def test_random_bytes_close_only_their_own_connections(door: Server) -> None:
    seed = int.from_bytes(os.urandom(4), "big")
    chance = random.Random(seed)
    request = handshake(door, f"/?token={door.token('x')}")
    for _ in range(150):
        # A real handshake with some bytes changed, cut or doubled. The Host stays as it is, because
        # test_strange_host_gets_a_response_and_no_traceback covers a Host that is not ASCII.
        first, host, rest = request.partition(f"Host: 127.0.0.1:{door.port}\r\n".encode())
        data = bytearray(first + rest)
        for _ in range(chance.randrange(1, 5)):
            at = chance.randrange(len(data))
            size = chance.randrange(1, 10)
            data[at : at + size] = chance.choice((chance.randbytes(size), b"", bytes(data[at : at + size]) * 2))
        with Raw(door) as raw:
            raw.send(bytes(data[: len(first)]) + host + bytes(data[len(first) :]))
            raw.socket.shutdown(socket.SHUT_WR)
            response = raw.drain()
            assert response == b"" or response.startswith((b"HTTP/1.1 ", b"HTTP/1.0 ")), (
                f"seed {seed}: {response!r}"
            )
            assert not response.startswith(b"HTTP/1.1 500"), f"seed {seed}: {bytes(data)!r}"


def test_silent_connections_do_not_keep_others_out(door: Server, collection: str) -> None:
    silent = [Raw(door) for _ in range(200)]
    try:
        with open_raw(door, collection) as raw:
            document = door.insert(collection, {})
            assert raw.message()["data"] == document
        assert silent[0].response()[0] == 408
    finally:
        for each in silent:
            each.drop()


def test_server_survives_running_out_of_file_descriptors(start_server: StartServer, collection: str) -> None:
    """While none is left, connections wait; once some are free again, they are served."""
    server = start_server()
    prlimit = need("prlimit")
    serving = [pid for name, pid in processes(server).items() if name != "writer"] or [server.pid]
    for pid in serving:
        in_use = len(os.listdir(f"/proc/{pid}/fd"))
        subprocess.run([prlimit, "--pid", str(pid), f"--nofile={in_use + 20}:"], check=True, timeout=10)
    silent = [Raw(server) for _ in range(len(serving) * 20 + 1)]
    wait_until(lambda: "cannot accept connections" in server.stderr)
    for each in silent:
        each.drop()
    with server.connect(collection) as ws:
        document = server.insert(collection, {})
        assert receive(ws)["data"] == document
    assert server.stop() == 0
    assert "Traceback" not in server.stderr


def test_100_continue_is_sent_once_the_body_is_needed(door: Server, collection: str) -> None:
    expect = ("Expect: 100-Continue", "Content-Length: 8")
    with Raw(door) as raw:
        for path, told in ((f"/{collection}/docs", True), (f"/{collection}/docs", False)):
            raw.send(request(door, "POST", path, b"" if told else b'{"n": 1}', *expect))
            if told:
                assert raw.head()[0] == 100
                raw.send(b'{"n": 1}')
            assert raw.response()[0] == 201
        raw.send(request(door, "POST", "/healthz", b"", *expect))  # refused without the body
        status, headers, _ = raw.response()
        assert (status, headers["connection"]) == (405, "close")
        assert raw.drain() == b""


@pytest.mark.parametrize("end", ["reset", "drain"])
def test_connection_that_ends_within_a_body_is_no_failure(start_server: StartServer, end: str) -> None:
    server = start_server("--drain-timeout", "0.5")
    with Raw(server) as raw:
        raw.send(request(server, "POST", "/c/docs", b"", "Expect: 100-Continue", "Content-Length: 8"))
        assert raw.head()[0] == 100
        raw.send(b'{"n"')
        if end == "reset":
            raw.drop()
        assert server.stop() == 0
    assert "failed" not in server.stderr


def test_unusual_headers_make_an_ordinary_request(door: Server, collection: str) -> None:
    """The server upgrades to no other protocol, above all not to HTTP/2 in clear text, which would open a
    tunnel through a proxy. Trailers are skipped."""
    h2c = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__")
    chunks = b'8\r\n{"n": 1}\r\n0\r\nX-Sum: 1\r\n\r\n'
    with Raw(door) as raw:
        raw.send(request(door, "POST", f"/{collection}/docs", b'{"n": 1}', "Content-Length: 8", *h2c))
        raw.send(
            request(door, "POST", f"/{collection}/docs", chunks, "Transfer-Encoding: chunked", "Trailer: X-Sum")
        )
        raw.send(request(door, "POST", "/a/b/c/d/e", b"", "Content-Length: 0"))
        raw.send(request(door, "POST", f"http://elsewhere/{collection}/docs", b'{"n": 1}', "Content-Length: 8"))
        assert [raw.response()[0] for _ in range(4)] == [201, 201, 404, 201]


def test_http_2_does_not_start_after_other_requests(door: Server) -> None:
    with Raw(door) as raw:
        raw.send(GET + b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        assert [raw.response()[0] for _ in range(2)] == [200, 400]
        assert raw.drain() == b""
