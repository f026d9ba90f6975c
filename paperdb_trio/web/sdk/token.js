/**
 * Realtime tokens: what they say of themselves, and when to get another.
 *
 * Law: no I/O and no timers. Whether a token is good is for the server to say; a clock that is wrong, here or
 * there, costs a reconnection at worst, never a flood of calls.
 */

import { PaperDBError, invalid } from "./errors.js";

/** The soonest that a token is renewed, doubled each time that the clocks want it sooner; half its life at most. */
const FIRST_PAUSE_MS = 5_000;
/** A token that claims to live shorter than this (the server's live 30 s at least) does not say how long it does. */
const SHORTEST_LIFE_MS = 1_500;

/** A token, and what it says of itself. `haste`: how many in a row were to be renewed too soon before it. */
export class Token {
  #text;
  #rules;

  constructor(text, marginMs, haste) {
    this.#text = text;
    const { exp, iat, collections } = claims(text);
    const end = typeof exp === "number" ? exp * 1000 : Infinity;
    const life = typeof iat === "number" ? end - iat * 1000 : Infinity;
    const lifetime = life >= SHORTEST_LIFE_MS ? life : Infinity;
    const now = Date.now();
    const left = end - now;
    // What this machine's clock says is left, unless that cannot be: then the clock is wrong.
    const ends = now + (left > 0 && left <= lifetime ? left : lifetime);
    const due = ends - (marginMs < lifetime ? marginMs : lifetime / 2);
    const soonest = now + Math.min(FIRST_PAUSE_MS * 2 ** haste, lifetime / 2);
    /** The clocks wanted it renewed sooner than is sensible. */
    this.isHasty = due < soonest;
    /** When to get another (milliseconds since the epoch); halfway for one that is shorter than the margin. */
    this.renewAt = Math.max(due, soonest);
    this.#rules = Array.isArray(collections) ? {} : Object(collections);
    const names = Array.isArray(collections) ? collections : collections instanceof Object ? Object.keys(collections) : ["*"];
    /** The collections that it names; null for every one, or if it cannot be read. */
    this.names = names.includes("*") ? null : new Set(names);
  }

  /** Whether what it shows of a collection may be less than the collection. */
  hasRule(collection) {
    const rule = this.#rules[collection] ?? this.#rules["*"];
    return rule?.filter !== undefined || rule?.select !== undefined;
  }

  covers = (collection) => this.names?.has(collection) ?? true;

  /** Whether it is for these collections and no others. */
  isFor(collections) {
    return this.names?.size === collections.length && collections.every(this.covers);
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
  let given;
  try {
    given = await getToken({ collections, permissions: ["read"] });
  } catch (error) {
    if (error instanceof PaperDBError) throw error;
    const status = [401, 403].includes(error?.status) ? error.status : 0;
    const code = error?.code ?? "TOKEN_UNAVAILABLE";
    throw new PaperDBError(`getToken failed: ${error?.message ?? error}`, { status, code, cause: error });
  }
  const text = typeof given === "string" ? given : given?.token;
  if (typeof text === "string" && /^[\w.~+-]+$/.test(text)) return text;
  throw invalid("TOKEN_UNAVAILABLE", "getToken must resolve to a token (a string)");
}
