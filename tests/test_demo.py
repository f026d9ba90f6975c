"""`paperdb serve --demo`: events come right away, the data stays bounded, and it changes only its own
documents."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio

from paperdb_trio import demo
from paperdb_trio.config import Settings
from paperdb_trio.model import Change
from paperdb_trio.store.sqlite.reader import Reader
from paperdb_trio.store.sqlite.writer import Writer
from tests.conftest import StartServer, receive
from tests.store.tools import apply_all, inserting, new_file, rows


@pytest.mark.smoke
@pytest.mark.executable
def test_newcomer_sees_events_right_away(start_server: StartServer) -> None:
    server = start_server("--demo")
    with server.connect("messages") as ws:
        events = [receive(ws, 10) for _ in range(3)]
    assert all(event["collection"] == "messages" and event["data"]["demo"] for event in events)
    assert server.stop() == 0
    assert "Traceback" not in server.stderr


async def test_demo_stays_bounded_over_restarts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "SECONDS", (0, 0))
    file = new_file(tmp_path)
    apply_all(file, inserting({"_id": "mine", "text": "not yours"}, "messages"))
    seen: list[Change] = []
    reader = Reader(file, threads=1, timeout=10, max_result_bytes=1 << 20)
    writer = Writer(file, seen.extend)
    store: Any = SimpleNamespace(
        submit=writer.submit, find=reader.find, directory=reader.directory, closed=writer.closed
    )
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            await nursery.start(writer.run)
            for enough in (200, 400):  # the second run continues with the first one's documents
                async with trio.open_nursery() as run:
                    run.start_soon(demo.run, store, Settings())
                    while len(seen) < enough:
                        await trio.sleep(0.01)
                    run.cancel_scope.cancel()
            writer.close()
    reader.close()
    kinds = Counter(change.type for change in seen)
    assert kinds.keys() == {"insert", "update", "delete"}
    assert 10 < kinds["insert"] - kinds["delete"] <= demo.MAX_DOCUMENTS
    assert rows(file, "SELECT count(*) FROM documents") == [(kinds["insert"] - kinds["delete"] + 1,)]
    assert rows(file, "SELECT seq FROM documents WHERE id='mine'") == [(1,)]
