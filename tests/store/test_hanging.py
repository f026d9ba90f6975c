"""What says nothing any more, and yet keeps its connections: a PostgreSQL server that hangs, a node that hangs.

Who waits for one of them goes on after some seconds, here made short.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio

from paperdb_trio.errors import ApiError
from paperdb_trio.store.postgres import connecting, connection, watcher, writer
from paperdb_trio.store.postgres.schema import LOCK
from paperdb_trio.store.postgres.session import Session
from tests.conftest import Server, wait_until
from tests.postgres import Postgres, postgres_server
from tests.store.test_nodes import Cutter, node, patch, put, until
from tests.store.tools import DATABASE, new_database


@pytest.fixture
def cutter(postgres: Postgres) -> Iterator[Cutter]:
    with closing(Cutter(postgres)) as cutter:
        yield cutter


async def test_a_server_that_hangs_is_left_and_its_commits_are_looked_up(
    postgres_url: str, cutter: Cutter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "PATIENCE_SECONDS", 1)
    monkeypatch.setattr(watcher, "PATIENCE_SECONDS", 1)
    async with node(cutter.url(postgres_url)) as (store, changes):
        await store.submit(put("a", n=0))
        await store.get(DATABASE, "c", "a")
        cutter.hang()  # what is connected already
        written: Any = None
        with trio.fail_after(20):
            while written is None:
                with suppress(ApiError):  # refused: nothing was written
                    written = await store.submit(patch("a", n={"increment": 1}))
        assert (written.seq, [change.seq for change in changes]) == (2, [1, 2])
        await until(lambda: not store._pool._idle)  # nor are its connections for reads used again
        assert await store.get(DATABASE, "c", "a") == (written.data, 2)


async def test_a_node_that_hangs_within_a_transaction_does_not_hold_up_others(
    postgres: Postgres, postgres_url: str, cutter: Cutter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "HELD_MILLISECONDS", 1000)
    waits = "SELECT count(*) FROM pg_stat_activity WHERE state='idle in transaction'"
    async with node(cutter.url(postgres_url)) as (one, _), node(postgres_url) as (other, _):
        await other.submit(put("a", n=0))
        async with trio.open_nursery() as nursery:
            cutter.hang_after = b"FROM heads"  # it has the row's lock, and does not hear of it
            nursery.start_soon(one.submit, patch("a", n={"increment": 1}))
            with postgres.connect() as connection:
                await until(lambda: connection.execute(waits).fetchone() == (1,))
            with trio.fail_after(20):
                assert (await other.submit(patch("a", n={"increment": 5}))).seq == 2
            nursery.cancel_scope.cancel()


async def test_what_a_killed_node_was_reading_ends(
    postgres: Postgres, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "GONE_MILLISECONDS", 100)
    reading = await connection.Connection.open(postgres_url)
    activity = f"SELECT state FROM pg_stat_activity WHERE pid={reading.backend}"
    with postgres.connect() as asking:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(reading.query, "SELECT pg_sleep(60)")
            await until(lambda: asking.execute(activity).fetchone() == ("active",))
            nursery.cancel_scope.cancel()
        reading.close()  # as the kernel does it: nobody asks PostgreSQL to stop the statement
        await until(lambda: asking.execute(activity).fetchone() is None)


def test_a_host_that_says_nothing_is_passed_over(
    postgres: Postgres, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connecting, "CONNECT_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        database = postgres_url.rpartition("?")[0]
        url = f"{database}?host=127.0.0.1,no-such-host.invalid,{postgres.home}&port={port},5432,{postgres.port}"
        with closing(Session(url)) as session:
            assert session.query("SELECT 1") == [(1,)]


async def test_reads_after_a_restart_use_no_connection_of_before(postgres: Postgres, postgres_url: str) -> None:
    async with node(postgres_url) as (store, _):
        await store.submit(put("a", n=0))
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(store.get, DATABASE, "c", "a")
        backends = "FROM pg_stat_activity WHERE datname=current_database() AND pid<>pg_backend_pid()"
        with postgres.connect(postgres_url.rpartition("?")[0].rpartition("/")[2]) as connection:
            old = connection.execute(f"SELECT pid {backends}").fetchall()
            connection.execute(f"SELECT pg_terminate_backend(pid) {backends}")
            gone = f"SELECT count(*) {backends} AND pid=ANY(%s)"
            pids = [pid for (pid,) in old]
            await until(lambda: connection.execute(gone, (pids,)).fetchone() == (0,))
        await until(lambda: not store._pool._idle)
        for _ in range(20):
            assert await store.get(DATABASE, "c", "a")


async def test_what_no_standby_has_is_not_told() -> None:
    with postgres_server() as server:
        database = server.new()
        url = server.url(database)
        new_database(url)
        async with node(url) as (store, _):
            await store.submit(put("a", n=0))
        with server.connect(database) as connection, trio.fail_after(20):

            def wait_for_standbys(names: str) -> None:
                connection.execute(f"ALTER SYSTEM SET synchronous_standby_names='{names}'")
                connection.execute("SELECT pg_reload_conf()")

            waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event='SyncRep'"
            wait_for_standbys("nobody")
            heard: list[int] = []
            publisher: Any = SimpleNamespace(heard=lambda _, head: heard.append(head))
            watching = watcher.Watcher(url, publisher, *[lambda *_: None] * 3)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(watching.run)
                await until(lambda: heard or connection.execute(waiting).fetchone() == (1,))
                assert not heard
                wait_for_standbys("")
                await until(lambda: heard == [1])
                nursery.cancel_scope.cancel()


def test_nodes_that_start_at_the_same_time_share_one_first_start(postgres: Postgres, tmp_path: Path) -> None:
    database = postgres.new()
    options = ("--store", postgres.url(database), "--durability", "process")
    started: list[Server] = []

    def start(number: int) -> None:
        started.append(Server(tmp_path / str(number), options))

    threads: list[Any] = [threading.Thread(target=start, args=(number,)) for number in range(2)]
    with postgres.connect(database) as connection:
        connection.execute("SELECT pg_advisory_lock(%s)", (LOCK,))
        for thread in threads:
            thread.start()
        waiting = "SELECT count(*) FROM pg_locks WHERE locktype='advisory' AND NOT granted"
        wait_until(lambda: connection.execute(waiting).fetchone() == (2,))
    for thread in threads:
        thread.join()
    try:
        assert len(started) == 2
        assert len([server.key for server in started if server.key]) == 1
    finally:
        for server in started:
            server.stop()
