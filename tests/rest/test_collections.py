"""Collections: named by their first write, listed with their counts, removed whole; and their schemas."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.conftest import Server
from tests.rest.tools import curl, etag, refusal


def listed(api: httpx.Client, name: str) -> dict[str, Any] | None:
    found = [item for item in api.get("/collections").json()["collections"] if item["name"] == name]
    return found[0] if found else None


@pytest.mark.executable
def test_a_collection_is_listed_with_its_count_from_its_first_write(api: httpx.Client, collection: str) -> None:
    assert listed(api, collection) is None
    for n in range(1, 4):
        api.post(f"/{collection}/docs", json={"key": str(n)})
        item = listed(api, collection)
        assert item is not None
        assert item["count"] == n
    api.delete(f"/{collection}/docs/1")
    item = listed(api, collection)
    assert item is not None
    assert item["count"] == 2


def test_collections_are_listed_by_name(api: httpx.Client, collection: str) -> None:
    for letter in "ca_":
        api.post(f"/{collection}{letter}/docs", json={})
    names = [item["name"] for item in api.get("/collections").json()["collections"]]
    assert names == sorted(names)
    assert {f"{collection}{letter}" for letter in "ca_"} <= set(names)


@pytest.mark.parametrize(
    "query", ["", "?confirm=", "?confirm=true", "?confirm={c}x", "?confirm={c}&confirm={c}"]
)
def test_a_collection_is_dropped_only_by_its_name(api: httpx.Client, collection: str, query: str) -> None:
    api.post(f"/{collection}/docs", json={"key": "a"})
    response = api.delete(f"/{collection}{query.format(c=collection)}")
    assert response.status_code == 400
    assert api.get(f"/{collection}/count").json() == {"count": 1}


def test_an_id_that_clients_fold_into_the_collection_deletes_nothing(
    api: httpx.Client, collection: str
) -> None:
    api.post(f"/{collection}/docs", json={"key": "a"})
    for id in (".", "..", "%2E", "%2e%2E"):  # httpx folds the first two, as browsers do
        assert api.delete(f"/{collection}/docs/{id}").status_code in (400, 404, 405)
        assert refusal(
            api.post(f"/{collection}/docs", json={"_id": id.replace("%2E", ".").replace("%2e", ".")})
        )
    assert api.get(f"/{collection}/count").json() == {"count": 1}


@pytest.mark.parametrize("method", ["GET", "POST", "PATCH", "PUT"])
def test_the_path_of_a_collection_points_to_its_documents(api: httpx.Client, method: str) -> None:
    response = api.request(method, "/messages")
    assert refusal(response) == (405, "METHOD_NOT_ALLOWED")
    assert response.json()["error"] == f"{method} is not allowed here; the documents are at /messages/docs"


@pytest.mark.executable
@pytest.mark.smoke
def test_dropping_removes_the_collection_and_returns_how_many_documents_it_had(
    api: httpx.Client, collection: str
) -> None:
    api.post(f"/{collection}/bulk", json=[{"key": str(n)} for n in range(700)])
    api.post(f"/{collection}x/docs", json={"key": "stays"})
    response = api.delete(f"/{collection}?confirm={collection}")
    assert (response.status_code, response.json()) == (200, {"deleted": 700})
    assert listed(api, collection) is None
    assert api.get(f"/{collection}/docs").json()["documents"] == []
    assert api.get(f"/{collection}/docs/5").status_code == 404
    assert refusal(api.delete(f"/{collection}?confirm={collection}")) == (404, "NOT_FOUND")
    assert api.get(f"/{collection}x/docs/stays").status_code == 200
    assert api.post(f"/{collection}/docs", json={"key": "5"}).status_code == 201
    assert api.get(f"/{collection}/count").json() == {"count": 1}


def test_a_dropped_collection_takes_its_unique_fields_and_its_seqs_along(
    api: httpx.Client, collection: str
) -> None:
    first = api.post(f"/{collection}/docs", json={"key": "a", "v": 1, "unique": ["v"]})
    api.delete(f"/{collection}?confirm={collection}")
    second = api.post(f"/{collection}/docs", json={"key": "a", "v": 1, "unique": ["v"]})
    assert second.status_code == 201
    assert etag(second) > etag(first)


def test_a_document_inserted_during_a_drop_is_whole_or_gone(api: httpx.Client, collection: str) -> None:
    api.post(f"/{collection}/bulk", json=[{} for _ in range(1000)])
    with ThreadPoolExecutor(5) as pool:
        inserts = [pool.submit(api.post, f"/{collection}/docs", json={"n": n}) for n in range(40)]
        dropped = pool.submit(api.delete, f"/{collection}?confirm={collection}").result()
    inserted = [insert.result() for insert in inserts]
    assert {response.status_code for response in inserted} == {201}
    left = api.get(f"/{collection}/docs", params={"limit": 1000}).json()["documents"]
    assert len(left) == 1040 - dropped.json()["deleted"]
    assert api.get(f"/{collection}/count").json() == {"count": len(left)}
    assert {document["_id"] for document in left} <= {response.json()["_id"] for response in inserted}


@pytest.mark.parametrize("name", ["a", "A-b_9", "x" * 64, "-", "_", "0", "collections", "realtime", "docs"])
def test_names_of_letters_digits_underscores_and_hyphens_work(api: httpx.Client, name: str) -> None:
    assert api.post(f"/{name}/docs", json={"key": "a"}).status_code == 201
    assert api.get(f"/{name}/docs/a").json()["_id"] == "a"
    assert api.get(f"/{name}/count").json() == {"count": 1}
    assert api.delete(f"/{name}?confirm={name}").json() == {"deleted": 1}


ROUTES = [
    ("GET", "docs"),
    ("POST", "docs"),
    ("POST", "bulk"),
    ("GET", "docs/a"),
    ("PATCH", "docs/a"),
    ("PUT", "docs/a"),
    ("DELETE", "docs/a"),
    ("GET", "count"),
    ("GET", "schema"),
]


@pytest.mark.parametrize(("method", "route"), ROUTES)
def test_a_wrong_name_is_refused_on_every_route_with_the_message_of_the_hosted_service(
    api: httpx.Client, method: str, route: str
) -> None:
    response = api.request(method, f"/my%20collection/{route}", json={})
    assert refusal(response) == (400, "INVALID_COLLECTION")
    assert response.json()["error"] == (
        "Invalid collection name: 'my collection'. Use letters, numbers, underscores, and hyphens only."
    )


@pytest.mark.parametrize(
    "name",
    [
        "a.b",
        "..",
        "%2e%2e",
        "a%2Fb",
        "%00",
        "a%00",
        "a%0a",
        "%C3%A9",
        "x" * 65,
        "",
        "%27--",
        "%EF%BC%A1",
        "a+b",
        "%20",
    ],
)
def test_any_other_name_is_a_400_however_it_is_sent(server: Server, name: str) -> None:
    status, body = curl(server, f"/{name}/docs", "--json", "{}")
    assert (status, body["code"]) in ((400, "INVALID_COLLECTION"), (404, "NOT_FOUND"))
    assert status == 400 or name == ""


# --- schemas -------------------------------------------------------------------------------------


def put_schema(api: httpx.Client, collection: str, **properties: object) -> httpx.Response:
    return api.put(f"/{collection}/schema", json={"properties": properties})


def test_a_schema_is_shown_as_it_was_put_until_it_is_deleted(api: httpx.Client, collection: str) -> None:
    path = f"/{collection}/schema"
    schema = {"properties": {"email": {"type": "string", "required": True, "unique": True, "default": None}}}
    assert refusal(api.get(path)) == (404, "NOT_FOUND")
    assert api.put(path, json=schema).status_code == 200
    assert api.get(path).json() == schema
    item = listed(api, collection)
    assert item is not None
    assert item["schema"] == schema
    assert api.delete(path).status_code == 200
    assert refusal(api.get(path)) == (404, "NOT_FOUND")
    assert api.post(f"/{collection}/docs", json={}).status_code == 201


@pytest.mark.executable
def test_a_required_field_is_named_with_the_message_of_the_hosted_service(
    api: httpx.Client, collection: str
) -> None:
    put_schema(api, collection, email={"required": True})
    docs = f"/{collection}/docs"
    for response in (
        api.post(docs, json={}),
        api.post(docs, json={"email": None}),
        api.put(f"{docs}/a", json={"n": 1}),
        api.post(f"/{collection}/bulk?atomic=true", json=[{"email": 1}, {}]),
    ):
        assert response.status_code == 400
        assert response.json()["error"] == "Field 'email' is required"
    api.post(docs, json={"key": "a", "email": 1})
    assert api.patch(f"{docs}/a", json={"email": None}).json()["error"] == "Field 'email' is required"
    assert api.patch(f"{docs}/a", json={"n": 1}).status_code == 200
    assert api.get(f"/{collection}/count").json() == {"count": 1}


VALUES: dict[str, object] = {"string": "", "number": 0.5, "boolean": False, "object": {}, "array": []}


@pytest.mark.parametrize("type", VALUES)
def test_a_type_accepts_its_own_values_and_no_others(api: httpx.Client, collection: str, type: str) -> None:
    put_schema(api, collection, v={"type": type})
    for other, value in VALUES.items():
        response = api.post(f"/{collection}/docs", json={"v": value})
        assert response.status_code == (201 if other == type else 400), response.text
        if other != type:
            assert refusal(response) == (400, "VALIDATION_FAILED")
            assert "'v'" in response.json()["error"]
    assert api.post(f"/{collection}/docs", json={}).status_code == 201


def test_a_default_fills_a_missing_field_with_a_copy(api: httpx.Client, collection: str) -> None:
    put_schema(api, collection, role={"default": "user"}, on={"default": False}, l={"default": [1]})
    first = api.post(f"/{collection}/docs", json={}).json()
    assert (first["role"], first["on"], first["l"]) == ("user", False, [1])
    second = api.post(f"/{collection}/docs", json={"role": "admin", "on": True, "l": []}).json()
    assert (second["role"], second["on"], second["l"]) == ("admin", True, [])


@pytest.mark.executable
@pytest.mark.smoke
def test_unique_is_enforced_on_every_write(api: httpx.Client, collection: str) -> None:
    put_schema(api, collection, email={"unique": True})
    docs = f"/{collection}/docs"
    api.post(docs, json={"key": "a", "email": "x"})
    api.post(docs, json={"key": "b", "email": "y"})
    for response in (
        api.post(docs, json={"email": "x"}),
        api.patch(f"{docs}/b", json={"email": "x"}),
        api.put(f"{docs}/b", json={"email": "x"}),
        api.put(f"{docs}/c", json={"email": "x"}),
    ):
        assert refusal(response) == (409, "CONFLICT")
        assert response.json()["error"] == (
            "Unique field violation — 'email' already exists in this collection."
        )
    assert api.put(f"{docs}/a", json={"email": "x", "n": 1}).status_code == 200
    assert api.get(f"{docs}/b").json()["email"] == "y"
    assert [api.post(docs, json=body).status_code for body in ({}, {}, {"email": None})] == [201] * 3


@pytest.mark.parametrize(
    ("there", "new", "status"),
    [
        (1, 1.0, 409),
        (1, "1", 201),
        (1, True, 201),
        (0, False, 201),
        (True, False, 201),
        (True, True, 409),
        ([1], [1], 409),
        ([1], "[1]", 201),
        ('{"a":1}', {"a": 1}, 201),
    ],
)
def test_a_unique_field_compares_as_filters_do(
    api: httpx.Client, collection: str, there: object, new: object, status: int
) -> None:
    put_schema(api, collection, v={"unique": True})
    api.post(f"/{collection}/docs", json={"v": there})
    assert api.post(f"/{collection}/docs", json={"v": new}).status_code == status


def test_a_unique_schema_is_refused_when_the_data_break_it(api: httpx.Client, collection: str) -> None:
    api.post(f"/{collection}/bulk", json=[{"v": 1}, {"v": 1.0}])
    assert refusal(put_schema(api, collection, w={"unique": True}, v={"unique": True})) == (409, "CONFLICT")
    assert refusal(api.get(f"/{collection}/schema")) == (404, "NOT_FOUND")
    assert [api.post(f"/{collection}/docs", json={"w": 1}).status_code for _ in range(2)] == [201, 201]


def test_a_schema_applies_to_later_writes_only(api: httpx.Client, collection: str) -> None:
    old = api.post(f"/{collection}/docs", json={"key": "a", "v": "text"}).json()
    assert put_schema(api, collection, v={"type": "number"}).status_code == 200
    assert api.get(f"/{collection}/docs/a").json() == old
    assert api.patch(f"/{collection}/docs/a", json={"n": 1}).status_code == 400
    assert api.patch(f"/{collection}/docs/a", json={"v": 5}).status_code == 200


@pytest.mark.parametrize(
    "schema",
    [
        [],
        {},
        {"properties": []},
        {"properties": {}, "more": 1},
        {"properties": {"a": 5}},
        {"properties": {"a": {"type": "date"}}},
        {"properties": {"a": {"type": ["string"]}}},
        {"properties": {"a": {"required": "yes"}}},
        {"properties": {"a": {"unique": 1}}},
        {"properties": {"a": {"requried": True}}},
        {"properties": {"a": {"type": "string", "default": 5}}},
        {"properties": {"a.b": {"type": "string"}}},
        {"properties": {"_id": {"unique": True}}},
        {"properties": {'a"b': {}}},
        {"properties": {"": {}}},
        {"properties": {f"p{n}": {} for n in range(201)}},
        {"properties": {f"p{n}": {"index": True} for n in range(65)}},
        {"properties": {}, "indexes": {}},
        {"properties": {}, "indexes": ["a"]},
        {"properties": {}, "indexes": [[]]},
        {"properties": {}, "indexes": [[5]]},
        {"properties": {}, "indexes": [["a..b"]]},
        {"properties": {}, "indexes": [["-"]]},
        {"properties": {}, "indexes": [["a", "-a"]]},
        {"properties": {}, "indexes": [[f"f{n}" for n in range(9)]]},
        {"properties": {}, "indexes": [[f"f{n}"] for n in range(65)]},
    ],
)
def test_a_wrong_schema_is_a_400_and_creates_nothing(
    api: httpx.Client, collection: str, schema: object
) -> None:
    response = api.put(f"/{collection}/schema", json=schema)
    assert refusal(response)[0] == 400
    assert refusal(response)[1] in ("INVALID_SCHEMA", "INVALID_FIELD")
    assert listed(api, collection) is None


def test_a_schema_is_removed_with_its_collection(api: httpx.Client, collection: str) -> None:
    put_schema(api, collection, v={"required": True, "unique": True, "index": True})
    assert api.delete(f"/{collection}?confirm={collection}").json() == {"deleted": 0}
    assert [api.post(f"/{collection}/docs", json=body).status_code for body in ({}, {"v": 1}, {"v": 1})] == [
        201
    ] * 3
