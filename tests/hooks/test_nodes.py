"""Webhooks of several nodes over one PostgreSQL database."""

from __future__ import annotations

import signal

from tests.conftest import StartServer, wait_until
from tests.hooks.receiver import Receiver
from tests.hooks.tools import Admin, deliveries
from tests.postgres import Postgres


def test_one_of_several_nodes_delivers_and_another_goes_on_when_it_dies(
    start_server: StartServer, postgres: Postgres, receiver: Receiver, collection: str
) -> None:
    database = postgres.new()
    env = {"PAPERDB_STORE": postgres.url(database), "PAPERDB_DURABILITY": "process"}
    first = Admin(start_server(env=env))
    nodes = [first, *(Admin(start_server(env=env), first.key) for _ in range(2))]
    webhook = nodes[2].add(receiver.url, collection=collection)
    made = 0

    def insert(node: Admin) -> None:
        nonlocal made
        node.server.insert(collection, {"n": made}, key=first.server.key)
        made += 1

    def sending() -> list[Admin]:
        return [node for node in nodes if sum(node.metrics("paperdb_webhooks").values())]

    for how in (signal.SIGKILL, signal.SIGSTOP):
        wait_until(lambda: len(sending()) == 1)
        (sender,) = sending()
        others = [node for node in nodes if node is not sender]
        for node in nodes:
            insert(node)
        receiver.await_events(made)
        receiver.responds = -1
        before = len(receiver.received)
        insert(others[0])
        receiver.await_requests(before + 1)
        sender.server.process.send_signal(how)  # while a delivery is under way
        if how == signal.SIGSTOP:  # PostgreSQL ends its session later
            with postgres.connect(database) as connection:
                connection.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_locks JOIN pg_database d ON d.oid=database "
                    "WHERE locktype='advisory' AND datname=current_database()"
                )
        else:
            nodes = others
        receiver.responds = 200
        insert(others[0])
        receiver.await_events(made)
    receiver.release.set()
    sender.server.process.send_signal(signal.SIGCONT)
    wait_until(lambda: sum(sender.metrics("paperdb_webhooks").values()) == 0)
    for node in nodes:
        insert(node)
    assert [event["data"]["n"] for event in receiver.await_events(made)] == list(range(made))
    assert deliveries(receiver, webhook["secret"]) < len(receiver.received)
    assert len(sending()) == 1
    with postgres.connect(database) as connection:
        (generation,) = connection.execute("SELECT generation FROM paperdb.webhooks").fetchone() or (0,)
    assert generation >= 2  # one that is taken for dead cannot go on
