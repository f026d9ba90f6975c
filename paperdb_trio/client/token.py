"""Where a realtime token comes from, what it covers, and when it ends.

Law: a token's text goes to the wire only, never into a repr or an error.
"""

from __future__ import annotations

import base64
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx
import msgspec
import trio

from .errors import PaperDBError
from .requests import Minted, RestRequest, distrusted

RENEWAL_PAUSE = 10.0
"""The fewest seconds between two tokens: with a wrong clock, each of them seems about to end. A token that does
end sooner costs a new connection, at the same cursor."""
SPARE = 5.0
"""Seconds that a token must have left to be used for a new connection, which then renews it."""

Rule = tuple[Any, Any]
"""A filter and a select, as the token has them; None for what it does not have."""
GetToken = Callable[[], Awaitable[str]]
Send = Callable[[RestRequest[Minted]], Awaitable[Minted]]


@dataclass(frozen=True, slots=True)
class Token:
    """`collections` None: all, or unknown. `obtained` and `expires` are on Trio's clock; `expires` is infinite
    if unknown. `rules`: what it shows of a collection, by its name or `*`, unless that is all of it."""

    text: str = field(repr=False)
    collections: frozenset[str] | None
    obtained: float
    expires: float
    rules: Mapping[str, Rule] = field(default_factory=dict, compare=False)

    def views(self, collections: frozenset[str]) -> dict[str, Rule]:
        """What it shows of each of these, to be compared with another token's."""
        everything = self.rules.get("*", (None, None))
        return {name: self.rules.get(name, everything) for name in collections}

    def covers(self, collections: frozenset[str]) -> bool:
        return self.collections is None or collections <= self.collections

    def renew_at(self, margin: float) -> float:
        """`margin` seconds before its end, or halfway to its end if it has less left than that."""
        left = self.expires - self.obtained
        return max(self.expires - (margin if margin < left else left / 2), self.obtained + RENEWAL_PAUSE)

    def is_due(self, margin: float) -> bool:
        return trio.current_time() >= self.renew_at(margin)


class TokenSource:
    """The token of a client's sockets. A new one is obtained when the last one does not suffice."""

    def __init__(self, obtain: Callable[[frozenset[str]], Awaitable[Token]], margin: float) -> None:
        self._obtain = obtain
        self.margin = margin
        self._last: Token | None = None
        self._obtaining = trio.Lock()

    async def get(self, collections: frozenset[str]) -> tuple[Token, bool]:
        """A token, and whether it is fresh. One that is not fresh covers `collections`.

        A fresh one from `get_token` may not cover them. The last token is used until its end, so that no
        connection waits for a renewal. Raises `PaperDBError`.
        """
        last = self._last
        if last is not None and last.covers(collections) and trio.current_time() < last.expires - SPARE:
            return last, False
        return await self.another(collections, last), True

    async def another(self, collections: frozenset[str], old: Token | None) -> Token:
        """A token to replace `old`; concurrent callers share one. Raises `PaperDBError`."""
        async with self._obtaining:
            last = self._last
            if last is None or last is old or not last.covers(collections) or last.is_due(self.margin):
                last = self._last = await self._obtain(collections)
            return last

    def forget(self, token: Token) -> None:
        """The server no longer accepts it."""
        if self._last is token:
            self._last = None


def minting(
    mint: Callable[[frozenset[str]], RestRequest[Minted]], send: Send
) -> Callable[[frozenset[str]], Awaitable[Token]]:
    """Tokens minted with an API key, for exactly the collections asked for."""

    async def obtain(collections: frozenset[str]) -> Token:
        asked = trio.current_time()
        minted = await send(mint(collections))
        return Token(minted.token, collections, asked, asked + minted.expires_in)

    return obtain


def asking(get_token: GetToken, seconds: float) -> Callable[[frozenset[str]], Awaitable[Token]]:
    """Tokens from the application's own back end, which decides what they cover. Each may take `seconds`."""

    async def obtain(collections: frozenset[str]) -> Token:
        text = None
        try:
            with trio.move_on_after(seconds) as scope:
                text = await get_token()
            if scope.cancelled_caught:
                raise PaperDBError(0, "TOKEN_UNAVAILABLE", f"get_token did not return within {seconds:g} s")
        except PaperDBError:
            raise
        except Exception as error:
            raise PaperDBError(_status(error), "TOKEN_UNAVAILABLE", f"get_token failed: {error!r}") from error
        if not isinstance(text, str) or not text.isascii() or not text.isprintable() or not text.strip():
            raise PaperDBError(400, "TOKEN_UNAVAILABLE", "get_token did not return a token (a str)")
        return read_token(text.strip())

    return obtain


def _status(error: Exception) -> int:
    """How `get_token` failed: 0, no response; the status of its back end's response; 400, a mistake."""
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code
    if distrusted(error) is not None:
        return 400
    return 0 if isinstance(error, OSError | httpx.TransportError | trio.TooSlowError) else 400


def read_token(text: str) -> Token:
    """What a token says about itself. The server verifies it; one that says nothing is used as it is.

    Its end is `exp` by this machine's clock if that is plausible. Otherwise the clock is wrong, and its end is
    `exp - iat` from now.
    """
    now = trio.current_time()
    claims = _claims(text)
    try:
        lifetime = float(claims["exp"]) - float(claims["iat"])
    except (KeyError, TypeError, ValueError):
        return Token(text, _collections(claims), now, math.inf, _rules(claims))
    left = ends_at(text) - time.time()
    ends = now + (left if 0 < left <= lifetime else lifetime)
    return Token(text, _collections(claims), now, ends, _rules(claims))


def ends_at(text: str) -> float:
    """Its end according to the token, in seconds since the epoch; infinite if it does not say."""
    try:
        return float(_claims(text)["exp"])
    except (KeyError, TypeError, ValueError):
        return math.inf


def _claims(text: str) -> dict[str, Any]:
    try:
        payload = text.split(".")[1]
        claims = msgspec.json.decode(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    except (IndexError, ValueError, msgspec.MsgspecError):
        return {}
    return claims if isinstance(claims, dict) else {}


def is_passing(code: str, message: str) -> bool:
    """Whether a token was refused only because of its time. Either the server's clock was set, or `get_token`
    keeps tokens too long: both pass. A token that is too new is an `INVALID_TOKEN`, whose message ends with the
    claim."""
    return code == "TOKEN_EXPIRED" or message.endswith(("(iat)", "(nbf)"))


def _collections(claims: dict[str, Any]) -> frozenset[str] | None:
    names = claims.get("collections")
    if not isinstance(names, list | dict) or "*" in names:
        return None
    return frozenset(map(str, names))


def _rules(claims: dict[str, Any]) -> dict[str, Rule]:
    rules = claims.get("collections")
    if not isinstance(rules, dict):
        return {}
    return {
        name: (rule.get("filter"), rule.get("select")) for name, rule in rules.items() if isinstance(rule, dict)
    }
