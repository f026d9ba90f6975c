"""Requests without a response are sent again; a write happens once all the same. Batches, conditions, history.

Rules: pauses are left out, but counted.
"""

from __future__ import annotations

import itertools
import threading
from typing import Any

import pytest

from tests.conftest import Server
from tests.web.conftest import MakeClient
from tests.web.tools import Answer, Proxy, http_server

HASTY = """
    globalThis.pauses = [];
    const later = globalThis.setTimeout;
    globalThis.setTimeout = (run, ms, ...more) => {
        const isPause = ms < 30_000 && new Error().stack.includes("/paperdb/requests.js");
        if (isPause) pauses.push(ms);
        return later(run, isPause ? 0 : ms, ...more);
    };
"""
"""Node's own timers, such as those of its connections, stay as they are."""
SOON = HASTY.replace("isPause ? 0 : ms", "isPause ? 0 : ms === 30_000 ? 600 : ms")
"""A request has 0.6 s."""

WRITES = {
    "insert": ("docs.insert({n: 1})", 2),
    "insertBulk": ("docs.insertBulk([{n: 1}, {n: 2}])", 3),
    "update": ('docs.update("a", {n: {increment: 1}})', 1),
    "replace": ('docs.replace("a", {n: 7}, {where: {n: 1}})', 1),
    "delete": ('docs.delete("a")', 0),
    "batch": ('db.batch([{op: "insert", collection: docs.name, document: {}}])', 2),
}
"""Each, and how many documents there are after it."""


@pytest.mark.parametrize("ws", [False, True], ids=["current Node", "this machine's Node"])
def test_a_write_whose_response_is_lost_happens_once(
    client: MakeClient, server: Server, proxy: Proxy, collection: str, ws: bool
) -> None:
    node = client(proxy.url, first=HASTY + "Math.random = () => 0.5;", ws=ws)
    for name, (call, count) in WRITES.items():
        docs = f"{collection}-{name}"
        server.request("PUT", f"/{docs}/docs/a", json={"n": 1})
        before = server.request("GET", f"/{docs}/docs").json()["seq"]
        proxy.cut()  # so that the next connection is a new one
        proxy.heads.clear()
        cuts = iter([0])
        proxy.cut_after = lambda: next(cuts, None)  # noqa: B023 - called before the next round
        returned = node.run(f'const docs = db.collection("{docs}"); return {call}')
        found = server.request("GET", f"/{docs}/docs").json()
        assert len(found["documents"]) == count, name
        assert found["seq"] == before + (2 if name == "insertBulk" else 1), name
        if name in ("insert", "update", "replace"):
            assert returned in found["documents"], name
        lines = [line for head in proxy.heads for line in head.lower().split("\r\n")]
        keys = [line for line in lines if line.startswith("idempotency-key")]
        assert len(keys) == 2, name
        assert len(set(keys)) == 1, name


def test_cuts_anywhere_lose_and_double_nothing(
    client: MakeClient, server: Server, proxy: Proxy, collection: str
) -> None:
    """Two connections in three are cut before their first byte, the third soon: five tries are enough, even if
    Node opens one that it does not use."""
    budgets = itertools.cycle([0, 0, 2000])
    proxy.cut_after = lambda: next(budgets)
    node = client(proxy.url, first=HASTY)
    made = node.run(f"""
        const made = [];
        for (let n = 0; n < 30; n += 1) made.push(await db.{collection}.insert({{n, text: "x".repeat(100)}}));
        return made;
    """)
    assert server.request("GET", f"/{collection}/docs").json()["documents"] == made
    assert len(proxy.heads) > 40


def test_a_write_whose_response_takes_too_long_is_sent_again(
    client: MakeClient, server: Server, collection: str
) -> None:
    keys: list[str] = []

    def answer(method: str, path: str, headers: dict[str, str]) -> Answer:
        if path == "/batch":
            return 400, "application/json", b'{"error": "no", "code": "INVALID_OPERATION"}'
        keys.append(headers["idempotency-key"])
        if len(keys) == 1:
            late.wait(10)
        return 200, "application/json", b'{"_id": "x"}'

    late = threading.Event()
    with http_server(answer) as url:
        assert client(url, first=SOON).run("return (await db.a.insert({}))._id") == "x"
        late.set()
    assert len(keys) > 1
    assert len(set(keys)) == 1


