"""`paperdb databases`, `keys`, `connections` and `audit`: who may use a server, who does, and who did what.

A running server follows changes in its data directory within a second.
"""

from __future__ import annotations

import json
import re
import time
from typing import Final
from urllib.parse import quote

import click

from paperdb_trio.cli.administration import Place, Row, Server, place_options, print_rows, server_options
from paperdb_trio.cli.base import Group, main
from paperdb_trio.model import milliseconds, timestamp
from paperdb_trio.store.records import PLANS

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")

# An id may begin with '-' and contain an 'h'. Neither is an option, least of all -h, which would exit with 0.
ID_SETTINGS: Final = {"ignore_unknown_options": True, "help_option_names": ["--help"]}


@main.group(cls=Group)
def databases() -> None:
    """Databases and their plans."""


@databases.command("create")
@click.argument("name")
@click.option("--plan", type=click.Choice(PLANS), required=True)
@place_options
def databases_create(place: Place, name: str, plan: str) -> None:
    """Create the database NAME."""
    place.create_database(name, plan)
    click.echo(
        f"Created the database '{name}' on plan {plan}. Create a key: paperdb keys create --database {name}"
    )


@databases.command("list")
@json_option
@place_options
def databases_list(place: Place, as_json: bool) -> None:
    """List the databases."""
    print_rows(place.databases(), as_json)


@databases.command("set-plan")
@click.argument("name")
@click.argument("plan", type=click.Choice(PLANS))
@place_options
def databases_set_plan(place: Place, name: str, plan: str) -> None:
    """Put the database NAME on PLAN. A running server follows within a second."""
    place.change_database(name, plan=plan)
    click.echo(f"The database '{name}' is now on plan {plan}.")


@databases.command("rename")
@click.argument("name")
@click.argument("new_name")
@place_options
def databases_rename(place: Place, name: str, new_name: str) -> None:
    """Rename the database NAME. Its keys, tokens and connections go on."""
    place.change_database(name, new_name=new_name)
    click.echo(f"The database '{name}' is now called '{new_name}'.")


@databases.command("delete")
@click.argument("name")
@click.option("--confirm", metavar="NAME", help="The name again.")
@place_options
def databases_delete(place: Place, name: str, confirm: str | None) -> None:
    """Delete the database NAME, with its documents, change log and keys.

    Its connections end within a second. The server frees the space in the background; a stopped one does when
    it starts.
    """
    if confirm != name:
        raise click.UsageError(f"This deletes the whole database; expected its name again: --confirm {name}")
    documents = place.delete_database(name)
    click.echo(f"Deleted the database '{name}' with {documents:,} documents.")


@main.group(cls=Group)
def keys() -> None:
    """API keys."""


@keys.command("create")
@click.option("--database", help="The key's database.  [default: default]")
@click.option("--public", is_flag=True, help="A key that can only read.")
@click.option("--admin", is_flag=True, help="A key of the server: for the admin API and the dashboard.")
@click.option("--label", default="", help="A note for yourself.")
@click.option("--expires", metavar="WHEN", help="Such as 30d, 12h, or 2027-01-31T12:00:00Z.  [default: never]")
@json_option
@place_options
def keys_create(
    place: Place,
    database: str | None,
    public: bool,
    admin: bool,
    label: str,
    expires: str | None,
    as_json: bool,
) -> None:
    """Create a key, and show it once."""
    if admin and (public or database is not None):
        raise click.UsageError("An --admin key is neither --public, nor does it belong to a --database")
    kind = "admin" if admin else "public" if public else "secret"

    def show(row: Row) -> None:
        if as_json:
            click.echo(json.dumps(row))
            return
        whose = "the server" if admin else f"'{row['database']}'"
        click.echo(
            f"{kind.capitalize()} key {row['id']} for {whose}, shown only now: "
            f"{click.style(row['key'], bold=True)}"
        )

    place.create_key(
        kind, None if admin else database or "default", label, None if expires is None else _when(expires), show
    )


@keys.command("list")
@json_option
@place_options
def keys_list(place: Place, as_json: bool) -> None:
    """List the keys by id, kind and label. The keys themselves are not stored."""
    print_rows(place.keys(), as_json)


@keys.command("expire", context_settings=ID_SETTINGS)
@click.argument("id")
@click.argument("when")
@place_options
def keys_expire(place: Place, id: str, when: str) -> None:
    """Let the key ID expire: WHEN is such as 30d, 12h, 2027-01-31T12:00:00Z, now or never."""
    at = None if when == "never" else _when(when)
    place.expire_key(id, at)
    click.echo(f"The key {id} never expires." if at is None else f"The key {id} expires at {at}.")


@keys.command("revoke", context_settings=ID_SETTINGS)
@click.argument("id")
@place_options
def keys_revoke(place: Place, id: str) -> None:
    """Revoke the key ID. Its tokens and their live connections end within a second."""
    place.revoke_key(id)
    click.echo(f"Revoked {id}.")


@keys.command("rotate-signing")
@place_options
def keys_rotate_signing(place: Place) -> None:
    """Sign new tokens with a new secret. Tokens of the old one stay valid until they expire."""
    click.echo(f"New tokens are now signed with {place.rotate_signing()}.")


@main.command("audit")
@click.option("--limit", type=click.IntRange(1, 1000), default=100, show_default=True, help="At most so many.")
@json_option
@place_options
def audit(place: Place, limit: int, as_json: bool) -> None:
    """List who changed databases, keys and indexes, the newest first."""
    print_rows(place.audit(limit), as_json)


CONNECTION_COLUMNS: Final = (
    *("id", "database", "transport", "address", "subject", "state", "lagChanges", "unsentBytes", "since"),
)


@main.group(cls=Group)
def connections() -> None:
    """Live connections of a running server."""


@connections.command("list")
@click.option("--database", help="Only this database.")
@json_option
@server_options
def connections_list(server: Server, database: str | None, as_json: bool) -> None:
    """List WebSockets, event streams and long polls: who listens to what, and how far behind."""
    rows = server.all("connections", **({} if database is None else {"database": database}))
    if not as_json:
        rows = [{name: row[name] for name in CONNECTION_COLUMNS} for row in rows]
    print_rows(rows, as_json)


@connections.command("end", context_settings=ID_SETTINGS)
@click.argument("id")
@click.option("--revoke", type=click.Choice(("token", "subject")), help="End its token, or all of its subject.")
@server_options
def connections_end(server: Server, id: str, revoke: str | None) -> None:
    """Close the connection ID. Without --revoke its client is told to connect again."""
    query = {} if revoke is None else {"revoke": revoke}
    server.ask("DELETE", f"/connections/{quote(id, safe='')}", query=query)
    click.echo(f"Closed {id}.")


_UNITS: Final = {"m": 60, "h": 3600, "d": 86_400}


def _when(text: str) -> str:
    """A time, given as one or as a duration from now."""
    if text == "now":
        return timestamp(time.time())
    if found := re.fullmatch(r"([0-9]{1,6})([mhd])", text):
        return timestamp(time.time() + int(found[1]) * _UNITS[found[2]])
    try:
        return timestamp(milliseconds(text) / 1000)
    except ValueError:
        raise click.BadParameter(
            f"'{text}' is neither a time, such as 2027-01-31T12:00:00Z, nor a duration, such as 30d"
        ) from None
