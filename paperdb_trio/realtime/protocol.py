"""The actions of a WebSocket client, the replies to them, and the close codes.

Law: no I/O and no state; JSON text in, a parsed action or an `ApiError` out.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final

from paperdb_trio.errors import ApiError, bad_request
from paperdb_trio.json_input import parse_json
from paperdb_trio.model import encode

SUBPROTOCOL: Final = "paperdb.v1"
BEARER: Final = "bearer."
MAX_BAD_MESSAGES: Final = 10
"""Bad messages that get a reply; the next one closes the connection."""


class CloseCode(IntEnum):
    """4000 to 4399 and 1xxx: reconnect. 4400 to 4499: see each name."""

    BINARY = 1003
    RESTARTING = 1012
    TRY_AGAIN_LATER = 1013
    TOO_MANY_BAD_MESSAGES = 4400
    REFUSED = 4400
    TOKEN_EXPIRED = 4401
    ACCESS_LOST = 4403
    PING_TIMEOUT = 4408
    BEHIND_THE_LOG = 4410


ACTIONS: Final[dict[str, tuple[str, ...]]] = {
    "subscribe": ("collection", "filter", "select", "snapshot", "since"),
    "unsubscribe": ("collection", "query"),
    "auth": ("token",),
    "ping": (),
}
"""What each takes."""
NEEDED: Final[dict[str, tuple[str, ...]]] = {"subscribe": ("collection",), "auth": ("token",)}
_TYPES: Final[dict[str, tuple[type, str]]] = {
    **dict.fromkeys(("collection", "query", "token"), (str, "a string")),
    "filter": (dict, "an object"),
    "select": (list, "an array of fields"),
    "snapshot": (bool, "true or false"),
    "since": (int, "the seq of the last change seen"),
}


@dataclass(frozen=True, slots=True)
class Action:
    """`members`: those beside `action` and `ref`, which is echoed in the reply."""

    name: str
    members: dict[str, Any]
    ref: Any


class BadMessage(Exception):
    """A message that is not a valid action. `ref` is echoed if it could be read."""

    def __init__(self, error: ApiError, ref: Any) -> None:
        super().__init__(error.message)
        self.error = error
        self.ref = ref


def parse_action(text: bytes) -> Action:
    """Raises `BadMessage`."""
    ref: Any = None
    try:
        message = parse_json(text)
        if not isinstance(message, dict):
            raise bad_request("A message must be a JSON object", "INVALID_MESSAGE")
        ref = message.get("ref")
        if not isinstance(ref, str | int | float | None) or (isinstance(ref, str) and len(ref) > 128):
            ref = None
            raise bad_request("'ref' must be a number or a string of at most 128 characters", "INVALID_MESSAGE")
        name = message.get("action")
        if not isinstance(name, str) or name not in ACTIONS:
            raise bad_request(f"'action' must be one of: {', '.join(ACTIONS)}", "UNKNOWN_ACTION")
        unknown = message.keys() - {"action", "ref", *ACTIONS[name]}
        if unknown:
            expected = ", ".join(("action", *ACTIONS[name], "ref"))
            raise bad_request(
                f"Unknown '{min(unknown)[:80]}' in '{name}'; expected {expected}", "INVALID_MESSAGE"
            )
        members = {key: message[key] for key in ACTIONS[name] if key in message}
        for key in NEEDED.get(name, ()):
            if not isinstance(members.get(key), str):
                raise bad_request(f"'{name}' needs a string '{key}'", "INVALID_MESSAGE")
        for key, value in members.items():
            type, expected = _TYPES[key]
            fits = isinstance(value, type)
            if type is int:
                fits = fits and not isinstance(value, bool) and 0 <= value < 2**53
            if not fits:
                raise bad_request(f"'{key}' must be {expected}", "INVALID_MESSAGE")
        return Action(name, members, ref)
    except ApiError as error:
        raise BadMessage(error, ref) from None


def reply(kind: str, ref: Any = None, **fields: Any) -> bytes:
    """The JSON text of a reply; with `ref` only if the client sent one."""
    body = {"type": kind, **fields}
    if ref is not None:
        body["ref"] = ref
    return encode(body)


def refusal_close(error: ApiError) -> tuple[int, str]:
    """The close code and reason of a refused handshake, for a client that cannot see an HTTP status."""
    if error.status == 503:
        code = CloseCode.RESTARTING if error.code == "SHUTTING_DOWN" else CloseCode.TRY_AGAIN_LATER
    elif error.status == 401:
        code = (
            CloseCode.ACCESS_LOST if error.code in ("KEY_REVOKED", "TOKEN_REVOKED") else CloseCode.TOKEN_EXPIRED
        )
    elif error.code in ("PLAN_REQUIRED", "ORIGIN_NOT_ALLOWED"):
        code = CloseCode.ACCESS_LOST
    else:
        code = CloseCode.REFUSED
    return code, f"{error.code}: {error.message}"


def error_reply(error: ApiError, ref: Any = None) -> bytes:
    return reply("error", ref, code=error.code, message=error.message)