class Serving:
    """A server that gives these responses, and from then on the last one; what it was asked, and with what
    keys."""

    def __init__(self, *, older: bool = False) -> None:
        self.answers: list[Answer | None] = []
        self.asked: list[str] = []
        self.keys: list[str | None] = []
        self._older = older

    def __call__(self, method: str, path: str, headers: dict[str, str]) -> Answer | None:
        if path == "/batch":
            self.asked.append("does it know keys?")
            code = b"METHOD_NOT_ALLOWED" if self._older else b"INVALID_OPERATION"
            return 405 if self._older else 400, "application/json", b'{"error": "no", "code": "%b"}' % code
        self.asked.append(method)
        self.keys.append(headers.get("idempotency-key"))
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


STORED: Answer = (200, "application/json", b'{"_id": "x", "count": 3}')


def busy(seconds: str | None = "1", code: str = "SHUTTING_DOWN", status: int = 503) -> Answer:
    body = b'{"error": "not now", "code": "%b"}' % code.encode()
    return status, "application/json", body, {} if seconds is None else {"Retry-After": seconds}


def test_each_write_has_a_key_of_its_own_and_each_try_the_same(client: MakeClient) -> None:
    serving = Serving()
    with http_server(serving) as url:
        node = client(url, first=HASTY)
        serving.answers = [None, None, STORED]
        node.run("return db.a.insert({})")
        assert serving.asked == ["POST", "does it know keys?", "POST", "POST"]
        assert len(set(serving.keys)) == 1
        node.run('return Promise.all([db.a.update("x", {}, {idempotencyKey: "mine"}), db.a.insert({})])')
        assert len(set(serving.keys)) == 3
        assert "mine" in serving.keys
        for wrong in ('""', '"a b"', '"é"', '"x".repeat(256)', "7", "null"):
            error = node.error(f"await db.a.insert({{}}, {{idempotencyKey: {wrong}}})")
            assert (error["code"], "Invalid idempotencyKey" in error["message"]) == ("INVALID_REQUEST", True)
    assert len(serving.keys) == 5


def test_an_older_server_gets_a_write_once(client: MakeClient) -> None:
    serving = Serving(older=True)
    serving.answers = [None]
    with http_server(serving) as url:
        node = client(url, first=HASTY)
        for call in ("insert({})", 'update("a", {})', 'replace("a", {})', 'delete("a")', "insertBulk([{}])"):
            serving.asked.clear()
            error = node.error(f"await db.things.{call}")
            assert (error["status"], error["code"]) == (0, "NETWORK")
            assert serving.asked[1:] == ["does it know keys?"], call
        serving.asked.clear()
        assert node.error("await db.things.find()")["code"] == "NETWORK"
        assert serving.asked == ["GET"] * 5


def test_it_gives_up_in_the_end(client: MakeClient) -> None:
    serving = Serving()
    serving.answers = [busy(), None, busy()]
    with http_server(serving) as url:
        node = client(url, first=HASTY)
        assert node.error("await db.a.insert({})")["code"] == "NETWORK", "the second try may have written"
        assert serving.asked.count("POST") == 5
        pauses = node.run("return pauses")
    assert len(pauses) == 4
    assert pauses[0] == 1000
    assert 250 <= pauses[1] <= 500
    assert 2000 <= pauses[3] <= 3000, "a second that the server asks for, and one or two"


