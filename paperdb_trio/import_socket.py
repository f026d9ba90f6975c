"""The Unix socket in the data directory, through which `paperdb import` reaches a running server.

Law: only the owner of the data directory can open it (mode 0600), so it needs no key. An import goes through
the server's own writer, and its events go to the subscribers, like any other write.
"""

from __future__ import annotations

import logging
import os
import socket
import struct
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import Final, Protocol

import msgspec
import trio

from paperdb_trio.config import Settings
from paperdb_trio.errors import ApiError, StartupError
from paperdb_trio.files import by_command, inherit
from paperdb_trio.store.administration import Noted
from paperdb_trio.store.housekeeping import finish_drops, until_indexed
from paperdb_trio.store.protocol import Store, Submits
from paperdb_trio.store.sqlite.file import EXIT_LOCKED, prepare, serving_lock
from paperdb_trio.store.sqlite.writer import Writer
from paperdb_trio.store.transfer import ImportAnswer, Importer, ImportRequest, Tally

log = logging.getLogger("paperdb.import_socket")

NAME: Final = "paperdb.sock"
PIECE: Final = 65_536
"""Bytes per read."""
START_TRIES: Final = 30
"""Tenths of a second that a server may take between locking and listening."""


@contextmanager
def _short_path(data: Path) -> Iterator[str]:
    """A path to the socket that fits into an address's 107 bytes, however deep the directory is."""
    directory = os.open(data, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{NAME}"
    finally:
        os.close(directory)


# --- the server's side ---------------------------------------------------------------------------


@contextmanager
def listening(data: Path) -> Iterator[socket.socket | None]:
    """The listening socket, for the process that holds the directory's lock; None if it cannot be created."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener, _short_path(data) as path:
        try:
            Path(path).unlink(missing_ok=True)  # left by a killed server
            listener.bind(path)
            Path(path).chmod(0o600)  # before `listen`, which allows connections
            inherit(Path(path), data)
            listener.listen()
        except OSError as error:
            log.warning("'paperdb import' cannot reach this server: %s", error.strerror)
            yield None
        else:
            yield listener
            Path(path).unlink(missing_ok=True)


async def run(store: Store, settings: Settings, listener: socket.socket) -> None:
    """Serve imports until cancelled, each in its own task. A failed import ends alone."""

    async def serve(stream: trio.SocketStream) -> None:
        try:
            async with stream:
                await stream.send_all(msgspec.json.encode(await _import(store, settings, stream)) + b"\n")
        except trio.BrokenResourceError:
            pass
        except Exception:
            log.exception("an import failed")

    await trio.serve_listeners(serve, [trio.SocketListener(trio.socket.from_stdlib_socket(listener))])


async def _import(store: Store, settings: Settings, stream: trio.SocketStream) -> ImportAnswer:
    received = bytearray()
    while b"\n" not in received:
        received += await stream.receive_some(PIECE) or b"\n"
    head, _, data = bytes(received).partition(b"\n")

    async def receive() -> bytes:
        nonlocal data
        piece, data = data, b""
        return piece or bytes(await stream.receive_some(PIECE))

    request = msgspec.json.decode(head, type=ImportRequest)
    if store.drops_left:  # else a document found "unchanged" would be removed afterwards
        try:
            await finish_drops(store)
        except ApiError as error:
            return ImportAnswer(Tally(), error.message)
    _, uid, _ = struct.unpack("3i", stream.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return await _write(request, receive, store, settings.max_document_bytes, uid)


async def _write(
    request: ImportRequest,
    receive: Callable[[], Awaitable[bytes]],
    store: Submits,
    max_bytes: int,
    uid: int | None = None,
) -> ImportAnswer:
    """Write everything that `receive` returns, until it returns nothing, and record it. `uid`: whose import it
    is, if not this process's."""
    importer = Importer(database=request.database, replace=request.replace, max_bytes=max_bytes)
    error = None
    try:
        while data := await receive():
            for operation in importer.feed(data):
                importer.tally.add(await until_indexed(store, operation))
        for operation in importer.end():
            importer.tally.add(await until_indexed(store, operation))
    except ApiError as failure:
        error = failure.message
    tally = importer.tally
    done = {"inserted": tally.inserted, "replaced": tally.replaced, "schemas": tally.schemas}
    if any(done.values()):
        with suppress(ApiError):  # what is done is told, anyway
            await store.submit(Noted(by_command(uid), "documents.import", request.database, None, done))
    return ImportAnswer(tally, error)


# --- the command's side --------------------------------------------------------------------------


def import_into(data: str, request: ImportRequest, source: BufferedReader, max_bytes: int) -> ImportAnswer:
    """Import all of `source`: through the directory's server or, if none runs, with the directory's lock."""
    file = prepare(data, create=False)
    for wait in (*[0.1] * START_TRIES, 0.0):
        connection = _connect(Path(data))
        if connection is not None:
            return _send(connection, request, source)
        try:
            with serving_lock(data):
                return import_through(Writer(file, lambda changes: None), request, source, max_bytes)
        except StartupError as error:
            if error.exit_code != EXIT_LOCKED or not wait:
                raise
        time.sleep(wait)  # the server may just be starting
    raise AssertionError("the last try raises")


class OwnWriter(Submits, Protocol):
    async def run(self, task_status: trio.TaskStatus[None] = ...) -> None: ...
    def close(self) -> None: ...


def import_through(
    writer: OwnWriter, request: ImportRequest, source: BufferedReader, max_bytes: int
) -> ImportAnswer:
    """Import all of `source` through a writer of this process's own."""
    return trio.run(_import_through, writer, request, source, max_bytes)


async def _import_through(
    writer: OwnWriter, request: ImportRequest, source: BufferedReader, max_bytes: int
) -> ImportAnswer:
    async def receive() -> bytes:
        return await trio.to_thread.run_sync(_read, source, abandon_on_cancel=True)

    async with trio.open_nursery() as nursery:
        await nursery.start(writer.run)
        try:
            await finish_drops(writer)  # else the next server removes documents found "unchanged" here
        except ApiError as error:
            answer = ImportAnswer(Tally(), error.message)
        else:
            answer = await _write(request, receive, writer, max_bytes)
        writer.close()
    return answer


def _read(source: BufferedReader) -> bytes:
    """The next piece; empty at the end. Raises `ApiError`.

    It bypasses the buffer, because a thread that waits here would hold the buffer's lock, and Python crashes on
    that at exit.
    """
    try:
        return getattr(source, "raw", source).read(PIECE) or b""
    except OSError as error:
        raise ApiError(400, "UNREADABLE", f"the input cannot be read: {error.strerror}") from None


def _connect(data: Path) -> socket.socket | None:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with _short_path(data) as path:
            connection.connect(path)
    except OSError:
        connection.close()
        return None
    return connection


def _send(connection: socket.socket, request: ImportRequest, source: BufferedReader) -> ImportAnswer:
    received, unread = bytearray(), None
    with connection, suppress(ConnectionResetError):
        with suppress(BrokenPipeError):  # the server stopped reading: its response says why
            connection.sendall(msgspec.json.encode(request) + b"\n")
            try:
                while piece := _read(source):
                    connection.sendall(piece)
            except ApiError as error:
                unread = error.message
            connection.shutdown(socket.SHUT_WR)
        while data := connection.recv(PIECE):
            received += data
    try:
        answer = msgspec.json.decode(received, type=ImportAnswer)
    except msgspec.DecodeError:
        return ImportAnswer(None, "the server stopped; import again")
    answer.error = answer.error or unread
    return answer
