"""A standby that takes over: seqs that clients have seen never mean other changes, and nobody else notices."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from websockets.exceptions import ConnectionClosed

from paperdb_trio.errors import ApiError
from paperdb_trio.hooks.reading import read
from paperdb_trio.realtime.protocol import CloseCode
from paperdb_trio.store.housekeeping import Trim
from paperdb_trio.store.operations import Written
from paperdb_trio.store.postgres.engine import PostgresStore
from paperdb_trio.store.protocol import EventText
from paperdb_trio.store.revocations import Revocation
from paperdb_trio.store.rowkeys import JUMP
from tests.auth.commands import run_here
from tests.conftest import Server, receive, wait_until
from tests.postgres import Postgres, postgres_server
from tests.store.test_nodes import node, put, until
from tests.store.tools import DATABASE, new_database, rows


class Pair:
    """A primary and its standby, which has everything until `part`."""

    def __init__(self, primary: Postgres, standby: Postgres) -> None:
        self.primary, self.standby = primary, standby
        self.database = "app"
        hosts = ",".join(str(server.home) for server in (primary, standby))
        self.url = f"postgresql://postgres@/{self.database}?host={hosts}"

    def part(self) -> None:
        """The standby gets nothing from now on."""
        wait_until(self.is_level)
        self.standby.stop()

    def is_level(self) -> bool:
        """Whether the standby has everything."""
        with self.primary.connect() as connection:
            level = "SELECT count(*) FROM pg_stat_replication WHERE replay_lsn=pg_current_wal_lsn()"
            return connection.execute(level).fetchone() == (1,)

    def fail_over(self) -> None:
        self.primary.stop(signal.SIGKILL)
        if self.standby.process is None:
            self.standby.start()
        self.standby.promote()


@pytest.fixture
def pair() -> Iterator[Pair]:
    with postgres_server() as primary:
        with primary.connect() as connection:
            connection.execute("CREATE DATABASE app TEMPLATE template0")
        new_database(primary.url("app"))
        with postgres_server(primary) as standby:
            yield Pair(primary, standby)


async def write(store: PostgresStore, id: str) -> int:
    """As soon as it can be done; the seq."""
    with trio.fail_after(30):
        while True:
            with suppress(ApiError):  # 503: it was not done
                written: Written = await store.submit(put(id))
                return written.seq
            await trio.sleep(0.02)


async def test_a_restored_dump_goes_on_beyond_what_was_lost(postgres: Postgres, postgres_url: str) -> None:
    async with node(postgres_url) as (store, _):
        for n in range(3):
            await store.submit(put(f"d{n}"))
        dump = [str(postgres.programs / "pg_dump"), "--clean", f"--dbname={postgres_url}"]
        text = (await trio.run_process(dump, capture_stdout=True)).stdout
        await write(store, "lost")
    await trio.run_process([str(postgres.programs / "psql"), "--quiet", postgres_url], stdin=text)
    async with node(postgres_url) as (store, changes):
        ((head, trimmed),) = store.bounds().values()
        assert head > JUMP
        assert trimmed == 0
        assert (await store.page(DATABASE, 4, {None: 0}, EventText.CURSOR)).expired
        assert await write(store, "new") == changes[0].seq == head + 1
        page = await store.page(DATABASE, 3, {None: 0}, EventText.CURSOR)
        assert seqs(page) == [head + 1]


def seqs(page: Any) -> list[int]:
    return [json.loads(event)["seq"] for event in page.events]


async def test_what_a_failover_lost_is_a_gap_and_the_rest_goes_on(pair: Pair, tmp_path: Path) -> None:
    breaks: list[tuple[int, int, int]] = []

    def on_break(*broken: int) -> None:
        breaks.append((broken[0], broken[1], broken[2]))

    async with node(pair.url, on_break=on_break) as (store, changes):
        for n in range(10):
            await store.submit(put(f"d{n}"))
        assert breaks == []
        await trio.to_thread.run_sync(pair.part)
        for n in range(10, 15):
            await store.submit(put(f"d{n}"))
        await store.submit(Revocation(DATABASE, "jti", "lost", 1, 2**50))
        before = await store.directory(0, 0)
        assert before is not None
        await trio.to_thread.run_sync(pair.fail_over)
        await until(lambda: breaks, 30)  # before anything else is written
        ((_, since, end),) = breaks
        assert (since, end > 15) == (10, True)
        assert len(changes) == 15
        assert await write(store, "after") == end + 1
        assert [change.seq for change in changes] == [*range(1, 16), end + 1]
        for cursor in (11, 15, 16, end - 1):
            page = await store.page(DATABASE, cursor, {None: 0}, EventText.CURSOR)
            assert (page.expired, page.trimmed, page.events) == (True, end, [])
        for cursor, missed in ((10, []), (end, []), (7, [8, 9, 10])):
            for topic in (None, "c"):
                got, position = [], cursor
                while True:
                    page = await store.page(DATABASE, position, {topic: 0}, EventText.CURSOR)
                    assert not page.expired
                    got += seqs(page)
                    position = page.position
                    if page.reached_end:
                        break
                assert (got, position) == ([*missed, end + 1], end + 1)
        for bound in (None, end + 1):  # a webhook, also one that repeats a delivery
            events, position = [], 8
            while position < end + 1:
                batch = await read(store, DATABASE, "c", position, bound)
                events += batch.events
                position = batch.until
            assert [json.loads(event)["seq"] for event in events] == [9, 10, end + 1]
        # What was counted up in the lost part is not used again for something else.
        await store.submit(Revocation(DATABASE, "jti", "new", 1, 2**50))
        news = await store.directory(before.version, before.revocations[-1].id)
        assert news is not None
        assert [revoked.name for revoked in news.revocations] == ["new"]
        # The newest seven changes are four before the break, and three behind it.
        await write(store, "more")
        await write(store, "most")
        assert await store.submit(Trim(DATABASE, 0, 7)) == (6, 6)
        assert (await store.webhook_infos()) == []
        for place in ("--store", pair.url), ("--data", tmp_path):
            if place[0] == "--data":
                done = run_here("copy", "--from", pair.url, "--to", tmp_path)
                assert "3 changes" in done.stdout, done
            done = run_here("check", *place)
            assert done.exit_code == 0, done
        assert rows(tmp_path / "paperdb.sqlite", "SELECT head, trimmed FROM databases") == [(end + 3, end)]
        async with node(pair.url, on_break=on_break) as (other, _):
            assert breaks[1:] == [(DATABASE, 10, end)]
            assert other.bounds() == {DATABASE: (end + 3, 6)}
            assert await store.submit(Trim(DATABASE, 0, 3)) == (10, 4)
            assert not (await store.page(DATABASE, 10, {None: 0}, EventText.CURSOR)).expired
            assert await store.submit(Trim(DATABASE, 0, 1)) == (end + 2, 2)
            assert (await store.page(DATABASE, 10, {None: 0}, EventText.CURSOR)).expired
            assert await store.submit(Trim(DATABASE, 0, 1)) == (end + 2, 0)
        assert "All is well" in run_here("check", "--store", pair.url).stdout


@pytest.fixture
def server(pair: Pair, tmp_path: Path) -> Iterator[Server]:
    env = {"PAPERDB_STORE": pair.url, "PAPERDB_DURABILITY": "process"}
    server = Server(tmp_path / "data", env=env)
    server.key = json.loads(server.cli("keys", "create", "--json"))["key"]
    wait_until(lambda: server.request("GET", "/collections").status_code == 200)
    yield server
    assert server.stop() == 0
    assert "Traceback" not in server.stderr


def insert(server: Server) -> int:
    """As soon as it can be done; the seq."""
    responses: list[httpx.Response] = []

    def tried() -> bool:
        responses.append(server.request("POST", "/c/docs", json={}))
        return responses[-1].status_code != 503  # which says that it was not done

    wait_until(tried, 30)
    return int(responses[-1].headers["ETag"].strip('"'))


def test_listeners_of_what_was_lost_get_a_gap(pair: Pair, server: Server) -> None:
    for _ in range(5):
        insert(server)
    with server.connect("c", query="since=3") as live:
        assert [receive(live).get("seq") for _ in range(3)] == [5, 4, 5]
        pair.part()
        assert [insert(server) for _ in range(3)] == [6, 7, 8]
        assert [receive(live)["seq"] for _ in range(3)] == [6, 7, 8]
        pair.fail_over()
        with pytest.raises(ConnectionClosed) as closed:  # although nothing is written
            receive(live, 30)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == CloseCode.BEHIND_THE_LOG
    seq = insert(server)
    with server.connect("c", query="since=8") as lost, server.connect("c", query="since=5") as good:
        assert receive(lost) == {"type": "ready", "seq": seq}
        assert receive(lost) == {"type": "gap", "since": 8, "oldest": seq}
        assert receive(good) == {"type": "ready", "seq": seq}
        assert receive(good)["seq"] == seq
        insert(server)
        assert [receive(ws)["seq"] for ws in (lost, good)] == [seq + 1] * 2
    refused = server.request("GET", "/c/changes?since=7")
    assert (refused.status_code, refused.json()["oldest"]) == (410, seq)
    got: list[int] = []
    page = {"seq": 4, "hasMore": True}
    while page["hasMore"]:
        page = server.request("GET", f"/c/changes?since={page['seq']}").json()
        got += [event["seq"] for event in page["changes"]]
    assert got == [5, seq, seq + 1]
    assert metric(server, "paperdb_log_changes") == 7


def test_listeners_do_not_notice_that_nothing_was_lost(pair: Pair, server: Server) -> None:
    insert(server)
    with server.connect("c", query="since=now") as live, server.connect("c") as plain:
        assert receive(live) == {"type": "ready", "seq": 1}
        insert(server)
        wait_until(pair.is_level)
        pair.fail_over()
        seq = insert(server)
        assert [receive(live)["seq"] for _ in range(2)] == [2, seq]
        assert len([receive(plain) for _ in range(2)]) == 2
        assert seq > 2 + JUMP
        with server.connect("c", query="since=2") as later:
            assert [receive(later).get("seq") for _ in range(2)] == [seq, seq]
        assert insert(server) == seq + 1
        assert receive(live)["seq"] == seq + 1


def metric(server: Server, name: str) -> float:
    text = server.request("GET", "/metrics").text
    return float(next(line.split()[1] for line in text.split("\n") if line.startswith(f"{name} ")))
