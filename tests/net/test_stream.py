"""The stream: pushes and sends arrive whole and in the order in which they started, or the stream breaks and
sends nothing more. It tells a slow peer from one that is gone."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import nullcontext

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from paperdb_trio.net.stream import ByteStream, Interrupted, prepare_listener

CHUNK = 1 << 20


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Both ends of a TCP connection; ours has small buffers."""
    with socket.socket() as listener:
        prepare_listener(listener)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        peer = socket.socket()
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        peer.connect(listener.getsockname())
        ours, _ = listener.accept()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
    ours.setblocking(False)
    peer.settimeout(5)
    yield ours, peer
    ours.close()
    peer.close()


@pytest.fixture
async def stream(pair: tuple[socket.socket, socket.socket]) -> ByteStream:
    return ByteStream(pair[0], "peer")


async def read(peer: socket.socket, size: int) -> bytes:
    def work() -> bytes:
        data = b""
        while len(data) < size and (more := peer.recv(65_536)):
            data += more
        return data

    return await trio.to_thread.run_sync(work)


async def test_push_arrives_immediately(stream: ByteStream, pair: tuple[socket.socket, socket.socket]) -> None:
    assert stream.push(b"one") == 0
    assert stream.push(b"two") == 0
    assert not stream.needs_flush
    assert await read(pair[1], 6) == b"onetwo"


async def test_push_that_does_not_fit_is_kept_and_sent_before_later_writes(
    stream: ByteStream, pair: tuple[socket.socket, socket.socket], nursery: trio.Nursery
) -> None:
    left = stream.push(b"a" * CHUNK)
    assert 0 < left < CHUNK
    assert stream.needs_flush
    assert stream.push(b"refused") == -1
    nursery.start_soon(stream.send_all, b"b" * 10)
    await wait_all_tasks_blocked()
    assert stream.push(b"refused") == -1
    assert await read(pair[1], CHUNK + 10) == b"a" * CHUNK + b"b" * 10
    await wait_all_tasks_blocked()
    assert stream.push(b"c") == 0
    assert await read(pair[1], 1) == b"c"


async def test_writers_take_turns_in_order_of_arrival(
    stream: ByteStream, pair: tuple[socket.socket, socket.socket], nursery: trio.Nursery
) -> None:
    letters = b"abcdefgh"
    for letter in letters:
        nursery.start_soon(stream.send_all, bytes([letter]) * 100_000)
        await wait_all_tasks_blocked()
    assert await read(pair[1], 800_000) == b"".join(bytes([letter]) * 100_000 for letter in letters)


async def test_cancelled_waiting_writer_changes_nothing(
    stream: ByteStream, pair: tuple[socket.socket, socket.socket], nursery: trio.Nursery
) -> None:
    nursery.start_soon(stream.send_all, b"a" * CHUNK)
    await wait_all_tasks_blocked()
    async with trio.open_nursery() as waiting:
        waiting.start_soon(stream.send_all, b"never")
        await wait_all_tasks_blocked()
        waiting.cancel_scope.cancel()
    nursery.start_soon(stream.send_all, b"b")
    assert await read(pair[1], CHUNK + 1) == b"a" * CHUNK + b"b"


async def test_incomplete_write_is_the_last_one(
    stream: ByteStream, pair: tuple[socket.socket, socket.socket]
) -> None:
    async with trio.open_nursery() as writing:
        writing.start_soon(stream.send_all, b"a" * CHUNK)
        await wait_all_tasks_blocked()
        writing.cancel_scope.cancel()
    with pytest.raises(trio.BrokenResourceError):
        stream.push(b"b")
    with pytest.raises(trio.BrokenResourceError):
        await stream.send_all(b"b")
    stream.end()
    assert set(await read(pair[1], CHUNK)) == {ord("a")}


async def test_peer_that_does_not_read_within_write_timeout_breaks_the_stream(stream: ByteStream) -> None:
    stream.write_timeout = 0.2
    with pytest.raises(trio.BrokenResourceError, match="does not read"):
        await stream.send_all(b"a" * CHUNK)


