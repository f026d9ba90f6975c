"""Valid requests that would cost other clients dearly: each is refused with a code that says why."""

from __future__ import annotations

import json
import threading
from contextlib import suppress

import httpx
import pytest

from tests.conftest import Server, StartServer, wait_until
from tests.rest.tools import refusal


def test_a_collection_has_a_bounded_number_of_indexes(api: httpx.Client, collection: str, docs: str) -> None:
    """Every insert into it writes to each of them."""
    indexed = {"properties": {f"f{n}": {"index": True} for n in range(64)}}
    assert api.put(f"/{collection}/schema", json=indexed).status_code == 200
    api.post(docs, json={})
    assert refusal(api.post(docs, json={"a": 1, "unique": ["a"]})) == (400, "TOO_MANY_INDEXES")
    assert api.put(f"/{collection}/schema", json=indexed).status_code == 200
    assert api.post(f"/{collection}-2/docs", json={}).status_code == 201
    assert api.post(f"/{collection}-2/docs", json={"a": 1, "unique": ["a"]}).status_code == 201
    assert api.delete(f"/{collection}/schema").status_code == 200
    assert api.post(docs, json={"a": 1, "unique": ["a"]}).status_code == 201


@pytest.mark.parametrize(
    "select", [",".join(f"f{n}" for n in range(201)), ",".join(["a" + ".b" * 100, "c" + ".d" * 99])]
)
def test_a_select_has_a_bounded_number_of_names(api: httpx.Client, docs: str, select: str) -> None:
    assert api.get(docs, params={"select": select}).status_code == 400
    assert api.get(docs, params={"select": ",".join(["a"] * 1000)}).status_code == 200
    assert api.get(docs, params={"select": ",".join(f"f{n}" for n in range(200))}).status_code == 200


def test_a_schema_is_small(api: httpx.Client, collection: str) -> None:
    schema = {"properties": {"a": {"default": "x" * 70_000}}}
    assert refusal(api.put(f"/{collection}/schema", json=schema)) == (400, "INVALID_SCHEMA")


def test_the_one_body_that_a_public_key_may_send_is_small(server: Server) -> None:
    """A body of 16 MiB made for it could hold up the parser, and so every client, for a second."""
    key = server.new_key(public=True)["key"]
    body = b'{"collections":["a"],"x":[' + b",".join([b"[]"] * 400_000) + b"]}"
    assert refusal(server.request("POST", "/realtime/token", content=body, key=key)) == (413, "BODY_TOO_LARGE")
    assert refusal(server.request("PUT", "/a/schema", content=body)) == (413, "BODY_TOO_LARGE")


def test_a_key_that_keeps_every_reader_busy_can_be_revoked(start_server: StartServer) -> None:
    """Otherwise heavy queries with a stolen key could delay its revocation."""
    server = start_server("--query-timeout", "60")
    for _ in range(10):
        server.request("POST", "/c/bulk", json=[{"text": "x" * 2000}] * 1000)
    stolen = server.new_key(public=True)
    slow = {"or": [{"text": {"contains": f"y{n}"}} for n in range(199)]}  # some 15 s
    finished: list[int] = []

    def ask() -> None:
        with suppress(httpx.HTTPError):  # the server's end
            response = server.request("GET", "/c/count", params={"filter": json.dumps(slow)}, key=stolen["key"])
            finished.append(response.status_code)

    askers = [threading.Thread(target=ask) for _ in range(8)]
    for asker in askers:
        asker.start()
    try:
        server.cli("keys", "revoke", stolen["id"])
        wait_until(
            lambda: server.request("POST", "/realtime/token", json={}, key=stolen["key"]).status_code == 401
        )
        assert 200 not in finished  # no reader has finished
    finally:
        server.kill()
        for asker in askers:
            asker.join()
