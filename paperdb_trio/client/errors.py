"""The errors that a user of the SDK can meet.

Law: no I/O; an error never holds an API key or a token.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TRANSIENT = frozenset({0, 408, 425, 429})
"""Statuses after which the same request may succeed later. The same is true of every 5xx."""
FINAL = frozenset({"CERTIFICATE", "BAD_ANSWER", "WRONG_TYPE"})
"""Codes for which a later try is useless, whatever the status."""


class PaperDBError(Exception):
    """The server refused, or could not be reached.

    `status` is the HTTP status, 0 when there was no response. `code` is stable and for programs (`CONFLICT`,
    `NOT_FOUND`, `NETWORK`, …). `message` is for people. `extra` is the rest of the response's JSON (for 403
    `PLAN_REQUIRED`: `plan`). `extra["retry_after"]` is the seconds of a `Retry-After` header.

    The client's own codes are `NETWORK` (status 0: no response; a write may or may not have happened),
    `CERTIFICATE` (status 0: the server's certificate is not trusted; nothing was sent), `REDIRECTED` (something
    in front of the server redirects; redirects are not followed, so that a write stays a write and a key stays
    with its server), `BAD_ANSWER` (what responded is not PaperDB), `WRONG_TYPE` (a document
    is not of the collection's type; a write has happened), and for subscriptions `TOKEN_UNAVAILABLE`
    (`get_token` failed), `ACCESS_LOST` (key revoked, plan lost) and `CLOSED` (`extra["close_code"]` says why).
    """

    def __init__(self, status: int, code: str, message: str, extra: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.extra: dict[str, Any] = dict(extra or {})

    def __str__(self) -> str:
        return f"{self.message} ({self.status or 'no response'} {self.code})"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.status, self.code, self.message, self.extra)

    @property
    def transient(self) -> bool:
        """Whether trying again later makes sense."""
        return self.code not in FINAL and (self.status in TRANSIENT or self.status >= 500)


_GAPS = {
    "gap": "Changes after {since} were missed: the server's log now begins at {oldest}.",
    "rule": "The token has another rule since {since}: other documents are visible now.",
}


class GapError(PaperDBError):
    """Changes were missed: those after `since` and before `oldest` are no longer in the server's log.

    Fetch the documents again, then subscribe anew. Status 410, code `CURSOR_EXPIRED`. `reason` is `gap`, or
    `rule` if a new token has another rule, or `error` if the server could not follow a query.
    """

    def __init__(self, since: int, oldest: int, reason: str = "gap") -> None:
        what = _GAPS.get(reason, "The server could not follow the query after {since}.")
        super().__init__(
            410,
            "CURSOR_EXPIRED",
            f"{what.format(since=since, oldest=oldest)} Fetch the documents again and subscribe anew.",
            {"since": since, "oldest": oldest},
        )
        self.since = since
        self.oldest = oldest
        self.reason = reason

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.since, self.oldest, self.reason)
