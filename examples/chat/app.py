"""A chat: its back end. Python's standard library and a PaperDB server; nothing else.

    PAPERDB_API_KEY=pdb_sk_… python app.py --paperdb http://127.0.0.1:8000

Law: the API key stays here. This back end serves the page and mints tokens: an application would check here
who somebody is, and which rooms they may enter. A browser reads, writes and listens by itself, with a token
whose rule is one room, for a quarter of an hour at a time.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import urllib.error
import urllib.request
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COLLECTION = "chat"
MAX_BODY = 10_000
ROOM = re.compile(r"[a-z0-9-]{1,40}", re.ASCII)


class PaperDB:
    """Raises `urllib.error.URLError` (and HTTPError, one of them)."""

    def __init__(self, url: str, key: str) -> None:
        self.url = url.rstrip("/")
        self._key = key
        self._has_index = False

    def token(self, name: str, room: str) -> str:
        """For one person in one room: read and write what is in it. Members of a room trust each other; see
        `examples/orders` for rows of one's own."""
        if not self._has_index:  # the newest messages of a room are found by it, however many rooms there are
            schema = {"properties": {}, "indexes": [["room", "-createdAt"]]}
            self._send("PUT", f"/{COLLECTION}/schema", schema)
            self._has_index = True
        rule = {"filter": {"room": room}, "permissions": ["read", "write"]}
        body = {"collections": {COLLECTION: rule}, "subject": name}
        return str(self._send("POST", "/realtime/token", body)["token"])

    def _send(self, method: str, path: str, body: Any) -> Any:
        request = urllib.request.Request(
            self.url + path,
            json.dumps(body).encode(),
            {"Authorization": f"Bearer {self._key}", "Content-Type": "application/json"},
            method=method,
        )
        with urllib.request.urlopen(request, timeout=10) as response:
            return json.load(response)


class Handler(BaseHTTPRequestHandler):
    """One request. `db` and `page` are set by `main`."""

    db: PaperDB
    page: bytes
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path == "/":
            self._respond(self.page, "text/html; charset=utf-8")
        else:
            self._refuse(HTTPStatus.NOT_FOUND, "There is nothing here")

    def do_POST(self) -> None:
        body = self._body()
        if self.path != "/token" or body is None:
            self._refuse(HTTPStatus.BAD_REQUEST, "Expected POST /token with a JSON object")
            return
        name, room = str(body.get("name", "")).strip()[:40], str(body.get("room", ""))
        if not name.isprintable() or not name or not ROOM.fullmatch(room):
            self._refuse(HTTPStatus.FORBIDDEN, "A room has 1 to 40 of a-z, 0-9 and -; a person has a name")
            return
        try:
            self._respond(json.dumps({"token": self.db.token(name, room)}).encode(), "application/json")
        except urllib.error.HTTPError as error:  # 401 and 403 tell the front end to give up
            with error:
                self._refuse(HTTPStatus(error.code), "PaperDB refused")
        except OSError:
            self._refuse(HTTPStatus.BAD_GATEWAY, "PaperDB cannot be reached")

    def _body(self) -> dict[str, Any] | None:
        # A form on another site cannot set this type.
        if self.headers.get_content_type() != "application/json":
            return None
        length = self.headers.get("Content-Length", "")
        if not length.isdigit() or int(length) > MAX_BODY:
            self.close_connection = True
            return None
        try:
            value = json.loads(self.rfile.read(int(length)))
        except ValueError:
            return None
        return value if isinstance(value, dict) else None

    def _refuse(self, status: HTTPStatus, message: str) -> None:
        self._respond(json.dumps({"error": message}).encode(), "application/json", status)

    def _respond(self, body: bytes, content_type: str, status: HTTPStatus = HTTPStatus.OK) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def main() -> None:
    parser = argparse.ArgumentParser(description="A chat on PaperDB.")
    parser.add_argument("--paperdb", default="http://127.0.0.1:8000", help="URL of the PaperDB server")
    parser.add_argument("--sdk", help="URL of paperdb.js (default: /sdk/paperdb.js of the PaperDB server)")
    parser.add_argument("--port", type=int, default=8080, help="port to listen on (default 8080; 0: any)")
    options = parser.parse_args()
    key = os.environ.get("PAPERDB_API_KEY")
    if not key:
        sys.exit("Set PAPERDB_API_KEY to a secret key of the database (pdb_sk_…)")
    Handler.db = PaperDB(options.paperdb, key)
    page = Path(__file__).with_name("index.html").read_text("utf-8")
    addresses = {"SDK": options.sdk or f"{Handler.db.url}/sdk/paperdb.js", "PAPERDB": Handler.db.url}
    for name, value in addresses.items():
        page = page.replace(f'"__{name}__"', json.dumps(value).replace("<", "\\u003c"))
    Handler.page = page.encode()
    with ThreadingHTTPServer(("127.0.0.1", options.port), Handler) as server:
        print(f"Chat on http://127.0.0.1:{server.server_port}", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            pass


if __name__ == "__main__":
    main()
