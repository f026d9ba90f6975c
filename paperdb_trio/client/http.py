"""The two ways a request travels: httpx on Trio, and blocking httpx.

Law: the only file that holds an API key. The key, or a token, goes into one header; never into a URL, a repr, a
log or an error, and never to another host, because redirects are not followed. A request without a response is
sent again, a few times. A write is sent again only if the server knows its `Idempotency-Key`, so that it
happens once.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Generator
from typing import Any, TypeVar

import httpx
import trio

from . import requests
from .backoff import pause
from .errors import PaperDBError
from .proxy import proxy_for
from .requests import RestRequest, RestResponse
from .schema import SchemaBook
from .token import Token, TokenSource
from .types import Schema

T = TypeVar("T")
Came = httpx.Response | httpx.HTTPError
Exchange = Generator[RestRequest[Any] | float, Came | None, T]
"""Yields a request, and gets its response or httpx error; or yields seconds to wait, and gets None."""

NO_RESPONSE = frozenset({0, 502, 504})
"""Statuses of a request to which no response came, be it a proxy that says so. A write may have happened."""
MAX_RETRY_AFTER = 10.0
"""A response that asks for a longer pause is for the caller."""
NO_SUCH_ROUTE = (404, 405)
"""A server without schemas refuses a registration like this. Then only the client applies the schema."""


class Endpoint:
    """What both transports share: address, key, schemas, and the order of sending.

    `timeout`, in seconds, is for connecting and for each wait for bytes. `ssl_context` is for https; by default
    it trusts the system's certificates, as the socket's does. Raises ValueError for invalid arguments.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str | None,
        schema: Schema | None,
        timeout: float,
        ssl_context: ssl.SSLContext | None,
    ) -> None:
        self.base_url = requests.check_url(base_url, ("http", "https"))
        key = None if api_key is None else api_key.strip()
        if key == "":
            raise ValueError("The api_key is empty")
        if key is not None and not (key.isascii() and key.isprintable() and " " not in key):
            raise ValueError("The api_key contains characters that no key has")  # do not show it
        self.has_key = key is not None
        self._headers = {"User-Agent": "paperdb-python"}
        if key is not None:
            self._headers["Authorization"] = f"Bearer {key}"
        self.schemas = SchemaBook(schema, register=key is not None and key.startswith("pdb_sk_"))
        if ssl_context is None and self.base_url.startswith("https:"):
            ssl_context = ssl.create_default_context()
        self.ssl_context = ssl_context
        self.timeout = timeout
        self._proxy = proxy_for(self.base_url)
        self._keys_known = False

    def options(self) -> dict[str, Any]:
        """The arguments of either httpx client."""
        # Plain HTTP uses no context, but with True httpx would read all CA certificates: 30 ms for each client.
        unused = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        return {
            "headers": self._headers,
            "timeout": self.timeout,
            "verify": self.ssl_context or unused,
            "proxy": self._proxy,
            "trust_env": False,
            "follow_redirects": False,
        }

    def arguments(self, request: RestRequest[Any], token: Token | None = None) -> dict[str, Any]:
        """The arguments of either httpx client's `build_request`. A token is used instead of the key."""
        headers = {}
        if token is not None:
            headers["Authorization"] = f"Bearer {token.text}"
        if request.body is not None:
            headers["Content-Type"] = "application/json"
        if request.if_match is not None:
            headers["If-Match"] = f'"{request.if_match}"'
        if request.key is not None:
            headers["Idempotency-Key"] = request.key
        return {
            "method": request.method,
            "url": self.base_url + request.path,
            "params": request.query or None,
            "content": request.body,
            "headers": headers,
        }

    def conversation(self, request: RestRequest[T]) -> Exchange[T]:
        """Returns the result of `request`, after all that has to be sent and waited for.

        The schema of a collection is registered before the first write to it. Several first writes at the same
        time each register it, with the same PUT.
        """
        for collection, registration in self.schemas.registrations(request.collections):
            try:
                yield from self._exchange(registration)
            except PaperDBError as error:
                if error.status not in NO_SUCH_ROUTE:
                    raise
            self.schemas.registered(collection)
        return (yield from self._exchange(request))

    def _exchange(self, request: RestRequest[T]) -> Exchange[T]:
        """Send it until it has a response, but not too often."""
        failures: list[PaperDBError] = []
        while True:
            try:
                if failures and request.key is not None and not (yield from self._knows_keys()):
                    break
                return (yield from _send(request))
            except PaperDBError as error:
                seconds = _retry_after(error)
                if seconds is None:
                    raise
                failures.append(error)
                if len(failures) >= request.attempts:
                    break
                yield seconds + pause(len(failures))
        # If the write may have happened, that is what the caller must learn.
        raise next((error for error in failures if error.status in NO_RESPONSE), failures[-1])

    def _knows_keys(self) -> Exchange[bool]:
        """Whether the server knows `Idempotency-Key`. Raises `PaperDBError` if it may say so later."""
        if not self._keys_known:
            try:
                yield from _send(requests.ask_for_keys())
            except PaperDBError as error:
                if _retry_after(error) is not None:
                    raise
                self._keys_known = error.code == "INVALID_OPERATION"
        return self._keys_known


