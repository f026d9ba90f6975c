"""Where administration takes place: in the file of a data directory, or through the admin API of a server.

Law: both do the same operations and return the same rows, so that a command need not know which it is.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import wraps
from typing import Any, Protocol
from urllib.parse import quote

import click
import msgspec

from paperdb_trio.auth.keys import hash_key, new_key
from paperdb_trio.cli.base import data_option, import_postgres, store_option, url_option
from paperdb_trio.config import Settings
from paperdb_trio.errors import StartupError
from paperdb_trio.files import by_command
from paperdb_trio.model import milliseconds, new_id
from paperdb_trio.store.administration import (
    AddKey,
    ChangeDatabase,
    ChangeKey,
    CreateDatabase,
    DeleteDatabase,
    RevokeKey,
    RotateSigning,
)
from paperdb_trio.store.operations import Operation
from paperdb_trio.store.records import NewKey
from paperdb_trio.store.sqlite import admin, records
from paperdb_trio.store.sqlite.file import prepare
from paperdb_trio.store.webhook_changes import (
    AddWebhook,
    PauseWebhook,
    RemoveWebhook,
    ResumeWebhook,
    new_secret,
)
from paperdb_trio.store.webhooks import Webhook

Row = dict[str, Any]
Show = Callable[[Row], None]
"""Shows a new key, which is shown only once."""

PREFIX = "/admin.v1"


class Place(Protocol):
    def databases(self) -> list[Row]: ...
    def create_database(self, name: str, plan: str) -> None: ...
    def change_database(self, name: str, *, new_name: str | None = None, plan: str | None = None) -> None: ...
    def delete_database(self, name: str) -> int: ...
    def keys(self) -> list[Row]: ...
    def create_key(
        self, kind: str, database: str | None, label: str, expires: str | None, show: Show
    ) -> None: ...
    def expire_key(self, id: str, expires: str | None) -> None: ...
    def revoke_key(self, id: str) -> None: ...
    def rotate_signing(self) -> str: ...
    def audit(self, limit: int) -> list[Row]: ...
    def webhooks(self) -> list[Row]: ...
    def add_webhook(
        self, database: str, url: str, collection: str | None, filter: Row | None, show: Show
    ) -> None: ...
    def remove_webhook(self, id: str) -> None: ...
    def pause_webhook(self, id: str) -> None: ...
    def resume_webhook(self, id: str) -> None: ...
    def test_webhook(self, id: str) -> Row: ...


class _Stored:
    """A store itself. Servers may be running."""

    def __init__(self) -> None:
        self._by = by_command()

    def _apply(self, operation: Operation[Any], show: Callable[[], None] | None = None) -> Any:
        raise NotImplementedError

    def create_database(self, name: str, plan: str) -> None:
        self._apply(CreateDatabase(self._by, name, plan))

    def change_database(self, name: str, *, new_name: str | None = None, plan: str | None = None) -> None:
        self._apply(ChangeDatabase(self._by, name, new_name, plan))

    def delete_database(self, name: str) -> int:
        return int(self._apply(DeleteDatabase(self._by, name)))

    def create_key(self, kind: str, database: str | None, label: str, expires: str | None, show: Show) -> None:
        key, id = new_key(kind), new_id()
        made = NewKey(id, kind, label, hash_key(key), None if expires is None else milliseconds(expires))
        row = {"id": id, "key": key, "database": database, "kind": kind}
        self._apply(AddKey(self._by, database, made), lambda: show(row))

    def expire_key(self, id: str, expires: str | None) -> None:
        at = None if expires is None else milliseconds(expires)
        self._apply(ChangeKey(self._by, id, expire=True, expires=at))

    def revoke_key(self, id: str) -> None:
        self._apply(RevokeKey(self._by, id))

    def rotate_signing(self) -> str:
        from paperdb_trio.auth.tokens import new_signing_secret

        return str(self._apply(RotateSigning(self._by, *new_signing_secret())).id)

    def add_webhook(
        self, database: str, url: str, collection: str | None, filter: Row | None, show: Show
    ) -> None:
        id, secret = new_id(), new_secret()
        row = {"id": id, "secret": secret, "url": url}
        operation = AddWebhook(self._by, database, id, url, collection, filter, secret)
        self._apply(operation, lambda: show(row))

    def remove_webhook(self, id: str) -> None:
        self._apply(RemoveWebhook(self._by, id))

    def pause_webhook(self, id: str) -> None:
        self._apply(PauseWebhook(self._by, id))

    def resume_webhook(self, id: str) -> None:
        self._apply(ResumeWebhook(self._by, id))

    def _webhooks(self) -> list[Webhook]:
        raise NotImplementedError

    def test_webhook(self, id: str) -> Row:
        # Imports that other commands do without.
        import trio

        from paperdb_trio.hooks.webhooks import test

        found = [webhook for webhook in self._webhooks() if webhook.id == id]
        if not found:
            raise StartupError(f"There is no webhook '{id[:80]}'", 1)
        row: Row = trio.run(test, Settings(), found[0])
        return row


class Directory(_Stored):
    """The file of a data directory."""

    def __init__(self, data: str) -> None:
        super().__init__()
        self._data = data

    def _apply(self, operation: Operation[Any], show: Callable[[], None] | None = None) -> Any:
        # What takes something away must be possible on a full disk, too.
        urgent = bool(getattr(operation, "frees", False))
        return admin.apply(prepare(self._data, create=False, urgent=urgent), operation, show)

    def _read(self, question: Callable[[Any], list[Any]]) -> list[Row]:
        file = prepare(self._data, create=False, write=False)
        return _builtins(admin.read(file, question))

    def databases(self) -> list[Row]:
        return self._read(records.databases)

    def keys(self) -> list[Row]:
        return self._read(records.keys)

    def audit(self, limit: int) -> list[Row]:
        return self._read(lambda connection: records.audit(connection, limit=limit))

    def webhooks(self) -> list[Row]:
        return self._read(records.webhook_infos)

    def _webhooks(self) -> list[Webhook]:
        file = prepare(self._data, create=False, write=False)
        return admin.read(file, records.webhook_rows)


class InPostgres(_Stored):
    """A PostgreSQL database."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self._url = url
        self._admin = import_postgres()

    def _apply(self, operation: Operation[Any], show: Callable[[], None] | None = None) -> Any:
        return self._admin.apply(self._url, operation, show)

    def databases(self) -> list[Row]:
        return _builtins(self._admin.read(self._url, self._admin.records.databases()))

    def keys(self) -> list[Row]:
        return _builtins(self._admin.read(self._url, self._admin.records.keys()))

    def audit(self, limit: int) -> list[Row]:
        return _builtins(self._admin.read(self._url, self._admin.records.audit(limit=limit)))

    def webhooks(self) -> list[Row]:
        return _builtins(self._admin.read(self._url, self._admin.records.webhook_infos()))

    def _webhooks(self) -> list[Webhook]:
        found: list[Webhook] = self._admin.read(self._url, self._admin.records.webhooks())[1]
        return found


