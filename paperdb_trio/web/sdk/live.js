/**
 * `Live` in paperdb.d.ts: a query's documents and what becomes of them, joined without a gap or a repeat.
 *
 * Law: the documents and their order are view.js's, own writes drafts.js's; here is what to ask for, and when. Without
 * `limit`, all documents come as a snapshot by the WebSocket. With it, changes are followed first, then a find lists the
 * first `limit` documents and some slack; what came meanwhile and is newer than the list is applied to it.
 */

import { Overlay } from "./drafts.js";
import { invalid, isFinal } from "./errors.js";
import { Timers } from "./timers.js";
import { View } from "./view.js";
import { matches, parseSort, pathsOf, project } from "./values.js";

const MAX_PAGE = 1000;
/** Documents beyond `limit` that are kept, so that a few deletions need no request. */
const slackOf = (limit) => Math.min(50, Math.max(5, Math.ceil(limit / 2)));
const RETRY_MS = 2_000;
/** A component that goes and comes back within this keeps its query. */
const LINGER_MS = 50;
const OPTIONS = ["filter", "sort", "limit", "select"];

export class Live {
  #name;
  #find;
  #realtime;
  #drafts;
  #about;
  #fields; // what `select` shows, or undefined
  #limit;
  #step;
  #view;
  #overlay = new Overlay();
  #timers = new Timers();
  #listeners = new Set();
  #now = Object.freeze({ documents: Object.freeze([]), status: "loading", error: null, hasMore: false });
  #end = null; // ends the query; null while it is not followed
  #closed = false;
  #seq = 0; // everything up to here has come
  #isLoaded = false;
  #isStale = true;
  #error = null;
  #next; // where the next page begins
  #loading = null; // {events} of the request that is on its way
  #again = false; // what is being loaded must be loaded once more
  #scheduled = false;

  constructor({ name, find, realtime, drafts }, options = {}) {
    for (const option of Object.keys(options)) {
      if (!OPTIONS.includes(option)) throw invalid("INVALID_REQUEST", `Unknown option '${option}'; expected ${OPTIONS.join(", ")}`);
    }
    const { filter, sort, limit, select } = options;
    if (limit !== undefined && !(Number.isInteger(limit) && limit > 0)) {
      throw invalid("INVALID_REQUEST", "limit must be a whole number above 0");
    }
    this.#name = name;
    this.#find = find;
    this.#realtime = realtime;
    this.#drafts = drafts;
    const fields = select && String(select).split(",").map((path) => path.trim());
    const needed = fields && [...new Set([...fields, ...parseSort(sort).fields.map(({ path }) => path)])];
    this.#fields = needed && needed.length > fields.length ? fields : undefined;
    this.#about = { filter, sort, select: needed };
    this.#limit = this.#step = limit;
    this.#view = new View(sort);
  }

  get() {
    return this.#now;
  }

