"""TLS with independent clients: everything works over it, a bad handshake costs only its connection, and a
certificate can change under live connections."""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import trio
from websockets.sync.client import connect

from paperdb_trio.loop.turn import OnePerTurn
from paperdb_trio.net.tls import TlsStream, self_signed
from tests.auth.commands import fails_here, run_here
from tests.conftest import Server, StartServer, need, receive, wait_until
from tests.realtime.raw import Raw, handshake, open_raw, running, say
from tests.tls import trusting


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("tls") / "data", "--tls-self-signed", "--head-timeout", "2") as server:
        yield server


def make_certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """A self-signed certificate for 127.0.0.1 with this common name, and its key."""
    certificate, key = folder / f"{name}.crt", folder / f"{name}.key"
    options = "-x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"
    command = [need("openssl"), "req", *options.split(), "-subj", f"/CN={name}"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    return certificate, key


def curl(server: Server, path: str, *options: str) -> str:
    command = [need("curl"), "-sS", "--max-time", "10", "--cacert", str(server.certificate), *options]
    command += ["-H", f"Authorization: Bearer {server.key}", server.url + path]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.mark.smoke
@pytest.mark.executable
@pytest.mark.parametrize("version", ["1.1", "2"])
def test_rest_over_http_1_and_2_by_alpn(own: Server, collection: str, version: str) -> None:
    insert = ["--json", '{"n": 1}', "-w", "\n%{http_version} %{response_code}", f"--http{version}"]
    body, _, told = curl(own, f"/{collection}/docs", *insert).rpartition("\n")
    assert told == f"{version} 201"
    document = json.loads(body)
    assert json.loads(curl(own, f"/{collection}/docs/{document['_id']}", f"--http{version}")) == document


@pytest.mark.smoke
@pytest.mark.executable
def test_events_actions_and_a_large_document_over_wss(own: Server, collection: str) -> None:
    with own.connect(collection, query="since=now") as ws:
        assert receive(ws)["type"] == "ready"
        document = own.insert(collection, {"text": "x" * 700_000})
        assert receive(ws)["data"] == document
        ws.send('{"action": "ping", "ref": 1}')
        assert receive(ws)["type"] == "pong"
        ws.send('{"action": "ping", "ref": "' + "y" * 20_000 + '"}')  # larger than one TLS record
        assert receive(ws)["type"] == "error"


def test_node_trusts_the_certificate_and_listens(own: Server, collection: str) -> None:
    program = """
    const { request } = require("https");
    const [host, key, collection] = process.argv.slice(1);
    const headers = { "Content-Type": "application/json", Authorization: `Bearer ${key}` };
    const url = `${host}/${collection}/changes?since=now`;
    request(url, { headers: { ...headers, Accept: "text/event-stream" } }, (response) => {
      response.on("data", (data) => {
        if (String(data).includes("data:")) { console.log(String(data)); process.exit(); }
      });
      request(`${host}/${collection}/docs`, { method: "POST", headers }).end('{"from": "node"}');
    }).end();
    """
    environment = {**os.environ, "NODE_EXTRA_CA_CERTS": str(own.certificate)}
    command = [need("node"), "-e", program, own.url, own.key, collection]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, env=environment, check=True)
    assert '"from":"node"' in done.stdout


