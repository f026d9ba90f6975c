/**
 * The application's tokens as REST uses them: the newest one, whether it was asked for by a request or by the WebSocket,
 * so that both see the same.
 *
 * Law: one request at a time asks for a token.
 */

import { Token, ask } from "./token.js";
import { TokenSource } from "./token-source.js";
import { isFinal } from "./errors.js";

export class Bearer {
  #getToken;
  #marginMs;
  #source;
  #token = null;
  #names = new Set(); // collections that were asked for
  #asking = Promise.resolve();

  constructor(getToken, marginMs) {
    this.#getToken = getToken;
    this.#marginMs = marginMs;
    this.#source = new TokenSource((collections) => ask(getToken, collections), marginMs);
  }

  /** A new token's text, for the WebSocket. */
  async obtain(collections) {
    try {
      const text = await ask(this.#getToken, collections);
      this.#token = new Token(text, this.#marginMs, 0);
      return text;
    } catch (error) {
      if (isFinal(error)) this.#token = null;
      throw error;
    }
  }

  /** A `Token` that covers these, if it can be had. Rejects with a PaperDBError. */
  get(collections) {
    const next = this.#asking.then(() => this.#get(collections));
    this.#asking = next.catch(() => {});
    return next;
  }

  async #get(collections) {
    for (const name of collections) this.#names.add(name);
    const isGood = this.#token !== null && Date.now() < this.#token.renewAt && collections.every(this.#token.covers);
    if (!isGood) this.#token = await this.#source.get([...this.#names], { background: false });
    return this.#token;
  }

  /** It was refused. */
  drop(token) {
    if (this.#token === token) this.#token = null;
  }
}
