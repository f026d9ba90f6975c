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
  #asked = 0; // how many tokens were asked for
  #held = 0; // the last of them that came
  #names = new Set(); // collections that were asked for
  #asking = Promise.resolve();

  constructor(getToken, marginMs) {
    this.#getToken = getToken;
    this.#marginMs = marginMs;
    this.#source = new TokenSource((collections) => ask(getToken, collections), marginMs);
  }

  /** A new token's text, for the WebSocket. */
  async obtain(collections) {
    const number = (this.#asked += 1);
    try {
      const text = await ask(this.#getToken, collections);
      this.#hold(new Token(text, this.#marginMs, 0), number);
      return text;
    } catch (error) {
      if (isFinal(error)) this.#hold(null, number);
      throw error;
    }
  }

  /** A token that was asked for earlier than the present one, and comes later, may have a rule that is past. */
  #hold(token, number) {
    if (number < this.#held) return;
    this.#held = number;
    this.#token = token;
  }

  /** A `Token` that covers these, if it can be had. Rejects with a PaperDBError. */
  get(collections) {
    const next = this.#asking.then(() => this.#get(collections));
    this.#asking = next.catch(() => {});
    return next;
  }

  async #get(collections) {
    for (const name of collections) this.#names.add(name);
    const isGood = () => this.#token !== null && Date.now() < this.#token.renewAt && collections.every(this.#token.covers);
    if (isGood()) return this.#token;
    const number = (this.#asked += 1);
    const token = await this.#source.get([...this.#names], { background: false });
    this.#hold(token, number);
    return isGood() ? this.#token : token;
  }

  /** It was refused. */
  drop(token) {
    if (this.#token === token) this.#token = null;
  }
}
