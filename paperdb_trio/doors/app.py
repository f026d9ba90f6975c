"""The Quart app: a thin shell that hands every request to `dispatch.respond`.

Law: decides nothing. Errors that Quart or Hypercorn find themselves become the same JSON errors.
"""

from __future__ import annotations

from typing import Any

import trio
from quart import Response as QuartResponse
from quart import has_request_context, request, websocket
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge

from paperdb_trio.errors import ApiError
from paperdb_trio.exchanges import client_of
from paperdb_trio.net.cors import refusal
from paperdb_trio.net.messages import (
    REQUEST,
    EventStream,
    Request,
    Response,
    body_too_large,
    body_too_late,
    error_response,
)
from paperdb_trio.realtime.eventpages import event_pages
from paperdb_trio.rest.dispatch import respond
from paperdb_trio.services import Services


def create_app(services: Services) -> QuartTrio:
    settings = services.settings
    app = QuartTrio("paperdb_trio", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = settings.max_body_bytes
    app.config["RESPONSE_TIMEOUT"] = None  # each piece of a response has one (doors.hypercorn)

    async def read_body(max_bytes: int) -> bytes:
        body = bytearray()
        with services.limits.arriving() as arrived, trio.move_on_after(settings.body_timeout) as scope:
            try:
                async for part in request.body:
                    body += part
                    if len(body) > max_bytes:
                        raise body_too_large(max_bytes)
                    arrived(len(body))
            except RequestEntityTooLarge:  # its Content-Length says so
                raise body_too_large(max_bytes) from None
        if scope.cancelled_caught:
            raise body_too_late(settings.body_timeout)
        return bytes(body)

    # Before routing, so that paths reach our own table unchanged: no merged slashes, no redirects.
    @app.before_request
    async def handle() -> QuartResponse:
        scope: Any = request.scope
        own: Request = scope[REQUEST]
        own.read_body = read_body
        response = await respond(services, own)
        if isinstance(response, EventStream):
            try:
                with services.limits.listener(response.grant.database.id):
                    pass  # is there room? `event_pages` takes it
            except ApiError as error:
                services.exchanges.note(own, error)
                refused = error_response(error)
                refused.headers["X-Request-Id"] = own.id
                return _quart(refused)
            events = event_pages(services, response, client_of(own, services.limits))
            return QuartResponse(events, response.status, response.headers)
        return _quart(response)

    @app.errorhandler(HTTPException)
    async def refused(error: HTTPException) -> QuartResponse:
        status = error.code or 500
        code = (error.name or "error").upper().replace(" ", "_")
        refused = ApiError(status, code, error.description or code)
        scope: Any = (request if has_request_context() else websocket).scope
        own: Request = scope[REQUEST]
        services.exchanges.note(own, refused)
        return _quart(refusal(settings, own.method, own.headers.get("origin"), refused, own.id))

    return app


def _quart(response: Response) -> QuartResponse:
    return QuartResponse(response.body, response.status, response.headers)
