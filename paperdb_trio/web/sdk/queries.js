/**
 * Live queries of a connection: which the server was asked for, and where each of them stands.
 *
 * Law: no timers, and no state of the application's. Each query has a cursor of its own: it was given every change up to
 * there, once, in order of seq. The server takes the same query asked twice as one, which begins anew; so several here
 * may share an id, and those that were further back are asked for again from where they are (`lagging`). An id is of what is
 * asked within the token's rule: a query that resumes with another id than the one it had (`followed`) begins anew.
 *
 * A query's owner has these methods: `begin(seq)`, from there on changes come (again after a gap); `snapshot(documents, seq)`;
 * `change(event)`; `progress(seq)`, everything up to there has come; `current()`, what the server had when it was ready has;
 * `stale(reason)`; `failed(error)`.
 */

import { checkCollection, invalid, uncovered } from "./errors.js";

const MAX_QUERIES = 100;

export class Queries {
  #all = new Set();
  #connection = null;
  #covers = () => false;
  #unwanted = new Set(); // ids of which no query was left
  #due = 0; // the seq that all are to reach
  #onBehind;

  /** `onBehind()`: not all of them have reached it; call `sync` a little later. */
  constructor(onBehind = () => {}) {
    this.#onBehind = onBehind;
  }

  get size() {
    return this.#all.size;
  }

  /** `snapshot`: it begins with all documents. Throws a PaperDBError for a bad name or one query too many. */
  add({ collection, filter = {}, select, snapshot = false }, owner) {
    checkCollection(collection);
    if (this.#all.size >= MAX_QUERIES) {
      throw invalid("TOO_MANY_SUBSCRIPTIONS", `At most ${MAX_QUERIES} live queries in one client`);
    }
    const about = { collection, filter, ...(select && { select }) };
    const query = { about, collection, snapshot, owner, cursor: null, followed: null, denied: null };
    this.#all.add(this.#forget(query));
    return query;
  }

