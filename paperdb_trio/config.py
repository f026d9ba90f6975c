"""Every setting of the server, once: name, type, default, unit, meaning.

Law: the command line's options, the environment variables `PAPERDB_…`, the keys of the TOML file, the
help text and the table in docs/operations.md are all read from `Settings`; nothing else names a default.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
import tomllib
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from paperdb_trio.errors import StartupError
from paperdb_trio.origins import Origins, parse_origins
from paperdb_trio.store_url import check_store_url

MAX_WORKERS: Final = 256


def _setting(
    default: Any, help: str, low: float | None = None, high: float | None = None, *, secret: bool = False
) -> Any:
    return field(default=default, metadata={"help": help, "low": low, "high": high, "secret": secret})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The settings of `paperdb serve`. Times in seconds, sizes in bytes."""

    data: str = _setting("./paperdb-data", "Directory of the database; created if missing.")
    store: str = _setting(
        "",
        "A PostgreSQL database in place of the directory's: postgresql://user:password@host/name.",
        secret=True,
    )
    host: str = _setting("127.0.0.1", "Address to listen on.")
    port: int = _setting(8000, "Port to listen on; 0: any free port.", 0, 65535)

    workers: str = _setting(
        "1",
        "Processes that serve clients, beside one that writes; auto: one a core; 1: a single process does all.",
    )

    tls_cert: str = _setting("", "PEM file with the certificate chain; with it, the port speaks TLS.")
    tls_key: str = _setting("", "PEM file with the certificate's private key, unencrypted.")
    tls_self_signed: bool = _setting(
        False, "TLS with a certificate that the server creates itself, for trying out."
    )
    trusted_proxies: str = _setting(
        "127.0.0.1,::1",
        "Proxies whose X-Forwarded-For the server trusts: addresses or networks, separated by commas.",
    )

    max_connections: int = _setting(
        15_000, "Open connections in total, and HTTP/2 streams in total; beyond this, 503.", 1
    )
    max_connections_per_address: int = _setting(
        1000, "The same per client address, except trusted proxies; 0: no limit.", 0
    )
    max_connections_per_database: int = _setting(
        0, "WebSockets, event streams and long polls per database; 0: no limit.", 0
    )
    requests_per_second: float = _setting(
        0.0, "Requests per second and API key, on average; beyond this, 429. 0: no limit.", 0
    )
    tokens_per_second: float = _setting(
        1000.0, "Tokens minted per second and API key, on average; beyond this, 429. 0: no limit.", 0
    )
    max_subscriptions: int = _setting(100, "Collections and live queries per connection.", 1)
    max_residual_queries: int = _setting(
        100, "Live queries per database that no index finds, so that each change is held against them.", 0
    )
    max_query_values: int = _setting(200, "Values that one live query compares with.", 1)
    head_timeout: float = _setting(10.0, "Seconds within which a request's head must arrive.", 0.1)
    max_head_bytes: int = _setting(16_384, "Bytes of a request's head.", 1024)
    max_body_bytes: int = _setting(16 * 1024 * 1024, "Bytes of a request's body.", 1024)
    body_timeout: float = _setting(60.0, "Seconds within which a request's body must arrive.", 0.1)
    keep_alive_timeout: float = _setting(30.0, "Seconds after which an idle HTTP connection closes.", 0.1)
    write_timeout: float = _setting(
        30.0, "Seconds within which an HTTP client must read 64 KiB of its response.", 0.1
    )
    max_pending_bytes: int = _setting(
        512 * 1024 * 1024,
        "Bytes of large responses and bodies that wait for slow clients, in total; beyond this, 503.",
        1,
    )
    drain_timeout: float = _setting(
        5.0, "Seconds within which requests and sockets must finish after SIGTERM.", 0.0
    )

    durability: str = _setting(
        "disk", "What an acknowledged write survives: disk, a power cut; process, a crash of the server only."
    )
    max_document_bytes: int = _setting(1024 * 1024, "Bytes of one document's JSON.", 1024)
    max_bulk_documents: int = _setting(1000, "Documents per bulk request, operations per batch.", 1, 10_000)
    query_timeout: float = _setting(5.0, "Seconds after which a query stops with 503.", 0.01)
    cache_bytes: int = _setting(32 * 1024 * 1024, "Bytes of documents cached in memory, for gets by id.", 0)
    max_result_bytes: int = _setting(
        32 * 1024 * 1024, "Bytes of the documents of one find; at least --max-document-bytes.", 1024 * 1024
    )

    index_after: int = _setting(
        10,
        "Slow finds that would use the same index, after which the server creates it; 0: it creates none.",
        0,
    )
    max_wal_bytes: int = _setting(
        64 * 1024 * 1024,
        "Bytes of the write-ahead log; beyond this, reads pause for a moment so that it can start over.",
        1024 * 1024,
    )

    reserve_bytes: int = _setting(
        8 * 1024 * 1024,
        "Bytes of disk space kept for the writes that free space when the disk is full; 0: none.",
        0,
    )

    queue_events: int = _setting(
        1000, "Batches of events that wait for one live subscriber; beyond this, it is fed from the log.", 1
    )
    queue_bytes: int = _setting(
        256 * 1024,
        "Bytes of events that wait for one live subscriber; beyond this, it is fed from the log.",
        1024,
    )
    max_message_bytes: int = _setting(65_536, "Bytes of one message from a WebSocket client.", 128)
    ping_interval: float = _setting(15.0, "Seconds of silence after which a WebSocket is pinged.", 0.1)
    ping_timeout: float = _setting(20.0, "Seconds within which a client must respond to a ping.", 0.1)
    max_wait: float = _setting(60.0, "Seconds that a long poll may wait.", 1)

    retention_age: float = _setting(7 * 86_400.0, "Seconds for which the log keeps a change.", 0.0)
    retention_count: int = _setting(1_000_000, "Changes that the log of each database keeps.", 0)

    webhook_timeout: float = _setting(
        10.0, "Seconds within which a webhook's receiver must respond with 2xx.", 0.1
    )
    webhook_dead_after: float = _setting(
        3 * 86_400.0, "Seconds of nothing but failures after which a webhook gives up.", 0.0
    )
    webhook_addresses: str = _setting(
        "any", "Where webhooks may post to: any address; public, only those of the public Internet."
    )

    backup_every: float = _setting(0.0, "Seconds between two backups that the server makes; 0: none.", 0)
    backup_to: str = _setting("", "Where it keeps them: a directory, or s3://bucket/prefix.")
    backup_keep: int = _setting(7, "How many of these it keeps; older ones are removed.", 1)
    backup_endpoint: str = _setting(
        "https://s3.amazonaws.com",
        "Server of an s3:// address; credentials come from AWS_ACCESS_KEY_ID and so on.",
    )

    http: str = _setting("raw", "Server for HTTP/1.1: raw, our own loop; quart, Quart on Hypercorn (slower).")
    allowed_origins: str = _setting(
        "*", "Allowed web origins, separated by commas, such as https://*.example.com; *: any."
    )
    metrics_key: str = _setting(
        "",
        "Bearer key that /metrics needs, and that shows each database; empty: totals, for anyone.",
        secret=True,
    )
    demo: bool = _setting(False, "Write example messages into the collection messages, about one per second.")
    log_level: str = _setting("info", "Lowest level that is logged to stderr: debug, info, warning or error.")
    log_format: str = _setting("text", "Form of a log line: text, or json, one object per line.")
    access_log: str = _setting(
        "off", "A log line per request: off; sampled, for each --access-log-every-th; on, for each."
    )
    access_log_every: int = _setting(100, "Requests per line of --access-log sampled.", 1)
    slow_query_ms: int = _setting(
        500, "Milliseconds after which a find or count is logged, with its plan; 0: none is.", 0
    )

    def __post_init__(self) -> None:
        for setting in dataclasses.fields(self):
            low, high = setting.metadata["low"], setting.metadata["high"]
            value = getattr(self, setting.name)
            if isinstance(value, bool):
                continue
            if (low is not None and not value >= low) or (high is not None and not value <= high):  # nor NaN
                wanted = f"at least {low}" if high is None else f"{low} to {high}"
                raise StartupError(f"Setting '{setting.name}' is {value}; expected {wanted}", 2)
        if self.workers != "auto" and not (self.workers.isdecimal() and 1 <= int(self.workers) <= MAX_WORKERS):
            raise StartupError(
                f"Setting 'workers' is '{self.workers}'; expected 1 to {MAX_WORKERS}, or auto", 2
            )
        for name, words in _WORDS.items():
            if getattr(self, name) not in words:
                expected = f"{', '.join(words[:-1])} or {words[-1]}"
                raise StartupError(f"Setting '{name}' is '{getattr(self, name)}'; expected {expected}", 2)
        parse_origins(self.allowed_origins)
        if self.store:
            check_store_url(self.store)
        if self.backup_every and (self.store or not self.backup_to):
            expected = "is for a data directory" if self.store else "needs 'backup_to'"
            raise StartupError(f"Setting 'backup_every' {expected}", 2)
        if not self.backup_endpoint.startswith(("http://", "https://")):
            raise StartupError("Setting 'backup_endpoint' must be like https://s3.example.com", 2)
        if self.store and self.worker_count > 1:
            raise StartupError(
                "Setting 'workers' is for a data directory: with 'store', start a server for each core", 2
            )
        if self.max_document_bytes > self.max_result_bytes:  # it could be written and never be read
            raise StartupError(
                f"Setting 'max_document_bytes' is {self.max_document_bytes}; expected at most "
                f"'max_result_bytes', which is {self.max_result_bytes}",
                2,
            )

    @property
    def worker_count(self) -> int:
        return min(len(os.sched_getaffinity(0)), MAX_WORKERS) if self.workers == "auto" else int(self.workers)

    @property
    def origins(self) -> Origins:
        return parse_origins(self.allowed_origins)


