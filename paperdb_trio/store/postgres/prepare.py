"""What a PostgreSQL database must be, and its tables: looked at and brought up to date before anything else.

Law: each complaint is one sentence that says what was found and what was expected. Nothing is changed before
all that can be looked at is right.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from paperdb_trio.errors import StartupError
from paperdb_trio.store.postgres.history import keep_history
from paperdb_trio.store.postgres.schema import LOCK, MIGRATIONS
from paperdb_trio.store.postgres.session import Session
from paperdb_trio.store.postgres.wire import ConnectionLost, ServerError

log = logging.getLogger("paperdb.store")

OLDEST: Final = 15
EXIT_UNAVAILABLE: Final = 69
WAKE_SECONDS: Final = 5.0
_OF_ANOTHER_SESSION: Final = ("26000", "42P05")
"""A prepared statement is missing, or there already."""
_NO_RIGHTS: Final = "42501"

_SETTINGS: Final = (
    "SELECT current_setting('server_version_num')::int, current_setting('server_encoding'), "
    "current_setting('fsync'), current_setting('full_page_writes'), current_setting('synchronous_commit'), "
    "pg_is_in_recovery(), current_database()::text"
)


def connected(url: str) -> Session:
    """Raises `StartupError`."""
    try:
        return Session(url)
    except (ServerError, ConnectionLost) as error:
        raise unavailable("Cannot connect to PostgreSQL", error) from None


def unavailable(what: str, error: Exception) -> StartupError:
    """With PostgreSQL's message, in one line."""
    if isinstance(error, ServerError) and error.state in _OF_ANOTHER_SESSION:
        return _pooler()
    rights = isinstance(error, ServerError) and error.state == _NO_RIGHTS
    expected = ". Expected a role that owns the database, or its schema 'paperdb'" if rights else ""
    return StartupError(f"{what}: {' '.join(str(error).split())}{expected}", EXIT_UNAVAILABLE)


@contextmanager
def telling(what: str) -> Iterator[None]:
    """Raises a `StartupError` for what PostgreSQL refuses in the block."""
    try:
        yield
    except (ServerError, ConnectionLost) as error:
        raise unavailable(what, error) from None


def prepare(url: str, *, create: bool = False, durable: bool = False) -> Session:
    """Check the server and the database, and create or upgrade the tables. Returns a session.

    `durable`: refuse settings with which a crash could lose acknowledged writes. Raises `StartupError`.
    """
    session = connected(url)
    try:
        _check(session, durable=durable)
        _migrate(session, create=create)
        keep_history(session)
    except (ServerError, ConnectionLost) as error:
        session.close()
        raise unavailable("PostgreSQL refused to prepare the tables", error) from None
    except BaseException:
        session.close()
        raise
    return session


def _check(session: Session, *, durable: bool) -> None:
    ((number, encoding, fsync, pages, commit, standby, name),) = session.query(_SETTINGS)
    version = number // 10_000
    if version < OLDEST:
        raise StartupError(f"PostgreSQL {version} is too old: expected {OLDEST} or newer")
    if encoding != b"UTF8":
        raise StartupError(
            f"The database '{name.decode()}' has the encoding {encoding.decode()}: expected UTF8 "
            "(CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0)"
        )
    if standby:
        raise StartupError("This PostgreSQL server is a standby, which cannot be written: expected the primary")
    if durable and (fsync == b"off" or pages == b"off"):
        off = "fsync" if fsync == b"off" else "full_page_writes"
        raise StartupError(
            f"PostgreSQL's setting '{off}' is off: a crash of its machine could destroy the database. "
            "Set it to on, or start with --durability process"
        )
    if durable and commit not in (b"on", b"remote_apply"):
        raise StartupError(
            f"PostgreSQL's setting 'synchronous_commit' is {commit.decode()}: acknowledged writes could be "
            "lost. Set it to on or remote_apply, or start with --durability process"
        )


def check_wakes(url: str) -> None:
    """Raises a `StartupError` if a NOTIFY does not reach a LISTEN, as behind a pooler in transaction mode."""
    listening, other = connected(url), connected(url)
    try:
        channel = f"paperdb_{os.urandom(8).hex()}"
        listening.query(f"LISTEN {channel}")
        other.query(f"NOTIFY {channel}")
        if not listening.notification(WAKE_SECONDS):
            raise _pooler()
    except (ServerError, ConnectionLost) as error:
        raise unavailable("PostgreSQL refused to listen", error) from None
    finally:
        listening.close()
        other.close()


def _pooler() -> StartupError:
    return StartupError(
        "This URL does not keep a session: is it that of a pooler in transaction mode? Expected PostgreSQL "
        "itself, or a pooler in session mode",
        EXIT_UNAVAILABLE,
    )


def version(session: Session) -> int | None:
    """Of the tables; None if there are none."""
    # Not to_regclass: it remembers that there were none, also while another node makes them.
    if not session.query("SELECT FROM pg_tables WHERE schemaname='paperdb' AND tablename='meta'"):
        return None
    ((found,),) = session.query("SELECT value FROM paperdb.meta WHERE name='version'")
    return int(found)


def _migrate(session: Session, *, create: bool) -> None:
    if (found := version(session)) == len(MIGRATIONS):
        return
    if found is None and not create:
        raise StartupError(
            "There is no PaperDB in this PostgreSQL database: start 'paperdb serve' with it first"
        )
    session.query("BEGIN")
    session.query("SELECT pg_advisory_xact_lock($1::bigint)", LOCK)
    found = version(session)  # another node may just have done it
    if found is not None and found > len(MIGRATIONS):
        session.rollback()
        raise StartupError(
            f"The tables have version {found}, of a newer PaperDB; this one knows {len(MIGRATIONS)}: upgrade it"
        )
    if found is None:
        session.add("CREATE SCHEMA IF NOT EXISTS paperdb")
    for migration in MIGRATIONS[found or 0 :]:
        for statement in migration:
            session.run([(statement, ())])  # each is prepared when those before it are done
    session.add("UPDATE meta SET value=$1 WHERE name='version'", len(MIGRATIONS))
    session.run([("COMMIT", ())])
    log.info("PostgreSQL: the tables have version %d", len(MIGRATIONS))
