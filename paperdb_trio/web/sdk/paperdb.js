/**
 * PaperDB for JavaScript: documents over REST; `./realtime.js` has their changes. Types: paperdb.d.ts.
 *
 * Law: no dependencies; it runs where there are `fetch` and ES modules. The API key goes into request
 * headers only: never into a URL, an error or a log. A write is sent once; a read at most twice.
 */

import {
  PaperDBError,
  address,
  certificateError,
  checkCollection,
  invalid,
  isCertificateCode,
  isCollectionName,
  segment,
} from "./errors.js";
import { Realtime } from "./realtime.js";
import { ask } from "./token.js";

export { PaperDBError };

const REQUEST_MS = 30_000;

// --- REST ----------------------------------------------------------------------------------------

/** Shared by all copies of this module: a program may load it as an ES module and by `require`. */
const seqs = (globalThis[Symbol.for("paperdb.seqs")] ??= new WeakMap());

/** The seq of a document's last change, if REST gave it to us: for `ifMatch`. */
export const seqOf = (document) => seqs.get(document);

class Transport {
  #base;
  #key;
  #fetch;

  constructor({ baseUrl, apiKey, fetch }) {
    this.#base = address("baseUrl", baseUrl, "http");
    this.#key = apiKey;
    this.#fetch = (...args) => (fetch ?? globalThis.fetch)(...args);
  }

  get isSecret() {
    return this.#key?.startsWith("pdb_sk_") ?? false;
  }

  /**
   * The response's JSON, which `isGood` checks. Rejects with a PaperDBError. A read is tried a second time if no
   * response came.
   */
  async request(method, path, isGood, options = {}) {
    try {
      return await this.#send(method, path, isGood, options);
    } catch (error) {
      if (method !== "GET" || error.code !== "NETWORK" || error.timeout) throw error;
      return this.#send(method, path, isGood, options);
    }
  }

