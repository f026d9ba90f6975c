/**
 * One WebSocket for all subscriptions of a client: tokens, cursor, reconnection.
 *
 * Law: knows nothing of REST; it is given a way to obtain tokens. A token goes into the subprotocol and the
 * `auth` action only. Functions of the user's are called when the state is whole, so that they may call back.
 *
 * Invariant: every change with a seq up to `#cursor` has been given to each handler that was to see it, once,
 * in order of seq; none after it has. A subscription begins when the server has heard of it: it sees the
 * changes with a seq over its `from`.
 */

import { PaperDBError, checkCollection, invalid, isFinal } from "./errors.js";

/** Collections of one token and of one connection; the server's limit. */
const MAX_COLLECTIONS = 100;
const REQUEST_MS = 30_000;
const CONNECT_MS = 10_000;
/** Backoff with full jitter: a random part of the first, doubled at each failure up to the second. */
const FIRST_DELAY_MS = 250;
const MAX_DELAY_MS = 15_000;
/** The types of messages that are changes; everything else answers us, or tells of the connection. */
const CHANGES = new Set(["insert", "update", "delete"]);
/** The longest that a server's `Retry-After` is heeded. */
const LONGEST_WAIT_MS = 60_000;
const TICK_MS = 5_000;
/** Two ticks this much further apart than they should be: the machine slept, or its clock was set. */
const CLOCK_JUMP_MS = 5_000;
/** Silence after which we ask. The server's own pings cannot be seen from JavaScript. */
const SILENCE_MS = 25_000;
const PONG_MS = 10_000;
const PONG_AFTER_WAKING_MS = 3_000;
/** The server does not say when it has caught up with changes of no interest: this much silence says so. */
const QUIET_MS = 1_000;
const LONGEST_TIMER_MS = 2 ** 31 - 1;

/** What the contract says of a close code; those that are not here: 4400 to 4499 stop, others reconnect. */
const CLOSE_CODES = {
  1003: "stop",
  1007: "stop",
  1009: "stop",
  4401: "new token",
  4408: "reconnect",
  // The next connection asks for the same cursor, is told of the gap with its bounds, and is live from now.
  4410: "reconnect",
};

// --- tokens --------------------------------------------------------------------------------------

/** A realtime token, and what it says of itself; it is for the server to verify. */
class Token {
  #text;

  constructor(text) {
    this.#text = text;
    const { exp = Infinity, iat = -Infinity, collections = ["*"] } = claims(text);
    const lifetime = (exp - iat) * 1000;
    const left = exp * 1000 - Date.now();
    // What this machine's clock says is left, unless that cannot be: then the clock is wrong.
    this.ends = Date.now() + (left > 0 && left <= lifetime ? left : lifetime);
    this.lifetime = lifetime;
    this.collections = new Set(collections);
  }

  covers = (collection) => this.collections.has("*") || this.collections.has(collection);

  /** When to get another (milliseconds since the epoch); halfway for one that is shorter than the margin. */
  renewAt(margin) {
    return this.ends - (margin < this.lifetime ? margin : this.lifetime / 2);
  }

  /** For the wire, and nothing else. */
  reveal() {
    return this.#text;
  }
}

function claims(text) {
  try {
    return JSON.parse(atob(text.split(".")[1].replace(/-/g, "+").replace(/_/g, "/"))) ?? {};
  } catch {
    return {}; // not a token that we can read: it is used as it is
  }
}

/** A token of the application's `getToken`. Rejects with a PaperDBError. */
export async function ask(getToken, collections) {
  let answer;
  try {
    answer = await getToken({ collections, permissions: ["read"] });
  } catch (error) {
    if (error instanceof PaperDBError) throw error;
    const status = [401, 403].includes(error?.status) ? error.status : 0;
    const code = error?.code ?? "TOKEN_UNAVAILABLE";
    throw new PaperDBError(`getToken failed: ${error?.message ?? error}`, { status, code, cause: error });
  }
  const text = typeof answer === "string" ? answer : answer?.token;
  if (typeof text === "string" && /^[\w.~+-]+$/.test(text)) return text;
  throw invalid("TOKEN_UNAVAILABLE", "getToken must resolve to a token (a string)");
}

// --- realtime ------------------------------------------------------------------------------------

/** Timers by name. One in the background does not keep a Node process alive. */
class Timers {
  #running = new Map();