def test_old_versions_and_plain_http_are_refused_with_a_reason(own: Server) -> None:
    context = ssl.create_default_context(cafile=str(own.certificate))
    context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_2
    with (
        socket.create_connection(("127.0.0.1", own.port)) as sock,
        context.wrap_socket(sock, server_hostname="127.0.0.1") as tls,
    ):
        assert tls.version() == "TLSv1.2"
    old = subprocess.run(
        [
            need("openssl"),
            "s_client",
            "-connect",
            f"127.0.0.1:{own.port}",
            "-tls1_1",
            "-cipher",
            "ALL:@SECLEVEL=0",
        ],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=10,
        check=False,
    )
    assert "alert" in old.stderr
    plain = subprocess.run(
        [need("curl"), "-sS", f"http://127.0.0.1:{own.port}/healthz"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(plain.stdout)["code"] == "TLS_REQUIRED"


CLIENT_HELLO = bytes.fromhex("160301020001000001fc0303") + b"r" * 500


@pytest.mark.parametrize(
    "data",
    [b"", b"\x16", CLIENT_HELLO[:40], CLIENT_HELLO + b"\0" * 40, b"\x16" + os.urandom(64), b"\0" * 64],
    ids=["silence", "one byte", "half a hello", "a bad hello", "noise", "zeros"],
)
def test_bad_handshake_closes_only_its_connection_in_time(own: Server, data: bytes) -> None:
    with own.connect("a") as witness, socket.create_connection(("127.0.0.1", own.port), timeout=5) as sock:
        sock.sendall(data)
        try:
            while sock.recv(4096):
                pass
        except ConnectionResetError:
            pass
        assert receive_after_insert(own, witness)
    assert "Traceback" not in own.stderr


def receive_after_insert(server: Server, ws: object) -> bool:
    document = server.insert("a", {})
    return bool(receive(ws)["data"] == document)  # type: ignore[arg-type]


def test_garbage_mid_connection_closes_only_that_connection(own: Server, collection: str) -> None:
    with own.connect("a") as witness, open_raw(own, collection) as raw:
        wrapped = raw.socket
        assert isinstance(wrapped, ssl.SSLSocket)
        os.write(wrapped.fileno(), b"\x17\x03\x03\x00\x20" + os.urandom(32))  # a record that was tampered with
        with pytest.raises(ssl.SSLError, match="bad record mac"):
            raw.frame()
        assert receive_after_insert(own, witness)


def test_close_notify_follows_a_response_and_a_websocket(own: Server, collection: str) -> None:
    """Without close_notify, a client cannot tell an end from a cut connection."""
    with Raw(own) as raw:
        raw.send(b"GET /healthz HTTP/1.0\r\n\r\n")
        assert raw.response()[0] == 200
        assert raw.socket.recv(1) == b""  # an SSLEOFError if it was cut
    with Raw(own) as raw:
        raw.send(handshake(own, f"/?token={own.token(collection)}"))
        assert raw.head()[0] == 101
        raw.send(say(action="ping"))
        assert raw.message()["type"] == "pong"
        raw.send(b"\x88\x80\0\0\0\0")
        assert raw.frame()[0] == 8
        assert raw.socket.recv(1) == b""


def common_name(port: int) -> str:
    pem = ssl.get_server_certificate(("127.0.0.1", port))
    shown = subprocess.run(
        [need("openssl"), "x509", "-noout", "-subject"], input=pem, capture_output=True, text=True, check=True
    )
    return shown.stdout.rpartition("=")[2].strip()


def test_sighup_reloads_the_certificate_and_drops_no_connection(
    start_server: StartServer, tmp_path: Path
) -> None:
    certificate, key = make_certificate(tmp_path, "first")
    server = start_server("--tls-cert", str(certificate), "--tls-key", str(key))
    context = trusting(certificate)
    token = server.request("POST", "/realtime/token", json={"collections": ["a"]}, verify=context).json()[
        "token"
    ]
    with connect(f"{server.ws_url}/?token={token}", ssl=context, proxy=None) as ws:
        assert common_name(server.port) == "first"
        for source, target in zip(make_certificate(tmp_path, "second"), (certificate, key), strict=True):
            source.replace(target)
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: server.stderr.count("reloaded the certificate") == int(server.workers))
        assert common_name(server.port) == "second"
        key.write_text("nonsense")
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: "kept the old certificate" in server.stderr)
        assert common_name(server.port) == "second"
        new = ssl.create_default_context(cafile=str(certificate))
        server.request("POST", "/a/docs", json={"n": 1}, verify=new)
        assert receive(ws)["data"]["n"] == 1
    assert server.stop() == 0


def test_many_handshakes_at_once_succeed_without_long_delays(start_server: StartServer) -> None:
    server = start_server("--tls-self-signed", "--head-timeout", "60")
    context = server.context
    assert context is not None
    socks = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(100)]
    for sock in socks:
        sock.setblocking(False)
    wrapped = [
        context.wrap_socket(sock, server_hostname="127.0.0.1", do_handshake_on_connect=False) for sock in socks
    ]
    left = list(wrapped)
    end = time.monotonic() + 20
    while left and time.monotonic() < end:
        for sock in tuple(left):
            try:
                sock.do_handshake()
                left.remove(sock)
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                pass
    for sock in wrapped:
        sock.close()
    assert not left


def test_invalid_certificate_files_are_refused_at_start(tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path, "one")
    _, other = make_certificate(tmp_path, "two")
    nothing = tmp_path / "nothing.pem"
    empty = tmp_path / "empty.pem"
    empty.write_text("")
    serve = ("serve", "--data", str(tmp_path / "data"), "--port", "0")
    for options, code, words in (
        (("--tls-cert", certificate), 2, "both --tls-cert and --tls-key"),
        (("--tls-cert", certificate, "--tls-key", key, "--tls-self-signed"), 2, "not both"),
        (("--tls-cert", nothing, "--tls-key", key), 8, f"Cannot read {nothing}: No such file"),
        (("--tls-cert", certificate, "--tls-key", empty), 8, "Cannot use the TLS certificate"),
        (("--tls-cert", certificate, "--tls-key", other), 8, "key values mismatch"),
    ):
        fails_here(run_here(*serve, *options), code, words)


