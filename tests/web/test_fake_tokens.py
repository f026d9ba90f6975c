"""What the SDK does about tokens and refusals, in Node but without a server or time (see fake.mjs)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.web.test_fake import run_case

CASES = {
    "tokens are not renewed without pause, whatever the clocks say": """
        const cases = { // seconds that iat and exp are off this machine's clock
          "45 s ahead, tokens of 60 s": [-45, 15], "14.5 min ahead": [-870, 30],
          "a day ahead": [-86_400, -85_500], "a day behind": [86_400, 87_300],
          "expired when they came": [-60, 0], "of no length": [0, 0], "that end before they begin": [10, -10],
          "without iat": [undefined, 20], "without exp": [0, undefined],
          "that say nonsense": ["soon", "later"], "shorter than their margin": [0, 61],
        };
        for (const [name, [iat, exp]] of Object.entries(cases)) {
          let asked = 0;
          const at = (offset) => (typeof offset === "number" ? Math.floor(Date.now() / 1000) + offset : offset);
          const claims = () => ({ collections: ["a"], iat: at(iat), exp: at(exp) });
          const getToken = () => ((asked += 1), `e30.${btoa(JSON.stringify(claims())).replace(/=/g, "")}.x`);
          const { db, states } = connect({ getToken });
          db.realtime.subscribe("a", () => {});
          await settle();
          await latest().say({ type: "ready", seq: 1 });
          let most = 0;
          for (let minutes = 0; minutes < 5; minutes += 1) {
            const before = asked;
            for (let second = 0; second < 60; second += 1) {
              await pass(1_000);
              for (const { action, ref } of latest().sent.splice(0)) {
                await latest().say({ type: action === "ping" ? "pong" : "authenticated", seq: 1, ref });
              }
            }
            most = Math.max(most, asked - before);
          }
          assert.ok(most <= 4, `${name}: ${most} a minute`);
          assert.equal(states().at(-1), "live", name);
          db.close();
        }
    """,
    "a getToken that fails or never settles while the connection goes on": """
        const token = (...names) => `e30.${btoa(JSON.stringify({ collections: names })).replace(/=/g, "")}.x`;
        let answer = async () => token("a", "b", "d");
        let asked = [];
        const getToken = ({ collections }) => (asked.push(collections), answer());
        const { db, statuses } = connect({ getToken });
        const ready = [];
        const subscribe = (name) => db.realtime.subscribe(name, () => {}, { onReady: () => ready.push(name) });
        subscribe("a");
        await settle();
        await latest().say({ type: "ready", seq: 1 });
        answer = () => new Promise(() => {});
        subscribe("c");
        await settle();
        assert.equal(asked.length, 2);
        subscribe("b"); // the present token covers it: it need not wait
        await settle();
        const [{ action, collection, ref }] = latest().sent;
        assert.deepEqual([action, collection], ["subscribe", "b"]);
        await latest().say({ type: "subscribed", seq: 1, ref });
        assert.deepEqual(ready, ["a", "b"]);
        await pass(29_999);
        assert.equal(statuses.at(-1).reason, undefined);
        await pass(1);
        assert.deepEqual(statuses.at(-1),
          { state: "live", reason: "the token could not be renewed: no token came within 30 s" });
        const second = async () => {
          await pass(1_000);
          for (const sent of latest().sent.splice(0)) {
            if (sent.action === "ping") await latest().say({ type: "pong", seq: 1, ref: sent.ref });
          }
        };
        // Failures are followed by longer and longer pauses, also if somebody subscribes without end.
        answer = async () => { throw new Error("the back end is down"); };
        asked = [];
        for (let time = 0; time < 60; time += 1) {
          subscribe("c")();
          await second();
        }
        assert.ok(asked.length >= 3 && asked.length <= 6, asked.length);
        assert.match(statuses.at(-1).reason, /the back end is down/);
        // Back again. What was joined while the token was on its way must be covered by it, too.
        let give;
        answer = () => new Promise((resolve) => (give = resolve));
        for (let time = 0; time < 31 && !give; time += 1) await second();
        latest().sent.splice(0);
        subscribe("c");
        subscribe("d");
        await settle();
        give(token("a", "b", "c"));
        answer = async () => token("a", "b", "c", "d");
        await settle();
        const [d, auth] = latest().sent;
        assert.deepEqual([d.action, auth.action], ["subscribe", "auth"]);
        assert.deepEqual(asked.at(-1).sort(), ["a", "b", "c", "d"]);
        await latest().say({ type: "subscribed", seq: 1, ref: d.ref });
        await latest().say({ type: "authenticated", ref: auth.ref });
        assert.deepEqual(statuses.at(-1), { state: "live" });
        const last = latest().sent.at(-1);
        assert.deepEqual([last.action, last.collection], ["subscribe", "c"]);
        await latest().say({ type: "subscribed", seq: 1, ref: last.ref });
        assert.deepEqual([ready, sockets.length], [["a", "b", "d", "c", "c"], 1]);
    """,
    "a getToken that never settles before there is a connection": """
        let asked = 0;
        const { db, statuses } = connect({ getToken: () => ((asked += 1), new Promise(() => {})) });
        db.realtime.subscribe("a", () => {});
        await settle();
        await pass(30_000);
        const { state, reason } = statuses.at(-1);
        assert.deepEqual([state, reason], ["offline", "no token came within 30 s"]);
        await pass(250);
        assert.equal(asked, 2);
    """,
    "a token that was asked for earlier, and comes later, replaces no other": """
        const asked = [];
        const getToken = () => new Promise((give) => asked.push((rule) => {
          const iat = Date.now() / 1000;
          const claims = { collections: { a: { filter: { rule } } }, iat, exp: iat + 900 };
          give(`e30.${btoa(JSON.stringify(claims)).replace(/=/g, "")}.x`);
        }));
        const rules = [];
        const fetch = async (url, { headers }) => {
          rules.push(JSON.parse(atob(headers.Authorization.split(".")[1])).collections.a.filter.rule);
          const body = JSON.stringify({ documents: [], hasMore: false, seq: 1 });
          return new Response(body, { status: 200, headers: { "Content-Type": "application/json" } });
        };
        const { db } = connect({ getToken, fetch });
        const first = db.a.find();
        await settle();
        db.realtime.subscribe("a", () => {});
        await settle();
        asked[1](2);
        await settle();
        asked[0](1);
        await first;
        await db.a.find();
        assert.deepEqual([rules, asked.length], [[2, 2], 2]);
    """,
    "a gap of another rule is told once the server says where it goes on": """
        const tokens = [{ a: { filter: { n: 1 } } }, { a: {}, b: {} }, { a: { filter: { n: 2 } }, b: {} }];
        const collections = () => (tokens.length > 1 ? tokens.shift() : tokens[0]);
        const claims = () => btoa(JSON.stringify({ collections: collections() }));
        const { db } = connect({ getToken: () => `e30.${claims().replace(/=/g, "")}.x` });
        const told = [];
        const onGap = ({ since, oldest }) => told.push([since, oldest]);
        const subscribe = (name, options) => db.realtime.subscribe(name, ({ seq }) => told.push(seq), options);
        const asked = (action, name) => {
          const isIt = (sent) => sent.action === action && (!name || sent.collection === name);
          return latest().sent.findLast(isIt).ref;
        };
        subscribe("a", { onGap });
        await settle();
        await latest().say({ type: "ready", seq: 10 });
        await latest().say({ type: "subscribed", query: "q", seq: 10, ref: asked("subscribe") });
        await latest().say({ ...change(12), query: "q" });
        subscribe("b"); // of which the token says nothing
        await settle();
        await latest().say({ type: "authenticated", ref: asked("auth") });
        // What was hidden may be fetched again now; what is written then must not be missed.
        assert.deepEqual(told.splice(0), [12]);
        await latest().say(change(14));
        await latest().say({ type: "subscribed", seq: 15, ref: asked("subscribe", "a") }, change(16));
        assert.deepEqual(told.splice(0), [[12, 15], 16]);
        subscribe("c");
        await settle();
        await latest().say({ type: "authenticated", ref: asked("auth") });
        await latest().say({ type: "subscribed", query: "r", seq: 20, ref: asked("subscribe", "a") });
        assert.deepEqual(told.splice(0), [[16, 20]]);
        db.close();
    """,
    "the same, if the connection is lost before": """
        const tokens = [{ a: { filter: { n: 1 } } }, { a: {}, b: {} }];
        const collections = () => (tokens.length > 1 ? tokens.shift() : tokens[0]);
        const claims = () => btoa(JSON.stringify({ collections: collections() }));
        const { db } = connect({ getToken: () => `e30.${claims().replace(/=/g, "")}.x` });
        const told = [];
        const onGap = ({ since, oldest }) => told.push([since, oldest]);
        db.realtime.subscribe("a", ({ seq }) => told.push(seq), { onGap });
        await settle();
        await latest().say({ type: "ready", seq: 10 });
        await latest().say({ type: "subscribed", query: "q", seq: 10, ref: latest().sent[0].ref });
        db.realtime.subscribe("b", () => {});
        await settle();
        await latest().say({ type: "authenticated", ref: latest().sent.at(-1).ref });
        await latest().say({ type: "progress", seq: 15 });
        await latest().end(1006);
        await pass(250);
        await latest().say({ type: "ready", seq: 20 });
        for (const { action, collection, ref } of latest().sent.splice(0)) {
          if (action === "subscribe") await latest().say({ type: "subscribed", collection, seq: 21, ref });
        }
        await latest().say(change(22));
        assert.deepEqual(told, [[10, 20], 22]);
    """,
    "a token that is refused at the handshake, from a key or from getToken": """
        const { db, mints, statuses } = connect();
        const errors = [];
        const onError = ({ status, code, message }) => errors.push([status, code, message]);
        db.realtime.subscribe("a", () => {}, { onError });
        await settle();
        for (let time = 0; time < 60; time += 1) {
          if (latest().onclose) await latest().end(4401, "TOKEN_INVALID: The token's signature is wrong");
          await pass(1_000);
        }
        assert.ok(mints.length < 10, mints.length);
        assert.deepEqual(errors, [[401, "TOKEN_INVALID", "The token's signature is wrong"]]);
        assert.match(statuses.at(-1).reason ?? statuses.at(-2).reason, /signature is wrong/);
        const connecting = async () => { while (!latest().onclose) await pass(1_000); };
        await connecting();
        await latest().say({ type: "ready", seq: 1 });
        await latest().end(4401, "token expired"); // as tokens do
        assert.equal(errors.length, 1);
        await connecting();
        await latest().end(4401, "TOKEN_INVALID: Again");
        assert.equal(errors.length, 2);
    """,
    "a handshake refused for good": """
        const refusals = {
          "4400 TOO_MANY_SUBSCRIPTIONS: At most 10": [400, "TOO_MANY_SUBSCRIPTIONS", "At most 10"],
          "4403 PLAN_REQUIRED: Not on this plan": [403, "PLAN_REQUIRED", "Not on this plan"],
          "4403 API key revoked": [403, "ACCESS_LOST", "API key revoked"],
        };
        for (const [reason, expected] of Object.entries(refusals)) {
          const { db, statuses } = connect();
          const errors = [];
          const onError = ({ status, code, message }) => errors.push([status, code, message]);
          db.realtime.subscribe("a", () => {}, { onError });
          await settle();
          await latest().end(Number(reason.slice(0, 4)), reason.slice(5));
          assert.deepEqual([errors, statuses.at(-1)],
            [[expected], { state: "closed", reason: expected[2], code: expected[1] }]);
          await pass(60_000);
          assert.equal(latest().closed, true);
        }
        for (const code of [1012, 1013]) {
          const { db, statuses, mints } = connect();
          db.realtime.subscribe("a", () => {}, { onError: assert.fail });
          await settle();
          await latest().end(code, "TOO_MANY_CONNECTIONS: Try again later");
          assert.match(statuses.at(-1).reason, /TOO_MANY_CONNECTIONS/);
          const { length } = sockets;
          await pass(250);
          assert.deepEqual([sockets.length, mints.length], [length + 1, 1]); // the token is as good as before
          db.close();
        }
    """,
    "who subscribes again on each error does so ever less often": """
        const { db } = connect();
        let errors = 0;
        const subscribe = () => db.realtime.subscribe("a", () => {}, { onError });
        const onError = () => ((errors += 1), off(), (off = subscribe()));
        let off = subscribe();
        await settle();
        for (let time = 0; time < 60; time += 1) {
          if (latest().onclose) await latest().end(4400, "NOT_IN_TOKEN: No");
          await pass(1_000);
        }
        assert.ok(errors > 5 && errors < 12, errors);
    """,
    "a handshake that fails with `ws` says why": """
        const refuse = async (about, reason, then) => {
          const { db, statuses } = connect();
          const errors = [];
          db.realtime.subscribe("a", () => {}, { onError: ({ status, code }) => errors.push([status, code]) });
          await settle();
          latest().onerror({ type: "error", ...about });
          await settle();
          assert.deepEqual([statuses.at(-1).state, errors], then, JSON.stringify(about));
          assert.equal(statuses.at(-1).reason, reason);
          db.close();
        };
        await refuse({}, "closed with 1006", ["offline", []]);
        const error = { code: "ECONNREFUSED" };
        await refuse({ error, message: "refused" }, "closed with 1006 refused", ["offline", []]);
        const certificate = { code: "DEPTH_ZERO_SELF_SIGNED_CERT" };
        const why = "The server's certificate was not accepted: no";
        await refuse({ error: certificate, message: "no" }, why, ["closed", [[0, "CERTIFICATE"]]]);
    """,
    "names travel once": """
        const long = [...Array(64).keys()].map((n) => `${n}`.padEnd(64, "x"));
        const { db } = connect();
        for (const name of long) db.realtime.subscribe(name, () => {});
        await settle();
        assert.equal(latest().url.search, "?since=now&errors=close");
        for (const one of ["y", "x".repeat(65)]) assert.throws(() => db.realtime.subscribe(one, () => {}), one);
        assert.throws(() => db.realtime.subscribe("y", () => {}), /4096 characters in all; with 'y' .* 4097/);
        db.realtime.subscribe(long[0], () => {}); // no other name
        const claims = btoa(JSON.stringify({ collections: ["a", "b", "c"] })).replace(/=/g, "");
        const more = connect({ getToken: () => `e30.${claims}.x` });
        more.db.realtime.subscribe("a", () => {});
        more.db.realtime.subscribe("b", () => {});
        await settle();
        assert.equal(latest().url.search, "?since=now&collections=a,b&errors=close");
    """,
}


@pytest.mark.parametrize("case", CASES)
def test_tokens_and_refusals(package: Path, case: str) -> None:
    run_case(package, CASES[case])
