"""Settings: each is named once and checked when read; a misspelt one gets the nearest name as a suggestion."""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path
from typing import Any

import pytest

from paperdb_trio.config import Settings, check_environment, nearest, read_toml, setting_type
from paperdb_trio.errors import StartupError

FIELDS = {setting.name: setting for setting in dataclasses.fields(Settings)}


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    return tmp_path / "paperdb.toml"


def refused(text: str, path: Path) -> str:
    path.write_text(text)
    with pytest.raises(StartupError) as error:
        read_toml(str(path))
    assert error.value.exit_code == 2
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", FIELDS)
def test_every_setting_has_a_help_text_and_a_default_of_its_type(name: str) -> None:
    setting = FIELDS[name]
    assert setting.metadata["help"].endswith(".")
    assert isinstance(setting.default, setting_type(setting))


@pytest.mark.parametrize("name", [name for name in FIELDS if setting_type(FIELDS[name]) is float])
def test_every_time_names_its_unit(name: str) -> None:
    assert "econd" in FIELDS[name].metadata["help"]


def test_setting_that_is_a_secret_is_marked_as_one() -> None:
    """The log and `paperdb config` show the others."""
    secret = {name for name in FIELDS if re.search("key|secret|password|token", name)}
    paths_and_numbers = {"tls_key", "tokens_per_second"}
    assert {name for name in FIELDS if FIELDS[name].metadata["secret"]} >= secret - paths_and_numbers
    assert "metrics_key" in secret


BOUNDED = [
    (name, bound) for name in FIELDS for bound in ("low", "high") if FIELDS[name].metadata[bound] is not None
]


@pytest.mark.parametrize(("name", "bound"), BOUNDED)
def test_bound_is_allowed_and_a_value_beyond_it_is_refused_by_name(name: str, bound: str) -> None:
    setting = FIELDS[name]
    limit = setting_type(setting)(setting.metadata[bound])
    getattr(Settings(**{name: limit}), name)
    beyond: Any = limit + (1 if bound == "high" else -1)
    with pytest.raises(StartupError, match=f"'{name}' is {beyond}") as error:
        Settings(**{name: beyond})
    assert error.value.exit_code == 2


def test_time_that_is_not_a_number_is_refused() -> None:
    with pytest.raises(StartupError):
        Settings(head_timeout=math.nan)


@pytest.mark.parametrize(
    ("name", "value"), [("log_level", "loud"), ("log_level", "INFO"), ("log_level", ""), ("http", "2")]
)
def test_unexpected_word_is_refused(name: str, value: str) -> None:
    with pytest.raises(StartupError, match=f"'{name}' is '{value}'; expected ") as error:
        Settings(**{name: value})  # type: ignore[arg-type]
    assert error.value.exit_code == 2


def test_document_limit_above_the_result_limit_is_refused() -> None:
    with pytest.raises(StartupError, match=r"'max_document_bytes' is 40000000; .*'max_result_bytes'") as error:
        Settings(max_document_bytes=40_000_000)
    assert error.value.exit_code == 2
    Settings(max_document_bytes=40_000_000, max_result_bytes=40_000_000)


@pytest.mark.parametrize(
    ("text", "allowed"),
    [
        ("*", ["https://a", "https://b", "https://c"]),
        ("https://a, https://b ,", ["https://a", "https://b"]),
        ("", []),
        (" , ", []),
    ],
)
def test_origins_are_separated_by_commas(text: str, allowed: list[str]) -> None:
    origins = Settings(allowed_origins=text).origins
    assert [origin for origin in ("https://a", "https://b", "https://c") if origins.allows(origin)] == allowed


def test_toml_file_gives_settings_of_every_type(toml: Path) -> None:
    toml.write_text('data = "d"\nport = 0\nhead_timeout = 5\nbody_timeout = 2.5\n')
    settings = Settings(**read_toml(str(toml)))
    assert (settings.data, settings.port, settings.head_timeout, settings.body_timeout) == ("d", 0, 5, 2.5)
    assert settings.host == FIELDS["host"].default


def test_workers_in_a_toml_file_may_be_a_number(toml: Path) -> None:
    toml.write_text("workers = 2\n")
    assert Settings(**read_toml(str(toml))).worker_count == 2
    assert "expected str" in refused("workers = true\n", toml)