def test_only_what_may_pass_is_tried_again(client: MakeClient) -> None:
    serving = Serving()
    cases: list[tuple[Answer, int]] = [
        (busy("1"), 2),
        (busy("10"), 2),
        (busy("11"), 1),
        (busy(None), 1),
        (busy(None, "HTTP_502", 502), 2),
        (busy(None, "HTTP_504", 504), 2),
        (busy("1", "QUERY_TIMEOUT"), 1),
        (busy("1", "RATE_LIMITED", 429), 1),
        (busy("1", "INTERNAL", 500), 1),
        (busy(None, "CONFLICT", 409), 1),
    ]
    with http_server(serving) as url:
        node = client(url, first=HASTY)
        for refusal, tries in cases:
            serving.asked.clear()
            serving.answers = [refusal, STORED]
            got: dict[str, Any] = node.answer("return db.a.insert({})")
            assert ("error" in got) == (tries == 1), refusal
            assert serving.asked.count("POST") == tries, refusal


# --- batches, conditions, history ----------------------------------------------------------------


def test_a_batch_writes_all_or_nothing(client: MakeClient, collection: str) -> None:
    node = client()
    found = node.run(f"""
        const shop = db.collection("{collection}"), orders = db.collection("{collection}_orders");
        await shop.insert({{_id: "pen", stock: 1}});
        const buy = {{op: "update", collection: shop.name, id: "pen", fields: {{stock: {{decrement: 1}}}},
            where: {{stock: {{gt: 0}}}}}};
        const order = {{op: "insert", collection: orders.name, document: {{item: "pen"}}, id: "o1"}};
        const done = await db.batch([buy, order]);
        const again = await db.batch([{{...order, id: "o2"}}, buy]).catch((error) => error);
        const gone = await db.batch([{{op: "delete", collection: shop.name, id: "pen",
            ifMatch: state.seqOf(done.results[0])}}]);
        return {{done, seqs: done.results.map(state.seqOf), gone: gone.results,
            error: [again.status, again.code, again.index], orders: await orders.find()}};
    """)
    done = found["done"]
    assert [result["_id"] for result in done["results"]] == ["pen", "o1"]
    assert found["seqs"] == [done["txn"], done["txn"] + 1]
    assert found["error"] == [412, "CONDITION_FAILED", 1]
    assert found["orders"] == done["results"][1:]
    assert found["gone"] == [{"deleted": True, "_id": "pen"}]
    for wrong, code in (
        ("{}", "INVALID_REQUEST"),
        ("[7]", "INVALID_DOCUMENT"),
        ('[{op: "insert", collection: "a"}]', "INVALID_DOCUMENT"),
        ('[{op: "delete", collection: "a b", id: "x"}]', "INVALID_COLLECTION"),
    ):
        assert node.error(f"await db.batch({wrong})")["code"] == code, wrong


def test_a_condition_guards_each_kind_of_write(client: MakeClient, collection: str) -> None:
    found = client().run(f"""
        const docs = db.{collection}, codes = [];
        await docs.insert({{_id: "a", n: 1}});
        for (const write of [
            (where) => docs.update("a", {{n: {{increment: 1}}}}, {{where}}),
            (where) => docs.replace("a", {{n: 3}}, {{where}}),
            (where) => docs.delete("a", {{where}}),
        ]) {{
            await write({{n: {{gt: 5}}}}).catch(({{code}}) => codes.push(code));
            await write({{n: {{lte: 5}}}});
        }}
        return {{codes, all: await docs.history("a"), one: await docs.history("a", {{limit: 1}})}};
    """)
    assert found["codes"] == ["CONDITION_FAILED"] * 3
    shown = [(version["type"], version["data"]["n"]) for version in found["all"]]
    assert shown == [("delete", 3), ("update", 3), ("update", 2), ("insert", 1)]
    assert found["one"] == found["all"][:1]


def test_a_batch_registers_schemas_and_applies_defaults(
    client: MakeClient, server: Server, collection: str
) -> None:
    properties = {"name": {"type": "string", "unique": True}, "admin": {"type": "boolean", "default": False}}
    node = client(schema={collection: {"properties": properties}})
    insert = f'{{op: "insert", collection: "{collection}", document: {{name: "a"}}}}'
    (made,) = node.run(f"return (await db.batch([{insert}])).results")
    assert made["admin"] is False
    assert server.request("GET", f"/{collection}/schema").json()["properties"].keys() == properties.keys()
    error = node.error(f"await db.batch([{insert}])")
    assert (error["code"], error["index"]) == ("CONFLICT", 0)
