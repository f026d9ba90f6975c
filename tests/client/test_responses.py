"""Responses that do not come from PaperDB, but from something before it or in its place. None counts as
success."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from paperdb_trio import PaperDBError, SyncClient, create_client, create_sync_client
from paperdb_trio.client import wire
from tests.client.conftest import Recorder


def test_responses_that_are_not_paperdb_s_are_errors(recorder: Recorder) -> None:
    with create_sync_client(base_url=recorder.url + "/behind", api_key="k") as db:
        recorder.responses["GET", "/behind/a/count"] = (502, b"<html>Bad gateway</html>")
        with pytest.raises(PaperDBError, match="HTTP 502: Bad gateway") as caught:
            db.a.count()
        assert (caught.value.status, caught.value.code, caught.value.transient) == (502, "HTTP_502", True)
        recorder.responses["GET", "/behind/a/count"] = (200, b"<html>Log in</html>")
        with pytest.raises(PaperDBError) as caught:
            db.a.count()
        assert caught.value.code == "BAD_ANSWER"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirects_are_not_followed(recorder: Recorder, status: int) -> None:
    """Otherwise a 302 turns a POST into a GET, whose response looks like the document; and the key goes
    elsewhere."""
    with Recorder() as elsewhere:
        recorder.headers = {"Location": f"{elsewhere.url}/a/docs?key=secret"}
        recorder.responses = {
            ("POST", "/a/docs"): (status, b"<html><h1>Moved</h1></html>"),
            ("GET", "/a/count"): (status, b""),
        }
        with create_sync_client(base_url=recorder.url, api_key="k") as db:
            for call in (lambda: db.a.insert({}), db.a.count):
                with pytest.raises(PaperDBError, match=f"Redirected to {elsewhere.url}/a/docs;") as caught:
                    call()
                assert (caught.value.status, caught.value.code) == (status, "REDIRECTED")
                assert not caught.value.transient
                assert "secret" not in str(caught.value)
        async with create_client(base_url=recorder.url, api_key="k") as db_async:
            with pytest.raises(PaperDBError, match="Redirected to"):
                await db_async.a.insert({})
    assert [method for method, _ in recorder.requests] == ["POST", "GET", "POST"]
    assert elsewhere.requests == []


FOUND = {"documents": [{"_id": "x"}], "limit": 100, "offset": 0, "hasMore": False}
INSERTED = {"inserted": 1, "failed": 0, "documents": [{"_id": "x"}]}


def without(response: dict[str, Any], name: str) -> dict[str, Any]:
    return {other: value for other, value in response.items() if other != name}


@pytest.mark.parametrize(
    ("method", "path", "call", "good", "bad"),
    [
        ("POST", "/a/docs", lambda db: db.a.insert({}), {"_id": "x"}, [{}, FOUND, [], None, "x"]),
        ("GET", "/a/docs/x", lambda db: db.a.get("x"), {"_id": "x"}, [{}, FOUND]),
        ("PATCH", "/a/docs/x", lambda db: db.a.update("x", {}), {"_id": "x"}, [{}, FOUND]),
        ("PUT", "/a/docs/x", lambda db: db.a.replace("x", {}), {"_id": "x"}, [{}, FOUND]),
        (
            "DELETE",
            "/a/docs/x",
            lambda db: db.a.delete("x"),
            {"deleted": True},
            [{}, {"deleted": False}, FOUND],
        ),
        ("GET", "/a/count", lambda db: db.a.count(), {"count": 1}, [{}, {"count": "1"}, {"count": True}]),
        (
            "GET",
            "/a/docs",
            lambda db: db.a.find(),
            FOUND,
            [{"_id": "x"}, {**FOUND, "documents": [{}]}, *(without(FOUND, name) for name in FOUND)],
        ),
        (
            "POST",
            "/a/bulk",
            lambda db: db.a.insert_bulk([{}]),
            INSERTED,
            [FOUND, {**INSERTED, "documents": [{}]}, *(without(INSERTED, name) for name in INSERTED)],
        ),
        (
            "POST",
            "/realtime/token",
            lambda db: db.realtime.generate_token(["a"]),
            {"token": "t", "expiresIn": 30},
            [{}, {"token": None, "expiresIn": 30}, {"token": "", "expiresIn": 30}, {"token": "t"}],
        ),
    ],
)
def test_a_response_must_have_its_fields(
    recorder: Recorder, method: str, path: str, call: Callable[[SyncClient], object], good: Any, bad: list[Any]
) -> None:
    with create_sync_client(base_url=recorder.url, api_key="k") as db:
        recorder.responses[method, path] = (200, msgspec.json.encode(good))
        call(db)
        for response in bad:
            recorder.responses[method, path] = (200, msgspec.json.encode(response))
            with pytest.raises(PaperDBError, match="not a response of PaperDB") as caught:
                call(db)
            assert (caught.value.code, caught.value.transient) == ("BAD_ANSWER", False)


def test_find_returns_the_seq_if_the_server_does(recorder: Recorder) -> None:
    with create_sync_client(base_url=recorder.url, api_key="k") as db:
        recorder.responses["GET", "/a/docs"] = (200, msgspec.json.encode(FOUND))
        assert db.a.find().seq is None
        recorder.responses["GET", "/a/docs"] = (200, msgspec.json.encode({**FOUND, "seq": 812}))
        assert db.a.find().seq == 812


def test_retry_after_is_in_extra(recorder: Recorder) -> None:
    recorder.responses["GET", "/a/count"] = (429, b'{"error": "Too many", "code": "RATE_LIMITED"}')
    with create_sync_client(base_url=recorder.url, api_key="k") as db:
        for header, extra in (("7", {"retry_after": 7}), ("-1", {}), ("Wed, 21 Oct 2026 07:28:00 GMT", {})):
            recorder.headers = {"Retry-After": header}
            with pytest.raises(PaperDBError, match="Too many") as caught:
                db.a.count()
            assert caught.value.extra == extra
        recorder.headers = {}
        recorder.responses["GET", "/a/count"] = (429, b'{"error": "Too many", "retry_after": "soon"}')
        with pytest.raises(PaperDBError) as caught:
            db.a.count()
        assert wire.retry_after(caught.value) == 0
