/**
 * Requests to the server: what is sent, how often, and how the response is read.
 *
 * Law: the API key goes into request headers only: never into a URL, an error or a log. A request without a response
 * is sent again, a few times. A write is sent again only if the server knows its `Idempotency-Key`, so that it happens
 * once.
 */

import { PaperDBError, address, certificateError, invalid, isCertificateCode, isFinal } from "./errors.js";

const REQUEST_MS = 30_000;
const ATTEMPTS = 5;
const FIRST_PAUSE_MS = 500;
/** In seconds. A response that asks for a longer pause is for the caller. */
const MAX_RETRY_AFTER = 10;

/** Shared by all copies of this module: a program may load it as an ES module and by `require`. */
const seqs = (globalThis[Symbol.for("paperdb.seqs")] ??= new WeakMap());

/** The seq of a document's last change, if REST gave it to us: for `ifMatch`. */
export const seqOf = (document) => seqs.get(document);

export const setSeq = (document, seq) => seqs.set(document, seq);

let keys = 0;

/**
 * An `Idempotency-Key` of our own. It begins with the time, so that the server's index of keys grows at its end.
 * Pages without TLS have no randomUUID, and Node 18 has no global `crypto`.
 */
function newKey() {
  const parts = globalThis.crypto?.getRandomValues(new Uint32Array(4)) ?? [Math.random() * 2 ** 52];
  return [Date.now(), ...parts, (keys += 1)].map((part) => Math.floor(part).toString(36)).join("-");
}

export function checkKey(key = newKey()) {
  if (typeof key === "string" && /^[!-~]{1,255}$/.test(key)) return key;
  const expected = "Use 1 to 255 printable ASCII characters without spaces.";
  throw invalid("INVALID_REQUEST", `Invalid idempotencyKey: ${JSON.stringify(key)}. ${expected}`);
}

/** No response came, be it that a proxy says so. A write may have happened. */
const isLost = ({ code, status }) => code === "NETWORK" || status === 502 || status === 504;

/**
 * The seconds after which the same request may have another response; undefined if the error stands. A query that
 * took too long would do so again.
 */
function retryAfter(error) {
  const { code, status, retryAfter: seconds = isLost(error) ? 0 : Infinity } = error;
  const mayPass = !isFinal(error) && (isLost(error) || (status === 503 && code !== "QUERY_TIMEOUT"));
  return mayPass && seconds <= MAX_RETRY_AFTER ? seconds : undefined;
}

/** After the first failure it is sent at once: most often the server had closed an idle connection. */
const pause = (failures) => (failures === 1 ? 0 : FIRST_PAUSE_MS * 2 ** (failures - 2) * (0.5 + Math.random() / 2));

export class Transport {
  #base;
  #key;
  #fetch;
  #bearer;
  #keysAreKnown = false;

  /** `bearer`: see bearer.js; instead of `apiKey`, for requests that are made `for` collections. */
  constructor({ baseUrl, apiKey, fetch, bearer }) {
    this.#base = address("baseUrl", baseUrl, "http");
    this.#key = apiKey;
    this.#bearer = apiKey === undefined ? bearer : undefined;
    this.#fetch = (...args) => (fetch ?? globalThis.fetch)(...args);
  }

  get isSecret() {
    return this.#key?.startsWith("pdb_sk_") ?? false;
  }

  /** The same, for requests that concern these collections. */
  for(collections) {
    return {
      isSecret: this.isSecret,
      request: (method, path, isGood, about = {}) => this.request(method, path, isGood, { ...about, collections }),
    };
  }

