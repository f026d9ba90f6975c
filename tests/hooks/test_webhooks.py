"""Webhooks, over real servers and a real receiver, with both engines."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from paperdb_trio.errors import ApiError
from paperdb_trio.hooks.sending import signature
from paperdb_trio.hooks.webhook import FIRST_PAUSE, LAST_PAUSE, pause
from paperdb_trio.store.webhooks import check_url
from tests.auth.commands import fails_here, run_here
from tests.conftest import Server, StartServer, wait_until
from tests.docs import text
from tests.hooks.receiver import Receiver, receiving
from tests.hooks.tools import Admin, deliveries
from tests.postgres import Postgres
from tests.rest.tools import refusal

Engine = Callable[[], dict[str, str]]
"""Environment variables for a server with a store of its own."""


@pytest.fixture(scope="module", params=[pytest.param("sqlite", marks=pytest.mark.sqlite), "postgres"])
def engine(request: pytest.FixtureRequest) -> Engine:
    if request.param == "sqlite":
        return dict
    postgres: Postgres = request.getfixturevalue("postgres")
    return lambda: {"PAPERDB_STORE": postgres.url(postgres.new()), "PAPERDB_DURABILITY": "process"}


@pytest.fixture
def start_server(start_server: StartServer, engine: Engine) -> StartServer:
    return lambda *options, env=None, **more: start_server(*options, env=env or engine(), **more)


@pytest.fixture(scope="module")
def admin(tmp_path_factory: pytest.TempPathFactory, engine: Engine) -> Iterator[Admin]:
    """Of a server that the tests of this module share."""
    server = Server(tmp_path_factory.mktemp("hooks") / "data", ("--webhook-timeout", "1"), engine())
    yield Admin(server)
    assert server.stop() == 0
    assert "Traceback" not in server.stderr, server.stderr


def test_changes_arrive_once_in_order_and_signed(admin: Admin, receiver: Receiver, collection: str) -> None:
    webhook = admin.add(receiver.url, collection=collection)
    server = admin.server
    server.insert("other", {})
    first = server.insert(collection, {"n": 0})
    server.request("PATCH", f"/{collection}/docs/{first['_id']}", json={"n": 1})
    server.request("DELETE", f"/{collection}/docs/{first['_id']}")
    server.request("POST", f"/{collection}/bulk", json=[{"n": n} for n in range(250)])
    events = receiver.await_events(253)
    assert [event["type"] for event in events[:4]] == ["insert", "update", "delete", "insert"]
    assert events[1]["data"]["n"] == 1
    assert [event["data"]["n"] for event in events[3:]] == list(range(250))
    assert {event["collection"] for event in events} == {collection}
    seqs = [event["seq"] for event in events]
    assert seqs == sorted(set(seqs))
    assert max(len(received.events) for received in receiver.received) == 100
    for received in receiver.received:
        received.check(webhook["secret"])
    wait_until(lambda: admin.state(webhook["id"])["lagChanges"] == 0)
    assert len({received.delivery for received in receiver.received}) == len(receiver.received)
    assert "secret" not in admin.state(webhook["id"])


def test_a_filter_shows_what_enters_and_leaves(admin: Admin, receiver: Receiver, collection: str) -> None:
    admin.add(receiver.url, collection=collection, filter={"open": True})
    server = admin.server
    server.insert(collection, {"open": False})
    made = server.insert(collection, {"open": False})
    for change in ({"open": True}, {"x": 1}, {"open": False}, {"x": 2}):
        server.request("PATCH", f"/{collection}/docs/{made['_id']}", json=change)
    server.insert(collection, {"open": True})
    events = receiver.await_events(4)
    assert [(event["type"], event["cause"]) for event in events] == [
        ("insert", "update"),
        ("update", "update"),
        ("delete", "update"),
        ("insert", "insert"),
    ]


def test_a_failed_delivery_is_repeated_as_it_was_before_anything_else(
    admin: Admin, receiver: Receiver, collection: str
) -> None:
    receiver.responds = 500
    id = admin.add(receiver.url, collection=collection)["id"]
    admin.server.insert(collection, {"n": 0})
    receiver.await_requests(1)
    admin.server.insert(collection, {"n": 1})
    wait_until(lambda: admin.state(id)["state"] == "retrying")
    assert "500" in admin.state(id)["error"]
    wait_until(lambda: admin.state(id)["nextTryAt"] is not None)
    assert admin.metrics("paperdb_webhooks")['state="retrying"'] == 1
    assert admin.metrics("paperdb_webhook_failures_total")[""] > 0
    receiver.responds = 302
    receiver.await_requests(2)
    receiver.responds = -1
    admin.ask("POST", f"webhooks/{id}/resume")  # which tries again at once
    receiver.await_requests(3)
    receiver.responds = 0
    admin.ask("POST", f"webhooks/{id}/resume")
    receiver.await_requests(4)
    wait_until(lambda: admin.state(id)["state"] == "retrying")
    receiver.responds = 204
    assert [event["data"]["n"] for event in receiver.await_events(2)] == [0, 1]
    repeats = [received for received in receiver.received if not received.arrived]
    assert len(repeats) >= 4
    (arrived, *_) = (received for received in receiver.received if received.arrived)
    assert {(received.delivery, received.body) for received in repeats} == {(arrived.delivery, arrived.body)}
    wait_until(lambda: admin.state(id)["state"] == "live")
    assert admin.state(id)["error"] is None


def test_a_receiver_that_hangs_holds_up_nothing_else(admin: Admin, receiver: Receiver, collection: str) -> None:
    receiver.responds = -1
    id = admin.add(receiver.url, collection=collection)["id"]
    with receiving() as other:
        admin.add(other.url, collection=collection)
        admin.server.insert(collection, {})
        other.await_events(1)
        wait_until(lambda: admin.state(id)["error"] == "no response within 1 s")
    assert admin.ask("DELETE", f"webhooks/{id}").status_code == 200  # others count those that fail


def test_a_dead_webhook_stays_dead_until_it_is_resumed(
    start_server: StartServer, receiver: Receiver, collection: str
) -> None:
    receiver.responds = 500
    admin = Admin(start_server("--webhook-dead-after", "0"))
    id = admin.add(receiver.url)["id"]
    admin.server.insert(collection, {"n": 1})
    wait_until(lambda: admin.state(id)["state"] == "dead")
    assert admin.metrics("paperdb_webhooks") == {
        'state="live"': 0,
        'state="retrying"': 0,
        'state="dead"': 1,
        'state="paused"': 0,
    }
    admin.server.stop()
    assert f"webhook {id}: dead after 2 failures" in admin.server.stderr
    receiver.responds = 200
    admin.server.start()
    admin.server.insert(collection, {"n": 2})
    assert admin.state(id)["state"] == "dead"
    assert not receiver.arrived
    assert admin.ask("POST", f"webhooks/{id}/resume").json()["state"] == "live"
    assert [event["data"]["n"] for event in receiver.await_events(2)] == [1, 2]


def test_a_paused_webhook_goes_on_where_it_was(admin: Admin, receiver: Receiver, collection: str) -> None:
    id = admin.add(receiver.url, collection=collection)["id"]
    admin.server.insert(collection, {"n": 0})
    receiver.await_events(1)
    assert admin.ask("POST", f"webhooks/{id}/pause").json()["state"] == "paused"
    wait_until(lambda: admin.metrics("paperdb_webhooks")['state="paused"'] == 1)
    with receiving() as other:
        admin.add(other.url, collection=collection)
        for n in (1, 2):
            admin.server.insert(collection, {"n": n})
        other.await_events(2)
    assert admin.state(id)["lagChanges"] >= 2
    assert [event["data"]["n"] for event in receiver.arrived] == [0]
    assert admin.ask("POST", f"webhooks/{id}/resume").json()["state"] == "live"
    assert [event["data"]["n"] for event in receiver.await_events(3)] == [0, 1, 2]


def test_what_the_log_no_longer_holds_is_a_gap(
    start_server: StartServer, receiver: Receiver, collection: str
) -> None:
    receiver.responds = 500
    admin = Admin(start_server("--retention-count", "2"))
    since = admin.add(receiver.url)["seq"]
    for n in range(5):
        last = admin.server.insert(collection, {"n": n})
    receiver.await_requests(1)
    wait_until(lambda: admin.ask("GET", "databases").json()["databases"][0]["trimmed"] == since + 3)
    receiver.responds = 200
    events = receiver.await_events(3)
    assert events[0] == {"type": "gap", "since": since, "oldest": since + 3}
    assert events[-1]["data"] == last
    assert [event["seq"] for event in events[1:]] == [since + 4, since + 5]


def test_kills_lose_nothing_and_repeat_deliveries_as_they_were(
    start_server: StartServer, engine: Engine, receiver: Receiver, collection: str
) -> None:
    env = engine()
    admin = Admin(start_server(*([] if env else ["--workers", "2"]), env=env))
    server = admin.server
    webhook = admin.add(receiver.url, collection=collection)
    made = 0
    for _ in range(3):
        receiver.responds = -1
        before = len(receiver.received)
        for _ in range(5):
            server.insert(collection, {"n": made})
            made += 1
        receiver.await_requests(before + 1)
        server.kill()  # while a delivery is under way
        receiver.responds = 200
        server.start()
        receiver.await_events(made)
    assert [event["data"]["n"] for event in receiver.arrived] == list(range(made))
    assert deliveries(receiver, webhook["secret"]) < len(receiver.received)


def test_webhooks_end_with_their_database(admin: Admin, receiver: Receiver) -> None:
    admin.ask("POST", "databases", json={"name": "test_hooked", "plan": "pro"})
    id = admin.add(receiver.url, database="test_hooked")["id"]
    assert admin.state(id)["database"] == "test_hooked"
    admin.ask("DELETE", "databases/test_hooked", params={"confirm": "test_hooked"})
    assert id not in [row["id"] for row in admin.ask("GET", "webhooks").json()["webhooks"]]


def test_administrators_do_it_by_command_too(admin: Admin, receiver: Receiver, collection: str) -> None:
    server = admin.server
    where = ("--url", server.url, "--key", admin.key)
    store = server.env.get("PAPERDB_STORE")
    data = ("--store", store) if store else ("--data", server.data)
    for place in (where, data):
        added = run_here(
            *("webhooks", "add", receiver.url, "--collection", collection, "--filter", '{"n": 1}', "--json"),
            *place,
        )
        assert added.exit_code == 0, added
        made = json.loads(added.stdout)
        assert "Delivered" in run_here("webhooks", "test", made["id"], *place).stdout
        assert receiver.arrived[-1] == {"type": "test"}
        receiver.received[-1].check(made["secret"])
        server.insert(collection, {"n": 1})
        wait_until(lambda: receiver.arrived[-1].get("collection") == collection)
        row = next(
            row
            for row in json.loads(run_here("webhooks", "list", "--json", *place).stdout)
            if row["id"] == made["id"]
        )
        assert (row["collection"], row["filter"], row["state"]) == (collection, {"n": 1}, "live")
        assert made["id"] in run_here("webhooks", "list", *place).stdout
        receiver.responds = 404
        failed = run_here("webhooks", "test", made["id"], *place)
        fails_here(failed, 1, "the response is 404; expected 2xx")
        receiver.responds = 200
        for command, state in (("pause", "paused"), ("resume", "live")):
            assert run_here("webhooks", command, made["id"], *place).exit_code == 0
            assert admin.state(made["id"])["state"] == state
        assert run_here("webhooks", "remove", made["id"], *place).exit_code == 0
        fails_here(run_here("webhooks", "test", made["id"], *place), 1, "There is no webhook")
    entries = admin.ask("GET", "audit", params={"limit": "8"}).json()["entries"]
    assert entries[3]["details"] == {"host": receiver.url.removeprefix("http://"), "collection": collection}
    done = ["remove", "resume", "pause", "add"] * 2
    assert [entry["action"] for entry in entries] == [f"webhook.{what}" for what in done]
    fails_here(run_here("webhooks", "add", "ftp://x", *data), 2, "Use http:// or https://")
    bad = run_here(
        "webhooks", "add", "http://x", "--collection", "c", "--filter", '{"a":{"b":{"$c":1}}}', *data
    )
    assert bad.exit_code == 2
    assert run_here("webhooks", "add", "http://x", "--filter", "{}", *data).exit_code == 2


@pytest.mark.parametrize(
    "body",
    [
        {"url": "ftp://x/"},
        {"url": "http://user:pass@x/"},
        {"url": "http://x/", "filter": {"a": 1}},
        {"url": "http://x/", "collection": "a b"},
        {"url": "http://x/", "collection": "c", "filter": {"a": {"nope": 1}}},
    ],
    ids=str,
)
def test_what_cannot_be_a_webhook_is_refused(admin: Admin, body: dict[str, Any]) -> None:
    assert admin.ask("POST", "webhooks", json={"database": "default", **body}).status_code == 400


def test_only_an_admin_key_may_see_or_add_one(admin: Admin) -> None:
    for method, path in (
        ("GET", ""),
        ("POST", ""),
        ("DELETE", "/x"),
        ("POST", "/x/test"),
        ("POST", "/x/pause"),
        ("POST", "/x/resume"),
    ):
        found = admin.server.request(method, f"/admin.v1/webhooks{path}", json={})
        assert refusal(found) == (403, "ADMIN_KEY_NEEDED")
    assert refusal(admin.ask("POST", "webhooks/x/test")) == (404, "NOT_FOUND")


def test_private_addresses_can_be_refused(start_server: StartServer, receiver: Receiver) -> None:
    admin = Admin(start_server("--webhook-addresses", "public"))
    for host in ("127.0.0.1", "localhost", "[::ffff:127.0.0.1]"):
        id = admin.add(receiver.url.replace("127.0.0.1", host))["id"]
        tested = admin.ask("POST", f"webhooks/{id}/test").json()
        assert not tested["arrived"]
        assert "not public (--webhook-addresses)" in tested["error"]
    assert not receiver.received


def test_pauses_grow_up_to_a_limit_and_differ() -> None:
    longest = [pause(failures, lambda: 0.0) for failures in range(1, 2000)]
    assert longest[:3] == [FIRST_PAUSE, 2 * FIRST_PAUSE, 4 * FIRST_PAUSE]
    assert longest == sorted(longest)
    assert longest[-1] == LAST_PAUSE
    assert pause(1, lambda: 0.999) >= FIRST_PAUSE / 2


@pytest.mark.parametrize(
    "url", ["http://", "http://x:0", "http://x:99999", "http://x/#a", "http://x/ y", "//x", ""]
)
def test_an_url_that_cannot_be_posted_to_is_refused(url: str) -> None:
    with pytest.raises(ApiError):
        check_url(url)


def test_the_signature_is_the_documented_one() -> None:
    body = b'{"webhook":"w1","delivery":"w1.0.1","events":[]}'
    assert text("docs/webhooks.md").count(signature("whsec_example", 1767225600, body)) == 2
