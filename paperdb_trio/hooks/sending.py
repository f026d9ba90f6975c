"""One delivery: a signed POST, and whether it arrived.

Law: no state but connections. A redirect is a failure: it would lead where nobody said.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import trio

from paperdb_trio import __version__
from paperdb_trio.config import Settings
from paperdb_trio.model import encode
from paperdb_trio.store.webhooks import MAX_ERROR_LENGTH, Webhook

if TYPE_CHECKING:
    import httpx

MAX_RESPONSE_BYTES: Final = 64 * 1024
"""Of a response, what is read so that its connection can be used again."""
IDLE_SECONDS: Final = 15.0
"""For which a connection waits for the next delivery. Many servers close idle ones after 60 s or more."""


class DeliveryError(Exception):
    """What went wrong, for the administrator."""


def signature(secret: str, at: int, body: bytes) -> str:
    """The value of `X-PaperDB-Signature`."""
    mac = hmac.new(secret.encode(), b"%d.%b" % (at, body), hashlib.sha256)
    return f"t={at},v1={mac.hexdigest()}"


class Sender:
    """Made by `sending`."""

    def __init__(self, client: httpx.AsyncClient, settings: Settings) -> None:
        self._client = client
        self._timeout = settings.webhook_timeout
        self._public = settings.webhook_addresses == "public"

    async def send(self, webhook: Webhook, delivery: str, events: list[bytes]) -> None:
        """Raises `DeliveryError` unless the response is a 2xx."""
        import httpx

        body = b'{"webhook":%b,"delivery":%b,"events":[%b]}' % (
            encode(webhook.id),
            encode(delivery),
            b",".join(events),
        )
        headers = {
            "Content-Type": "application/json",
            "User-Agent": f"PaperDB/{__version__}",
            "X-PaperDB-Delivery": delivery,
            "X-PaperDB-Signature": signature(webhook.secret, int(time.time()), body),
        }
        try:
            with trio.fail_after(self._timeout):
                status = await self._post(webhook.url, headers, body)
        except trio.TooSlowError:
            raise DeliveryError(f"no response within {self._timeout:g} s") from None
        except (httpx.HTTPError, httpx.InvalidURL, OSError, UnicodeError, ValueError) as error:
            text = str(error) or type(error).__name__
            raise DeliveryError(text[:MAX_ERROR_LENGTH]) from None
        if not 200 <= status < 300:
            raise DeliveryError(f"the response is {status}; expected 2xx")

    async def _post(self, url: str, headers: dict[str, str], body: bytes) -> int:
        extensions = {}
        if self._public:
            # The name is looked up once, here: another look might give an address that was not checked.
            parts = urlsplit(url)
            assert parts.hostname is not None
            address = await _public_address(parts.hostname, parts.port or 443)
            host = f"[{address}]" if ":" in address else address
            headers = {**headers, "Host": parts.netloc}
            url = parts._replace(netloc=host if parts.port is None else f"{host}:{parts.port}").geturl()
            extensions = {"sni_hostname": parts.hostname}
        request = self._client.build_request("POST", url, headers=headers, content=body, extensions=extensions)
        response = await self._client.send(request, stream=True)
        try:
            size = 0
            async for chunk in response.aiter_raw():
                size += len(chunk)
                if size > MAX_RESPONSE_BYTES:
                    break
        finally:
            await response.aclose()
        return response.status_code


async def _public_address(host: str, port: int) -> str:
    """The first address of a host. Raises `DeliveryError` unless all of them are of the public Internet."""
    found = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = [str(where[0]) for *_, where in found]
    for text in addresses:
        address = ipaddress.ip_address(text.partition("%")[0])
        mapped = getattr(address, "ipv4_mapped", None) or address
        if not mapped.is_global or mapped.is_multicast:
            raise DeliveryError(f"{host} has the address {text}, which is not public (--webhook-addresses)")
    return addresses[0]


@asynccontextmanager
async def sending(settings: Settings) -> AsyncIterator[Sender]:
    client = await trio.to_thread.run_sync(_client)  # an import and all CA certificates: 0.15 s
    async with client:
        yield Sender(client, settings)


def _client() -> httpx.AsyncClient:
    import httpx

    return httpx.AsyncClient(
        trust_env=False,  # no proxy: it would be asked for addresses that this machine refuses
        follow_redirects=False,
        timeout=None,  # one for the whole delivery
        limits=httpx.Limits(keepalive_expiry=IDLE_SECONDS),
    )
