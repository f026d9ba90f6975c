"""The processes that are measured, each on the server's core: PaperDB, and what is put beside it."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.machine import SERVER_CORE, children, cpu_seconds, is_busy, on_core, resident_bytes

STOP_SECONDS = 15

PURE = [sys.executable, "-m", "paperdb_trio"]
"""The package that is installed here; `just bench` installs it as pure Python."""
EXECUTABLE = Path(__file__).parent.parent / "dist" / "paperdb"

chosen: list[str] = PURE
"""The command that scenarios measure: `--paperdb`."""


class NotSupported(Exception):
    """The server does not know an option."""


@dataclass
class Process:
    """A server that listens on `port` of 127.0.0.1. `key` is an API key, if the server has any; `log` is the
    file with its standard error."""

    process: subprocess.Popen[str]
    port: int
    key: str = ""
    log: Path | None = None
    pids: tuple[int, ...] = ()
    """All of its processes: nginx has a worker."""
    websocket_port: int = 0
    """Where WebSockets connect; by default `port`."""

    def __post_init__(self) -> None:
        self.websocket_port = self.websocket_port or self.port
        self.pids = (self.process.pid, *children(self.process.pid))

    @property
    def cpu(self) -> float:
        return sum(map(cpu_seconds, self.pids))

    def cpus(self) -> list[float]:
        """The CPU time of each process."""
        return [cpu_seconds(pid) for pid in self.pids]

    @property
    def memory(self) -> int:
        return sum(map(resident_bytes, self.pids))

    def settled_cpu(self) -> float:
        """The CPU time once it has come to rest, or after 0.5 s: work after a response is a cost of it, too.

        Two equal readings of the clock are not enough: on a busy core the process may wait for its turn.
        """
        last = self.cpu
        deadline = time.perf_counter() + 0.5
        while time.perf_counter() < deadline:
            time.sleep(0.001)
            now = self.cpu
            if now == last and not any(map(is_busy, self.pids)):
                return now
            last = now
        return last


@contextmanager
def started(
    command: list[str], cores: tuple[int, ...] = (SERVER_CORE,), **more: object
) -> Iterator[subprocess.Popen[str]]:
    """Run a command on the server's core, and end it at the end. A ^C in the terminal does not reach it."""
    with ExitStack() as stack:
        with _signals_later(), on_core(*cores):
            process = subprocess.Popen(command, text=True, start_new_session=True, **more)  # type: ignore[call-overload]
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe is not None:
                    stack.callback(pipe.close)
            stack.callback(stop, process)
        yield process


@contextmanager
def _signals_later() -> Iterator[None]:
    """A ^C while `Popen` starts a process would leave it running: no `with` block knows it yet."""
    came: list[int] = []
    handlers = {
        each: signal.signal(each, lambda number, _: came.append(number))
        for each in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for each, handler in handlers.items():
            signal.signal(each, handler)
    for number in came:
        signal.raise_signal(number)


def stop(process: subprocess.Popen[str], number: int = signal.SIGTERM) -> None:
    """Send the signal and wait. After 15 s, kill it and everything that it has started."""
    process.send_signal(number)
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def free_port() -> int:
    """A port that is free now, for servers that do not report which one they took."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def wait_for_port(process: subprocess.Popen[str], port: int, log: Path, seconds: float = 15) -> None:
    """Return when the process accepts connections. Raises RuntimeError, with the log, if it never does."""
    deadline = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            time.sleep(0.02)
        else:
            return
    raise RuntimeError(f"{process.args!r} does not listen: {log.read_text()}")


@contextmanager
def directory() -> Iterator[Path]:
    """A temporary directory that every user may enter: some servers drop root's rights."""
    with tempfile.TemporaryDirectory(prefix="paperdb-bench-") as path:
        Path(path).chmod(0o755)
        yield Path(path)


# The clients here count bytes and do not respond to pings.
_NO_PINGS = ("--ping-interval", "3600", "--ping-timeout", "3600")


@contextmanager
def paperdb(
    *options: str,
    data: Path | None = None,
    port: int = 0,
    cores: tuple[int, ...] = (SERVER_CORE,),
    command: list[str] | None = None,
) -> Iterator[Process]:
    """Start PaperDB, by default with a data directory of its own, and stop it at the end.

    Raises NotSupported for an option that it does not know.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PAPERDB_")}
    with directory() as own:
        command = [*(command or chosen), "serve"]
        command += ["--data", str(data or own / "data"), "--port", str(port), *_NO_PINGS, *options]
        log = own / "stderr"
        with (
            log.open("w") as stderr,
            started(command, cores, stdout=subprocess.PIPE, stderr=stderr, env=environment) as process,
        ):
            key = ""
            assert process.stdout is not None
            for text in process.stdout:
                if found := re.search(r"pdb_sk_[\w-]{43}", text):
                    key = key or found[0]
                if found := re.match(r"Listening on https?://.*:(\d+)", text):
                    yield Process(process, int(found[1]), key, log)
                    return
            if "No such option" in log.read_text():
                raise NotSupported(log.read_text().strip().splitlines()[-1])
            raise RuntimeError(log.read_text())


@contextmanager
def card() -> Iterator[Process]:
    """Start the owner's card built to the letter (bench/card.py), and stop it at the end."""
    with directory() as own:
        log = own / "stderr"
        command = [sys.executable, "-m", "bench.card", str(own / "data")]
        with log.open("w") as stderr, started(command, stdout=subprocess.PIPE, stderr=stderr) as process:
            assert process.stdout is not None
            ready = process.stdout.readline().split()
            if len(ready) != 3:
                raise RuntimeError(log.read_text())
            port, websocket_port, key = ready
            yield Process(process, int(port), key, log, websocket_port=int(websocket_port))