  async #send(method, path, isGood, { query = {}, body, ifMatch, abort = new AbortController() }) {
    const headers = {};
    if (this.#key !== undefined) headers.Authorization = `Bearer ${this.#key}`;
    if (body !== undefined) headers["Content-Type"] = "application/json";
    if (ifMatch !== undefined) headers["If-Match"] = ifMatch === "*" ? "*" : `"${ifMatch}"`;
    const search = String(new URLSearchParams(Object.entries(query).filter(([, value]) => value !== undefined)));
    const url = `${this.#base}${path}${search && "?"}${search}`;
    // No redirect is followed: it may make a GET of a write, or take the key to another host.
    const init = { method, headers, body: body && JSON.stringify(body), signal: abort.signal, redirect: "manual" };
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

// What responses must have. A write's must be what was written, not the response to another request.
const isDocument = ({ _id }) => typeof _id === "string";
const isBulk = ({ inserted, failed, documents }) =>
  typeof inserted === "number" && typeof failed === "number" && Array.isArray(documents);
const isFound = ({ documents, hasMore }) => Array.isArray(documents) && typeof hasMore === "boolean";
const isDeleted = ({ deleted, _id }) => deleted === true && typeof _id === "string";
const isCount = ({ count }) => typeof count === "number";
const isToken = ({ token }) => typeof token === "string";
const isRevoked = ({ revoked }) => revoked === true;
const isAnything = () => true;

function refusal({ status, headers }, value) {
  const { error = `The server responded with HTTP ${status}`, code = `HTTP_${status}`, ...extra } = value ?? {};
  const retryAfter = Number(headers.get("Retry-After") ?? NaN);
  if (retryAfter >= 0) extra.retryAfter = retryAfter;
  return new PaperDBError(String(error), { ...extra, status, code });
}

/** The options that a method knows, as they go into a query. Throws for another: most likely a typing error. */
function parameters(options, known) {
  const query = {};
  for (const [name, value] of Object.entries(options)) {
    if (!known.includes(name)) {
      throw invalid("INVALID_REQUEST", `Unknown option '${name}'; expected ${known.join(", ")}`);
    }
    query[name] = name === "filter" ? JSON.stringify(value) : value; // arrays become a,b
  }
  return query;
}

/** Characters of a filter above which a find is sent as a body: percent-encoded it is up to three times as long. */
const MAX_FILTER = 2000;

/** What `Collection` in paperdb.d.ts says. Its functions use no `this`: a framework may wrap it into a proxy. */
function makeCollection(transport, name, schema) {
  const base = `/${checkCollection(name)}`;
  const properties = schema?.properties ?? {};
  let registration = schema && transport.isSecret ? undefined : Promise.resolve();

  /** Tell the server the schema, before our first write. One that has no such route does without. */
  async function register() {
    try {
      await transport.request("PUT", `${base}/schema`, isAnything, { body: schema });
    } catch (error) {
      if (error.status === 404 || error.status === 405) return;
      registration = undefined; // the next write tries again
      throw error;
    }
  }

  async function write(method, path, isGood, { body, ...options }) {
    const value = body?.();
    await (registration ??= register());
    return transport.request(method, base + path, isGood, { ...options, body: value });
  }

  function prepare(document, { key, unique }) {
    const prepared = { ...asObject(document) };
    const ruled = [];
    for (const [field, rule] of Object.entries(properties)) {
      if (prepared[field] === undefined && "default" in rule) prepared[field] = rule.default;
      if (rule.unique) ruled.push(field);
    }
    if (key !== undefined) prepared.key = key;
    if (unique !== undefined) prepared.unique = unique;
    else if (ruled.length) prepared.unique ??= ruled;
    return prepared;
  }

  return {
    name,

    insert: (document, options = {}) =>
      write("POST", "/docs", isDocument, { body: () => prepare(document, options) }),

    async insertBulk(documents, { atomic = false, unique } = {}) {
      const body = () => Array.from(documents, (document) => prepare(document, { unique }));
      const result = await write("POST", "/bulk", isBulk, { body, query: atomic ? { atomic } : {} });
      return { errors: [], ...result };
    },

    async find(options = {}) {
      const query = parameters(options, ["filter", "sort", "limit", "offset", "select", "count", "after"]);
      const large = (query.filter?.length ?? 0) > MAX_FILTER;
      const { documents, ...about } = large
        ? await transport.request("POST", `${base}/query`, isFound, { body: asBody(options) })
        : await transport.request("GET", `${base}/docs`, isFound, { query });
      for (const name of ["hasMore", "total", "limit", "offset", "seq", "next"]) {
        Object.defineProperty(documents, name, { value: about[name] });
      }
      return documents;
    },

    async get(id, options = {}) {
      const query = parameters(options, ["select"]);
      return transport.request("GET", `${base}/docs/${segment(id)}`, isDocument, { query });
    },

    update: async (id, fields, { ifMatch } = {}) =>
      write("PATCH", `/docs/${segment(id)}`, isDocument, { body: () => asObject(fields), ifMatch }),

    replace: async (id, document, { ifMatch } = {}) =>
      write("PUT", `/docs/${segment(id)}`, isDocument, { body: () => asObject(document), ifMatch }),

    delete: async (id, { ifMatch } = {}) => write("DELETE", `/docs/${segment(id)}`, isDeleted, { ifMatch }),

    async count(options = {}) {
      const query = parameters(options, ["filter"]);
      return (await transport.request("GET", `${base}/count`, isCount, { query })).count;
    },
  };
}

/** A find's options as a body, in which lists are a text as they are in a query. */
function asBody(options) {
  const list = (value) => (Array.isArray(value) ? value.join(",") : value);
  return { ...options, sort: list(options.sort), select: list(options.select) };
}

function asObject(value) {
  if (value !== null && typeof value === "object" && !Array.isArray(value)) return value;
  throw invalid("INVALID_DOCUMENT", "A document must be a JSON object");
}

// --- the client ----------------------------------------------------------------------------------

function checkSchema(schema) {
  for (const [name, definition] of Object.entries(schema)) {
    checkCollection(name);
    if (typeof definition?.properties === "object" && definition.properties !== null) continue;
    throw invalid("INVALID_SCHEMA", `The schema of '${name}' must look like {properties: {email: {type: "string"}}}`);
  }
  return new Map(Object.entries(schema));
}

/** See `ClientOptions` in paperdb.d.ts. Throws a PaperDBError for options that cannot work. */
export function createClient(options = {}) {
  const { apiKey, baseUrl, getToken, fetch, tokenExpiresIn, tokenMarginSeconds = 60 } = options;
  if (!apiKey && !getToken) throw invalid("NO_API_KEY", "createClient needs an apiKey, or a getToken function");
  const schema = checkSchema(options.schema ?? {});
  const transport = new Transport({ baseUrl, apiKey: apiKey || undefined, fetch });
  const mint = async ({ collections, permissions = ["read"], expiresIn, subject }, abort) => {
    const body = { collections, permissions, expiresIn, subject };
    return (await transport.request("POST", "/realtime/token", isToken, { body, abort })).token;
  };
  const { realtimeUrl } = options;
  const realtime = new Realtime({
    url: realtimeUrl == null ? address("baseUrl", baseUrl, "ws") : address("realtimeUrl", realtimeUrl, "ws"),
    obtain: (collections, abort) =>
      getToken ? ask(getToken, collections) : mint({ collections, expiresIn: tokenExpiresIn }, abort),
    Socket: options.WebSocket,
    tokenMarginSeconds,
  });
  const collections = new Map();
  const collection = (name) => {
    if (!collections.has(name)) collections.set(name, makeCollection(transport, name, schema.get(name)));
    return collections.get(name);
  };
  const client = Object.assign(new Client(), {
    collection,
    close: () => realtime.close(),
    realtime: Object.freeze({
      subscribe: (...args) => realtime.subscribe(...args),
      generateToken: (request) => mint(request),
      async revoke({ jti, subject }) {
        await transport.request("POST", "/realtime/revoke", isRevoked, { body: { jti, subject } });
      },
      onStatus: (listener) => realtime.onStatus(listener),
      get status() {
        return realtime.status;
      },
    }),
  });
  const isCollection = (name) => isCollectionName(name) && !(name in client) && !NOT_COLLECTIONS.test(name);
  return new Proxy(client, {
    get: (target, name) => (isCollection(name) ? collection(name) : target[name]),
  });
}

/** No plain object: MobX and the like copy those, and would leave the collections behind. */
class Client {}

/**
 * What others look for on any object is a collection by `collection("then")` only, as are names that every object
 * has (`constructor`). `then` would make a promise of a client, `toJSON` a request of JSON.stringify; names that
 * begin with `_` are the marks of frameworks (`__v_raw`, `_isMockFunction`).
 */
const NOT_COLLECTIONS = /^(_|then$|toJSON$)/;
