/**
 * Every change, in order of seq, over outages: a WebSocket in cursor mode, made again behind the last change.
 *
 * Law: no elements. The SDK's subscriptions begin now; this one can begin at any seq that the log holds.
 */

import { server } from "./session.js";

const FIRST_DELAY_MS = 500;
const MAX_DELAY_MS = 10_000;
/** Close codes after which another try would fare the same. */
const isFinal = (code) => code >= 4400 && code < 4500 && ![4401, 4408, 4410].includes(code);

export class Feed {
  #about;
  #since;
  #socket = null;
  #failures = 0;
  #timer = null;
  #isOver = false;

  /**
   * `collections`: names, or `["*"]`. `filter`: for one collection. `since`: a seq, or `now`. `onEvent(event)`;
   * `onState(state, words)` with state live, stale or error; `onGap({since, oldest})`.
   */
  constructor({ session, collections, filter, since, onEvent, onState, onGap }) {
    this.#about = { session, collections, filter, onEvent, onState, onGap };
    this.#since = since;
    void this.#connect();
  }

  async #connect() {
    const { session, collections, filter, onState } = this.#about;
    let token;
    try {
      token = await session.realtimeToken(collections);
    } catch (error) {
      if (error.status >= 400 && error.status < 500 && error.status !== 429) return onState("error", error.message);
      return this.#again(error.message);
    }
    if (this.#isOver) return undefined;
    const address = new URL(server);
    address.protocol = server.protocol === "https:" ? "wss:" : "ws:";
    address.searchParams.set("since", this.#since);
    address.searchParams.set("errors", "close");
    if (collections[0] !== "*") address.searchParams.set("collections", collections.join(","));
    if (filter) address.searchParams.set("filter", JSON.stringify({ [collections[0]]: filter }));
    const socket = (this.#socket = new WebSocket(address, ["paperdb.v1", `bearer.${token}`]));
    socket.onmessage = ({ data }) => this.#receive(JSON.parse(data));
    socket.onclose = ({ code, reason }) => {
      if (this.#isOver || socket !== this.#socket) return;
      if (isFinal(code)) onState("error", reason || `closed with ${code}`);
      else this.#again(reason || "the connection was lost");
    };
    return undefined;
  }

  #again(why) {
    if (this.#isOver) return;
    this.#about.onState("stale", why);
    const delay = Math.min(MAX_DELAY_MS, FIRST_DELAY_MS * 2 ** this.#failures) * (0.5 + Math.random() / 2);
    this.#failures += 1;
    this.#timer = setTimeout(() => void this.#connect(), delay);
  }

  #receive(message) {
    const { type, seq } = message;
    if (type === "ready") {
      this.#failures = 0;
      if (this.#since === "now") this.#since = seq;
      this.#about.onState("live", "");
    } else if (type === "gap") this.#about.onGap(message);
    else if (type === "insert" || type === "update" || type === "delete") {
      this.#since = Math.max(Number(this.#since) || 0, seq);
      this.#about.onEvent(message);
    } else if (type === "progress") this.#since = seq;
  }

  close() {
    this.#isOver = true;
    clearTimeout(this.#timer);
    this.#socket?.close();
  }
}