def test_byte_order_mark_before_a_toml_file_is_skipped(toml: Path) -> None:
    toml.write_text("port = 1\n", "utf-8-sig")
    assert read_toml(str(toml)) == {"port": 1}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("prot = 1", ["'prot'", "did you mean 'port'?"]),
        ("max-body-bytes = 1", ["'max-body-bytes'", "did you mean 'max_body_bytes'?"]),
        ("[server]\nport = 1", ["'server'"]),
        ("zzz = 1", ["'zzz'"]),
        ('port = "8000"', ["'port'", "'8000'", "int"]),
        ("port = 80.5", ["'port'", "80.5", "int"]),
        ("port = true", ["'port'", "True"]),
        ("head_timeout = true", ["'head_timeout'"]),
        ("host = 5", ["'host'", "str"]),
        ("port = ", ["Cannot read"]),
        ("port = 1\nport = 2", ["Cannot read"]),
    ],
)
def test_wrong_toml_file_is_refused_with_a_reason(toml: Path, text: str, words: list[str]) -> None:
    message = refused(text, toml)
    assert str(toml) in message
    assert all(word in message for word in words), message


def test_missing_or_binary_toml_file_is_refused(toml: Path) -> None:
    def refused_now() -> None:
        with pytest.raises(StartupError, match="Cannot read the config file"):
            read_toml(str(toml))

    refused_now()
    toml.write_bytes(b"\xff\xfe")
    refused_now()
    toml.unlink()
    toml.mkdir()
    refused_now()


def test_every_setting_has_a_variable_and_a_misspelt_one_is_refused() -> None:
    check_environment({f"PAPERDB_{name.upper()}": "x" for name in FIELDS})
    check_environment(dict.fromkeys(["PATH", "PAPERDB", "PAPERDB_API_KEY", "paperdb_prot"], ""))
    with pytest.raises(
        StartupError, match="PAPERDB_MAX_BODY_BYTE; did you mean 'PAPERDB_MAX_BODY_BYTES'"
    ) as error:
        check_environment({"PAPERDB_MAX_BODY_BYTE": "1"})
    assert error.value.exit_code == 2


def service_variables(name: str, port: str = "8000", protocol: str = "tcp") -> dict[str, str]:
    """The variables that Kubernetes sets for a service, and those that Docker's --link adds
    (kubernetes/pkg/kubelet/envvars/envvars.go; docs.docker.com/engine/network/links)."""
    url = f"{protocol}://10.0.0.1:{port}"
    one = f"{name}_PORT_{port}_{protocol.upper()}"
    return {
        f"{name}_SERVICE_HOST": "10.0.0.1",
        f"{name}_SERVICE_PORT": port,
        f"{name}_SERVICE_PORT_HTTP_API": port,
        f"{name}_PORT": url,
        one: url,
        f"{one}_PROTO": protocol,
        f"{one}_PORT": port,
        f"{one}_ADDR": "10.0.0.1",
    }


def test_variables_of_a_service_of_our_name_are_ignored() -> None:
    link = {
        "PAPERDB_NAME": "/web/paperdb",
        "PAPERDB_ENV_PAPERDB_HOST": "0.0.0.0",
        "PAPERDB_PORT_8000_TCP_START": "tcp://172.17.0.2:8000",
        "PAPERDB_PORT_8000_TCP_PORT_END": "8001",
    }
    for name in ("PAPERDB", "PAPERDB_PRIMARY", "PAPERDB_1"):
        for protocol in ("tcp", "udp", "sctp"):
            environment = {"PAPERDB_HOST": "::", **service_variables(name, protocol=protocol), **link}
            port = check_environment(environment)
            assert port == (f"{protocol}://10.0.0.1:8000" if name == "PAPERDB" else None)
            assert "PAPERDB_PORT" not in environment
            assert environment["PAPERDB_HOST"] == "::"
    ours = {"PAPERDB_PORT": "80"}
    assert check_environment(ours) is None
    assert ours == {"PAPERDB_PORT": "80"}
    assert check_environment({"PAPERDB_PORT": "tcp://[fd00::1]:8000"}) == "tcp://[fd00::1]:8000"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PAPERDB_PORTS", "tcp://10.0.0.1:8000"),
        ("PAPERDB_PROT", "tcp://10.0.0.1:8000"),
        ("PAPERDB_LISTEN_PORT", "8000"),
        ("PAPERDB_PORT_8000", "tcp://10.0.0.1:8000"),
        ("PAPERDB_PORT_HTTP_TCP", "x"),
        ("PAPERDB_PORT_8000_TCP_HOST", "x"),
        ("PAPERDB_SERVICE", "x"),
        ("PAPERDB_SERVICE_HOSTS", "x"),
        ("PAPERDB_ENV", "x"),
        ("PAPERDB_NAMES", "x"),
    ],
)
def test_variables_that_only_resemble_them_are_refused(name: str, value: str) -> None:
    with pytest.raises(StartupError, match=f"{name}\\b"):
        check_environment({name: value})


def test_unfamiliar_name_gets_no_suggestion() -> None:
    assert nearest("zzzzzz", {"port", "host"}) == ""
    assert nearest("pot", {"port", "host"}) == "; did you mean 'port'?"
