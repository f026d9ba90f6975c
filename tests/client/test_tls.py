"""https and wss, and certificates that are not trusted."""

from __future__ import annotations

import ssl
import subprocess
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import pytest
import trio

from paperdb_trio import ConnectionState, PaperDBError, create_client, create_sync_client
from tests.client.harness import SECONDS, nothing_more
from tests.conftest import COMMAND, ENVIRONMENT, Server, need


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A file with a key and a certificate for 127.0.0.1."""
    file = tmp_path / "certificate.pem"
    options = "-x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=test"
    command = [need("openssl"), "req", *options.split(), "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(
        [*command, "-keyout", str(file), "-out", str(tmp_path / "c")], check=True, capture_output=True
    )
    file.write_text(file.read_text() + (tmp_path / "c").read_text())
    return file


async def terminate_tls(
    server: Server, certificate: Path, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED
) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    listeners = await trio.open_ssl_over_tcp_listeners(0, context, host="127.0.0.1", https_compatible=True)

    async def pump(source: trio.abc.Stream, sink: trio.abc.Stream) -> None:
        try:
            while data := await source.receive_some(65536):
                await sink.send_all(data)
            await sink.aclose()
        except (trio.BrokenResourceError, trio.ClosedResourceError, trio.BusyResourceError):
            pass

    async def serve(client: trio.abc.Stream) -> None:
        async with (
            await trio.open_tcp_stream("127.0.0.1", server.port) as plain,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(pump, plain, client)
            await pump(client, plain)
            nursery.cancel_scope.cancel()

    listener = listeners[0].transport_listener
    assert isinstance(listener, trio.SocketListener)
    task_status.started(f"https://127.0.0.1:{listener.socket.getsockname()[1]}")
    await trio.serve_listeners(serve, listeners)


async def test_over_tls(server: Server, collection: str, certificate: Path) -> None:
    async with trio.open_nursery() as nursery:
        url = await nursery.start(terminate_tls, server, certificate)
        trusting = ssl.create_default_context(cafile=str(certificate))
        async with (
            create_client(base_url=url, api_key=server.key, ssl_context=trusting) as db,
            db.realtime.subscribe(collection) as events,
        ):
            assert await db.collection(collection).count() == 0
            await nothing_more(events, collection, server)
        async with create_client(base_url=url, api_key=server.key) as db:
            await refused_for_good(db.collection(collection).count)
            await refused_for_good(db.realtime.subscribe(collection).__aenter__)
        mixed = create_client(base_url=server.url, realtime_url=url.replace("https", "wss"), api_key=server.key)
        async with mixed as db:
            subscription = db.realtime.subscribe(collection)
            await refused_for_good(subscription.__aenter__)
            assert subscription.status().current.state is ConnectionState.CLOSED
        other_name = create_client(
            base_url=url.replace("127.0.0.1", "localhost"), api_key=server.key, ssl_context=trusting
        )
        async with other_name as db:
            await refused_for_good(db.collection(collection).count, "Hostname mismatch")
            await refused_for_good(db.realtime.subscribe(collection).__aenter__, "Hostname mismatch")
        await trio.to_thread.run_sync(blocking, url, server.key)
        nursery.cancel_scope.cancel()


async def refused_for_good(call: Callable[[], Awaitable[object]], why: str = "self-signed") -> None:
    with trio.fail_after(SECONDS), pytest.raises(PaperDBError, match=f"not trusted: {why}") as caught:
        await call()
    assert (caught.value.code, caught.value.transient) == ("CERTIFICATE", False)


def blocking(url: str, key: str) -> None:
    with create_sync_client(base_url=url, api_key=key) as db, pytest.raises(PaperDBError) as caught:
        db.a.count()
    assert (caught.value.code, caught.value.transient) == ("CERTIFICATE", False)


async def test_certificates_of_the_environment_are_trusted_by_requests_and_socket(
    server: Server, collection: str, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    async with trio.open_nursery() as nursery:
        url = await nursery.start(terminate_tls, server, certificate)
        async with (
            create_client(base_url=url, api_key=server.key) as db,
            db.realtime.subscribe(collection) as events,
        ):
            assert await db.collection(collection).count() == 0
            await nothing_more(events, collection, server)
        nursery.cancel_scope.cancel()


def test_listen_names_an_untrusted_certificate_and_ends(server: Server, certificate: Path) -> None:
    async def main() -> subprocess.CompletedProcess[str]:
        async with trio.open_nursery() as nursery:
            url = await nursery.start(terminate_tls, server, certificate)
            command = [*COMMAND, "listen", "a", "--url", url, "--key", server.key]
            done: subprocess.CompletedProcess[str] = await trio.to_thread.run_sync(
                partial(subprocess.run, command, capture_output=True, text=True, env=ENVIRONMENT, timeout=20)
            )
            nursery.cancel_scope.cancel()
        return done

    done = trio.run(main)
    assert done.returncode == 1
    assert "The server's certificate is not trusted: self-signed certificate" in done.stderr
    assert done.stderr.count("\n") == 1
