"""Refused handshakes: which end a subscription and with what message, and which are tried again."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from paperdb_trio import ConnectionState, PaperDBError, create_client
from paperdb_trio.client import backoff, wire
from paperdb_trio.client.wire import Lost, Stop, TokenRefused
from tests.client.harness import SECONDS, any_token, eventually, insert, nothing_more, take
from tests.conftest import Server, StartServer


@asynccontextmanager
async def refusing(*responses: str) -> AsyncIterator[tuple[str, list[str]]]:
    """A URL where each connection gets the next response, and from then on the last one; and the requests'
    heads."""
    heads: list[str] = []

    async def refuse(stream: trio.SocketStream) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            head += await stream.receive_some(65536)
        heads.append(head.decode())
        start, _, body = responses[min(len(heads), len(responses)) - 1].partition("\n\n")
        fields = start.replace("\n", "\r\n")
        await stream.send_all(
            f"HTTP/1.1 {fields}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}".encode()
        )
        await stream.aclose()

    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, refuse, [listener])
        yield f"http://127.0.0.1:{listener.socket.getsockname()[1]}", heads
        nursery.cancel_scope.cancel()


async def refusal(url: str) -> PaperDBError:
    """The error that ends a subscription."""
    async with create_client(base_url=url, get_token=any_token) as db:
        with trio.fail_after(SECONDS), pytest.raises(PaperDBError) as caught:
            await db.realtime.subscribe("a").__aenter__()
        return caught.value


@pytest.mark.parametrize("status", [400, 403, 404, 413, 414, 426, 431])
async def test_a_final_refusal_is_not_tried_again(status: int) -> None:
    response = f'{status} No\n\n{{"error": "a sentence", "code": "A_CODE", "plan": "free"}}'
    async with refusing(response) as (url, heads):
        error = await refusal(url)
    assert (error.status, error.code, error.message) == (status, "A_CODE", "a sentence")
    assert error.extra == {"plan": "free"}
    assert len(heads) == 1


@pytest.mark.parametrize(
    ("response", "code", "words"),
    [
        (
            "301 Moved\nLocation: https://h/db/?since=now\n\n<html>Moved</html>",
            "REDIRECTED",
            "to https://h/db/;",
        ),
        ("302 Found\n\n", "REDIRECTED", "to another address;"),
        ("200 OK\n\n<html>Welcome</html>", "BAD_ANSWER", "HTTP 200 instead of a WebSocket"),
        ("404 Not Found\n\n<h1>404</h1>\n<hr>nginx", "HTTP_404", "with HTTP 404: 404 nginx"),
        ("401 Unauthorized\n\n<h1>Log in</h1>", "HTTP_401", "with HTTP 401: Log in"),
    ],
)
async def test_a_refusal_that_is_not_paperdb_s_gets_a_message(response: str, code: str, words: str) -> None:
    async with refusing(response) as (url, _):
        error = await refusal(url)
    assert error.code == code
    assert words in error.message
    assert "<" not in error.message


async def test_a_passing_refusal_is_tried_again_after_retry_after(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(backoff, "MAX_DELAY", 0.1)
    busy = '503 Busy\nRetry-After: 1\n\n{"error": "full", "code": "TOO_MANY_CONNECTIONS"}'
    async with refusing(busy, "502 Bad Gateway\n\n", "404 No\n\n") as (url, heads):
        client = create_client(base_url=url, get_token=any_token)
        async with client as db:
            subscription = db.realtime.subscribe("a")
            with trio.fail_after(SECONDS), pytest.raises(PaperDBError):
                await subscription.__aenter__()
            offline = [
                status
                for status in subscription.status()._board.kept
                if status.state is ConnectionState.OFFLINE
            ]
    assert len(heads) == 3
    assert [status.retry_in == 1 for status in offline] == [True, False]
    assert "full" in offline[0].reason


async def test_minting_that_is_refused_for_now_is_tried_again_after_retry_after() -> None:
    response = '429 Slowly\nRetry-After: 3\n\n{"error": "too many tokens", "code": "RATE_LIMITED"}'
    async with refusing(response) as (url, _), create_client(base_url=url, api_key="k") as db:
        subscription = db.realtime.subscribe("a")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(subscription.__aenter__)
            await eventually(lambda: subscription.status().current.state is ConnectionState.OFFLINE)
            nursery.cancel_scope.cancel()
        assert subscription.status()._board.kept[-2].retry_in == 3


def test_statuses_of_a_refused_handshake() -> None:
    def meaning(status: int, **headers: str) -> Exception:
        return wire.refused(status, b"", headers)

    assert isinstance(meaning(401), TokenRefused)
    for status in (200, 302, 400, 403, 404, 426):
        assert isinstance(meaning(status), Stop)
    for status in (408, 429, 500, 503):
        assert isinstance(meaning(status), Lost)
    waits = [("5", 5), ("900", 60), ("-1", 0), ("nan", 0), ("Wed, 21 Oct 2026 07:28:00 GMT", 0)]
    for value, wait in waits:
        lost = wire.refused(503, b"", {"retry-after": value})
        assert isinstance(lost, Lost)
        assert lost.retry_after == wait


async def test_more_collections_than_the_server_allows_are_refused(start_server: StartServer) -> None:
    server = start_server("--max-subscriptions", "10")
    async with create_client(base_url=server.url, api_key=server.key) as db:
        with trio.fail_after(SECONDS), pytest.raises(PaperDBError, match="At most 10 collections"):
            await db.realtime.subscribe(*(f"c{n}" for n in range(11))).__aenter__()
        async with db.realtime.subscribe(*(f"c{n}" for n in range(10))) as events:
            with trio.fail_after(SECONDS), pytest.raises(PaperDBError, match="At most 10 collections"):
                await db.realtime.subscribe("more").__aenter__()
            await nothing_more(events, "c0", server)


async def test_a_head_that_is_too_large_is_a_431(start_server: StartServer) -> None:
    server = start_server("--max-head-bytes", "1024")

    async def get_token() -> str:
        return "x" * 1000

    async with create_client(base_url=server.url, get_token=get_token) as db:
        with trio.fail_after(SECONDS), pytest.raises(PaperDBError) as caught:
            await db.realtime.subscribe("a").__aenter__()
        assert caught.value.status == 431


async def test_a_hundred_long_names_fit_into_one_token(server: Server) -> None:
    """The names are in the token only, so that servers and proxies accept the request's head. Names beyond one
    token get another socket."""
    names = [f"{n:040}" for n in range(100)]
    more = [f"{n:064}" for n in range(40)]
    async with (
        create_client(base_url=server.url, api_key=server.key) as db,
        db.realtime.subscribe(*names) as events,
        db.realtime.subscribe(*more[:20]) as some,
        db.realtime.subscribe(*more[20:], *names[:50]) as others,
    ):
        await nothing_more(events, names[99], server)
        await nothing_more(some, more[0], server)
        await nothing_more(others, more[39], server)
        assert len(db._links.running) == 3


# --- large events ---------------------------------------------------------------------------------


async def test_the_largest_document_is_an_event(start_server: StartServer) -> None:
    server = start_server("--max-document-bytes", str(8 << 20))
    async with (
        create_client(base_url=server.url, api_key=server.key) as db,
        db.realtime.subscribe("a") as events,
    ):
        document = await insert(server, "a", {"text": "x" * (8 * 2**20 - 200)})
        (event,) = await take(events, 1)
        assert event.data == document


async def test_an_event_that_is_too_large_ends_the_subscription_and_names_the_limit(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "MAX_MESSAGE_BYTES", 1 << 20)
    server = start_server("--max-document-bytes", str(2 << 20))
    async with (
        create_client(base_url=server.url, api_key=server.key) as db,
        db.realtime.subscribe("a") as events,
    ):
        await insert(server, "a", {"text": "x" * 2**20})
        with pytest.raises(PaperDBError, match="larger than the 1 MiB that this client takes") as caught:
            await take(events, 1)
        assert caught.value.extra == {"close_code": 1009}
