/**
 * What is subscribed, and which changes each handler has been given.
 *
 * Law: no I/O and no timers. A subscription begins when the server has heard of it, and has said at which seq: it
 * sees the changes with a seq above that, its `from`, and none before. `generation` is the number of a connection.
 */

import { checkCollection, invalid, uncovered } from "./errors.js";

/** Collections of one token and of one connection, and the characters of their names; the server's limits. */
const MAX_COLLECTIONS = 100;
const MAX_NAMES_LENGTH = 4096;

export class Subscriptions {
  #all = new Set();
  #denied = new Set(); // collections that the application's token does not cover
  #calls;

  constructor(calls) {
    this.#calls = calls;
  }

  get size() {
    return this.#all.size;
  }

  /** Throws a PaperDBError for a bad name or one collection too many. */
  add(collection, handler, options) {
    checkCollection(collection);
    if (typeof handler !== "function") throw new TypeError("subscribe(collection, handler) needs a function");
    this.#checkRoom(collection);
    // `from` is null until it is known. `asked`, `began`: the generations in which that happened. `left`: the seq up to
    // which it was given changes, if it begins for a second time.
    const subscription = { collection, handler, options, from: null, asked: 0, began: 0, left: null, early: [] };
    this.#all.add(subscription);
    this.#denied.delete(collection);
    return subscription;
  }

  #checkRoom(collection) {
    const names = new Set([...this.#all].map((other) => other.collection)).add(collection);
    const { length } = [...names].join("");
    if (names.size > MAX_COLLECTIONS) {
      throw invalid("TOO_MANY_SUBSCRIPTIONS", `At most ${MAX_COLLECTIONS} collections in one client`);
    }
    if (length > MAX_NAMES_LENGTH) {
      const message = `The names of a client's collections may have ${MAX_NAMES_LENGTH} characters in all`;
      throw invalid("TOO_MANY_SUBSCRIPTIONS", `${message}; with '${collection}' they have ${length}`);
    }
  }

  /** Whether it was there. */
  delete(subscription) {
    return this.#all.delete(subscription);
  }

  clear() {
    this.#all.clear();
  }

  /** The collections to ask the server for. */
  wanted() {
    const names = [...this.#all].map(({ collection }) => collection);
    return [...new Set(names)].filter((name) => !this.#denied.has(name));
  }

  of(collection) {
    return [...this.#all].filter((subscription) => subscription.collection === collection);
  }

  hasBegun(collection) {
    return this.of(collection).some(({ from }) => from !== null);
  }

  /** Whether some of a collection's have not been asked for on this connection. */
  hasNew(collection, generation) {
    return this.of(collection).some(({ asked }) => asked !== generation);
  }

  // --- refusals ----------------------------------------------------------------------------------

  deny(collection, error) {
    this.#denied.add(collection);
    for (const subscription of this.of(collection)) {
      Object.assign(subscription, { from: null, asked: 0, left: null, early: [] }); // covered again, it begins anew
      this.#calls.queue(() => this.#calls.report(error, subscription));
    }
  }

  /** Deny those of `names`, which a token does not cover. */
  denyUncovered(names) {
    for (const name of this.wanted()) if (names.includes(name)) this.deny(name, uncovered(name));
  }

  allowAll() {
    this.#denied.clear();
  }

  report(error) {
    for (const subscription of this.#all) this.#calls.queue(() => this.#calls.report(error, subscription));
  }

  // --- where each begins -------------------------------------------------------------------------

  /** Those of a collection that this connection is asked for from now on. */
  take(collection, generation) {
    const taken = this.of(collection).filter(({ asked }) => asked !== generation);
    for (const subscription of taken) subscription.asked = generation;
    return taken;
  }

  /** The server has heard of these; the new ones see what comes after `seq`. */
  begin(subscriptions, seq, generation) {
    for (const subscription of subscriptions.filter(({ from }) => from === null)) {
      const { early, handler, left } = subscription;
      Object.assign(subscription, { from: seq, began: generation, left: null, early: [] });
      if (left === null) this.#defer(subscription, "onReady");
      else this.#defer(subscription, "onGap", { since: left, oldest: seq });
      for (const event of early.filter((event) => event.seq > seq)) this.#later(subscription, handler, event);
    }
  }

  /** The same for all that the handshake asked for. */
  beginAsked(seq, generation) {
    this.begin([...this.#all].filter(({ asked }) => asked === generation), seq, generation);
  }

  /** Those of a collection that have begun do so again, where the server will say: they miss what comes after `seq` until
   * there. null: after where they began. */
  again(collection, seq) {
    for (const subscription of this.of(collection).filter(({ from }) => from !== null)) {
      Object.assign(subscription, { from: null, asked: 0, left: seq ?? subscription.from });
    }
  }

  /** The connection ended before the server said where these begin. */
  dropEarly() {
    for (const subscription of this.#all) subscription.early = [];
  }

  // --- changes -----------------------------------------------------------------------------------

  /** Give a change to each handler that is to see it. `text` is its message. */
  deliver({ type, collection, data, seq }, text, generation) {
    let given = false;
    for (const subscription of this.of(collection)) {
      const { from, asked, early, handler } = subscription;
      if (from === null ? asked !== generation : seq <= from) continue;
      if (!this.#all.has(subscription)) continue;
      // Each handler has its own copy: what one does to it harms no other.
      const event = { type, collection, data: given ? JSON.parse(text).data : data, seq };
      given = true;
      if (from === null) early.push(event); // until the server says where it begins
      else this.#calls.run(subscription, handler, event);
    }
  }

  /** Changes were missed, of all collections or of one; the server continues from `head`. */
  gap(gap, head, generation, collection) {
    for (const subscription of collection === undefined ? [...this.#all] : this.of(collection)) {
      if (subscription.from === null) continue;
      subscription.from = head; // which is lower than before if the server was set back to a backup
      if (subscription.began !== generation) this.#defer(subscription, "onGap", gap);
    }
  }

  #defer(subscription, name, ...args) {
    const run = subscription.options[name];
    if (run) this.#later(subscription, run, ...args);
  }

  #later(subscription, run, ...args) {
    this.#calls.queue(() => this.#all.has(subscription) && this.#calls.run(subscription, run, ...args));
  }
}
