/**
 * One WebSocket, from its handshake to its end: texts in, actions out, each reply to the action that asked for it.
 *
 * Law: knows nothing of subscriptions, cursors or reconnection. It ends once, by `onEnd`; after `close` it calls
 * nothing. The token goes into the subprotocol and the `auth` action only.
 */

import { AGAIN, closed, failed } from "./endings.js";
import { PaperDBError, invalid } from "./errors.js";
import { Timers } from "./timers.js";

const CONNECT_MS = 10_000;
/** Extra time for a pong when our own timer fires late: the pong may be there, unread. */
const LATE_MS = 500;
const LAST_LOOK_MS = 1_000;

/** The WebSocket class to use: the option's, else the global one. */
export function socketClass(option) {
  const Socket = option ?? globalThis.WebSocket;
  if (Socket !== undefined) return Socket;
  const how = "Node 22 or later has one; or pass `WebSocket: ws` to createClient (npm install ws)";
  throw invalid("NO_WEBSOCKET", `There is no WebSocket here. ${how}`);
}

export class Connection {
  /** Collections that the server was asked for → the identity of that request. */
  joined = new Map();
  /** The log's head when the server was ready. */
  head = 0;
  #socket;
  #isReady = false;
  #refs = 0;
  #replies = new Map();
  #timers = new Timers();

  /** `onText(text)` for each message; `onEnd(ending)`, see endings.js. Throws what the class's constructor throws. */
  constructor(Socket, url, token, { onText, onEnd }) {
    const socket = new Socket(url, ["paperdb.v1", `bearer.${token.reveal()}`]);
    socket.onmessage = ({ data }) => onText(data);
    socket.onclose = ({ code, reason }) => onEnd(closed(code, reason));
    // Not every class follows a failed handshake with "close".
    socket.onerror = (event) => this.#isReady || onEnd(failed(event));
    this.#socket = socket;
    const text = "connecting took too long";
    const error = new PaperDBError(text, { code: "NETWORK" });
    this.#timers.set("connect", CONNECT_MS, () => onEnd({ then: AGAIN, text, error }), { background: false });
  }

  /** The server is ready: the handshake is over. */
  ready(head) {
    this.head = head;
    this.#isReady = true;
    this.#timers.clear("connect");
  }

  /** `onReply(error, message)`: `error` is null unless the message is one. */
  ask(action, fields, onReply = () => {}) {
    const ref = ++this.#refs;
    this.#replies.set(ref, onReply);
    this.#socket.send(JSON.stringify({ action, ...fields, ref }));
  }

  /** Give a message to the action that it replies to, if there is one. */
  reply(message) {
    const { ref, type, code, message: text } = message;
    const onReply = this.#replies.get(ref);
    this.#replies.delete(ref);
    onReply?.(type === "error" ? new PaperDBError(text, { status: 400, code }) : null, message);
  }

  /** Ask for a pong: `onPong(message)`. `onDead()` if nothing at all comes within `ms`. */
  probe(ms, onPong, onDead) {
    if (this.#timers.has("pong")) return;
    this.ask("ping", {}, (error, message) => onPong(message));
    const due = Date.now() + ms;
    const look = () => (Date.now() > due + LATE_MS ? this.#timers.set("pong", LAST_LOOK_MS, onDead) : onDead());
    this.#timers.set("pong", ms, look);
  }

  /** Something came: it is alive. */
  heard() {
    this.#timers.clear("pong");
  }

  close() {
    this.#timers.clear("connect", "pong");
    this.#replies.clear();
    this.joined.clear();
    this.#socket.onmessage = this.#socket.onclose = null;
    this.#socket.onerror = () => {}; // `ws` throws errors that have no listener
    this.#socket.close();
  }
}
