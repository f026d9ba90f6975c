"""What goes wrong between the processes of a server, each at the very moment when it does harm."""

from __future__ import annotations

import errno
import fcntl
import os
import pickle
import re
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, closing
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
import trio.testing

from paperdb_trio.config import Settings
from paperdb_trio.doors.listener import listen
from paperdb_trio.errors import ApiError, StartupError
from paperdb_trio.server import supervisor
from paperdb_trio.server.board import Board
from paperdb_trio.server.link import Kind
from paperdb_trio.server.remote import WorkerStore
from paperdb_trio.server.share import Passage
from paperdb_trio.server.writing import Writing, write
from paperdb_trio.store.operations import Draft, Insert
from paperdb_trio.store.sqlite.file import LOCK, serving_lock
from tests.conftest import NO_TLS, Server, StartServer, wait_until
from tests.net.test_tls import make_certificate
from tests.server.test_workers import is_alive, is_up, processes
from tests.store.tools import new_file
from tests.tls import trusting


class Starting:
    """A supervisor whose children are about to be ready."""

    def __init__(self, stack: ExitStack, *names: str) -> None:
        listeners = [stack.enter_context(listen("127.0.0.1", 0)) for _ in range(2)]
        self.supervisor = supervisor._Supervisor(Settings(workers="2"), Path(), listeners, None)
        for end in (self.supervisor._wakened, self.supervisor.signals):
            stack.enter_context(end)
        self.pipes: dict[str, int] = {}
        for name in names:
            process = stack.enter_context(subprocess.Popen(["true"]))
            ours, self.pipes[name] = os.pipe()
            self.supervisor._children[ours] = supervisor._Child(name, process.pid, ours, None)

    def ready_but_dead(self, name: str) -> None:
        os.write(self.pipes[name], b"r")
        os.close(self.pipes.pop(name))

    def ready_after_that(self, name: str) -> None:
        """As soon as the supervisor has noticed a death."""
        wait = self.supervisor._wait

        def wait_and_tell(seconds: float | None, *, signals: bool = True) -> list[Any]:
            ended = wait(seconds, signals=signals)
            if ended:
                os.write(self.pipes[name], b"r")
            return ended

        self.supervisor._wait = wait_and_tell  # type: ignore[method-assign]


def test_worker_that_dies_while_another_one_starts_is_started_again() -> None:
    with ExitStack() as stack:
        starting = Starting(stack, "worker-1", "worker-2")
        starting.ready_but_dead("worker-1")
        starting.ready_after_that("worker-2")
        starting.supervisor._until_ready()
        assert starting.supervisor._due.keys() == {0}


def test_worker_that_is_killed_while_it_starts_is_started_again() -> None:
    with ExitStack() as stack:
        starting = Starting(stack, "worker-1", "worker-2")
        one = next(iter(starting.supervisor._children.values()))
        killed = stack.enter_context(subprocess.Popen(["sleep", "60"]))
        one.pid = killed.pid
        killed.kill()
        os.close(starting.pipes.pop("worker-1"))
        starting.ready_after_that("worker-2")
        starting.supervisor._until_ready()
        assert starting.supervisor._due.keys() == {0}


def test_worker_that_fails_while_it_starts_ends_the_server() -> None:
    with ExitStack() as stack:
        starting = Starting(stack, "worker-1", "worker-2")
        os.close(starting.pipes.pop("worker-1"))
        with pytest.raises(SystemExit):
            starting.supervisor._until_ready()


def test_writer_that_dies_while_workers_start_ends_the_server() -> None:
    with ExitStack() as stack:
        starting = Starting(stack, "writer", "worker-1")
        starting.ready_but_dead("writer")
        starting.ready_after_that("worker-1")
        with pytest.raises(SystemExit):
            starting.supervisor._until_ready()


