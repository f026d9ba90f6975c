/**
 * A WebSocket client for Node without one (20 and 21): RFC 6455 over node:http, as much as PaperDB needs.
 *
 * Law: loaded only where there is no global WebSocket. The same `on…` properties, and no others; what a
 * handshake was refused with is on the error event: `status`, `retryAfter`, and of a PaperDB server `code` and
 * `message`. No extensions. Every way in which a connection can end leads to one `onclose`.
 */

import { createHash, randomBytes } from "node:crypto";
import { request as httpRequest } from "node:http";
import { request as httpsRequest } from "node:https";

const GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
const CONTINUATION = 0;
const TEXT = 1;
const BINARY = 2;
const CLOSE = 8;
const PING = 9;
const PONG = 10;
/** A document is 1 MiB at most by default; a server may be set to allow larger ones. */
const MAX_MESSAGE_BYTES = 64 * 1024 * 1024;
/** What the other side gets to answer a close frame, ms. */
const CLOSE_MS = 1_000;
/** What is read of a refusal's body, and for how long it is waited for, ms. */
const MAX_REFUSAL_BYTES = 65_536;
const REFUSAL_MS = 1_000;
const NO_STATUS = 1005;
const ABNORMAL = 1006;

class Violation extends Error {
  constructor(code, reason) {
    super(reason);
    this.code = code;
  }
}

/** Bytes in, exact pieces out: `push` a chunk, `take` n bytes or null while there are fewer. */
class Bytes {
  #chunks = [];
  #size = 0;

  push(chunk) {
    this.#chunks.push(chunk);
    this.#size += chunk.length;
  }

  take(size) {
    if (this.#size < size) return null;
    this.#size -= size;
    const taken = [];
    for (let missing = size; missing > 0; ) {
      const chunk = this.#chunks[0];
      taken.push(chunk.subarray(0, missing));
      if (chunk.length > missing) this.#chunks[0] = chunk.subarray(missing);
      else this.#chunks.shift();
      missing -= taken.at(-1).length;
    }
    return taken.length === 1 ? taken[0] : Buffer.concat(taken, size);
  }
}

/** A masked frame with FIN set: what a client sends. */
function frame(opcode, payload) {
  const size = payload.length;
  const extended = size < 126 ? 0 : size < 65_536 ? 2 : 8;
  const bytes = Buffer.allocUnsafe(2 + extended + 4 + size);
  bytes[0] = 0x80 | opcode;
  bytes[1] = 0x80 | (extended === 0 ? size : extended === 2 ? 126 : 127);
  if (extended === 2) bytes.writeUInt16BE(size, 2);
  if (extended === 8) bytes.writeBigUInt64BE(BigInt(size), 2);
  const mask = randomBytes(4);
  mask.copy(bytes, 2 + extended);
  const start = 6 + extended;
  for (let index = 0; index < size; index += 1) bytes[start + index] = payload[index] ^ mask[index & 3];
  return bytes;
}

const decoder = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

function decode(bytes) {
  try {
    return decoder.decode(bytes);
  } catch {
    throw new Violation(1007, "text that is not UTF-8");
  }
}

/** The object that a JSON text is; empty for anything else. */
function parse(bytes) {
  try {
    return { ...JSON.parse(bytes) };
  } catch {
    return {};
  }
}

/**
 * Yields how many bytes it wants next, is given them, and calls `onMessage(opcode, payload)` with whole
 * messages and control frames. Throws a `Violation`.
 */
function* readFrames(onMessage) {
  let parts = [];
  let size = 0;
  let kind = CONTINUATION;
  for (;;) {
    const [first, second] = yield 2;
    const opcode = first & 15;
    const final = first >= 128;
    let length = second & 127;
    if (first & 0x70) throw new Violation(1002, "reserved bits are set");
    if (second & 0x80) throw new Violation(1002, "a server must not mask");
    if (opcode >= CLOSE && (!final || length > 125)) throw new Violation(1002, "a control frame too long");
    if (length === 126) length = (yield 2).readUInt16BE();
    else if (length === 127) length = Number((yield 8).readBigUInt64BE());
    if (opcode < CLOSE && size + length > MAX_MESSAGE_BYTES) throw new Violation(1009, "the message is too big");
    const payload = yield length;
    if (opcode === CLOSE || opcode === PING || opcode === PONG) {
      onMessage(opcode, payload);
      continue;
    }
    const begins = opcode === TEXT || opcode === BINARY;
    if (begins ? kind !== CONTINUATION : opcode !== CONTINUATION || kind === CONTINUATION) {
      throw new Violation(1002, "a frame that does not belong here");
    }
    if (begins) kind = opcode;
    parts.push(payload);
    size += length;
    if (!final) continue;
    const whole = parts.length === 1 ? payload : Buffer.concat(parts, size);
    const type = kind;
    [parts, size, kind] = [[], 0, CONTINUATION];
    onMessage(type, whole);
  }
}

/** The subset of the browser's WebSocket that `realtime.js` uses. */
export class WebSocket {
  onopen = null;
  onmessage = null;
  onerror = null;
  onclose = null;
  readyState = 0; // CONNECTING 0, OPEN 1, CLOSING 2, CLOSED 3
  protocol = "";
  #request;
  #socket = null;
  #bytes = new Bytes();
  #frames = readFrames((opcode, payload) => this.#take(opcode, payload));
  #wanted = 0;
  #code = ABNORMAL;
  #reason = "";

