"""Where a live query begins: with a snapshot, at a seq, or, beyond the log, with a reset."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from paperdb_trio.store.sqlite.file import database_file
from tests.auth.commands import run_here
from tests.conftest import Server, StartServer, receive, wait_until
from tests.realtime.live import ask, listening, put, rest_of_snapshot, shape, snapshot
from tests.realtime.raw import Writers
from tests.store.tools import rows

FORMATS = Path(__file__).parent.parent / "store" / "formats"


def test_snapshot_shows_the_view_at_its_seq_and_then_what_follows(server: Server, collection: str) -> None:
    for n in range(10):
        put(server, collection, f"d{n}", n=n)
    with listening(server, collection) as ws:
        reply, documents = snapshot(ws, collection=collection, filter={"n": {"gte": 7}}, select=["n"])
        assert documents == [{"_id": f"d{n}", "n": n} for n in (7, 8, 9)]
        put(server, collection, "d8", n=0)
        event = receive(ws)
        assert (event["type"], event["data"], event["query"]) == (
            "delete",
            {"_id": "d8", "n": 8},
            reply["query"],
        )
        assert event["seq"] > reply["seq"]
        # Asked again, it begins anew.
        again, documents = snapshot(ws, collection=collection, filter={"n": {"gte": 7}}, select=["n"])
        assert again["query"] == reply["query"]
        assert [document["n"] for document in documents] == [7, 9]
        put(server, collection, "d9", n=10)
        assert receive(ws)["data"] == {"_id": "d9", "n": 10}


def test_empty_snapshot_is_one_piece(server: Server, collection: str) -> None:
    with listening(server, collection) as ws:
        assert snapshot(ws, collection=collection)[1] == []
        document = put(server, collection, "a", n=1)
        assert receive(ws)["data"] == document


def test_large_snapshot_comes_in_pieces_even_to_a_slow_reader(server: Server, collection: str) -> None:
    pad = "x" * 1000
    for _ in range(3):
        bulk = [{"pad": pad, "n": n} for n in range(1000)]
        assert server.request("POST", f"/{collection}/bulk", json=bulk).json()["inserted"] == 1000
    with listening(server, collection) as ws, Writers(server, collection) as writers:
        wait_until(lambda: len(writers.acknowledged) > 20)
        ws.send(json.dumps({"action": "subscribe", "collection": collection, "snapshot": True, "ref": "r"}))
        wait_until(lambda: len(writers.acknowledged) > 300)  # it has not read meanwhile
        reply = receive(ws)
        documents = rest_of_snapshot(ws, reply["query"])
        assert len(documents) >= 3020
        seen = {document["_id"]: document for document in documents}
        assert len(seen) == len(documents)
        wait_until(lambda: len(writers.acknowledged) > 400)
        writers.stop()
        last = put(server, collection, "last")
        seqs = [reply["seq"]]
        while True:
            event = receive(ws)
            if event["type"] == "progress":  # 15 s of silence, on a busy machine
                continue
            assert event["data"]["_id"] not in seen
            seqs.append(event["seq"])
            seen[event["data"]["_id"]] = event["data"]
            if event["data"] == last:
                break
    assert seqs == list(range(reply["seq"], reply["seq"] + len(seqs)))
    assert len(seen) == server.request("GET", f"/{collection}/count").json()["count"]


def test_snapshot_beyond_the_bound_is_refused_and_the_connection_goes_on(start_server: StartServer) -> None:
    server = start_server("--max-result-bytes", "1048576")
    for _ in range(3):
        server.request("POST", "/c/bulk", json=[{"pad": "x" * 1000, "n": n} for n in range(500)])
    with listening(server, "c") as ws:
        assert ask(ws, collection="c", snapshot=True)["code"] == "RESULT_TOO_LARGE"
        _, documents = snapshot(ws, collection="c", filter={"n": 7})
        assert len(documents) == 3
        put(server, "c", "a", n=7)
        assert receive(ws)["data"]["n"] == 7


def test_snapshots_that_nobody_reads_are_bounded(start_server: StartServer) -> None:
    server = start_server("--max-pending-bytes", "16777216")
    for _ in range(12):
        server.request("POST", "/c/bulk", json=[{"pad": "x" * 1000} for _ in range(1000)])
    with listening(server, "c") as second:
        with listening(server, "c") as first:
            assert ask(first, collection="c", snapshot=True)["type"] == "subscribed"  # and it reads no more
            reply = ask(second, collection="c", snapshot=True)
            assert reply["code"] == "TOO_MANY_PENDING_BYTES"
        deadline = time.monotonic() + 20
        while (reply := ask(second, collection="c", snapshot=True))["type"] == "error":
            assert time.monotonic() < deadline
        assert len(rest_of_snapshot(second, reply["query"])) == 12_000


def test_since_brings_what_came_after_it(server: Server, collection: str) -> None:
    for n in range(6):
        put(server, collection, f"d{n}", n=n)
    found = server.request("GET", f"/{collection}/docs", params={"filter": '{"n": {"gte": 3}}'}).json()
    put(server, collection, "d3", n=0)
    put(server, collection, "d0", n=9)
    with listening(server, collection) as ws:
        reply = ask(ws, collection=collection, filter={"n": {"gte": 3}}, since=found["seq"])
        assert reply["seq"] == found["seq"]
        assert [shape(receive(ws)) for _ in range(2)] == [
            ("delete", "update", "d3"),
            ("insert", "update", "d0"),
        ]
        put(server, collection, "d4", n=5)
        assert shape(receive(ws)) == ("update", "update", "d4")


def test_since_before_the_log_or_beyond_it_is_a_reset(start_server: StartServer) -> None:
    server = start_server("--retention-count", "2")
    for n in range(9):
        put(server, "c", "a", n=n)
    wait_until(lambda: server.request("GET", "/c/changes?since=3").status_code == 410)
    with listening(server, "c") as ws:
        for since in (1, 999):
            reply = ask(ws, collection="c", filter={"n": {"gte": 0}}, since=since)
            assert (reply["type"], reply["seq"]) == ("subscribed", 9)
            about = {"collection": "c", "query": reply["query"]}
            assert receive(ws) == {"type": "reset", **about, "reason": "gap", "seq": 9}
        put(server, "c", "a", n=10)
        assert receive(ws)["seq"] == 10


def test_older_subscriptions_go_on_while_a_new_one_catches_up(server: Server, collection: str) -> None:
    start = server.request("GET", f"/{collection}/docs").json()["seq"]
    with listening(server, collection, query=collection) as ws:
        for n in range(20):
            put(server, collection, f"d{n}", n=n % 2)
        query = ask(ws, collection=collection, filter={"n": 1}, since=start)["query"]
        put(server, collection, "last", n=1)
        events: list[dict[str, Any]] = []
        while sum(event["data"]["_id"] == "last" for event in events) < 2:
            events.append(receive(ws))
    plain = [event["data"]["_id"] for event in events if "query" not in event]
    ours = [event["data"]["_id"] for event in events if event.get("query") == query]
    assert ours == [*(f"d{n}" for n in range(1, 20, 2)), "last"]
    assert plain[-1] == "last"
    assert len(plain) == len(set(plain))


@pytest.mark.sqlite
def test_changes_of_an_older_version_are_a_reset(start_server: StartServer, tmp_path: Path) -> None:
    """An update that was logged without what it changed may have left any view."""
    data = tmp_path / "old"
    shutil.copytree(FORMATS / "m003", data)
    key = json.loads(run_here("keys", "create", "--json", "--data", data).stdout)["key"]
    server = start_server(data=data)
    (trimmed,) = rows(database_file(data), "SELECT trimmed FROM databases")[0]
    updates = "SELECT count(*) FROM changes WHERE type='update' AND before IS NULL"
    assert rows(database_file(data), updates) != [(0,)]
    params = {"filter": '{"_id": "none"}', "since": trimmed}
    changes = server.request("GET", "/messages/changes", params=params, key=key).json()["changes"]
    assert changes
    assert {(change["type"], change["reason"]) for change in changes} == {("reset", "gap")}
