/**
 * One connection for all subscriptions of a client: when it is made, resumed, renewed and given up.
 *
 * Law: knows nothing of REST. Functions of the user's are called when the state is whole, so that they may call back.
 *
 * Invariant: every change with a seq up to `#cursor` has been given to each handler that was to see it, once,
 * in order of seq; none after it has. Live queries have cursors of their own (queries.js).
 */

import { Calls } from "./calls.js";
import { Connection, socketClass } from "./connection.js";
import { AGAIN, NEW_TOKEN, STOP, UNKNOWN } from "./endings.js";
import { PaperDBError, isFinal, uncovered } from "./errors.js";
import { Queries } from "./queries.js";
import { Ruled, following } from "./ruled.js";
import { Status } from "./status.js";
import { Subscriptions } from "./subscriptions.js";
import { Timers } from "./timers.js";
import { TokenSource } from "./token-source.js";
import { Waking } from "./waking.js";

/** Backoff with full jitter: a random part of the first, doubled at each failure up to the second. */
const FIRST_DELAY_MS = 250;
const MAX_DELAY_MS = 15_000;
/** How long a connection must have been live until its end is a first failure again, and not one more. */
const GOOD_MS = 10_000;
/** The same for renewals that fail while the connection keeps its current token. */
const FIRST_RENEWAL_MS = 2_000;
const MAX_RENEWAL_MS = 30_000;
/** The longest that a server's `Retry-After` is heeded. */
const LONGEST_WAIT_MS = 60_000;
/** How long we go without a change until we ask. The server's own pings cannot be seen from JavaScript, and its
 * pong has a cursor: without one, a quiet collection's would end up older than a busy database's log. */
const SILENCE_MS = 25_000;
const PONG_MS = 10_000;
const PONG_AFTER_WAKING_MS = 3_000;
/** The server does not say when it has caught up with changes of no interest: this much silence says so. */
const QUIET_MS = 1_000;
/** How long until a server that has not sent all to the live queries yet is asked again how far it is. */
const BEHIND_MS = 200;
/** The types of messages that are changes; everything else replies to us, or tells of the connection. */
const CHANGES = new Set(["insert", "update", "delete"]);

