"""The change log of a collection: a page, a long poll, or a stream of server-sent events.

Law: no framework, no socket, no SQL. A stream only starts here; the doors serve it.
"""

from __future__ import annotations

import math
from typing import Final

import trio
from msgspec import Raw

from paperdb_trio.auth import tokens
from paperdb_trio.delivery.encodings import CURSOR
from paperdb_trio.delivery.readers import Reader
from paperdb_trio.delivery.topics import Asked
from paperdb_trio.delivery.views import page_text
from paperdb_trio.errors import ApiError, bad_request
from paperdb_trio.exchanges import client_of
from paperdb_trio.json_input import parse_json
from paperdb_trio.net.messages import EventStream, Response, json_response
from paperdb_trio.rest.call import Call
from paperdb_trio.rest.parameters import LIMIT, SINCE, WAIT
from paperdb_trio.rest.responses import Changes
from paperdb_trio.store.projection import parse_select
from paperdb_trio.store.protocol import Interest

CHECK_SECONDS: Final = 1.0
"""Between two looks at whether the client of a long poll may still see the changes."""


async def changes(call: Call) -> Response:
    collection, services, database = call.collection, call.services, call.identity.database
    database.require_realtime()
    grant = call.token or tokens.Grant(database, call.identity.key.id, frozenset({collection}), math.inf)
    query, settings = call.query, services.settings
    topic = _asked(collection, query).within(grant)
    limit, wait = LIMIT.of(query, settings), WAIT.of(query, settings)
    await services.store.current(database.id)  # the client may have its cursor from another process
    head, trimmed = services.hub.committed(database.id), services.hub.trimmed(database.id)
    as_stream = call.request.method == "GET" and "text/event-stream" in call.request.headers.get("accept", "")
    for name in ("limit", "wait") if as_stream else ("lastEventId",):
        if name in query:
            what = "pages of the log" if as_stream else "a stream (Accept: text/event-stream)"
            raise bad_request(f"'{name}' is for {what}")
    if as_stream and (last_id := _last_event_id(call)):
        query["since"] = last_id
    if query.get("since", "now" if as_stream else "") == "now":
        position = head
    else:
        position = SINCE.of(query, settings, trimmed)
    if (missing := services.hub.missing(database.id, position)) is not None:
        raise _cursor_expired(position, missing)
    services.hub.check(database.id, topic)
    if as_stream:
        headers = {
            "Content-Type": "text/event-stream",
            "Cache-Control": "no-store",
            "X-Accel-Buffering": "no",  # nginx would hold events back
        }
        return EventStream(200, b"", headers, grant=grant, topic=topic, position=position)
    interest: Interest = {topic: 0}
    text = page_text(CURSOR, interest)
    page = await services.store.page(database.id, position, interest, text, limit)
    while page.expired and "since" not in query:  # trimmed meanwhile; the client asked for the oldest
        page = await services.store.page(database.id, page.trimmed, interest, text, limit)
    if wait and not page.events and not page.expired:
        address = client_of(call.request, services.limits)
        behind = not page.reached_end
        reader = Reader("poll", address, grant, services.hub, topic, page.position, behind)
        with (
            services.limits.listener(database.id),
            services.readers.reading(reader),
            trio.move_on_after(wait),
        ):
            while not page.events and not page.expired and not services.draining and not reader.closed:
                if await reader.wait(CHECK_SECONDS):
                    page = await services.store.page(database.id, reader.position, interest, text, limit)
                    reader.position, reader.behind = page.position, not page.reached_end
                _check_still_good(call)
    if wait:  # also if the first page had changes, and if the time is over
        _check_still_good(call)
    if page.expired:
        raise _cursor_expired(position, page.trimmed)
    return json_response(200, Changes(list(map(Raw, page.events)), page.position, not page.reached_end))


def _asked(collection: str, query: dict[str, str]) -> Asked:
    """Raises a 400."""
    filter = parse_json(query["filter"].encode("utf-8", "surrogatepass")) if query.get("filter") else None
    if filter is not None and not isinstance(filter, dict):
        raise bad_request("Invalid filter: a filter must be a JSON object", "INVALID_FILTER")
    paths = parse_select(query.get("select"))
    return Asked(collection, filter, tuple(".".join(path) for path in paths) or None)


def _last_event_id(call: Call) -> str | None:
    """Where a stream that was cut off resumes. Empty: no event has arrived yet.

    Polyfills of `EventSource` send it as a parameter, because a header would need a preflight.
    """
    return call.request.headers.get("last-event-id") or call.query.get("lastEventId")


def _check_still_good(call: Call) -> None:
    """After a wait, and after the last read, check that the client may still see the changes. Raises a 401 or
    403."""
    accounts = call.services.accounts
    if call.token is not None:
        call.token.check(accounts)
    accounts.still(call.identity.key.id, call.database_id).database.require_realtime()


def _cursor_expired(position: int, trimmed: int) -> ApiError:
    return ApiError(
        410,
        "CURSOR_EXPIRED",
        f"The change log holds no cursor {position} any more: fetch the documents again, "
        "then continue with since=now",
        oldest=trimmed + 1,
    )
