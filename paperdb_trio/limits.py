"""Limits per address, per database and per key.

Law: no I/O; counts and clocks only. Its memory is bounded by the open connections and the number of keys.
"""

from __future__ import annotations

import ipaddress
import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import lru_cache
from typing import Final, Protocol

import trio

from paperdb_trio.config import Settings
from paperdb_trio.errors import ApiError, StartupError, bad_request

SMALL_RESPONSE: Final = 65_536
"""Bytes of a response or a body that is not counted: every connection may have one."""

OPEN: Final = ("open", None)
"""Kind and key of the count of open connections."""

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Elsewhere(Protocol):
    """The counts of the server's other processes."""

    def tell(self, kind: str, key: object, count: int) -> None:
        """Let the others know a count of this process."""
        ...

    def others(self, kind: str, key: object) -> int:
        """The sum of the others' counts."""
        ...

    def age(self) -> float:
        """Seconds since all counts were zero."""
        ...


class Nowhere:
    """There is only this process."""

    def tell(self, kind: str, key: object, count: int) -> None:
        pass

    def others(self, kind: str, key: object) -> int:
        return 0

    def age(self) -> float:
        return 0.0


class Limits:
    """The limits from the settings, and the counts in use. Raises `StartupError` for an invalid proxy."""

    def __init__(self, settings: Settings, elsewhere: Elsewhere = Nowhere()) -> None:  # noqa: B008 - stateless
        self._elsewhere = elsewhere
        self._proxies = _networks(settings.trusted_proxies)
        self._per_address = settings.max_connections_per_address
        self._per_database = settings.max_connections_per_database
        self._most = settings.max_connections
        self._most_pending = settings.max_pending_bytes
        self._counts: defaultdict[str, dict[Hashable, int]] = defaultdict(dict)
        self._open = 0
        self._open_streams = 0
        self._pending = 0
        self._requests = Rate(settings.requests_per_second, "requests", elsewhere)
        self._tokens = Rate(settings.tokens_per_second, "tokens", elsewhere)
        self.is_proxy: Callable[[str], bool] = lru_cache(maxsize=1024)(self._is_proxy)

    def _is_proxy(self, address: str) -> bool:
        """Whether this address is a trusted proxy."""
        try:
            parsed = ipaddress.ip_address(address)
        except ValueError:
            return False
        return any(parsed in network for network in self._proxies)

    def client_address(self, peer: str, forwarded_for: str | None) -> str:
        """The client behind a connection from `peer`: the last address in `X-Forwarded-For` that is not a
        trusted proxy, if a trusted proxy wrote it. The client may have forged everything before it."""
        client = peer
        if forwarded_for is None:
            return client
        for item in reversed(forwarded_for.split(",")):
            if not self.is_proxy(client):
                break
            try:
                address = ipaddress.ip_address(item.strip())
                client = str(getattr(address, "ipv4_mapped", None) or address)
            except ValueError:
                break
        return client

    def open(self, count: int) -> None:
        """Note how many connections are open in this process."""
        self._open = count
        self._elsewhere.tell(*OPEN, count)

    @property
    def is_full(self) -> bool:
        """Whether there are more connections than allowed."""
        return self._open + self._elsewhere.others(*OPEN) > self._most

    def connection(self, address: str) -> AbstractContextManager[None]:
        """Count a connection of a client address while it lasts (an IPv6 /64 is one client).

        Entering raises a 503. A trusted proxy's own connections are not counted, because they carry many
        clients.
        """
        return self._of_address("connections", address)

    def handshake(self, address: str) -> AbstractContextManager[None]:
        """Count a TLS handshake of a client address while it lasts, separately from connections, so that one
        connection too many still gets a response after it. Entering raises a 503.
        """
        return self._of_address("handshakes", address)

    @contextmanager
    def stream(self, address: str) -> Iterator[None]:
        """Count an HTTP/2 stream while it lasts; it costs as much as a connection. Raises a 503."""
        if self._open_streams + self._elsewhere.others("all streams", None) >= self._most:
            raise too_many_connections()
        self._stream_opened(1)
        try:
            with self._of_address("streams", address):
                yield
        finally:
            self._stream_opened(-1)

    def _stream_opened(self, more: int) -> None:
        self._open_streams += more
        self._elsewhere.tell("all streams", None, self._open_streams)

    def _of_address(self, kind: str, address: str) -> AbstractContextManager[None]:
        if not self._per_address or self.is_proxy(address):
            return _NOT_COUNTED
        return self._counted(kind, _client_of(address), self._per_address, "from this address")

    def _counted(self, kind: str, key: Hashable, most: int, what: str) -> AbstractContextManager[None]:
        return _Counted(self._counts[kind], self._elsewhere, kind, key, most, what)

    @contextmanager
    def pending(self, size: int) -> Iterator[None]:
        """Count the bytes of a response while it is written. Raises a 503 when slow clients hold too many."""
        self._hold(size)
        try:
            yield
        finally:
            self._release(size)

    @contextmanager
    def arriving(self) -> Iterator[Callable[[int], None]]:
        """Count a body while it arrives: call the result with the size so far. Raises the same 503."""
        held = 0

        def arrived(size: int) -> None:
            nonlocal held
            if size > held + SMALL_RESPONSE:
                self._hold(size - held)
                held = size

        try:
            yield arrived
        finally:
            self._release(held)

    def _release(self, size: int) -> None:
        self._pending -= size
        self._elsewhere.tell("pending", None, self._pending)

    def _hold(self, size: int) -> None:
        pending = self._pending + self._elsewhere.others("pending", None)
        if pending and pending + size > self._most_pending:
            raise ApiError(
                503,
                "TOO_MANY_PENDING_BYTES",
                f"Slow clients hold over {self._most_pending:,} bytes of responses and bodies; try again later",
                headers={"Retry-After": "5"},
            )
        self._pending += size
        self._elsewhere.tell("pending", None, self._pending)

    def listener(self, database_id: int) -> AbstractContextManager[None]:
        """Count a listener of a database while it lasts. Entering raises a 503."""
        if not self._per_database:
            return _NOT_COUNTED
        return self._counted("listeners", database_id, self._per_database, "to this database")

    def request(self, key_id: str) -> None:
        """Count a request made with a key. Raises a 429."""
        self._requests.take(key_id)

    def token(self, key_id: str) -> None:
        """Count a token minted with a key. Raises a 429."""
        self._tokens.take(key_id)


