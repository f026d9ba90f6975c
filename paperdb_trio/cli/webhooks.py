"""`paperdb webhooks`: where a server posts changes to.

A running server follows changes in its data directory within a second.
"""

from __future__ import annotations

import json
from typing import Any, Final

import click

from paperdb_trio.cli.access import ID_SETTINGS, json_option
from paperdb_trio.cli.administration import Place, Row, place_options, print_rows
from paperdb_trio.cli.base import Group, main
from paperdb_trio.errors import ApiError, StartupError

COLUMNS: Final = ("id", "database", "url", "collection", "state", "seq", "lagChanges", "failures", "error")


@main.group(cls=Group)
def webhooks() -> None:
    """Webhooks: a server posts each change to a URL."""


@webhooks.command("add")
@click.argument("target", metavar="URL")
@click.option("--database", default="default", show_default=True, help="Whose changes.")
@click.option("--collection", help="Only this collection.  [default: all of the database]")
@click.option("--filter", "filter_text", metavar="JSON", help="Only documents that match; needs --collection.")
@json_option
@place_options
def webhooks_add(
    place: Place,
    target: str,
    database: str,
    collection: str | None,
    filter_text: str | None,
    as_json: bool,
) -> None:
    """Post the changes from now on to URL, and show the secret that signs them once."""
    filter = _filter(collection, filter_text)

    def show(row: Row) -> None:
        if as_json:
            click.echo(json.dumps(row))
            return
        secret = click.style(row["secret"], bold=True)
        click.echo(f"Added the webhook {row['id']}. It signs with a secret, shown only now: {secret}")

    place.add_webhook(database, target, collection, filter, show)


def _filter(collection: str | None, text: str | None) -> dict[str, Any] | None:
    """Raises an error unless both are valid."""
    from paperdb_trio.match.query import query
    from paperdb_trio.model import check_collection

    if collection is None:
        if text is not None:
            raise click.UsageError("A --filter needs a --collection")
        return None
    try:
        filter = None if text is None else json.loads(text)
        if not isinstance(filter, dict | None):
            raise click.BadParameter("the filter must be a JSON object")
        query(check_collection(collection), filter)
    except ValueError as error:
        raise click.BadParameter(f"the filter is not JSON: {error}") from None
    except ApiError as error:
        raise StartupError(error.message, 2) from None
    return filter


@webhooks.command("list")
@json_option
@place_options
def webhooks_list(place: Place, as_json: bool) -> None:
    """List the webhooks: where each posts to, how far it is, and why not further."""
    rows = place.webhooks()
    print_rows(rows if as_json else [{name: row[name] for name in COLUMNS} for row in rows], as_json)


@webhooks.command("remove", context_settings=ID_SETTINGS)
@click.argument("id")
@place_options
def webhooks_remove(place: Place, id: str) -> None:
    """Remove the webhook ID. What was not delivered yet never will be."""
    place.remove_webhook(id)
    click.echo(f"Removed {id}.")


@webhooks.command("pause", context_settings=ID_SETTINGS)
@click.argument("id")
@place_options
def webhooks_pause(place: Place, id: str) -> None:
    """Deliver nothing to the webhook ID until it is resumed. It stays where it is."""
    place.pause_webhook(id)
    click.echo(f"Paused {id}.")


@webhooks.command("resume", context_settings=ID_SETTINGS)
@click.argument("id")
@place_options
def webhooks_resume(place: Place, id: str) -> None:
    """Let the paused or dead webhook ID go on where it was, or a failing one try again now."""
    place.resume_webhook(id)
    click.echo(f"The webhook {id} goes on.")


@webhooks.command("test", context_settings=ID_SETTINGS)
@click.argument("id")
@place_options
def webhooks_test(place: Place, id: str) -> None:
    """Send an event of the type 'test' to the webhook ID now."""
    row = place.test_webhook(id)
    if not row["arrived"]:
        raise StartupError(f"The delivery failed: {row['error']}", 1)
    click.echo(f"Delivered in {row['seconds']:.3f} s.")