  /** Begins to connect to a ws(s) URL. What goes wrong comes as `onerror`, then `onclose` with 1006. */
  constructor(url, protocols = []) {
    const target = new URL(url);
    const secure = target.protocol === "wss:";
    target.protocol = secure ? "https:" : "http:";
    const key = randomBytes(16).toString("base64");
    const headers = {
      Connection: "Upgrade",
      Upgrade: "websocket",
      "Sec-WebSocket-Key": key,
      "Sec-WebSocket-Version": "13",
    };
    if (protocols.length) headers["Sec-WebSocket-Protocol"] = protocols.join(", ");
    this.#wanted = this.#frames.next().value;
    this.#request = (secure ? httpsRequest : httpRequest)(target, { headers, agent: false });
    this.#request.on("upgrade", (response, socket, head) => this.#upgraded(response, socket, head, key, protocols));
    this.#request.on("response", (response) => this.#refused(response));
    this.#request.on("error", (error) => this.#failed({ message: error.message, code: error.code }));
    this.#request.end();
  }

  send(text) {
    if (this.readyState === 0) throw new Error("The WebSocket is not open yet");
    if (this.readyState === 1) this.#socket.write(frame(TEXT, Buffer.from(text)));
  }

  /** Begin to close. From here it keeps no process alive, as one that the other side closes does until `onclose`. */
  close(code = 1000, reason = "") {
    if (this.readyState === 0) {
      this.readyState = 2;
      this.#request.destroy();
      this.#failed({ message: "closed before it was open" });
    } else if (this.readyState === 1) {
      this.#startClosing(code, reason);
      this.#socket.unref();
    }
  }

  // --- the handshake -----------------------------------------------------------------------------

  #upgraded({ headers }, socket, head, key, protocols) {
    if (this.readyState !== 0) return socket.destroy();
    const accept = createHash("sha1").update(key + GUID).digest("base64");
    const protocol = headers["sec-websocket-protocol"] ?? "";
    if (
      headers["sec-websocket-accept"] !== accept ||
      headers["sec-websocket-extensions"] !== undefined ||
      headers.upgrade?.toLowerCase() !== "websocket" ||
      (protocol !== "" && !protocols.includes(protocol))
    ) {
      socket.destroy();
      return this.#failed({ message: "the answer to the handshake is wrong" });
    }
    this.#socket = socket;
    this.protocol = protocol;
    this.readyState = 1;
    socket.setNoDelay(true);
    socket.setTimeout(0);
    socket.on("error", () => {}); // "close" follows
    socket.on("close", () => this.#ended());
    socket.on("end", () => socket.end());
    this.onopen?.({ type: "open" });
    if (head.length) this.#feed(head);
    socket.on("data", (chunk) => this.#feed(chunk));
    return undefined;
  }

  #refused(response) {
    const { statusCode: status, headers } = response;
    const parts = [];
    let size = 0;
    const tell = () => {
      clearTimeout(timer);
      this.#request.destroy();
      const { error: message = `HTTP ${status}`, code } = parse(Buffer.concat(parts));
      this.#failed({ status, message, code, retryAfter: Number(headers["retry-after"]) || 0 });
    };
    const timer = setTimeout(tell, REFUSAL_MS);
    response.on("data", (part) => {
      parts.push(part);
      size += part.length;
      if (size > MAX_REFUSAL_BYTES) response.destroy();
    });
    for (const end of ["end", "error", "close"]) response.on(end, tell);
  }

  #failed(about) {
    if (this.readyState === 3) return;
    this.readyState = 3;
    this.onerror?.({ type: "error", ...about });
    this.#report();
  }

  // --- frames ------------------------------------------------------------------------------------

  #feed(chunk) {
    this.#bytes.push(chunk);
    try {
      for (;;) {
        const piece = this.#bytes.take(this.#wanted);
        if (piece === null || this.readyState === 3) return;
        this.#wanted = this.#frames.next(piece).value;
      }
    } catch (error) {
      if (!(error instanceof Violation)) throw error;
      [this.#code, this.#reason] = [error.code, error.message];
      this.onerror?.({ type: "error", message: error.message });
      this.#startClosing(error.code, error.message);
      this.#socket.destroy();
    }
  }

  #take(opcode, payload) {
    if (opcode === PING) this.#socket.write(frame(PONG, payload));
    else if (opcode === CLOSE) this.#closedByPeer(payload);
    else if (opcode !== PONG && this.readyState === 1) {
      this.onmessage?.({ type: "message", data: opcode === TEXT ? decode(payload) : payload });
    }
  }

  #closedByPeer(payload) {
    if (payload.length === 1) throw new Violation(1002, "a close code of one byte");
    this.#code = payload.length ? payload.readUInt16BE() : NO_STATUS;
    this.#reason = decode(payload.subarray(2));
    if (this.readyState === 1) this.#startClosing(payload.length ? this.#code : 1000, "");
    this.#socket.end();
  }

  // --- the end -----------------------------------------------------------------------------------

  #startClosing(code, reason) {
    if (this.readyState !== 1) return;
    this.readyState = 2;
    const text = Buffer.from(reason).subarray(0, 120);
    const payload = Buffer.alloc(2 + text.length);
    payload.writeUInt16BE(code);
    text.copy(payload, 2);
    this.#socket.write(frame(CLOSE, payload));
    setTimeout(() => this.#socket.destroy(), CLOSE_MS).unref();
  }

  #ended() {
    if (this.readyState === 3) return;
    this.readyState = 3;
    this.#report();
  }

  #report() {
    this.onclose?.({ type: "close", code: this.#code, reason: this.#reason, wasClean: this.#code !== ABNORMAL });
  }
}
