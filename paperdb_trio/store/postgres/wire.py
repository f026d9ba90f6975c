"""Statements and rows over one connection to PostgreSQL, without waiting.

Law: this is the only module that speaks libpq's protocol, by the documented part of `psycopg.pq`. It never
blocks and knows no event loop: `session` waits on a thread, `connection` in a Trio task. All statements that
are sent together take one round trip (libpq's pipeline); outside a transaction, they are one.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import psycopg
from psycopg import pq
from psycopg.pq import abc

MAX_PREPARED: Final = 500
"""Statements that a connection keeps prepared."""

_LOST: Final = ("57P", "08")
"""Classes of errors after which the server has closed the connection, or will."""
_TOLD: Final = (pq.DiagnosticField.MESSAGE_PRIMARY, pq.DiagnosticField.MESSAGE_DETAIL)


class ServerError(Exception):
    """PostgreSQL refused a statement, and with it all that were sent together. `state`: its five characters."""

    def __init__(self, state: str, message: str) -> None:
        super().__init__(f"{message} ({state})")
        self.state = state


class ConnectionLost(Exception):
    """What was sent has happened or not."""


class Texts(NamedTuple):
    """A parameter `text[]`."""

    values: Sequence[str | bytes | None]


class Ints(NamedTuple):
    """A parameter `bigint[]`."""

    values: Sequence[int | None]


class Blobs(NamedTuple):
    """A parameter `bytea[]`."""

    values: Sequence[bytes | None]


Parameter = None | bool | int | float | str | bytes | Texts | Ints | Blobs
"""A `str` is sent as text of whatever type the server expects. `bytes` are a bytea, or UTF-8 where the server
expects a text."""

Statement = tuple[str, Sequence[Parameter]]
Row = tuple[Any, ...]

_BYTEA, _INT8, _TEXT = 17, 20, 25
_length: Final = struct.Struct(">i").pack
_int8: Final = struct.Struct(">q")
_float8: Final = struct.Struct(">d")


def _array(oid: int, items: Sequence[bytes | None]) -> bytes:
    if not items:
        return struct.pack(">iii", 0, 0, oid)
    parts = [struct.pack(">iiiii", 1, int(None in items), oid, len(items), 1)]
    for item in items:
        if item is None:
            parts.append(b"\xff\xff\xff\xff")
        else:
            parts += (_length(len(item)), item)
    return b"".join(parts)


def _encode(value: Parameter) -> tuple[bytes | None, int]:
    """The bytes of a parameter, and 1 if they are in PostgreSQL's binary format."""
    if isinstance(value, str):
        if "\0" in value:
            raise ServerError("22021", "PostgreSQL stores no character U+0000")
        return value.encode(), 0
    if isinstance(value, bytes):
        return value, 1
    if value is None:
        return None, 0
    if isinstance(value, bool):
        return b"t" if value else b"f", 0
    if isinstance(value, int | float):
        return repr(value).encode(), 0
    if isinstance(value, Ints):
        return _array(_INT8, [None if item is None else _int8.pack(item) for item in value.values]), 1
    if isinstance(value, Texts):
        return _array(_TEXT, [i.encode() if isinstance(i, str) else i for i in value.values]), 1
    return _array(_BYTEA, value.values), 1


def _integer(value: bytes) -> int:
    return int.from_bytes(value, signed=True)


def _text(value: bytes) -> str:
    return value.decode()


_DECODERS: Final[dict[int, Callable[[bytes], Any]]] = {
    16: lambda value: value == b"\1",  # boolean
    **dict.fromkeys((20, 21, 23, 26), _integer),
    701: lambda value: _float8.unpack(value)[0],
    **dict.fromkeys((19, 1043), _text),  # name, varchar
    2278: lambda _: None,  # void
    **dict.fromkeys((17, 25, 114), bytes),  # bytea, text, json
}
"""By the type's oid: how a value in the binary format is read. Text stays bytes: most of it is documents."""


def _rows(result: abc.PGresult) -> list[Row]:
    columns = range(result.nfields)
    decoders = [_DECODERS[result.ftype(column)] for column in columns]
    return [
        tuple(
            None if (value := result.get_value(row, column)) is None else decode(value)
            for column, decode in zip(columns, decoders, strict=True)
        )
        for row in range(result.ntuples)
    ]


