"""`live` and `subscribe` with a filter: a view without a gap, over whatever happens to the connection.

Rules: a view is right if it is what the server's own `find` lists. Conditions are waited for, with a limit.
"""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from tests.client.harness import shortened
from tests.conftest import Server, StartServer, wait_until
from tests.web.conftest import MakeClient
from tests.web.tools import Client, Proxy, http_server

OPEN = """
    state.views ??= {};
    state.lives ??= {};
    state.seen ??= {};
    const live = (state.lives.NAME = db.collection("COLLECTION").live(OPTIONS));
    state.seen.NAME = [];
    live.subscribe((view) => {
      state.views.NAME = view;
      state.seen.NAME.push([view.status, view.documents.length]);
    });
"""


def open_live(node: Client, collection: str, name: str = "a", **options: Any) -> None:
    source = OPEN.replace("NAME", name).replace("COLLECTION", collection)
    node.run(source.replace("OPTIONS", json.dumps(options)))


def view(node: Client, name: str = "a") -> dict[str, Any]:
    value: dict[str, Any] = node.run(
        f"const view = state.views.{name}; return {{...view, error: view.error && {{code: view.error.code}}}}"
    )
    return value


def wait_view(node: Client, condition: Any, name: str = "a", seconds: float = 15) -> dict[str, Any]:
    seen: list[dict[str, Any]] = []

    def holds() -> bool:
        seen[:] = [view(node, name)]
        return bool(condition(seen[0]))

    try:
        wait_until(holds, seconds)
    except AssertionError:
        raise AssertionError((seen, node.stderr, node.statuses[-5:])) from None
    return seen[0]


def wait_live(node: Client, name: str = "a") -> dict[str, Any]:
    return wait_view(node, lambda v: v["status"] == "live", name)


def numbers(view: dict[str, Any]) -> list[Any]:
    return [document.get("n") for document in view["documents"]]


def wait_numbers(node: Client, expected: list[Any], name: str = "a") -> None:
    wait_view(node, lambda v: v["status"] == "live" and numbers(v) == expected, name)


def found(server: Server, collection: str, **parameters: Any) -> list[dict[str, Any]]:
    if "filter" in parameters:
        parameters["filter"] = json.dumps(parameters["filter"])
    documents: list[dict[str, Any]] = server.request("GET", f"/{collection}/docs", params=parameters).json()[
        "documents"
    ]
    return documents


def test_all_documents_and_what_becomes_of_them(client: MakeClient, server: Server, collection: str) -> None:
    for n in range(5):
        server.insert(collection, {"_id": f"d{n}", "n": n})
    node = client()
    open_live(node, collection, filter={"n": {"gte": 2}}, sort="-n")
    wait_numbers(node, [4, 3, 2])
    assert node.run("return state.seen.a[0]") == ["loading", 0]
    server.request("PATCH", f"/{collection}/docs/d0", json={"n": 9})
    server.request("PATCH", f"/{collection}/docs/d3", json={"n": 1})
    server.request("DELETE", f"/{collection}/docs/d2")
    wait_numbers(node, [9, 4])
    assert node.run("return Object.isFrozen(state.views.a.documents)")
    node.run("state.lives.a.close()")
    node.wait_state("closed")


def test_a_window_keeps_its_length_and_grows(client: MakeClient, server: Server, collection: str) -> None:
    server.request("POST", f"/{collection}/bulk", json=[{"_id": f"d{n}", "n": n} for n in range(40)])
    node = client()
    open_live(node, collection, sort="n", limit=4)
    wait_numbers(node, [0, 1, 2, 3])
    for n in range(12):  # more than its slack
        server.request("DELETE", f"/{collection}/docs/d{n}")
    wait_numbers(node, [12, 13, 14, 15])
    server.insert(collection, {"n": -1})
    server.request("PATCH", f"/{collection}/docs/d30", json={"n": 0})
    wait_numbers(node, [-1, 0, 12, 13])
    assert view(node)["hasMore"] is True
    node.run("state.lives.a.more()")
    wait_numbers(node, [-1, 0, 12, 13, 14, 15, 16, 17])
    for n in range(100, 140):  # far more than it keeps
        server.insert(collection, {"n": n - 1000})
    wait_numbers(node, list(range(-900, -892)))
    for document in found(server, collection, sort="n", limit=40):
        server.request("DELETE", f"/{collection}/docs/{document['_id']}")
    wait_numbers(node, [-1, 0, 12, 13, 14, 15, 16, 17])


