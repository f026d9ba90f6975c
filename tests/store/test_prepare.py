"""`paperdb serve --store` refuses what it could not serve well, in one line that says what was expected."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from paperdb_trio.store import postgres
from paperdb_trio.store.postgres import prepare as preparing
from paperdb_trio.store.postgres.schema import MIGRATIONS
from paperdb_trio.store.postgres.session import Session
from paperdb_trio.store_url import check_store_url, shown_store_url
from tests.auth.commands import Done, fails_here, run_here
from tests.conftest import need, wait_until
from tests.nginx import free_port
from tests.postgres import Postgres, postgres_server
from tests.store.tools import new_database


def serve(url: str, *options: str) -> Done:
    return run_here("serve", "--store", url, "--port", "0", *options)


@pytest.fixture(scope="module")
def durable() -> Iterator[Postgres]:
    with postgres_server(fsync="on", listen_addresses="127.0.0.1", port=str(free_port())) as server:
        yield server


def test_postgresql_notices_a_node_that_is_gone_without_a_word(durable: Postgres) -> None:
    """By default, it would keep the connections of a machine without power for two hours."""
    with closing(Session(f"postgresql://postgres@127.0.0.1:{durable.port}/postgres")) as session:
        kernels = "SELECT current_setting('tcp_keepalives_idle'), current_setting('tcp_user_timeout')"
        assert session.query(kernels) == [(b"10", b"20000")]


@pytest.mark.executable
@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("postgresql://127.0.0.1:1/x", ("Cannot connect to PostgreSQL", "Connection refused")),
        ("postgresql://no-such-host.invalid/x", ("no address of the host 'no-such-host.invalid'",)),
        ("postgresql://a..b/x", ("no address of the host 'a..b'",)),
        ("postgresql://127.0.0.1/x?no_such_option=1", ("Cannot connect to PostgreSQL", "no_such_option")),
    ],
)
def test_a_wrong_url(url: str, words: tuple[str, ...]) -> None:
    fails_here(serve(url), 69, *words)


MALFORMED = (
    "mysql://u:SECRET@h/x",
    "host=h password=SECRET",
    "postgresql://u:SECRET%zz@h/x",
    "postgresql://u:SECRET%00@h/x",
    "postgresql://u:SEC/RET@h/x",
    "postgresql://localhost:SECRET/@h/x",  # the port, for libpq
    "postgresql://u:SEC@RET@h/x",
    "postgresql://u:SEC RET@h/x",
    "postgresql://u:SECRET\n@h/x",
    "postgresql://u:SECRET@[::1/x",
    "postgresql://u:SECRET@h:77x1/x",
    "postgresql://u:SECRET@h/x?nope",
    "postgresql://h/x?password=SECRET%zz",
)


@pytest.mark.parametrize("url", MALFORMED)
def test_nothing_of_a_malformed_url_is_shown(url: str, tmp_path: Path) -> None:
    commands: list[list[str | Path]] = [
        ["serve", "--store", url],
        ["check", "--store", url],
        ["backup", tmp_path / "x", "--store", url],
    ]
    if "://" in url:
        commands += [["copy", "--from", url, "--to", tmp_path / "x"], ["copy", "--from", tmp_path, "--to", url]]
    for command in commands:
        done = run_here(*command)
        fails_here(done, 2, "expected postgresql://user:password@host:port/name?option=value", "%40 for @")
        assert not re.search("SEC|RET|zz", done.stderr)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://", "postgresql://"),
        ("postgres://u@/x?host=/tmp&port=1", "postgres:///x"),
        (
            "postgresql://u:p?#[:&=p@h1:1,[::1]:2,%2Ftmp/na%2Fme?a=b=/@&c=",
            "postgresql://h1:1,[::1]:2,%2Ftmp/na%2Fme",
        ),
    ],
)
def test_a_url_without_its_secrets(url: str, shown: str) -> None:
    check_store_url(url)
    assert shown_store_url(url) == shown


def test_each_address_of_a_host_is_tried(durable: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with `localhost`, if PostgreSQL listens on one of its two."""
    found = [(0, 0, 0, "", (address, 0)) for address in ("127.0.0.2", "127.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    with closing(Session(f"postgresql://postgres@several:{durable.port}/postgres")) as session:
        assert session.query("SELECT 1") == [(1,)]


def test_a_wrong_database_user_or_password(durable: Postgres) -> None:
    url = durable.url("no_such_database")
    fails_here(serve(url), 69, 'database "no_such_database" does not exist')
    with durable.connect() as connection:
        connection.execute("CREATE ROLE someone LOGIN PASSWORD 'r?@/%= ight'")
    rules = durable.data / "pg_hba.conf"
    before = rules.read_text()
    rules.write_text("host all someone 127.0.0.1/32 scram-sha-256\n" + before)
    try:
        with durable.connect() as connection:
            connection.execute("SELECT pg_reload_conf()")
        wait_until(
            lambda: "password" in serve(f"postgresql://someone:wrong@127.0.0.1:{durable.port}/postgres").stderr
        )
        wrong = serve(f"postgresql://someone:wrong@127.0.0.1:{durable.port}/postgres")
        fails_here(wrong, 69, "password authentication failed")
        assert "wrong" not in wrong.stderr
        right = serve(f"postgresql://someone:r?%40%2F%25=%20ight@127.0.0.1:{durable.port}/postgres")
        fails_here(
            right, 69, "PostgreSQL refused to prepare the tables", "permission denied for database", "owns"
        )
    finally:
        rules.write_text(before)


def test_another_encoding(durable: Postgres) -> None:
    with durable.connect() as connection:
        connection.execute("CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
    fails_here(serve(durable.url("latin")), 1, "LATIN1", "expected UTF8")


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("fsync", "off"),
        ("full_page_writes", "off"),
        *(("synchronous_commit", value) for value in ("off", "local", "remote_write")),
    ],
)
def test_settings_that_lose_writes(durable: Postgres, setting: str, value: str) -> None:
    with durable.connect() as connection:
        connection.execute(f"ALTER SYSTEM SET {setting}={value}")
        connection.execute("SELECT pg_reload_conf()")
    try:
        url = durable.url(durable.new())
        if setting == "fsync":  # the command line's setting is stronger
            with postgres_server() as other:
                fails_here(serve(other.url()), 1, "'fsync' is off", "--durability process")
        else:
            wait_until(lambda: f"is {value}" in serve(url).stderr)
            fails_here(serve(url), 1, f"'{setting}' is {value}", "--durability process")
    finally:
        with durable.connect() as connection:
            connection.execute(f"ALTER SYSTEM RESET {setting}")
            connection.execute("SELECT pg_reload_conf()")


def test_what_a_role_has_set_harms_no_session(durable: Postgres) -> None:
    name = durable.new()
    harmful = {
        "statement_timeout": "1h",
        "lock_timeout": "1h",
        "idle_session_timeout": "1h",
        "idle_in_transaction_session_timeout": "1h",
        "default_transaction_isolation": "serializable",
        "search_path": "public",
    }
    with durable.connect() as connection:
        connection.execute("CREATE ROLE hasty LOGIN")
        for setting, value in harmful.items():
            connection.execute(f"ALTER ROLE hasty SET {setting}='{value}'")
    with closing(Session(durable.url(name).replace("postgres@", "hasty@"))) as session:
        found = [session.query(f"SHOW {setting}")[0][0] for setting in harmful]
    assert found == [b"0", b"0", b"0", b"0", b"read committed", b"paperdb"]


def test_a_server_that_is_too_old(durable: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparing, "OLDEST", 99)
    fails_here(serve(durable.url()), 1, "is too old: expected 99 or newer")


def test_tables_of_a_newer_version(durable: Postgres) -> None:
    name = durable.new()
    preparing.prepare(durable.url(name), create=True).close()
    with durable.connect(name) as connection:
        connection.execute("UPDATE paperdb.meta SET value=value+1 WHERE name='version'")
    fails_here(
        serve(durable.url(name)), 1, f"version {len(MIGRATIONS) + 1}, of a newer PaperDB; this one knows"
    )


def test_commands_before_the_first_start(durable: Postgres) -> None:
    done = run_here("keys", "list", "--store", durable.url(durable.new()))
    fails_here(done, 1, "There is no PaperDB in this PostgreSQL database")


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(postgres, "admin")
    monkeypatch.setitem(sys.modules, "paperdb_trio.store.postgres.admin", None)
    fails_here(serve("postgresql://127.0.0.1/x"), 2, "pip install 'paperdb-trio[postgres]'")


def test_a_directory_that_cannot_be_made(durable: Postgres, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = serve(durable.url(), "--data", str(tmp_path / "file"))
    fails_here(done, 6, f"Cannot use the data directory {tmp_path / 'file'}: File exists")


def test_workers_are_for_a_directory() -> None:
    fails_here(serve("postgresql://127.0.0.1/x", "--workers", "2"), 2, "start a server for each core")


@pytest.fixture
def pooler_home() -> Iterator[Path]:
    """A directory that every user may use: the pooler does not run as root."""
    with tempfile.TemporaryDirectory(prefix="pooler-", dir="/tmp") as home:
        Path(home).chmod(0o777)
        yield Path(home)


@pytest.mark.parametrize("mode", ["transaction", "session"])
def test_a_pooler(durable: Postgres, pooler_home: Path, mode: str) -> None:
    """Only one that gives each client a session lets a NOTIFY through."""
    name = durable.new()
    (pooler_home / "users").write_text('"postgres" ""\n')
    settings = pooler_home / "settings"
    settings.write_text(
        f"""[databases]
* = host={durable.home} port={durable.port}
[pgbouncer]
listen_addr =
unix_socket_dir = {pooler_home}
listen_port = 6432
auth_type = trust
auth_file = {pooler_home / "users"}
pool_mode = {mode}
user = nobody
"""
    )
    with subprocess.Popen([need("pgbouncer"), settings], stderr=subprocess.DEVNULL) as pooler:
        try:
            wait_until((pooler_home / ".s.PGSQL.6432").exists)
            url = f"postgresql://postgres@/{name}?host={pooler_home}&port=6432"
            if mode == "transaction":
                done = serve(url)
                assert done.exit_code in (1, 69), done
                assert done.stderr.startswith("paperdb: ")
                assert "a pooler in transaction mode" in done.stderr, done.stderr
            else:
                preparing.prepare(url, create=True).close()
                preparing.check_wakes(url)
        finally:
            pooler.terminate()


def test_an_owner_that_is_no_superuser_can_do_all(postgres: Postgres, tmp_path: Path) -> None:
    name = postgres.new()
    with postgres.connect() as connection:
        connection.execute("CREATE ROLE owner LOGIN")
        connection.execute(f'ALTER DATABASE "{name}" OWNER TO owner')
    url = postgres.url(name).replace("postgres@", "owner@")
    new_database(url)
    preparing.prepare(url).query("UPDATE meta SET value=0 WHERE name='history'")
    session = preparing.prepare(url)  # records a break
    assert session.query("SELECT database_id, since, until>0 FROM breaks") == [(1, 0, True)]
    assert session.query("SELECT until FROM breaks") == session.query("SELECT head FROM heads")
    session.close()
    assert run_here("backup", tmp_path / "file", "--store", url).exit_code == 0
    assert run_here("check", "--store", url).stdout.endswith("All is well.\n")


def test_no_index_depends_on_the_collations_of_the_system(postgres: Postgres) -> None:
    url = postgres.url(postgres.new())
    with closing(preparing.prepare(url, create=True)) as session:
        found = session.query(
            "SELECT DISTINCT i.indexrelid::regclass::text, c.collname FROM pg_index i, pg_collation c "
            "WHERE c.oid=ANY(i.indcollation) AND i.indrelid IN "
            "(SELECT oid FROM pg_class WHERE relnamespace='paperdb'::regnamespace)"
        )
    assert len(found) > 5
    assert {collation for _, collation in found} == {"C"}, found


def test_tables_of_older_versions_are_upgraded(postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    url = postgres.url(postgres.new())
    with monkeypatch.context() as older:
        older.setattr(preparing, "MIGRATIONS", MIGRATIONS[:1])
        older.setattr(preparing, "keep_history", lambda _: None)
        session = preparing.prepare(url, create=True)
        session.query("INSERT INTO databases (name, plan, created_at) VALUES ('a','team','2026')")
        session.query("INSERT INTO heads VALUES (1, 41)")
        session.close()
    for _ in range(2):
        session = preparing.prepare(url)
        assert preparing.version(session) == len(MIGRATIONS)
        assert session.query("SELECT head FROM heads") == [(41,)]  # cursors stay good
        assert session.query("SELECT count(*) FROM breaks") == [(0,)]
        session.close()
