"""Connecting to PostgreSQL, and stopping what it does.

Law: each call blocks its thread, never the interpreter: libpq's own blocking calls would hold its lock, and the
event loop with it. So does its search for an address, which is done here.
"""

from __future__ import annotations

import select
import socket
import time
from typing import Any, Final

import psycopg
from psycopg import pq
from psycopg.pq import abc

from paperdb_trio.store.postgres import find as finding
from paperdb_trio.store.postgres.wire import ConnectionLost, Statement

CONNECT_SECONDS: Final = 3.0
OPTIONS: Final = {
    "client_encoding": "utf8",
    "fallback_application_name": "paperdb",
    "target_session_attrs": "read-write",
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "20000",
}
"""A server that is gone without a word is noticed after 20 s."""

SETTINGS: Final[tuple[Statement, ...]] = tuple(
    (f"SET {name}={value}", ())
    for name, value in {
        "statement_timeout": "0",
        "lock_timeout": "0",
        "idle_session_timeout": "0",
        "idle_in_transaction_session_timeout": "0",
        "default_transaction_isolation": "'read committed'",
        **finding.SESSION,
        "enable_hashjoin": "off",
        "enable_mergejoin": "off",
        "max_parallel_workers_per_gather": "0",
        "client_min_messages": "warning",
        "tcp_keepalives_idle": "10",
        "tcp_keepalives_interval": "5",
        "tcp_keepalives_count": "3",
        "tcp_user_timeout": "20000",
        "search_path": "paperdb",
    }.items()
)
"""What each session begins with, whatever its role or database has set. Deadlines are ours, and idle
connections stay, but not those of a node that is gone without a word: PostgreSQL would keep them for two hours.
Each statement has one good plan, whatever was measured of its tables: rows by key, one after the other. With
statistics of an empty table, PostgreSQL would choose scans and hashes: 5,400 documents/s instead of 30,000."""


def connect(url: str) -> abc.PGconn:
    """To the first of its addresses that can be written to. Raises `ConnectionLost`."""
    errors: list[str] = []
    for host in _hosts(url):
        try:
            addresses = _addresses(host)
        except (OSError, UnicodeError) as error:
            errors.append(f"no address of the host '{host['host']}': {error}")
            continue
        for address in addresses:
            try:
                connection = pq.PGconn.connect_start(_text({**host, **address}))
            except psycopg.Error as error:
                errors.append(str(error))
                continue
            message = _wait(connection)
            if connection.status == pq.ConnStatus.OK:
                return connection
            errors.append((message or connection.get_error_message()).strip())
            connection.finish()
    raise ConnectionLost("; ".join(errors))


def cancel(connection: abc.PGconn) -> None:
    """Ask PostgreSQL to stop the connection's statement. Raises `ConnectionLost`."""
    cancelling = connection.cancel_conn()
    try:
        cancelling.start()
        if message := _wait(cancelling):
            raise ConnectionLost(message)
    except psycopg.Error as error:
        raise ConnectionLost(str(error)) from None
    finally:
        cancelling.finish()


def _wait(connection: Any) -> str:
    """Until it is connected, or has failed. Returns why it has taken too long, if it has."""
    poll = connection.poll if isinstance(connection, pq.PGcancelConn) else connection.connect_poll
    deadline = time.monotonic() + CONNECT_SECONDS
    status: int = pq.PollingStatus.WRITING
    while connection.status != pq.ConnStatus.BAD:
        waiting = select.poll()
        waiting.register(
            connection.socket, select.POLLOUT if status == pq.PollingStatus.WRITING else select.POLLIN
        )
        if not waiting.poll(max(deadline - time.monotonic(), 0) * 1000):
            return f"no response within {CONNECT_SECONDS:g} s"
        status = poll()
        if status not in (pq.PollingStatus.READING, pq.PollingStatus.WRITING):
            break
    return ""


def _hosts(url: str) -> list[dict[str, str]]:
    """The connection's parameters for each of its hosts: libpq would wait for a host that says nothing, and try
    no other."""
    try:
        options = pq.Conninfo.parse(url.encode())
    except psycopg.Error as error:
        raise ConnectionLost(str(error)) from None
    found = {option.keyword.decode(): option.val.decode() for option in options if option.val} | OPTIONS
    lists: dict[str, list[str]] = {
        name: found.pop(name).split(",") for name in ("host", "hostaddr", "port") if name in found
    }
    count = max(len(lists.get(name, "")) for name in ("host", "hostaddr"))
    hosts = []
    for number in range(max(count, 1)):
        own = {name: values[min(number, len(values) - 1)] for name, values in lists.items()}
        hosts.append({**found, **own})
    return hosts


def _addresses(parameters: dict[str, str]) -> list[dict[str, str]]:
    """What to add to the parameters of a host, for each of its addresses. Raises `OSError`, `UnicodeError`."""
    host = parameters.get("host", "")
    if "hostaddr" in parameters or not host or host.startswith(("/", "@")):
        return [{}]
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return [{"hostaddr": str(address[0])} for *_, address in found]


def _text(parameters: dict[str, str]) -> bytes:
    return " ".join(f"{name}='{_quoted(value)}'" for name, value in parameters.items()).encode()


def _quoted(value: str) -> str:
    return value.replace("\\", "\\\\").replace("'", "\\'")