  /** What belongs to one connection. */
  #forget(query) {
    return Object.assign(query, { id: null, asked: null, pieces: null, lagging: false, current: false });
  }

  delete(query) {
    if (!this.#all.delete(query)) return false;
    this.#leave(query.id);
    return true;
  }

  clear() {
    this.#all.clear();
  }

  /** The collections that a token must cover. */
  wanted() {
    return [...new Set([...this.#all].filter(({ denied }) => !denied).map(({ collection }) => collection))];
  }

  // --- connections -------------------------------------------------------------------------------

  /** A connection is ready, or what its token covers has changed, or what is wanted. */
  align(connection, covers) {
    if (connection !== this.#connection) this.#due = connection.head;
    this.#connection = connection;
    this.#covers = covers;
    const fresh = [...this.#all].filter(({ asked, denied, collection }) => asked !== connection && !denied && covers(collection));
    for (const query of fresh) this.#ask(query);
    if (fresh.length) this.sync();
  }

  closed(reason) {
    if (this.#connection === null) return;
    this.#connection = null;
    this.#unwanted.clear();
    for (const query of this.#all) this.#forget(query).owner.stale(reason);
  }

  #ask(query) {
    const connection = this.#connection;
    const since = query.cursor;
    query.asked = connection;
    const where = since !== null ? { since } : query.snapshot ? { snapshot: true } : {};
    connection.ask("subscribe", { ...query.about, ...where }, (error, { query: id, seq } = {}) => {
      if (query.asked !== connection) return undefined;
      if (!this.#all.has(query)) return this.#leave(id);
      if (error) return this.#refused(query, error);
      const isAnother = since !== null && id !== query.followed;
      Object.assign(query, { id, followed: id, lagging: false });
      if (isAnother) this.#again(query, "rule"); // this connection's token has another one
      else if (since === null && query.snapshot) query.pieces = [];
      else if (since === null) this.#begin(query, seq);
      // The others with this id go on from `seq`, too, and may not have been there.
      if (Object.keys(where).length) this.#behind(id, seq);
      return this.#leave();
    });
  }

  #begin(query, seq) {
    query.cursor = seq;
    query.owner.begin(seq);
  }

  #behind(id, seq) {
    const others = this.#of(id).filter(({ pieces, cursor }) => pieces === null && cursor < seq);
    for (const other of others) other.lagging = true;
    if (!this.#of(id).some(({ pieces }) => pieces !== null)) this.#repair(id);
  }

  /** One subscription from where the last of them is brings all of them what they lack. */
  #repair(id) {
    const lagging = this.#of(id).filter((query) => query.lagging);
    if (lagging.length === 0) return;
    const last = lagging.reduce((one, other) => (other.cursor < one.cursor ? other : one));
    const connection = this.#connection;
    connection.ask("subscribe", { ...last.about, since: last.cursor }, (error) => {
      if (connection !== this.#connection) return;
      for (const query of lagging.filter((each) => each.id === id)) {
        query.lagging = false;
        if (error) this.#again(query, error.message);
      }
    });
    this.sync();
  }

  #refused(query, error) {
    query.denied = error;
    this.#leave();
    query.owner.failed(error);
  }

  /** Refuse those whose collections are among `names`, which a token does not cover. */
  denyUncovered(names) {
    for (const query of this.#all) {
      if (query.denied || !names.includes(query.collection)) continue;
      const { id } = query;
      this.#refused(this.#forget(query), uncovered(query.collection));
      this.#leave(id);
    }
  }

  /** A new token may cover what the last one did not. */
  allowAll() {
    for (const query of this.#all) {
      if (query.denied?.code !== "NOT_IN_TOKEN") continue;
      Object.assign(query, { denied: null, asked: null, cursor: null });
    }
  }

  /** The connection has ended for good. */
  report(error) {
    for (const { owner } of [...this.#all]) owner.failed(error);
  }

  /** End what no query has, as soon as each query that was asked for has its id: it may be one of these. */
  #leave(unwanted) {
    if (unwanted != null) this.#unwanted.add(unwanted);
    if ([...this.#all].some(({ asked, id, denied }) => asked !== null && id === null && !denied)) return;
    for (const id of this.#unwanted) {
      if (this.#of(id).length === 0) this.#connection?.ask("unsubscribe", { query: id });
    }
    this.#unwanted.clear();
  }

  // --- messages ----------------------------------------------------------------------------------

  #of(id) {
    return id == null ? [] : [...this.#all].filter((query) => query.id === id);
  }

  /** Whether a message was for one of these. */
  receive(message) {
    const queries = this.#of(message.query);
    for (const query of queries) {
      if (message.type === "snapshot") this.#piece(query, message);
      else if (message.type === "reset") this.#again(query, message.reason);
      else if (query.pieces === null && !query.lagging && message.seq > query.cursor) {
        query.cursor = message.seq;
        query.owner.change(message);
        this.#catchUp(query);
      }
    }
    return queries.length > 0;
  }

  #piece(query, { documents, last, seq }) {
    if (query.pieces === null) return;
    for (const document of documents) query.pieces.push(document);
    if (!last) return;
    const all = query.pieces;
    Object.assign(query, { pieces: null, cursor: seq });
    query.owner.snapshot(all, seq);
    if (query.id !== null) this.#repair(query.id);
  }

  /** What it knows is not to be relied on: begin anew. */
  #again(query, reason) {
    this.#forget(query).cursor = null;
    query.owner.stale(reason);
    if (!this.#all.has(query) || !this.#covers(query.collection)) return;
    this.#ask(query);
    this.sync();
  }

  /** Ask how far we are. A server that is busy, or reads the log for us, may know of later changes when it responds. */
  sync(onDone) {
    const connection = this.#connection;
    connection?.ask("ping", {}, (error, message) => {
      if (connection !== this.#connection || error) return;
      this.progress(message.seq);
      onDone?.();
    });
  }

  /** Ask until all have everything up to `seq`. */
  reach(seq) {
    this.#due = Math.max(this.#due, seq);
    this.sync();
  }

  /** Everything up to `seq` has been sent. */
  progress(seq) {
    const begun = [...this.#all].filter(({ id, pieces, lagging, cursor }) => id !== null && pieces === null && !lagging && cursor !== null);
    for (const query of begun) {
      query.cursor = Math.max(query.cursor, seq);
      query.owner.progress(query.cursor);
      this.#catchUp(query);
    }
    if (begun.length && seq < this.#due) this.#onBehind();
  }

  #catchUp(query) {
    if (query.id === null || query.current || query.cursor < this.#connection.head) return;
    query.current = true;
    query.owner.current();
  }
}
