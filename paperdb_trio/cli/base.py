"""Shared by all commands: the group, its one line for a failure, `--data`.

Law: results go to stdout, everything else to stderr. A failure is one line there, and an exit code that says
which kind it is.
"""

from __future__ import annotations

import logging
import os
import platform
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from paperdb_trio import __version__
from paperdb_trio.cli.streams import cannot_write, open_standard_streams
from paperdb_trio.config import check_environment, nearest
from paperdb_trio.errors import StartupError
from paperdb_trio.store.sqlite import library as sqlite
from paperdb_trio.store_url import check_store_url

# Only `serve` logs. Any other command reports a failure in its one line, without the writer's log lines.
logging.getLogger("paperdb").addHandler(logging.NullHandler())


class Group(click.Group):
    """Suggests the nearest command for a misspelt one."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            raise click.UsageError(
                f"No such command '{args[0]}'{nearest(args[0], self.commands)}", ctx
            ) from error


class Main(Group):
    """Turns our errors into one line."""

    def main(self, *args: Any, **more: Any) -> Any:
        open_standard_streams()
        try:
            return super().main(*args, **more)
        except StartupError as error:
            click.echo(f"paperdb: {error}", err=True)
            sys.exit(error.exit_code)

    def make_context(self, *args: Any, **more: Any) -> click.Context:
        with _told():
            return super().make_context(*args, **more)

    def invoke(self, ctx: click.Context) -> Any:
        with _told():
            return super().invoke(ctx)


@contextmanager
def _told() -> Iterator[None]:
    """For both of these click would exit with 1, which means something else here."""
    try:
        yield
    except BrokenPipeError as error:
        raise cannot_write(error) from None
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except BaseExceptionGroup as group:  # from a nursery
        if group.split(KeyboardInterrupt)[1] is not None:
            raise
        sys.exit(128 + signal.SIGINT)


def _version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        import trio

        click.echo(
            f"paperdb {__version__} (Python {platform.python_version()}, SQLite {sqlite.VERSION}, "
            f"trio {trio.__version__})"
        )
        ctx.exit()


@click.group(cls=Main, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Show versions."
)
def main() -> None:
    """PaperDB: a realtime document database that anyone can host."""
    port = check_environment(os.environ)
    if port is not None and click.get_current_context().invoked_subcommand in ("serve", "config"):
        click.echo(
            f"paperdb: PAPERDB_PORT={port} describes a service named paperdb and is ignored "
            "(in Kubernetes, enableServiceLinks: false prevents it)",
            err=True,
        )


def import_postgres() -> Any:
    """The module `store.postgres.admin`, for which an extra is needed."""
    try:
        from paperdb_trio.store.postgres import admin
    except ImportError as error:
        raise StartupError(
            f"A store in PostgreSQL needs the extra 'postgres': pip install 'paperdb-trio[postgres]' ({error})",
            2,
        ) from None
    return admin


def _check_store(_ctx: click.Context, _param: click.Parameter, store: str) -> str:
    if store:
        check_store_url(store)
    return store


store_option = click.option(
    "--store",
    default="",
    callback=_check_store,
    envvar="PAPERDB_STORE",
    show_envvar=True,
    help="A PostgreSQL database in place of --data: postgresql://user:password@host/name.",
)

url_option = click.option(
    "--url",
    default="http://127.0.0.1:8000",
    show_default=True,
    envvar="PAPERDB_URL",
    show_envvar=True,
    help="The server.",
)

data_option = click.option(
    "--data",
    default="./paperdb-data",
    show_default=True,
    envvar="PAPERDB_DATA",
    show_envvar=True,
    help="Directory of the database.",
)