def test_own_writes_show_at_once_and_are_taken_back(
    client: MakeClient, server: Server, collection: str
) -> None:
    server.insert(collection, {"_id": "a", "n": 1})
    with Proxy(server.port) as proxy:
        node = client(proxy.url)
        open_live(node, collection, filter={"n": {"lt": 50}}, sort="n")
        wait_numbers(node, [1])
        # What is shown before any response can have come: the proxy lets nothing through.
        proxy.frozen = True
        shown = node.run(f"""
            const {{ insert, update, replace }} = db.collection("{collection}");
            state.writes = [insert({{n: 7}}), update("a", {{n: {{increment: 4}}}}), replace("b", {{n: 2}})];
            await new Promise((resolve) => setTimeout(resolve));
            return state.views.a.documents.map(({{n}}) => n);""")
        assert shown == [2, 5, 7]
        proxy.frozen = False
        node.run("await Promise.all(state.writes)")
        wait_numbers(node, [2, 5, 7])
        assert [d["n"] for d in found(server, collection, sort="n")] == [2, 5, 7]
        assert view(node)["documents"] == found(server, collection, sort="n")
        lengths = [length for _, length in node.run("return state.seen.a")]
        assert lengths == sorted(lengths)  # nothing vanished between the response and its change
        error = node.error(f'await db.collection("{collection}").update("a", {{n: {{push: 1}}}})')
        assert error["code"] == "INVALID_STEP"
        wait_numbers(node, [2, 5, 7])
        batch = f"""[
            {{op: "insert", collection: "{collection}", document: {{n: 3}}}},
            {{op: "update", collection: "{collection}", id: "b", fields: {{n: 60}}}},
            {{op: "delete", collection: "{collection}", id: "a"}}]"""
        shown = node.run(f"""
            const done = db.batch({batch}); await new Promise((resolve) => setTimeout(resolve));
            const shown = state.views.a.documents.map(({{n}}) => n); await done; return shown;""")
        assert shown == [3, 7]
        wait_numbers(node, [3, 7])
        refused = node.error(
            f'await db.batch([...{batch}, {{op: "delete", collection: "{collection}", id: "none"}}])'
        )
        assert refused["status"] == 404
        wait_view(node, lambda v: numbers(v) == [3, 7])


def test_a_filtered_subscription_resumes(client: MakeClient, server: Server, collection: str) -> None:
    with Proxy(server.port) as proxy:
        node = client(proxy.url)
        node.run(f"""
            state.got = [];
            state.ready = new Promise((resolve) => {{
              const handler = ({{type, data, seq}}) => state.got.push([type, data.n, seq > 0]);
              const options = {{filter: {{n: {{gte: 5}}}}, select: ["n"], onReady: resolve}};
              db.realtime.subscribe("{collection}", handler, options);
            }});
            await state.ready;""")
        server.insert(collection, {"_id": "a", "n": 5})
        wait_until(lambda: len(node.run("return state.got")) == 1)
        proxy.cut()
        server.request("PATCH", f"/{collection}/docs/a", json={"n": 6})
        server.request("PATCH", f"/{collection}/docs/a", json={"other": 6})
        server.request("PATCH", f"/{collection}/docs/a", json={"n": 1})
        wait_until(lambda: len(node.run("return state.got")) == 3)
        assert node.run("return state.got") == [["insert", 5, True], ["update", 6, True], ["delete", 6, True]]