  /**
   * The response's JSON, which `isGood` checks. Rejects with a PaperDBError. `idempotencyKey`: a write's. `attempts`:
   * how often it is sent at most.
   */
  async request(method, path, isGood, { attempts = ATTEMPTS, body, ...about } = {}) {
    const options = { ...about, text: body && JSON.stringify(body) }; // the same each time, whatever becomes of `body`
    const failures = [];
    while (failures.length < attempts) {
      try {
        if (failures.length && options.idempotencyKey !== undefined && !(await this.#knowsKeys(options.collections))) break;
        return await this.#send(method, path, isGood, options);
      } catch (error) {
        const seconds = retryAfter(error);
        if (seconds === undefined) throw error;
        failures.push(error);
        if (failures.length === attempts) break;
        await new Promise((resolve) => setTimeout(resolve, seconds * 1000 + pause(failures.length)));
      }
    }
    throw failures.find(isLost) ?? failures.at(-1); // if the write may have happened, that is what the caller must learn
  }

  /**
   * Whether the server knows `Idempotency-Key`. One that refuses an empty batch as such does: both came in one
   * version; an older one has no such path. Rejects if it may say so later.
   */
  async #knowsKeys(collections) {
    if (this.#keysAreKnown) return true;
    try {
      await this.#send("POST", "/batch", () => true, { text: '{"operations":[]}', collections });
    } catch (error) {
      if (retryAfter(error) !== undefined) throw error;
      this.#keysAreKnown = error.code === "INVALID_OPERATION";
    }
    return this.#keysAreKnown;
  }

  /** With a token, if there is no key. One that is refused is replaced, once. */
  async #send(method, path, isGood, options) {
    if (this.#bearer === undefined || options.collections === undefined) return this.#sendAs(this.#key, method, path, isGood, options);
    const token = await this.#bearer.get(options.collections);
    try {
      return await this.#sendAs(token.reveal(), method, path, isGood, options);
    } catch (error) {
      if (error.status !== 401) throw error;
      this.#bearer.drop(token);
    }
    const other = await this.#bearer.get(options.collections);
    return this.#sendAs(other.reveal(), method, path, isGood, options);
  }

  async #sendAs(credential, method, path, isGood, options) {
    const { query = {}, text, ifMatch, idempotencyKey, abort = new AbortController() } = options;
    const headers = {};
    if (credential !== undefined) headers.Authorization = `Bearer ${credential}`;
    if (text !== undefined) headers["Content-Type"] = "application/json";
    if (ifMatch !== undefined) headers["If-Match"] = ifMatch === "*" ? "*" : `"${ifMatch}"`;
    if (idempotencyKey !== undefined) headers["Idempotency-Key"] = idempotencyKey;
    const search = String(new URLSearchParams(Object.entries(query).filter(([, value]) => value !== undefined)));
    const url = `${this.#base}${path}${search && "?"}${search}`;
    // No redirect is followed: it may make a GET of a write, or take the key to another host.
    const init = { method, headers, body: text, signal: abort.signal, redirect: "manual" };
    let timeout = false;
    const timer = setTimeout(() => {
      timeout = true;
      abort.abort();
    }, REQUEST_MS);
    timer.unref?.(); // the request itself keeps a Node process alive
    try {
      const response = await this.#fetch(url, init);
      return read(response, await response.text(), isGood);
    } catch (error) {
      if (error instanceof PaperDBError) throw error;
      const why = timeout ? `nothing within ${REQUEST_MS / 1000} s` : error?.cause?.code ?? error?.message;
      if (isCertificateCode(why)) throw certificateError(error.cause.message ?? why, error);
      throw new PaperDBError(`No response from the server: ${why}`, { code: "NETWORK", timeout, cause: error });
    } finally {
      clearTimeout(timer);
    }
  }
}

function read(response, text, isGood) {
  let value;
  try {
    value = JSON.parse(text);
  } catch {
    value = null;
  }
  const { status, type, redirected } = response;
  if (type === "opaqueredirect" || redirected || (status >= 300 && status < 400)) throw redirect(response);
  if (!response.ok) throw refusal(response, value);
  if (value === null || typeof value !== "object" || !isGood(value)) {
    throw new PaperDBError("This is not a response of PaperDB", { status, code: "BAD_ANSWER" });
  }
  const seq = /^(?:W\/)?"(\d+)"$/.exec(response.headers.get("ETag") ?? "");
  if (seq) seqs.set(value, Number(seq[1]));
  return value;
}

function redirect({ status, headers }) {
  const location = headers.get("Location");
  const message = `Something redirects the request${location ? ` to ${location}` : ""}`;
  return new PaperDBError(`${message}, which is not followed: use the server's own address`, { status, code: "REDIRECTED" });
}

function refusal({ status, headers }, value) {
  const { error = `The server responded with HTTP ${status}`, code = `HTTP_${status}`, ...extra } = value ?? {};
  const retryAfter = Number(headers.get("Retry-After") ?? NaN);
  if (retryAfter >= 0) extra.retryAfter = retryAfter;
  return new PaperDBError(String(error), { ...extra, status, code });
}
