"""Several processes: what a user can see is what one process shows, and each of them may be killed.

The whole suite runs with workers, too: `just test-workers`.
"""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from tests.auth.commands import run_here
from tests.conftest import COMMAND, ENVIRONMENT, NO_TLS, Server, StartServer, receive, wait_until
from tests.realtime.raw import Writers, end_of
from tests.store.test_transfer import line
from tests.zygote import run

WORKERS = ("--workers", "2")


def processes(server: Server) -> dict[str, int]:
    """The process ids of the children, by name."""
    found = {}
    for pid in Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split():
        with suppress(FileNotFoundError):
            name = Path(f"/proc/{pid}/comm").read_text().strip().removeprefix("paperdb-")
            found[f"worker-{name}" if name.isdecimal() else name] = int(pid)
    return found


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def clients(server: Server, stack: ExitStack, count: int = 12) -> list[httpx.Client]:
    """Clients with a connection each: all of them at one worker is as likely as 12 heads."""
    made = []
    for _ in range(count):
        headers = {"Authorization": f"Bearer {server.key}"}
        client = httpx.Client(base_url=server.url, headers=headers, timeout=20, verify=NO_TLS)
        made.append(stack.enter_context(client))
    return made


def listen(server: Server, token: str) -> ClientConnection:
    return connect(f"{server.ws_url}/?token={token}", proxy=None, close_timeout=2)


def insert(client: httpx.Client, collection: str, **fields: Any) -> dict[str, Any]:
    response = client.post(f"/{collection}/docs", json=fields)
    assert response.status_code == 201, response.text
    document: dict[str, Any] = response.json()
    return document


@pytest.mark.smoke
@pytest.mark.executable
def test_any_worker_reads_what_any_worker_wrote(start_server: StartServer, collection: str) -> None:
    server = start_server(*WORKERS)
    assert processes(server).keys() == {"writer", "worker-1", "worker-2"}
    with ExitStack() as stack:
        some = clients(server, stack)
        id = insert(some[0], collection, n=0)["_id"]
        for n in range(1, 200):
            writer, reader = some[n % len(some)], some[(5 * n + 1) % len(some)]
            writer.patch(f"/{collection}/docs/{id}", json={"n": n}).raise_for_status()
            assert reader.get(f"/{collection}/docs/{id}").json()["n"] == n
        for n in range(20):  # a subscription begins after what was acknowledged before
            seq = some[n % 12].patch(f"/{collection}/docs/{id}", json={"n": n}).headers["etag"].strip('"')
            with server.connect(collection, query=f"since={seq}") as ws:
                assert receive(ws) == {"type": "ready", "seq": int(seq)}
        for client in some:
            client.delete(f"/{collection}/docs/{insert(client, collection)['_id']}").raise_for_status()
            assert client.get(f"/{collection}/count").json() == {"count": 1}


def test_subscribers_of_all_workers_get_each_change_once_in_order(
    start_server: StartServer, collection: str
) -> None:
    server = start_server(*WORKERS)
    with ExitStack() as stack:
        sockets = [stack.enter_context(server.connect(collection, query="since=now")) for _ in range(12)]
        for ws in sockets:
            assert receive(ws)["type"] == "ready"
        some = clients(server, stack)
        with ThreadPoolExecutor(len(some)) as pool:
            written = list(pool.map(lambda n: insert(some[n % len(some)], collection, n=n), range(300)))
        for ws in sockets:
            events = [receive(ws) for _ in range(300)]
            assert [event["seq"] for event in events] == list(range(events[0]["seq"], events[0]["seq"] + 300))
            assert {event["data"]["_id"] for event in events} == {document["_id"] for document in written}


def test_killed_worker_is_started_again_and_its_clients_resume(
    start_server: StartServer, collection: str
) -> None:
    server = start_server(*WORKERS)
    before = processes(server)
    with ExitStack() as stack:
        sockets = [stack.enter_context(server.connect(collection, query="since=now")) for _ in range(12)]
        starts = [receive(ws)["seq"] for ws in sockets]
        os.kill(before["worker-1"], signal.SIGKILL)
        wait_until(lambda: processes(server).get("worker-1", before["worker-1"]) != before["worker-1"], 10)
        assert processes(server)["writer"] == before["writer"]
        some = clients(server, stack)
        for n in range(24):
            insert(some[n % 12], collection, n=n)
        told = [numbers(ws, 24) for ws in sockets]
        assert 0 < told.count([]) < 12, "the other worker's clients notice nothing"
        for start, got in zip(starts, told, strict=True):
            if not got:
                again = stack.enter_context(server.connect(collection, query=f"since={start}"))
                assert receive(again)["type"] == "ready"
                got = numbers(again, 24)
            assert got == list(range(24))
    assert "worker-1 died (signal 9)" in server.stderr


