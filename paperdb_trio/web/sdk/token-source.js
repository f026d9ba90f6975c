/**
 * Where tokens come from: the server with a key, or the application's `getToken`.
 *
 * Law: one request at a time, which ends within 30 s; `cancel` forgets it.
 */

import { PaperDBError } from "./errors.js";
import { Timers } from "./timers.js";
import { Token } from "./token.js";

/** What a token may take to come. `getToken` is not ours and may never settle. */
const TOKEN_MS = 30_000;

export class TokenSource {
  #obtain;
  #marginMs;
  #abort = null;
  #haste = 0; // tokens in a row that the clocks wanted renewed too soon
  #timers = new Timers();

  /** `obtain(collections, abort)` resolves to a token's text. */
  constructor(obtain, marginMs) {
    this.#obtain = obtain;
    this.#marginMs = marginMs;
  }

  /** A `Token` for these. Rejects with a PaperDBError. In the background, it keeps no Node process alive. */
  async get(collections, { background }) {
    const abort = (this.#abort = new AbortController());
    const late = new Promise((_, reject) => {
      const giveUp = () => {
        abort.abort();
        reject(new PaperDBError(`no token came within ${TOKEN_MS / 1000} s`, { code: "TOKEN_UNAVAILABLE" }));
      };
      this.#timers.set("token", TOKEN_MS, giveUp, { background });
    });
    try {
      const text = await Promise.race([this.#obtain(collections, abort), late]);
      const token = new Token(text, this.#marginMs, this.#haste);
      if (this.#abort === abort) this.#haste = token.isHasty ? this.#haste + 1 : 0;
      return token;
    } finally {
      if (this.#abort === abort) this.#timers.clear("token");
    }
  }

  cancel() {
    this.#abort?.abort();
    this.#abort = null;
    this.#timers.clear("token");
  }
}
