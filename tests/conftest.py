"""What all tests share: a real server process on loopback (tests/zygote.py says how it starts).

Rules: port 0; clients that we did not write; an absolute timeout on every wait; whatever a test starts it
ends. Tests of the protocol parts need none of this and use trio's mock clock. A test that needs a part
which a machine may lack asks `need()`; in CI (`CI=true`) a missing part is a failure, not a skip.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shlex
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

import httpx
import pytest
from hypothesis import HealthCheck, settings
from websockets.sync.client import ClientConnection, connect

import paperdb_trio
from paperdb_trio.errors import ApiError
from tests.tls import trusting
from tests.zygote import Popen, run

if TYPE_CHECKING:
    from tests.postgres import Postgres, Stores

COMMAND = shlex.split(os.environ.get("PAPERDB_TEST_COMMAND", f"{sys.executable} -m paperdb_trio"))
"""What is tested: the installed package, or an executable."""

ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("PAPERDB_")}

collect_ignore = [] if "PAPERDB_TEST_COMMAND" in os.environ else ["test_executable.py"]

START_SECONDS = 60

WHAT_CLIENTS_SEE = (
    *("rest", "realtime", "client"),
    *(f"web/test_{name}.py" for name in ("documents", "live", "subscribe")),
)
"""The suites that `pytest --store postgres` runs, unless it is told others."""

NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""For clients of `http://`. By default httpx reads all CA certificates for each client: 30 ms."""

# Started in the background, or by nohup, a shell has these ignored, and so would every process of a test.
for number in (signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.SIG_DFL)

# How fast this machine is decides nothing. A fixture that examples share is one that is made for that.
settings.register_profile(
    "paperdb",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("paperdb")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--store", choices=("sqlite", "postgres"), default="sqlite", help="Where the servers of tests store."
    )
    parser.addoption(
        "--browser", choices=("chromium", "firefox"), default="chromium", help="What shows the tests' pages."
    )
    parser.addoption("--workers", default="1", help="How many processes of a test's server serve.")


def pytest_configure(config: pytest.Config) -> None:
    Server.workers = config.getoption("--workers")
    if config.getoption("--store") == "postgres":
        if config.args_source is not pytest.Config.ArgsSource.ARGS:
            config.args = [str(config.rootpath / "tests" / name) for name in WHAT_CLIENTS_SEE]
        from tests.postgres import Stores

        Server.stores = Stores()


