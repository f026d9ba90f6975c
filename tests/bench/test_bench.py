"""The bench's own tests: the cheapest form of each scenario runs and yields rows, so that the bench cannot rot.

No test asserts a time, because figures from here mean nothing. A peer that is not installed is a row that says
so, not a skip.
"""

from __future__ import annotations

import gc
import json
import math
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from xml.etree import ElementTree

import pytest
import trio
import trio.testing
from trio_websocket import WebSocketConnection

from bench import card
from bench.__main__ import main
from bench.chart import draw
from bench.clients import joined, response_end
from bench.machine import raise_file_limit
from bench.peers import Program
from bench.rows import TINY, Row, line
from bench.scenarios import SCENARIOS
from paperdb_trio.config import Settings
from paperdb_trio.store.administration import SetUp
from paperdb_trio.store.operations import Draft, Insert
from paperdb_trio.store.records import NewKey
from paperdb_trio.store.sqlite import admin
from paperdb_trio.store.sqlite.change_log import ChangeLog
from paperdb_trio.store.sqlite.file import prepare
from paperdb_trio.store.sqlite.writer import Writer
from tests.zygote import Popen

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def cheap(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Servers that are forks, on any core."""
    monkeypatch.setattr("bench.server.subprocess.Popen", Popen)
    monkeypatch.setattr("bench.server.on_core", lambda *_: nullcontext())
    monkeypatch.setattr("bench.__main__.pin", lambda _: None)
    raise_file_limit()
    gc.freeze()  # the garbage collections of a bench need not look at the test suite
    yield
    gc.unfreeze()


@pytest.mark.parametrize("name", [name for name in SCENARIOS if name != "growth"])  # the chart's test runs it
def test_a_scenario_yields_rows(name: str) -> None:
    rows = list(SCENARIOS[name](TINY))
    assert any(row.samples for row in rows)
    for row in rows:
        assert row.samples or row.note
        assert all(math.isfinite(sample) for sample in row.samples)
        assert "NOT SO" not in row.note
        assert row.name in line(row)
        assert len(row.name) <= 66, "the width of the table's column"
        if row.ratio is not None:
            assert row.baseline


def test_every_scenario_says_what_it_measures_in_one_line() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    for name, scenario in SCENARIOS.items():
        assert (scenario.__doc__ or "").strip()
        assert f"  {name} " in done.stdout


def test_rows_become_json_and_a_chart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept, chart = tmp_path / "rows.json", tmp_path / "chart.svg"
    command = ["bench", "growth", "--tiny", "--json", str(kept), "--chart", str(chart)]
    monkeypatch.setattr(sys, "argv", command)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    assert main() == 0
    rows = json.loads(kept.read_text())["rows"]
    assert chart.read_text() == draw(rows)
    assert all(math.isfinite(sample) for row in rows for sample in row["samples"])
    points = [
        element
        for element in ElementTree.fromstring(chart.read_text()).iter()
        if element.tag.endswith("circle")
    ]
    lines = {row["point"]["line"] for row in rows}
    assert len(points) == len(rows) + len(lines)  # the legend has one for each line


def test_a_missing_peer_says_how_to_get_it() -> None:
    assert Program("x", "apt: x", lambda: None).missing() == "not installed (apt: x)"
    assert Program("x", "apt: x", lambda: "/usr/bin/x").missing() == ""


def test_an_interrupted_bench_ends_its_processes() -> None:
    command = [sys.executable, "-m", "bench", "mixed", "--quick"]
    bench = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    server: list[int] = []
    deadline = time.monotonic() + 20
    while not server and time.monotonic() < deadline:
        children = Path(f"/proc/{bench.pid}/task/{bench.pid}/children").read_text().split()
        server = [int(pid) for pid in children]
        time.sleep(0.02)
    assert server
    bench.send_signal(signal.SIGINT)
    bench.communicate(timeout=30)
    for pid in server:
        assert not Path(f"/proc/{pid}").exists()


def test_where_responses_end() -> None:
    counted = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
    assert response_end(counted) == len(counted)
    assert response_end(counted[:-1]) is None
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n{\r\n\r\na\r\n0123456789\r\n0\r\n\r\n"
    assert response_end(chunked) == len(chunked)
    assert response_end(chunked[:-2]) is None
    assert joined(chunked.partition(b"\r\n\r\n")[2]) == b"{\r\n0123456789"
    assert response_end(b"HTTP/1.1 204 No Content\r\n\r\n") is not None


def test_a_row_without_samples_shows_its_note() -> None:
    assert line(Row("nchan", [], "", note="not installed")).split() == ["nchan", "(not", "installed)"]


async def test_the_card_loses_nothing_when_a_queue_was_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A baseline that dropped events would be too cheap."""
    monkeypatch.setattr(card, "SETTINGS", Settings(queue_events=2))
    received: list[str | bytes] = []
    reads = trio.Event()

    class Slow(WebSocketConnection):
        def __init__(self) -> None: ...

        async def send_message(self, message: str | bytes) -> None:
            await reads.wait()
            received.append(message)

    (tmp_path / "data").mkdir()
    file = prepare(tmp_path / "data", create=True)
    admin.apply(file, SetUp("test", NewKey("id", "secret", "", b""), "kid", b""))
    log = ChangeLog(file, timeout=30, max_document_bytes=10_000)
    (database_id,) = log.bounds()
    subscriptions = card.Subscriptions(log)
    writer = Writer(file, subscriptions.publish)
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            await nursery.start(writer.run)
            nursery.start_soon(subscriptions.send_events, Slow(), (database_id, "c"))
            await trio.testing.wait_all_tasks_blocked()
            written = []
            for n in range(10):
                insert = Insert(database_id, "c", Draft.parse({"n": n}), 10_000)
                written.append((await writer.submit(insert)).data.decode())
                if n == 7:
                    reads.set()
            while len(received) < len(written):
                await trio.sleep(0.001)
            nursery.cancel_scope.cancel()
    log.close()
    assert received == [f'{{"type":"insert","collection":"c","data":{data}}}' for data in written]
