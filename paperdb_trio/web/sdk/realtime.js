/**
 * One WebSocket for all subscriptions of a client: tokens, cursor, reconnection.
 *
 * Law: knows nothing of REST; it is given a way to obtain tokens. A token goes into the subprotocol and the
 * `auth` action only. Functions of the user's are called when the state is whole, so that they may call back.
 *
 * Invariant: every change with a seq up to `#cursor` has been given to each handler that was to see it, once,
 * in order of seq; none after it has. A subscription begins when the server has heard of it, and has said at
 * which seq: it sees the changes with a seq over that, its `from`, and none of before.
 */

import { Calls } from "./calls.js";
import { AGAIN, NEW_TOKEN, STOP, UNKNOWN, closed, failed } from "./endings.js";
import { PaperDBError, checkCollection, invalid, isFinal } from "./errors.js";
import { Timers } from "./timers.js";
import { Token } from "./token.js";

/** Collections of one token and of one connection, and the characters of their names; the server's limits. */
const MAX_COLLECTIONS = 100;
const MAX_NAMES_LENGTH = 4096;
/** What a token may take to come, whoever makes it. */
const TOKEN_MS = 30_000;
const CONNECT_MS = 10_000;
/** Backoff with full jitter: a random part of the first, doubled at each failure up to the second. */
const FIRST_DELAY_MS = 250;
const MAX_DELAY_MS = 15_000;
/** How long a connection must have been live until its end is a first failure again, and not one more. */
const GOOD_MS = 10_000;
/** The same for tokens that do not come while the connection goes on with the one that it has. */
const FIRST_RENEWAL_MS = 2_000;
const MAX_RENEWAL_MS = 30_000;
/** The types of messages that are changes; everything else answers us, or tells of the connection. */
const CHANGES = new Set(["insert", "update", "delete"]);
/** The longest that a server's `Retry-After` is heeded. */
const LONGEST_WAIT_MS = 60_000;
const TICK_MS = 5_000;
/** Two ticks this much further apart than they should be: the machine slept, or its clock was set. */
const CLOCK_JUMP_MS = 5_000;
/** How long we go without a change until we ask. The server's own pings cannot be seen from JavaScript, and its
 * answer has a cursor: without one, a quiet collection's would end up older than a busy database's log. */
const SILENCE_MS = 25_000;
const PONG_MS = 10_000;
const PONG_AFTER_WAKING_MS = 3_000;
/** The server does not say when it has caught up with changes of no interest: this much silence says so. */
const QUIET_MS = 1_000;

export class Realtime {
  #url;
  #obtain;
  #Socket;
  #marginMs;
  #subscriptions = new Set();
  #listeners = new Set();
  #status = { state: "closed", reason: "nothing is subscribed" };
  #phase = "idle"; // idle, connecting, open (ready has come), waiting (to connect again), halted, closed
  #attempt = 0; // failures since it was last live for a while
  #generation = 0; // of connections; what was begun for an earlier one is dropped
  #since = 0; // when this connection was begun, ms
  #heard = 0; // when the last message came that says how far we are, ms
  #ticked = 0;
  #served = false; // a server was ready once: it can be reached, whatever is wrong now
  #told = false; // onError knows why the present attempts fail
  #cursor = null; // seq up to which handlers have been given everything, or the head where we began
  #head = 0; // the log's head when this connection was made
  #joined = new Map(); // collections that the server was asked for on this connection → the asking's identity
  #denied = new Set(); // collections that the application's token does not cover
  #socket = null;
  #token = null;
  #isFresh = false; // the token was made for this connection
  #haste = 0; // tokens in a row that the clocks wanted renewed too soon
  #renewing = false;
  #failures = 0; // of renewals, in a row
  #lacked = new Set(); // what was wanted when the last one failed
  #warning = {}; // of the connection that goes on meanwhile, for the status
  #abort = null;
  #refs = 0;
  #replies = new Map();
  #timers = new Timers();
  #calls = new Calls();
  #scheduled = false;

