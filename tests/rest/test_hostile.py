"""Bad input over a real socket: each is refused, in JSON, and the server continues.

Input that is not refused comes back unchanged: SQL, operators and markup in a document are plain data.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import Server
from tests.rest.tools import client_of, curl, refusal


@pytest.fixture(autouse=True)
def goes_on(server: Server) -> Iterator[None]:
    """After each of these tests the server still responds, on a new connection."""
    yield
    with client_of(server) as client:
        assert client.get("/healthz").status_code == 200


def nested(depth: int, brackets: str = "[]") -> bytes:
    """A document of `depth` levels, itself included."""
    if brackets == "[]":
        return b'{"a":' + b"[" * (depth - 1) + b"]" * (depth - 1) + b"}"
    return b'{"a":' * (depth - 1) + b"{}" + b"}" * (depth - 1)


BROKEN = {
    "empty": b"",
    "spaces": b"  \n",
    "cut object": b'{"a": 1',
    "cut string": b'{"a": "',
    "cut escape": b'{"a": "\\u12',
    "single quotes": b"{'a': 1}",
    "trailing comma": b'{"a": 1,}',
    "two values": b"{} {}",
    "bare word": b"{a: 1}",
    "comment": b'{"a": 1 /* x */}',
    "BOM": b"\xef\xbb\xbf{}",
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "NaN": b'{"a": NaN}',
    "Infinity": b'{"a": Infinity}',
    "-Infinity": b'{"a": [-Infinity]}',
    "1e400": b'{"a": 1e400}',
    "-1e400": b'{"a": -1e400}',
    "10^400": b'{"a": 1' + b"0" * 400 + b"}",
    "10^309": b'{"a": {"b": [-1' + b"0" * 309 + b"]}}",
    "10^5000": b'{"a": 1' + b"0" * 5000 + b"}",
    "leading zero": b'{"a": 01}',
    "plus": b'{"a": +1}',
    "hex": b'{"a": 0x1}',
    "high surrogate": b'{"a": "\\ud800"}',
    "low surrogate": b'{"a": "\\udc00"}',
    "swapped surrogates": b'{"a": "\\udc00\\ud800"}',
    "surrogate in a key": b'{"\\ud800": 1}',
    "raw surrogate": b'{"a": "\xed\xa0\x80"}',
    "overlong": b'{"a": "\xc0\xaf"}',
    "not UTF-8": b'{"a": "\xff"}',
    "not UTF-8 in a key": b'{"\xff": 1}',
    "beyond Unicode": b'{"a": "\xf5\x80\x80\x80"}',
    "raw NUL": b'{"a": "\x00"}',
    "NUL": b'{"a": "\\u0000"}',
    "NUL in a key": b'{"b": {"a\\u0000b": 1}}',
    "NUL in an array": b'{"a": [["x\\u0000"]]}',
    "NUL in an id": b'{"key": "a\\u0000"}',
    "raw newline": b'{"a": "\n"}',
    "60,000 brackets": b"[" * 60_000,
    "30,000 pairs": b"[" * 30_000 + b"]" * 30_000,
    "10,000 objects": b'{"a":' * 10_000,
    "65 arrays": nested(65),
    "65 objects": nested(65, "{}"),
}


@pytest.mark.parametrize("body", BROKEN.values(), ids=BROKEN)
def test_unacceptable_json_is_a_400(api: httpx.Client, collection: str, body: bytes) -> None:
    before = api.post(f"/{collection}/docs", json={"key": "a"}).json()
    for method, path in (
        ("POST", f"/{collection}/docs"),
        ("POST", f"/{collection}/bulk"),
        ("PUT", f"/{collection}/docs/a"),
        ("PATCH", f"/{collection}/docs/a"),
        ("PUT", f"/{collection}/schema"),
        ("POST", "/realtime/token"),
    ):
        content = b"[%b]" % body if path.endswith("/bulk") and body.strip() else body
        assert refusal(api.request(method, path, content=content)) == (400, "INVALID_JSON")
    assert api.get(f"/{collection}/docs").json()["documents"] == [before]


@pytest.mark.parametrize("brackets", ["[]", "{}"])
def test_64_levels_are_stored_and_served(api: httpx.Client, docs: str, brackets: str) -> None:
    response = api.post(docs, content=nested(64, brackets))
    assert response.status_code == 201
    found = api.get(f"{docs}/{response.json()['_id']}").json()
    assert found["a"] == json.loads(nested(64, brackets))["a"]


@pytest.mark.parametrize("body", ["[]", "[{}]", '"text"', "5", "1.5", "true", "null"])
@pytest.mark.parametrize(("method", "id"), [("POST", ""), ("PUT", "/a"), ("PATCH", "/a")])
def test_a_document_is_an_object(api: httpx.Client, docs: str, method: str, id: str, body: str) -> None:
    api.post(docs, json={"key": "a"})
    response = api.request(method, docs + id, content=body)
    assert refusal(response) == (400, "INVALID_DOCUMENT")


@pytest.mark.parametrize(
    "document",
    [
        {"": 1},
        {"": {"": [{"": None}]}},
        {"a.b": 1, "a": {"b": 2}},
        {"$where": "1", "$gt": 1, "gt": 1, "or": [], "not": {}, "eq": None},
        {"age": {"gte": 1, "$inc": 2}},
        {"increment": 1, "decrement": {"increment": 2}},
        {"__proto__": {"x": 1}, "constructor": 1, "toString": 1},
        {"'; DROP TABLE documents; --": "'; DELETE FROM documents; --"},
        {"a\"b\\c'd`e": "\"\\'`"},
        {"text": "line\nline\r\n\t\b\f\x01\x1f\x7f\u2028\u2029\ufeff\ufffe\uffff"},
        {"emoji 👩‍👩‍👧": "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 \U0010ffff ‮rtl"},
        {"n": [0, -0.0, 1e-320, 5e-324, 1.7976931348623157e308, 2**64, -(2**63) - 1, 10**308]},
        {"x" * 10_000: "y" * 100_000},
        {f"field{n}": n for n in range(5000)},
        {"data": "position", "id": 5, "seq": 7, "collection_id": 1, "documents": "x"},
    ],
)
def test_odd_but_legal_documents_come_back_equal(
    api: httpx.Client, docs: str, document: dict[str, Any]
) -> None:
    response = api.post(docs, content=json.dumps(document))
    assert response.status_code == 201, response.text
    id = response.json()["_id"]
    api.patch(f"{docs}/{id}", json={"patched": 1})
    for found in (api.get(f"{docs}/{id}").json(), api.get(docs).json()["documents"][0]):
        for name in ("_id", "createdAt", "updatedAt", "patched"):
            del found[name]
        assert json.dumps(found, sort_keys=True) == json.dumps(document, sort_keys=True)


TEXT = st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=20)
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)
OURS = ("key", "unique", "_id", "createdAt", "updatedAt")
NAMES = TEXT.filter(lambda name: name not in OURS)


@settings(max_examples=60)
@given(document=st.dictionaries(NAMES, ANYTHING, max_size=5), ascii=st.booleans())
def test_any_document_comes_back_equal(api: httpx.Client, document: dict[str, Any], ascii: bool) -> None:
    response = api.post("/test_round_trip/docs", content=json.dumps(document, ensure_ascii=ascii))
    assert response.status_code == 201, response.text
    id = response.json()["_id"]
    found = api.get(f"/test_round_trip/docs/{id}")
    assert found.json() == response.json()
    left = {name: value for name, value in json.loads(found.content).items() if name not in OURS}
    assert json.dumps(left, sort_keys=True) == json.dumps(document, sort_keys=True)


# --- ids and paths -------------------------------------------------------------------------------

BAD_IDS = ["", ".", "..", "a/b", "/", "a\n", "\t", "\x7f", "a" * 129, "é" * 129, "\u200b", "\u202e"]


@pytest.mark.parametrize("id", BAD_IDS)
def test_an_id_that_no_path_can_name_is_refused_in_body_and_path(server: Server, docs: str, id: str) -> None:
    assert refusal(server.request("POST", docs, json={"key": id})) == (400, "INVALID_ID")
    escaped = "".join(f"%{byte:02x}" for byte in id.encode())
    for method in ("GET", "PUT", "PATCH", "DELETE"):
        status, body = curl(server, f"{docs}/{escaped}", "-X", method, "--json", "{}")
        assert (status, body["code"]) == (400, "INVALID_ID")
    assert server.request("GET", docs).json()["documents"] == []


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("/{c}/docs/%2F", 400),
        ("/{c}/docs/a%2Fb", 400),
        ("/{c}/docs/a%2fdocs%2Fb", 400),
        ("/{c}/docs/%00", 400),
        ("/{c}/docs/a%00", 400),
        ("/{c}/docs/%0d%0aX-Injected:%201", 400),
        ("/{c}/docs/%ff", 400),
        ("/{c}/docs/%c0%af", 400),
        ("/{c}/docs/%ed%a0%80", 400),
        ("/{c}/docs/..", 400),
        ("/{c}/docs/../docs/there", 404),
        ("/{c}/docs/%2e%2e/there", 404),
        ("/../{c}/docs/there", 404),
        ("/./{c}/docs", 404),
        ("/{c}//docs", 404),
        ("//{c}/docs", 404),
        ("/{c}/docs/%74here", 200),
        ("/{c}/docs/there?", 200),
        ("/{c}/docs/%2574here", 404),
        ("/{c}/docs/%zz", 404),
        ("/{c}/docs/a%", 404),
        ("/{c}%2Fdocs/there", 404),
        ("/%ff/docs", 400),
        ("/{c}/docs?filter=%ff", 400),
        ("/{c}/docs?%00=1", 400),
        ("/{c}/docs?" + "&".join(["limit=1"] * 101), 400),
    ],
)
def test_a_path_is_decoded_once_and_segment_by_segment(
    server: Server, collection: str, target: str, status: int
) -> None:
    server.insert(collection, {"key": "there"})
    assert curl(server, target.format(c=collection))[0] == status


@pytest.mark.parametrize("value", ["%0d%0aX-Injected:%201", "%1b[31m", "%e2%80%ae<script>"])
def test_input_quoted_in_a_refusal_is_harmless(api: httpx.Client, value: str) -> None:
    response = api.get(f"/{value}/docs")
    assert refusal(response)[0] == 400
    assert "x-injected" not in response.headers
    assert response.json()["error"].isprintable()


# --- sizes ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def large_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("large") / "large.json"
    path.write_bytes(b'{"a":"' + b"x" * 50_000_000 + b'"}')
    return path


AT_ONCE = ["-H", "Expect:"]  # without it, curl asks first
CHUNKED = ["-H", "Transfer-Encoding: chunked"]


@pytest.mark.parametrize(
    ("route", "how"),
    [
        pytest.param("POST /{c}/docs", [], id="docs"),
        pytest.param("POST /{c}/docs", AT_ONCE, id="docs, at once"),
        pytest.param("POST /{c}/docs", CHUNKED, id="docs, chunked"),
        pytest.param("POST /{c}/docs", [*AT_ONCE, *CHUNKED], id="docs, chunked, at once"),
        pytest.param("POST /{c}/bulk", AT_ONCE, id="bulk, at once"),
        pytest.param("PUT /{c}/docs/a", [*AT_ONCE, *CHUNKED], id="put, chunked, at once"),
    ],
)
def test_50_megabytes_are_a_413_that_the_client_can_read(
    server: Server, collection: str, large_file: Path, route: str, how: list[str]
) -> None:
    method, path = route.format(c=collection).split()
    sending = ["-X", method, "-H", "Content-Type: application/json", "--data-binary", f"@{large_file}"]
    status, body = curl(server, path, *sending, *how)
    assert (status, body["code"]) == (413, "BODY_TOO_LARGE")
    assert server.request("GET", f"/{collection}/count").json() == {"count": 0}


def padded(id: str, size: int) -> dict[str, str]:
    """A document whose stored JSON is `size` bytes."""
    stamps = '"createdAt":"2000-01-01T00:00:00.000Z","updatedAt":"2000-01-01T00:00:00.000Z"'
    return {"pad": "x" * (size - len(f'{{"_id":"{id}","pad":"",{stamps}}}'))}


def test_a_document_may_have_1_mib_and_not_a_byte_more(api: httpx.Client, docs: str) -> None:
    assert refusal(api.put(f"{docs}/a", json=padded("a", 2**20 + 1))) == (413, "DOCUMENT_TOO_LARGE")
    response = api.put(f"{docs}/a", json=padded("a", 2**20))
    assert response.status_code == 201
    assert len(response.content) == 2**20
    assert api.get(f"{docs}/a").content == response.content


@pytest.mark.parametrize("method", ["PUT", "PATCH"])
def test_a_write_that_makes_a_document_too_large_changes_nothing(
    api: httpx.Client, docs: str, method: str
) -> None:
    before = api.post(docs, json={"key": "a", "half": "x" * 600_000})
    response = api.request(method, f"{docs}/a", json={"other": "é" * 550_000})
    assert refusal(response) == (413, "DOCUMENT_TOO_LARGE")
    assert api.get(f"{docs}/a").json() == before.json()


@pytest.mark.http1  # 36 MB over HTTP/2 are five seconds
def test_a_find_beyond_its_size_limit_is_a_400_that_says_so(api: httpx.Client, docs: str) -> None:
    bulk = docs.removesuffix("docs") + "bulk"
    for _ in range(3):
        assert api.post(bulk, json=[{"pad": "x" * 1_000_000}] * 12).json()["failed"] == 0
    response = api.get(docs)
    assert refusal(response) == (400, "RESULT_TOO_LARGE")
    assert "limit" in response.json()["error"]
    assert len(api.get(docs, params={"limit": 10}).json()["documents"]) == 10
    assert api.get(docs.removesuffix("docs") + "count").json() == {"count": 36}
