"""The Quart app: a thin shell that hands every request to `routes.respond`.

Law: decides nothing. What Quart or Hypercorn find wrong by themselves gets the same JSON errors.
"""

from __future__ import annotations

from typing import Any

from quart import Response as QuartResponse
from quart import request
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge, RequestTimeout

from paperdb_trio.errors import ApiError
from paperdb_trio.realtime.eventstream import event_pages
from paperdb_trio.rest.messages import EventStream, Request, Response, body_too_large, error_response
from paperdb_trio.rest.routes import respond
from paperdb_trio.services import Services


def create_app(services: Services) -> QuartTrio:
    settings = services.settings
    app = QuartTrio("paperdb_trio", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = settings.max_body_bytes
    app.config["BODY_TIMEOUT"] = settings.body_timeout
    app.config["RESPONSE_TIMEOUT"] = None  # long polls; a client that does not read fails in our stream

    async def read_body() -> bytes:
        try:
            data = await request.get_data(cache=False)
        except RequestEntityTooLarge:
            raise body_too_large(settings.max_body_bytes) from None
        except RequestTimeout:
            raise ApiError(
                408, "BODY_TIMEOUT", f"The body did not arrive within {settings.body_timeout:g} s"
            ) from None
        return bytes(data)  # type: ignore[arg-type]  # as_text is False

    # Before routing, so that paths reach our own table as they were sent: no merged slashes, no redirects.
    @app.before_request
    async def answer() -> QuartResponse:
        scope: Any = request.scope
        own = Request(
            request.method,
            scope["raw_path"].decode("ascii"),
            scope["query_string"].decode("latin-1"),
            {name.lower(): value for name, value in request.headers.items()},
            read_body,
        )
        response = await respond(services, own)
        if isinstance(response, EventStream):
            events = event_pages(services, response.grant, response.collection, response.position)
            return QuartResponse(events, response.status, response.headers)
        return _quart(response)

    @app.errorhandler(HTTPException)
    async def refused(error: HTTPException) -> QuartResponse:
        status = error.code or 500
        code = (error.name or "error").upper().replace(" ", "_")
        return _quart(error_response(ApiError(status, code, error.description or code)))

    return app


def _quart(response: Response) -> QuartResponse:
    return QuartResponse(response.body, response.status, response.headers)
