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
OPTIONS: Final = (
    "client_encoding=utf8&fallback_application_name=paperdb&target_session_attrs=read-write"
    "&keepalives_idle=10&keepalives_interval=5&keepalives_count=3&tcp_user_timeout=20000"
)
"""A server that is gone without a word is noticed after 20 s."""

SETTINGS: Final[tuple[Statement, ...]] = tuple(
    (f"SET {name}={value}", ())
    for name, value in {
        **finding.SESSION,
        "enable_hashjoin": "off",
        "enable_mergejoin": "off",
        "max_parallel_workers_per_gather": "0",
        "client_min_messages": "warning",
        "search_path": "paperdb",
    }.items()
)
"""What each session begins with. So each statement has one good plan, whatever was measured of its tables: rows
by key, one after the other. With statistics of an empty table, PostgreSQL would choose scans and hashes: 5,400
documents/s instead of 30,000."""


def connect(url: str) -> abc.PGconn:
    """Raises `ConnectionLost`."""
    try:
        connection = pq.PGconn.connect_start(_resolved(f"{url}{'&' if '?' in url else '?'}{OPTIONS}"))
    except (psycopg.Error, OSError) as error:
        raise ConnectionLost(str(error)) from None
    message = _wait(connection)
    if connection.status != pq.ConnStatus.OK:
        message = message or connection.get_error_message()
        connection.finish()
        raise ConnectionLost(message)
    return connection


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


def _resolved(url: str) -> bytes:
    """The connection's parameters, with the addresses of its hosts."""
    found = {option.keyword.decode(): option.val for option in pq.Conninfo.parse(url.encode()) if option.val}
    hosts = found.get("host", b"").decode().split(",")
    if "hostaddr" not in found and any(host and not host.startswith(("/", "@")) for host in hosts):
        addresses = ["" if host.startswith(("/", "@")) else _address(host) for host in hosts]
        found["hostaddr"] = ",".join(addresses).encode()
    return b" ".join([b"%b='%b'" % (name.encode(), _quoted(value)) for name, value in found.items()])


def _address(host: str) -> str:
    return str(socket.getaddrinfo(host or "localhost", None, type=socket.SOCK_STREAM)[0][4][0])


def _quoted(value: bytes) -> bytes:
    return value.replace(b"\\", b"\\\\").replace(b"'", b"\\'")