_WORDS: Final = {
    "http": ("raw", "quart"),
    "durability": ("disk", "process"),
    "log_level": ("debug", "info", "warning", "error"),
    "log_format": ("text", "json"),
    "access_log": ("off", "sampled", "on"),
    "webhook_addresses": ("any", "public"),
}
"""The settings that are one of a few words."""


def setting_type(setting: dataclasses.Field[Any]) -> type:
    """`str`, `int`, `float` or `bool` of a field of `Settings`."""
    return {"str": str, "int": int, "float": float, "bool": bool}[str(setting.type)]


def read_toml(path: str) -> dict[str, Any]:
    """The settings in a TOML file. Raises a `StartupError` that names an unknown key and the nearest one."""
    try:
        values = tomllib.loads(Path(path).read_text("utf-8-sig"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise StartupError(f"Cannot read the config file {path}: {error}", 2) from None
    known = {setting.name: setting_type(setting) for setting in dataclasses.fields(Settings)}
    for key, value in values.items():
        if key not in known:
            raise StartupError(f"Unknown setting '{key}' in {path}{nearest(key, known)}", 2)
        if key == "workers" and type(value) is int:  # `workers = 2`, as anyone would write it
            value = values[key] = str(value)
        wanted = known[key]
        allowed = (int, float) if wanted is float else wanted
        if not isinstance(value, allowed) or isinstance(value, bool) is not (wanted is bool):
            raise StartupError(f"Setting '{key}' in {path} is {value!r}; expected {wanted.__name__}", 2)
    return values


_PORT_URL: Final = re.compile(r"(tcp|udp|sctp)://\S+:\d+")
_SERVICE: Final = re.compile(  # set by Kubernetes for a service `paperdb` or `paperdb-…`, and by Docker's links
    r"PAPERDB_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_PROTO|_ADDR|(_PORT)?(_START|_END)?))"
    r"|PAPERDB_(NAME|ENV_\w+)"
)


def check_environment(environment: MutableMapping[str, str]) -> str | None:
    """Refuse a `PAPERDB_…` variable that nothing reads: it is most likely a typo.

    Variables that Kubernetes or Docker set for a service of our name are allowed. If PAPERDB_PORT is one of
    them, it is removed and returned.
    """
    known = {f"PAPERDB_{setting.name.upper()}" for setting in dataclasses.fields(Settings)}
    known |= {"PAPERDB_API_KEY", "PAPERDB_CONFIG", "PAPERDB_URL", "PAPERDB_TOKEN"}
    for name, value in environment.items():
        if not name.startswith("PAPERDB_") or name in known or _SERVICE.fullmatch(name):
            continue
        if not (name.endswith("_PORT") and _PORT_URL.fullmatch(value)):
            raise StartupError(f"Unknown environment variable {name}{nearest(name, known)}", 2)
    if _PORT_URL.fullmatch(environment.get("PAPERDB_PORT", "")):
        return environment.pop("PAPERDB_PORT")
    return None


def nearest(name: str, known: Mapping[str, Any] | set[str]) -> str:
    close = difflib.get_close_matches(name, known, 1)
    return f"; did you mean '{close[0]}'?" if close else ""