export class Realtime {
  #url;
  #Socket;
  #tokens;
  #calls = new Calls();
  #subscriptions = new Subscriptions(this.#calls);
  #queries = new Queries(() => this.#timers.set("behind", BEHIND_MS, () => this.#queries.sync()));
  #ruled = new Ruled(this.#subscriptions, this.#queries);
  #status = new Status(this.#calls);
  #timers = new Timers();
  #waking = new Waking({
    onWake: () => this.#wake(),
    onOffline: () => ["open", "connecting"].includes(this.#phase) && this.#lost("the network is offline"),
    onTick: (now) => this.#phase === "open" && now - this.#heard > SILENCE_MS && this.#probe(PONG_MS),
  });
  #phase = "idle"; // idle, connecting, open (ready has come), waiting (to connect again), halted, closed
  #scheduled = false;
  #attempt = 0; // failures since it was last live for a while
  #generation = 0; // of connections; what was begun for an earlier one is dropped
  #since = 0; // when this connection was begun, ms
  #heard = 0; // when the last message came that says how far we are, ms
  #served = false; // a server was ready once, so it can be reached
  #told = false; // onError knows why the present attempts fail
  #cursor = null; // seq up to which handlers have been given everything, or the head where we began
  #head = 0; // the log's head when this connection was made
  #connection = null;
  #token = null;
  #isFresh = false; // the token was made for this connection
  #renewing = false;
  #failures = 0; // of renewals, in a row
  #lacked = new Set(); // what was wanted when the last one failed
  #warning = {}; // for the status of a connection that stays open

  /** `obtain(collections, abort)` resolves to a token's text. `Socket`: a WebSocket class, or undefined. */
  constructor({ url, obtain, Socket, tokenMarginSeconds }) {
    // Under a path, too: the server is at `/` there, or at `/realtime`.
    this.#url = url.endsWith("/realtime") ? url : `${url}/`;
    this.#Socket = Socket;
    this.#tokens = new TokenSource(obtain, tokenMarginSeconds * 1000);
  }

  get status() {
    return this.#status.now;
  }

  onStatus(listener) {
    return this.#status.listen(listener);
  }

  subscribe(collection, handler, options = {}) {
    if (options.filter || options.select) return this.follow(...following(this.#calls, collection, handler, options));
    this.#check();
    const subscription = this.#subscriptions.add(collection, handler, options);
    this.#added();
    return () => void (this.#subscriptions.delete(subscription) && this.#schedule());
  }

  /** A live query; `owner`: see queries.js. Returns a function that ends it. */
  follow(about, owner) {
    this.#check();
    const query = this.#queries.add(about, owner);
    this.#added();
    return () => void (this.#queries.delete(query) && this.#schedule());
  }

  /** Call `onDone()` when the server has said how far it is; never, if the connection is lost before. */
  sync(onDone) {
    this.#queries.sync(onDone);
  }

  /** Have live queries told when they have everything up to `seq`, as they are of changes. */
  reach(seq) {
    this.#queries.reach(seq);
  }

  #check() {
    if (this.#phase === "closed") throw new PaperDBError("This client has been closed", { code: "CLOSED" });
    socketClass(this.#Socket);
  }

  #added() {
    // A new subscription is reason for another try; not without pause, if it is an onError that subscribes.
    if (this.#phase === "halted") this.#lost(this.status.reason);
    this.#schedule();
  }

  /** The collections that the token covers whole: under a rule, each is a query (ruled.js). */
  #plain(token) {
    return this.#subscriptions.wanted().filter((name) => token.covers(name) && !token.hasRule(name));
  }

  /** The collections that a token must cover. */
  #wanted() {
    return [...new Set([...this.#subscriptions.wanted(), ...this.#queries.wanted()])];
  }

  close() {
    this.#subscriptions.clear();
    this.#queries.clear();
    this.#ruled.clear();
    this.#rest("the client was closed");
    this.#phase = "closed";
  }

  // What is subscribed is compared with what the server was asked for after the caller's present turn.
  #schedule() {
    if (this.#scheduled) return;
    this.#scheduled = true;
    queueMicrotask(() => {
      this.#scheduled = false;
      if (this.#subscriptions.size === 0) this.#ruled.clear();
      if (this.#subscriptions.size + this.#queries.size === 0) this.#rest("nothing is subscribed");
      else if (this.#phase === "idle") void this.#connect();
      else if (this.#phase === "open") this.#align();
    });
  }

  // --- the beginning of a connection -------------------------------------------------------------

  async #connect() {
    this.#end();
    const generation = this.#generation;
    this.#phase = "connecting";
    this.#since = Date.now();
    this.#waking.watch(true);
    this.#status.show({ state: "connecting" });
    try {
      const good = this.#token !== null && Date.now() < this.#token.renewAt;
      this.#isFresh = !good || !this.#wanted().every(this.#token.covers);
      const token = this.#isFresh ? await this.#newToken() : this.#token;
      if (generation === this.#generation) this.#open(token);
    } catch (error) {
      if (generation !== this.#generation) return;
      // Any other error has nothing to do with the network: a URL that the WebSocket class does not take, say.
      const then = isFinal(error) || !(error instanceof PaperDBError) ? STOP : AGAIN;
      this.#ended({ then, text: error.message, error, retryAfter: error.retryAfter });
    }
  }

  #open(token) {
    this.#token = token;
    const wanted = this.#plain(token);
    const begun = wanted.filter((name) => this.#subscriptions.hasBegun(name));
    if (begun.length === 0) this.#cursor = null;
    // Those that the server has not heard of yet are added once it is ready: they begin then.
    const names = this.#cursor === null ? wanted : begun;
    // Names travel once: those in the token need not be in the URL, of which a proxy may take no more than 8 KB.
    const narrowed = token.isFor(names) ? "" : `&collections=${names.join()}`;
    const url = `${this.#url}?since=${this.#cursor ?? "now"}${narrowed}&errors=close`;
    this.#connection = new Connection(socketClass(this.#Socket), url, token, {
      onText: (text) => this.#receive(text),
      onEnd: (ending) => this.#ended(ending),
    });
    for (const name of names) {
      this.#connection.joined.set(name, {});
      this.#subscriptions.take(name, this.#generation);
    }
  }

  // --- tokens ------------------------------------------------------------------------------------

  /** A token for all that is subscribed. Rejects with a PaperDBError, also if it covers nothing of that. */
  async #newToken() {
    const generation = this.#generation;
    this.#subscriptions.allowAll();
    this.#queries.allowAll();
    const wanted = this.#wanted();
    const names = new Set([...wanted, ...(this.#connection?.joined.keys() ?? [])]);
    const token = await this.#tokens.get([...names], { background: this.#phase === "open" });
    if (generation !== this.#generation) return token;
    if (wanted.length && !wanted.some(token.covers)) throw uncovered(wanted[0]);
    const missing = wanted.filter((name) => !token.covers(name)); // what was added meanwhile was not asked for
    this.#subscriptions.denyUncovered(missing);
    this.#queries.denyUncovered(missing);
    return token;
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
      const isMissing = (name) => this.#connection.joined.has(name) && !token.covers(name);
      do {
        token = await this.#newToken();
        if (generation !== this.#generation) return;
        // Once more, if something was joined meanwhile which the token was not asked to cover.
      } while (this.#subscriptions.wanted().some(isMissing));
      this.#leaveAll((name) => !token.covers(name));
      this.#token = token;
      this.#connection.ask("auth", { token: token.reveal() }, (error) => this.#renewed(error));
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

  /** The connection stays open; the status gets a warning. */
  #warn(warning) {
    if (this.#warning.reason === warning.reason) return;
    this.#warning = warning;
    this.#status.show({ state: this.status.state, ...warning });
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

  /** Say why it fails, once, though it is tried again: the cause may need somebody to mend it. */
  #tell(error) {
    if (this.#told) return;
    this.#told = true;
    this.#subscriptions.report(error);
  }

  /** Drop the connection, if any, quietly. */
  #end(reason = "connecting") {
    this.#generation += 1;
    this.#tokens.cancel();
    this.#timers.clear("retry", "renew", "quiet", "good", "behind");
    this.#subscriptions.dropEarly();
    this.#renewing = false;
    this.#failures = 0;
    this.#warning = {};
    const connection = this.#connection;
    this.#connection = null;
    connection?.close();
    this.#queries.closed(reason);
  }

  #lost(reason, retryAfter = 0) {
    this.#end(reason);
    this.#phase = "waiting";
    const wait = Math.min(retryAfter * 1000, LONGEST_WAIT_MS);
    const delay = Math.random() * Math.min(MAX_DELAY_MS, FIRST_DELAY_MS * 2 ** this.#attempt++) + wait;
    this.#timers.set("retry", delay, () => void this.#connect(), { background: false });
    this.#status.show({ state: "offline", reason, retryIn: delay / 1000 });
  }

  #halt(error) {
    this.#end(error.message);
    this.#phase = "halted";
    this.#token = null;
    this.#waking.watch(false);
    this.#status.show({ state: "closed", reason: error.message, code: error.code });
    this.#subscriptions.report(error);
    this.#queries.report(error);
  }

  #rest(reason) {
    if (this.#phase === "closed") return;
    const wasIdle = this.#phase === "idle";
    this.#end();
    this.#waking.watch(false);
    this.#phase = "idle";
    this.#attempt = 0;
    this.#cursor = null;
    if (!wasIdle || reason !== this.status.reason) this.#status.show({ state: "closed", reason });
  }

  // --- messages ----------------------------------------------------------------------------------

  #receive(text) {
    this.#connection.heard();
    this.#calls.flush();
    if (this.#connection === null) return;
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
    if (message.ref !== undefined) this.#connection.reply(message);
    else if (message.type === "ready") this.#ready(message.seq);
    else if (message.type === "gap") this.#gap(message);
    else if (message.type === "progress") this.#pong(message);
    else this.#news(message, text);
  }

  #ready(head) {
    this.#connection.ready(head);
    this.#phase = "open";
    this.#heard = Date.now();
    this.#served = true;
    this.#told = false;
    this.#head = head;
    this.#cursor ??= head;
    this.#planRenewal();
    this.#subscriptions.beginAsked(head, this.#generation);
    this.#align();
    if (this.#cursor === head) this.#live();
    else this.#status.show({ state: "catching up" });
    this.#awaitQuiet();
  }

  #live() {
    this.#timers.clear("quiet");
    if (!this.#timers.has("good")) this.#timers.set("good", GOOD_MS, () => (this.#attempt = 0));
    this.#status.show({ state: "live", ...this.#warning });
  }

  #awaitQuiet() {
    if (this.status.state === "catching up") this.#timers.set("quiet", QUIET_MS, () => this.#live());
  }

  #gap({ since, oldest }) {
    this.#cursor = this.#head; // the server continues from there
    this.#status.show({ state: "gap", since, oldest });
    this.#subscriptions.gap({ since, oldest }, this.#head, this.#generation);
    this.#live();
  }

  /** News of a live query, or a change of a collection. */
  #news(message, text) {
    if (message.query !== undefined) this.#queries.receive(message);
    else if (CHANGES.has(message.type)) this.#change(message, text);
  }

  #change(change, text) {
    this.#heard = Date.now();
    if (change.seq <= this.#cursor) return;
    this.#cursor = change.seq;
    this.#subscriptions.deliver(change, text, this.#generation);
    if (this.status.state === "catching up" && change.seq >= this.#head) this.#live();
    else this.#awaitQuiet();
  }

  /** Everything up to `seq` has been sent. */
  #pong({ seq }) {
    this.#heard = Date.now();
    this.#queries.progress(seq);
    if (seq > this.#cursor) this.#cursor = seq;
    if (this.status.state === "catching up" && this.#cursor >= this.#head) this.#live();
  }

  // --- what is subscribed ------------------------------------------------------------------------

  /** Make the server's idea of what we want ours. */
  #align() {
    const plain = this.#plain(this.#token);
    const { joined } = this.#connection;
    const isNew = (name) => !joined.has(name) || this.#subscriptions.hasNew(name, this.#generation);
    for (const name of this.#ruled.align(this.#token, this.#generation, this.#cursor)) joined.delete(name);
    this.#leaveAll((name) => !plain.includes(name));
    for (const name of plain.filter(isNew)) this.#join(name);
    this.#queries.align(this.#connection, this.#token.covers);
    const missing = this.#wanted().filter((name) => !this.#token.covers(name));
    if (missing.length === 0 || this.#renewing) return;
    // After a failure there will be another try: only what is new is reason for one at once.
    if (this.#failures === 0 || !missing.every((name) => this.#lacked.has(name))) void this.#renew();
  }

  /** Ask for a collection, also if the server sends it already: its reply says where new handlers begin. */
  #join(name) {
    const { joined } = this.#connection;
    const joining = joined.get(name) ?? {};
    joined.set(name, joining);
    const generation = this.#generation;
    const taken = this.#subscriptions.take(name, generation);
    this.#connection.ask("subscribe", { collection: name }, (error, { seq = this.#cursor }) => {
      if (joined.get(name) !== joining) return; // left, or left and joined again, meanwhile
      if (!error) return this.#subscriptions.begin(taken, Math.max(seq, this.#head), generation);
      joined.delete(name);
      return this.#subscriptions.deny(name, error);
    });
  }

  #leaveAll(unwanted) {
    const { joined } = this.#connection;
    for (const name of [...joined.keys()].filter(unwanted)) {
      joined.delete(name);
      this.#connection.ask("unsubscribe", { collection: name });
    }
  }

  // --- waking up ---------------------------------------------------------------------------------

  /** Something happened after which a connection is often dead without knowing. */
  #wake() {
    const stuck = this.#phase === "connecting" && Math.abs(Date.now() - this.#since) > PONG_AFTER_WAKING_MS;
    if (this.#phase === "open") this.#probe(PONG_AFTER_WAKING_MS);
    else if (this.#phase === "waiting" || stuck) this.#again();
  }

  #probe(ms) {
    this.#connection.probe(ms, (pong) => this.#pong(pong), () => this.#again());
  }

  #again() {
    this.#attempt = 0;
    void this.#connect();
  }
}
