"""What the SDK does at each turn of the protocol, in Node but without a server or time (see fake.mjs)."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.web.tools import HERE, Script

IMPORT = (
    'import { FakeSocket, assert, change, connect, jump, latest, pass, settle, sockets } from "./fake.mjs";\n'
)
CASES = {
    "the first connection": """
        const { db, states, mints } = connect();
        db.realtime.subscribe("a", () => {});
        db.realtime.subscribe("b", () => {});
        await settle();
        assert.equal(sockets.length, 1);
        assert.equal(latest().url.origin + latest().url.pathname, "ws://db.test/prefix/");
        assert.deepEqual(latest().query, { since: "now", collections: "a,b" });
        assert.equal(latest().protocols[0], "paperdb.v1");
        assert.match(latest().protocols[1], /^bearer\\.e30\\./);
        assert.deepEqual(mints, [["a", "b"]]);
        await latest().say({ type: "ready", seq: 7 });
        assert.deepEqual(states(), ["connecting", "live"]);
    """,
    "the backoff doubles up to its maximum, and starts anew once it was live for a while": """
        const { db, statuses, states } = connect();
        db.realtime.subscribe("a", () => {});
        await settle();
        const delays = [];
        for (let time = 0; time < 9; time += 1) {
          await latest().end(1006);
          delays.push(statuses.at(-1).retryIn);
          await pass(statuses.at(-1).retryIn * 1000 - 1);
          assert.equal(states().at(-1), "offline");
          await pass(1);
          assert.equal(states().at(-1), "connecting");
        }
        assert.deepEqual(delays, [0.25, 0.5, 1, 2, 4, 8, 15, 15, 15]);
        await latest().say({ type: "ready", seq: 1 });
        await pass(9_999); // so long, it may be a connection that does no good
        await latest().end(1012);
        assert.equal(statuses.at(-1).retryIn, 15);
        await pass(15_000);
        await latest().say({ type: "ready", seq: 1 });
        await pass(10_000);
        await latest().end(1012);
        assert.equal(statuses.at(-1).retryIn, 0.25);
    """,
    "connections that end soon after they opened are made less and less often": """
        const { db } = connect();
        db.realtime.subscribe("a", () => {});
        await settle();
        for (let second = 0; second < 60; second += 1) {
          if (latest().onclose) {
            await latest().say({ type: "ready", seq: 1 });
            await latest().end(1006);
          }
          await pass(1_000);
        }
        assert.ok(sockets.length < 12, sockets.length);
    """,
    "close codes": """
        const table = { 1000: "offline", 1001: "offline", 1005: "offline", 1006: "offline", 1011: "offline",
          1012: "offline", 1013: "offline", 4000: "offline", 4399: "offline", 4401: "offline", 4408: "offline",
          4410: "offline", 4500: "offline", 1003: "closed", 1007: "closed", 1009: "closed", 4400: "closed",
          4403: "closed", 4402: "closed", 4499: "closed" };
        for (const [code, state] of Object.entries(table)) {
          const { db, states, mints, statuses } = connect();
          const errors = [];
          db.realtime.subscribe("a", () => {}, { onError: (error) => errors.push(error.closeCode) });
          await settle();
          await latest().say({ type: "ready", seq: 5 });
          const count = sockets.length;
          await latest().end(Number(code), "because");
          assert.equal(states().at(-1), state, code);
          assert.match(statuses.at(-1).reason, /because/);
          await pass(300);
          assert.equal(sockets.length, state === "closed" ? count : count + 1, code);
          assert.deepEqual(errors, state === "closed" ? [Number(code)] : [], code);
          assert.equal(mints.length, code === "4401" ? 2 : 1, code);
          if (state === "offline") assert.deepEqual(latest().query, { since: "5", collections: "a" });
          db.close();
        }
    """,
    "changes: each once, in order, to whom it concerns": """
        const { db } = connect();
        const got = { a: [], a2: [], b: [] };
        db.realtime.subscribe("a", ({ seq }) => got.a.push(seq));
        db.realtime.subscribe("b", ({ seq }) => got.b.push(seq));
        await settle();
        await latest().say({ type: "ready", seq: 5 }, change(6), change(6), change(5), change(8, "b"));
        await latest().end(1006);
        await pass(250);
        assert.equal(latest().query.since, "8");
        // This one comes while the others catch up: it sees nothing of what was before.
        await latest().say({ type: "ready", seq: 100 }, change(9));
        db.realtime.subscribe("a", ({ seq }) => got.a2.push(seq));
        await settle();
        const [{ ref }] = latest().sent;
        await latest().say(change(10), { type: "subscribed", seq: 10, ref }, change(100), change(101));
        assert.deepEqual(got, { a: [6, 9, 10, 100, 101], a2: [101], b: [8] });
    """,
    "an unknown message is no reason to fail": """
        const { db, states } = connect();
        const seqs = [];
        db.realtime.subscribe("a", ({ seq }) => seqs.push(seq));
        await settle();
        await latest().say({ type: "ready", seq: 5 }, { type: "news", text: "hello" }, change(6));
        assert.deepEqual([seqs, states().at(-1)], [[6], "live"]);
        latest().onmessage({ data: "<html>" });
        await settle();
        assert.equal(states().at(-1), "offline");
    """,
    "catching up ends with a change or a reply that reaches the head": """
        const { db, states } = connect();
        db.realtime.subscribe("a", () => {});
        await settle();
        await latest().say({ type: "ready", seq: 5 });
        await latest().end(1006);
        await pass(250);
        await latest().say({ type: "ready", seq: 20 }, change(6));
        await pass(999);
        await latest().say(change(7));
        await pass(999);
        assert.equal(states().at(-1), "catching up");
        await latest().say(change(20));
        assert.equal(states().at(-1), "live");
        await latest().end(1006);
        await pass(500);
        await latest().say({ type: "ready", seq: 30 });
        for (const [seq, state] of [[20, "catching up"], [29, "catching up"], [30, "live"]]) {
          await pass(999);
          assert.deepEqual(latest().sent, []);
          await pass(1);
          const { action, ref } = latest().sent.pop(); // the last changes may be of other collections
          assert.equal(action, "ping");
          await latest().say({ type: "pong", seq, ref });
          assert.equal(states().at(-1), state);
        }
        await pass(5_000);
        assert.deepEqual(latest().sent, []);
    """,
    "a backup was restored: the cursor goes back with the server": """
        const { db, states } = connect();
        const [seqs, gaps] = [[], []];
        db.realtime.subscribe("a", ({ seq }) => seqs.push(seq), { onGap: (gap) => gaps.push(gap) });
        await settle();
        await latest().say({ type: "ready", seq: 500 }, change(501));
        await latest().end(1012);
        await pass(250);
        await latest().say({ type: "ready", seq: 100 }, { type: "gap", since: 501, oldest: 1 }, change(101));
        assert.deepEqual([seqs, gaps], [[501, 101], [{ since: 501, oldest: 1 }]]);
        assert.deepEqual(states().slice(-3), ["catching up", "gap", "live"]);
        await latest().end(1006);
        await pass(500);
        assert.equal(latest().query.since, "101");
    """,
    "nothing of before a subscription comes, whenever it was sent": """
        const { db } = connect({ getToken: () => "opaque" });
        const got = { b: [], b2: [], c: [] };
        db.realtime.subscribe("a", () => {});
        await settle();
        await latest().say({ type: "ready", seq: 1 });
        db.realtime.subscribe("b", ({ seq }) => got.b.push(seq), { onReady: () => got.b.push("ready") });
        await settle();
        // The server has heard of it at 6; a reply can come behind changes that followed.
        await latest().say(change(7, "b"), { type: "subscribed", seq: 6, ref: latest().sent[0].ref });
        assert.deepEqual(got.b, ["ready", 7]);
        db.realtime.subscribe("b", ({ seq }) => got.b2.push(seq)); // 8 was on its way
        db.realtime.subscribe("c", ({ seq }) => got.c.push(seq));
        await settle();
        const [, b2, c] = latest().sent;
        await latest().say(change(8, "b"), { type: "subscribed", seq: 8, ref: b2.ref }, change(9, "b"));
        await latest().end(1006); // before the server has said that it heard of c
        await pass(250);
        assert.deepEqual(latest().query, { since: "9", collections: "a,b" });
        await latest().say({ type: "ready", seq: 20 }, change(10, "b"));
        assert.deepEqual(latest().sent.map(({ collection }) => collection), ["c"]);
        await latest().say({ type: "subscribed", seq: 21, ref: latest().sent[0].ref }, change(22, "c"));
        await latest().end(1006);
        await pass(500);
        assert.deepEqual(latest().query, { since: "22", collections: "a,b,c" });
        await latest().say({ type: "ready", seq: 22 });
        await latest().end(1006);
        await pass(1_000);
        await latest().say({ type: "ready", seq: 30 }, change(15, "c"), change(23, "c"));
        assert.deepEqual(got, { b: ["ready", 7, 8, 9, 10], b2: [9, 10], c: [22, 23] });
        assert.equal(c.collection, "c");
    """,
    "a resumed cursor is older than a subscription": """
        const { db } = connect({ getToken: () => "opaque" });
        const seqs = [];
        db.realtime.subscribe("a", () => {});
        await settle();
        await latest().say({ type: "ready", seq: 0 });
        db.realtime.subscribe("b", ({ seq }) => seqs.push(seq));
        await settle();
        await latest().say({ type: "subscribed", seq: 5, ref: latest().sent[0].ref });
        await latest().end(1006);
        await pass(250);
        assert.deepEqual(latest().query, { since: "0", collections: "a,b" });
        const changes = [1, 2, 3, 4, 5, 6].map((seq) => change(seq, "b"));
        await latest().say({ type: "ready", seq: 6 }, ...changes);
        assert.deepEqual(seqs, [6]);
    """,
    "the cursor of a quiet collection stays young, whatever else is said": """
        const { db } = connect({ getToken: () => "opaque" });
        db.realtime.subscribe("a", () => {});
        await settle();
        await latest().say({ type: "ready", seq: 1 });
        for (let time = 0; time < 4; time += 1) { // replies that say nothing of how far we are
          await pass(10_000);
          for (const { action, ref } of latest().sent.splice(0)) {
            if (action === "ping") await latest().say({ type: "pong", seq: 1_000, ref });
          }
          await latest().say({ type: "news" });
        }
        await latest().say({ type: "pong", seq: 7, ref: 99 }); // a pong that was not asked for
        await latest().end(1006);
        await pass(500);
        assert.equal(latest().query.since, "1000");
    """,
    "subscribing beyond the token: a new one for the union, first": """
        const { db, mints } = connect();
        const off = db.realtime.subscribe("a", () => {});
        await settle();
        await latest().say({ type: "ready", seq: 1 });
        db.realtime.subscribe("b", () => {});
        await settle();
        assert.deepEqual(mints[1].sort(), ["a", "b"]);
        assert.deepEqual(latest().sent.map(({ action }) => action), ["auth"]);
        db.realtime.subscribe("c", () => {}); // while that goes on
        off();
        await settle();
        await latest().say({ type: "authenticated", ref: latest().sent[0].ref });
        assert.deepEqual(latest().sent.map(({ action, collection }) => [action, collection]),
          [["auth", undefined], ["unsubscribe", "a"], ["subscribe", "b"], ["auth", undefined]]);
        await latest().say({ type: "authenticated", ref: latest().sent.at(-1).ref });
        assert.deepEqual(latest().sent.slice(4).map(({ action, collection }) => [action, collection]),
          [["subscribe", "c"]]);
        assert.equal(sockets.length, 1);
    """,
    "subscribing while a token is on its way: what it covers first": """
        let give;
        const asked = [];
        const coming = () => new Promise((resolve) => (give = resolve));
        const getToken = ({ collections }) => (asked.push(collections), coming());
        const token = (...collections) => `e30.${btoa(JSON.stringify({ collections, iat: 0, exp: 900 }))}.x`;
        const { db } = connect({ getToken });
        db.realtime.subscribe("a", () => {});
        await settle();
        db.realtime.subscribe("bcd", () => {});
        give(token("a"));
        await settle();
        assert.deepEqual(latest().query, { since: "now", collections: "a" });
        await latest().say({ type: "ready", seq: 1 });
        assert.deepEqual(asked.at(-1).sort(), ["a", "bcd"]);
        give(token("a", "bcd"));
        await settle();
        assert.deepEqual(latest().sent.map(({ action }) => action), ["auth"]);
    """,
    "a cursor is for those who had begun": """
        const { db } = connect();
        const off = db.realtime.subscribe("a", () => {});
        await settle();
        await latest().say({ type: "ready", seq: 5 });
        await latest().end(1006);
        db.realtime.subscribe("b", () => {});
        await pass(250);
        assert.deepEqual(latest().query, { since: "5", collections: "a" });
        await latest().end(1006);
        off();
        await pass(500);
        assert.deepEqual(latest().query, { since: "now", collections: "b" });
    """,
    "subscribing within the token asks for none": """
        const { db, mints } = connect({ getToken: () => "opaque" });
        const errors = [];
        db.realtime.subscribe("a", () => {});
        await settle();
        await latest().say({ type: "ready", seq: 1 });
        let ready = 0;
        const onError = ({ code }) => errors.push(code);
        db.realtime.subscribe("b", () => {}, { onReady: () => (ready += 1), onError });
        await settle();
        const [{ action, collection, ref }] = latest().sent;
        assert.deepEqual([action, collection, ready], ["subscribe", "b", 0]);
        db.realtime.subscribe("b", () => {}, { onReady: () => (ready += 10) });
        await settle();
        assert.equal(ready, 0); // the server has not said so yet
        await latest().say({ type: "subscribed", collection: "b", ref });
        assert.equal(ready, 1);
        await latest().say({ type: "subscribed", collection: "b", ref: latest().sent[1].ref });
        assert.equal(ready, 11);
        db.realtime.subscribe("c", () => {}, { onError });
        await settle();
        await latest().say({ type: "error", code: "NOT_IN_TOKEN", message: "no", ref: latest().sent[2].ref });
        assert.deepEqual([errors, latest().closed], [["NOT_IN_TOKEN"], false]);
    """,
    "silence: ask, then connect anew at once": """
        const { db, states } = connect();
        db.realtime.subscribe("a", () => {});
        await settle();
        await latest().say({ type: "ready", seq: 1 });
        for (let tick = 0; tick < 6; tick += 1) await pass(5_000);
        assert.deepEqual(latest().sent.map(({ action }) => action), ["ping"]);
        await latest().say({ type: "pong", ref: latest().sent[0].ref });
        for (let tick = 0; tick < 6; tick += 1) await pass(5_000);
        assert.equal(latest().sent.length, 2);
        await pass(5_000);
        assert.equal(sockets.length, 1);
        await pass(5_000);
        assert.equal(sockets.length, 2);
        assert.deepEqual([sockets[0].closed, states().at(-1)], [true, "connecting"]);
    """,
    "sleep": """
        const { db } = connect();
        db.realtime.subscribe("a", () => {});
        await settle();
        await latest().say({ type: "ready", seq: 1 });
        await jump(10_001);
        assert.deepEqual(latest().sent.map(({ action }) => action), ["ping"]);
        await pass(2_999);
        assert.equal(sockets.length, 1);
        await pass(1);
        assert.equal(sockets.length, 2);
    """,
    "waking up": """
        const listeners = new Map();
        globalThis.addEventListener = (name, listener) => listeners.set(name, listener);
        globalThis.removeEventListener = (name, own) => listeners.get(name) === own && listeners.delete(name);
        globalThis.document = { visibilityState: "hidden", addEventListener, removeEventListener };
        const { db, states, statuses } = connect();
        const off = db.realtime.subscribe("a", () => {});
        await settle();
        assert.deepEqual([...listeners.keys()].sort(), ["offline", "online", "pageshow", "visibilitychange"]);
        await latest().say({ type: "ready", seq: 1 });
        listeners.get("visibilitychange")();
        assert.equal(latest().sent.length, 0); // it became hidden
        document.visibilityState = "visible";
        for (const name of ["visibilitychange", "pageshow", "online"]) listeners.get(name)();
        assert.deepEqual(latest().sent.map(({ action }) => action), ["ping"]);
        await pass(3_000);
        assert.equal(sockets.length, 2);
        await latest().say({ type: "ready", seq: 1 });
        listeners.get("offline")();
        await settle();
        assert.deepEqual([states().at(-1), statuses.at(-1).reason], ["offline", "the network is offline"]);
        listeners.get("online")(); // no waiting for the rest of the delay
        await settle();
        assert.deepEqual([states().at(-1), sockets.length], ["connecting", 3]);
        await pass(2_999);
        listeners.get("online")();
        assert.equal(sockets.length, 3); // this attempt is young
        await pass(2);
        listeners.get("online")();
        await settle();
        assert.equal(sockets.length, 4);
        off();
        await settle();
        assert.deepEqual([listeners.size, latest().closed], [0, true]);
    """,
    "a handshake that hangs, and one that fails without a close event": """
        const { db, states, mints, statuses } = connect();
        db.realtime.subscribe("a", () => {});
        await settle();
        await pass(10_000);
        assert.equal(statuses.at(-1).reason, "connecting took too long");
        assert.equal(latest().closed, true);
        await pass(250);
        assert.deepEqual([sockets.length, mints.length], [2, 1]);
        latest().onerror({ type: "error", message: "Unexpected server response: 401" });
        await settle();
        assert.equal(statuses.at(-1).reason, "closed with 1006 Unexpected server response: 401");
        await pass(500);
        assert.deepEqual([sockets.length, mints.length], [3, 2]); // with another token
    """,
    "everything may be called from everywhere": """
        const { db, states } = connect();
        db.realtime.subscribe("a", () => db.close());
        const another = () => db.realtime.subscribe("b", () => assert.fail());
        db.realtime.onStatus(({ state }) => state === "live" && another());
        await settle();
        await latest().say({ type: "ready", seq: 1 });
        await latest().say(change(2), change(3, "b"));
        assert.deepEqual([latest().closed, states().at(-1)], [true, "closed"]);
        await pass(60_000);
        assert.equal(sockets.length, 1);
    """,
    "without a WebSocket, subscribing throws and says what to do; documents need none": """
        delete globalThis.WebSocket;
        const { db } = connect({ WebSocket: undefined, fetch: () => Response.json({ count: 7 }) });
        const message = /Node 22 or later has one; or pass `WebSocket: ws`/;
        assert.throws(() => db.realtime.subscribe("a", () => {}), { code: "NO_WEBSOCKET", message });
        assert.equal(await db.a.count(), 7);
        globalThis.WebSocket = FakeSocket; // one that comes later is found
        db.realtime.subscribe("a", () => {});
        await settle();
        assert.equal(sockets.length, 1);
    """,
    "a class that is not a WebSocket is reported at once": """
        class Nothing { constructor() { throw new TypeError("no sockets"); } }
        const { db, statuses } = connect({ WebSocket: Nothing });
        db.realtime.subscribe("a", () => {}, { onError: () => {} });
        await settle();
        assert.deepEqual([statuses.at(-1).state, statuses.at(-1).reason], ["closed", "no sockets"]);
    """,
    "a query that ends while one that may be the same is asked for": """
        const { db } = connect();
        const open = async () => {
          const live = db.a.live();
          live.subscribe(() => {});
          await settle();
          const { ref } = latest().sent.findLast(({ action }) => action === "subscribe") ?? {};
          return { live, ref };
        };
        const ended = () =>
          latest().sent.filter(({ action }) => action === "unsubscribe").map(({ query }) => query);
        const one = await open();
        await latest().say({ type: "ready", seq: 1 });
        const { ref } = latest().sent[0];
        one.live.close();
        const two = await open();
        assert.notEqual(two.ref, ref);
        await latest().say({ type: "subscribed", query: "q", seq: 1, ref }); // perhaps the other's, too
        await latest().say({ type: "subscribed", query: "q", seq: 1, ref: two.ref });
        assert.deepEqual(ended(), []);
        const three = await open();
        two.live.close();
        await settle();
        assert.deepEqual(ended(), []);
        await latest().say({ type: "subscribed", query: "q", seq: 1, ref: three.ref });
        assert.deepEqual(ended(), []);
        const four = await open();
        three.live.close();
        await latest().say({ type: "subscribed", query: "another", seq: 1, ref: four.ref });
        assert.deepEqual(ended(), ["q"]);
        four.live.close();
        assert.deepEqual(ended(), ["q", "another"]);
    """,
    "a cursor of a page that another token does not accept": """
        const pages = {
          "": [200, { documents: [{ _id: "1" }, { _id: "2" }], hasMore: true, next: "old", seq: 1 }],
          old: [400, { error: "Invalid after", code: "INVALID_CURSOR" }],
        };
        const asked = [];
        const fetch = async (url) => {
          const after = new URL(url).searchParams.get("after") ?? "";
          asked.push(after);
          const [status, body] = pages[after];
          return new Response(JSON.stringify(body), { status });
        };
        const { db } = connect({ fetch });
        const live = db.a.live({ limit: 1 });
        live.subscribe(() => {});
        await settle();
        await latest().say({ type: "ready", seq: 1 });
        const { ref } = latest().sent.find(({ action }) => action === "subscribe");
        await latest().say({ type: "subscribed", query: "q", seq: 1, ref });
        await settle();
        assert.deepEqual([asked, live.get().status], [["", "old"], "stale"]);
        pages[""] = [200, { documents: ["1", "2", "3"].map((_id) => ({ _id })), hasMore: false, seq: 2 }];
        await pass(3_000);
        const { status, error, documents, hasMore } = live.get();
        assert.deepEqual([asked, status, error], [["", "old", ""], "live", null]);
        assert.deepEqual([documents.length, hasMore], [1, true]);
    """,
}


def run_case(package: Path, source: str) -> None:
    shutil.copy(HERE / "fake.mjs", package)
    with Script(package, IMPORT + source + "\nprocess.exit(0);") as script:
        script.end(10)


@pytest.mark.parametrize("case", CASES)
def test_the_protocol(package: Path, case: str) -> None:
    run_case(package, CASES[case])
