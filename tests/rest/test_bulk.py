"""Bulk inserts: each document succeeds or fails on its own, or, atomic, all together."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.rest.tools import refusal


@pytest.fixture
def bulk(collection: str) -> str:
    return f"/{collection}/bulk"


def stored(api: httpx.Client, bulk: str) -> list[dict[str, Any]]:
    documents: list[dict[str, Any]] = api.get(
        bulk.removesuffix("bulk") + "docs", params={"limit": 1000}
    ).json()["documents"]
    count = api.get(bulk.removesuffix("bulk") + "count").json()["count"]
    assert count == len(documents)
    return documents


@pytest.mark.parametrize("atomic", ["", "?atomic=true", "?atomic=false"])
@pytest.mark.parametrize("wrapped", [False, True])
def test_good_documents_are_inserted_in_order_without_errors(
    api: httpx.Client, bulk: str, atomic: str, wrapped: bool
) -> None:
    values = [{"key": "a", "n": 0}, {"n": 1}, {"_id": "c", "errors": []}]
    response = api.post(bulk + atomic, json={"documents": values} if wrapped else values)
    assert response.status_code == 200
    body = response.json()
    assert set(body) == {"inserted", "failed", "documents"}
    assert (body["inserted"], body["failed"]) == (3, 0)
    assert [document["_id"] for document in body["documents"]][::2] == ["a", "c"]
    assert stored(api, bulk) == body["documents"]


def test_bad_documents_fail_alone_and_are_named_by_their_index(api: httpx.Client, bulk: str) -> None:
    api.post(bulk, json=[{"key": "taken"}])
    response = api.post(
        bulk,
        json=[
            {"key": "a", "email": "x"},
            {"key": "taken"},
            5,
            {"key": "b/c"},
            {"key": "a"},
            {"email": "x", "unique": ["email"]},
            {"pad": "x" * 1024 * 1024},
            {"key": "z"},
        ],
    )
    assert response.status_code == 200
    body = response.json()
    assert (body["inserted"], body["failed"]) == (2, 6)
    assert [document["_id"] for document in body["documents"]] == ["a", "z"]
    assert [(error["index"], error["code"]) for error in body["errors"]] == [
        (1, "CONFLICT"),
        (2, "INVALID_DOCUMENT"),
        (3, "INVALID_ID"),
        (4, "CONFLICT"),
        (5, "CONFLICT"),
        (6, "DOCUMENT_TOO_LARGE"),
    ]
    assert all(error["error"] for error in body["errors"])
    assert [document["_id"] for document in stored(api, bulk)] == ["taken", "a", "z"]


@pytest.mark.parametrize(
    ("bad", "status", "code"),
    [
        ({"key": "taken"}, 409, "CONFLICT"),
        ({"key": "first"}, 409, "CONFLICT"),
        ({"email": "x", "unique": ["email"]}, 409, "CONFLICT"),
        ([], 400, "INVALID_DOCUMENT"),
        ({"key": "a/b"}, 400, "INVALID_ID"),
        ({"unique": 5}, 400, "INVALID_UNIQUE"),
        ({"pad": "x" * 1024 * 1024}, 413, "DOCUMENT_TOO_LARGE"),
    ],
)
def test_atomic_writes_nothing_when_one_fails(
    api: httpx.Client, bulk: str, bad: object, status: int, code: str
) -> None:
    api.post(bulk, json=[{"key": "taken"}])
    before = stored(api, bulk)
    values = [{"key": "first", "email": "x"}, bad, {"key": "last"}]
    response = api.post(f"{bulk}?atomic=true", json=values)
    assert refusal(response) == (status, code)
    assert response.json()["index"] == 1
    assert stored(api, bulk) == before
    assert api.post(bulk, json=[{"key": "first"}, {"key": "last"}]).json()["inserted"] == 2


def test_atomic_responds_with_the_first_failure_by_position(api: httpx.Client, bulk: str) -> None:
    api.post(bulk, json=[{"key": "taken"}])
    response = api.post(f"{bulk}?atomic=true", json=[{"key": "taken"}, []])
    assert (refusal(response), response.json()["index"]) == ((409, "CONFLICT"), 0)


@pytest.mark.parametrize("bad", ['{"a":}', '"\\u0000"', "[" * 65 + "]" * 65, "1e309", "{}}"])
def test_invalid_json_anywhere_refuses_all(api: httpx.Client, bulk: str, bad: str) -> None:
    response = api.post(bulk, content=f'[{{"key":"a"}},{bad},{{"key":"b"}}]')
    assert refusal(response) == (400, "INVALID_JSON")
    assert stored(api, bulk) == []


def test_a_member_beside_documents_is_a_400(api: httpx.Client, bulk: str) -> None:
    response = api.post(bulk, json={"documents": [{}], "atomic": True})
    assert refusal(response) == (400, "INVALID_DOCUMENT")
    assert stored(api, bulk) == []


def test_a_thousand_documents_fit_and_one_more_is_a_413(api: httpx.Client, bulk: str) -> None:
    assert refusal(api.post(bulk, json=[{}] * 1001)) == (413, "TOO_MANY_DOCUMENTS")
    assert api.post(bulk, json=[{}] * 1000).json()["inserted"] == 1000
    assert len(stored(api, bulk)) == 1000


def test_an_empty_bulk_inserts_nothing(api: httpx.Client, bulk: str) -> None:
    assert api.post(bulk, json=[]).json() == {"inserted": 0, "failed": 0, "documents": []}


@pytest.mark.parametrize("body", ["{}", '{"documents": {}}', '{"documents": null}', "5", '"x"', "null", "true"])
def test_a_body_without_an_array_is_a_400(api: httpx.Client, bulk: str, body: str) -> None:
    assert refusal(api.post(bulk, content=body)) == (400, "INVALID_DOCUMENT")


@pytest.mark.parametrize("atomic", ["yes", "", "TRUE"])
def test_a_wrong_atomic_is_a_400_and_inserts_nothing(api: httpx.Client, bulk: str, atomic: str) -> None:
    assert refusal(api.post(bulk, params={"atomic": atomic}, json=[{}])) == (400, "INVALID_REQUEST")
    assert stored(api, bulk) == []


def test_a_bulk_takes_one_seq_for_each_document_and_none_for_a_failure(api: httpx.Client, bulk: str) -> None:
    docs = bulk.removesuffix("bulk") + "docs"
    before = int(api.post(docs, json={"key": "a"}).headers["etag"].strip('"'))
    api.post(bulk, json=[{"key": "b"}, {"key": "a"}, {"key": "c"}])
    api.post(f"{bulk}?atomic=true", json=[{"key": "d"}, {"key": "a"}])
    seqs = [api.get(f"{docs}/{id}").headers["etag"] for id in "bc"]
    seqs.append(api.post(docs, json={}).headers["etag"])
    assert seqs == [f'"{before + n}"' for n in (1, 2, 3)]
