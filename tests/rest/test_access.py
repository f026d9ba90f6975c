"""Access, and what every response has: keys, 401, 403, 404, 405, 415, CORS, HEAD."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Iterator

import httpx
import pytest

from tests.conftest import Server, StartServer
from tests.rest.tools import client_of, refusal

WRITES = [
    ("POST", "/{c}/docs"),
    ("POST", "/{c}/bulk"),
    ("PATCH", "/{c}/docs/a"),
    ("PUT", "/{c}/docs/a"),
    ("DELETE", "/{c}/docs/a"),
    ("PUT", "/{c}/schema"),
    ("DELETE", "/{c}/schema"),
    ("DELETE", "/{c}?confirm={c}"),
]
READS = [
    ("GET", "/{c}/docs"),
    ("GET", "/{c}/docs/a"),
    ("GET", "/{c}/count"),
    ("GET", "/collections"),
]


@pytest.fixture(scope="module")
def public(server: Server) -> str:
    return server.new_key(public=True)["key"]


@pytest.fixture(scope="module")
def bare(server: Server) -> Iterator[httpx.Client]:
    """A client without a key."""
    with client_of(server) as client:
        yield client


@pytest.mark.parametrize(("method", "path"), WRITES)
def test_a_public_key_cannot_write(
    api: httpx.Client, bare: httpx.Client, public: str, collection: str, method: str, path: str
) -> None:
    before = api.post(f"/{collection}/docs", json={"key": "a"}).json()
    headers = {"Authorization": f"Bearer {public}"}
    response = bare.request(method, path.format(c=collection), headers=headers, json={"x": 1})
    assert refusal(response) == (403, "READ_ONLY_KEY")
    assert api.get(f"/{collection}/docs").json()["documents"] == [before]


@pytest.mark.parametrize(("method", "path"), READS)
def test_a_public_key_reads_all_that_a_secret_key_reads(
    api: httpx.Client, bare: httpx.Client, public: str, collection: str, method: str, path: str
) -> None:
    api.post(f"/{collection}/docs", json={"key": "a"})
    path = path.format(c=collection)
    response = bare.request(method, path, headers={"Authorization": f"Bearer {public}"})
    assert response.status_code == 200
    assert response.json() == api.request(method, path).json()


@pytest.mark.parametrize(("method", "path"), [*WRITES, *READS, ("POST", "/realtime/token"), ("GET", "/no/way")])
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": ""},
        {"Authorization": "Bearer"},
        {"Authorization": "{key}"},
        {"Authorization": "Basic {key}"},
        {"Authorization": "Bearer {key}x"},
        {"Authorization": "Bearer pdb_sk_"},
        {"Authorization": "Bearer ' OR 1=1 --"},
        {"X-API-Key": ""},
        {"X-API-Key": "pdb_sk_nonsense"},
        {"Cookie": "key={key}"},
    ],
)
def test_without_a_valid_key_everything_is_a_401_with_the_message_of_the_hosted_service(
    server: Server, bare: httpx.Client, method: str, path: str, headers: dict[str, str]
) -> None:
    headers = {name: value.format(key=server.key) for name, value in headers.items()}
    response = bare.request(method, path.format(c="test_access"), headers=headers)
    assert response.status_code == 401
    body = response.json()
    assert body["code"] == "UNAUTHORIZED"
    assert body["error"].startswith("Missing or invalid Authorization header")
    assert response.headers["www-authenticate"].startswith("Bearer")


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "Bearer {key}"},
        {"authorization": "bearer {key}"},
        {"AUTHORIZATION": "BEARER   {key}"},
        {"X-API-Key": "{key}"},
        {"x-api-key": "{key}"},
    ],
)
def test_a_key_may_be_sent_in_either_header(
    server: Server, bare: httpx.Client, headers: dict[str, str]
) -> None:
    headers = {name: value.format(key=server.key) for name, value in headers.items()}
    assert bare.get("/collections", headers=headers).status_code == 200


def test_a_key_in_the_query_does_not_count(server: Server, bare: httpx.Client) -> None:
    for name in ("key", "api_key", "apikey"):
        assert bare.get("/collections", params={name: server.key}).status_code == 401


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
def test_health_needs_no_key(bare: httpx.Client, path: str) -> None:
    assert bare.get(path).status_code == 200


@pytest.mark.parametrize("path", ["/a/b", "/a/docs/b/c", "/a/doc", "//a/docs", "/realtime", "/a/docs/b/"])
def test_any_other_path_is_a_404(api: httpx.Client, path: str) -> None:
    status, code = refusal(api.get(httpx.URL(api.base_url).copy_with(raw_path=path.encode())))
    assert (status, code) in ((404, "NOT_FOUND"), (405, "METHOD_NOT_ALLOWED"))


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", "/c/docs", {"GET", "POST"}),
        ("PATCH", "/c/docs", {"GET", "POST"}),
        ("DELETE", "/c/docs", {"GET", "POST"}),
        ("POST", "/c/docs/a", {"GET", "PATCH", "PUT", "DELETE"}),
        ("GET", "/c/bulk", {"POST"}),
        ("POST", "/c/count", {"GET"}),
        ("PATCH", "/collections", {"GET"}),
        ("POST", "/healthz", {"GET"}),
        ("DELETE", "/", {"GET"}),
        ("TRACE", "/c/docs", {"GET", "POST"}),
    ],
)
def test_another_method_is_a_405_that_names_those_allowed(
    api: httpx.Client, method: str, path: str, allowed: set[str]
) -> None:
    response = api.request(method, path, json={})
    assert refusal(response) == (405, "METHOD_NOT_ALLOWED")
    assert {name.strip() for name in response.headers["allow"].split(",")} - {"OPTIONS", "HEAD"} == allowed
    assert api.options(path).headers["allow"] == response.headers["allow"]


BODIES = [("POST", "/{c}/docs"), ("POST", "/{c}/bulk"), ("PATCH", "/{c}/docs/a"), ("PUT", "/{c}/docs/a")]
bodies = pytest.mark.parametrize(("method", "path"), [*BODIES, ("POST", "/realtime/token")])


@bodies
@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "json", "é"]
)
def test_another_content_type_is_a_415(
    api: httpx.Client, collection: str, method: str, path: str, kind: str
) -> None:
    headers = [(b"Content-Type", kind.encode("latin-1"))]
    response = api.request(method, path.format(c=collection), content=b"{}", headers=headers)
    assert refusal(response) == (415, "UNSUPPORTED_MEDIA_TYPE")


@pytest.mark.parametrize(
    "kind",
    [
        None,
        "application/json",
        "Application/JSON;charset=utf-8",
        "application/merge-patch+json",
    ],
)
def test_usual_names_of_json_are_accepted(api: httpx.Client, docs: str, kind: str | None) -> None:
    headers = {} if kind is None else {"Content-Type": kind}
    assert api.post(docs, content=b"{}", headers=headers).status_code == 201


@pytest.mark.parametrize(
    "path", ["/{c}/docs", "/{c}/docs/a", "/{c}/count", "/collections", "/healthz", "/{c}/docs/no"]
)
def test_head_responds_like_get_without_a_body(api: httpx.Client, collection: str, path: str) -> None:
    api.post(f"/{collection}/docs", json={"key": "a"})
    path = path.format(c=collection)
    get, head = api.get(path), api.head(path)
    assert head.content == b""
    assert head.status_code == get.status_code
    for name in ("content-type", "content-length", "etag"):
        assert head.headers.get(name) == get.headers.get(name)


# --- CORS ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("coding", ["gzip", "br", "gzip, identity", "x"])
def test_a_compressed_body_is_a_415_that_says_what_is_accepted(
    api: httpx.Client, docs: str, coding: str
) -> None:
    body = gzip.compress(b"{}")
    headers = {"Content-Type": "application/json", "Content-Encoding": coding}
    response = api.post(docs, content=body, headers=headers)
    assert refusal(response) == (415, "UNSUPPORTED_MEDIA_TYPE")
    assert response.headers["accept-encoding"] == "identity"
    assert api.post(docs, content=b"{}", headers={**headers, "Content-Encoding": "identity"}).status_code == 201


ASKED = [
    ("GET", "/c/docs", 200),
    ("GET", "/c/docs/no", 404),
    ("GET", "/c.d/docs", 400),
    ("PUT", "/c/docs", 405),
]


@pytest.mark.parametrize(("method", "path", "status"), ASKED)
def test_any_origin_may_read_every_response_even_a_refusal(
    api: httpx.Client, method: str, path: str, status: int
) -> None:
    response = api.request(method, path, headers={"Origin": "https://app.example"})
    assert response.status_code == status
    assert response.headers["access-control-allow-origin"] == "*"
    assert "ETag" in response.headers["access-control-expose-headers"]
    assert "access-control-allow-credentials" not in response.headers


# Over HTTP/2 the server sends the whole 413, then RST_STREAM with NO_ERROR (RFC 9113, section 8.1). httpx reads
# no response before it has sent its body: it waits for a window in vain. nghttp and, over TLS, curl read the
# 413.
@pytest.mark.http1
def test_a_401_and_a_413_can_be_read_by_any_origin(api: httpx.Client, bare: httpx.Client, docs: str) -> None:
    headers = {"Origin": "https://app.example"}
    large = api.post(docs, content=b" " * (17 * 1024 * 1024), headers=headers)
    for response, status in ((bare.get(docs, headers=headers), 401), (large, 413)):
        assert response.status_code == status
        assert response.headers["access-control-allow-origin"] == "*"


@pytest.mark.parametrize("path", ["/c/docs", "/c/docs/a", "/realtime/token", "/anything"])
def test_a_preflight_needs_no_key_and_allows_all_that_we_use(bare: httpx.Client, path: str) -> None:
    headers = {
        "Origin": "https://app.example",
        "Access-Control-Request-Method": "PATCH",
        "Access-Control-Request-Headers": "authorization,content-type",
    }
    response = bare.options(path, headers=headers)
    assert response.status_code in (200, 204)
    assert response.content == b""
    assert response.headers["access-control-allow-origin"] == "*"
    methods = {name.strip() for name in response.headers["access-control-allow-methods"].split(",")}
    assert {"GET", "POST", "PUT", "PATCH", "DELETE"} <= methods
    allowed = {name.strip().lower() for name in response.headers["access-control-allow-headers"].split(",")}
    assert {"authorization", "x-api-key", "content-type", "if-match", "last-event-id"} <= allowed


def test_a_wrong_key_and_no_key_get_different_messages(server: Server, bare: httpx.Client) -> None:
    for headers, word in (
        ({}, "header"),
        ({"Authorization": f"Basic {server.key}"}, "header"),
        ({"Authorization": f"Bearer {server.key}x"}, "does not exist, has expired or has been revoked"),
        ({"X-API-Key": "pdb_sk_x"}, "does not exist, has expired or has been revoked"),
    ):
        assert bare.get("/c/docs", headers=headers).json()["error"].endswith(word)


def test_a_proxys_basic_authorization_does_not_hide_the_key_or_token(
    server: Server, bare: httpx.Client, collection: str
) -> None:
    basic = {"Authorization": "Basic YTpi"}
    assert bare.get(f"/{collection}/docs", headers={**basic, "X-API-Key": server.key}).status_code == 200
    token = server.token(collection)
    assert bare.get(f"/{collection}/changes?token={token}", headers=basic).status_code == 200


@pytest.mark.parametrize(
    "path", ["/{c}/docs", "/{c}/docs/a", "/{c}/count", "/{c}/changes", "/collections", "/no"]
)
def test_no_cache_may_keep_a_response_to_a_key(api: httpx.Client, collection: str, path: str) -> None:
    api.post(f"/{collection}/docs", json={"key": "a"})
    assert api.get(path.format(c=collection)).headers["cache-control"] == "no-store"


def test_without_an_origin_there_is_no_cors(api: httpx.Client) -> None:
    assert "access-control-allow-origin" not in api.get("/collections").headers


def test_only_configured_origins_are_allowed(start_server: StartServer) -> None:
    server = start_server("--allowed-origins", "https://a.example, http://localhost:3000")

    def response(origin: str, method: str = "GET") -> httpx.Response:
        return server.request(method, "/c/docs", headers={"Origin": origin})

    for method in ("GET", "OPTIONS"):
        for origin in ("https://a.example", "http://localhost:3000"):
            assert response(origin, method).headers["access-control-allow-origin"] == origin
            assert "Origin" in response(origin, method).headers["vary"]
        for origin in ("https://evil.example", "https://a.example.evil", "http://a.example", "null", "*"):
            assert "access-control-allow-origin" not in response(origin, method).headers
            assert "Origin" in response(origin, method).headers["vary"]


def test_a_token_that_no_response_could_quote_is_a_401(server: Server, bare: httpx.Client) -> None:
    header = base64.urlsafe_b64encode(json.dumps({"alg": "HS256", "crit": ["\ud800"], "kid": "x"}).encode())
    token = f"{header.rstrip(b'=').decode()}.e30.AAAA"
    response = bare.get("/a/docs", headers={"Authorization": f"Bearer {token}"})
    assert (response.status_code, response.json()["code"]) == (401, "INVALID_TOKEN")
    assert "Traceback" not in server.stderr
