"""`Idempotency-Key`: a repeated write gets the first response, and writes nothing."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from paperdb_trio.errors import ApiError
from paperdb_trio.store.operations import Result, Written
from paperdb_trio.store.requests import REMEMBERED_SECONDS, ForgetRequests, Kept, Once, RequestKey
from tests.conftest import NO_TLS, Server, StartServer, wait_until
from tests.rest.tools import refusal
from tests.store.tools import committed, inserting, new_file, rows


def key(text: str) -> dict[str, str]:
    return {"Idempotency-Key": text}


WRITES: list[tuple[str, str, Any]] = [
    ("POST", "/{c}/docs", {"n": 1}),
    ("POST", "/{c}/bulk", [{"n": 1}, 7]),
    ("POST", "/{c}/bulk?atomic=true", [{"n": 1}, {"n": 2}]),
    ("PATCH", "/{c}/docs/a", {"n": {"increment": 1}}),
    ("PUT", "/{c}/docs/a", {"n": 5}),
    ("PUT", "/{c}/docs/new", {"n": 5}),
    ("DELETE", "/{c}/docs/a", None),
    ("POST", "/batch", {"operations": [{"op": "insert", "collection": "{c}", "document": {}}]}),
    ("PUT", "/{c}/schema", {"properties": {"n": {"type": "number", "unique": True}}}),
    ("DELETE", "/{c}?confirm={c}", None),
    # Refusals are repeated, too.
    ("PATCH", "/{c}/docs/no", {}),
    ("PUT", "/{c}/docs/a?where=%7B%22n%22:7%7D", {}),
    ("DELETE", "/{c}/schema", None),
]


@pytest.mark.parametrize(("method", "path", "body"), WRITES)
def test_repeated_write_gets_the_first_response(
    api: httpx.Client, collection: str, method: str, path: str, body: Any
) -> None:
    assert api.put(f"/{collection}/docs/a", json={"n": 1}).status_code == 201
    if method == "POST" and path == "/batch":
        body = {"operations": [{"op": "insert", "collection": collection, "document": {}}]}
    path = path.replace("{c}", collection)

    def send() -> httpx.Response:
        return api.request(method, path, json=body, headers=key(collection))

    first = send()
    head = api.get(f"/{collection}/docs").json()["seq"]
    again = send()
    assert (again.status_code, again.content) == (first.status_code, first.content)
    assert again.headers.get("etag") == first.headers.get("etag")
    assert again.headers["content-type"] == first.headers["content-type"]
    assert "idempotent-replayed" not in first.headers
    assert again.headers["idempotent-replayed"] == "true"
    assert api.get(f"/{collection}/docs").json()["seq"] == head


def test_key_stands_for_one_request(api: httpx.Client, docs: str) -> None:
    headers = key(f"one-{docs[1:]}".replace("/", "-"))
    assert api.post(docs, json={"n": 1}, headers=headers).status_code == 201
    for other in (
        api.post(docs, json={"n": 2}, headers=headers),
        api.post(f"{docs}"[:-5] + "/bulk", json=[{"n": 1}], headers=headers),
        api.put(f"{docs}/a", json={"n": 1}, headers=headers),
        api.put(f"{docs}/a", json={"n": 1}, headers={**headers, "If-Match": "*"}),
    ):
        assert refusal(other) == (422, "IDEMPOTENCY_KEY_REUSED")
    assert api.get(docs).json()["documents"][0]["n"] == 1


def test_keys_of_different_api_keys_are_different(server: Server, docs: str) -> None:
    headers = key("shared")
    mine = server.request("POST", docs, json={}, headers=headers).json()
    other = server.request("POST", docs, json={}, headers=headers, key=server.new_key()["key"]).json()
    assert mine["_id"] != other["_id"]


@pytest.mark.parametrize("text", ["", "a b", "é", "x" * 256])
def test_invalid_key_is_a_400(server: Server, docs: str, text: str) -> None:
    raw = [(b"Idempotency-Key", text.encode())]
    headers = [(b"Authorization", f"Bearer {server.key}".encode()), *raw]
    response = httpx.post(server.url + docs, json={}, headers=headers, verify=NO_TLS)
    assert refusal(response) == (400, "INVALID_REQUEST")


def test_one_of_many_at_once_writes(server: Server, docs: str) -> None:
    def send(_: int) -> str:
        response = server.request("POST", docs, json={"n": 1}, headers=key(f"many{docs[1:5]}"))
        return str(response.json()["_id"])

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(send, range(32)))) == 1
    assert len(server.request("GET", docs).json()["documents"]) == 1


def test_key_holds_over_kill_9(start_server: StartServer) -> None:
    server = start_server()
    first = server.request("POST", "/c/docs", json={"n": 1}, headers=key("k"))
    server.kill()
    server.start()
    again = server.request("POST", "/c/docs", json={"n": 1}, headers=key("k"))
    assert again.content == first.content
    assert server.request("GET", "/c/count").json() == {"count": 1}


@pytest.mark.sqlite
def test_response_is_in_the_log_and_goes_with_it(start_server: StartServer) -> None:
    server = start_server("--retention-count", "2")
    body = {"text": "x" * 10_000}
    first = server.request("POST", "/c/docs", json=body, headers=key("k"))
    assert server.request("POST", "/c/docs", json=body, headers=key("k")).content == first.content
    stored = rows(
        server.data / "paperdb.sqlite", "SELECT sum(length(response)+ifnull(length(body),0)) FROM requests"
    )
    assert stored[0][0] < 500
    for n in range(5):
        server.request("PUT", f"/c/docs/{n}", json={})
    wait_until(lambda: server.request("GET", "/c/changes?since=1").status_code == 410)
    assert refusal(server.request("POST", "/c/docs", json=body, headers=key("k"))) == (410, "RESPONSE_EXPIRED")
    assert server.request("GET", "/c/count").json() == {"count": 6}


def test_repetition_in_the_same_commit_gets_the_first_response(tmp_path: Path) -> None:
    """Operations that wait together are committed together, and the log is written at the end."""

    def respond(result: Written | ApiError) -> Kept:
        assert isinstance(result, Written)
        return Kept(201, {}, result.data)

    with committed(new_file(tmp_path)) as tx:
        once = Once(RequestKey(1, "key", "k", b"same"), inserting({"n": 1}), respond)
        first = once.apply(tx)
        again = once.apply(tx)
    assert first is not None
    assert again == Kept(201, {}, first.body, again=True)
    assert len(tx.changes) == 1


def test_requests_are_forgotten_after_a_day(tmp_path: Any) -> None:
    file = new_file(tmp_path)

    def once(name: str) -> Once[Any]:
        return Once(RequestKey(1, "key", name, b"same"), inserting({}), respond)

    def respond(result: Result | Exception) -> Kept:
        return Kept(201, {}, b"{}")

    with committed(file) as tx:
        day = tx.log_time
        for n in range(5):
            kept = once(str(n)).apply(tx)
            assert kept is not None
            assert not kept.again
    with committed(file) as tx:
        tx.log_time = day + REMEMBERED_SECONDS - 1
        kept = once("0").apply(tx)
        assert kept is not None
        assert kept.again
        assert not ForgetRequests(2).apply(tx)
    assert len(rows(file, "SELECT 1 FROM requests")) == 5
    with committed(file) as tx:
        tx.log_time = day + REMEMBERED_SECONDS + 1
        kept = once("0").apply(tx)  # forgotten, though it is still there
        assert kept is not None
        assert not kept.again
        assert [ForgetRequests(2).apply(tx) for _ in range(3)] == [True, True, False]
    assert rows(file, "SELECT key FROM requests") == [("0",)]