def pytest_unconfigure(config: pytest.Config) -> None:
    if Server.stores is not None:
        Server.stores.close()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without the tests of SQLite's own under PostgreSQL, and of interpreted code where it is compiled.

    With Firefox, only the tests that start a browser, without those of what only Chromium can do.
    """
    without = {"sqlite"} if config.getoption("--store") == "postgres" else set()
    if list(Path(paperdb_trio.__file__).parent.rglob("*.so")):  # `just test-compiled`
        without.add("interpreted")
    in_firefox = config.getoption("--browser") == "firefox"
    if in_firefox:
        without.add("chromium")

    def runs(item: pytest.Item) -> bool:
        if in_firefox and "start_browser" not in getattr(item, "fixturenames", ()):
            return False
        return not any(item.get_closest_marker(name) for name in without)

    if without:
        config.hook.pytest_deselected(items=[item for item in items if not runs(item)])
        items[:] = [item for item in items if runs(item)]


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """`-n auto`: twice as many as there are cores, because tests wait, too. Idle workers help busy ones."""
    config.option.dist = "worksteal"
    return 2 * len(os.sched_getaffinity(0))


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """`-m smoke` need not import the many modules that have no such test."""
    mark = config.option.markexpr
    if not mark.isidentifier() or not collection_path.match("test_*.py"):
        return None
    return f"mark.{mark}" not in collection_path.read_text() or None


def lacking(what: str) -> NoReturn:
    """Skip the test (in CI: fail it), for this machine lacks something."""
    if os.environ.get("CI"):
        pytest.fail(what)
    pytest.skip(what)


def need(program: str, *arguments: str) -> str:
    """The path of a program; skips the test if there is none, or if it cannot do here what `arguments` say."""
    path = shutil.which(program)
    if path is None:
        lacking(f"needs {program}, which this machine lacks")
    if arguments:
        tried = subprocess.run([path, *arguments], capture_output=True, text=True, timeout=20, check=False)
        if tried.returncode != 0:
            lacking(f"needs `{shlex.join((program, *arguments))}`, which fails here: {tried.stderr.strip()}")
    return path


class Server:
    """A `paperdb serve` process. `key` is the first secret key of the database `default`.

    `forked` is for all tests but those of memory, imports or the start itself (tests/zygote.py). With
    `stores`, it stores in PostgreSQL.
    """

    stores: ClassVar[Stores | None] = None
    workers: ClassVar[str] = "1"

    def __init__(
        self,
        data: Path,
        options: tuple[str, ...] = (),
        env: dict[str, str] | None = None,
        *,
        forked: bool = True,
    ) -> None:
        self.data = data
        self.popen = Popen if forked else subprocess.Popen
        self.options = options
        self.env = {**ENVIRONMENT, **(env or {})}
        if "PAPERDB_STORE" not in self.env and "--store" not in options:  # there, a server for each core
            self.env.setdefault("PAPERDB_WORKERS", self.workers)
        if self.stores is not None:
            self.env.setdefault("PAPERDB_STORE", self.stores.url(data))
            self.env.setdefault("PAPERDB_DURABILITY", "process")  # its commits are not fsynced
        self.http2 = False  # whether `request` speaks HTTP/2, and nothing else
        self.key = ""
        self.url = ""
        self.stderr = ""
        self.start()

    def start(self) -> None:
        """Start, on the same port as before if there was one, and wait until it listens."""
        port = self.url.rpartition(":")[2] or "0"
        self.process = self.popen(
            [*COMMAND, "serve", "--data", str(self.data), "--port", port, *self.options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self.env,
        )
        self._reading = threading.Thread(target=self._read_stderr, args=(self.process,), daemon=True)
        self._reading.start()
        killer = threading.Timer(START_SECONDS, self.process.kill)
        killer.start()
        try:
            self._await_listening()
        finally:
            killer.cancel()

    def _await_listening(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if found := re.search(r"pdb_sk_[\w-]{43}", line):
                self.key = self.key or found[0]
            if found := re.match(r"Listening on (https?://\S+)", line):
                self.url = found[1]
                break
        else:
            self._reap(10)
            raise AssertionError(f"the server did not start: {self.stderr}")

    def _read_stderr(self, process: subprocess.Popen[str]) -> None:
        assert process.stderr is not None
        for line in process.stderr:
            self.stderr += line

    @property
    def ws_url(self) -> str:
        return self.url.replace("http", "ws", 1)

    @property
    def certificate(self) -> Path:
        """That of `--tls-self-signed`, if the server has one."""
        return self.data / "tls-self-signed.crt"

    @property
    def context(self) -> ssl.SSLContext | None:
        """For clients of a server with TLS."""
        if self.url.startswith("http://"):
            return None
        return trusting(self.certificate)

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    @property
    def pid(self) -> int:
        return self.process.pid

    def stop(self, timeout: float = 20) -> int:
        """SIGTERM; the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self._reap(timeout)

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self._reap(10)

    def _reap(self, timeout: float) -> int:
        try:
            code = self.process.wait(timeout)
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
            self._reading.join()
            for pipe in (self.process.stdout, self.process.stderr):
                if pipe is not None:
                    pipe.close()
            if self.url:
                self._keep_port()
        return code

    def _keep_port(self) -> None:
        """It may start again: the kernel gives its port to no other test meanwhile. What is bound and does not
        listen is in nobody's way."""
        with suppress(OSError), socket.socket() as kept:
            kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            kept.bind(("127.0.0.1", self.port))
            weakref.finalize(self, os.close, kept.detach())

    def cli(self, *arguments: str, check: bool = True) -> str:
        """Run another `paperdb` command on this server's data; its stdout."""
        if arguments[0] in ("keys", "databases"):  # short: what takes time is the start of Python
            from tests.auth.commands import run_here

            here = run_here(*arguments, "--data", self.data, env=self.env)
            assert not check or here.exit_code == 0, here.stderr
            self.let_all_look()
            return here.stdout
        done = run([*COMMAND, *arguments, "--data", str(self.data)], text=True, env=self.env, timeout=30)
        assert not check or done.returncode == 0, done.stderr
        return str(done.stdout)

    def let_all_look(self) -> None:
        """Let all workers take note of changed, revoked and expired keys. Each does within 0.25 s by itself, so
        that a response of one says nothing about the others."""
        several = self.env.get("PAPERDB_WORKERS", "1") != "1" or "--workers" in self.options
        if several and self.key and self.process.poll() is None:
            self.request("POST", "/realtime/revoke", json={"jti": "of no token"})

    def rows(self, sql: str) -> list[Any]:
        """Of the store itself: both engines know these tables."""
        if self.stores is not None:
            return self.stores.rows(self.data, sql)
        from tests.store.tools import rows

        return rows(self.data / "paperdb.sqlite", sql)

    def new_key(self, database: str = "default", *, public: bool = False) -> dict[str, str]:
        """`{"id", "key", "database", "kind"}` of a key that the server already knows."""
        arguments = ["keys", "create", "--database", database, "--json", *(["--public"] if public else [])]
        created: dict[str, str] = json.loads(self.cli(*arguments))
        wait_until(lambda: self.request("GET", "/collections", key=created["key"]).status_code == 200)
        return created

    def request(self, method: str, path: str, *, key: str | None = None, **more: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {key or self.key}", **more.pop("headers", {})}
        verify = more.pop("verify", None) or self.context or NO_TLS
        with httpx.Client(http1=not self.http2, http2=self.http2, verify=verify, timeout=20) as client:
            return client.request(method, self.url + path, headers=headers, **more)

    def insert(self, collection: str, document: Any, *, key: str | None = None) -> dict[str, Any]:
        answer = self.request("POST", f"/{collection}/docs", json=document, key=key)
        assert answer.status_code == 201, answer.text
        document = answer.json()
        assert isinstance(document, dict)
        return document

    def token(self, *collections: str, key: str | None = None, **more: Any) -> str:
        body = {"collections": list(collections), **more}
        answer = self.request("POST", "/realtime/token", json=body, key=key)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["token"])

    def connect(self, *collections: str, query: str = "", **more: Any) -> ClientConnection:
        """A WebSocket of the `websockets` library, with a token for these collections."""
        target = f"{self.ws_url}/?token={self.token(*collections)}{'&' if query else ''}{query}"
        options = {"ssl": self.context, "proxy": None, "max_size": None, "close_timeout": 2, **more}
        connection: ClientConnection = connect(target, **options)
        return connection


