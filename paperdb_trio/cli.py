"""The command `paperdb`.

Law: reads options, calls one function, prints its result. Answers go to stdout, everything else to
stderr; what went wrong is one line there, and an exit code that says what kind it was.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import platform
import shlex
import shutil
import sqlite3
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click
import trio

from paperdb_trio import __version__
from paperdb_trio.auth.keys import check_given_key, hash_key, new_key
from paperdb_trio.auth.tokens import new_signing_secret
from paperdb_trio.config import Settings, check_environment, nearest, read_toml, setting_type
from paperdb_trio.errors import StartupError
from paperdb_trio.model import new_id
from paperdb_trio.store import admin
from paperdb_trio.store.schema import prepare, serving_lock

EXIT_FAILED = 70


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
            click.echo(f"paperdb: {error}", err=True)
            ctx.exit(error.exit_code)


def _version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
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


data_option = click.option(
    "--data",
    default="./paperdb-data",
    show_default=True,
    envvar="PAPERDB_DATA",
    help="Directory of the database.",
)


# --- serve ---------------------------------------------------------------------------------------


def _serve_options(command: Callable[..., None]) -> Callable[..., None]:
    for setting in reversed(dataclasses.fields(Settings)):
        command = click.option(
            f"--{setting.name.replace('_', '-')}",
            setting.name,
            type=setting_type(setting),
            is_flag=setting_type(setting) is bool,
            default=None,
            envvar=f"PAPERDB_{setting.name.upper()}",
            show_envvar=True,
            help=f"{setting.metadata['help']}  [default: {setting.default}]",
        )(command)
    return command


@main.command()
@_serve_options
@click.option(
    "--config", envvar="PAPERDB_CONFIG", show_envvar=True, help="TOML file with any of these settings."
)
def serve(config: str | None, **given: Any) -> None:
    """Serve a data directory until SIGTERM or SIGINT.

    A setting given here goes before its environment variable, and that before the TOML file, where its
    key is the option's name with underscores. PAPERDB_API_KEY becomes the first secret key on first start.
    """
    check_environment(os.environ)
    values = read_toml(config) if config else {}
    values.update({name: value for name, value in given.items() if value is not None})
    settings = Settings(**values)
    logging.basicConfig(
        stream=sys.stderr,
        level=settings.log_level.upper(),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    for library in ("trio-websocket", "hypercorn", "quart", "httpx"):
        logging.getLogger(library).setLevel(logging.WARNING)
    from paperdb_trio.server import serve as run_server  # half a second of imports that other commands save

    with serving_lock(settings.data):
        file = prepare(settings.data, create=True)
        first_key = _set_up(file) if admin.is_empty(file) else None
        try:
            trio.run(partial(run_server, settings, file, partial(_announce, settings, first_key)))
        except* StartupError as group:
            raise group.exceptions[0] from None
        except* KeyboardInterrupt:
            pass
        except* Exception as group:
            logging.getLogger("paperdb").critical("the server failed", exc_info=group)
            sys.exit(EXIT_FAILED)


def _set_up(file: Path) -> str:
    """Prepare a first start; returns the first key. It is printed at once: it is stored nowhere."""
    given = os.environ.get("PAPERDB_API_KEY")
    key = check_given_key(given) if given else new_key("secret")
    admin.set_up(file, admin.NewKey(new_id(), "secret", "first", hash_key(key)), *new_signing_secret())
    if given:
        click.echo("The first secret key is the one in PAPERDB_API_KEY.")
    else:
        click.echo(f"First secret key, shown only now: {click.style(key, bold=True)}")
    return key


def _announce(settings: Settings, first_key: str | None, url: str) -> None:
    click.echo(f"Listening on {url}")
    if first_key is not None:
        key = '"$PAPERDB_API_KEY"' if os.environ.get("PAPERDB_API_KEY") else first_key
        bearer = f'-H "Authorization: Bearer {key.strip(chr(34))}" -H "Content-Type: application/json"'
        paperdb = "paperdb" if shutil.which("paperdb") else shlex.quote(os.path.abspath(sys.argv[0]))
        curl = "curl"
        if settings.tls_self_signed:
            certificate = shlex.quote(str(Path(settings.data, "tls-self-signed.crt").absolute()))
            curl, paperdb = f"curl --cacert {certificate}", f"SSL_CERT_FILE={certificate} {paperdb}"
        for title, command in (
            (
                "Mint a token",
                f"""{curl} -X POST {url}/realtime/token {bearer} -d '{{"collections": ["messages"]}}'""",
            ),
            ("Listen (leave it running)", f"{paperdb} listen messages --url {url} --key {key}"),
            ("Insert", f"""{curl} -X POST {url}/messages/docs {bearer} -d '{{"text": "Hello, world"}}'"""),
        ):
            click.echo(f"\n{click.style('# ' + title, fg='cyan')}\n{command}")
        click.echo()
    sys.stdout.flush()


# --- databases and keys --------------------------------------------------------------------------


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
        f"Created the database '{name}' on plan {plan}. Give it a key: paperdb keys create --database {name}"
    )


@databases.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@data_option
def databases_list(as_json: bool, data: str) -> None:
    """List the databases."""
    _print_rows(admin.list_databases(prepare(data, create=False)), as_json)


@databases.command("set-plan")
@click.argument("name")
@click.argument("plan", type=click.Choice(admin.PLANS))
@data_option
def databases_set_plan(name: str, plan: str, data: str) -> None:
    """Put the database NAME on PLAN. A running server acts on it within a second."""
    admin.set_plan(prepare(data, create=False), name, plan)
    click.echo(f"The database '{name}' is on plan {plan} now.")


@main.group(cls=Group)
def keys() -> None:
    """API keys."""


@keys.command("create")
@click.option("--database", default="default", show_default=True)
@click.option("--public", is_flag=True, help="A key that can only read.")
@click.option("--label", default="", help="A note for yourself.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@data_option
def keys_create(database: str, public: bool, label: str, as_json: bool, data: str) -> None:
    """Create a key. It is shown once."""
    kind = "public" if public else "secret"
    key, id = new_key(kind), new_id()
    admin.add_key(prepare(data, create=False), database, admin.NewKey(id, kind, label, hash_key(key)))
    if as_json:
        click.echo(json.dumps({"id": id, "key": key, "database": database, "kind": kind}))
    else:
        click.echo(
            f"{kind.capitalize()} key {id} for '{database}', shown only now: {click.style(key, bold=True)}"
        )


@keys.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@data_option
def keys_list(as_json: bool, data: str) -> None:
    """List the keys (not the keys themselves: nobody has those)."""
    _print_rows(admin.list_keys(prepare(data, create=False)), as_json)


@keys.command("revoke", context_settings={"ignore_unknown_options": True})  # an id may begin with '-'
@click.argument("id")
@data_option
def keys_revoke(id: str, data: str) -> None:
    """Revoke the key ID. Its tokens end with it, live connections within a second."""
    admin.revoke_key(prepare(data, create=False), id)
    click.echo(f"Revoked {id}.")


@keys.command("rotate-signing")
@data_option
def keys_rotate_signing(data: str) -> None:
    """Sign new tokens with a new secret. Tokens of the former one live on until they expire."""
    kid, secret = new_signing_secret()
    admin.add_signing_secret(prepare(data, create=False), kid, secret)
    click.echo(f"New tokens are signed with {kid} now.")


def _print_rows(rows: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(rows))
        return
    for row in rows:
        click.echo("  ".join(f"{name}={value}" for name, value in row.items() if value not in (None, "")))


# --- listen --------------------------------------------------------------------------------------


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
    nothing is missed or repeated.
    """
    if since is not None and since != "now" and not (since.isascii() and since.isdigit()):
        raise click.BadParameter(f"'{since}' is neither a seq nor 'now'", param_hint="--since")
    if token is None and key is None:
        raise click.UsageError("Give a --key (or PAPERDB_API_KEY) or a --token (or PAPERDB_TOKEN)")

    from paperdb_trio.client.listen import listen as listen_to  # imports that other commands save

    def status(text: str) -> None:
        click.echo(f"paperdb: {text}", err=True)

    def event(text: str) -> None:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()

    try:
        seq = None if since in (None, "now") else int(since)
        trio.run(listen_to, url, list(collections), seq, key, token, event, status)
    except* StartupError as group:
        raise group.exceptions[0] from None
    except* KeyboardInterrupt:
        pass
    except* BrokenPipeError:  # `| head`: nobody reads on; keep Python from telling so at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
