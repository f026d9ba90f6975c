"""How much of the server one address, one database or one key may have.

Law: no I/O; counts and clocks only. What it remembers is bounded by what is open and by the keys there are.
"""

from __future__ import annotations

import ipaddress
import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Final

import trio

from paperdb_trio.config import Settings
from paperdb_trio.errors import ApiError, StartupError, bad_request

SMALL_ANSWER: Final = 65_536
"""Bytes of an answer, or a body, that need not be counted: every connection may have one."""

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Limits:
    """The limits of the settings, and what is in use. Raises `StartupError` for a proxy that is no network."""

    def __init__(self, settings: Settings) -> None:
        self._proxies = _networks(settings.trusted_proxies)
        self._per_address = settings.max_connections_per_address
        self._per_database = settings.max_connections_per_database
        self._most_streams = settings.max_connections
        self._most_pending = settings.max_pending_bytes
        self._addresses: Counter[str] = Counter()
        self._handshakes: Counter[str] = Counter()
        self._streams: Counter[str] = Counter()
        self._open_streams = 0
        self._pending = 0
        self._databases: Counter[int] = Counter()
        self._requests = Rate(settings.requests_per_second, "requests")
        self._tokens = Rate(settings.tokens_per_second, "tokens")
        self.is_proxy: Callable[[str], bool] = lru_cache(maxsize=1024)(self._is_proxy)

    def _is_proxy(self, address: str) -> bool:
        """Whether this is a proxy that we trust to say whom it speaks for."""
        try:
            parsed = ipaddress.ip_address(address)
        except ValueError:
            return False
        return any(parsed in network for network in self._proxies)

    def client_address(self, peer: str, forwarded_for: str | None) -> str:
        """Who is behind a connection from `peer`: the last address in `X-Forwarded-For` that is not of a
        trusted proxy, if a trusted one wrote it (whatever stands before it, the client may have made up)."""
        client = peer
        for item in reversed((forwarded_for or "").split(",")):
            if not self.is_proxy(client):
                break
            try:
                address = ipaddress.ip_address(item.strip())
                client = str(getattr(address, "ipv4_mapped", None) or address)
            except ValueError:
                break
        return client

    @contextmanager
    def connection(self, address: str) -> Iterator[None]:
        """Count a connection of a client address (an IPv6 network of 64 bits is one client) while it lasts.

        Raises a 503. A trusted proxy's own connections are not counted: they are many clients'.
        """
        with self._of_address(self._addresses, address):
            yield

    @contextmanager
    def handshake(self, address: str) -> Iterator[None]:
        """Count a TLS handshake of a client address while it lasts, by itself: behind it, one connection too
        many still gets an answer. Raises a 503.
        """
        with self._of_address(self._handshakes, address):
            yield

    @contextmanager
    def stream(self, address: str) -> Iterator[None]:
        """Count a stream of HTTP/2, which costs what a connection does, while it lasts. Raises a 503."""
        if self._open_streams >= self._most_streams:
            raise too_many_connections()
        self._open_streams += 1
        try:
            with self._of_address(self._streams, address):
                yield
        finally:
            self._open_streams -= 1

    @contextmanager
    def _of_address(self, counter: Counter[str], address: str) -> Iterator[None]:
        if not self._per_address or self.is_proxy(address):
            yield
            return
        with _counted(counter, _client_of(address), self._per_address, "from this address"):
            yield

    @contextmanager
    def pending(self, size: int) -> Iterator[None]:
        """Count the bytes of an answer while it is written. Raises a 503 when slow clients hold too many."""
        self._hold(size)
        try:
            yield
        finally:
            self._pending -= size

    @contextmanager
    def arriving(self) -> Iterator[Callable[[int], None]]:
        """Count a body while it comes: call it with the bytes that there are so far, which raises the same."""
        held = 0

        def arrived(size: int) -> None:
            nonlocal held
            if size > held + SMALL_ANSWER:
                self._hold(size - held)
                held = size

        try:
            yield arrived
        finally:
            self._pending -= held

    def _hold(self, size: int) -> None:
        if self._pending and self._pending + size > self._most_pending:
            raise ApiError(
                503,
                "TOO_MANY_PENDING_BYTES",
                f"Slow clients hold over {self._most_pending:,} bytes of answers and bodies; try again later",
                headers={"Retry-After": "5"},
            )
        self._pending += size

    @contextmanager
    def listener(self, database_id: int) -> Iterator[None]:
        """Count somebody who listens to a database while he does. Raises a 503."""
        if not self._per_database:
            yield
            return
        with _counted(self._databases, database_id, self._per_database, "to this database"):
            yield

    def request(self, key_id: str) -> None:
        """Count a request made with a key. Raises a 429."""
        self._requests.take(key_id)

    def token(self, key_id: str) -> None:
        """Count a token minted with a key. Raises a 429."""
        self._tokens.take(key_id)


class Rate:
    """A bucket for each key that fills with `per_second`, up to what comes in a second (at least one)."""

    def __init__(self, per_second: float, what: str) -> None:
        self._per_second = per_second
        self._most = max(1.0, per_second)
        self._what = what
        self._levels: dict[str, tuple[float, float]] = {}

    def take(self, key_id: str) -> None:
        """Raises a 429 `RATE_LIMITED` that says when to come back."""
        if not self._per_second:
            return
        now = trio.current_time()
        level, since = self._levels.get(key_id, (self._most, now))
        level = min(self._most, level + (now - since) * self._per_second)
        if level < 1:
            self._levels[key_id] = (level, now)
            seconds = math.ceil((1 - level) / self._per_second)
            raise ApiError(
                429,
                "RATE_LIMITED",
                f"Too many {self._what} with this key: at most {self._per_second:g} a second",
                headers={"Retry-After": str(seconds)},
            )
        self._levels[key_id] = (level - 1, now)


@contextmanager
def _counted(counter: Counter[Any], key: object, most: int, what: str) -> Iterator[None]:
    if counter[key] >= most:
        raise too_many_connections(what)
    counter[key] += 1
    try:
        yield
    finally:
        counter[key] -= 1
        if not counter[key]:
            del counter[key]


def too_many_connections(what: str = "") -> ApiError:
    return ApiError(
        503,
        "TOO_MANY_CONNECTIONS",
        f"Too many connections {what}".strip(),
        headers={"Retry-After": "5"},
    )


def too_many_subscriptions(most: int) -> ApiError:
    return bad_request(f"At most {most} collections in one connection", "TOO_MANY_SUBSCRIPTIONS")


def _client_of(address: str) -> str:
    if ":" not in address:
        return address
    return str(ipaddress.ip_network((address.partition("%")[0], 64), strict=False))


def _networks(text: str) -> list[Network]:
    networks = []
    for item in filter(None, (item.strip() for item in text.split(","))):
        try:
            networks.append(ipaddress.ip_network(item, strict=False))
        except ValueError:
            raise StartupError(
                f"Setting 'trusted_proxies' has '{item}'; expected an address or a network like 10.0.0.0/8", 2
            ) from None
    return networks
