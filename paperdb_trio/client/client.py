"""`create_client` and `create_sync_client`.

Law: everything in the background runs in the nursery of `async with create_client(…)` and has ended when that
block is left. What a user's code raises in the block comes out of it as it was raised.
"""

from __future__ import annotations

import math
import ssl
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any, TypeVar, overload
from urllib.parse import urlsplit

import trio

from . import requests
from .collection import Collection, SyncCollection
from .groups import leaves
from .http import AsyncTransport, Endpoint, SyncTransport
from .links import Links
from .realtime import Realtime
from .token import GetToken, TokenSource, asking, minting
from .types import BatchResult, Document, Operation, Permission, Rules, Schema
from .wire import Address

T = TypeVar("T")

TIMEOUT = 30.0
TOKEN_SECONDS = 900
RENEWAL_MARGIN = 60.0
HTTP_CLOSE_SECONDS = 1.0


def create_client(
    *,
    base_url: str,
    api_key: str | None = None,
    get_token: GetToken | None = None,
    realtime_url: str | None = None,
    schema: Schema | None = None,
    timeout: float = TIMEOUT,
    token_seconds: int = TOKEN_SECONDS,
    renewal_margin: float = RENEWAL_MARGIN,
    ssl_context: ssl.SSLContext | None = None,
) -> Client:
    """A client on Trio: `async with create_client(base_url=…, api_key=…) as db`.

    `base_url` is http(s), with a path if a proxy serves PaperDB under one. `realtime_url` is ws(s) or http(s);
    by default `base_url`. Requests go through the proxy that HTTP_PROXY, HTTPS_PROXY or ALL_PROXY names, unless
    NO_PROXY exempts the host. The socket connects directly.

    `api_key` is for trusted programs. Others give `get_token`, an async function that asks the application's
    own back end for a token; they can subscribe, find, get and count. With both, tokens come from `get_token`.

    `schema`: `{"users": {"properties": {"email": {"type": "string", "required": True, "unique": True,
    "default": …}}}}`. It is applied to inserts, and given to the server before a collection's first write if
    the key is a secret one.

    `timeout`: seconds without a response after which a try of a request, or a call of `get_token`, has failed;
    both are tried again. `token_seconds` (30 to 86,400): how long minted tokens are valid. Each is renewed
    `renewal_margin` seconds before its end, without an interruption. `ssl_context` is for https and wss; by
    default it trusts the system's certificates.

    Raises ValueError for invalid arguments.
    """
    return Client(
        Endpoint(base_url, api_key, schema, timeout, ssl_context),
        get_token,
        requests.check_url(base_url if realtime_url is None else realtime_url, ("ws", "wss", "http", "https")),
        token_seconds,
        renewal_margin,
    )


def create_sync_client(
    *,
    base_url: str,
    api_key: str,
    schema: Schema | None = None,
    timeout: float = TIMEOUT,
    ssl_context: ssl.SSLContext | None = None,
) -> SyncClient:
    """A blocking client for scripts: `with create_sync_client(base_url=…, api_key=…) as db`.

    It has documents and tokens, but no subscriptions. Arguments as for `create_client`. Threads may share it.
    """
    return SyncClient(Endpoint(base_url, api_key, schema, timeout, ssl_context))


def _shown(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}{parts.path}"