def wait_until(condition: Callable[[], bool], seconds: float = 15) -> None:
    """Poll until `condition()`; fail after `seconds`."""
    pause = threading.Event()
    for _ in range(int(seconds / 0.02)):
        if condition():
            return
        pause.wait(0.02)
    raise AssertionError(f"still not so after {seconds} s")


def refusal(check: Callable[[], object]) -> ApiError | None:
    """What `check` is refused with, if it is."""
    try:
        check()
    except ApiError as error:
        return error
    return None


def receive(ws: ClientConnection, timeout: float = 15) -> dict[str, Any]:
    """The next message of a WebSocket, as JSON."""
    message = json.loads(ws.recv(timeout=timeout))
    assert isinstance(message, dict)
    return message


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data directory without a server."""
    from tests.store.tools import new_file  # many tests do without the store and Hypothesis

    directory = tmp_path / "data"
    directory.mkdir()
    new_file(directory)
    return directory


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 MiB."""
    where = tmp_path / "disk"
    where.mkdir()
    need("mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(where))
    yield where
    subprocess.run(["umount", "-l", str(where)], check=True)


def fill(file: Path) -> None:
    with file.open("wb", buffering=0) as raw, suppress(OSError):
        while raw.write(b"\0" * 65536):
            pass


StartServer = Callable[..., Server]


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[StartServer]:
    """`start_server(*options, data=…, env=…, forked=…)`: a server of the test's own, ended with it."""
    servers: list[Server] = []

    def start(*options: str, data: Path | None = None, **more: Any) -> Server:
        server = Server(data or tmp_path / f"data{len(servers)}", options, **more)
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.kill()


def shared_server(tmp_path_factory: pytest.TempPathFactory, *options: str) -> Iterator[Server]:
    """A server that tests share; it must survive whatever they do, and complain of nothing of its own."""
    server = Server(tmp_path_factory.mktemp("shared") / "data", options)
    yield server
    assert server.process.poll() is None, f"the shared server died: {server.stderr}"
    assert server.stop() == 0
    assert "Traceback" not in server.stderr, server.stderr


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that tests share; use a `collection` of your own."""
    yield from shared_server(tmp_path_factory)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL that tests share; use a database of your own (`new`)."""
    from tests.postgres import postgres_server

    with postgres_server() as server:
        yield server


_numbers = itertools.count()


@pytest.fixture
def collection() -> str:
    """A collection that no other test uses."""
    return f"test_{next(_numbers)}"


def pytest_sessionfinish(session: pytest.Session) -> None:
    """In CI a skipped test is a failed run."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("CI") and reporter is not None and reporter.stats.get("skipped"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
