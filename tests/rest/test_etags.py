"""ETag and If-Match: a client cannot overwrite a version that it has not seen.

An ETag is the seq of the document's last change.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.rest.tools import etag, refusal

WRITES = [("PATCH", {"n": 2}), ("PUT", {"n": 2}), ("DELETE", None)]
writes = pytest.mark.parametrize(("method", "body"), WRITES)


def write(api: httpx.Client, method: str, path: str, body: object, tag: str) -> httpx.Response:
    return api.request(method, path, json=body, headers={"If-Match": tag})


def test_every_response_with_a_document_carries_its_seq(api: httpx.Client, docs: str) -> None:
    first = etag(api.post(docs, json={"key": "a"}))
    assert etag(api.get(f"{docs}/a")) == first
    second = etag(api.patch(f"{docs}/a", json={"n": 1}))
    assert second == first + 1
    assert etag(api.get(f"{docs}/a", params={"select": "n"})) == second
    assert etag(api.put(f"{docs}/a", json={})) == first + 2
    assert etag(api.delete(f"{docs}/a")) == first + 3
    assert etag(api.put(f"{docs}/a", json={})) == first + 4


def test_a_write_elsewhere_leaves_the_etag_alone(api: httpx.Client, docs: str) -> None:
    tag = etag(api.post(docs, json={"key": "a"}))
    api.post(docs, json={"key": "b"})
    assert etag(api.get(f"{docs}/a")) == tag


@writes
def test_a_write_with_the_current_etag_succeeds(
    api: httpx.Client, docs: str, method: str, body: object
) -> None:
    tag = api.post(docs, json={"key": "a", "n": 1}).headers["etag"]
    assert write(api, method, f"{docs}/a", body, tag).status_code == 200


@writes
@pytest.mark.parametrize("form", ['"{old}"', '"0"', '"{old}", "1"', '"999999999999999999"'])
def test_a_write_with_another_etag_is_a_412_and_changes_nothing(
    api: httpx.Client, docs: str, method: str, body: object, form: str
) -> None:
    old = etag(api.post(docs, json={"key": "a", "n": 0}))
    current = api.patch(f"{docs}/a", json={"n": 1})
    response = write(api, method, f"{docs}/a", body, form.format(old=old))
    assert refusal(response) == (412, "PRECONDITION_FAILED")
    after = api.get(f"{docs}/a")
    assert after.json() == current.json()
    assert etag(after) == etag(current)


@writes
@pytest.mark.parametrize("tag", ['"abc"', '"99999999999999999999"', '"1-gzip"'])
def test_an_etag_that_is_not_ours_is_not_the_current_one(
    api: httpx.Client, docs: str, method: str, body: object, tag: str
) -> None:
    api.post(docs, json={"key": "a", "n": 0})
    assert refusal(write(api, method, f"{docs}/a", body, tag)) == (412, "PRECONDITION_FAILED")


@writes
def test_a_weak_etag_matches(api: httpx.Client, docs: str, method: str, body: object) -> None:
    """RFC 9110, section 13.1.1, says otherwise, but a proxy that compresses makes ours weak."""
    tag = api.post(docs, json={"key": "a", "n": 0}).headers["etag"]
    assert refusal(write(api, method, f"{docs}/a", body, 'W/"1"')) == (412, "PRECONDITION_FAILED")
    assert write(api, method, f"{docs}/a", body, f"W/{tag}").status_code == 200


def test_if_none_match_writes_only_what_is_not_there(api: httpx.Client, docs: str) -> None:
    for path in (f"{docs}/a", f"{docs}/b"):  # the first of a collection, and another
        new = api.put(path, json={"n": 1}, headers={"If-None-Match": "*"})
        assert new.status_code == 201
        again = api.put(path, json={"n": 2}, headers={"If-None-Match": "*"})
        assert refusal(again) == (412, "PRECONDITION_FAILED")
        assert api.get(path).json()["n"] == 1
    tag = api.get(f"{docs}/a").headers["etag"]
    for method, body in (("PUT", {"n": 3}), ("PATCH", {"n": 3}), ("DELETE", None)):
        refused = api.request(method, f"{docs}/a", json=body, headers={"If-None-Match": tag})
        assert refusal(refused) == (412, "PRECONDITION_FAILED")
    assert api.patch(f"{docs}/a", json={"n": 4}, headers={"If-None-Match": '"1"'}).status_code == 200


def test_a_get_with_conditions(api: httpx.Client, docs: str) -> None:
    tag = api.post(docs, json={"key": "a"}).headers["etag"]
    for form in (tag, f"W/{tag}", f'"1", {tag}', "*"):
        response = api.get(f"{docs}/a", headers={"If-None-Match": form})
        assert (response.status_code, response.content, response.headers["etag"]) == (304, b"", tag)
    assert api.get(f"{docs}/a", headers={"If-None-Match": '"1"'}).status_code == 200
    assert api.get(f"{docs}/a", headers={"If-Match": tag}).status_code == 200
    assert refusal(api.get(f"{docs}/a", headers={"If-Match": '"1"'})) == (412, "PRECONDITION_FAILED")
    assert api.get(f"{docs}/b", headers={"If-None-Match": "*"}).status_code == 404


@pytest.mark.parametrize("header", ["If-Match", "If-None-Match"])
@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/{c}/docs", {"n": 1}),
        ("POST", "/{c}/bulk", [{"n": 1}]),
        ("PUT", "/{c}/schema", {"properties": {}}),
        ("DELETE", "/{c}/schema", None),
        ("DELETE", "/{c}?confirm={c}", None),
    ],
)
def test_a_condition_where_none_can_apply_is_a_400(
    api: httpx.Client, collection: str, header: str, method: str, path: str, body: object
) -> None:
    api.post(f"/{collection}/docs", json={"key": "a"})
    response = api.request(method, path.format(c=collection), json=body, headers={header: "*"})
    assert refusal(response) == (400, "INVALID_REQUEST")
    assert api.get(f"/{collection}/count").json() == {"count": 1}


@writes
def test_one_of_several_etags_is_enough_and_a_star_is_any(
    api: httpx.Client, docs: str, method: str, body: object
) -> None:
    for form in ('"1", {0}', "*"):
        tag = api.put(f"{docs}/a", json={}).headers["etag"]
        assert write(api, method, f"{docs}/a", body, form.format(tag)).status_code == 200


def test_if_match_on_a_missing_document_inserts_nothing(api: httpx.Client, docs: str) -> None:
    for tag in ('"1"', "*"):
        assert refusal(write(api, "PUT", f"{docs}/a", {}, tag)) == (412, "PRECONDITION_FAILED")
        assert write(api, "PATCH", f"{docs}/a", {}, tag).status_code in (404, 412)
        assert write(api, "DELETE", f"{docs}/a", None, tag).status_code in (404, 412)
    assert api.get(f"{docs}/a").status_code == 404


def test_the_etag_of_a_deleted_document_does_not_match_its_successor(api: httpx.Client, docs: str) -> None:
    tag = api.put(f"{docs}/a", json={"n": 1}).headers["etag"]
    api.delete(f"{docs}/a")
    api.put(f"{docs}/a", json={"n": 1})
    assert write(api, "PATCH", f"{docs}/a", {"n": 2}, tag).status_code == 412


@pytest.mark.http1  # threads cannot share httpx's connection of HTTP/2
def test_one_of_many_writers_with_one_etag_wins(api: httpx.Client, docs: str) -> None:
    tag = api.put(f"{docs}/a", json={}).headers["etag"]
    with ThreadPoolExecutor(8) as pool:
        responses = list(pool.map(lambda n: write(api, "PATCH", f"{docs}/a", {"n": n}, tag), range(16)))
    assert sorted(response.status_code for response in responses) == [200] + [412] * 15
    winner = next(response for response in responses if response.status_code == 200)
    assert api.get(f"{docs}/a").json() == winner.json()
