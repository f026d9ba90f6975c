"""`paperdb serve`: its options are the settings; a first start prints everything that a newcomer needs."""

from __future__ import annotations

import dataclasses
import logging
import os
import shlex
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import click

from paperdb_trio.auth.keys import check_given_key, hash_key, new_key
from paperdb_trio.cli.base import main
from paperdb_trio.client.groups import leaves
from paperdb_trio.config import Settings, read_toml, setting_type
from paperdb_trio.errors import StartupError
from paperdb_trio.model import new_id
from paperdb_trio.store.sqlite import admin
from paperdb_trio.store.sqlite.file import prepare, serving_lock

log = logging.getLogger("paperdb")

EXIT_FAILED: Final = 70


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

    An option overrides its environment variable, which overrides the TOML file. A key in the TOML file is the
    option's name with underscores. On the first start, PAPERDB_API_KEY becomes the first secret key.
    """
    values = read_toml(config) if config else {}
    values.update({name: value for name, value in given.items() if value is not None})
    settings = Settings(**values)
    logging.basicConfig(
        stream=sys.stderr,
        level=settings.log_level.upper(),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    # hpack would log every header, keys and tokens among them.
    for library in ("trio-websocket", "hypercorn", "quart", "httpx", "hpack", "h2"):
        logging.getLogger(library).setLevel(logging.WARNING)
    # Half a second of imports, which other commands save.
    import trio

    from paperdb_trio.server import serve as run_server

    with serving_lock(settings.data):
        file = prepare(settings.data, create=True, urgent=True)
        first_key = _set_up(file) if admin.is_empty(file) else None
        failure: BaseException | None = None
        try:
            trio.run(partial(run_server, settings, file, partial(_announce, settings, first_key)))
        except* StartupError as group:
            failure = next(leaves(group))
        except* KeyboardInterrupt:
            pass
        except* Exception as group:
            log.critical("the server failed", exc_info=group)
            failure = SystemExit(EXIT_FAILED)
        if failure is not None:
            raise failure


def _set_up(file: Path) -> str:
    """Prepare a first start; returns the first key, which is printed at once, because it is not stored."""
    from paperdb_trio.auth.tokens import new_signing_secret

    given = os.environ.get("PAPERDB_API_KEY")
    key = check_given_key(given) if given else new_key("secret")

    def show() -> None:
        if not given:
            click.echo(f"First secret key, shown only now: {click.style(key, bold=True)}")

    admin.set_up(file, admin.NewKey(new_id(), "secret", "first", hash_key(key)), *new_signing_secret(), show)
    return key


def _announce(settings: Settings, first_key: str | None, url: str) -> None:
    """Print the server's address and the first steps. If stdout cannot be written, the server continues."""
    try:
        if first_key is not None and os.environ.get("PAPERDB_API_KEY"):
            click.echo("The first secret key is the one in PAPERDB_API_KEY.")
        click.echo(f"Listening on {url}")
        if settings.durability == "process":
            click.echo("Writes survive a crash of this server, not of this machine (--durability process).")
        if first_key is not None:
            _show_first_steps(settings, first_key, url)
    except (StartupError, BrokenPipeError) as error:
        log.warning("%s; listening on %s", error, url)


def _show_first_steps(settings: Settings, first_key: str, url: str) -> None:
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
