"""What all commands share: the group, its one line for what went wrong, `--data`.

Law: an answer goes to stdout, everything else to stderr; what went wrong is one line there, and an exit
code that says what kind it was.
"""

from __future__ import annotations

import os
import platform
import sqlite3
import sys
from typing import Any

import click

from paperdb_trio import __version__
from paperdb_trio.config import check_environment, nearest
from paperdb_trio.errors import StartupError


class Group(click.Group):
    """Names the nearest command for a misspelt one, and turns our errors into one line."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            raise click.UsageError(
                f"No such command '{args[0]}'{nearest(args[0], self.commands)}", ctx
            ) from error

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except StartupError as error:
            sys.stdout.flush()
            click.echo(f"paperdb: {error}", err=True)
            ctx.exit(error.exit_code)


def _version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        import trio

        click.echo(
            f"paperdb {__version__} (Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}, "
            f"trio {trio.__version__})"
        )
        ctx.exit()


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Show versions."
)
def main() -> None:
    """PaperDB: a realtime document database that anyone can host."""
    check_environment(os.environ)


data_option = click.option(
    "--data",
    default="./paperdb-data",
    show_default=True,
    envvar="PAPERDB_DATA",
    help="Directory of the database.",
)