def _builtins(rows: list[Any]) -> list[Row]:
    return [msgspec.to_builtins(row) for row in rows]


class Server:
    """A server's admin API."""

    def __init__(self, url: str, key: str) -> None:
        self._url = url
        self._key = key

    def ask(self, method: str, path: str, body: Row | None = None, query: dict[str, str] | None = None) -> Row:
        """Raises `StartupError`."""
        # Imports that other commands do without.
        from paperdb_trio.client.errors import PaperDBError
        from paperdb_trio.client.http import Endpoint, SyncTransport
        from paperdb_trio.client.requests import RestRequest, RestResponse

        def read(response: RestResponse) -> Row:
            row: Row = json.loads(response.body)
            return row

        sent = None if body is None else json.dumps(body).encode()
        try:
            transport = SyncTransport(Endpoint(self._url, self._key, None, 30.0, None))
        except ValueError as error:
            raise StartupError(str(error), 2) from None
        try:
            return transport.send(RestRequest(method, PREFIX + path, read, query or {}, sent, attempts=1))
        except PaperDBError as error:
            raise StartupError(f"The server refused: {error}" if error.status else str(error)) from None
        finally:
            transport.close()

    def all(self, name: str, **query: str) -> list[Row]:
        """All pages of a list."""
        rows: list[Row] = []
        while True:
            page = self.ask("GET", f"/{name}", query={"limit": "1000", **query})
            rows += page[name]
            if "next" not in page:
                return rows
            query["after"] = page["next"]

    def databases(self) -> list[Row]:
        return self.all("databases")

    def create_database(self, name: str, plan: str) -> None:
        self.ask("POST", "/databases", {"name": name, "plan": plan})

    def change_database(self, name: str, *, new_name: str | None = None, plan: str | None = None) -> None:
        changes = {"name": new_name, "plan": plan}
        body = {member: value for member, value in changes.items() if value is not None}
        self.ask("PATCH", f"/databases/{_quoted(name)}", body)

    def delete_database(self, name: str) -> int:
        return int(self.ask("DELETE", f"/databases/{_quoted(name)}", query={"confirm": name})["documents"])

    def keys(self) -> list[Row]:
        return self.all("keys")

    def create_key(self, kind: str, database: str | None, label: str, expires: str | None, show: Show) -> None:
        body = {"kind": kind, "database": database, "label": label, "expiresAt": expires}
        made = self.ask("POST", "/keys", {name: value for name, value in body.items() if value is not None})
        show({name: made[name] for name in ("id", "key", "database", "kind")})

    def expire_key(self, id: str, expires: str | None) -> None:
        self.ask("PATCH", f"/keys/{_quoted(id)}", {"expiresAt": expires})

    def revoke_key(self, id: str) -> None:
        self.ask("DELETE", f"/keys/{_quoted(id)}")

    def rotate_signing(self) -> str:
        return str(self.ask("POST", "/secrets")["id"])

    def audit(self, limit: int) -> list[Row]:
        entries: list[Row] = self.ask("GET", "/audit", query={"limit": str(limit)})["entries"]
        return entries

    def webhooks(self) -> list[Row]:
        rows: list[Row] = self.ask("GET", "/webhooks")["webhooks"]
        return rows

    def add_webhook(
        self, database: str, url: str, collection: str | None, filter: Row | None, show: Show
    ) -> None:
        body = {"database": database, "url": url, "collection": collection, "filter": filter}
        made = self.ask("POST", "/webhooks", body)
        show({name: made[name] for name in ("id", "secret", "url")})

    def remove_webhook(self, id: str) -> None:
        self.ask("DELETE", f"/webhooks/{_quoted(id)}")

    def pause_webhook(self, id: str) -> None:
        self.ask("POST", f"/webhooks/{_quoted(id)}/pause")

    def resume_webhook(self, id: str) -> None:
        self.ask("POST", f"/webhooks/{_quoted(id)}/resume")

    def test_webhook(self, id: str) -> Row:
        return self.ask("POST", f"/webhooks/{_quoted(id)}/test")