_NOT_COUNTED: Final = nullcontext()


class _Counted:
    """One of what a limit counts. Every connection has two while it lasts: as generators they took 1.2 KB and
    6 µs of it."""

    __slots__ = ("_counter", "_elsewhere", "_key", "_kind", "_most", "_what")

    def __init__(
        self, counter: dict[Hashable, int], elsewhere: Elsewhere, kind: str, key: Hashable, most: int, what: str
    ) -> None:
        self._counter = counter
        self._elsewhere = elsewhere
        self._kind = kind
        self._key = key
        self._most = most
        self._what = what

    def __enter__(self) -> None:
        count = self._counter.get(self._key, 0)
        if count + self._elsewhere.others(self._kind, self._key) >= self._most:
            raise too_many_connections(self._what)
        self._counter[self._key] = count + 1
        self._elsewhere.tell(self._kind, self._key, count + 1)

    def __exit__(self, *_: object) -> None:
        count = self._counter[self._key] - 1
        if count:
            self._counter[self._key] = count
        else:
            del self._counter[self._key]
        self._elsewhere.tell(self._kind, self._key, count)


class Rate:
    """A bucket per key that fills at `per_second`, up to one second's worth (at least one).

    What other processes took since the last look, or since all began, counts as if it had been taken here, just
    now.
    """

    def __init__(self, per_second: float, what: str, elsewhere: Elsewhere = Nowhere()) -> None:  # noqa: B008
        self._elsewhere = elsewhere
        self._per_second = per_second
        self._most = max(1.0, per_second)
        self._what = what
        self._levels: dict[str, tuple[float, float, int, int]] = {}

    def take(self, key_id: str) -> None:
        """Raises a 429 `RATE_LIMITED` that says when to try again."""
        if not self._per_second:
            return
        now = trio.current_time()
        others = self._elsewhere.others(self._what, key_id)
        known = self._levels.get(key_id)
        level, since, taken, seen = known or (self._most, now - self._elsewhere.age(), 0, 0)
        # A process that began anew counts from zero again.
        level = min(self._most, level + (now - since) * self._per_second - max(others - seen, 0))
        if level < 1:
            self._levels[key_id] = (level, now, taken, others)
            seconds = math.ceil((1 - level) / self._per_second)
            raise ApiError(
                429,
                "RATE_LIMITED",
                f"Too many {self._what} with this key: at most {self._per_second:g} per second",
                headers={"Retry-After": str(seconds)},
            )
        self._levels[key_id] = (level - 1, now, taken + 1, others)
        self._elsewhere.tell(self._what, key_id, taken + 1)


def too_many_connections(what: str = "") -> ApiError:
    return ApiError(
        503,
        "TOO_MANY_CONNECTIONS",
        f"Too many connections {what}".strip(),
        headers={"Retry-After": "5"},
    )


def too_many_subscriptions(most: int) -> ApiError:
    return bad_request(f"At most {most} collections per connection are allowed", "TOO_MANY_SUBSCRIPTIONS")


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
