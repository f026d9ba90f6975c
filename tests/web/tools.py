"""What the tests of the SDK drive it with: a Node process, a proxy that can do harm, a static server.

Rules: the maker of each of these closes it (it is a context manager); every wait has a limit.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import selectors
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from paperdb_trio.web.assets import TARBALL
from tests.conftest import ENVIRONMENT, need, wait_until
from tests.web.npm import CURRENT_NODE, TOOLS, WS, folder_of, install, npm

HERE = Path(__file__).parent
RUN_SECONDS = 30
FIRST_WITH_WEBSOCKET = 22
"""The first major version of Node that has a WebSocket of its own."""
EITHER_WEBSOCKET = pytest.mark.parametrize("ws", [False, True], ids=["Node's own", "ws"])
"""Run in a current Node with its own WebSocket, and in this machine's Node with `ws`."""


@functools.cache
def current_node() -> str:
    """The path of a Node that has a WebSocket of its own: this machine's, else one from npm."""
    node = need("node")
    version = subprocess.run([node, "--version"], capture_output=True, text=True, timeout=20, check=True).stdout
    if int(version.strip("v\n").partition(".")[0]) >= FIRST_WITH_WEBSOCKET:
        return node
    return str(node_tool(CURRENT_NODE) / "bin/node")


@functools.cache
def type_errors(tsc: Path, folder: Path, *arguments: str) -> str:
    """What the TypeScript compiler finds wrong."""
    flags = ("--strict", "--noEmit", "--skipDefaultLibCheck", "--target", "es2022")
    done = subprocess.run(
        [current_node(), str(tsc), *flags, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.stdout + done.stderr


def node_tool(package: str) -> Path:
    """The folder of one of `TOOLS`, installed once into pytest's cache."""
    assert package in TOOLS
    try:
        install(package)
    except (RuntimeError, subprocess.TimeoutExpired) as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"{package} cannot be installed here: {error}")
    return folder_of(package)


def new_package(folder: Path, server_url: str) -> Path:
    """An application's folder in which the SDK was installed from a server, and `ws` beside it."""
    npm(folder, "install", server_url + TARBALL)
    (folder / "node_modules/ws").symlink_to(node_tool(WS))
    return folder


class Script:
    """A Node process that is running a script; what it prints, and its end."""

    def __init__(self, folder: Path, source: str, *flags: str, env: Mapping[str, str] | None = None) -> None:
        self.file = folder / f"script{next(_numbers)}.mjs"
        self.file.write_text(source, "utf-8")
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            [current_node(), *flags, str(self.file)],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**ENVIRONMENT, **(env or {})},
        )
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))

    @property
    def output(self) -> str:
        return "\n".join(self.lines)

    def wait_for(self, text: str, seconds: float = 10) -> None:
        try:
            wait_until(lambda: text in self.output or self.process.poll() is not None, seconds)
        finally:
            assert text in self.output, self.output

    def end(self, seconds: float = RUN_SECONDS) -> str:
        """Wait until it ends by itself, with 0; its output."""
        try:
            code = self.process.wait(seconds)
        finally:
            self._close()
        assert code == 0, self.output
        return self.output

    def _close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._thread.join()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def __enter__(self) -> Script:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()


_numbers = itertools.count()