class Wire:
    """`send` as often as you like; then call `step` until it returns the results of the first `send`, and so
    on. Between two steps, wait until the socket is readable, or writable if `unsent`."""

    def __init__(self, connection: abc.PGconn) -> None:
        """Of an open connection."""
        self._connection = connection
        connection.nonblocking = 1
        connection.enter_pipeline_mode()
        self._names: dict[str, bytes] = {}
        self._number = 0
        self._kept: list[
            list[str | None]
        ] = []  # for each `send`, what its results are: of a preparation, or rows
        self._results: list[list[Row]] = []
        self._error: ServerError | None = None
        self._at = 0
        self.unsent = False

    @property
    def socket(self) -> int:
        try:
            return self._connection.socket
        except psycopg.Error as error:
            raise ConnectionLost(str(error)) from None

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is open, also a failed one."""
        return self._connection.transaction_status not in (
            pq.TransactionStatus.IDLE,
            pq.TransactionStatus.UNKNOWN,
        )

    def send(self, statements: Sequence[Statement]) -> None:
        """Raises `ServerError` for a parameter that PostgreSQL cannot have, and then sends nothing."""
        encoded = [(sql, [_encode(value) for value in parameters]) for sql, parameters in statements]
        kept: list[str | None] = []
        try:
            for sql, parameters in encoded:
                name = self._names.pop(sql, None)
                if name is None:
                    self._number += 1
                    name = b"s%d" % self._number
                    self._connection.send_prepare(name, sql.encode())
                    kept.append(sql)
                self._names[sql] = name  # the last is the most recently used
                self._connection.send_query_prepared(
                    name, [value for value, _ in parameters], [format for _, format in parameters], 1
                )
                kept.append(None)
            while len(self._names) > MAX_PREPARED:
                self._connection.send_close_prepared(self._names.pop(next(iter(self._names))))
                kept.append("")
            self._connection.pipeline_sync()
            self._kept.append(kept)
            self.flush()
        except psycopg.Error as error:
            raise ConnectionLost(str(error).strip()) from None

    def flush(self) -> None:
        try:
            self.unsent = bool(self._connection.flush())
        except psycopg.Error as error:
            raise ConnectionLost(str(error).strip()) from None

    def read(self) -> None:
        """Call this when the socket is readable."""
        try:
            self._connection.consume_input()
        except psycopg.Error as error:
            raise ConnectionLost(str(error).strip()) from None

    def step(self) -> list[list[Row]] | None:
        """The rows of each statement of the oldest `send`; None until they have come. Raises `ServerError`
        for the first statement that was refused."""
        while not self._connection.is_busy():
            result = self._connection.get_result()
            if result is None:  # between the results of two statements
                if self._connection.status == pq.ConnStatus.BAD:
                    raise ConnectionLost(self._connection.get_error_message())
                continue
            if result.status == pq.ExecStatus.PIPELINE_SYNC:
                return self._end()
            self._take(result)
        return None

    def _take(self, result: abc.PGresult) -> None:
        state = ""
        if result.status == pq.ExecStatus.FATAL_ERROR:
            state = (result.error_field(pq.DiagnosticField.SQLSTATE) or b"").decode()
            if not state or state.startswith(_LOST):  # it may come in place of the sync
                raise ConnectionLost(result.get_error_message())
        prepared = self._kept[0][self._at]
        self._at += 1
        if result.status in (pq.ExecStatus.TUPLES_OK, pq.ExecStatus.COMMAND_OK):
            if prepared is None:
                self._results.append(_rows(result))
            return
        if prepared:
            self._names.pop(prepared, None)
        if state and self._error is None:
            told = (result.error_field(field) for field in _TOLD)
            self._error = ServerError(state, "; ".join(text.decode() for text in told if text))

    def _end(self) -> list[list[Row]]:
        results, self._results = self._results, []
        error, self._error = self._error, None
        del self._kept[0]
        self._at = 0
        if error is not None:
            raise error
        return results

    def notifications(self) -> list[str]:
        """The payloads that have come."""
        found = []
        while (notification := self._connection.notifies()) is not None:
            found.append(notification.extra.decode())
        return found

    def close(self) -> None:
        self._connection.finish()