class Client:
    """Any attribute that is not a method is a collection: `db.messages` is `db.collection("messages")`."""

    def __init__(
        self,
        endpoint: Endpoint,
        get_token: GetToken | None,
        realtime_url: str,
        token_seconds: int,
        renewal_margin: float,
    ) -> None:
        if get_token is None and not endpoint.has_key:
            raise ValueError("Give an api_key or get_token")
        if not 0 <= renewal_margin < math.inf:
            raise ValueError(f"renewal_margin is {renewal_margin!r}; expected a number of seconds, 0 or more")
        self._endpoint = endpoint
        self._transport = AsyncTransport(endpoint)
        obtain = (
            asking(get_token, endpoint.timeout)
            if get_token is not None
            else minting(
                lambda collections: requests.mint(sorted(collections), ("read",), token_seconds),
                self._transport.send,
            )
        )
        address = Address.parse(realtime_url, endpoint.ssl_context)
        self._transport.tokens = TokenSource(obtain, renewal_margin)
        self._links = Links(address, self._transport.tokens)
        self.realtime = Realtime(self._transport, self._links)

    def __repr__(self) -> str:
        return f"<paperdb client of {_shown(self._endpoint.base_url)}>"

    @overload
    def collection(self, name: str) -> Collection[Document]: ...

    @overload
    def collection(self, name: str, shape: type[T]) -> Collection[T]: ...

    def collection(self, name: str, shape: type[Any] | None = None) -> Collection[Any]:
        """For names that cannot be attributes, and for documents of a type: `shape` is a TypedDict or a msgspec
        Struct. Raises `PaperDBError` 400 `INVALID_COLLECTION`."""
        return Collection(self._transport, self._links, self._endpoint.schemas, name, shape)

    async def batch(
        self, operations: Iterable[Operation], *, idempotency_key: str | None = None
    ) -> BatchResult:
        """Write several documents, in any collections and in this order, all or none.

        `{"op": "insert", "collection": "orders", "document": {…}}`; `update` has `id` and `fields`, `replace`
        has `id` and `document`, `delete` has `id`; these three may have `ifMatch` and `where`. The first
        failure is raised, with its `index` in `extra`. `idempotency_key` as for `insert`.
        """
        prepared = self._endpoint.schemas.prepare_batch(operations)
        return await self._transport.send(requests.batch(prepared, idempotency_key))

    def __getattr__(self, name: str) -> Collection[Document]:
        if name.startswith("_"):
            raise AttributeError(name)
        return self.collection(name)

    async def __aenter__(self) -> Client:
        self._nurseries = trio.open_nursery()
        self._links.open(await self._nurseries.__aenter__())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        self._links.cancel()
        try:
            return await self._nurseries.__aexit__(kind, error, trace)
        except BaseExceptionGroup as group:
            # If only the user's own exceptions are in it, they come out as they were raised. The nursery may
            # have built the groups anew; the leaves are the same objects.
            if error is None or set(map(id, leaves(group))) != set(map(id, leaves(error))):
                raise
            return False
        finally:
            self._links.close()
            with trio.move_on_after(HTTP_CLOSE_SECONDS, shield=True):
                await self._transport.aclose()


class SyncClient:
    """Like `Client`; its `realtime` has only `generate_token` and `revoke`."""

    def __init__(self, endpoint: Endpoint) -> None:
        if not endpoint.has_key:
            raise ValueError("Give an api_key")
        self._endpoint = endpoint
        self._transport = SyncTransport(endpoint)
        self.realtime = SyncRealtime(self._transport)

    def __repr__(self) -> str:
        return f"<paperdb client of {_shown(self._endpoint.base_url)}>"

    def collection(self, name: str) -> SyncCollection:
        """For names that cannot be attributes. Raises `PaperDBError` 400 `INVALID_COLLECTION`."""
        return SyncCollection(self._transport, self._endpoint.schemas, name)

    def batch(self, operations: Iterable[Operation], *, idempotency_key: str | None = None) -> BatchResult:
        """As `Client.batch`."""
        prepared = self._endpoint.schemas.prepare_batch(operations)
        return self._transport.send(requests.batch(prepared, idempotency_key))

    def __getattr__(self, name: str) -> SyncCollection:
        if name.startswith("_"):
            raise AttributeError(name)
        return self.collection(name)

    def __enter__(self) -> SyncClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """For programs that cannot use `with`."""
        self._transport.close()


class SyncRealtime:
    """Tokens for front ends, from a blocking back end."""

    def __init__(self, transport: SyncTransport) -> None:
        self._transport = transport

    def generate_token(
        self,
        collections: Sequence[str] | Rules,
        permissions: Sequence[Permission] = ("read",),
        expires_in: int = 900,
        *,
        subject: str | None = None,
    ) -> str:
        """As `Realtime.generate_token`."""
        return self._transport.send(requests.mint(collections, permissions, expires_in, subject)).token

    def revoke(self, subject: str | None = None, *, jti: str | None = None) -> None:
        """As `Realtime.revoke`."""
        self._transport.send(requests.revoke(subject, jti))
