"""A read after an acknowledged write shows it, even while others read the same document."""

from __future__ import annotations

import threading

import httpx

from tests.conftest import NO_TLS, Server

DOCUMENTS = 80


def test_a_get_after_a_write_was_acknowledged_is_never_older(server: Server, collection: str) -> None:
    """Others first read each document while it is written: the cache must not keep what they read."""
    headers = {"Authorization": f"Bearer {server.key}"}
    current = [f"/{collection}/docs/0"]
    stop = threading.Event()

    def read() -> None:
        with httpx.Client(base_url=server.url, headers=headers, timeout=20, verify=NO_TLS) as client:
            while not stop.is_set():
                client.get(current[0])

    readers = [threading.Thread(target=read) for _ in range(3)]
    with httpx.Client(base_url=server.url, headers=headers, timeout=20, verify=NO_TLS) as client:
        for reader in readers:
            reader.start()
        try:
            for number in range(DOCUMENTS):
                path = current[0] = f"/{collection}/docs/{number}"
                for n in range(3):
                    written = client.put(path, json={"n": n})
                    read_back = client.get(path)
                    assert read_back.json() == written.json()
                    assert read_back.headers["etag"] == written.headers["etag"]
                assert client.delete(path).status_code == 200
                assert client.get(path).status_code == 404
        finally:
            stop.set()
            for reader in readers:
                reader.join()
