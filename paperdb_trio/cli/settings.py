"""The settings as options of a command, which of the sources counts, and `paperdb config`.

Law: an option overrides its environment variable, which overrides the TOML file, which overrides the default.
What is secret is never shown.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

import click
from click.core import ParameterSource

from paperdb_trio.cli.base import main
from paperdb_trio.config import Settings, read_toml, setting_type

DEFAULT: Final = "default"


def settings_options(command: Callable[..., None]) -> Callable[..., None]:
    """Each setting as an option, and `--config`."""
    command = click.option(
        "--config", envvar="PAPERDB_CONFIG", show_envvar=True, help="TOML file with any of these settings."
    )(command)
    for setting in reversed(dataclasses.fields(Settings)):
        command = click.option(
            _option(setting.name),
            setting.name,
            type=setting_type(setting),
            is_flag=setting_type(setting) is bool,
            default=None,
            envvar=_variable(setting.name),
            show_envvar=True,
            help=f"{setting.metadata['help']}  [default: {setting.default}]",
        )(command)
    return command


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _variable(name: str) -> str:
    return f"PAPERDB_{name.upper()}"


class Effective(NamedTuple):
    """The settings, and where each comes from: `default`, a file, a variable or an option."""

    settings: Settings
    sources: Mapping[str, str]

    def changed(self) -> str:
        """The settings that a source other than the default gives, for a log line."""
        said = [
            f"{name}={_shown(name, getattr(self.settings, name))} ({source})"
            for name, source in self.sources.items()
            if source != DEFAULT
        ]
        return ", ".join(said) or "none"


def effective(config: str | None, given: Mapping[str, Any]) -> Effective:
    """The settings of the current command. Raises a `StartupError`."""
    values = read_toml(config) if config else {}
    sources = {setting.name: DEFAULT for setting in dataclasses.fields(Settings)}
    sources.update(dict.fromkeys(values, f"file {config}"))
    context = click.get_current_context()
    for name, value in given.items():
        if value is not None:
            values[name] = value
            by_variable = context.get_parameter_source(name) is ParameterSource.ENVIRONMENT
            sources[name] = _variable(name) if by_variable else _option(name)
    return Effective(Settings(**values), sources)


def _is_hidden(name: str, value: object) -> bool:
    return bool(value) and name in _SECRETS


_SECRETS: Final = {setting.name for setting in dataclasses.fields(Settings) if setting.metadata["secret"]}


def _shown(name: str, value: object) -> str:
    """As TOML, which is JSON here."""
    return "hidden" if _is_hidden(name, value) else json.dumps(value, ensure_ascii=False)


@main.command()
@settings_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def config(config: str | None, as_json: bool, **given: Any) -> None:
    """Print each setting, its value and where it comes from. Takes the options of 'paperdb serve'.

    The output is a TOML file for --config. Secrets are left out.
    """
    settings, sources = effective(config, given)
    values = dataclasses.asdict(settings)
    if as_json:
        listed = {
            name: {"value": None if _is_hidden(name, value) else value, "source": sources[name]}
            | ({"hidden": True} if _is_hidden(name, value) else {})
            for name, value in values.items()
        }
        click.echo(json.dumps(listed))
        return
    lines = {
        name: f"# {name} is hidden" if _is_hidden(name, value) else f"{name} = {_shown(name, value)}"
        for name, value in values.items()
    }
    width = max(map(len, lines.values()))
    for name, line in lines.items():
        click.echo(f"{line:{width}}  # {sources[name]}")