@pytest.mark.parametrize(("pause", "kept"), [(0.2, False), (0, True)])
async def test_peer_must_read_enough_within_write_timeout_not_just_something(
    stream: ByteStream, pair: tuple[socket.socket, socket.socket], pause: float, kept: bool
) -> None:
    stream.write_timeout = 1
    pair[1].setblocking(False)
    taken = 0

    async def read_slowly() -> None:
        nonlocal taken
        while True:
            await trio.lowlevel.wait_readable(pair[1])
            taken += len(pair[1].recv(4096))
            await trio.sleep(pause)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read_slowly)
        with nullcontext() if kept else pytest.raises(trio.BrokenResourceError, match="does not read"):
            await stream.send_all(b"a" * CHUNK)
        nursery.cancel_scope.cancel()
    assert taken > 4096 * 2


@pytest.mark.parametrize("end", ["end", "abort"])
async def test_end_fails_waiting_readers_and_writers(
    stream: ByteStream, nursery: trio.Nursery, end: str
) -> None:
    failures: list[str] = []

    async def expect(name: str, *arguments: bytes) -> None:
        try:
            await getattr(stream, name)(*arguments)
        except (trio.ClosedResourceError, trio.BrokenResourceError):
            failures.append(name)

    nursery.start_soon(expect, "send_all", b"a" * CHUNK)
    nursery.start_soon(expect, "receive_some")
    await wait_all_tasks_blocked()
    getattr(stream, end)()
    await wait_all_tasks_blocked()
    assert sorted(failures) == ["receive_some", "send_all"]
    with pytest.raises((trio.ClosedResourceError, trio.BrokenResourceError)):
        stream.push(b"b")


@pytest.mark.parametrize("when", ["before it waits", "while it waits"])
async def test_an_interrupted_reader_can_read_on(
    stream: ByteStream, pair: tuple[socket.socket, socket.socket], when: str
) -> None:
    assert stream.take_now(100) == b""  # so that the next one waits

    async def interrupted() -> None:
        with pytest.raises(Interrupted):
            await stream.receive_some()

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            if when == "before it waits":
                stream.interrupt()
            nursery.start_soon(interrupted)
            if when == "while it waits":
                await wait_all_tasks_blocked()
                stream.interrupt()
        pair[1].send(b"later")
        assert await stream.receive_some() == b"later"
        stream.interrupt()
        stream.resume()
        pair[1].send(b"again")
        assert await stream.receive_some() == b"again"


async def test_take_now_takes_what_is_there_and_leaves_the_end(
    stream: ByteStream, pair: tuple[socket.socket, socket.socket]
) -> None:
    pair[1].send(b"head")
    pair[1].shutdown(socket.SHUT_WR)
    assert stream.take_now(2) == b"he"
    assert stream.take_now(100) == b"ad"
    assert stream.take_now(100) == b""
    assert await stream.receive_some() == b""


async def test_unread_bytes_are_received_again(
    stream: ByteStream, pair: tuple[socket.socket, socket.socket]
) -> None:
    stream.unread(b"two")
    stream.unread(b"one")
    pair[1].sendall(b"three")
    assert await stream.receive_some(2) == b"on"
    assert await stream.receive_some() == b"etwo"
    assert await stream.receive_some() == b"three"


async def test_reader_is_behind_until_it_has_read(
    stream: ByteStream, pair: tuple[socket.socket, socket.socket], nursery: trio.Nursery
) -> None:
    stream.note_window()
    assert not stream.reader_is_behind()
    nursery.start_soon(stream.send_all, b"a" * 200_000)
    await wait_all_tasks_blocked()
    assert stream.reader_is_behind()
    assert not stream.peer_is_gone()
    await read(pair[1], 200_000)
    with trio.fail_after(5):
        while stream.reader_is_behind():  # the last acknowledgement is still on its way
            await trio.sleep(0.01)


async def test_finish_discards_late_input_so_that_the_last_response_arrives(
    stream: ByteStream, pair: tuple[socket.socket, socket.socket], nursery: trio.Nursery
) -> None:
    """Closing a socket with unread input resets the connection, and the peer loses its unread bytes."""
    pair[1].sendall(b"x" * 3000)
    await stream.send_all(b"the last response")
    nursery.start_soon(stream.finish)
    assert await read(pair[1], 100) == b"the last response"
    pair[1].close()
