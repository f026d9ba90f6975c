"""`paperdb listen`: every change, one per line."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from paperdb_trio.cli.base import main, url_option
from paperdb_trio.client.groups import leaves
from paperdb_trio.errors import StartupError


@main.command()
@click.argument("collections", nargs=-1, required=True)
@url_option
@click.option("--since", help="Seq of the last change seen; later ones come first. Without it: from now on.")
@click.option("--filter", help='Only documents that match it, of one collection: \'{"room": "r1"}\'.')
@click.option("--select", help="Only these fields: text,author.name.")
@click.option(
    "--key",
    envvar="PAPERDB_API_KEY",
    show_envvar=True,
    help="An API key, which mints and renews the tokens.",
)
@click.option("--token", envvar="PAPERDB_TOKEN", show_envvar=True, help="A token, instead of a key.")
def listen(
    collections: tuple[str, ...],
    url: str,
    since: str | None,
    filter: str | None,
    select: str | None,
    key: str | None,
    token: str | None,
) -> None:
    """Print every change of COLLECTIONS as it happens, one JSON object per line.

    Reconnects and resumes by itself. The "seq" of the last line is the cursor: pass it to --since, and
    nothing is missed or repeated. With --filter or --select, "type" is what happened to the view of
    one collection, and "cause" what happened to the document. Exits with 6 when its output cannot be written.
    """
    if since is not None and since != "now" and not (since.isascii() and since.isdigit()):
        raise click.BadParameter(f"'{since}' is neither a seq nor 'now'", param_hint="--since")
    narrowed = _object(filter)
    if (filter is not None or select is not None) and len(set(collections)) > 1:
        raise click.UsageError("--filter and --select take one collection")
    if token is None and key is None:
        raise click.UsageError("Give a --key (or PAPERDB_API_KEY) or a --token (or PAPERDB_TOKEN)")

    # Imports that other commands do without.
    import trio

    from paperdb_trio.cli.follow import follow

    def status(text: str) -> None:
        click.echo(f"paperdb: {text}", err=True)

    def event(text: str) -> None:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()

    failure: BaseException | None = None
    try:
        seq = None if since in (None, "now") else int(since)
        trio.run(follow, url, list(collections), seq, key, token, narrowed, select, event, status)
    except* StartupError as group:
        failure = next(leaves(group))
    except* KeyboardInterrupt:
        pass
    except* BrokenPipeError as group:  # `| head`
        failure = next(leaves(group))
    if failure is not None:
        raise failure


def _object(text: str | None) -> dict[str, Any] | None:
    if text is None:
        return None
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise click.BadParameter(f"expected a JSON object, not {text[:40]}", param_hint="--filter")
    return value