def test_process_killed_while_all_start_anew_does_not_end_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    with ExitStack() as stack:
        one = Starting(stack).supervisor
        lack = OSError(errno.ENOMEM, "Cannot allocate memory")
        starts = iter([None, SystemExit(-signal.SIGKILL), lack, SystemExit(6)])

        def start() -> None:
            if (failure := next(starts)) is not None:
                raise failure

        monkeypatch.setattr(one, "_start_all", start)
        monkeypatch.setattr(one, "_watch", lambda: None)
        monkeypatch.setattr(one, "_pause", lambda _: 0.0)
        with pytest.raises(SystemExit, match="6"):
            one.run(lambda: None)


def test_process_killed_during_the_first_start_ends_it_with_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def start() -> None:
        raise SystemExit(-signal.SIGKILL)

    with ExitStack() as stack:
        one = Starting(stack).supervisor
        monkeypatch.setattr(one, "_start_all", start)
        with pytest.raises(StartupError, match=r"Cannot start a process: it died \(signal 9\)"):
            one.run(lambda: None)


def test_signal_that_arrives_before_a_child_runs_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    fork = os.fork

    def fork_and_kill() -> int:
        if pid := fork():
            os.kill(pid, signal.SIGTERM)
        else:
            time.sleep(0.2)
        return pid

    monkeypatch.setattr(os, "fork", fork_and_kill)
    with ExitStack() as stack:
        one = Starting(stack).supervisor
        stack.enter_context(supervisor._waking(one.signals))
        one._fork("worker-1", lambda _: time.sleep(2))
        ((child, status),) = one._wait(20)
    assert (child.name, status) == ("worker-1", -signal.SIGTERM)


def test_worker_that_cannot_be_forked_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    failures = iter([OSError(errno.ENOMEM, "Cannot allocate memory"), supervisor._Stopped()])

    def fork() -> int:
        raise next(failures)

    with ExitStack() as stack:
        one = Starting(stack).supervisor
        one._board = Board(2, 10)
        one._passages = [stack.enter_context(closing(Passage())) for _ in range(2)]
        one._control, _ = map(stack.enter_context, socket.socketpair())
        one._due[0] = 0.0
        one._board.set_count(0, 5, 1)  # of the one that died
        monkeypatch.setattr(os, "fork", fork)
        monkeypatch.setattr(one, "_pause", lambda _: 0.0)
        before = os.listdir("/proc/self/fd")
        with pytest.raises(supervisor._Stopped):
            one._watch()
        assert os.listdir("/proc/self/fd") == before
        assert one._board.count(0, 5) == 0
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_supervisor_with_many_open_files_notices_a_death() -> None:
    with ExitStack() as stack:
        starting = Starting(stack, "worker-1")
        children = starting.supervisor._children
        (pipe,) = children
        child = children.pop(pipe)
        child.pipe = fcntl.fcntl(pipe, fcntl.F_DUPFD_CLOEXEC, 1024)  # as with 256 workers
        os.close(pipe)
        children[child.pipe] = child
        starting.ready_but_dead("worker-1")
        starting.supervisor._wait(20)
        assert starting.supervisor._wait(20) == [(child, 0)]


def test_first_start_touches_no_memory_of_the_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    with ExitStack() as stack:
        one = Starting(stack).supervisor
        one._board = Board(2, 1_000_000)
        one._passages = [stack.enter_context(closing(Passage())) for _ in range(2)]
        one._control, _ = map(stack.enter_context, socket.socketpair())
        monkeypatch.setattr(one, "_fork", lambda *_: None)
        before = shared_memory()
        one._start_worker(0)
        assert shared_memory() - before < 1_000_000
        one._due[0] = 0.0
        one._start_worker(0)
        assert shared_memory() - before > 10_000_000, "of one that died"


