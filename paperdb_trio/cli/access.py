"""`paperdb databases` and `paperdb keys`: who may use a server. A running server follows within a second."""

from __future__ import annotations

import json
from typing import Any

import click

from paperdb_trio.auth.keys import hash_key, new_key
from paperdb_trio.cli.base import Group, data_option, main
from paperdb_trio.model import new_id
from paperdb_trio.store.sqlite import admin
from paperdb_trio.store.sqlite.file import prepare


@main.group(cls=Group)
def databases() -> None:
    """Databases and their plans."""


@databases.command("create")
@click.argument("name")
@click.option("--plan", type=click.Choice(admin.PLANS), required=True)
@data_option
def databases_create(name: str, plan: str, data: str) -> None:
    """Create the database NAME."""
    admin.create_database(prepare(data, create=False), name, plan)
    click.echo(
        f"Created the database '{name}' on plan {plan}. Create a key: paperdb keys create --database {name}"
    )


@databases.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@data_option
def databases_list(as_json: bool, data: str) -> None:
    """List the databases."""
    _print_rows(admin.list_databases(prepare(data, create=False, write=False)), as_json)


@databases.command("set-plan")
@click.argument("name")
@click.argument("plan", type=click.Choice(admin.PLANS))
@data_option
def databases_set_plan(name: str, plan: str, data: str) -> None:
    """Put the database NAME on PLAN. A running server follows within a second."""
    admin.set_plan(prepare(data, create=False, urgent=True), name, plan)
    click.echo(f"The database '{name}' is now on plan {plan}.")


@main.group(cls=Group)
def keys() -> None:
    """API keys."""


@keys.command("create")
@click.option("--database", default="default", show_default=True, help="The key's database.")
@click.option("--public", is_flag=True, help="A key that can only read.")
@click.option("--label", default="", help="A note for yourself.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@data_option
def keys_create(database: str, public: bool, label: str, as_json: bool, data: str) -> None:
    """Create a key, and show it once."""
    kind = "public" if public else "secret"
    key, id = new_key(kind), new_id()

    def show() -> None:
        if as_json:
            click.echo(json.dumps({"id": id, "key": key, "database": database, "kind": kind}))
        else:
            click.echo(
                f"{kind.capitalize()} key {id} for '{database}', shown only now: {click.style(key, bold=True)}"
            )

    admin.add_key(prepare(data, create=False), database, admin.NewKey(id, kind, label, hash_key(key)), show)


@keys.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@data_option
def keys_list(as_json: bool, data: str) -> None:
    """List the keys by id, kind and label. The keys themselves are not stored."""
    _print_rows(admin.list_keys(prepare(data, create=False, write=False)), as_json)


# An id may begin with '-' and contain an 'h'. Neither is an option, least of all -h, which would exit with 0.
@keys.command("revoke", context_settings={"ignore_unknown_options": True, "help_option_names": ["--help"]})
@click.argument("id")
@data_option
def keys_revoke(id: str, data: str) -> None:
    """Revoke the key ID. Its tokens and their live connections end within a second."""
    admin.revoke_key(prepare(data, create=False, urgent=True), id)
    click.echo(f"Revoked {id}.")


@keys.command("rotate-signing")
@data_option
def keys_rotate_signing(data: str) -> None:
    """Sign new tokens with a new secret. Tokens of the old one stay valid until they expire."""
    from paperdb_trio.auth.tokens import new_signing_secret

    kid, secret = new_signing_secret()
    admin.add_signing_secret(prepare(data, create=False, urgent=True), kid, secret)
    click.echo(f"New tokens are now signed with {kid}.")


def _print_rows(rows: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(rows))
        return
    for row in rows:
        click.echo("  ".join(f"{name}={value}" for name, value in row.items() if value not in (None, "")))
