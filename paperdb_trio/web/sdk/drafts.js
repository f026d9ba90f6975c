/**
 * Writes that are on their way, as live queries show them meanwhile.
 *
 * Law: no I/O. A draft begins before its request is sent, and ends by `settle` or `reject`. It shows what the
 * document will be, worked out once, so that the change itself, if it comes before the response, is not applied twice.
 */

import { isObject } from "./values.js";

const ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/** An id as the server makes them: 21 characters. */
function newId() {
  const bytes = globalThis.crypto?.getRandomValues(new Uint8Array(21)) ?? Array.from({ length: 21 }, () => Math.random() * 256);
  return Array.from(bytes, (byte) => ALPHABET[Math.floor(byte) % 64]).join("");
}

const same = (one, other) => JSON.stringify(one) === JSON.stringify(other);

const STEPS = {
  increment: (value = 0, by) => (typeof value === "number" && typeof by === "number" ? value + by : value),
  decrement: (value = 0, by) => (typeof value === "number" && typeof by === "number" ? value - by : value),
  push: (value = [], item) => (Array.isArray(value) ? [...value, item] : value),
  pull: (value = [], item) => (Array.isArray(value) ? value.filter((one) => !same(one, item)) : value),
  unset: () => undefined,
};

/** What a step such as `{increment: 1}` makes of a value; undefined: the field goes. One that does not apply is refused later. */
function stepped(value, change) {
  const [step, ...others] = isObject(change) ? Object.keys(change) : [];
  const run = others.length === 0 && step !== undefined && Object.hasOwn(STEPS, step) ? STEPS[step] : null;
  return run ? run(value ?? undefined, change[step]) : change;
}

/** The document after an operation; null: there is none. `before` is null if it is not known. */
function after(before, { op, id, document, fields }) {
  const now = new Date().toISOString();
  if (op === "delete") return null;
  if (op !== "update") return { ...document, _id: id, createdAt: before?.createdAt ?? now, updatedAt: now };
  if (before === null) return null;
  const made = { ...before, ...("updatedAt" in before && { updatedAt: now }) };
  for (const [name, change] of Object.entries(fields)) {
    if (name === "_id" || name === "createdAt" || name === "updatedAt" || change === undefined) continue;
    made[name] = stepped(before[name], change);
    if (made[name] === undefined) delete made[name];
  }
  return made;
}

/** All live queries of a client, by collection. */
export class Drafts {
  #lives = new Map();

  add(collection, live) {
    if (!this.#lives.has(collection)) this.#lives.set(collection, new Set());
    this.#lives.get(collection).add(live);
  }

  delete(collection, live) {
    this.#lives.get(collection)?.delete(live);
  }

  /** The document with an id of its own, if it needs one to be shown. */
  named(collection, document) {
    const isShown = this.#lives.get(collection)?.size > 0;
    return isShown && document._id === undefined && document.key === undefined ? { ...document, _id: newId() } : document;
  }

  /**
   * Show `operations` until `write()` is done, and then what it resolved to until that has come. `outcomes(result)`: for each
   * operation, `{document, seq}`; document null if it was deleted.
   */
  async during(operations, write, outcomes) {
    const begun = [];
    for (const operation of operations) {
      for (const live of this.#lives.get(operation.collection) ?? []) {
        begun.push({ live, draft: live.draft(operation), at: operations.indexOf(operation) });
      }
    }
    if (begun.length === 0) return write();
    try {
      const result = await write();
      const made = outcomes(result);
      for (const { live, draft, at } of begun) live.settle(draft, made[at] ?? {});
      return result;
    } catch (error) {
      for (const { live, draft } of begun) live.reject(draft);
      throw error;
    }
  }
}

/** The drafts of one live query. */
export class Overlay {
  #drafts = [];

  get size() {
    return this.#drafts.length;
  }

  /** `lookUp(id)`: the document as it is known; undefined if it is not. */
  begin(operation, lookUp) {
    const draft = { operation, seq: null, isDone: false, document: null };
    draft.document = after(this.#before(operation.id, lookUp), operation);
    this.#drafts.push(draft);
    return draft;
  }

  #before(id, lookUp) {
    const last = this.#drafts.findLast((draft) => draft.operation.id === id);
    return (last ? last.document : lookUp(id)) ?? null;
  }

  settle(draft, { document = draft.document, seq = null }) {
    Object.assign(draft, { document, seq, isDone: true });
  }

  reject(draft, lookUp) {
    const all = this.#drafts.filter((other) => other !== draft);
    this.#drafts = [];
    for (const other of all) {
      // Later writes to the same document were worked out from this one.
      if (!other.isDone) other.document = after(this.#before(other.operation.id, lookUp), other.operation);
      this.#drafts.push(other);
    }
  }

  /** Forget those that are done, if `hasCome(draft)`. Whether there were any. */
  drop(hasCome) {
    const before = this.#drafts.length;
    this.#drafts = this.#drafts.filter((draft) => !(draft.isDone && hasCome(draft)));
    return this.#drafts.length < before;
  }

  /** id → document, or null if it is not to be shown. `isShown(document, operation)`. */
  shown(isShown) {
    return new Map(
      this.#drafts.map(({ operation, document }) => [operation.id, document && isShown(document, operation) ? document : null]),
    );
  }
}