  set(name, ms, run, { background = true } = {}) {
    this.clear(name);
    const fire = () => (this.#running.delete(name), run());
    const id = setTimeout(fire, Math.min(Math.max(ms, 0), LONGEST_TIMER_MS));
    if (background) id.unref?.();
    this.#running.set(name, id);
  }

  has(name) {
    return this.#running.has(name);
  }

  clear(...names) {
    for (const name of names) {
      clearTimeout(this.#running.get(name));
      this.#running.delete(name);
    }
  }
}

export class Realtime {
  #url;
  #obtain;
  #Socket;
  #marginMs;
  #subscriptions = new Set();
  #listeners = new Set();
  #status = { state: "closed", reason: "nothing is subscribed" };
  #phase = "idle"; // idle, connecting, open (ready has come), waiting (to connect again), halted, closed
  #attempt = 0; // failures since it was last live
  #generation = 0; // of connections; what was begun for an earlier one is dropped
  #since = 0; // when this connection was begun, ms
  #heard = 0; // when the last message came, ms
  #ticked = 0;
  #cursor = null; // seq of the last change given to handlers, or the head where we began
  #head = 0; // the log's head when this connection was made
  #joined = new Map(); // collections that the server was asked for on this connection → {confirmed}
  #denied = new Set(); // collections that the application's token does not cover
  #renewing = false;
  #socket = null;
  #token = null;
  #abort = null;
  #refs = 0;
  #replies = new Map();
  #timers = new Timers();
  #scheduled = false;
  #later = []; // calls of the user's functions that wait until the state is whole

  /** `obtain(collections, abort)` resolves to a token's text. `Socket`: a WebSocket class, or undefined. */
  constructor({ url, obtain, Socket, tokenMarginSeconds }) {
    this.#url = url;
    this.#obtain = obtain;
    this.#Socket = Socket;
    this.#marginMs = tokenMarginSeconds * 1000;
  }

  get status() {
    return this.#status;
  }

  onStatus(listener) {
    const own = (status) => listener(status); // so that the same function can be added twice
    this.#listeners.add(own);
    return () => void this.#listeners.delete(own);
  }

  subscribe(collection, handler, options = {}) {
    checkCollection(collection);
    if (typeof handler !== "function") throw new TypeError("subscribe(collection, handler) needs a function");
    if (this.#phase === "closed") throw new PaperDBError("This client has been closed", { code: "CLOSED" });
    const others = new Set([...this.#subscriptions].map((other) => other.collection));
    if (others.size >= MAX_COLLECTIONS && !others.has(collection)) {
      throw invalid("TOO_MANY_SUBSCRIPTIONS", `At most ${MAX_COLLECTIONS} collections in one client`);
    }
    const subscription = { collection, handler, options, from: null, ready: false, generation: 0 };
    this.#subscriptions.add(subscription);
    this.#denied.delete(collection);
    if (this.#phase === "halted") this.#phase = "idle"; // whoever subscribes wants another try
    this.#schedule();
    return () => void (this.#subscriptions.delete(subscription) && this.#schedule());
  }

  close() {
    this.#subscriptions.clear();
    this.#rest("the client was closed");
    this.#phase = "closed";
  }

  // What is subscribed is compared with what the server was asked for after the caller's present turn.
  #schedule() {
    if (this.#scheduled) return;
    this.#scheduled = true;
    queueMicrotask(() => {
      this.#scheduled = false;
      if (this.#subscriptions.size === 0) this.#rest("nothing is subscribed");
      else if (this.#phase === "idle") void this.#connect();
      else if (this.#phase === "open") this.#align();
    });
  }

  #wanted() {
    const names = [...this.#subscriptions].map(({ collection }) => collection);
    return [...new Set(names)].filter((name) => !this.#denied.has(name));
  }

  #of(collection) {
    return [...this.#subscriptions].filter((subscription) => subscription.collection === collection);
  }

  // --- connecting --------------------------------------------------------------------------------

  async #connect() {
    this.#end();
    const generation = this.#generation;
    this.#phase = "connecting";
    this.#since = Date.now();
    this.#watch(true);
    this.#show({ state: "connecting" });
    this.#timers.set("connect", REQUEST_MS, () => this.#lost("no token came"), { background: false });
    try {
      const fresh = !this.#token || Date.now() >= this.#token.renewAt(this.#marginMs);
      const token = fresh || !this.#wanted().every(this.#token.covers) ? await this.#newToken() : this.#token;
      const Socket = this.#Socket ?? globalThis.WebSocket ?? (await import("./websocket-node.js")).WebSocket;
      if (generation === this.#generation) this.#open(Socket, token);
    } catch (error) {
      if (generation !== this.#generation) return;
      // What is no PaperDBError has nothing to do with the network: no WebSocket class, a URL it does not take.
      if (isFinal(error) || !(error instanceof PaperDBError)) this.#halt(error);
      else this.#lost(error.message, error.retryAfter);
    }
  }

  /** A token for all that is subscribed. Rejects with a PaperDBError, also if it covers nothing of that. */
  async #newToken() {
    const generation = this.#generation;
    this.#abort = new AbortController();
    this.#denied.clear();
    const wanted = this.#wanted();
    const token = new Token(await this.#obtain([...new Set([...wanted, ...this.#joined.keys()])], this.#abort));
    if (generation !== this.#generation) return token;
    this.#token = token;
    const uncovered = wanted.filter((name) => !token.covers(name));
    const error = (name) => {
      const message = `The token does not cover the collection '${name}'`;
      return new PaperDBError(message, { status: 403, code: "NOT_IN_TOKEN" });
    };
    if (uncovered.length && uncovered.length === wanted.length) throw error(uncovered[0]);
    for (const name of uncovered) this.#deny(name, error(name));
    return token;
  }

  #deny(name, error) {
    this.#denied.add(name);
    for (const subscription of this.#of(name)) {
      Object.assign(subscription, { from: null, ready: false }); // should it be covered again, it begins anew
      this.#queue(() => this.#report(error, subscription));
    }
  }

  #open(Socket, token) {
    const wanted = this.#wanted().filter(token.covers);
    const begun = wanted.filter((name) => this.#of(name).some(({ from }) => from !== null));
    if (begun.length === 0) this.#cursor = null;
    // Those that the server has not heard of yet are added once it is ready: they begin then.
    const names = this.#cursor === null ? wanted : begun;
    this.#joined = new Map(names.map((name) => [name, { confirmed: true }]));
    const query = new URLSearchParams({ since: this.#cursor ?? "now", collections: names.join() });
    const socket = new Socket(`${this.#url}/?${query}`, ["paperdb.v1", `bearer.${token.reveal()}`]);
    socket.onmessage = ({ data }) => this.#socket === socket && this.#receive(data);
    socket.onclose = ({ code, reason }) => this.#socket === socket && this.#closed(code, reason);
    // Node 20's own WebSocket says no more than this of a handshake that fails: "close" never follows.
    socket.onerror = (event) => {
      if (this.#socket !== socket || this.#phase !== "connecting") return;
      this.#closed(1006, event?.status ? `HTTP ${event.status}` : "");
    };
    this.#socket = socket;
    this.#timers.set("connect", CONNECT_MS, () => this.#lost("connecting took too long"), { background: false });
  }

  // --- the end of a connection -------------------------------------------------------------------

  #closed(code, reason) {
    const policy = CLOSE_CODES[code] ?? (code >= 4400 && code < 4500 ? "stop" : "reconnect");
    const text = `closed with ${code} ${reason}`.trim();
    // Before `ready`: a browser does not say what a handshake was refused for. Another token will tell.
    if (policy === "new token" || this.#phase === "connecting") this.#token = null;
    if (policy !== "stop") return this.#lost(text);
    const [status, name] = code === 4403 ? [403, "ACCESS_LOST"] : [400, "CLOSED"];
    return this.#halt(new PaperDBError(reason || text, { status, code: name, closeCode: code }));
  }

  /** Drop what there is of a connection, quietly. */
  #end() {
    this.#generation += 1;
    const socket = this.#socket;
    this.#socket = null;
    this.#abort?.abort();
    this.#abort = null;
    this.#timers.clear("connect", "retry", "renew", "pong", "quiet");
    this.#replies.clear();
    this.#joined.clear();
    this.#renewing = false;
    if (socket === null) return;
    socket.onmessage = socket.onclose = null;
    socket.onerror = () => {};
    socket.close();
  }

  #lost(reason, retryAfter = 0) {
    this.#end();
    this.#phase = "waiting";
    const wait = Math.min(retryAfter * 1000, LONGEST_WAIT_MS);
    const delay = Math.random() * Math.min(MAX_DELAY_MS, FIRST_DELAY_MS * 2 ** this.#attempt++) + wait;
    this.#timers.set("retry", delay, () => void this.#connect(), { background: false });
    this.#show({ state: "offline", reason, retryIn: delay / 1000 });
  }

  #halt(error) {
    this.#end();
    this.#phase = "halted";
    this.#watch(false);
    this.#show({ state: "closed", reason: error.message, code: error.code });
    for (const subscription of this.#subscriptions) this.#queue(() => this.#report(error, subscription));
  }

  #rest(reason) {
    if (this.#phase === "closed") return;
    const wasIdle = this.#phase === "idle";
    this.#end();
    this.#watch(false);
    this.#phase = "idle";
    this.#attempt = 0;
    this.#cursor = null;
    if (!wasIdle || reason !== this.#status.reason) this.#show({ state: "closed", reason });
  }

  // --- messages ----------------------------------------------------------------------------------

  #receive(text) {
    this.#heard = Date.now();
    this.#timers.clear("pong");
    this.#flush();
    if (this.#socket === null) return;
    let message;
    try {
      message = JSON.parse(text);
    } catch {
      this.#lost("what the server sent is no JSON");
      return;
    }
    if (message.type === "ready") this.#ready(message.seq);
    else if (message.type === "gap") this.#gap(message);
    else if (CHANGES.has(message.type)) this.#change(message, text);
    else this.#reply(message);
  }

  #ready(head) {
    this.#timers.clear("connect");
    this.#phase = "open";
    this.#head = head;
    this.#cursor ??= head;
    this.#planRenewal();
    this.#align();
    if (this.#cursor === head) this.#live();
    else this.#show({ state: "catching up" });
    this.#awaitQuiet();
  }

  #live() {
    this.#attempt = 0;
    this.#timers.clear("quiet");
    this.#show({ state: "live" });
  }

  #awaitQuiet() {
    if (this.#status.state === "catching up") this.#timers.set("quiet", QUIET_MS, () => this.#live());
  }

  #gap({ since, oldest }) {
    this.#cursor = this.#head; // the server goes on from there
    this.#show({ state: "gap", since, oldest });
    for (const subscription of [...this.#subscriptions]) {
      if (subscription.from === null) continue;
      subscription.from = this.#head; // which is lower than before if the server was set back to a backup
      if (subscription.generation !== this.#generation) this.#defer(subscription, "onGap", { since, oldest });
    }
    this.#live();
  }

  #change({ type, collection, data, seq }, text) {
    if (seq <= this.#cursor) return;
    this.#cursor = seq;
    let given = false;
    for (const subscription of this.#of(collection)) {
      if (subscription.from === null || seq <= subscription.from || !this.#subscriptions.has(subscription)) continue;
      // Each handler has a copy of its own: what one does to it harms no other.
      const own = given ? JSON.parse(text).data : data;
      given = true;
      this.#run(subscription, subscription.handler, { type, collection, data: own, seq });
    }
    if (this.#status.state === "catching up" && seq >= this.#head) this.#live();
    else this.#awaitQuiet();
  }

  #ask(action, fields, onReply = () => {}) {
    const ref = ++this.#refs;
    this.#replies.set(ref, onReply);
    this.#socket.send(JSON.stringify({ action, ...fields, ref }));
  }

  #reply(message) {
    const onReply = this.#replies.get(message.ref);
    this.#replies.delete(message.ref);
    const { type, code, message: text } = message;
    onReply?.(type === "error" ? new PaperDBError(text, { status: 400, code }) : null);
  }

  // --- what is subscribed ------------------------------------------------------------------------

  /** Make the server's idea of what we want ours. */
  #align() {
    const wanted = this.#wanted();
    this.#leaveAll((name) => !wanted.includes(name));
    for (const [name, { confirmed }] of this.#joined) if (confirmed) this.#begin(name);
    const missing = wanted.filter((name) => !this.#joined.has(name));
    if (missing.length === 0 || this.#renewing) return;
    if (missing.every(this.#token.covers)) for (const name of missing) this.#join(name);
    else void this.#renew();
  }

  #join(name) {
    const joining = { confirmed: false };
    this.#joined.set(name, joining);
    this.#floor(name); // from when it is sent: changes may come before the reply does
    this.#ask("subscribe", { collection: name }, (error) => {
      if (this.#joined.get(name) !== joining) return; // left, or left and joined again, meanwhile
      joining.confirmed = true;
      if (!error) return this.#begin(name);
      this.#joined.delete(name);
      return this.#deny(name, error);
    });
  }

  #leaveAll(unwanted) {
    for (const name of [...this.#joined.keys()].filter(unwanted)) {
      this.#joined.delete(name);
      this.#ask("unsubscribe", { collection: name });
    }
  }

  /** Handlers that are new see what comes after all that we know to be committed. */
  #floor(name) {
    const fresh = this.#of(name).filter(({ from }) => from === null);
    for (const subscription of fresh) {
      subscription.from = Math.max(this.#head, this.#cursor);
      subscription.generation = this.#generation;
    }
  }

  #begin(name) {
    this.#floor(name);
    for (const subscription of this.#of(name).filter(({ ready }) => !ready)) {
      subscription.ready = true;
      this.#defer(subscription, "onReady");
    }
  }

  #planRenewal(delay = this.#token.renewAt(this.#marginMs) - Date.now()) {
    this.#timers.set("renew", delay, () => void this.#renew());
  }

  /** A new token for the connection that we have. What is to be subscribed waits for it. */
  async #renew() {
    this.#renewing = true;
    this.#timers.clear("renew");
    const generation = this.#generation;
    try {
      const token = await this.#newToken();
      if (generation !== this.#generation) return;
      this.#leaveAll((name) => !token.covers(name));
      this.#ask("auth", { token: token.reveal() }, (error) => {
        if (error) return this.#lost(`the new token was refused: ${error.code}`);
        this.#renewing = false;
        this.#planRenewal();
        return this.#align();
      });
    } catch (error) {
      if (generation !== this.#generation) return;
      this.#renewing = false;
      if (isFinal(error)) this.#halt(error);
      else this.#planRenewal(FIRST_DELAY_MS + (Math.random() * MAX_DELAY_MS) / 3);
    }
  }

  // --- waking up ---------------------------------------------------------------------------------

  #events = {
    online: () => this.#wake(),
    pageshow: () => this.#wake(),
    visibilitychange: () => globalThis.document?.visibilityState === "visible" && this.#wake(),
    offline: () => ["open", "connecting"].includes(this.#phase) && this.#lost("the network is offline"),
  };

  #watch(on) {
    if (on === this.#timers.has("tick")) return;
    for (const [name, listener] of Object.entries(this.#events)) {
      const target = name === "visibilitychange" ? globalThis.document : globalThis;
      target?.[on ? "addEventListener" : "removeEventListener"]?.(name, listener);
    }
    this.#ticked = Date.now();
    if (on) this.#timers.set("tick", TICK_MS, () => this.#tick());
    else this.#timers.clear("tick");
  }

  #tick() {
    const now = Date.now();
    const late = now - this.#ticked - TICK_MS;
    this.#ticked = now;
    this.#timers.set("tick", TICK_MS, () => this.#tick());
    if (Math.abs(late) > CLOCK_JUMP_MS) this.#wake();
    else if (this.#phase === "open" && now - this.#heard > SILENCE_MS) this.#probe(PONG_MS);
  }

  /** Something happened after which a connection is often dead without knowing. */
  #wake() {
    const stuck = this.#phase === "connecting" && Math.abs(Date.now() - this.#since) > PONG_AFTER_WAKING_MS;
    if (this.#phase === "open") this.#probe(PONG_AFTER_WAKING_MS);
    else if (this.#phase === "waiting" || stuck) this.#again();
  }

  #again() {
    this.#attempt = 0;
    void this.#connect();
  }

  #probe(ms) {
    if (this.#timers.has("pong")) return;
    this.#ask("ping", {});
    const due = Date.now() + ms;
    // If we come late ourselves, the answer may lie unread: one more look.
    const look = () => (Date.now() > due + 500 ? this.#timers.set("pong", 1000, () => this.#again()) : this.#again());
    this.#timers.set("pong", ms, look);
  }

  // --- other people's functions ------------------------------------------------------------------

  #show(status) {
    if (status.state === "live" && this.#status.state === "live") return;
    this.#status = Object.freeze(status);
    for (const listener of this.#listeners) this.#queue(() => this.#run(null, listener, status));
  }

  #defer(subscription, name, ...args) {
    const run = subscription.options[name];
    if (run) this.#queue(() => this.#subscriptions.has(subscription) && this.#run(subscription, run, ...args));
  }

  /** Call it in a microtask, or before the next message, whichever comes first. */
  #queue(call) {
    if (this.#later.push(call) === 1) queueMicrotask(() => this.#flush());
  }

  #flush() {
    for (const call of this.#later.splice(0)) call();
  }

  #run(subscription, run, ...args) {
    const failed = (error) => this.#report(error, subscription);
    try {
      const result = run(...args);
      if (typeof result?.then === "function") Promise.resolve(result).catch(failed);
    } catch (error) {
      failed(error);
    }
  }

  #report(error, subscription) {
    try {
      const { onError } = subscription?.options ?? {};
      if (onError) return void onError(error);
    } catch (another) {
      console.error("paperdb: an onError function failed:", another);
    }
    const of = subscription ? `the subscription to '${subscription.collection}'` : "a status listener";
    return console.error(`paperdb: ${of}:`, error);
  }
}

