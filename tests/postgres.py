"""A PostgreSQL server of Debian's package, for tests: `postgres` is shared by a pytest process.

Rules: it starts when the first test asks for it, and ends with pytest, even with a pytest that is killed. It
listens on a socket in a directory of its own (and on loopback, if asked). Commits are not fsynced unless a test
asks for that. Each test has a database of its own, a copy of a template.

A start takes 0.7 s of CPU, a database 0.05 s.
"""

from __future__ import annotations

import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import psycopg

from paperdb_trio.store.postgres.prepare import prepare
from tests.conftest import lacking, need, wait_until

START_SECONDS: Final = 30
SETTINGS: Final = {
    "fsync": "off",
    "listen_addresses": "",
    "dynamic_shared_memory_type": "mmap",  # in its directory, so that nothing is left elsewhere after a kill
    "shared_buffers": "32MB",
    "max_connections": "60",
}


def programs() -> Path:
    """The directory of the newest version's programs, which Debian does not have in the PATH."""
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parts[-3]))
    if not versions:
        lacking("needs Debian's package postgresql")
    return versions[-1].parent


class Postgres:
    """A server with its data in a new directory. `close` it: nothing is left then.

    `settings` are those of `postgresql.conf`; with `listen_addresses`, name a `port`. The superuser is
    `postgres`, without a password. With `primary`, it is a standby of that one, which does not wait for it.
    """

    def __init__(self, primary: Postgres | None = None, **settings: str) -> None:
        self.settings = {**SETTINGS, **settings}
        self.port = int(self.settings.get("port", "5432"))
        self.home = Path(
            tempfile.mkdtemp(prefix="pg-", dir="/tmp")
        )  # a socket's path is at most 107 bytes long
        self.programs = programs()
        # It refuses to run as root. It gets SIGINT (stop at once) when the thread that started it ends.
        self._as_user = [need("setpriv"), "--pdeathsig", "INT"]
        if os.getuid() == 0:
            user = pwd.getpwnam("nobody")
            os.chown(self.home, user.pw_uid, user.pw_gid)
            self._as_user += [f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
        self.process: subprocess.Popen[bytes] | None = None
        self._numbers = itertools.count()
        make = ["initdb", "--auth=trust", "--username=postgres", "--encoding=UTF8", "--locale=C.UTF-8"]
        if primary is not None:
            make = ["pg_basebackup", "--write-recovery-conf", "--checkpoint=fast", f"--dbname={primary.url()}"]
        subprocess.run(
            [*self._as_user, self.programs / make[0], *make[1:], "--no-sync", "--pgdata", self.data],
            check=True,
            stdout=subprocess.DEVNULL,
            cwd=self.home,
            timeout=60,
        )
        self.start()

    @property
    def data(self) -> Path:
        return self.home / "data"

    @property
    def log(self) -> str:
        return (self.home / "log").read_text()

    def url(self, database: str = "postgres") -> str:
        return f"postgresql://postgres@/{database}?host={self.home}&port={self.port}"

    def start(self) -> None:
        settings = [f"--{name}={value}" for name, value in self.settings.items()]
        with (self.home / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [*self._as_user, self.programs / "postgres", "-D", self.data, "-k", self.home, *settings],
                stdout=log,
                stderr=log,
                cwd=self.home,
            )
        wait_until(self._accepts, START_SECONDS)

    def promote(self) -> None:
        """Make a standby the primary."""
        with self.connect() as connection:
            connection.execute("SELECT pg_promote()")

    def _accepts(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log
        with suppress(psycopg.OperationalError), self.connect():
            return True
        return False

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """SIGINT ends all sessions, SIGQUIT is a crash, and so is SIGKILL."""
        if self.process is not None:
            self.process.send_signal(how)
            self.process.wait(30)
            self.process = None

    def close(self) -> None:
        self.stop(signal.SIGQUIT)
        wait_until(self._removed)

    def _removed(self) -> bool:
        """After a SIGKILL, its children write until they notice."""
        shutil.rmtree(self.home, ignore_errors=True)
        return not self.home.exists()

    def connect(self, database: str = "postgres", **more: Any) -> psycopg.Connection[tuple[Any, ...]]:
        return psycopg.connect(self.url(database), autocommit=True, **more)

    def new(self, template: str = "template0") -> str:
        """The name of a new database, a copy of one to which nothing is connected."""
        name = f"test_{next(self._numbers)}"
        with self.connect() as connection:
            connection.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
        return name

    @contextmanager
    def copied(self, template: str) -> Iterator[str]:
        """The URL of a copy, which is dropped at the end."""
        name = self.new(template)
        yield self.url(name)
        self.drop(name)

    def drop(self, database: str) -> None:
        """Also ends the sessions in it."""
        with self.connect() as connection:
            connection.execute(f'DROP DATABASE IF EXISTS "{database}" WITH (FORCE)')


@contextmanager
def postgres_server(primary: Postgres | None = None, **settings: str) -> Iterator[Postgres]:
    """A server of a test's own, for what harms others: `fsync="on"`, kills, other settings."""
    server = Postgres(primary, **settings)
    try:
        yield server
    finally:
        server.close()


class Stores:
    """For `pytest --store postgres`: a database in place of each data directory. `close` it."""

    def __init__(self) -> None:
        self._server: Postgres | None = None
        self._template = ""
        self._names: dict[Path, str] = {}

    def url(self, data: Path) -> str:
        if self._server is None:
            self._server = Postgres()
            self._template = self._server.new()
            prepare(self._server.url(self._template), create=True).close()
        if data not in self._names:
            self._names[data] = self._server.new(self._template)
        return self._server.url(self._names[data])

    def rows(self, data: Path, sql: str) -> list[Any]:
        assert self._server is not None
        with self._server.connect(self._names[data], options="-c search_path=paperdb") as connection:
            return connection.execute(sql).fetchall()

    def close(self) -> None:
        if self._server is not None:
            self._server.close()