def test_two_lives_and_a_handler_of_the_same_query(client: MakeClient, server: Server, collection: str) -> None:
    """For the server they are one subscription, which begins anew each time."""
    server.insert(collection, {"n": 1})
    node = client()
    node.run(f"""
        state.got = [];
        const handler = ({{data}}) => state.got.push(data.n);
        await new Promise((onReady) =>
          db.realtime.subscribe("{collection}", handler, {{filter: {{n: {{gte: 0}}}}, onReady}}));""")
    for n in range(2, 12):
        server.insert(collection, {"n": n})
        open_live(node, collection, f"l{n}", filter={"n": {"gte": 0}}, **({"limit": 20} if n % 3 == 0 else {}))
    for n in range(2, 12):
        wait_numbers(node, list(range(1, 12)), f"l{n}")
    wait_until(lambda: len(node.run("return state.got")) >= 10)
    assert node.run("return state.got") == list(range(2, 12))
    for n in range(2, 11):
        node.run(f"state.lives.l{n}.close()")
    server.insert(collection, {"n": 12})
    wait_numbers(node, list(range(1, 13)), "l11")


def test_a_gap_and_a_killed_server(client: MakeClient, start_server: StartServer) -> None:
    server = start_server("--retention-count", "5")
    for n in range(30):
        server.insert("c", {"_id": f"d{n}", "n": n, "pad": "x" * 5000})
    with Proxy(server.port) as proxy:
        soon = "const { random } = Math; Math.random = () => random() * 0.1;"  # pauses are short
        node = client(proxy.url, key=server.key, first=soon)
        open_live(node, "c", sort="n")
        open_live(node, "c", "window", sort="n", limit=3)
        wait_live(node)
        wait_live(node, "window")
        proxy.refusing = True
        proxy.cut()
        wait_view(node, lambda v: v["status"] == "stale")
        server.kill()
        server.start()
        server.request("DELETE", "/c/docs/d0")
        server.request("POST", "/other/bulk", json=[{}] * 50)
        server.insert("c", {"n": 0.5})
        wait_until(lambda: server.request("GET", "/c/changes?since=31").status_code == 410)
        cuts = iter([3_000, 40_000, 100_000])  # in mid-snapshot
        proxy.cut_after = lambda: next(cuts, None)
        proxy.refusing = False
        wait_numbers(node, [0.5, *range(1, 30)])
        wait_numbers(node, [0.5, 1, 2], "window")


@pytest.mark.parametrize("at", ["renewal", "reconnect"])
def test_a_front_end_reads_with_its_token_and_within_its_rule(
    client: MakeClient, server: Server, proxy: Proxy, collection: str, at: str
) -> None:
    """By `getToken` only: the list, the changes and the writes are all within the rule, which changes."""
    rule: dict[str, Any] = {"filter": {"user": "ada"}, "permissions": ["read", "write"]}
    for n in range(6):
        server.insert(collection, {"_id": f"d{n}", "n": n, "user": ["ada", "bob"][n % 2]})
    minted: list[Any] = []

    def back_end(method: str, path: str, headers: dict[str, str]) -> Any:
        body = {"collections": {collection: rule}}
        token = server.request("POST", "/realtime/token", json=body).json()["token"]
        minted.append(rule["filter"])
        return 200, "text/plain", shortened(server, token, 4).encode()

    with http_server(back_end) as token_url:
        node = client(proxy.url, key=None, tokenUrl=token_url)
        open_live(node, collection, sort="n")
        open_live(node, collection, "window", sort="n", limit=2)
        node.subscribe(collection, "plain")
        wait_numbers(node, [0, 2, 4])
        wait_numbers(node, [0, 2], "window")
        node.run(f'await db.{collection}.update("d0", {{n: 10}})')
        wait_numbers(node, [2, 4, 10])
        server.request("PATCH", f"/{collection}/docs/d1", json={"n": 3})
        assert node.error(f'await db.{collection}.update("d1", {{n: 10}})')["status"] == 404
        wait_numbers(node, [2, 4, 10])
        node.wait_events("plain", 1)
        if at == "reconnect":
            proxy.refusing = True
            proxy.cut()
            node.wait_state("offline")
        rule["filter"] = {"user": "bob"}
        if at == "reconnect":  # with a token that has the other rule from the start
            wait_until(lambda: minted[-1] == rule["filter"])
            proxy.refusing = False
        wait_numbers(node, [3, 3, 5])
        wait_numbers(node, [3, 3], "window")
        wait_until(lambda: any("gap" in said for said in node.said))
        server.request("PATCH", f"/{collection}/docs/d2", json={"n": 0})
        server.request("PATCH", f"/{collection}/docs/d3", json={"n": 0})
        wait_numbers(node, [0, 3, 5])
        wait_numbers(node, [0, 3], "window")
        assert [event["data"]["_id"] for event in node.events["plain"]] == ["d0", "d3"]


