"""A web server that gives any response, for responses that PaperDB never gives."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest


class Recorder(ThreadingHTTPServer):
    """Gives `responses[method, path]` (`(status, body)`; None: closes without a response) and notes requests.

    The default response is a document that could be a schema, too. Every response has `headers`.
    """

    daemon_threads = True

    def __init__(self) -> None:
        self.requests: list[tuple[str, str]] = []
        self.bodies: list[bytes] = []
        self.responses: dict[tuple[str, str], tuple[int, bytes] | None] = {}
        self.headers: dict[str, str] = {}
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Recorder

    def respond(self) -> None:
        self.server.requests.append((self.command, self.path))
        self.server.bodies.append(self.rfile.read(int(self.headers.get("content-length", "0"))))
        response = self.server.responses.get(
            (self.command, self.path), (200, b'{"_id": "x", "properties": {}}')
        )
        if response is None:
            return
        self.send_response(response[0])
        for name, value in {"Content-Length": str(len(response[1])), **self.server.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(response[1])

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = respond

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    with Recorder() as recorder:
        thread = threading.Thread(target=recorder.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield recorder
        recorder.shutdown()
        thread.join()