class Client:
    """A client of the SDK in a Node process of its own (see driver.mjs).

    `ws`: in this machine's Node, however old, with the WebSocket of `ws`.
    """

    def __init__(self, folder: Path, options: Mapping[str, Any], *, ws: bool = False, first: str = "") -> None:
        self.events: dict[str, list[dict[str, Any]]] = {}
        self.statuses: list[dict[str, Any]] = []
        self.said: list[dict[str, Any]] = []
        self._answers: dict[int, dict[str, Any]] = {}
        driver = folder / "driver.mjs"
        driver.write_bytes((HERE / "driver.mjs").read_bytes())
        self.process = subprocess.Popen(
            [need("node") if ws else current_node(), str(driver), json.dumps({**options, "ws": ws}), first],
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=ENVIRONMENT,
        )
        self.stderr = ""
        self._threads = [
            threading.Thread(target=target, daemon=True) for target in (self._read, self._read_stderr)
        ]
        for thread in self._threads:
            thread.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            message = json.loads(line)
            if "event" in message:
                self.events.setdefault(message["to"], []).append(message["event"])
            elif "status" in message:
                self.statuses.append(message["status"])
            elif "id" in message:
                self._answers[message["id"]] = message
            else:
                self.said.append(message)

    def _read_stderr(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.stderr += line

    def _send(self, run: str) -> int:
        assert self.process.stdin is not None
        id = next(_numbers)
        self.process.stdin.write(json.dumps({"id": id, "run": run}) + "\n")
        self.process.stdin.flush()
        return id

    def answer(self, run: str) -> dict[str, Any]:
        """Run the body of an async function of (db, state, subscribe): `{"value"}` or `{"error"}`."""
        id = self._send(run)
        self._wait(lambda: id in self._answers, RUN_SECONDS)
        return self._answers[id]

    def run(self, run: str) -> Any:
        """What it returns; it must not throw."""
        answer = self.answer(run)
        assert "error" not in answer, answer
        return answer["value"]

    def error(self, run: str) -> dict[str, Any]:
        """What it throws."""
        answer = self.answer(run)
        assert "error" in answer, answer
        assert isinstance(answer["error"], dict)
        return answer["error"]

    def subscribe(self, collection: str, to: str = "", *, ready: bool = True) -> None:
        """Subscribe under the name `to`, and wait until the server has heard of it."""
        to = to or collection
        self.run(f"subscribe({json.dumps(collection)}, {json.dumps(to)})")
        if ready:
            self._wait(lambda: {"ready": True, "to": to} in self.said)

    @property
    def state(self) -> str:
        return str(self.statuses[-1]["state"]) if self.statuses else ""

    def wait_state(self, state: str, seconds: float = 15) -> dict[str, Any]:
        self._wait(lambda: self.state == state, seconds)
        return self.statuses[-1]

    def seqs(self, to: str) -> list[int]:
        return [event["seq"] for event in self.events.get(to, [])]

    def wait_events(self, to: str, count: int, seconds: float = 15) -> list[dict[str, Any]]:
        """Exactly so many events, and none more shortly after."""
        self._wait(lambda: len(self.events.get(to, [])) >= count, seconds)
        self.run("await new Promise((resolve) => setTimeout(resolve, 100))")
        events = self.events.get(to, [])
        assert len(events) == count, events
        return events

    def _wait(self, condition: Callable[[], bool], seconds: float = 10) -> None:
        try:
            wait_until(lambda: condition() or self.process.poll() is not None, seconds)
        finally:
            assert condition(), (self.statuses[-5:], self.said[-5:], self.seqs("a")[-5:], self.stderr)

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self.process.kill()
        self.process.wait()
        for thread in self._threads:
            thread.join()
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        self.process.stdout.close()
        self.process.stderr.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Proxy:
    """TCP between a client and a server, in one thread.

    `refusing`: new connections are reset. `frozen`: nothing goes through, silently. `cut_after`:
    called for each connection, with how many bytes from the server it is reset (None: never). `heads` are the
    requests that went through, `sockets` those for a WebSocket, `mints` those for a token.
    """

    def __init__(self, port: int) -> None:
        self.target = ("127.0.0.1", port)
        self.refusing = False
        self.frozen = False
        self.cut_after: Callable[[], int | None] = lambda: None
        self.heads: list[str] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._peers: dict[socket.socket, socket.socket] = {}
        self._left: dict[socket.socket, int | None] = {}
        self._ending = False
        self._cutting = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def sockets(self) -> list[str]:
        return [head for head in list(self.heads) if "upgrade: websocket" in head.lower()]

    @property
    def mints(self) -> list[str]:
        return [head for head in list(self.heads) if head.startswith("POST /realtime/token")]

    def cut(self) -> None:
        """Reset every connection, now."""
        self._cutting = True
        wait_until(lambda: not self._cutting)

    def _run(self) -> None:
        while not self._ending:
            if self._cutting:
                for client in list(self._left):
                    self._drop(client)
                self._cutting = False
            if self.frozen:
                threading.Event().wait(0.01)
                continue
            for key, _ in self._selector.select(0.01):
                if key.fileobj is self._listener:
                    self._accept()
                elif key.fileobj in self._peers:
                    assert isinstance(key.fileobj, socket.socket)
                    with contextlib.suppress(OSError):
                        self._pump(key.fileobj)

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            if self.refusing:
                raise ConnectionRefusedError
            server = socket.create_connection(self.target, 2)
        except OSError:
            self._reset(client)
            return
        self._peers |= {client: server, server: client}
        self._left[client] = self.cut_after()
        for end in (client, server):
            self._selector.register(end, selectors.EVENT_READ)

    def _pump(self, source: socket.socket) -> None:
        peer = self._peers[source]
        client = source if source in self._left else peer
        try:
            data = source.recv(65_536)
        except OSError:
            data = b""
        if source is client and data.startswith((b"GET ", b"POST ", b"PUT ", b"PATCH ", b"DELETE ")):
            self.heads.append(data.decode("latin-1"))
        left = self._left[client]
        if source is not client and left is not None:
            data = data[:left]
            left = self._left[client] = left - len(data)
        if data:
            peer.sendall(data)
        if not data or left == 0:
            self._drop(client)

    def _drop(self, client: socket.socket) -> None:
        server = self._peers.pop(client)
        del self._peers[server], self._left[client]
        for end in (client, server):
            self._selector.unregister(end)
            self._reset(end)

    @staticmethod
    def _reset(end: socket.socket) -> None:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        end.close()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        self._ending = True
        self._thread.join()
        for client in list(self._left):
            self._drop(client)
        self._selector.close()
        self._listener.close()


Answer = tuple[int, str, bytes] | tuple[int, str, bytes, dict[str, str]]


@contextlib.contextmanager
def http_server(answer: Callable[[str, str, dict[str, str]], Answer | None]) -> Iterator[str]:
    """A web server on loopback; its URL. `answer(method, path, headers)` gives `(status, content type, body)`,
    with more headers if it likes, or None to end the connection without an answer."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            answered = answer(self.command, self.path, {k.lower(): v for k, v in self.headers.items()})
            if answered is None:
                self.close_connection = True
                return
            status, content_type, body, *more = answered
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Access-Control-Allow-Origin", "*")
            for name, value in (more[0] if more else {}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _serve

        def log_message(self, format: str, *args: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            pass  # a client that went away

    with Server(("127.0.0.1", 0), Handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{httpd.server_port}"
        finally:
            httpd.shutdown()
            thread.join()


def page_server(html: str) -> contextlib.AbstractContextManager[str]:
    """One page, at every path, from an origin of its own; the URL."""
    return http_server(lambda method, path, headers: (200, "text/html; charset=utf-8", html.encode()))
