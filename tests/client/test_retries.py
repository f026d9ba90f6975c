"""Requests without a response are sent again; a write happens once all the same.

Rules: pauses are left out, but counted.
"""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio

from paperdb_trio import Client, PaperDBError, create_client, create_sync_client
from paperdb_trio.client import backoff
from paperdb_trio.client.requests import ATTEMPTS
from tests.client.harness import proxied
from tests.conftest import Server
from tests.web.tools import Answer, http_server


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backoff, "FIRST_PAUSE", 0.0)


Call = Callable[[Client, str], Awaitable[Any]]
WRITES: dict[str, tuple[Call, int]] = {
    "insert": (lambda db, c: db.collection(c).insert({"n": 1}), 2),
    "insert_bulk": (lambda db, c: db.collection(c).insert_bulk([{"n": 1}, {"n": 2}]), 3),
    "update": (lambda db, c: db.collection(c).update("a", {"n": {"increment": 1}}), 1),
    "replace": (lambda db, c: db.collection(c).replace("a", {"n": 7}, where={"n": 1}), 1),
    "delete": (lambda db, c: db.collection(c).delete("a"), 0),
    "batch": (lambda db, c: db.batch([{"op": "insert", "collection": c, "document": {}}]), 2),
}
"""Each, and how many documents there are after it."""


@pytest.mark.parametrize("name", WRITES)
@pytest.mark.parametrize("silent", [False, True], ids=["cut", "timeout"])
async def test_a_write_whose_response_is_lost_happens_once(
    server: Server, collection: str, name: str, silent: bool
) -> None:
    call, count = WRITES[name]
    server.request("PUT", f"/{collection}/docs/a", json={"n": 1})
    before = server.request("GET", f"/{collection}/docs").json()["seq"]
    async with proxied(server) as proxy:
        cuts = iter([0])
        proxy.budget, proxy.silent = lambda: next(cuts, float("inf")), silent
        async with create_client(base_url=proxy.url, api_key=server.key, timeout=0.5 if silent else 30) as db:
            returned = await call(db, collection)
        assert proxy.cuts == 1
    found = server.request("GET", f"/{collection}/docs").json()
    assert len(found["documents"]) == count
    assert found["seq"] == before + (2 if name == "insert_bulk" else 1)
    if name in ("insert", "update", "replace"):
        assert returned in found["documents"]
        assert returned.seq == found["seq"]


def test_cuts_anywhere_lose_and_double_nothing(server: Server, collection: str) -> None:
    """Three connections in four are cut before their first byte, the fourth soon: five tries are enough."""
    budgets = itertools.cycle([0, 0, 0, 2000])

    async def main() -> list[Any]:
        async with proxied(server) as proxy:
            proxy.budget = lambda: next(budgets)

            def work() -> list[Any]:
                with create_sync_client(base_url=proxy.url, api_key=server.key) as db:
                    return [db.collection(collection).insert({"n": n, "text": "x" * 100}) for n in range(30)]

            made = await trio.to_thread.run_sync(work)
            assert proxy.cuts > 10
            return made

    made = trio.run(main)
    assert server.request("GET", f"/{collection}/docs").json()["documents"] == made


def serving(*answers: Answer | None, older: bool = False) -> tuple[list[str], list[str | None], Any]:
    """A server that gives these responses, and from then on the last one; what it was asked, and with what
    keys."""
    asked: list[str] = []
    keys: list[str | None] = []

    def answer(method: str, path: str, headers: dict[str, str]) -> Answer | None:
        if path == "/batch":
            asked.append("does it know keys?")
            code = b"METHOD_NOT_ALLOWED" if older else b"INVALID_OPERATION"
            return 405 if older else 400, "application/json", b'{"error": "no", "code": "%b"}' % code
        asked.append(method)
        keys.append(headers.get("idempotency-key"))
        return answers[min(len(keys), len(answers)) - 1]

    return asked, keys, http_server(answer)


STORED: Answer = (200, "application/json", b'{"_id": "x", "count": 3}')


def busy(seconds: str | None = "1", code: str = "SHUTTING_DOWN", status: int = 503) -> Answer:
    body = b'{"error": "not now", "code": "%b"}' % code.encode()
    return status, "application/json", body, {} if seconds is None else {"Retry-After": seconds}


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)
    return slept


def test_each_write_has_a_key_of_its_own_and_each_try_the_same(pauses: list[float]) -> None:
    asked, keys, serve = serving(None, None, STORED)
    with serve as url, create_sync_client(base_url=url, api_key="k") as db:
        db.a.insert({})
        assert asked == ["POST", "does it know keys?", "POST", "POST"]
        assert len(set(keys)) == 1
        db.a.update("x", {}, idempotency_key="mine")
        db.a.insert({})
        assert len(set(keys)) == 3
        assert keys[3] == "mine"
        for wrong in ("", "a b", "é", "x" * 256, 7):
            with pytest.raises(PaperDBError, match="Invalid idempotency_key") as caught:
                db.a.insert({}, idempotency_key=wrong)  # type: ignore[arg-type]
            assert caught.value.code == "INVALID_REQUEST"
    assert len(keys) == 5


def test_an_older_server_gets_a_write_once(pauses: list[float]) -> None:
    asked, _, serve = serving(None, older=True)
    with serve as url, create_sync_client(base_url=url, api_key="k") as db:
        with pytest.raises(PaperDBError, match="No response") as caught:
            db.a.insert({})
        assert (caught.value.status, caught.value.code, caught.value.transient) == (0, "NETWORK", True)
        assert asked == ["POST", "does it know keys?"]
        with pytest.raises(PaperDBError, match="No response"):
            db.a.count()
        assert asked[2:] == ["GET"] * ATTEMPTS


def test_it_gives_up_in_the_end(monkeypatch: pytest.MonkeyPatch, pauses: list[float]) -> None:
    monkeypatch.setattr(backoff, "FIRST_PAUSE", 0.5)
    asked, _, serve = serving(busy(), None, busy())
    with (
        serve as url,
        create_sync_client(base_url=url, api_key="k") as db,
        pytest.raises(PaperDBError) as caught,
    ):
        db.a.insert({})
    assert asked.count("POST") == ATTEMPTS
    assert caught.value.code == "NETWORK", "the second try may have written"
    assert len(pauses) == ATTEMPTS - 1
    assert [pauses[0], pauses[1] < 0.5] == [1, True]
    assert 2 <= pauses[3] <= 3, "a second that the server asks for, and one or two"


@pytest.mark.parametrize(
    ("refusal", "tries"),
    [
        (busy("1"), 2),
        (busy("10"), 2),
        (busy("11"), 1),
        (busy(None), 1),
        (busy(None, "HTTP_502", 502), 2),
        (busy(None, "HTTP_504", 504), 2),
        (busy("1", "QUERY_TIMEOUT"), 1),
        (busy("1", "RATE_LIMITED", 429), 1),
        (busy("1", "INTERNAL", 500), 1),
        (busy(None, "CONFLICT", 409), 1),
    ],
)
def test_only_what_may_pass_is_tried_again(pauses: list[float], refusal: Answer, tries: int) -> None:
    asked, _, serve = serving(refusal, STORED)
    with serve as url, create_sync_client(base_url=url, api_key="k") as db:
        if tries == 1:
            with pytest.raises(PaperDBError, match="not now"):
                db.a.insert({})
        else:
            assert db.a.insert({})["_id"] == "x"
    assert asked.count("POST") == tries
