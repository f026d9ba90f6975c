"""A receiver of webhooks: an HTTP server that responds as a test says."""

from __future__ import annotations

import hashlib
import hmac
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

from tests.conftest import wait_until


class Received(NamedTuple):
    """`arrived`: the receiver responded with 2xx."""

    delivery: str
    signature: str
    body: bytes
    arrived: bool

    @property
    def events(self) -> list[dict[str, Any]]:
        events: list[dict[str, Any]] = json.loads(self.body)["events"]
        return events

    def check(self, secret: str) -> None:
        at, _, mac = self.signature.removeprefix("t=").partition(",v1=")
        expected = hmac.new(secret.encode(), at.encode() + b"." + self.body, hashlib.sha256).hexdigest()
        assert mac == expected
        assert json.loads(self.body)["delivery"] == self.delivery


class Receiver:
    """`responds` with a status, hangs up (0), or does nothing until `release` is set (-1)."""

    def __init__(self) -> None:
        self.responds = 200
        self.release = threading.Event()
        self.received: list[Received] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                status = receiver.responds
                receiver.received.append(
                    Received(
                        self.headers["X-PaperDB-Delivery"],
                        self.headers["X-PaperDB-Signature"],
                        body,
                        200 <= status < 300,
                    )
                )
                if status == -1:
                    receiver.release.wait(30)
                if status < 200:
                    self.close_connection = True
                    return
                self.send_response(status)
                if status == 302:
                    self.send_header("Location", f"{receiver.url}/elsewhere")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self.release.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def arrived(self) -> list[dict[str, Any]]:
        """The events of the deliveries that arrived, without repeats of a delivery."""
        events, seen = [], set[str]()
        for received in tuple(self.received):
            if received.arrived and received.delivery not in seen:
                seen.add(received.delivery)
                events += received.events
        return events

    def await_events(self, count: int) -> list[dict[str, Any]]:
        wait_until(lambda: len(self.arrived) >= count)
        return self.arrived

    def await_requests(self, count: int) -> None:
        wait_until(lambda: len(self.received) >= count)


@contextmanager
def receiving() -> Iterator[Receiver]:
    receiver = Receiver()
    try:
        yield receiver
    finally:
        receiver.close()