def test_a_query_goes_on_when_the_same_one_of_another_component_ends(
    client: MakeClient, server: Server, collection: str
) -> None:
    """The other one ends when this one has been asked for, and has no reply yet."""
    node = client()
    open_live(node, collection, sort="n")
    wait_live(node)
    again = OPEN.replace("NAME", "b").replace("COLLECTION", collection).replace("OPTIONS", '{sort: "n"}')
    node.run(again + "await new Promise(queueMicrotask); state.lives.a.close()")
    wait_live(node, "b")
    server.insert(collection, {"n": 1})
    wait_numbers(node, [1], "b")


def test_what_cannot_work_says_so(client: MakeClient, server: Server, collection: str) -> None:
    node = client()
    open_live(node, collection, filter={"n": {"above": 3}})
    assert wait_view(node, lambda v: v["status"] == "error")["error"]["code"] == "UNKNOWN_OPERATOR"
    assert node.error(f"db.{collection}.live({{where: 1}})")["code"] == "INVALID_REQUEST"
    assert node.error(f"db.{collection}.live({{limit: 0}})")["code"] == "INVALID_REQUEST"


VALUES = [None, True, False, 0, 1, 2, 2.5, -1, "", "a", "b", "ab", "\uffff", "\U0001f600", [1], {"x": 1}]
QUERIES: list[dict[str, Any]] = [
    {"sort": "v,k", "limit": 5},
    {"sort": "-v,k", "limit": 3, "filter": {"k": {"gte": 3}}},
    {"sort": "-k", "limit": 4, "filter": {"or": [{"v": {"gt": 0}}, {"v": {"startsWith": "a"}}, {"v": None}]}},
    {"sort": "v,-k", "filter": {"v": {"ne": 1}}},
    {"filter": {"not": {"v": {"in": [0, "a", None]}}}, "sort": "k", "limit": 2, "select": ["v"]},
    {"limit": 6},
    {"sort": "-", "limit": 6},
]


def test_three_clients_converge_to_the_servers_find(
    client: MakeClient, server: Server, collection: str
) -> None:
    """Random writes by all of them at once, and cut connections; then each view is what `find` lists."""
    seed = random.randrange(10**6)
    rng = random.Random(seed)
    with Proxy(server.port) as proxy:
        nodes = [client(proxy.url) for _ in range(3)]
        for node in nodes:
            for number, query in enumerate(QUERIES):
                open_live(node, collection, f"q{number}", **query)
        for _ in range(6):
            for node in nodes:
                writes = [rng.choice(["insert", "update", "update", "replace", "delete"]) for _ in range(12)]
                calls = []
                for op in writes:
                    id, value, k = f"d{rng.randrange(25)}", rng.choice(VALUES), rng.random() * 10
                    fields = json.dumps({"v": value, "k": k})
                    known = {"insert": f"{fields}", "delete": f'"{id}"'}.get(op, f'"{id}", {fields}')
                    calls.append(f"db.{collection}.{op}({known}).catch(() => {{}})")
                node.run(f"state.writes = [...(state.writes ?? []), {','.join(calls)}]")
            if rng.random() < 0.4:
                proxy.cut()
        for node in nodes:
            node.run("await Promise.all(state.writes)")
        for number, query in enumerate(QUERIES):
            expected = found(server, collection, **{"limit": 1000, **query})
            for node in nodes:
                try:
                    wait_view(
                        node,
                        lambda v, e=expected: v["status"] == "live" and v["documents"] == e,
                        f"q{number}",
                    )
                except AssertionError as error:
                    raise AssertionError((seed, query, expected, error)) from None


