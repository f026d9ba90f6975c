"""Tokens with rules, and clients that hold one."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx

from tests.conftest import Server
from tests.rest.documented import check_documented
from tests.rest.tools import client_of

Holder = Callable[..., httpx.Client]


@contextmanager
def holders(server: Server) -> Iterator[Holder]:
    """`holder(collections, **more)`: a client that holds such a token, until the end of the test. Each of its
    responses must be in the OpenAPI document."""
    with ExitStack() as stack:

        def holder(collections: Any, **more: Any) -> httpx.Client:
            client = stack.enter_context(client_of(server))
            client.headers["Authorization"] = f"Bearer {ruled(server, collections, **more)}"
            client.event_hooks = {"response": [check_documented]}
            return client

        yield holder


def ruled(server: Server, collections: Any, **more: Any) -> str:
    body = {"collections": collections, **more}
    response = server.request("POST", "/realtime/token", json=body)
    assert response.status_code == 200, response.text
    return str(response.json()["token"])


def told(response: httpx.Response) -> tuple[Any, ...]:
    """Everything that a response tells, but for the time and what the request itself said."""
    of_the_request = ("date", "connection", "x-request-id")
    headers = {name: value for name, value in response.headers.items() if name not in of_the_request}
    return response.status_code, headers, response.content


def find(client: httpx.Client, collection: str, **query: Any) -> httpx.Response:
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in query.items()}
    return client.get(f"/{collection}/docs", params=texts)


def ids(response: httpx.Response) -> list[str]:
    assert response.status_code == 200, response.text
    return [document["_id"] for document in response.json()["documents"]]
