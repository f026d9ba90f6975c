"""One document over REST: insert, get, PATCH, PUT, DELETE.

Ids (given, made, taken), what the server adds and what it ignores, shallow merging, atomic increments,
statuses, and the messages that applications of the hosted service may compare with.
"""

from __future__ import annotations

import re
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.rest.tools import etag, refusal

TIMESTAMP = re.compile(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z\Z")


def content(document: dict[str, Any]) -> dict[str, Any]:
    """A document without what the server adds."""
    return {name: value for name, value in document.items() if name not in ("_id", "createdAt", "updatedAt")}


@pytest.mark.executable
@pytest.mark.smoke
def test_an_insert_responds_201_with_the_whole_document(api: httpx.Client, docs: str) -> None:
    response = api.post(docs, json={"name": "Ada", "tags": ["a", {"b": None}]})
    document = response.json()
    assert response.status_code == 201
    assert response.headers["content-type"] == "application/json"
    assert content(document) == {"name": "Ada", "tags": ["a", {"b": None}]}
    assert re.fullmatch(r"[A-Za-z0-9_-]{21}", document["_id"])
    assert TIMESTAMP.match(document["createdAt"])
    assert document["updatedAt"] == document["createdAt"]
    assert api.get(f"{docs}/{document['_id']}").json() == document


def test_ids_that_the_server_makes_differ(api: httpx.Client, docs: str) -> None:
    assert len({api.post(docs, json={}).json()["_id"] for _ in range(20)}) == 20


@pytest.mark.parametrize("field", ["key", "_id"])
@pytest.mark.parametrize("id", ["user 1", "é", "日本", "a" * 128, "a.b", "...", "%2F", "a?b#c&d=e", "'--", "0"])
def test_a_document_is_found_by_the_id_that_was_given(
    api: httpx.Client, docs: str, field: str, id: str
) -> None:
    response = api.post(docs, json={field: id, "n": 1})
    assert response.status_code == 201
    assert response.json()["_id"] == id
    assert content(response.json()) == {"n": 1}
    path = httpx.URL(api.base_url).copy_with(raw_path=f"{docs}/".encode() + quoted(id))
    assert api.get(path).json() == response.json()


def quoted(id: str) -> bytes:
    return "".join(f"%{byte:02X}" for byte in id.encode()).encode()


def test_key_beside_an_id_is_an_ordinary_field(api: httpx.Client, docs: str) -> None:
    assert "key" not in api.post(docs, json={"key": "a"}).json()
    for id, key in (("b", "c"), ("d", "d"), ("e", None), ("f", {"n": 1})):
        inserted = api.post(docs, json={"_id": id, "key": key, "n": 1}).json()
        assert (inserted["_id"], inserted["key"], inserted["n"]) == (id, key, 1)
        assert api.get(f"{docs}/{id}").json() == inserted
    assert len(api.post(docs, json={"_id": None}).json()["_id"]) == 21


@pytest.mark.parametrize("key", [None, 5, "", {"a": 1}, ["a"], True])
def test_an_id_is_text_or_left_to_the_server(api: httpx.Client, docs: str, key: object) -> None:
    response = api.post(docs, json={"key": key})
    if key is None:
        assert len(response.json()["_id"]) == 21
    else:
        assert refusal(response) == (400, "INVALID_ID")


def test_a_taken_id_is_a_409_and_leaves_the_document_alone(api: httpx.Client, docs: str) -> None:
    first = api.post(docs, json={"key": "a", "n": 1})
    assert refusal(api.post(docs, json={"key": "a", "n": 2})) == (409, "CONFLICT")
    assert api.get(f"{docs}/a").json() == first.json()


def test_an_id_is_free_again_after_a_delete(api: httpx.Client, docs: str) -> None:
    for n in range(3):
        assert api.post(docs, json={"key": "a", "n": n}).status_code == 201
        assert api.get(f"{docs}/a").json()["n"] == n
        assert api.delete(f"{docs}/a").status_code == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH"])
def test_timestamps_that_are_sent_are_ignored(api: httpx.Client, docs: str, method: str) -> None:
    before = api.post(docs, json={"key": "a"}).json()
    sent = {"createdAt": "1999-01-01T00:00:00.000Z", "updatedAt": 5, "n": 1}
    path = docs if method == "POST" else f"{docs}/a"
    after = api.request(method, path, json=sent).json()
    assert TIMESTAMP.match(after["createdAt"])
    assert TIMESTAMP.match(after["updatedAt"])
    assert after["createdAt"] >= before["createdAt"]
    assert content(after) == {"n": 1}


@pytest.mark.parametrize("method", ["PUT", "PATCH"])
def test_a_write_keeps_created_at_and_moves_updated_at(api: httpx.Client, docs: str, method: str) -> None:
    before = api.post(docs, json={"key": "a"}).json()
    threading.Event().wait(0.003)  # at least two milliseconds apart: otherwise both times may be the same
    after = api.request(method, f"{docs}/a", json={"n": 1}).json()
    assert after["createdAt"] == before["createdAt"]
    assert after["updatedAt"] > before["updatedAt"]


def test_unique_refuses_a_taken_value_with_the_message_of_the_hosted_service(
    api: httpx.Client, docs: str
) -> None:
    assert api.post(docs, json={"email": "a@x", "unique": ["email"]}).status_code == 201
    response = api.post(docs, json={"email": "a@x", "unique": ["email"]})
    assert response.status_code == 409
    assert response.json() == {
        "error": "Unique field violation — 'email' already exists in this collection.",
        "code": "CONFLICT",
    }
    assert api.get(f"{docs.removesuffix('/docs')}/count").json() == {"count": 1}


@pytest.mark.parametrize(
    ("there", "new", "status"),
    [
        (1, 1.0, 409),
        (1, "1", 201),
        (1, True, 201),
        (True, True, 409),
        ("a", "A", 201),
        (None, None, 201),
        (2**70, float(2**70), 409),
        ("é", "é", 409),
    ],
)
def test_unique_compares_as_filters_do(
    api: httpx.Client, docs: str, there: object, new: object, status: int
) -> None:
    api.post(docs, json={"v": there})
    assert api.post(docs, json={"v": new, "unique": ["v"]}).status_code == status


def test_unique_is_not_stored(api: httpx.Client, docs: str) -> None:
    assert content(api.post(docs, json={"a": 1, "unique": ["a", "b"]}).json()) == {"a": 1}


@pytest.mark.smoke
def test_unique_sees_documents_that_changed_after_its_first_use(api: httpx.Client, docs: str) -> None:
    api.post(docs, json={"key": "a", "v": "x", "unique": ["v"]})
    api.patch(f"{docs}/a", json={"v": "y"})
    assert api.post(docs, json={"v": "x", "unique": ["v"]}).status_code == 201
    assert api.post(docs, json={"v": "y", "unique": ["v"]}).status_code == 409
    api.delete(f"{docs}/a")
    assert api.post(docs, json={"v": "y", "unique": ["v"]}).status_code == 201


@pytest.mark.parametrize("name", ["it's", "x y", "é", "select", "a" * 256])
def test_any_plain_name_can_be_unique(api: httpx.Client, docs: str, name: str) -> None:
    assert api.post(docs, json={name: 1, "unique": [name]}).status_code == 201
    assert refusal(api.post(docs, json={name: 1, "unique": [name]})) == (409, "CONFLICT")


def test_unique_is_for_16_fields_of_one_insert(api: httpx.Client, docs: str) -> None:
    names = [f"f{n}" for n in range(17)]
    assert api.post(docs, json=dict.fromkeys(names, 1) | {"unique": names[:16]}).status_code == 201
    for name in names[:16]:
        assert refusal(api.post(docs, json={name: 1, "unique": [name]})) == (409, "CONFLICT")
    assert refusal(api.post(docs, json={names[16]: 1, "unique": names[16:]})) == (409, "CONFLICT")
    response = api.post(docs, json=dict.fromkeys(names, 2) | {"unique": names})
    assert refusal(response) == (400, "TOO_MANY_UNIQUE_FIELDS")


@pytest.mark.parametrize("unique", ["email", [1], [""], {}, 5, ["a.b"], ["o"], ["l"]])
def test_invalid_unique_is_a_400(api: httpx.Client, docs: str, unique: object) -> None:
    response = api.post(docs, json={"o": {}, "l": [], "unique": unique})
    assert refusal(response) == (400, "INVALID_UNIQUE")


@pytest.mark.executable
@pytest.mark.http1  # threads cannot share httpx's connection of HTTP/2
@pytest.mark.smoke
def test_two_inserts_at_once_do_not_both_get_a_unique_value(api: httpx.Client, docs: str) -> None:
    def insert(_: int) -> int:
        return api.post(docs, json={"email": "a@x", "unique": ["email"]}).status_code

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(insert, range(8))) == [201] + [409] * 7


