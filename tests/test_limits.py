"""Limits per address, database, key and connection; and which proxies are trusted to name their clients."""

from __future__ import annotations

import pytest
from trio.testing import MockClock
from websockets.exceptions import InvalidStatus

from paperdb_trio.config import Settings
from paperdb_trio.errors import ApiError, StartupError
from paperdb_trio.limits import Limits, Rate
from tests.conftest import Server, StartServer, receive, wait_until
from tests.realtime.raw import Raw, handshake

GET = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"


def upgrade(server: Server, raw: Raw, *headers: str) -> tuple[int, dict[str, str]]:
    raw.send(handshake(server, f"/?token={server.token('a')}", *headers))
    return raw.head()


# --- clients behind a proxy ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("127.0.0.1", None, "127.0.0.1"),
        ("127.0.0.1", "203.0.113.9", "203.0.113.9"),
        ("203.0.113.9", "198.51.100.1", "203.0.113.9"),  # not one of our proxies: ignored
        ("127.0.0.1", "6.6.6.6, 203.0.113.9", "203.0.113.9"),  # the earlier address may be forged
        ("127.0.0.1", "203.0.113.9, 10.1.2.3", "203.0.113.9"),  # a chain of our own proxies
        ("127.0.0.1", "203.0.113.9, nonsense", "127.0.0.1"),
        ("127.0.0.1", " 2001:db8::1 ", "2001:db8::1"),
        ("127.0.0.1", "203.0.113.9, ::ffff:10.1.2.3", "203.0.113.9"),
        ("127.0.0.1", "::ffff:203.0.113.9", "203.0.113.9"),
        ("127.0.0.1", "", "127.0.0.1"),
    ],
)
def test_client_behind_a_proxy_is_identified(peer: str, forwarded: str | None, client: str) -> None:
    limits = Limits(Settings(trusted_proxies="127.0.0.1, 10.0.0.0/8"))
    assert limits.client_address(peer, forwarded) == client


def test_proxy_that_is_not_an_address_is_refused() -> None:
    with pytest.raises(StartupError, match="'nginx'; expected an address or a network"):
        Limits(Settings(trusted_proxies="10.0.0.1,nginx"))


# --- connections ---------------------------------------------------------------------------------


def test_network_has_one_share_and_gets_it_back() -> None:
    limits = Limits(Settings(max_connections_per_address=2))
    with limits.connection("2001:db8::1"), limits.connection("2001:db8::2"), limits.connection("2001:db9::1"):
        with pytest.raises(ApiError) as caught, limits.connection("2001:db8::3"):
            pass
        assert (caught.value.status, caught.value.code) == (503, "TOO_MANY_CONNECTIONS")
        assert caught.value.headers == {"Retry-After": "5"}
    with limits.connection("2001:db8::3"), limits.connection("2001:db8::4"):
        pass


def test_address_is_refused_beyond_its_share(start_server: StartServer) -> None:
    server = start_server("--max-connections-per-address", "2", "--trusted-proxies", "")
    raws = [Raw(server) for _ in range(2)]
    for raw in raws:
        raw.send(GET)
        assert raw.response()[0] == 200  # and it stays open
    with Raw(server) as third:
        status, headers, body = third.response()
        assert (status, headers["retry-after"], body["code"]) == (503, "5", "TOO_MANY_CONNECTIONS")
        assert body["error"] == "Too many connections from this address"
    for raw in raws:
        raw.socket.close()

    def served() -> bool:
        with Raw(server) as raw:
            raw.send(GET)
            return raw.response()[0] == 200

    wait_until(served)


def test_behind_a_proxy_each_client_has_its_own_share(start_server: StartServer) -> None:
    server = start_server("--max-connections-per-address", "1")
    with Raw(server) as first, Raw(server) as second, Raw(server) as other, Raw(server) as events:
        assert upgrade(server, first, "X-Forwarded-For: 203.0.113.1")[0] == 101
        status, headers = upgrade(server, second, "X-Forwarded-For: 203.0.113.1")
        assert (status, headers["retry-after"]) == (503, "5")
        assert upgrade(server, other, "X-Forwarded-For: 1.1.1.1, 203.0.113.2")[0] == 101
        stream = (
            f"GET /a/changes?token={server.token('a')} HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n"
        )
        events.send(f"{stream}X-Forwarded-For: 203.0.113.2\r\n\r\n".encode())
        assert events.response()[0] == 503


