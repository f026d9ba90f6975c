"""What an administrator sees of live connections, and of the server's health.

Law: asks the processes of the server for their reports (`Services.gather`), and joins these. Counts nothing.
"""

from __future__ import annotations

import re
import time
from typing import Any

import msgspec
from msgspec import UNSET

from paperdb_trio.auth import tokens
from paperdb_trio.errors import ApiError, bad_request
from paperdb_trio.model import check_collection, check_id
from paperdb_trio.net.messages import Response, json_response
from paperdb_trio.rest import admin_responses as responses
from paperdb_trio.rest.admin_call import AdminCall
from paperdb_trio.rest.parameters import REVOKE, SEQ
from paperdb_trio.store.administration import Noted
from paperdb_trio.store.revocations import Revocation


async def list_connections(call: AdminCall) -> Response:
    """List WebSockets, event streams and long polls that wait: who listens to what, and how far behind."""
    limit, database, after = call.limit, call.scope, call.query.get("after")
    place = ("", 0) if after is None else _place(after)
    argument = (None if database is None else database.id, place, limit + 1)
    reports = [report for _, report in await call.services.gather("connections", argument)]
    rows = sorted(
        (row for report in reports for row in report["connections"]), key=lambda row: _place(row["id"])
    )
    body = responses.Connections(
        msgspec.convert(rows[:limit], list[responses.Connection]),
        sum(report["total"] for report in reports),
        rows[limit - 1]["id"] if len(rows) > limit else UNSET,
    )
    return json_response(200, body)


def _place(id: str) -> tuple[str, int]:
    prefix, _, number = id.rpartition("-")
    if not re.fullmatch(r"[0-9]{1,15}", number):
        raise bad_request("Invalid after: expected the 'next' of a page", "INVALID_CURSOR")
    return prefix, int(number)


async def explain_connection(call: AdminCall) -> Response:
    """Tell why a connection did or did not get a change.

    The change is that with the `seq`, or the newest one of the document with `collection` and `id`.
    """
    asked = call.query.keys() & {"seq", "collection", "id"}
    if asked not in ({"seq"}, {"collection", "id"}):
        raise bad_request("Give either 'seq', or 'collection' and 'id'")
    own = await _ask(call, "end", False)
    seq = SEQ.of(call.query, call.services.settings)
    if "id" in asked:
        seq = await _newest(call, own["databaseId"])
    return json_response(200, msgspec.convert(await _ask(call, "why", seq), responses.Why))


async def _newest(call: AdminCall, database_id: int) -> int:
    collection, id = check_collection(call.query["collection"]), check_id(call.query["id"])
    found = await call.services.store.history(database_id, collection, id, 1)
    if not found:
        raise ApiError(404, "NOT_FOUND", "The change log holds no change of this document")
    return int(msgspec.json.decode(found[0])["seq"])


async def end_connection(call: AdminCall) -> Response:
    """Close a connection.

    Its client is told to connect again (1012), unless its token is revoked: `revoke` (4403).
    """
    revoke = REVOKE.of(call.query)
    own = await _ask(call, "end", revoke is None)
    operation = None
    if revoke is not None:
        kind, name = ("jti", own["jti"]) if revoke == "token" else ("subject", own["subject"])
        if not name:
            raise ApiError(409, "CONFLICT", "The connection's token has no subject")
        now = time.time()
        until = now + tokens.MAX_SECONDS + tokens.SLACK_SECONDS
        operation = Revocation(own["databaseId"], kind, name, int(now * 1000), int(until * 1000))
    details = {"subject": own["subject"], "revoked": revoke}
    connection = call.parameters["connection"]
    await call.write(Noted(call.by, "connection.end", own["database"], connection, details, operation))
    return json_response(200, responses.ConnectionEnded(revoke))


async def _ask(call: AdminCall, report: str, argument: Any) -> dict[str, Any]:
    """What the process of the path's connection reports. Raises a 404 for one that the key may not see, too."""
    id, own = call.parameters["connection"], None if call.own is None else call.own.id
    for _, found in await call.services.gather(report, (id, own, argument)):
        if found is not None:
            response: dict[str, Any] = found
            return response
    raise ApiError(404, "NOT_FOUND", f"There is no connection '{id[:40]}'")