def _send(request: RestRequest[T]) -> Exchange[T]:
    came = yield request
    if isinstance(came, httpx.Response):
        return request.result(RestResponse(came.status_code, came.content, came.headers))
    assert came is not None
    raise requests.network(came) from came


def _retry_after(error: PaperDBError) -> float | None:
    """The seconds after which the same request may have another response; None if the error stands. A query
    that took too long would do so again."""
    if error.status == 503 and error.code != "QUERY_TIMEOUT":
        seconds = error.extra.get("retry_after")
    elif error.status in NO_RESPONSE and error.transient:
        seconds = error.extra.get("retry_after", 0)
    else:
        return None
    return float(seconds) if isinstance(seconds, int) and seconds <= MAX_RETRY_AFTER else None


class _Body(httpx.AsyncByteStream):
    """A request's body. httpx's own is an async generator: Trio warns (ResourceWarning) when a request fails
    before the generator has ended."""

    def __init__(self, body: bytes) -> None:
        self._parts = iter((body,) if body else ())

    def __aiter__(self) -> _Body:
        return self

    async def __anext__(self) -> bytes:
        for part in self._parts:
            return part
        raise StopAsyncIteration


class AsyncTransport:
    """Owns a pool of connections: close it."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._client = httpx.AsyncClient(**endpoint.options())
        self.tokens: TokenSource | None = None

    async def send(self, request: RestRequest[T], *, by_token: bool = False) -> T:
        """Raises `PaperDBError`. `by_token`: read what the sockets may see, also if there is a key."""
        if self._endpoint.has_key and not by_token:
            return await self._send(request)
        if request.reads is None or self.tokens is None:
            raise PaperDBError(
                401,
                "UNAUTHORIZED",
                "This client has no api_key; with get_token alone it can find, get, count and subscribe",
            )
        collections = frozenset((request.reads,))
        while True:
            token, fresh = await self.tokens.get(collections)
            try:
                return await self._send(request, token)
            except PaperDBError as error:
                if error.status != 401:
                    raise
                self.tokens.forget(token)
                if fresh and trio.current_time() < token.expires:  # else it ended while this was repeated
                    raise

    async def _send(self, request: RestRequest[T], token: Token | None = None) -> T:
        conversation = self._endpoint.conversation(request)
        try:
            wanted = next(conversation)
            while True:
                if isinstance(wanted, float):
                    await trio.sleep(wanted)
                    wanted = conversation.send(None)
                    continue
                try:
                    built = self._client.build_request(**self._endpoint.arguments(wanted, token))
                    built.stream = _Body(wanted.body or b"")
                    came = await self._client.send(built)
                except httpx.HTTPError as error:
                    wanted = conversation.send(error)
                else:
                    wanted = conversation.send(came)
        except StopIteration as done:
            result: T = done.value
            return result

    async def aclose(self) -> None:
        await self._client.aclose()


class SyncTransport:
    """The same, blocking. Several threads may use it."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._client = httpx.Client(**endpoint.options())

    def send(self, request: RestRequest[T]) -> T:
        """Raises `PaperDBError`."""
        conversation = self._endpoint.conversation(request)
        try:
            wanted = next(conversation)
            while True:
                if isinstance(wanted, float):
                    time.sleep(wanted)
                    wanted = conversation.send(None)
                    continue
                try:
                    came = self._client.send(self._client.build_request(**self._endpoint.arguments(wanted)))
                except httpx.HTTPError as error:
                    wanted = conversation.send(error)
                else:
                    wanted = conversation.send(came)
        except StopIteration as done:
            result: T = done.value
            return result

    def close(self) -> None:
        self._client.close()
