"""SQLite: the copy that comes with `apsw`, so that every installation has the same, current version.

Law: this is the only module that imports apsw. The package never opens a file with Python's own `sqlite3`.
POSIX locks belong to a process, so a second copy of SQLite would release this one's locks when it closes the
file.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import apsw
from apsw import (
    BusyError,
    CantOpenError,
    ConnectionClosedError,
    ConstraintError,
    CorruptError,
    Error,
    FullError,
    InterruptError,
    IOError,
    NotADBError,
    ReadOnlyError,
    TooBigError,
)

__all__ = (
    "DAMAGED",
    "LENGTH",
    "UNAVAILABLE",
    "VERSION",
    "BusyError",
    "Connection",
    "ConnectionClosedError",
    "ConstraintError",
    "Error",
    "FullError",
    "InterruptError",
    "TooBigError",
    "copy",
    "create",
    "error_name",
    "open_file",
    "utils_connection",
)

STEP_PAGES: Final = 4096
"""Pages that one step copies: 16 MiB. A signal waits for the end of a step."""
VERSION: Final = apsw.sqlite_lib_version()
LENGTH: Final = apsw.SQLITE_LIMIT_LENGTH
"""The limit on the bytes of one string or row, for `Connection.limit`."""
DAMAGED: Final = (CorruptError, NotADBError)
UNAVAILABLE: Final = (FullError, ReadOnlyError, CantOpenError, IOError, BusyError)
"""Errors of the disk or directory, not of the file's content."""


class Connection(apsw.Connection):
    """Only one thread at a time may use it. Any thread may call `interrupt`."""

    if TYPE_CHECKING:  # the types in a row depend on the SQL

        def execute(self, statements: str, bindings: Any = None) -> Any: ...  # type: ignore[override]


def open_file(uri: str, *, read_only: bool, busy_seconds: float) -> Connection:
    """Open an existing file, in autocommit mode. Raises `Error`."""
    mode = apsw.SQLITE_OPEN_READONLY if read_only else apsw.SQLITE_OPEN_READWRITE
    connection = Connection(uri, flags=mode | apsw.SQLITE_OPEN_URI)
    connection.set_busy_timeout(int(busy_seconds * 1000))
    return connection


def create(file: Path) -> Connection:
    """Open a file that may be missing or empty. Raises `Error`."""
    return Connection(str(file))


def copy(source: Connection, target: Connection) -> None:
    """Copy a whole database as it is at one moment. Raises `Error`."""
    with target.backup("main", source, "main") as copying:
        while not copying.done:  # signals are handled between two steps
            copying.step(STEP_PAGES)


def error_name(error: Error) -> str:
    """SQLite's name for an error, such as SQLITE_IOERR_FSYNC."""
    extended: int = getattr(error, "extendedresult", 0)
    names: dict[Any, Any] = apsw.mapping_extended_result_codes
    return str(names.get(extended) or apsw.mapping_result_codes.get(getattr(error, "result", 0), "?"))


def _keep_columns(cursor: apsw.Cursor, statement: str, bindings: Any) -> bool:
    assert isinstance(cursor, _Cursor)
    cursor.columns = cursor.get_description()
    return True


class _Cursor(apsw.Cursor):
    """Adds the members of Python's own cursors that sqlite-utils uses."""

    def __init__(self, connection: apsw.Connection) -> None:
        super().__init__(connection)
        self.columns: tuple[Any, ...] = ()
        self.exec_trace = _keep_columns

    @property
    def description(self) -> Any:  # type: ignore[override]
        return self.columns or None  # apsw's own description is gone after the last row

    @property
    def lastrowid(self) -> int:
        return self.connection.last_insert_rowid()

    @property
    def rowcount(self) -> int:
        return self.connection.changes()


def utils_connection(connection: Connection) -> Any:
    """Give the connection the cursors that sqlite-utils needs, and return it."""
    connection.cursor_factory = _Cursor
    return connection
