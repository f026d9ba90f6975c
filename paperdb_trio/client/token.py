"""Where a realtime token comes from, what it covers, and until when it is good.

Law: a token's text is only ever handed to the wire; it is in no repr and in no error.
"""

from __future__ import annotations

import base64
import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
import msgspec
import trio

from paperdb_trio.client.errors import PaperDBError
from paperdb_trio.client.requests import Minted, Request

GetToken = Callable[[], Awaitable[str]]
Send = Callable[[Request[Minted]], Awaitable[Minted]]


@dataclass(frozen=True, slots=True)
class Token:
    """`collections` None: every one, or unknown. `expires` on Trio's clock; infinite if it cannot be told."""

    text: str = field(repr=False)
    collections: frozenset[str] | None
    lifetime: float
    expires: float

    def covers(self, collections: frozenset[str]) -> bool:
        return self.collections is None or collections <= self.collections

    def renew_at(self, margin: float) -> float:
        """`margin` seconds before its end; halfway through for one that lives shorter than that."""
        return self.expires - (margin if margin < self.lifetime else self.lifetime / 2)


class TokenSource:
    """The token of a client's sockets; made or asked for when the last one does not do."""

    def __init__(self, obtain: Callable[[frozenset[str]], Awaitable[Token]], margin: float) -> None:
        self._obtain = obtain
        self.margin = margin
        self._last: Token | None = None
        self._obtaining = trio.Lock()

    async def get(self, collections: frozenset[str]) -> tuple[Token, bool]:
        """A token that covers `collections` if there is one, and whether it is fresh.

        A fresh one of `get_token` may not cover them. Raises `PaperDBError`.
        """
        async with self._obtaining:  # many links that lost their sockets at once share what the first gets
            last = self._last
            now = trio.current_time()
            if last is not None and last.covers(collections) and now < last.renew_at(self.margin):
                return last, False
            return await self.fresh(collections), True

    async def fresh(self, collections: frozenset[str]) -> Token:
        self._last = await self._obtain(collections)
        return self._last

    def forget(self, token: Token) -> None:
        """The server does not take it any more."""
        if self._last is token:
            self._last = None


def minting(
    mint: Callable[[frozenset[str]], Request[Minted]], send: Send
) -> Callable[[frozenset[str]], Awaitable[Token]]:
    """Tokens by an API key, for exactly the collections asked for."""

    async def obtain(collections: frozenset[str]) -> Token:
        asked = trio.current_time()
        minted = await send(mint(collections))
        return Token(minted.token, collections, minted.expires_in, asked + minted.expires_in)

    return obtain


def asking(get_token: GetToken) -> Callable[[frozenset[str]], Awaitable[Token]]:
    """Tokens by the application's own back end, which decides what they cover."""

    async def obtain(collections: frozenset[str]) -> Token:
        try:
            text = await get_token()
        except PaperDBError:
            raise
        except Exception as error:
            raise PaperDBError(_status(error), "TOKEN_UNAVAILABLE", f"get_token failed: {error!r}") from error
        if not isinstance(text, str) or not text.isascii() or not text.isprintable() or not text.strip():
            raise PaperDBError(400, "TOKEN_UNAVAILABLE", "get_token did not return a token (a str)")
        return read_token(text.strip())

    return obtain


def _status(error: Exception) -> int:
    """What kind of failure `get_token` met: 0, no answer; what its back end answered; 400, a mistake."""
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code
    return 0 if isinstance(error, OSError | httpx.TransportError | trio.TooSlowError) else 400


def read_token(text: str) -> Token:
    """What a token says of itself. It is for the server to verify; one that says nothing is used as it is.

    The lifetime left is `exp` by this machine's clock if that is plausible, else (the clock is wrong)
    `exp - iat` from now.
    """
    now = trio.current_time()
    claims: Any = {}
    try:
        payload = text.split(".")[1]
        claims = msgspec.json.decode(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        issued, ends = float(claims["iat"]), float(claims["exp"])
    except (IndexError, KeyError, TypeError, ValueError, msgspec.MsgspecError):
        return Token(text, _collections(claims), math.inf, math.inf)
    lifetime = ends - issued
    left = ends - time.time()
    return Token(text, _collections(claims), lifetime, now + (left if 0 < left <= lifetime else lifetime))


def _collections(claims: Any) -> frozenset[str] | None:
    names = claims.get("collections") if isinstance(claims, dict) else None
    if not isinstance(names, list) or "*" in names:
        return None
    return frozenset(map(str, names))