def place_options(command: Callable[..., None]) -> Callable[..., None]:
    """Adds `--data`, `--store`, `--url` and `--key`. The command gets a `place` instead."""

    @data_option
    @store_option
    @click.option(
        "--url", envvar="PAPERDB_URL", show_envvar=True, help="A server, instead of the data directory."
    )
    @click.option("--key", envvar="PAPERDB_API_KEY", show_envvar=True, help="An admin key, for --url.")
    @wraps(command)
    def placed(data: str, store: str, url: str | None, key: str | None, **more: Any) -> None:
        source = click.get_current_context().get_parameter_source
        given = click.core.ParameterSource.COMMANDLINE
        here = given in (source("data"), source("store"))
        if here and source("url") is given:
            raise click.UsageError("Give --data or --url, not both")
        place: Place
        if url is not None and not here:
            place = Server(url, _needed(key))
        else:
            place = InPostgres(store) if store else Directory(data)
        command(place=place, **more)

    return placed


def server_options(command: Callable[..., None]) -> Callable[..., None]:
    """Adds `--url` and `--key`. The command gets a `server` instead."""

    @url_option
    @click.option(
        "--key",
        envvar="PAPERDB_API_KEY",
        show_envvar=True,
        help="An admin key, or a secret key of the database.",
    )
    @wraps(command)
    def placed(url: str, key: str | None, **more: Any) -> None:
        command(server=Server(url, _needed(key)), **more)

    return placed


def _needed(key: str | None) -> str:
    if key is None:
        raise click.UsageError("A server needs a --key (or PAPERDB_API_KEY)")
    return key


def _quoted(text: str) -> str:
    return quote(text, safe="")


def print_rows(rows: list[Row], as_json: bool) -> None:
    """A table, or JSON."""
    if as_json:
        click.echo(json.dumps(rows))
        return
    if not rows:
        return
    cells = [list(rows[0]), *([_cell(value) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for number, row in enumerate(cells):
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        click.echo(line if number else click.style(line, bold=True))


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, dict | list):
        return json.dumps(value, ensure_ascii=False)
    # A label may hold anything: nothing but printable characters reaches a terminal.
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(value))