def shared_memory() -> int:
    """Bytes."""
    (kilobytes,) = re.findall(r"^RssShmem:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    return 1000 * int(kilobytes)


def test_start_waits_for_the_children_of_a_killed_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They have the lock and the port until the kernel has ended them."""
    killed = subprocess.Popen(["true"])
    killed.wait(20)
    with (tmp_path / LOCK).open("w") as lock:
        lock.write(f"{killed.pid}\n")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        child = subprocess.Popen(["sleep", "60"], pass_fds=[lock.fileno()])
    taken = listen("127.0.0.1", 0)
    port = taken.getsockname()[1]

    def time_passes(_: float) -> None:
        if child.returncode is None:
            child.kill()
            child.wait()
        else:
            taken.close()

    monkeypatch.setattr(time, "sleep", time_passes)
    with serving_lock(tmp_path), listen("127.0.0.1", port):
        assert (tmp_path / LOCK).read_text().strip() == str(os.getpid())


def test_lock_of_a_living_process_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("it waits"))
    with serving_lock(tmp_path), pytest.raises(StartupError, match=str(os.getpid())), serving_lock(tmp_path):
        pass


def test_stop_while_all_are_killed_is_not_lost() -> None:
    with ExitStack() as stack:
        one = Starting(stack).supervisor
        one._fork("writer", lambda _: time.sleep(20))
        one.signals.send(bytes([signal.SIGTERM]))
        one._kill_all()
        with pytest.raises(supervisor._Stopped):
            one._wait(0)


def test_signal_ends_the_pause_before_all_start_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    with ExitStack() as stack:
        one = Starting(stack).supervisor
        signals = iter([bytes([signal.SIGTERM]), b""])

        def start() -> None:
            one.signals.send(next(signals))

        monkeypatch.setattr(one, "_start_all", start)
        watches = iter([False, True])
        monkeypatch.setattr(one, "_watch", lambda: next(watches) and one._wait(0))
        monkeypatch.setattr(one, "_pause", lambda _: 20.0)
        began = time.monotonic()
        one.run(lambda: None)
        assert time.monotonic() - began < 10


@asynccontextmanager
async def worker_and_writer(directory: Path) -> AsyncIterator[tuple[WorkerStore, Writing]]:
    """Both in this process."""
    file, settings, board = new_file(directory), Settings(), Board(1, 100)
    writers_end, workers_end = socket.socketpair()
    with trio.fail_after(20), workers_end:
        async with trio.open_nursery() as nursery:
            writing = Writing(settings, file, board)
            await nursery.start(writing.store.run)
            nursery.start_soon(writing._serve, "worker-1", writers_end)
            await trio.testing.wait_all_tasks_blocked()  # the greeting is on its way
            worker = WorkerStore(file, settings, board, 0, workers_end, lambda _: None, lambda *_: None)
            await nursery.start(worker.run)
            yield worker, writing
            worker.stop()
            writing.store.stop()
            await writing.store.closed.wait()
            nursery.cancel_scope.cancel()
        worker.close()
        writing.store.close()


@pytest.mark.parametrize("process", ["worker", "writer"])
@pytest.mark.parametrize(
    "failure", [ApiError(503, "QUERY_TIMEOUT", "Too long"), ValueError("a mistake")], ids=str
)
async def test_report_that_fails_is_refused_and_ends_no_process(
    tmp_path: Path, process: str, failure: Exception
) -> None:
    async def why(_: Any) -> None:
        raise failure

    async with worker_and_writer(tmp_path) as (worker, writing):
        (worker if process == "worker" else writing).reports["why"] = why
        for _ in range(2):
            with pytest.raises(ApiError) as raised:
                await worker.gather("why")
            assert raised.value.code == getattr(failure, "code", "INTERNAL")


async def test_worker_told_of_a_database_that_is_gone_lives(tmp_path: Path) -> None:
    async with worker_and_writer(tmp_path) as (worker, _):
        await worker._handle(Kind.HEADS, pickle.dumps(({}, {77: 5})))
        assert worker.bounds().keys() == {1}


async def test_writer_says_that_the_file_is_gone_since_it_died(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, pytest.raises(StartupError, match="There is no PaperDB"):
        await write(Settings(), tmp_path / "paperdb.sqlite", Board(1, 100), theirs, lambda: None)


async def test_writer_that_has_no_file_left_for_a_worker_goes_on(tmp_path: Path) -> None:
    async with worker_and_writer(tmp_path) as (worker, writing), trio.open_nursery() as nursery:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs:
            nursery.start_soon(writing.run, theirs)
            ours.send(b"worker-2")  # the kernel leaves out a file beyond the limit
            await trio.testing.wait_all_tasks_blocked()
            await worker.submit(Insert(1, "texts", Draft.parse({}), 1000))
            nursery.cancel_scope.cancel()


async def test_file_is_not_said_to_be_gone_before_it_is_open(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    board, told = Board(1, 100), list[bool]()

    def ready() -> None:
        told.append(board.gone)
        ours.close()  # so that it ends

    with theirs, trio.fail_after(20):
        await write(Settings(), new_file(tmp_path), board, theirs, ready)
    assert told == [False]


def test_metrics_of_a_worker_whose_writer_hangs(start_server: StartServer) -> None:
    server = start_server("--workers", "2")
    writer = processes(server)["writer"]
    os.kill(writer, signal.SIGSTOP)
    try:
        response = httpx.get(f"{server.url}/metrics", timeout=20, verify=NO_TLS)
    finally:
        os.kill(writer, signal.SIGCONT)
    assert "paperdb_connections" in response.text


def test_worker_ends_with_the_writer_by_itself(start_server: StartServer) -> None:
    server = start_server("--workers", "2")
    before = processes(server)
    os.kill(server.pid, signal.SIGSTOP)  # else it would kill the workers
    try:
        os.kill(before["writer"], signal.SIGKILL)
        wait_until(lambda: not any(map(is_alive, before.values())))
    finally:
        os.kill(server.pid, signal.SIGCONT)
    wait_until(lambda: len(processes(server)) == 3 and is_up(server), 20)
    assert server.stderr.count("the process that writes has ended") == 2
    assert "Traceback" not in server.stderr


def test_reload_while_a_worker_starts_does_not_kill_it(start_server: StartServer) -> None:
    server = start_server("--workers", "2")
    before = processes(server)["worker-1"]
    os.kill(before, signal.SIGKILL)
    wait_until(lambda: processes(server).get("worker-1", before) != before)
    started = processes(server)["worker-1"]
    os.kill(server.pid, signal.SIGHUP)
    wait_until(lambda: "reloaded the certificate" in server.stderr)  # by the other one
    wait_until(lambda: is_ready(server))
    assert processes(server)["worker-1"] == started


def test_certificate_that_became_useless_keeps_no_worker_from_starting_again(
    start_server: StartServer, tmp_path: Path
) -> None:
    certificate, key = make_certificate(tmp_path, "paperdb")
    context = trusting(certificate)
    server = start_server("--workers", "2", "--tls-cert", str(certificate), "--tls-key", str(key))
    key.write_text("nonsense")
    os.kill(server.pid, signal.SIGHUP)
    wait_until(lambda: "kept the old certificate" in server.stderr)
    before = processes(server)["worker-1"]
    os.kill(before, signal.SIGKILL)
    wait_until(lambda: processes(server).get("worker-1", before) != before)
    for _ in range(12):  # half of them wait for the new worker
        assert server.request("GET", "/healthz", verify=context).status_code == 200
    assert server.stop() == 0
    assert server.stderr.count("died") == 1


def test_tls_session_is_resumed_at_any_worker(start_server: StartServer) -> None:
    server = start_server("--workers", "2", "--tls-self-signed")
    context = trusting(server.certificate)
    context.maximum_version = ssl.TLSVersion.TLSv1_2  # so that the session is known after the handshake
    session = None
    for number in range(13):
        with (
            socket.create_connection(("127.0.0.1", server.port), timeout=20) as plain,
            context.wrap_socket(plain, server_hostname="127.0.0.1", session=session) as encrypted,
        ):
            session = encrypted.session
            assert encrypted.session_reused is (number > 0)


def is_ready(server: Server) -> bool:
    """Whether all workers report."""
    response = server.request("GET", "/metrics")
    return all(f'worker="worker-{number}"' in response.text for number in (1, 2))
