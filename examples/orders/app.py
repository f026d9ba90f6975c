"""An order desk: its back end. It logs people in and mints their tokens; PaperDB's rules do the rest.

    PAPERDB_API_KEY=pdb_sk_… python app.py --paperdb http://127.0.0.1:8000

Law: the API key stays here. A customer's token shows and takes only that customer's orders, and shows what
became of them; the desk's token shows all. What became of an order is a document of its own, in `results`,
because a rule says whose documents somebody may write, not what goes into them. Only `worker.py` writes
results.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from paperdb_trio import PaperDBError, SyncClient, create_sync_client

DESK = "desk"
"""This name sees all orders. An application would ask for a password."""
MAX_BODY = 10_000
STOCK = {"pen": 5, "book": 2}


def rules(name: str) -> dict[str, Any]:
    """What somebody may read, write and hear."""
    own = {} if name == DESK else {"filter": {"userId": name}}
    return {"orders": {**own, "permissions": ["read", "write"]}, "results": own, "stock": {}}


class Handler(BaseHTTPRequestHandler):
    """One request. `db` and `page` are set by `main`."""

    db: SyncClient
    page: bytes
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        found = self.path.partition("?")[0] == "/"
        self._respond(
            self.page if found else b"", "text/html", HTTPStatus.OK if found else HTTPStatus.NOT_FOUND
        )

    def do_POST(self) -> None:
        name = self._name()
        if self.path != "/token" or name is None:
            self._tell(HTTPStatus.BAD_REQUEST, {"error": 'Expected POST /token with {"name": "…"}'})
            return
        try:
            self._tell(HTTPStatus.OK, {"token": self.db.realtime.generate_token(rules(name), subject=name)})
        except PaperDBError as error:  # the front end stops at 401 and 403
            self._tell(HTTPStatus(error.status or 502), {"error": error.message})

    def _name(self) -> str | None:
        length = self.headers.get("Content-Length", "")
        # A form on another site cannot set this type.
        if (
            self.headers.get_content_type() != "application/json"
            or not length.isdigit()
            or int(length) > MAX_BODY
        ):
            self.close_connection = True
            return None
        try:
            name = json.loads(self.rfile.read(int(length)))["name"]
        except (ValueError, KeyError, TypeError):
            return None
        return name if isinstance(name, str) and name.isalnum() and len(name) <= 40 else None

    def _tell(self, status: HTTPStatus, value: Any) -> None:
        self._respond(json.dumps(value).encode(), "application/json", status)

    def _respond(self, body: bytes, content_type: str, status: HTTPStatus) -> None:
        self.send_response(status)
        self.send_header("Content-Type", f"{content_type}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def prepare(db: SyncClient) -> None:
    """Schemas, and something to sell."""
    for collection in SCHEMA:
        db.collection(collection).insert_bulk([])
    for item, left in STOCK.items():
        try:
            db.collection("stock").insert({"_id": item, "left": left})
        except PaperDBError as error:
            if error.code != "CONFLICT":  # it is there from an earlier start
                raise


SCHEMA: Any = {
    "orders": {
        "properties": {
            "userId": {"type": "string", "required": True},
            "item": {"type": "string", "required": True},
            "amount": {"type": "number", "required": True},
        },
        "indexes": [["userId", "-createdAt"]],
    },
    "results": {"properties": {"userId": {"type": "string", "index": True}}},
}


def main() -> None:
    parser = argparse.ArgumentParser(description="An order desk on PaperDB.")
    parser.add_argument("--paperdb", default="http://127.0.0.1:8000", help="URL of the PaperDB server")
    parser.add_argument("--port", type=int, default=8081, help="port to listen on (default 8081; 0: any)")
    options = parser.parse_args()
    key = os.environ.get("PAPERDB_API_KEY")
    if not key:
        sys.exit("Set PAPERDB_API_KEY to a secret key of the database (pdb_sk_…)")
    page = Path(__file__).with_name("index.html").read_text("utf-8").replace("__PAPERDB__", options.paperdb)
    Handler.page = page.encode()
    with create_sync_client(base_url=options.paperdb, api_key=key, schema=SCHEMA) as db:
        Handler.db = db
        prepare(db)
        with ThreadingHTTPServer(("127.0.0.1", options.port), Handler) as server:
            print(f"Orders on http://127.0.0.1:{server.server_port}", flush=True)
            try:
                server.serve_forever()
            except KeyboardInterrupt:
                pass


if __name__ == "__main__":
    main()
