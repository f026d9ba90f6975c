"""`paperdb listen`: every change, a line each."""

from __future__ import annotations

import sys

import click

from paperdb_trio.cli.base import main
from paperdb_trio.errors import StartupError, leaves


@main.command()
@click.argument("collections", nargs=-1, required=True)
@click.option(
    "--url", default="http://127.0.0.1:8000", show_default=True, envvar="PAPERDB_URL", help="The server."
)
@click.option("--since", help="Seq of the last change seen; all after it come first. Without: from now on.")
@click.option("--key", envvar="PAPERDB_API_KEY", help="An API key; tokens are minted and renewed with it.")
@click.option("--token", envvar="PAPERDB_TOKEN", help="A token, instead of a key.")
def listen(
    collections: tuple[str, ...], url: str, since: str | None, key: str | None, token: str | None
) -> None:
    """Print every change of COLLECTIONS, one JSON object a line, as it happens.

    Reconnects and resumes by itself. The "seq" of the last line is the cursor: give it to --since and
    nothing is missed or repeated. Ends with 6 when nobody takes its lines.
    """
    if since is not None and since != "now" and not (since.isascii() and since.isdigit()):
        raise click.BadParameter(f"'{since}' is neither a seq nor 'now'", param_hint="--since")
    if token is None and key is None:
        raise click.UsageError("Give a --key (or PAPERDB_API_KEY) or a --token (or PAPERDB_TOKEN)")

    # Imports that other commands save.
    import trio

    from paperdb_trio.client.listen import listen as listen_to

    def status(text: str) -> None:
        click.echo(f"paperdb: {text}", err=True)

    def event(text: str) -> None:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()

    failure: BaseException | None = None
    try:
        seq = None if since in (None, "now") else int(since)
        trio.run(listen_to, url, list(collections), seq, key, token, event, status)
    except* StartupError as group:
        failure = next(leaves(group))
    except* KeyboardInterrupt:
        pass
    except* BrokenPipeError as group:  # `| head`
        failure = next(leaves(group))
    if failure is not None:
        raise failure
