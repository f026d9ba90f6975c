"""A web server that answers what it is told to, for what a PaperDB never answers."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest


class Recorder(ThreadingHTTPServer):
    """Answers `answers[method, path]` (`(status, body)`; None: closes without a word) and notes requests.

    What has no answer is answered with a document that could be a schema, too. Answers come with `headers`.
    """

    daemon_threads = True

    def __init__(self) -> None:
        self.requests: list[tuple[str, str]] = []
        self.bodies: list[bytes] = []
        self.answers: dict[tuple[str, str], tuple[int, bytes] | None] = {}
        self.headers: dict[str, str] = {}
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Recorder

    def answer(self) -> None:
        self.server.requests.append((self.command, self.path))
        self.server.bodies.append(self.rfile.read(int(self.headers.get("content-length", "0"))))
        answer = self.server.answers.get((self.command, self.path), (200, b'{"_id": "x", "properties": {}}'))
        if answer is None:
            return
        self.send_response(answer[0])
        for name, value in {"Content-Length": str(len(answer[1])), **self.server.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer[1])

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = answer

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