def test_killed_writer_takes_all_with_it_and_nothing_is_lost(
    start_server: StartServer, collection: str
) -> None:
    server = start_server(*WORKERS)
    before = processes(server)
    with ExitStack() as stack:
        ws = stack.enter_context(server.connect(collection, query="since=now"))
        start = receive(ws)["seq"]
        some = clients(server, stack)
        acknowledged = [insert(client, collection)["_id"] for client in some]
        os.kill(before["writer"], signal.SIGKILL)
        wait_until(lambda: not any(map(is_alive, before.values())), 10)
        wait_until(lambda: len(processes(server)) == 3 and is_up(server), 20)
        assert processes(server).keys() & before.keys() == before.keys()
        with server.connect(collection, query=f"since={start}") as again:
            assert receive(again)["type"] == "ready"
            assert [receive(again)["data"]["_id"] for _ in acknowledged] == acknowledged
    assert "writer died (signal 9)" in server.stderr


def is_up(server: Server) -> bool:
    try:
        return httpx.get(f"{server.url}/readyz", verify=NO_TLS).status_code == 200
    except httpx.TransportError:
        return False


def test_nothing_runs_on_after_a_killed_supervisor(start_server: StartServer, collection: str) -> None:
    server = start_server(*WORKERS)
    before = processes(server)
    server.kill()
    wait_until(lambda: not any(map(is_alive, before.values())), 10)
    server.start()
    assert server.request("POST", f"/{collection}/docs", json={}).status_code == 201


def test_stopped_worker_delays_no_one_and_then_reads_the_log(
    start_server: StartServer, collection: str
) -> None:
    """More is written meanwhile than waits for one worker."""
    server = start_server(*WORKERS)
    pids = processes(server)
    with ExitStack() as stack:
        sockets = [
            stack.enter_context(server.connect(collection, query="since=now", max_queue=None))
            for _ in range(12)
        ]
        for ws in sockets:
            receive(ws)
        stopped = pids["worker-2"]
        os.kill(stopped, signal.SIGSTOP)
        try:
            client = next(client for client in clients(server, stack) if responds(client))
            text = "x" * 500_000
            for n in range(40):  # 20 MB
                insert(client, collection, n=n, text=text)
        finally:
            os.kill(stopped, signal.SIGCONT)
        for n in range(40, 45):
            insert(client, collection, n=n, text="")
        for ws in sockets:
            assert [receive(ws)["data"]["n"] for _ in range(45)] == list(range(45))


def test_worker_that_stood_still_until_the_log_was_trimmed_starts_again(
    start_server: StartServer, collection: str
) -> None:
    server = start_server(*WORKERS, "--retention-count", "3")
    stopped = processes(server)["worker-2"]
    with ExitStack() as stack:
        sockets = [
            stack.enter_context(server.connect(collection, query="since=now", max_queue=None))
            for _ in range(12)
        ]
        assert [receive(ws)["seq"] for ws in sockets] == [0] * 12
        os.kill(stopped, signal.SIGSTOP)
        try:
            client = next(client for client in clients(server, stack) if responds(client))
            for n in range(30):  # 15 MB: more than waits for one worker
                insert(client, collection, n=n, text="x" * 500_000)
            wait_until(lambda: server.rows("SELECT trimmed FROM databases WHERE id=1") == [(27,)])
        finally:
            os.kill(stopped, signal.SIGCONT)
        wait_until(lambda: processes(server).get("worker-2", stopped) != stopped)
        for ws in sockets:
            told = numbers(ws, 30)
            assert told == list(range(len(told)))
            if len(told) < 27:
                with server.connect(collection, query=f"since={len(told)}") as again:
                    assert [receive(again)["type"] for _ in range(2)] == ["ready", "gap"]
    assert "too slow for the change log" in server.stderr
    assert "Traceback" not in server.stderr


