"""Addresses: which are accepted, what their path means, and which proxies of the environment are used."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from paperdb_trio import PaperDBError, create_client, create_sync_client
from paperdb_trio.client.proxy import proxy_for
from paperdb_trio.client.wire import Address
from tests.client.harness import nothing_more
from tests.conftest import COMMAND, ENVIRONMENT, Server
from tests.nginx import free_port, nginx
from tests.zygote import Popen

pytestmark = pytest.mark.sqlite


@pytest.mark.parametrize(
    "arguments",
    [
        *(
            {"base_url": url, "api_key": "k"}
            for url in (
                *(
                    None,
                    "",
                    5,
                    b"http://h",
                    "db.example.com",
                    "127.0.0.1:8000",
                    "//h",
                    "http://",
                    "https:///db",
                ),
                *(
                    "http://h:99999",
                    "http://h:x",
                    "http://h:0",
                    "http://[::1",
                    "http://a b",
                    "http://a..b",
                    "http://h#a",
                ),
            )
        ),
        {"base_url": "ws://127.0.0.1:8000", "api_key": "k"},
        {"base_url": "http://127.0.0.1:8000?key=k", "api_key": "k"},
        {"base_url": "http://u:p@127.0.0.1:8000", "api_key": "k"},
        {"base_url": "http://127.0.0.1:8000"},
        {"base_url": "http://127.0.0.1:8000", "api_key": ""},
        {"base_url": "http://127.0.0.1:8000", "api_key": "two\r\nlines"},
        {"base_url": "http://127.0.0.1:8000", "api_key": "k", "schema": {"a": {"email": "string"}}},
        {"base_url": "http://127.0.0.1:8000", "api_key": "k", "realtime_url": "ftp://x"},
        {"base_url": "http://127.0.0.1:8000", "api_key": "k", "realtime_url": ""},
    ],
)
def test_invalid_arguments_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - each has a message of its own
        create_client(**arguments)
    assert "lines" not in str(caught.value)
    if "base_url" in arguments and not isinstance(arguments["base_url"], str):
        assert f"Invalid URL {arguments['base_url']!r}; expected something like http://" in str(caught.value)


@pytest.mark.parametrize("url", [None, "", "db.example.com", "http://h:x"])
def test_a_blocking_client_checks_its_url_too(url: Any) -> None:
    with pytest.raises(ValueError, match="Invalid URL"):
        create_sync_client(base_url=url, api_key="k")


@pytest.mark.parametrize(
    ("url", "authority", "path"),
    [
        ("http://h", "h", "/"),
        ("https://h:8443/", "h:8443", "/"),
        ("https://h/db", "h", "/db/"),
        ("wss://h:443/a/db/", "h", "/a/db/"),
        ("wss://h/realtime", "h", "/realtime"),
        ("ws://h/db/realtime", "h", "/db/realtime"),
        ("ws://[::1]:80/db", "[::1]", "/db/"),
        ("ws://ä.example/ö%20", "xn--4ca.example", "/%C3%B6%20/"),
    ],
)
def test_the_address_of_the_socket(url: str, authority: str, path: str) -> None:
    address = Address.parse(url, None)
    assert (address.authority, address.path) == (authority, path)


@pytest.fixture(scope="module")
def under_a_path(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The server's URL behind nginx, which forwards only `/db/`."""
    home, port = tmp_path_factory.mktemp("nginx"), free_port()
    changes = {
        "listen 443 ssl;": f"listen 127.0.0.1:{port};",
        "ssl_certificate     /etc/ssl/certs/db.example.com.pem;": "",
        "ssl_certificate_key /etc/ssl/private/db.example.com.key;": "",
        "127.0.0.1:8000": f"127.0.0.1:{server.port}",
        "location / {": "location /db/ {",
        "proxy_pass http://paperdb;": "proxy_pass http://paperdb/;",
    }
    with nginx(home, port, changes):
        yield f"http://127.0.0.1:{port}/db"


async def test_a_server_behind_a_path_works(server: Server, collection: str, under_a_path: str) -> None:
    for url, realtime_url in (
        (under_a_path, None),
        (under_a_path + "/", None),
        (server.url, under_a_path.replace("http", "ws")),
        (server.url, under_a_path + "/realtime"),
    ):
        async with (
            create_client(base_url=url, realtime_url=realtime_url, api_key=server.key) as db,
            db.realtime.subscribe(collection) as events,
        ):
            inserted = await db.collection(collection).insert({"n": 1})
            assert (await anext(events)).data == inserted
            await nothing_more(events, collection, server)
            async with db.collection(collection).live({"n": 1}) as live:
                assert inserted in live.documents
    with create_sync_client(base_url=under_a_path, api_key=server.key) as blocking:
        assert blocking.collection(collection).get(inserted["_id"]) == inserted