def test_a_missing_document_is_a_404_with_the_message_of_the_hosted_service(
    api: httpx.Client, docs: str
) -> None:
    api.post(docs, json={"key": "there"})
    for path in (f"{docs}/not-there", "/no-such-collection/docs/a"):
        for response in (api.get(path), api.patch(path, json={}), api.delete(path)):
            assert response.status_code == 404
            assert response.json() == {"error": "Document not found", "code": "NOT_FOUND"}


def test_a_write_that_is_refused_creates_no_collection(api: httpx.Client, collection: str) -> None:
    api.post(f"/{collection}/docs", json=[])
    api.post(f"/{collection}/docs", json={"key": "a/b"})
    api.patch(f"/{collection}/docs/a", json={})
    api.delete(f"/{collection}/docs/a")
    api.put(f"/{collection}/docs/a", json={}, headers={"If-Match": "*"})
    api.post(f"/{collection}/bulk?atomic=true", json=[{}, {"key": "a/b"}])
    names = [item["name"] for item in api.get("/collections").json()["collections"]]
    assert collection not in names


@pytest.mark.smoke
def test_patch_merges_at_the_top_only(api: httpx.Client, docs: str) -> None:
    api.post(docs, json={"key": "a", "keep": 1, "deep": {"x": 1, "y": 2}, "gone": "?"})
    response = api.patch(f"{docs}/a", json={"deep": {"x": 3}, "gone": None, "new": []})
    assert response.status_code == 200
    assert content(response.json()) == {"keep": 1, "deep": {"x": 3}, "gone": None, "new": []}
    assert api.get(f"{docs}/a").json() == response.json()


