/**
 * The documents of a live query: those that are known, in order, up to an edge behind which there may be more.
 *
 * Law: no I/O. Invariant: `#entries` are all documents of the query that come before the edge, each with the seq up to
 * which it is known; without an edge, all of them. Sorted as the server does (values.js); equal ones come in the order
 * of insertion, as far as lists and inserts tell.
 */

import { comparison, parseSort } from "./values.js";

/** What was inserted while it was followed comes after all that was listed. */
const NEWEST = 2 ** 52;

export class View {
  #compare;
  #sign;
  #entries = new Map(); // id → {document, seq, at}
  #edge = null; // the last document of the page that had more after it
  #sorted = [];
  #count = 0;

  constructor(sort) {
    const parsed = parseSort(sort);
    this.#sign = parsed.sign;
    this.#compare = comparison(parsed);
  }

  get size() {
    return this.#entries.size;
  }

  get isWhole() {
    return this.#edge === null;
  }

  clear() {
    this.#entries.clear();
    this.#sorted = null;
    this.#edge = null;
  }

  /** Documents that the server listed at `seq`; `hasMore`: others come after them. */
  add(documents, seq, hasMore) {
    for (const document of documents) {
      const known = this.#entries.get(document._id);
      // In reverse insertion order what comes later stands earlier.
      if (known === undefined || known.seq <= seq) this.#set(document, seq, (this.#count += 1) * this.#sign);
    }
    this.#edge = hasMore ? documents.at(-1) ?? this.#edge : null;
  }

  /**
   * Whether it is certain where the document belongs. It is not if it ties with another, and has not just been inserted: an
   * event does not tell when it was.
   */
  change({ type, data, seq, cause }) {
    const known = this.#entries.get(data._id);
    if (known !== undefined && known.seq >= seq) return true;
    if (type === "delete") return this.#delete(data._id);
    const stays = known !== undefined && this.#compare(known.document, data) === 0;
    const isNewest = cause === "insert";
    const toEdge = this.#edge === null ? -1 : this.#compare(data, this.#edge);
    const isInside = toEdge < 0 || (toEdge === 0 && (stays || (isNewest && this.#sign < 0)));
    if (!isInside) return this.#delete(data._id) && (toEdge > 0 || isNewest);
    const isCertain = stays || isNewest || !this.#ties(data);
    this.#set(data, seq, stays ? known.at : NEWEST + (this.#count += 1));
    return isCertain;
  }

  #ties(data) {
    return [...this.#entries.values()].some(
      ({ document }) => document._id !== data._id && this.#compare(document, data) === 0,
    );
  }

  #set(document, seq, at) {
    this.#entries.set(document._id, { document, seq, at });
    this.#sorted = null;
  }

  #delete(id) {
    if (this.#entries.delete(id)) this.#sorted = null;
    return true;
  }

  /** Keep the first `size`. */
  trim(size) {
    const sorted = this.documents();
    this.#edge = sorted[size - 1];
    for (const { _id } of sorted.slice(size)) this.#delete(_id);
  }

  get(id) {
    return this.#entries.get(id)?.document;
  }

  /** All of them, in order. */
  documents() {
    this.#sorted ??= [...this.#entries.values()].sort(this.#order).map(({ document }) => document);
    return this.#sorted;
  }

  #order = (one, other) => this.#compare(one.document, other.document) || this.#sign * (one.at - other.at);

  /** With `shown` (id → document) in place of what is known, and without those that are null. */
  overlaid(shown) {
    const merged = new Map(this.#entries);
    let at = NEWEST + this.#count;
    for (const [id, document] of shown) {
      const known = merged.get(id);
      const isInside = document && (this.#edge === null || this.#compare(document, this.#edge) <= 0);
      if (isInside) merged.set(id, { document, at: known?.at ?? (at += 1) });
      else merged.delete(id);
    }
    return [...merged.values()].sort(this.#order).map(({ document }) => document);
  }
}