  /** `obtain(collections, abort)` resolves to a token's text. `Socket`: a WebSocket class, or undefined. */
  constructor({ url, obtain, Socket, tokenMarginSeconds }) {
    // Under a path, too: the server is at `/` there, or at `/realtime`.
    this.#url = url.endsWith("/realtime") ? url : `${url}/`;
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
    this.#checkRoom(collection);
    // `from`: it sees what comes after this seq; null until it is known. `asked`, `began`: generations.
    const subscription = { collection, handler, options, from: null, asked: 0, began: 0, early: [] };
    this.#subscriptions.add(subscription);
    this.#denied.delete(collection);
    // Whoever subscribes wants another try; not without pause, if it is an onError that does so.
    if (this.#phase === "halted") this.#lost(this.#status.reason);
    this.#schedule();
    return () => void (this.#subscriptions.delete(subscription) && this.#schedule());
  }

  #checkRoom(collection) {
    const names = new Set([...this.#subscriptions].map((other) => other.collection)).add(collection);
    const { length } = [...names].join("");
    if (names.size > MAX_COLLECTIONS) {
      throw invalid("TOO_MANY_SUBSCRIPTIONS", `At most ${MAX_COLLECTIONS} collections in one client`);
    }
    if (length > MAX_NAMES_LENGTH) {
      const message = `The names of a client's collections may have ${MAX_NAMES_LENGTH} characters in all`;
      throw invalid("TOO_MANY_SUBSCRIPTIONS", `${message}; with '${collection}' they have ${length}`);
    }
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
    try {
      const good = this.#token !== null && Date.now() < this.#token.renewAt;
      this.#isFresh = !good || !this.#wanted().every(this.#token.covers);
      const token = this.#isFresh ? await this.#newToken() : this.#token;
      const Socket = this.#Socket ?? globalThis.WebSocket ?? (await import("./websocket-node.js")).WebSocket;
      if (generation === this.#generation) this.#open(Socket, token);
    } catch (error) {
      if (generation !== this.#generation) return;
      // What is no PaperDBError has nothing to do with the network: no WebSocket class, a URL it does not take.
      const then = isFinal(error) || !(error instanceof PaperDBError) ? STOP : AGAIN;
      this.#ended({ then, text: error.message, error, retryAfter: error.retryAfter });
    }
  }

  #open(Socket, token) {
    this.#token = token;
    const wanted = this.#wanted().filter(token.covers);
    const begun = wanted.filter((name) => this.#of(name).some(({ from }) => from !== null));
    if (begun.length === 0) this.#cursor = null;
    // Those that the server has not heard of yet are added once it is ready: they begin then.
    const names = this.#cursor === null ? wanted : begun;
    this.#joined = new Map(names.map((name) => [name, {}]));
    for (const name of names) this.#take(name);
    // Names travel once: those in the token need not be in the URL, of which a proxy may take no more than 8 KB.
    const narrowed = token.isFor(names) ? "" : `&collections=${names.join()}`;
    const url = `${this.#url}?since=${this.#cursor ?? "now"}${narrowed}&errors=close`;
    const socket = new Socket(url, ["paperdb.v1", `bearer.${token.reveal()}`]);
    socket.onmessage = ({ data }) => this.#socket === socket && this.#receive(data);
    socket.onclose = ({ code, reason }) => this.#socket === socket && this.#ended(closed(code, reason));
    // Node 20's own WebSocket says no more than this of a handshake that fails: "close" never follows.
    socket.onerror = (event) => {
      if (this.#socket === socket && this.#phase === "connecting") this.#ended(failed(event));
    };
    this.#socket = socket;
    this.#timers.set("connect", CONNECT_MS, () => this.#lost("connecting took too long"), { background: false });
  }

  // --- tokens ------------------------------------------------------------------------------------

  /** A token for all that is subscribed. Rejects with a PaperDBError, also if it covers nothing of that. */
  async #newToken() {
    const generation = this.#generation;
    this.#denied.clear();
    const wanted = this.#wanted();
    const text = await this.#inTime([...new Set([...wanted, ...this.#joined.keys()])]);
    const token = new Token(text, this.#marginMs, this.#haste);
    if (generation !== this.#generation) return token;
    this.#haste = token.isHasty ? this.#haste + 1 : 0;
    const uncovered = wanted.filter((name) => !token.covers(name));
    const error = (name) => {
      const message = `The token does not cover the collection '${name}'`;
      return new PaperDBError(message, { status: 403, code: "NOT_IN_TOKEN" });
    };
    if (uncovered.length && uncovered.length === wanted.length) throw error(uncovered[0]);
    for (const name of uncovered) this.#deny(name, error(name));
    return token;
  }

  /** The text of a token for these. Somebody else's function may never settle. */
  #inTime(collections) {
    const generation = this.#generation;
    const abort = (this.#abort = new AbortController());
    return new Promise((resolve, reject) => {
      let isLate = false;
      const giveUp = () => {
        isLate = true;
        abort.abort();
        reject(new PaperDBError(`no token came within ${TOKEN_MS / 1000} s`, { code: "TOKEN_UNAVAILABLE" }));
      };
      this.#timers.set("token", TOKEN_MS, giveUp, { background: this.#phase === "open" });
      const stop = () => isLate || generation !== this.#generation || this.#timers.clear("token");
      this.#obtain(collections, abort).then(resolve, reject).finally(stop);
    });
  }

  #deny(name, error) {
    this.#denied.add(name);
    for (const subscription of this.#of(name)) {
      Object.assign(subscription, { from: null, asked: 0, early: [] }); // covered again, it begins anew
      this.#calls.queue(() => this.#calls.report(error, subscription));
    }
  }

  #planRenewal() {
    this.#timers.set("renew", this.#token.renewAt - Date.now(), () => void this.#renew());
  }

  /** A new token for the connection that we have. What only that one covers waits for it. */
  async #renew() {
    this.#renewing = true;
    this.#timers.clear("renew");
    const generation = this.#generation;
    try {
      let token;
      do {
        token = await this.#newToken();
        if (generation !== this.#generation) return;
        // Once more, if something was joined meanwhile which the token was not asked to cover.
      } while (!this.#wanted().every((name) => token.covers(name) || !this.#joined.has(name)));
      this.#leaveAll((name) => !token.covers(name));
      this.#token = token;
      this.#ask("auth", { token: token.reveal() }, (error) => this.#renewed(error));
    } catch (error) {
      if (generation !== this.#generation) return;
      this.#renewing = false;
      if (isFinal(error)) return this.#halt(error);
      const longest = Math.min(MAX_RENEWAL_MS, FIRST_RENEWAL_MS * 2 ** this.#failures++);
      this.#timers.set("renew", (longest * (1 + Math.random())) / 2, () => void this.#renew());
      this.#lacked = new Set(this.#wanted());
      this.#warn({ reason: `the token could not be renewed: ${error.message}` });
    }
  }

  #renewed(error) {
    if (error) {
      this.#token = null;
      return this.#lost(`the new token was refused: ${error.code}`);
    }
    this.#renewing = false;
    this.#failures = 0;
    this.#warn({});
    this.#planRenewal();
    return this.#align();
  }

  /** The connection goes on, with something that the status should say. */
  #warn(warning) {
    if (this.#warning.reason === warning.reason) return;
    this.#warning = warning;
    this.#show({ state: this.#status.state, ...warning });
  }

  // --- the end of a connection -------------------------------------------------------------------

  #ended({ then, text, error, retryAfter }) {
    const connecting = this.#phase === "connecting";
    const badCertificate = error.code === "CERTIFICATE";
    if (then === NEW_TOKEN || (connecting && then === UNKNOWN)) this.#token = null;
    if (then === STOP || (badCertificate && !this.#served)) return this.#halt(error);
    if (badCertificate || (connecting && then === NEW_TOKEN && this.#isFresh)) this.#tell(error);
    return this.#lost(text, retryAfter);
  }

  /** Say why it fails, once, though it is tried again: it may be for somebody to mend. */
  #tell(error) {
    if (this.#told) return;
    this.#told = true;
    this.#reportToAll(error);
  }

  /** Drop what there is of a connection, quietly. */
  #end() {
    this.#generation += 1;
    const socket = this.#socket;
    this.#socket = null;
    this.#abort?.abort();
    this.#abort = null;
    this.#timers.clear("connect", "token", "retry", "renew", "pong", "quiet", "good");
    this.#replies.clear();
    this.#joined.clear();
    for (const subscription of this.#subscriptions) subscription.early = [];
    this.#renewing = false;
    this.#failures = 0;
    this.#warning = {};
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
    this.#token = null;
    this.#watch(false);
    this.#show({ state: "closed", reason: error.message, code: error.code });
    this.#reportToAll(error);
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
    this.#timers.clear("pong");
    this.#calls.flush();
    if (this.#socket === null) return;
    let message = null;
    try {
      message = JSON.parse(text);
    } catch {
      // which is as good as null
    }
    if (typeof message?.type !== "string") {
      this.#lost("the server sent something that is not one of its messages");
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
    this.#heard = Date.now();
    this.#served = true;
    this.#told = false;
    this.#head = head;
    this.#cursor ??= head;
    this.#planRenewal();
    this.#begin([...this.#subscriptions].filter(({ asked }) => asked === this.#generation), head);
    this.#align();
    if (this.#cursor === head) this.#live();
    else this.#show({ state: "catching up" });
    this.#awaitQuiet();
  }

  #live() {
    this.#timers.clear("quiet");
    if (!this.#timers.has("good")) this.#timers.set("good", GOOD_MS, () => (this.#attempt = 0));
    this.#show({ state: "live", ...this.#warning });
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
      if (subscription.began !== this.#generation) this.#defer(subscription, "onGap", { since, oldest });
    }
    this.#live();
  }

  #change({ type, collection, data, seq }, text) {
    this.#heard = Date.now();
    if (seq <= this.#cursor) return;
    this.#cursor = seq;
    let given = false;
    for (const subscription of this.#of(collection)) {
      const { from, asked, early, handler } = subscription;
      if (from === null ? asked !== this.#generation : seq <= from) continue;
      if (!this.#subscriptions.has(subscription)) continue;
      // Each handler has a copy of its own: what one does to it harms no other.
      const event = { type, collection, data: given ? JSON.parse(text).data : data, seq };
      given = true;
      if (from === null) early.push(event); // until the server says where it begins
      else this.#calls.run(subscription, handler, event);
    }
    if (this.#status.state === "catching up" && seq >= this.#head) this.#live();
    else this.#awaitQuiet();
  }

  /** Everything up to `seq` has been sent. */
  #pong(seq) {
    this.#heard = Date.now();
    if (seq > this.#cursor) this.#cursor = seq;
    if (this.#status.state === "catching up" && this.#cursor >= this.#head) this.#live();
  }

  /** `onReply(error, message)`: `error` is null unless the message is one. */
  #ask(action, fields, onReply = () => {}) {
    const ref = ++this.#refs;
    this.#replies.set(ref, onReply);
    this.#socket.send(JSON.stringify({ action, ...fields, ref }));
  }

  #reply(message) {
    const onReply = this.#replies.get(message.ref);
    this.#replies.delete(message.ref);
    const { type, code, message: text } = message;
    onReply?.(type === "error" ? new PaperDBError(text, { status: 400, code }) : null, message);
  }

  // --- what is subscribed ------------------------------------------------------------------------

  /** Make the server's idea of what we want ours. */
  #align() {
    const wanted = this.#wanted();
    this.#leaveAll((name) => !wanted.includes(name));
    const isNew = ({ asked }) => asked !== this.#generation;
    const missing = wanted.filter((name) => !this.#joined.has(name) || this.#of(name).some(isNew));
    const covered = missing.filter(this.#token.covers);
    for (const name of covered) this.#join(name);
    if (covered.length === missing.length || this.#renewing) return;
    // After a failure there will be another try: only what is new is reason for one at once.
    const isAwaited = (name) => this.#token.covers(name) || this.#lacked.has(name);
    if (this.#failures === 0 || !missing.every(isAwaited)) void this.#renew();
  }

  /** Ask for a collection, also if the server sends it already: its reply says where new handlers begin. */
  #join(name) {
    const joining = this.#joined.get(name) ?? {};
    this.#joined.set(name, joining);
    const taken = this.#take(name);
    this.#ask("subscribe", { collection: name }, (error, { seq = this.#cursor }) => {
      if (this.#joined.get(name) !== joining) return; // left, or left and joined again, meanwhile
      if (!error) return this.#begin(taken, Math.max(seq, this.#head));
      this.#joined.delete(name);
      return this.#deny(name, error);
    });
  }

  /** The handlers of a collection that this connection is asked for from now on. */
  #take(name) {
    const taken = this.#of(name).filter(({ asked }) => asked !== this.#generation);
    for (const subscription of taken) subscription.asked = this.#generation;
    return taken;
  }

  #leaveAll(unwanted) {
    for (const name of [...this.#joined.keys()].filter(unwanted)) {
      this.#joined.delete(name);
      this.#ask("unsubscribe", { collection: name });
    }
  }

  /** Those that are new see what comes after `seq`. */
  #begin(subscriptions, seq) {
    for (const subscription of subscriptions.filter(({ from }) => from === null)) {
      const { early, handler } = subscription;
      Object.assign(subscription, { from: seq, began: this.#generation, early: [] });
      this.#defer(subscription, "onReady");
      for (const event of early.filter((event) => event.seq > seq)) this.#later(subscription, handler, event);
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
    this.#ask("ping", {}, (error, { seq }) => this.#pong(seq));
    const due = Date.now() + ms;
    // If we come late ourselves, the answer may lie unread: one more look.
    const look = () => (Date.now() > due + 500 ? this.#timers.set("pong", 1000, () => this.#again()) : this.#again());
    this.#timers.set("pong", ms, look);
  }

  // --- other people's functions ------------------------------------------------------------------

  #reportToAll(error) {
    for (const subscription of this.#subscriptions) this.#calls.queue(() => this.#calls.report(error, subscription));
  }

  #show(status) {
    if (status.state === "live" && this.#status.state === "live" && status.reason === this.#status.reason) return;
    this.#status = Object.freeze(status);
    for (const listener of this.#listeners) this.#calls.queue(() => this.#calls.run(null, listener, status));
  }

  #defer(subscription, name, ...args) {
    const run = subscription.options[name];
    if (run) this.#later(subscription, run, ...args);
  }

  #later(subscription, run, ...args) {
    this.#calls.queue(() => this.#subscriptions.has(subscription) && this.#calls.run(subscription, run, ...args));
  }
}
