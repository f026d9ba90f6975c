// The SDK against a WebSocket that does what the test says, on a clock that the test turns.
import assert from "node:assert/strict";
import { mock } from "node:test";
import { createClient } from "paperdb";

mock.timers.enable({ apis: ["setTimeout", "Date"], now: 1_700_000_000_000 });
Math.random = () => 1;

export const sockets = [];
export const latest = () => sockets.at(-1);
/** Let promises and microtasks run. */
export const settle = async () => {
  for (let turn = 0; turn < 3; turn += 1) await new Promise(setImmediate);
};
/** Let time pass, in steps: one long one would look like a clock that jumped. */
export const pass = async (ms) => {
  for (let left = ms; left > 0; left -= 1_000) {
    mock.timers.tick(Math.min(left, 1_000));
    await settle();
  }
};
/** So much time at once, as after sleep. */
export const jump = async (ms) => {
  mock.timers.tick(ms);
  await settle();
};

export class FakeSocket {
  constructor(url, protocols) {
    this.url = new URL(url);
    this.protocols = protocols;
    this.sent = [];
    this.closed = false;
    sockets.push(this);
  }
  send(text) {
    assert.equal(this.closed, false);
    this.sent.push(JSON.parse(text));
  }
  close() {
    this.closed = true;
  }
  say(...messages) {
    for (const message of messages) this.onmessage?.({ data: JSON.stringify(message) });
    return settle();
  }
  end(code, reason = "") {
    this.onclose?.({ code, reason });
    return settle();
  }
  /** From which seq it is subscribed to what: the collections of its token, unless the URL narrows them. */
  get query() {
    const { since, errors, collections = this.tokenNames().join(), ...more } = Object.fromEntries(this.url.searchParams);
    assert.deepEqual([errors, more], ["close", {}]);
    return { since, collections };
  }
  tokenNames() {
    return JSON.parse(atob(this.protocols[1].split(".")[2])).collections;
  }
}

/** A client whose tokens come at once; `mints` are the collections that they were for. */
export function connect(options = {}) {
  const mints = [];
  const payload = (collections) =>
    btoa(JSON.stringify({ collections, iat: Date.now() / 1000, exp: Date.now() / 1000 + 900 }));
  const getToken = ({ collections }) => (mints.push(collections), `e30.${payload(collections).replace(/=/g, "")}.x`);
  const db = createClient({ baseUrl: "http://db.test/prefix/", getToken, WebSocket: FakeSocket, ...options });
  const statuses = [];
  db.realtime.onStatus((status) => statuses.push(status));
  return { db, mints, statuses, states: () => statuses.map(({ state }) => state) };
}

export const change = (seq, collection = "a") => ({ seq, type: "insert", collection, data: { n: seq } });
export { assert };
