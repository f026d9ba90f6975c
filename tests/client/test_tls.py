"""https and wss: the same client, and certificates that are not trusted."""

from __future__ import annotations

import ssl
import subprocess
from pathlib import Path

import pytest
import trio

from paperdb_trio import PaperDBError, State, create_client
from tests.client.harness import nothing_more
from tests.conftest import Server, need


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
            with pytest.raises(PaperDBError, match="certificate verify failed"):
                await db.collection(collection).count()
        mixed = create_client(base_url=server.url, realtime_url=url.replace("https", "wss"), api_key=server.key)
        async with mixed as db, trio.open_nursery() as inner:
            subscription = db.realtime.subscribe(collection)
            inner.start_soon(subscription.__aenter__)
            with trio.fail_after(5):
                async for status in subscription.status():
                    if status.state is State.OFFLINE:
                        break
            assert "certificate verify failed" in status.reason
            inner.cancel_scope.cancel()
        nursery.cancel_scope.cancel()