def numbers(ws: ClientConnection, most: int) -> list[int]:
    """The `n` of so many inserts, or of fewer if the connection ends, or there is a gap."""
    told: list[int] = []
    with suppress(ConnectionClosed):
        while len(told) < most and (event := receive(ws))["type"] == "insert":
            told.append(event["data"]["n"])
    return told


def responds(client: httpx.Client) -> bool:
    try:
        return client.get("/healthz", timeout=1).status_code == 200
    except httpx.TimeoutException:
        return False


def test_limits_are_of_the_whole_server(start_server: StartServer, collection: str) -> None:
    server = start_server(*WORKERS, "--max-connections-per-database", "10", "--requests-per-second", "0.001")
    token = server.token(collection)
    with ExitStack() as stack:
        for _ in range(10):
            stack.enter_context(listen(server, token))
        for _ in range(6):  # whichever worker is asked
            response = httpx.get(
                f"{server.url}/realtime",
                params={"token": token},
                headers={
                    "Connection": "Upgrade",
                    "Upgrade": "websocket",
                    "Sec-WebSocket-Version": "13",
                    "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
                },
                verify=NO_TLS,
            )
            assert (response.status_code, response.json()["code"]) == (503, "TOO_MANY_CONNECTIONS")
        statuses = [client.get(f"/{collection}/count").status_code for client in clients(server, stack)]
    assert set(statuses) == {429}, "one request a key, which made the token, on whichever worker"


def test_revoked_key_and_token_end_everywhere_at_once(start_server: StartServer, collection: str) -> None:
    server = start_server(*WORKERS)
    with ExitStack() as stack:
        some = clients(server, stack)
        for n in range(12):
            asked = {"collections": [collection], "subject": f"u{n}"}
            token = some[n].post("/realtime/token", json=asked).json()["token"]
            sockets = [stack.enter_context(listen(server, token)) for _ in range(4)]
            some[-n].post("/realtime/revoke", json={"subject": f"u{n}"}).raise_for_status()
            assert [end_of(ws) for ws in sockets] == [4403] * 4
            for client in some[:4]:
                response = client.get(f"/{collection}/docs", headers={"Authorization": f"Bearer {token}"})
                assert response.status_code == 401


def test_signals_and_drain(start_server: StartServer, collection: str) -> None:
    server = start_server(*WORKERS, "--tls-self-signed", "--drain-timeout", "60")  # which it does not wait for
    with server.connect(collection) as ws:
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: server.stderr.count("reloaded the certificate") == 2, 10)
        assert server.stop() == 0
        assert end_of(ws) == 1012
    assert "Traceback" not in server.stderr
    assert (
        not (server.data / "paperdb.sqlite-wal").exists()
        or not (server.data / "paperdb.sqlite-wal").stat().st_size
    )


def test_service_manager_that_signals_every_process_loses_nothing(
    start_server: StartServer, collection: str
) -> None:
    server = start_server(*WORKERS)
    with Writers(server, collection, count=4) as writers:
        wait_until(lambda: len(writers.acknowledged) >= 50, 20)
        for pid in processes(server).values():
            os.kill(pid, signal.SIGTERM)
        assert server.stop() == 0
        writers.stop()
    assert "Traceback" not in server.stderr, server.stderr
    server.start()
    kept = {d["_id"] for d in server.request("GET", f"/{collection}/docs?limit=1000").json()["documents"]}
    assert {document["_id"] for document in writers.acknowledged} <= kept


def test_imports_go_through_the_process_that_writes(start_server: StartServer, collection: str) -> None:
    server = start_server(*WORKERS)
    with server.connect(collection, query="since=now") as ws:
        receive(ws)
        done = run_here(
            "import", "--data", server.data, input=b"\n".join(line({"n": n}, collection) for n in range(50))
        )
        assert (done.exit_code, done.stderr) == (0, "")
        assert [receive(ws)["data"]["n"] for _ in range(50)] == list(range(50))


def test_port_that_is_taken_is_refused(start_server: StartServer, tmp_path: Path) -> None:
    server = start_server(*WORKERS)
    done = run(
        [*COMMAND, "serve", "--data", str(tmp_path / "other"), "--port", str(server.port), *WORKERS],
        text=True,
        env=ENVIRONMENT,
        timeout=30,
    )
    assert done.returncode == 7
    assert "Cannot listen" in done.stderr
    assert server.request("GET", "/healthz").status_code == 200