def test_an_empty_patch_is_still_a_write(api: httpx.Client, docs: str) -> None:
    before = api.post(docs, json={"key": "a", "n": 1})
    after = api.patch(f"{docs}/a", json={})
    assert content(after.json()) == {"n": 1}
    assert etag(after) > etag(before)


@pytest.mark.parametrize(
    ("there", "step", "left"),
    [
        (5, {"increment": 1}, 6),
        (5, {"decrement": 7}, -2),
        (1.5, {"increment": 1}, 2.5),
        (5, {"increment": -5}, 0),
        (2**64 - 1, {"increment": 1}, 2**64),
        (2**53, {"increment": 1}, 2**53 + 1),
    ],
)
def test_increment_and_decrement_add_to_the_stored_number(
    api: httpx.Client, docs: str, there: float, step: dict[str, Any], left: float
) -> None:
    api.post(docs, json={"key": "a", "n": there})
    assert api.patch(f"{docs}/a", json={"n": step}).json()["n"] == left


def test_increment_of_a_missing_field_starts_at_zero(api: httpx.Client, docs: str) -> None:
    api.post(docs, json={"key": "a"})
    assert api.patch(f"{docs}/a", json={"n": {"decrement": 3}}).json()["n"] == -3


@pytest.mark.parametrize("there", ["5", None, True, [], {}])
def test_increment_of_anything_but_a_number_is_a_400_and_changes_nothing(
    api: httpx.Client, docs: str, there: object
) -> None:
    before = api.post(docs, json={"key": "a", "n": there, "m": 1})
    response = api.patch(f"{docs}/a", json={"m": {"increment": 1}, "n": {"increment": 1}})
    assert refusal(response) == (400, "INVALID_INCREMENT")
    assert "'n'" in response.json()["error"]
    assert api.get(f"{docs}/a").json() == before.json()


@pytest.mark.parametrize("by", ["1", None, True, [1], {"increment": 1}])
def test_increment_by_anything_but_a_number_is_a_400(api: httpx.Client, docs: str, by: object) -> None:
    api.post(docs, json={"key": "a", "n": 1})
    assert refusal(api.patch(f"{docs}/a", json={"n": {"increment": by}})) == (400, "INVALID_INCREMENT")