def test_listen_works_with_a_server_behind_a_path(server: Server, collection: str, under_a_path: str) -> None:
    document = server.insert(collection, {"n": 1})
    command = [*COMMAND, "listen", collection, "--url", under_a_path, "--since", "0", "--key", server.key]
    with Popen(command, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["data"] == document
        process.terminate()


async def test_a_wrong_path_gets_a_message(server: Server, collection: str, under_a_path: str) -> None:
    """The error shows nginx's response."""
    client = create_client(base_url=server.url, realtime_url=under_a_path[:-3], api_key=server.key)
    async with client as db:
        with pytest.raises(PaperDBError, match="HTTP 404: 404 Not Found") as caught:
            await db.realtime.subscribe(collection).__aenter__()
        assert caught.value.status == 404


# --- proxies of the environment ------------------------------------------------------------------


@pytest.fixture
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.mark.usefixtures("_no_proxies")
@pytest.mark.parametrize(
    ("exempt", "urls", "others"),
    [
        ("", [], ["http://h"]),
        ("*", ["http://h", "http://[::1]"], []),
        ("[::1]", ["http://[::1]:8000"], ["http://[::2]:8000", "http://h"]),
        ("::1", ["http://[::1]:8000"], ["http://[::2]:8000"]),
        ("[::1]:8000", ["http://[::1]:8000"], ["http://[::1]:8001"]),
        ("fd00::/8", ["http://[fd00::1]"], ["http://[fe00::1]"]),
        ("127.0.0.1, 10.0.0.0/8", ["http://127.0.0.1:8000", "http://10.1.2.3"], ["http://127.0.0.2"]),
        ("example.com", ["http://example.com", "http://db.Example.com:80"], ["http://notexample.com"]),
        (
            ".example.com,*.example.org",
            ["http://db.example.com", "http://db.example.org"],
            ["http://example.net"],
        ),
        ("h:8000,,", ["http://h:8000"], ["http://h", "http://h:8001"]),
        ("http://h", ["http://h:8000"], ["http://g"]),
        ("[", [], ["http://h"]),
    ],
)
def test_no_proxy_exempts_hosts(
    exempt: str, urls: list[str], others: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "proxy:3128")
    monkeypatch.setenv("NO_PROXY", exempt)
    assert [proxy_for(url) for url in urls] == [None] * len(urls)
    assert [proxy_for(url) for url in others] == ["http://proxy:3128"] * len(others)
    for url in urls + others:
        create_sync_client(base_url=url, api_key="k").close()


@pytest.mark.usefixtures("_no_proxies")
def test_a_proxy_is_used_for_requests(recorder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", recorder.url)
    monkeypatch.setenv("ALL_PROXY", "socks://127.0.0.1:1080/")  # as GNOME sets it; does not apply to http
    with create_sync_client(base_url="http://db.example.com", api_key="k") as db:
        assert db.a.get("x") == {"_id": "x", "properties": {}}
    assert recorder.requests == [("GET", "http://db.example.com/a/docs/x")]


@pytest.mark.usefixtures("_no_proxies")
@pytest.mark.parametrize(
    ("proxy", "why"),
    [
        ("socks5://user:secret@127.0.0.1:1080", "a SOCKS proxy needs the package socksio"),
        ("socks://127.0.0.1:1080/", "expected http://, https:// or socks5://"),
        ("http://h:x", "expected http://, https:// or socks5://"),
    ],
)
def test_a_proxy_that_cannot_be_used_is_refused(
    server: Server, proxy: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALL_PROXY", proxy)
    for create in (create_client, create_sync_client):
        with pytest.raises(ValueError, match=why) as caught:
            create(base_url="http://h", api_key="k")
        assert "ALL_PROXY" in str(caught.value)
        assert "secret" not in str(caught.value)
    done = subprocess.run(
        [*COMMAND, "listen", "a", "--url", server.url, "--key", "k"],
        capture_output=True,
        text=True,
        env={**ENVIRONMENT, "ALL_PROXY": proxy, "NO_PROXY": ""},
        timeout=20,
        check=False,
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert why in done.stderr
    monkeypatch.setenv("NO_PROXY", "h")
    create_sync_client(base_url="http://h", api_key="k").close()