def test_own_writes_of_a_rule_with_select(client: MakeClient, server: Server, collection: str) -> None:
    """Their responses have no seq; a ping tells when the change has come."""
    rule = {"filter": {"user": "ada"}, "select": ["n", "user"], "permissions": ["read", "write"]}

    def back_end(method: str, path: str, headers: dict[str, str]) -> Any:
        body = {"collections": {collection: rule}}
        return 200, "text/plain", server.request("POST", "/realtime/token", json=body).json()["token"].encode()

    server.insert(collection, {"_id": "a", "n": 1, "user": "ada", "secret": 1})
    with http_server(back_end) as token_url:
        node = client(key=None, tokenUrl=token_url)
        open_live(node, collection, sort="n")
        wait_numbers(node, [1])
        node.run(
            f'await db.{collection}.insert({{n: 2, user: "ada"}}); await db.{collection}.update("a", {{n: 5}})'
        )
        wait_numbers(node, [2, 5])
        server.request("PATCH", f"/{collection}/docs/a", json={"n": 0})  # it is no longer hidden by our own
        wait_numbers(node, [0, 2])
        assert view(node)["documents"][0] == {"_id": "a", "n": 0, "user": "ada"}


def test_a_query_that_begins_anew_for_another_loses_nothing(client: MakeClient) -> None:
    """In memory: a handler is at seq 5 when a snapshot at 10 restarts the subscription that both share."""
    got = client().run("""
        const { Queries } = await import(`${process.cwd()}/node_modules/paperdb/queries.js`);
        const queries = new Queries(), sent = [], seen = [];
        const ask = (action, fields, reply) => sent.push({ action, ...fields, reply });
        const owner = (name) => ({
          begin: (seq) => seen.push([name, seq]),
          change: ({ seq }) => seen.push([name, seq]),
          snapshot: (documents, seq) => seen.push([name, "all", seq]),
          ...{ progress() {}, current() {}, stale() {} },
        });
        const event = (seq) => queries.receive({ type: "insert", query: "q", seq, data: {} });
        const answer = (seq) => {
          const at = sent.findIndex(({ action }) => action === "subscribe");
          const [{ reply, since, snapshot }] = sent.splice(at, 1);
          reply(null, { query: "q", seq });
          return [since, snapshot];
        };
        queries.add({ collection: "c" }, owner("handler"));
        const connection = { ask, head: 0 };
        queries.align(connection, () => true);
        const asked = [answer(5)];
        queries.add({ collection: "c", snapshot: true }, owner("live"));
        queries.align(connection, () => true);
        asked.push(answer(10));
        queries.receive({ type: "snapshot", query: "q", seq: 10, documents: [], last: true });
        event(11);
        asked.push(answer(5));
        for (const seq of [6, 8, 11, 12]) event(seq);
        return { asked, seen };
    """)
    assert got["asked"] == [[None, None], [None, True], [5, None]]
    assert [entry[1] for entry in got["seen"] if entry[0] == "handler"] == [5, 6, 8, 11, 12]
    assert [entry[1:] for entry in got["seen"] if entry[0] == "live"] == [["all", 10], [11], [12]]