@pytest.mark.parametrize("name", ["tls-self-signed.crt", "tls-self-signed.key"])
@pytest.mark.parametrize("left", ["", "another", "cut"])
def test_half_written_certificate_of_a_killed_process_is_replaced(
    start_server: StartServer, tmp_path: Path, name: str, left: str
) -> None:
    data, others = tmp_path / "data", tmp_path / "others"
    for directory in (data, others):
        directory.mkdir()
        self_signed(directory, "127.0.0.1")
    whole = (data / name).read_text()
    (data / name).write_text({"": "", "another": (others / name).read_text(), "cut": whole[:60]}[left])
    server = start_server("--tls-self-signed", data=data)
    assert server.request("GET", "/healthz").status_code == 200


Contexts = tuple[ssl.SSLContext, ssl.SSLContext]


def both_contexts(directory: Path) -> Contexts:
    """A server's, and that of a client which checks nothing."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(*make_certificate(directory, "one"))
    client = ssl.create_default_context()
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    return server, client


async def connection(
    stack: ExitStack, contexts: Contexts, records: ssl.MemoryBIO
) -> tuple[TlsStream, ssl.SSLSocket]:
    """Both ends of a connection, behind the handshake."""
    server, client = contexts
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    stack.enter_context(ours)
    stream = TlsStream(ours, "peer", server, records, OnePerTurn())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.handshake, OnePerTurn())
        socket_ = await trio.to_thread.run_sync(client.wrap_socket, theirs)
    return stream, stack.enter_context(socket_)


async def test_peer_that_does_not_read_tls_records_is_dropped(tmp_path: Path) -> None:
    """It keeps asking for new keys. No available TLS library asks without reading, so the test puts OpenSSL's
    records into the buffer itself."""
    contexts = both_contexts(tmp_path)
    with ExitStack() as stack:
        stream, client = await connection(stack, contexts, ssl.MemoryBIO())
        with client:
            while stream.push(b"x" * 10_000) >= 0:
                pass
            client.send(b"hello")
            stream._pending += b"x" * 20_000
            assert await stream.receive_some() == b"hello"
            client.send(b"hello")
            stream._pending += b"x" * 60_000
            with pytest.raises(trio.BrokenResourceError, match="does not read"):
                await stream.receive_some()


async def test_what_tls_tells_one_peer_never_reaches_another(tmp_path: Path) -> None:
    """All connections share the buffer into which OpenSSL writes: here, an alert for a malformed record."""
    contexts = both_contexts(tmp_path)
    records = ssl.MemoryBIO()
    with ExitStack() as stack, trio.fail_after(10):
        bad, bad_client = await connection(stack, contexts, records)
        good, good_client = await connection(stack, contexts, records)
        os.write(bad_client.fileno(), b"\x17\x03\x03\x00\x20" + b"x" * 32)
        with pytest.raises(trio.BrokenResourceError):
            await bad.receive_some()
        await good.send_all(b"hello")
        assert await trio.to_thread.run_sync(good_client.recv, 5) == b"hello"


async def test_what_is_kept_is_encrypted_and_goes_behind_what_waits(tmp_path: Path) -> None:
    """A subscriber that begins while TLS's own records wait has its first message kept."""
    contexts = both_contexts(tmp_path)
    with ExitStack() as stack:
        stream, client = await connection(stack, contexts, ssl.MemoryBIO())
        with client, trio.fail_after(10):
            size = 0
            while stream.push(b"x" * 10_000) >= 0:
                size += 10_000
            stream.keep(memoryview(b"kept"))

            def read() -> bytes:
                data = b""
                while len(data) < size + 4 and (more := client.recv(65_536)):
                    data += more
                return data

            async with trio.open_nursery() as nursery:
                nursery.start_soon(stream.send_all, b"")
                assert await trio.to_thread.run_sync(read) == b"x" * size + b"kept"


def test_handshakes_from_one_address_leave_room_for_others(start_server: StartServer) -> None:
    """Handshakes have their own count, so that one connection too many still gets its response."""
    server = start_server("--tls-self-signed", "--max-connections-per-address", "3", "--max-connections", "5")

    def silent() -> socket.socket:
        return socket.create_connection(("127.0.0.1", server.port), 10, source_address=("127.0.0.2", 0))

    with ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(silent())
        assert server.request("GET", "/healthz").status_code == 200  # all earlier ones have been accepted
        for _ in range(20):
            with silent() as sock:
                assert sock.recv(1) == b""  # at once: a handshake has 10 s
        assert server.request("GET", "/healthz").status_code == 200