@pytest.mark.parametrize("by", [1e308, 10**308])
def test_increment_beyond_a_double_is_a_400(api: httpx.Client, docs: str, by: float) -> None:
    api.post(docs, json={"key": "a", "n": 1.7e308})
    assert refusal(api.patch(f"{docs}/a", json={"n": {"increment": by}})) == (400, "INVALID_INCREMENT")
    assert api.get(f"{docs}/a").json()["n"] == 1.7e308


@pytest.mark.executable
@pytest.mark.http1  # threads cannot share httpx's connection of HTTP/2
def test_increments_at_once_all_count(api: httpx.Client, docs: str) -> None:
    api.post(docs, json={"key": "a", "n": 0})
    with ThreadPoolExecutor(8) as pool:
        responses = list(pool.map(lambda _: api.patch(f"{docs}/a", json={"n": {"increment": 1}}), range(80)))
    assert sorted(response.json()["n"] for response in responses) == list(range(1, 81))


def test_a_step_outside_patch_is_plain_data(api: httpx.Client, docs: str) -> None:
    step = {"n": {"increment": 1}, "m": {"a": {"decrement": 1}}}
    assert content(api.post(docs, json={"key": "a", **step}).json()) == step
    assert content(api.put(f"{docs}/a", json=step).json()) == step
    two = {"n": {"increment": 1, "decrement": 1}, "m": {"a": {"increment": 1}}}
    assert content(api.patch(f"{docs}/a", json=two).json()) == two


@pytest.mark.executable
@pytest.mark.smoke
def test_put_inserts_with_201_and_replaces_with_200(api: httpx.Client, docs: str) -> None:
    first = api.put(f"{docs}/a", json={"x": 1, "y": 2})
    assert first.status_code == 201
    assert content(first.json()) == {"x": 1, "y": 2}
    second = api.put(f"{docs}/a", json={"y": 3})
    assert second.status_code == 200
    assert content(second.json()) == {"y": 3}
    assert second.json()["_id"] == "a"
    assert api.get(f"{docs}/a").json() == second.json()


@pytest.mark.parametrize("method", ["PUT", "PATCH"])
def test_an_id_cannot_be_changed(api: httpx.Client, docs: str, method: str) -> None:
    api.post(docs, json={"key": "a"})
    assert api.request(method, f"{docs}/a", json={"_id": "a"}).status_code == 200
    assert refusal(api.request(method, f"{docs}/a", json={"_id": "b"})) == (400, "INVALID_ID")


@pytest.mark.executable
@pytest.mark.smoke
def test_delete_returns_the_id_and_the_document_is_gone(api: httpx.Client, docs: str) -> None:
    api.post(docs, json={"key": "a"})
    response = api.delete(f"{docs}/a")
    assert response.status_code == 200
    assert response.json() == {"deleted": True, "_id": "a"}
    assert api.get(f"{docs}/a").status_code == 404
    assert api.delete(f"{docs}/a").status_code == 404
    assert api.get(docs).json()["documents"] == []


@pytest.mark.parametrize(
    ("select", "names"),
    [
        ("name", {"name"}),
        (" name , age ", {"name", "age"}),
        ("missing", set()),
        ("createdAt", {"createdAt"}),
        ("", {"name", "age", "at", "createdAt", "updatedAt"}),
    ],
)
def test_select_returns_only_the_selected_fields_and_the_id(
    api: httpx.Client, docs: str, select: str, names: set[str]
) -> None:
    api.post(docs, json={"key": "a", "name": "Ada", "age": 36, "at": {"x": 1, "y": 2}})
    one = api.get(f"{docs}/a", params={"select": select}).json()
    assert set(one) == {"_id", *names}
    assert api.get(docs, params={"select": select}).json()["documents"] == [one]


@pytest.mark.executable
def test_select_reaches_into_objects(api: httpx.Client, docs: str) -> None:
    api.post(docs, json={"key": "a", "at": {"x": 1, "y": {"z": 2, "w": 3}}, "l": [{"x": 1}]})

    def selected(select: str) -> dict[str, Any]:
        return content(api.get(f"{docs}/a", params={"select": select}).json())

    assert selected("at.x,at.y.z") == {"at": {"x": 1, "y": {"z": 2}}}
    assert selected("at.x,at") == selected("at,at.x") == {"at": {"x": 1, "y": {"z": 2, "w": 3}}}
    assert selected("at.x.no,l.x,at.q") == {}
