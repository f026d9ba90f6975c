"""Our own WebSocket client for Node, against servers that keep to RFC 6455 and servers that do not."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from websockets.sync.server import ServerConnection, serve
from websockets.typing import Subprotocol

from tests.conftest import need
from tests.tls import locked
from tests.web.tools import Script

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
TELL = """
    import { WebSocket } from "./websocket-node.js";
    const tell = (...what) => console.log(JSON.stringify(what));
    const ws = new WebSocket(process.env.URL, ["paperdb.v1", "bearer.x"]);
    ws.onopen = () => tell("open", ws.protocol);
    ws.onmessage = ({ data }) => tell("message", data.length > 100 ? data.length : data);
    ws.onerror = ({ status, message }) => tell("error", status ?? message);
    ws.onclose = ({ code, reason }) => tell("close", code, reason, ws.readyState);
"""


@pytest.fixture(scope="session")
def folder(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ws")
    shutil.copy(package / "node_modules/paperdb/websocket-node.js", folder)
    return folder


def run(folder: Path, url: str, more: str = "") -> list[list[object]]:
    with Script(folder, TELL + more, env={"URL": url}) as script:
        return [json.loads(line) for line in script.end(10).splitlines()]


@contextlib.contextmanager
def raw_server(serve_one: Callable[[socket.socket, str], None]) -> Iterator[str]:
    """A server that answers one connection by hand; `serve_one(connection, accept)`."""
    listener = socket.create_server(("127.0.0.1", 0))

    def run_one() -> None:
        connection, _ = listener.accept()
        with connection, contextlib.suppress(OSError):
            connection.settimeout(10)
            head = connection.recv(65_536).decode("latin-1")
            key = next(
                line.split(": ")[1]
                for line in head.split("\r\n")
                if line.lower().startswith("sec-websocket-key")
            )
            serve_one(connection, base64.b64encode(hashlib.sha1(key.encode() + GUID).digest()).decode())

    thread = threading.Thread(target=run_one, daemon=True)
    thread.start()
    try:
        yield f"ws://127.0.0.1:{listener.getsockname()[1]}/"
    finally:
        thread.join(10)
        listener.close()


def upgrade(accept: str, extra: str = "Sec-WebSocket-Protocol: paperdb.v1\r\n") -> bytes:
    return (
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Accept: {accept}\r\n{extra}\r\n"
    ).encode()


def test_messages_of_every_size_both_ways_and_a_proper_close(folder: Path) -> None:
    sizes = [0, 1, 125, 126, 65_535, 65_536, 3_000_000]
    echoed: list[int] = []

    def handler(ws: ServerConnection) -> None:
        for size in sizes:
            ws.send("ü" * (size // 2) + "x" * (size % 2))
            echoed.append(len(str(ws.recv(timeout=10)).encode()))
        ws.ping().wait(5)
        ws.send(iter(["in ", "three ", "parts ü"]))
        ws.close(4321, "that is all")

    with serve(handler, "127.0.0.1", 0, subprotocols=[Subprotocol("paperdb.v1")], max_size=None) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        port = server.socket.getsockname()[1]
        more = "const { onmessage } = ws; ws.onmessage = (e) => { onmessage(e); ws.send(e.data); };"
        told = run(folder, f"ws://127.0.0.1:{port}/", more)
        server.shutdown()
        thread.join()
    assert echoed == sizes
    assert told[0] == ["open", "paperdb.v1"]
    assert told[-2:] == [["message", "in three parts ü"], ["close", 4321, "that is all", 3]]


FRAMES = {
    "text in one byte at a time": (b"\x81\x02hi\x88\x02\x03\xe8", ["message", "hi"], 1000),
    "a ping between fragments": (b"\x01\x01h\x89\x01p\x80\x01i\x88\x00", ["message", "hi"], 1005),
    "not UTF-8": (b"\x81\x01\xff", ["error", "text that is not UTF-8"], 1007),
    "UTF-8 cut across fragments": (b"\x01\x01\xc3\x80\x01\xbc\x88\x00", ["message", "ü"], 1005),
    "a masked frame": (b"\x81\x81\0\0\0\0a", ["error", "a server must not mask"], 1002),
    "reserved bits": (b"\xc1\x01a", ["error", "reserved bits are set"], 1002),
    "an unknown opcode": (b"\x83\x01a", ["error", "a frame that does not belong here"], 1002),
    "a continuation of nothing": (b"\x80\x01a", ["error", "a frame that does not belong here"], 1002),
    "a text within a text": (b"\x01\x01a\x81\x01b", ["error", "a frame that does not belong here"], 1002),
    "a ping in parts": (b"\x09\x01a", ["error", "a control frame too long"], 1002),
    "too large": (b"\x81\x7f\0\0\0\1\0\0\0\0", ["error", "the message is too big"], 1009),
    "a close code of one byte": (b"\x88\x01\x03", ["error", "a close code of one byte"], 1002),
}


@pytest.mark.parametrize("case", FRAMES)
def test_frames(folder: Path, case: str) -> None:
    frames, then, code = FRAMES[case]

    def serve_one(connection: socket.socket, accept: str) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(upgrade(accept) + frames[:1])
        for byte in frames[1:]:
            connection.sendall(bytes([byte]))
        while connection.recv(4096):
            pass

    with raw_server(serve_one) as url:
        told = run(folder, url)
    assert told[:2] == [["open", "paperdb.v1"], then]
    assert told[-1][:2] == ["close", code]
    assert len(told) == 3


ANSWERS = {
    "refused": (b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\n\r\n{}", 401),
    "a wrong key": (upgrade("x" * 28), "the answer to the handshake is wrong"),
    "another protocol": (None, "the answer to the handshake is wrong"),
    "nothing": (b"", "socket hang up"),
    "no HTTP": (b"SSH-2.0-OpenSSH\r\n", "Parse Error: Expected HTTP/"),
}


@pytest.mark.parametrize("case", ANSWERS)
def test_handshakes_that_fail(folder: Path, case: str) -> None:
    answer, error = ANSWERS[case]

    def serve_one(connection: socket.socket, accept: str) -> None:
        connection.sendall(upgrade(accept, "Sec-WebSocket-Protocol: soap\r\n") if answer is None else answer)

    with raw_server(serve_one) as url:
        told = run(folder, url)
    assert [told[0][0], told[1]] == ["error", ["close", 1006, "", 3]]
    assert str(told[0][1]).startswith(str(error))


def test_a_connection_that_is_cut_and_one_that_is_never_made(folder: Path) -> None:
    def serve_one(connection: socket.socket, accept: str) -> None:
        connection.sendall(upgrade(accept) + b"\x81\x7f\0\0\0\0\0\0")

    with raw_server(serve_one) as url:
        assert run(folder, url) == [["open", "paperdb.v1"], ["close", 1006, "", 3]]
    told = run(folder, url)
    assert [what[0] for what in told] == ["error", "close"]


def test_a_peer_that_never_answers_a_close_holds_up_nothing(folder: Path) -> None:
    done = threading.Event()

    def serve_one(connection: socket.socket, accept: str) -> None:
        connection.sendall(upgrade(accept))
        done.wait(10)

    with raw_server(serve_one) as url:
        told = run(folder, url, "ws.onopen = () => { ws.close(); setTimeout(() => tell('later'), 1500); };")
        done.set()
    assert told == [["close", 1006, "", 3], ["later"]]


def test_wss_with_a_certificate_that_is_trusted_and_one_that_is_not(folder: Path, tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    options = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=test"
    names = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run([need("openssl"), *options.split(), *names], check=True, capture_output=True, timeout=20)
    context = locked(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
    context.load_cert_chain(certificate, key)

    def handler(ws: ServerConnection) -> None:
        ws.send("x" * 100_000)

    protocols = [Subprotocol("paperdb.v1")]
    with serve(handler, "127.0.0.1", 0, subprotocols=protocols, ssl=context) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        url = f"wss://127.0.0.1:{server.socket.getsockname()[1]}/"
        with Script(folder, TELL, env={"URL": url, "NODE_EXTRA_CA_CERTS": str(certificate)}) as script:
            trusted = [json.loads(line) for line in script.end(10).splitlines()]
        untrusted = run(folder, url)
        server.shutdown()
        thread.join()
    assert trusted == [["open", "paperdb.v1"], ["message", 100_000], ["close", 1000, "", 3]]
    assert untrusted == [["error", "self-signed certificate"], ["close", 1006, "", 3]]