def test_database_is_refused_beyond_its_share_but_others_are_not(start_server: StartServer) -> None:
    server = start_server("--max-connections-per-database", "2")
    server.cli("databases", "create", "other", "--plan", "pro")
    other = server.new_key("other")["key"]
    with server.connect("a") as ws, Raw(server) as events:
        stream = (
            f"GET /a/changes?token={server.token('a')} HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n\r\n"
        )
        events.send(stream.encode())
        assert events.head()[0] == 200
        with pytest.raises(InvalidStatus) as caught:
            server.connect("a")
        assert caught.value.response.status_code == 503
        poll = server.request("GET", "/a/changes?wait=1")
        assert (poll.status_code, poll.json()["code"]) == (503, "TOO_MANY_CONNECTIONS")
        assert server.request("GET", "/a/changes").status_code == 200  # does not wait
        assert server.request("GET", "/a/changes?wait=1", key=other).status_code == 200
        document = server.insert("a", {})
        assert receive(ws)["data"] == document


def test_connection_names_a_bounded_number_of_collections(start_server: StartServer) -> None:
    server = start_server("--max-subscriptions", "2")
    with pytest.raises(InvalidStatus) as caught:
        server.connect("a", "b", "c")
    assert caught.value.response.status_code == 400
    with server.connect("a", "b", "c", query="collections=a,b") as ws:
        ws.send('{"action": "subscribe", "collection": "c"}')
        assert receive(ws)["code"] == "TOO_MANY_SUBSCRIPTIONS"
        ws.send('{"action": "unsubscribe", "collection": "a"}')
        assert receive(ws)["type"] == "unsubscribed"
        ws.send('{"action": "subscribe", "collection": "c"}')
        assert receive(ws)["type"] == "subscribed"


# --- rates ---------------------------------------------------------------------------------------


async def test_rate_allows_one_seconds_burst_and_then_its_pace(mock_clock: MockClock) -> None:
    rate = Rate(10, "requests")
    for _ in range(10):
        rate.take("key")
    with pytest.raises(ApiError) as caught:
        rate.take("key")
    assert (caught.value.status, caught.value.headers) == (429, {"Retry-After": "1"})
    rate.take("another")
    mock_clock.jump(0.1)
    rate.take("key")
    with pytest.raises(ApiError):
        rate.take("key")
    mock_clock.jump(3600)
    for _ in range(10):
        rate.take("key")


async def test_slow_rate_says_when_to_try_again(mock_clock: MockClock) -> None:
    rate = Rate(0.1, "tokens")
    rate.take("key")
    mock_clock.jump(4)
    with pytest.raises(ApiError) as caught:
        rate.take("key")
    assert caught.value.headers == {"Retry-After": "6"}
    mock_clock.jump(6)
    rate.take("key")


@pytest.mark.parametrize("http", ["raw", "quart"])
def test_requests_and_tokens_of_a_key_are_limited(start_server: StartServer, http: str) -> None:
    server = start_server("--requests-per-second", "5", "--tokens-per-second", "0.01", "--http", http)
    mint = {"collections": ["a"]}
    assert server.request("POST", "/realtime/token", json=mint).status_code == 200
    second = server.request("POST", "/realtime/token", json=mint)
    assert (second.status_code, second.json()["code"]) == (429, "RATE_LIMITED")
    assert 1 < int(second.headers["retry-after"]) <= 100
    request = f"GET /collections HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {server.key}\r\n\r\n".encode()
    with Raw(server) as raw:
        raw.send(12 * request)  # at once: on a busy machine twelve clients take longer than the bucket to fill
        responses = [raw.response() for _ in range(12)]
    refused = [headers["retry-after"] for status, headers, _ in responses if status == 429]
    assert len(refused) in range(1, 12)
    assert set(refused) == {"1"}
    assert server.request("GET", "/healthz").status_code == 200
