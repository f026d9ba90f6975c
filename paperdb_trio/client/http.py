"""The two ways a request travels: httpx on Trio, and blocking httpx.

Law: the only file that holds an API key. The key goes into one header; never into a URL, a repr, a log or an
error, and never to another host, because redirects are not followed. When the network fails, a read is tried a
second time. A write is not: only the caller can find out whether it has happened.
"""

from __future__ import annotations

import ssl
from collections.abc import Generator
from typing import Any, TypeVar

import httpx

from . import requests
from .errors import PaperDBError
from .proxy import proxy_for
from .requests import RestRequest, RestResponse
from .schema import SchemaBook
from .types import Schema

T = TypeVar("T")
Exchange = Generator[RestRequest[Any], httpx.Response | httpx.HTTPError, T]

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

    def arguments(self, request: RestRequest[Any]) -> dict[str, Any]:
        """The arguments of either httpx client's `build_request`."""
        headers = {}
        if request.body is not None:
            headers["Content-Type"] = "application/json"
        if request.if_match is not None:
            headers["If-Match"] = f'"{request.if_match}"'
        return {
            "method": request.method,
            "url": self.base_url + request.path,
            "params": request.query or None,
            "content": request.body,
            "headers": headers,
        }

    def conversation(self, request: RestRequest[T]) -> Exchange[T]:
        """Yields each request, takes its response or httpx error, and returns the result.

        The schema of a collection is registered before the first write to it. Several first writes at the same
        time each register it, with the same PUT.
        """
        if not self.has_key:
            raise PaperDBError(
                401, "UNAUTHORIZED", "This client has no api_key; with get_token alone it can only subscribe"
            )
        registration = self.schemas.registration(request.collection)
        if registration is not None:
            try:
                yield from _exchange(registration)
            except PaperDBError as error:
                if error.status not in NO_SUCH_ROUTE:
                    raise
            self.schemas.registered(request.collection)
        return (yield from _exchange(request))


def _exchange(request: RestRequest[T]) -> Exchange[T]:
    came = yield request
    if isinstance(came, httpx.TransportError) and request.repeatable:
        came = yield request
    if isinstance(came, httpx.Response):
        return request.result(RestResponse(came.status_code, came.content, came.headers))
    raise requests.network(came) from came


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

    async def send(self, request: RestRequest[T]) -> T:
        """Raises `PaperDBError`."""
        conversation = self._endpoint.conversation(request)
        try:
            wanted = next(conversation)
            while True:
                try:
                    built = self._client.build_request(**self._endpoint.arguments(wanted))
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
