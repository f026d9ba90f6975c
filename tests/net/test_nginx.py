"""Behind nginx, with the configuration from docs/operations.md: REST, WebSocket and server-sent events pass
without delay, and the limits count the clients, not the proxy."""

from __future__ import annotations

import json
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import ClientConnection, connect

from tests.conftest import Server, need, receive, wait_until
from tests.nginx import free_port, nginx
from tests.realtime.raw import running
from tests.tls import trusting


@dataclass
class Proxy:
    """nginx in front of `server`, whose key this is. `tls` trusts its certificate."""

    server: Server
    port: int
    tls: ssl.SSLContext

    def client(self, address: str = "127.0.0.1") -> httpx.Client:
        """A client with this address."""
        return httpx.Client(
            base_url=f"https://db.example.com:{self.port}",
            headers={"Authorization": f"Bearer {self.server.key}"},
            timeout=20,
            transport=httpx.HTTPTransport(verify=self.tls, local_address=address),
            trust_env=False,
        )

    def connect(self, collection: str, address: str = "127.0.0.1", **more: Any) -> ClientConnection:
        """A WebSocket from this address."""
        token = self.server.token(collection)
        raw = socket.create_connection(("127.0.0.1", self.port), timeout=10, source_address=(address, 0))
        connection: ClientConnection = connect(
            f"wss://db.example.com:{self.port}/?token={token}&since=now",
            sock=raw,
            ssl=self.tls,
            proxy=None,
            close_timeout=2,
            **more,
        )
        return connection


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    openssl = need("openssl")
    home = tmp_path_factory.mktemp("nginx")
    names = ["-subj", "/CN=db.example.com", "-addext", "subjectAltName=DNS:db.example.com"]
    files = ["-keyout", str(home / "key"), "-out", str(home / "certificate")]
    subprocess.run(
        [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *names, *files],
        check=True,
        capture_output=True,
    )
    port = free_port()
    with running(home / "data", "--max-connections-per-address", "3") as server:
        changes = {
            "listen 443 ssl": f"listen 127.0.0.1:{port} ssl",
            "127.0.0.1:8000": f"127.0.0.1:{server.port}",
            "/etc/ssl/certs/db.example.com.pem": str(home / "certificate"),
            "/etc/ssl/private/db.example.com.key": str(home / "key"),
        }
        with nginx(home, port, changes):
            yield Proxy(server, port, trusting(home / "certificate"))


@pytest.fixture(autouse=True)
def _known_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """`db.example.com` is this machine."""
    resolve = socket.getaddrinfo
    monkeypatch.setattr(
        socket,
        "getaddrinfo",
        lambda host, *rest, **more: resolve("127.0.0.1" if host == "db.example.com" else host, *rest, **more),
    )


def test_large_and_small_documents_pass(proxy: Proxy, collection: str) -> None:
    with proxy.client() as client:
        document = client.post(f"/{collection}/docs", json={"text": "é" * 400_000}).json()
        got = client.get(f"/{collection}/docs/{document['_id']}")
        assert got.json() == document
        etag = got.headers["etag"]
        url = f"/{collection}/docs/{document['_id']}"
        assert client.patch(url, json={"n": 1}, headers={"If-Match": '"0"'}).status_code == 412
        assert client.patch(url, json={"n": 1}, headers={"If-Match": etag}).status_code == 200
        assert client.post(f"/{collection}/bulk", json=[{"text": "x" * 900_000}] * 15).json()["failed"] == 0
        assert client.delete(f"/{collection}?confirm={collection}").json() == {"deleted": 16}


def test_events_pass_immediately_both_ways(proxy: Proxy, collection: str) -> None:
    with proxy.connect(collection) as ws, proxy.client() as client:
        assert receive(ws)["type"] == "ready"
        for n in range(20):
            document = client.post(f"/{collection}/docs", json={"n": n}).json()
            assert receive(ws)["data"] == document
        ws.send('{"action": "ping", "ref": 7}')
        assert receive(ws)["ref"] == 7


def test_server_sent_events_are_not_buffered(proxy: Proxy, collection: str) -> None:
    got: list[dict[str, object]] = []
    ready = threading.Event()

    def listen() -> None:
        with (
            proxy.client() as client,
            client.stream("GET", f"/{collection}/changes", headers={"Accept": "text/event-stream"}) as stream,
        ):
            ready.set()
            for line in stream.iter_lines():
                if line.startswith("data:"):
                    got.append(json.loads(line[5:]))
                    if len(got) == 3:
                        return

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    assert ready.wait(10)
    with proxy.client() as client:
        for n in range(1, 4):
            document = client.post(f"/{collection}/docs", json={}).json()
            wait_until(lambda n=n: len(got) == n)  # type: ignore[misc]
            assert got[-1]["data"] == document
    thread.join(5)


def test_long_poll_waits_behind_the_proxy(proxy: Proxy, collection: str) -> None:
    with proxy.client() as client:
        seq = client.get(f"/{collection}/changes").json()["seq"]
        threading.Timer(1, proxy.server.insert, (collection, {"late": True})).start()
        response = client.get(f"/{collection}/changes?since={seq}&wait=10").json()
    assert [change["data"]["late"] for change in response["changes"]] == [True]


def test_limits_count_clients_not_the_proxy_and_ignore_forged_headers(proxy: Proxy, collection: str) -> None:
    """Three connections per address; nginx replaces a header that the client sends itself."""
    forged = {"additional_headers": {"X-Forwarded-For": "203.0.113.9"}}
    with ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(proxy.connect(collection, "127.0.0.2", **forged))
        other_claim = {"additional_headers": {"X-Forwarded-For": "203.0.113.10"}}
        with pytest.raises(InvalidStatus) as refused, proxy.connect(collection, "127.0.0.2", **other_claim):
            pass
        assert refused.value.response.status_code == 503
        with proxy.connect(collection, "127.0.0.3", **forged) as other:
            assert receive(other)["type"] == "ready"
    assert " ERROR " not in proxy.server.stderr
    assert "Traceback" not in proxy.server.stderr