  subscribe(listener) {
    if (this.#closed) throw invalid("CLOSED", "This live query has been closed");
    const own = (view) => listener(view);
    this.#listeners.add(own);
    this.#timers.clear("linger");
    this.#start();
    own(this.#now);
    return () => {
      if (this.#listeners.delete(own) && this.#listeners.size === 0) {
        this.#timers.set("linger", LINGER_MS, () => this.#stop(), { background: false });
      }
    };
  }

  /** Show so many more as `limit` says. */
  more() {
    if (this.#step === undefined || this.#closed) return;
    this.#limit += this.#step;
    this.#refill();
    this.#changed();
  }

  close() {
    this.#closed = true;
    this.#listeners.clear();
    this.#stop();
  }

  #start() {
    if (this.#end !== null) return;
    const { filter, select } = this.#about;
    const query = { collection: this.#name, filter, select, snapshot: this.#limit === undefined };
    this.#end = this.#realtime.follow(query, this.#owner);
    this.#drafts.add(this.#name, this);
  }

  #stop() {
    this.#timers.clear("linger", "retry");
    this.#drafts.delete(this.#name, this);
    this.#end?.();
    this.#end = null;
    this.#loading = null;
    this.#isStale = true; // what is known may be shown until it is followed again
    this.#changed();
  }

  // --- what the query is told (queries.js) -------------------------------------------------------

  #owner = {
    begin: (seq) => {
      this.#seq = seq;
      void this.#load();
    },
    snapshot: (documents, seq) => {
      this.#view.clear();
      this.#view.add(documents, seq, false);
      this.#seq = seq;
      this.#loaded();
    },
    change: (event) => {
      this.#seq = event.seq;
      this.#loading?.events.push(event);
      if (!this.#view.change(event)) void this.#load();
      this.#forget();
      this.#refill();
      this.#changed();
    },
    progress: (seq) => {
      this.#seq = seq;
      if (this.#forget()) this.#changed();
    },
    current: () => {
      if (this.#isLoaded && this.#loading === null) this.#loaded();
      // Those of which the seq is not known have come, too.
      if (this.#overlay.drop(({ seq }) => seq === null || seq <= this.#seq)) this.#changed();
    },
    stale: () => {
      this.#isStale = true;
      this.#changed();
    },
    failed: (error) => this.#failed(error),
  };

  #loaded() {
    this.#isLoaded = true;
    this.#isStale = false;
    this.#error = null;
    this.#changed();
  }

  #failed(error) {
    this.#error = error;
    this.#changed();
  }

  // --- the window --------------------------------------------------------------------------------

  /** List the first documents anew. */
  async #load(after) {
    if (this.#step === undefined) return;
    if (this.#loading !== null) {
      this.#again ||= after === undefined;
      return;
    }
    const own = (this.#loading = { events: [] });
    const { filter, sort, select } = this.#about;
    const wanted = this.#limit + slackOf(this.#step) - (after === undefined ? 0 : this.#view.size);
    const limit = Math.min(MAX_PAGE, Math.max(wanted, 1));
    try {
      const found = await this.#find({ filter, sort, select, limit, ...(after !== undefined && { after }) });
      if (this.#loading !== own) return;
      this.#loading = null;
      this.#take(found, after, own.events);
    } catch (error) {
      if (this.#loading !== own) return;
      this.#loading = null;
      // The token may have a rule since the last page, or none any more: its cursors are others.
      const isOther = after !== undefined && error.code === "INVALID_CURSOR";
      if (isFinal(error) && !isOther) this.#failed(error);
      else this.#retry();
    }
  }

  #take(found, after, events) {
    if (after === undefined) this.#view.clear();
    this.#view.add(found, found.seq, found.hasMore);
    this.#next = found.next;
    for (const event of events.filter(({ seq }) => seq > found.seq)) {
      if (!this.#view.change(event)) this.#again = true;
    }
    const again = this.#again;
    this.#again = false;
    this.#loaded();
    if (again) void this.#load();
    else this.#refill();
  }

  #retry() {
    this.#isStale = true;
    this.#timers.set("retry", RETRY_MS * (0.5 + Math.random()), () => void this.#load());
    this.#changed();
  }

  /** Ask for more before it runs short; let go of what is far behind the window. */
  #refill() {
    if (this.#step === undefined || !this.#isLoaded || this.#end === null) return;
    const slack = slackOf(this.#step);
    if (this.#view.size > this.#limit + 3 * slack) {
      this.#view.trim(this.#limit + slack);
      this.#next = undefined; // the server's cursor is for another edge
    } else if (!this.#view.isWhole && this.#view.size < this.#limit + slack / 2) void this.#load(this.#next);
  }

  // --- own writes (drafts.js) --------------------------------------------------------------------

  #lookUp = (id) => this.#view.get(id);

  draft(operation) {
    const draft = this.#overlay.begin(operation, this.#lookUp);
    this.#changed();
    return draft;
  }

  settle(draft, outcome) {
    this.#overlay.settle(draft, outcome);
    this.#forget();
    this.#changed();
    // The change may be none of this query's: then only the server's progress says that it has come.
    if (draft.seq === null) this.#realtime.sync(() => this.#overlay.drop((other) => other === draft) && this.#changed());
    else if (draft.seq > this.#seq) this.#realtime.reach(draft.seq);
  }

  reject(draft) {
    this.#overlay.reject(draft, this.#lookUp);
    this.#changed();
  }

  /** Drafts whose changes have come. */
  #forget() {
    return this.#overlay.drop(({ seq }) => seq !== null && seq <= this.#seq);
  }

  /** Whether a draft is to be shown: it matches the filter, as far as the fields that are known tell. */
  #isShown = (document, { op, id }) => {
    const { filter, select } = this.#about;
    const isKnown = op !== "update" || !select || pathsOf(filter).every((path) => select.includes(path.split(".")[0]));
    return isKnown ? matches(document, filter) : this.#lookUp(id) !== undefined;
  };

  // --- what is shown -----------------------------------------------------------------------------

  #changed() {
    if (this.#scheduled) return;
    this.#scheduled = true;
    queueMicrotask(() => {
      this.#scheduled = false;
      this.#publish();
    });
  }

  #publish() {
    const all = this.#overlay.size ? this.#view.overlaid(this.#overlay.shown(this.#isShown)) : this.#view.documents();
    const limit = this.#limit ?? Infinity;
    const documents = this.#project(all.slice(0, limit));
    const hasMore = all.length > limit || !this.#view.isWhole;
    const isShort = all.length < limit && !this.#view.isWhole;
    const known = this.#isStale || isShort ? "stale" : "live";
    const status = this.#error ? "error" : this.#isLoaded ? known : "loading";
    const last = this.#now;
    const isSame = documents.length === last.documents.length && documents.every((one, at) => one === last.documents[at]);
    if (isSame && status === last.status && this.#error === last.error && hasMore === last.hasMore) return;
    const shown = isSame ? last.documents : Object.freeze(documents);
    this.#now = Object.freeze({ documents: shown, status, error: this.#error, hasMore });
    for (const listener of [...this.#listeners]) {
      try {
        listener(this.#now);
      } catch (error) {
        console.error("paperdb: a listener of a live query failed:", error);
      }
    }
  }

  #projected = new WeakMap();

  #project(documents) {
    if (this.#fields === undefined) return documents;
    return documents.map((document) => {
      if (!this.#projected.has(document)) this.#projected.set(document, project(document, this.#fields));
      return this.#projected.get(document);
    });
  }
}
