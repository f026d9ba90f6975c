"""`paperdb serve`: its options are the settings; a first start prints everything that a newcomer needs."""

from __future__ import annotations

import logging
import os
import shlex
import shutil
import sys
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import click

from paperdb_trio import __version__
from paperdb_trio.auth.keys import check_given_key, hash_key, new_key
from paperdb_trio.cli.base import import_postgres, main
from paperdb_trio.cli.settings import Effective, effective, settings_options
from paperdb_trio.client.groups import leaves
from paperdb_trio.config import Settings
from paperdb_trio.errors import StartupError
from paperdb_trio.files import EXIT_FAILED
from paperdb_trio.logs import set_up as set_up_logs
from paperdb_trio.model import new_id
from paperdb_trio.store.administration import SetUp
from paperdb_trio.store.records import NewKey
from paperdb_trio.store.sqlite import admin
from paperdb_trio.store.sqlite.file import prepare, serving_lock, unusable

log = logging.getLogger("paperdb")


@main.command()
@settings_options
def serve(config: str | None, **given: Any) -> None:
    """Serve a data directory, or a PostgreSQL database (--store), until SIGTERM or SIGINT.

    An option overrides its environment variable, which overrides the TOML file. A key in the TOML file is the
    option's name with underscores. On the first start, PAPERDB_API_KEY becomes the first secret key.
    """
    said = effective(config, given)
    settings = said.settings
    set_up_logs(settings.log_level, settings.log_format)
    if settings.store:
        _serve_node(said)
        return
    # Half a second of imports, which other commands save.
    from paperdb_trio.server.supervisor import run

    with serving_lock(settings.data):
        file = prepare(settings.data, create=True, urgent=True)
        place = _Place(partial(admin.apply, file), partial(admin.has_valid_key, file))
        first_key = _set_up(place) if admin.is_empty(file) else None
        _run(partial(run, settings, file, partial(_announce, said, place, first_key)))


class _Place(NamedTuple):
    """What a start needs of where the database is: `admin.apply`, `admin.has_valid_key`."""

    apply: Callable[..., Any]
    has_valid_key: Callable[..., bool]


def _serve_node(said: Effective) -> None:
    """Serve a PostgreSQL database, as one of its nodes."""
    postgres = import_postgres()
    # Half a second of imports.
    import trio

    from paperdb_trio.server.serving import serve_node

    settings, url = said.settings, said.settings.store
    # For large snapshots, and for a self-signed certificate.
    directory = Path(settings.data)
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise unusable(directory, error) from None
    place = _Place(partial(postgres.apply, url), partial(postgres.has_valid_key, url))
    with closing(postgres.prepare(url, create=True, durable=settings.durability == "disk")) as session:
        postgres.await_turn(session)
        first_key = _set_up(place) if postgres.is_empty(url) else None
    postgres.check_wakes(url)
    _run(partial(trio.run, serve_node, settings, partial(_announce, said, place, first_key)))


def _run(run: Callable[[], None]) -> None:
    failure: BaseException | None = None
    try:
        run()
    except* StartupError as group:
        failure = next(leaves(group))
    except* KeyboardInterrupt:
        pass
    except* Exception as group:
        log.critical("the server failed", exc_info=group)
        failure = SystemExit(EXIT_FAILED)
    if failure is not None:
        raise failure


def _set_up(place: _Place) -> str:
    """Prepare a first start; returns the first key, which is printed at once, because it is not stored."""
    from paperdb_trio.auth.tokens import new_signing_secret

    given = os.environ.get("PAPERDB_API_KEY")
    key = check_given_key(given) if given else new_key("secret")

    def show() -> None:
        if not given:
            click.echo(f"First secret key, shown only now: {click.style(key, bold=True)}")

    first = NewKey(new_id(), "secret", "first", hash_key(key))
    place.apply(SetUp("paperdb serve", first, *new_signing_secret()), show)
    return key


def _announce(said: Effective, place: _Place, first_key: str | None, url: str) -> None:
    """Print the server's address and the first steps. If stdout cannot be written, the server continues."""
    settings = said.settings
    try:
        if first_key is not None and os.environ.get("PAPERDB_API_KEY"):
            click.echo("The first secret key is the one in PAPERDB_API_KEY.")
        click.echo(f"Listening on {url}")
        click.echo(f"Open {url}/ in a browser to see the data live.")
        if settings.durability == "process":
            click.echo("Writes survive a crash of this server, not of this machine (--durability process).")
        if first_key is not None:
            _show_first_steps(settings, first_key, url)
        else:
            _say_how_to_get_a_key(settings, place)
    except (StartupError, BrokenPipeError) as error:
        log.warning("%s; listening on %s", error, url)
    log.info("started paperdb %s on %s; changed settings: %s", __version__, url, said.changed())


def _say_how_to_get_a_key(settings: Settings, place: _Place) -> None:
    given = os.environ.get("PAPERDB_API_KEY")
    if given and not place.has_valid_key(hash_key(given)):
        click.echo("PAPERDB_API_KEY is not a valid key here: only on a first start it becomes one.")
    why = "To create another API key" if place.has_valid_key() else "No API key is valid. To create one"
    where = "--store …" if settings.store else f"--data {shlex.quote(settings.data)}"
    click.echo(f"{why}: {_command()} keys create {where}")


def _command() -> str:
    """How this command is called."""
    return "paperdb" if shutil.which("paperdb") else shlex.quote(os.path.abspath(sys.argv[0]))


def _show_first_steps(settings: Settings, first_key: str, url: str) -> None:
    key = '"$PAPERDB_API_KEY"' if os.environ.get("PAPERDB_API_KEY") else first_key
    bearer = f'-H "Authorization: Bearer {key.strip(chr(34))}" -H "Content-Type: application/json"'
    paperdb = _command()
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
