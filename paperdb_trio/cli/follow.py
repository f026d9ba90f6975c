"""What `paperdb listen` runs: a subscriber that hands on every event, one JSON object a line, and its state.

Law: a thin shell over the SDK. An event is handed on before the next one is asked for, so that the `seq` of
the last line is always a cursor to resume from.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import msgspec
import trio

from paperdb_trio.client.client import create_client
from paperdb_trio.client.errors import GapError, PaperDBError
from paperdb_trio.client.groups import leaves
from paperdb_trio.client.status import Statuses
from paperdb_trio.client.token import ends_at
from paperdb_trio.client.types import ConnectionState
from paperdb_trio.errors import StartupError


async def follow(
    url: str,
    collections: list[str],
    since: int | None,
    key: str | None,
    token: str | None,
    filter: dict[str, Any] | None,
    select: str | None,
    on_event: Callable[[str], None],
    on_status: Callable[[str], None],
) -> None:
    """Call `on_event` with the JSON text of every event (with its `seq`), until cancelled.

    `since`: a seq, or None for now. `filter` and `select` take one collection.
    A `token` is used instead of the `key`, and cannot be renewed. Raises
    `StartupError` when the server refuses for good: bad token, no plan, key revoked. A gap is only reported.
    """

    async def given_token() -> str:
        if ends_at(token or "") <= time.time():
            raise PaperDBError(401, "TOKEN_EXPIRED", "The token has expired; get a new one")
        return token or ""

    if url.startswith("ws"):
        url = "http" + url[2:]
    try:
        client = create_client(base_url=url, api_key=key, get_token=given_token if token else None)
    except ValueError as error:
        raise StartupError(str(error), 2) from None
    failure: PaperDBError | None = None
    try:
        async with client as db, trio.open_nursery() as nursery:
            subscription = db.realtime.subscribe(
                *collections, filter=filter, select=select, since=since, on_gap="continue"
            )
            nursery.start_soon(_tell, subscription.status(), ", ".join(collections), on_status)
            async with subscription as events:
                async for event in events:
                    line: dict[str, Any] = {
                        "seq": event.seq,
                        "type": event.type,
                        "collection": event.collection,
                        "data": event.data,
                    }
                    if event.cause is not None:
                        line["cause"] = event.cause
                    on_event(msgspec.json.encode(line).decode())
    except* PaperDBError as group:
        failure = next(error for error in leaves(group) if isinstance(error, PaperDBError))
    if failure is not None:
        raise StartupError(f"The server refused: {failure}" if failure.status else str(failure))


async def _tell(statuses: Statuses, names: str, on_status: Callable[[str], None]) -> None:
    listening = False
    async for status in statuses:
        seq = "now" if status.cursor is None else status.cursor
        if status.state in (ConnectionState.LIVE, ConnectionState.CATCHING_UP) and not listening:
            on_status(f"listening to {names} from seq {seq}")
        elif status.state is ConnectionState.OFFLINE:
            on_status(
                f"disconnected ({status.reason}); trying again in {status.retry_in or 0:.1f} s, from seq {seq}"
            )
        elif status.state is ConnectionState.LIVE and status.reason:
            again = "" if status.retry_in is None else f"; trying again in {status.retry_in:.1f} s"
            on_status(f"still connected, but {status.reason}{again}")
        if isinstance(status.error, GapError):
            if status.error.reason == "gap":
                gap = f"changes {status.error.since + 1} to {status.error.oldest - 1}"
                on_status(f"{gap} are no longer in the server's log; continuing from seq {seq}")
            else:
                on_status(f"{status.error.message.partition('.')[0]}; continuing from seq {seq}")
        else:
            listening = status.state in (ConnectionState.LIVE, ConnectionState.CATCHING_UP)
